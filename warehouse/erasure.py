"""The database's side of an erasure: what holds or was made from some examples, and taking them out on record.

    reached    every asset made from one of the examples, and every asset made from such an asset
    held       every partition of a table with rows about them
    apply      one transaction: rows leave, completions that no longer hold are dropped, lineage forgets, the journal
               says what was done; all or nothing
    compact    the file is written anew: DuckDB keeps the text of deleted rows in free blocks until then

Which thing is treated how is not decided here: an item of the plan says it (``contracts.erasure``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from contracts.digests import canonical_json, digest
from contracts.erasure import DONE, OPEN, PLANNED, Action, Item
from contracts.requests import ForgetRequest
from contracts.schema import ARTIFACTS, DATASETS, EDGES, ERASURES, LINEAGE_MEMBERS, LINEAGE_SETS, MEMBERS
from contracts.tables import TableSpec
from warehouse import ddl, lineage, requests
from warehouse.connection import Connection, fetch
from warehouse.faults import fault
from warehouse.frames import empty
from warehouse.session import Session
from warehouse.writer import Receipt, Transaction, part_text, read_partition, subject_of, transaction

WRITER = "erasure"
_LINEAGE = ("lineage.sets", "lineage.members", "lineage.edges", "lineage.artifacts")
_TOLD = ("seq", "kind", "place", "part", "asset", "action", "why", "num_examples", "state", "proof")


@dataclass(frozen=True, kw_only=True)
class Held:
    """A partition of a table of the subject.

    Attributes:
        table: full name.
        part: the partition.
        by_example: its rows are about examples, by their id.
        rows: in it. ``num``: of them about the examples asked for.
        asset: whose result it is; "" of none.
    """

    table: str
    part: Mapping[str, Any]
    by_example: bool
    rows: int
    num: int
    asset: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a state holds of some examples of a subject.

    Attributes:
        subject: whose.
        ids: (N,) int64 example ids, ascending.
        assets: asset -> how many of them it was made from; 0 of one that was made from such an asset.
        held: every partition of the subject's tables.
        artifacts: asset -> names of its artefacts, on record or not.
        archived: tables of an earlier version with rows about examples of the subject, which nothing reads.
    """

    subject: str
    ids: np.ndarray[Any, Any]
    assets: Mapping[str, int] = field(default_factory=dict)
    held: Sequence[Held] = ()
    artifacts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    archived: Sequence[str] = ()

    @property
    def affected(self) -> set[str]:
        """Assets that were made from them, or with rows about them."""
        return set(self.assets) | {h.asset for h in self.held if h.num and h.asset}


def reached(con: Connection, subject: str, ids: Any) -> dict[str, int]:
    """Every asset of a subject that was made from any of the examples, directly (with how many) or not (0)."""
    asked = np.unique(np.asarray(ids, np.int64)).tolist()
    return dict(con.execute(_REACHED, {"ids": asked, "subject": subject}).fetchall())


_REACHED = """
WITH RECURSIVE asked AS (SELECT unnest($ids::BIGINT[]) AS id), made AS (
    SELECT m.asset, count(*) AS num FROM lineage.members m JOIN lineage.sets s USING (subject, set_id)
    JOIN asked ON id BETWEEN s.first_id AND s.last_id WHERE m.subject = $subject GROUP BY m.asset
), touched(asset) AS (
    SELECT asset FROM made
    UNION SELECT e.child FROM touched t JOIN lineage.edges e ON e.subject = $subject AND e.parent = t.asset
)
SELECT asset, coalesce(num, 0) FROM touched LEFT JOIN made USING (asset) ORDER BY asset
"""


