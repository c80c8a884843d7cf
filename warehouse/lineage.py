"""What was made from what, and from whom: artefacts, edges between assets, and the examples behind each asset.

The examples of an asset are a set that is stored once for all the assets made from it, and dropped with the last of
them; consecutive ids are one row of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import polars as pl

from contracts.schema import ARTIFACTS, EDGES, LINEAGE_MEMBERS, LINEAGE_SETS
from warehouse import ddl
from warehouse.artifacts import Artifact
from warehouse.connection import Connection, fetch, literal
from warehouse.session import Session
from warehouse.writer import Receipt, Transaction, receipt_of, transaction


def runs_of(ids: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """First and last id of each run of consecutive ids, ascending; repeated ids count once.

    >>> [a.tolist() for a in runs_of([7, 1, 2, 3, 9])]
    [[1, 7, 9], [3, 7, 9]]
    """
    ordered = np.unique(np.asarray(ids, dtype=np.int64))
    if not len(ordered):
        return ordered, ordered
    breaks = np.flatnonzero(np.diff(ordered) != 1)
    return ordered[np.r_[0, breaks + 1]], ordered[np.r_[breaks, len(ordered) - 1]]


def record(
    t: Transaction,
    asset: str,
    *,
    parents: Iterable[str],
    artifacts: Sequence[Artifact | Receipt],
    key: str,
    members: Any,
    subject: str,
    run_id: str,
    config_digest: str,
) -> None:
    """Replace what is known of ``asset``: its results, its parents, the examples it was made from (None: keep)."""
    common: dict[str, Any] = {"subject": subject, "run_id": run_id, "config_digest": config_digest}
    rows = [_row(asset, item, key, t) for item in artifacts]
    frame = pl.DataFrame(rows, schema={c.name: _DTYPES[c.name] for c in ARTIFACTS.columns})
    t.replace(ARTIFACTS, frame, partition={"asset": asset}, **common)
    edges = pl.DataFrame({"parent": sorted(set(parents))}, schema={"parent": pl.String})
    t.replace(EDGES, edges, partition={"child": asset}, **common)
    if members is not None:
        set_members(t, asset, members, **common)
        for left in unused(t.con, subject):
            t.replace(LINEAGE_SETS, pl.DataFrame(schema=_RUNS), partition={"set_id": left}, **common)


def set_members(t: Transaction, asset: str, members: Any, **common: Any) -> None:
    """Say which examples an asset was made from, ids int64 in any order; sets that nothing uses any more stay."""
    ids = np.unique(np.asarray(members, dtype=np.int64))
    set_id = hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()
    subject = common["subject"]
    stored = receipt_of(t.con, LINEAGE_SETS.full_name, subject, {"set_id": set_id})
    if stored is None or stored[0].rows == 0:
        first, last = runs_of(ids)
        runs = pl.DataFrame({"first_id": first, "last_id": last})
        t.replace(LINEAGE_SETS, runs, partition={"set_id": set_id}, **common)
    t.replace(LINEAGE_MEMBERS, pl.DataFrame({"set_id": [set_id]}), partition={"asset": asset}, **common)


def unused(con: Connection, subject: str) -> list[str]:
    """Sets of examples that no asset of the subject was made from any more."""
    return [row[0] for row in con.execute(_UNUSED, [subject, subject]).fetchall()]


def trace(con: Connection, example_id: int, subject: str | None) -> pl.DataFrame:
    """Everything one example touched: ``(subject, kind, location, asset, detail)``.

    kind ``row``: a table row about it (``detail`` is the row as JSON); ``made_from``: a result of an asset whose
    members include it; ``derived``: a result of an asset that was made, directly or not, from such an asset.
    """
    own = "WHERE example_id = ? AND (?::VARCHAR IS NULL OR subject = ?)"
    parts = [
        f"SELECT subject, 'row' AS kind, {literal(f'{schema}.{name}')} AS location, '' AS asset, "
        f"to_json(t)::VARCHAR AS detail FROM {ddl.quoted(schema)}.{ddl.quoted(name)} t {own}"
        for schema, name in con.execute(
            "SELECT schema_name, table_name FROM duckdb_columns() c JOIN duckdb_tables() t USING (database_name, "
            "schema_name, table_name) WHERE database_name = current_database() AND column_name = 'example_id' ORDER "
            "BY ALL"
        ).fetchall()
    ]
    parts.append(_DESCENT)
    values = [example_id, subject, subject] * len(parts)
    frame = fetch(con, "\nUNION ALL\n".join(f"({p})" for p in parts), values)
    return frame.sort("subject", "kind", "location", "asset", "detail")


def curated(con: Connection, example_ids: Sequence[int], subject: str | None, owner: str | None) -> pl.DataFrame:
    """``(subject, dataset_id, method, role, num_examples, num_made)``: the curated sets that give a role to any of these
    examples, or to any of an owner's, with how many of them, and how many made examples were drawn from these."""
    return fetch(con, _CURATED, {"ids": list(example_ids), "owner": owner, "subject": subject})


def owned(con: Connection, owner: str, subject: str | None) -> pl.DataFrame:
    """``(subject, example_id, split)`` of the examples that bear an owner's token."""
    return fetch(con, _OWNED, {"owner": owner, "subject": subject})