def _held(con: Connection, subject: str, ids: list[int], owner_of: Mapping[tuple[str, str], str]) -> list[Held]:
    known = ddl.declared(con)
    stored = con.execute(
        "SELECT name, part, num_rows FROM meta.partitions WHERE subject = ? ORDER BY name, part", [subject]
    ).fetchall()
    counted: dict[str, dict[str, int]] = {}
    out = []
    for table, part, rows in stored:
        spec = known.get(table)
        if spec is None or table in _LINEAGE or not rows:
            continue
        by_example = any(c.name == "example_id" for c in spec.columns)
        if by_example and table not in counted:
            counted[table] = _count(con, spec, subject, ids)
        inside = json.loads(part)
        text = part_text(inside)
        out.append(
            Held(
                table=table,
                part=inside,
                by_example=by_example,
                rows=rows,
                num=counted[table].get(text, 0) if by_example else 0,
                asset=owner_of.get((table, text), ""),
            )
        )
    return out


def _count(con: Connection, spec: TableSpec, subject: str, ids: list[int]) -> dict[str, int]:
    """Rows about the examples, by partition (canonical text)."""
    names = ", ".join(map(ddl.quoted, spec.partition))
    rows = con.execute(
        f"SELECT {names + ', ' if names else ''}count(*) FROM {ddl.table(spec)} WHERE subject = ? AND example_id IN "
        f"(SELECT unnest(?::BIGINT[])) GROUP BY ALL",
        [subject, ids],
    ).fetchall()
    return {part_text(dict(zip(spec.partition, row[:-1], strict=True))): int(row[-1]) for row in rows if row[-1]}


def _owners(con: Connection, subject: str) -> dict[tuple[str, str], str]:
    """(table, partition) -> the asset that was completed with it last."""
    out: dict[tuple[str, str], tuple[int, str]] = {}
    for asset, seq, body in con.execute(
        "SELECT s.asset, s.seq, e.body FROM meta.stages s JOIN ledger.entries e USING (seq)"
    ).fetchall():
        for output in json.loads(body)["outputs"]:
            if output["kind"] != "table" or subject_of(asset, output) != subject:
                continue
            key = (output["name"], part_text(output.get("partition") or {}))
            if key not in out or out[key][0] < seq:
                out[key] = (seq, asset)
    return {key: asset for key, (_, asset) in out.items()}


def _archived(con: Connection, subject: str) -> list[str]:
    tables = con.execute(
        "SELECT schema_name, table_name FROM duckdb_columns() JOIN duckdb_tables() USING (database_name, schema_name, "
        "table_name) WHERE database_name = current_database() AND column_name = 'example_id' AND "
        "regexp_matches(table_name, '__v[0-9]+$') ORDER BY ALL"
    ).fetchall()
    found = []
    for schema, name in tables:
        place = f"{ddl.quoted(schema)}.{ddl.quoted(name)}"
        if con.execute(f"SELECT 1 FROM {place} WHERE subject = ? LIMIT 1", [subject]).fetchall():
            found.append(f"{schema}.{name}")
    return found


class Erasures:
    """Erasures of an open warehouse (``w.erasures``)."""

    def __init__(self, session: Session, names: Any) -> None:
        self._s, self._names = session, names

    def found(self, subject: str, ids: Any) -> Found:
        """What the state holds of these examples of a subject, (N,) int64; nothing is changed."""
        wanted = np.unique(np.asarray(ids, np.int64))
        with self._s.reading() as con:
            assets = reached(con, subject, wanted)
            held = _held(con, subject, wanted.tolist(), _owners(con, subject))
            recorded = con.execute(
                "SELECT asset, artifact_id FROM lineage.artifacts WHERE subject = ? AND kind <> 'table'", [subject]
            ).fetchall()
            known = {row[0] for row in con.execute("SELECT DISTINCT asset FROM meta.stages").fetchall()}
            archived = _archived(con, subject)
        return Found(
            subject=subject,
            ids=wanted,
            assets=assets,
            held=held,
            artifacts=_by_asset(recorded, self._names(subject), {*assets, *known}),
            archived=archived,
        )

    def journal(self, request_id: str) -> pl.DataFrame:
        """The items of a request's erasure in their order; no row where none was begun."""
        with self._s.reading() as con:
            if ERASURES.full_name not in ddl.declared(con):  # a state of an earlier version, looked at only
                return empty(ERASURES)
            return fetch(
                con,
                f"SELECT {', '.join(ddl.quoted(c.name) for c in ERASURES.columns)} FROM {ddl.table(ERASURES)} WHERE "
                "request_id = ? ORDER BY seq",
                [request_id],
            )

    def record(self, request_id: str) -> str:
        """The journal of an erasure that was carried out to its end, as canonical JSON for certificate and evidence:
        places outside the state folder are left out, which may name a person. "" where there was none, or it is not
        finished."""
        journal = self.journal(request_id)
        if not journal.height or not journal["state"].is_in([DONE, OPEN]).all():
            return ""
        outside = pl.col("action") == Action.YOURS.value
        told = journal.with_columns(place=pl.when(outside).then(pl.lit("")).otherwise("place"))
        return canonical_json([{c: row[c] for c in _TOLD} for row in told.iter_rows(named=True)])

    def erased(self, subject: str) -> list[str]:
        """Requests of a subject whose erasure was begun, by id."""
        with self._s.reading() as con:
            if ERASURES.full_name not in ddl.declared(con):
                return []
            rows = con.execute(
                f"SELECT DISTINCT request_id FROM {ddl.table(ERASURES)} WHERE subject = ? ORDER BY ALL", [subject]
            ).fetchall()
        return [row[0] for row in rows]

    def begin(self, request: ForgetRequest, items: Sequence[Item]) -> None:
        """Put the plan on record, every item as planned; from here on it is carried out to its end."""
        with transaction(self._s) as t:
            rows = [
                {
                    "request_id": request.request_id,
                    "seq": seq,
                    "kind": item.kind,
                    "place": item.where,
                    "part": canonical_json(item.part),
                    "asset": item.asset,
                    "action": item.action.value,
                    "why": item.why,
                    "num_examples": item.examples,
                    "note": canonical_json(item.note),
                    "state": PLANNED,
                    "proof": "",
                    "at": t.now,
                }
                for seq, item in enumerate(items)
            ]
            t.replace(ERASURES, pl.DataFrame(rows, schema=empty(ERASURES).schema), **_common(request))
            requests.remark(t, request.request_id, f"erasure begun: {len(items)} items")
        fault("erasure.after_begin")

    def settle(self, request_id: str, proofs: Mapping[int, tuple[str, str]]) -> None:
        """Put on record what became of items: seq -> (state, proof)."""
        if not proofs:
            return
        with transaction(self._s) as t:
            _settle(t, request_id, proofs)

    def apply(
        self,
        request_id: str,
        ids: Any,
        *,
        items: Mapping[int, Item],
        files: Mapping[str, str],
        removed: Mapping[str, Sequence[str]],
        affected: Iterable[str],
        kept: Iterable[str] = (),
        done: Mapping[int, tuple[str, str]] | None = None,
    ) -> None:
        """Carry out the items about tables, lineage and the register in one transaction, with the journal.

        Args:
            ids: (N,) int64, the examples that leave.
            items: seq -> item; those of other kinds are left to the caller.
            files: artefact -> SHA-256, of those that were written anew.
            removed: asset -> artefacts that are gone.
            affected: assets whose completion and lineage no longer hold.
            kept: of them, those whose completion stays: their results are what they were.
            done: seq -> (state, proof) of the items that were carried out before, in files.
        """
        wanted = np.unique(np.asarray(ids, np.int64))
        with transaction(self._s) as t:
            entry = requests.found(t.con, request_id)
            subject = entry.request.subject
            proofs = dict(done or {})
            known = ddl.declared(t.con)
            for seq, item in items.items():
                if item.kind == "table" and item.action in (Action.CUT, Action.EMPTY):
                    proofs[seq] = (DONE, _rows(t, known[item.where], subject, item, wanted))
                elif item.kind == "table" and item.action is Action.REMOVE:
                    schema, _, name = item.where.partition(".")
                    t.con.execute(f"DROP TABLE IF EXISTS {ddl.quoted(schema)}.{ddl.quoted(name)}")
                    t.note("erase", _body(entry.request, "", [], False) | {"tables": [item.where]})
                    proofs[seq] = (DONE, "gone")
            fault("erasure.after_rows")
            stays = set(kept)
            for asset in sorted(affected):
                _forget(t, entry.request, asset, wanted, removed.get(asset, ()), files, dropped=asset not in stays)
            _unused_sets(t, subject)
            fault("erasure.after_lineage")
            for seq, item in items.items():
                if item.kind == "lineage":
                    left = reached(t.con, subject, wanted)
                    proofs[seq] = (DONE, f"made from them: {sum(n > 0 for n in left.values())} assets")
                elif item.kind == "request":
                    proofs[seq] = (DONE, requests.forget_selector(t, request_id))
            _settle(t, request_id, proofs)
        fault("erasure.after_apply")