_OWNED = """
SELECT subject, example_id, split FROM data.examples
WHERE owner = $owner AND ($subject::VARCHAR IS NULL OR subject = $subject) ORDER BY ALL
"""

_CURATED = """
WITH asked AS (
    SELECT subject, example_id FROM data.examples
    WHERE owner = $owner::VARCHAR AND ($subject::VARCHAR IS NULL OR subject = $subject)
    UNION
    SELECT subject, example_id FROM curation.members
    WHERE $owner::VARCHAR IS NULL AND list_contains($ids::BIGINT[], example_id)
    AND ($subject::VARCHAR IS NULL OR subject = $subject)
), drawn AS (
    SELECT f.subject, f.dataset_id, count(DISTINCT f.made_id) AS num_made
    FROM curation.drawn_from f JOIN asked USING (subject, example_id) GROUP BY ALL
)
SELECT m.subject, m.dataset_id, d.method, m.role, count(*) AS num_examples,
    coalesce(max(CASE WHEN m.role = 'source' THEN drawn.num_made END), 0) AS num_made
FROM curation.members m JOIN asked USING (subject, example_id)
JOIN curation.datasets d ON d.subject = m.subject AND d.dataset_id = m.dataset_id
LEFT JOIN drawn ON drawn.subject = m.subject AND drawn.dataset_id = m.dataset_id
GROUP BY ALL ORDER BY ALL
"""

_HOLDING = """
SELECT m.asset, count(*) AS num_examples FROM lineage.members m JOIN lineage.sets s USING (subject, set_id)
JOIN (SELECT unnest(?::BIGINT[]) AS id) i ON i.id BETWEEN s.first_id AND s.last_id
WHERE m.subject = ? GROUP BY m.asset ORDER BY m.asset
"""

_UNUSED = """
SELECT DISTINCT set_id FROM lineage.sets WHERE subject = ?
AND set_id NOT IN (SELECT set_id FROM lineage.members WHERE subject = ?) ORDER BY set_id
"""

_DESCENT = """
WITH RECURSIVE touched(subject, asset, kind) AS (
    SELECT DISTINCT m.subject, m.asset, 'made_from' FROM lineage.members m
    JOIN lineage.sets s ON s.subject = m.subject AND s.set_id = m.set_id
    WHERE ? BETWEEN first_id AND last_id AND (?::VARCHAR IS NULL OR m.subject = ?)
    UNION
    SELECT e.subject, e.child, 'derived' FROM touched t JOIN lineage.edges e ON e.subject = t.subject AND e.parent = t.asset
), strongest AS (SELECT subject, asset, max(kind) AS kind FROM touched GROUP BY ALL)
SELECT s.subject, s.kind, coalesce(a.location, '') AS location, s.asset,
    coalesce(json_object('artifact', a.artifact_id, 'kind', a.kind, 'sha256', a.sha256)::VARCHAR, '{}') AS detail
FROM strongest s LEFT JOIN lineage.artifacts a ON a.subject = s.subject AND a.asset = s.asset
"""

_RUNS = {"first_id": pl.Int64, "last_id": pl.Int64}
_DTYPES: Mapping[str, Any] = {
    "artifact_id": pl.String,
    "asset": pl.String,
    "kind": pl.String,
    "location": pl.String,
    "sha256": pl.String,
    "size_bytes": pl.Int64,
    "key": pl.String,
    "created_at": pl.Datetime("us", "UTC"),
}


def _row(asset: str, item: Artifact | Receipt, key: str, t: Transaction) -> dict[str, Any]:
    if isinstance(item, Receipt):
        facts = {"kind": "table", "location": item.table, "sha256": item.digest, "size_bytes": 0}
    else:
        location = "/".join(["artifacts", *item.name.split("/")[:-1], item.path.name])
        facts = {"kind": item.kind, "location": location, "sha256": item.sha256, "size_bytes": item.size_bytes}
    return {"artifact_id": item.name, "asset": asset, **facts, "key": key, "created_at": t.now}


class Lineage:
    """Lineage of an open warehouse (``w.lineage``)."""

    def __init__(self, session: Session) -> None:
        self._s = session

    def record(
        self,
        asset: str,
        *,
        subject: str,
        run_id: str,
        config_digest: str,
        parents: Iterable[str] = (),
        artifacts: Sequence[Artifact | Receipt] = (),
        key: str = "",
        members: Any = None,
        within: Transaction | None = None,
    ) -> None:
        """As :func:`record`, in an open transaction or in one of its own."""
        with transaction(self._s) if within is None else nullcontext(within) as t:
            record(
                t,
                asset,
                parents=parents,
                artifacts=artifacts,
                key=key,
                members=members,
                subject=subject,
                run_id=run_id,
                config_digest=config_digest,
            )

    def holding(self, subject: str, ids: Any) -> pl.DataFrame:
        """``(asset, num_examples)``: the assets of a subject made from any of these examples, and from how many of
        them.

        Args:
            ids: (N,) example ids, int64.
        """
        with self._s.reading() as con:
            return fetch(con, _HOLDING, [np.asarray(ids, np.int64).tolist(), subject])