def _by_asset(recorded: Iterable[tuple[str, str]], stored: Iterable[str], assets: set[str]) -> dict[str, list[str]]:
    """Artefacts by asset: as lineage says, and for those on no record the asset below whose name they lie."""
    out: dict[str, set[str]] = {}
    known = set()
    for asset, name in recorded:
        out.setdefault(asset, set()).add(name)
        known.add(name)
    for name in stored:
        if name in known:
            continue
        parts = name.split("/")
        prefixes = ["/".join(parts[:i]) for i in range(len(parts), 0, -1)]
        whole = [prefixes[0].partition(".")[0], *prefixes]
        asset = next((prefix for prefix in whole if prefix in assets or prefix in out), "")
        out.setdefault(asset or "/".join(parts[:3]), set()).add(name)
    return {asset: sorted(names) for asset, names in sorted(out.items())}


def _common(request: ForgetRequest) -> dict[str, Any]:
    return {
        "subject": request.subject,
        "run_id": WRITER,
        "config_digest": request.digest(),
        "partition": {"request_id": request.request_id},
    }


def _settle(t: Transaction, request_id: str, proofs: Mapping[int, tuple[str, str]]) -> None:
    request = requests.found(t.con, request_id).request
    rows = read_partition(t.con, ERASURES, request.subject, {"request_id": request_id})
    said = pl.DataFrame(
        [(seq, state, proof) for seq, (state, proof) in sorted(proofs.items())],
        schema={"seq": pl.Int64, "now": pl.String, "shown": pl.String},
        orient="row",
    )
    told = rows.join(said, on="seq", how="left").with_columns(
        state=pl.coalesce("now", "state"),
        proof=pl.coalesce("shown", "proof"),
        at=pl.when(pl.col("now").is_null()).then("at").otherwise(pl.lit(t.now)),
    )
    t.replace(ERASURES, told.select(rows.columns), **_common(request))


def _rows(t: Transaction, spec: TableSpec, subject: str, item: Item, ids: np.ndarray[Any, Any]) -> str:
    """Take rows out of a partition; the digest of those that are left, with their number."""
    if spec.full_name == DATASETS.full_name and item.action is Action.CUT:
        left = _recounted(t, subject, item, ids)
    else:
        left = t.take_out(
            spec, subject=subject, partition=item.part, ids=None if item.action is Action.EMPTY else ids.tolist()
        )
    return f"{left.rows} rows left, SHA-256 {left.digest}"


def _recounted(t: Transaction, subject: str, item: Item, ids: np.ndarray[Any, Any]) -> Receipt:
    """The row of a curated set without some members: their number, the digest, and ids in its configuration."""
    rows = read_partition(t.con, DATASETS, subject, item.part)
    members = read_partition(t.con, MEMBERS, subject, item.part).filter(~pl.col("example_id").is_in(ids.tolist()))
    roles = {
        role: members.filter(pl.col("role") == role).sort("example_id")["example_id"].to_list()
        for role in item.note["roles"]
    }
    config = json.loads(rows["config"][0])
    if isinstance(config.get("ids"), list):
        config["ids"] = [i for i in config["ids"] if i not in set(ids.tolist())]
    told = rows.with_columns(
        num_examples=pl.lit(members.height, pl.Int64),
        digest=pl.lit(digest(roles)),
        config=pl.lit(canonical_json(config)),
    )
    return t.put_back(DATASETS, told, subject=subject, partition=item.part)


def _body(request: ForgetRequest, asset: str, removed: Sequence[str], dropped: bool) -> dict[str, Any]:
    return {
        "request_id": request.request_id,
        "subject": request.subject,
        "asset": asset,
        "removed": list(removed),
        "dropped": dropped,
        "outputs": [],
    }


def _forget(
    t: Transaction,
    request: ForgetRequest,
    asset: str,
    ids: np.ndarray[Any, Any],
    removed: Sequence[str],
    files: Mapping[str, str],
    *,
    dropped: bool,
) -> None:
    """Let completion and lineage of an asset say what is left of it."""
    subject = request.subject
    rows = read_partition(t.con, ARTIFACTS, subject, {"asset": asset})
    sha = pl.col("artifact_id").replace_strict(files, default=pl.col("sha256"), return_dtype=pl.String)
    left = rows.filter(~pl.col("artifact_id").is_in(list(removed))).with_columns(sha256=sha)
    if dropped:
        left = left.filter(pl.col("kind") != "table")
    if not left.equals(rows):
        t.put_back(ARTIFACTS, left, subject=subject, partition={"asset": asset})
    anew = [{"kind": "artifact", "name": name, "digest": files[name]} for name in left["artifact_id"] if name in files]
    named = set(rows["artifact_id"]) | set(removed)
    anew += [
        {"kind": "artifact", "name": name, "digest": sha}
        for name, sha in files.items()
        if name not in named and name.startswith(f"{asset}/")
    ]
    completed = bool(t.con.execute("SELECT 1 FROM meta.stages WHERE asset = ?", [asset]).fetchall())
    if removed or anew or (dropped and completed):
        t.note("erase", _body(request, asset, removed, dropped) | {"outputs": anew})
    if dropped:
        t.con.execute("DELETE FROM meta.stages WHERE asset = ?", [asset])
    members = read_partition(t.con, LINEAGE_MEMBERS, subject, {"asset": asset})
    if members.height:
        made_from = _members(t.con, subject, str(members["set_id"][0]))
        kept = np.setdiff1d(made_from, ids)
        if not left.height:
            t.take_out(LINEAGE_MEMBERS, subject=subject, partition={"asset": asset}, ids=None)
        elif len(kept) < len(made_from):
            lineage.set_members(t, asset, kept, subject=subject, run_id=WRITER, config_digest=request.digest())
    if not left.height and read_partition(t.con, EDGES, subject, {"child": asset}).height:
        t.take_out(EDGES, subject=subject, partition={"child": asset}, ids=None)


def _members(con: Connection, subject: str, set_id: str) -> np.ndarray[Any, Any]:
    runs = read_partition(con, LINEAGE_SETS, subject, {"set_id": set_id})
    spans = [np.arange(first, last + 1) for first, last in runs.select("first_id", "last_id").iter_rows()]
    return np.concatenate(spans) if spans else np.empty(0, np.int64)


def _unused_sets(t: Transaction, subject: str) -> None:
    for set_id in lineage.unused(t.con, subject):
        t.take_out(LINEAGE_SETS, subject=subject, partition={"set_id": set_id}, ids=None)


def item_of(row: Mapping[str, Any]) -> Item:
    """An item as the journal holds it."""
    return Item(
        kind=row["kind"],
        where=row["place"],
        action=Action(row["action"]),
        why=row["why"],
        part=json.loads(row["part"]),
        asset=row["asset"],
        examples=row["num_examples"],
        note=json.loads(row["note"]),
    )
