"""One database file against the ledger inside it: the writer's file, or the published snapshot.

The ledger's chain says what was recorded; every partition is read back and compared with its last record, as are
``meta.partitions`` and ``meta.stages``, the register of forget requests and the views. Rows, tables and views that no
entry records are found as well. Nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import polars as pl

from contracts.digests import digest
from contracts.progress import Progress
from contracts.schema import (
    ARTIFACTS,
    ATTACK_REPORTS,
    ERASURES,
    FINDINGS,
    REGISTER,
    REQUEST_EVENTS,
    UNLEARNING_METRICS,
    UNLEARNING_RUNS,
)
from contracts.tables import TableSpec
from warehouse import chain, ddl, frames, views
from warehouse.chain import Head
from warehouse.connection import Connection, fetch
from warehouse.recorded import RESTORE, Key, Named, Problem, Recorded, Rows, described
from warehouse.writer import groups_of, part_text, read_partition, subject_of, writers_of

REPORTED: Mapping[str, TableSpec] = {
    "findings": FINDINGS,
    "attacks": ATTACK_REPORTS,
    "unlearning": UNLEARNING_RUNS,
    "unlearning_metrics": UNLEARNING_METRICS,
}
"""The tables whose rows a JSON report repeats, by the field that holds them."""

_OWN = ("ledger", "meta")
_VIEWS = ("scores.latest", "scores.agreement", "unlearning.wide")


@dataclass(slots=True)
class Database:
    """What a database file holds, and what is wrong with it.

    Attributes:
        entries: the ledger. ``head``: its last entry.
        recorded: what the ledger says is stored.
        lineage: digests of artefacts by name, as ``lineage.artifacts`` says, with the entry that recorded the row.
        reported: rows of the tables of ``REPORTED``, with their common columns.
        tables: readable declarations by table. ``binds``: ledger and lineage were read, so that files can be compared.
        partitions, rows: how much was compared.
    """

    name: str = ""
    entries: list[chain.Entry] = field(default_factory=list)
    recorded: Recorded = field(default_factory=Recorded)
    lineage: dict[str, Named] = field(default_factory=dict)
    reported: dict[str, pl.DataFrame] = field(default_factory=dict)
    tables: dict[str, TableSpec] = field(default_factory=dict)
    binds: bool = False
    partitions: int = 0
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def head(self) -> Head:
        return Head(self.entries[-1][0], self.entries[-1][2]) if self.entries else Head()

    @property
    def hashes(self) -> dict[int, str]:
        return {entry[0]: entry[2] for entry in self.entries}

    def wrong(self, sentence: str, todo: str = RESTORE) -> None:
        self.problems.append(Problem(f"{self.name}{sentence}", todo))


def read_ledger(db: Database, con: Connection) -> None:
    """Read the ledger and what it says; the chain itself is judged by ``chain.examine``."""
    db.entries = chain.entries_of(con)
    db.recorded = Recorded.of(db.entries)
    db.problems += [Problem(f"{db.name}{p.sentence}", p.todo) for p in db.recorded.problems]


def check_declared(db: Database, con: Connection) -> None:
    """Compare the bookkeeping with the ledger: partitions, declarations, and which tables and views there are."""
    _check_partitions(db, con)
    _check_relations(db, con)


def check_tables(db: Database, con: Connection, progress: Progress) -> None:
    """Compare every table with what the ledger recorded of its rows, and look for rows that it did not record."""
    kept = {name: replace(k.spec, name=name.partition(".")[2]) for name, k in db.recorded.kept.items() if k.spec}
    records: dict[str, dict[Key, Rows]] = {}
    for held in (db.recorded.partitions, db.recorded.carried):
        for key, rows in held.items():
            records.setdefault(key[0], {})[key] = rows
    for name in kept:
        records[name] = {(name, *key[1:]): rows for key, rows in db.recorded.kept[name].rows.items()}
    chosen = db.tables | kept
    for done, (name, spec) in enumerate(sorted(chosen.items())):
        progress(done, len(chosen), f"{db.name}tables: {name}")
        try:
            _check_table(db, con, spec, records.pop(name, {}))
        except (duckdb.BinderException, duckdb.CatalogException, pl.exceptions.PolarsError) as error:
            db.wrong(f"Table {name} cannot be read as it was declared: {_first_line(error)}")
    for name, held in records.items():
        recorded = ", ".join(sorted({str(rows.seq) for rows in held.values() if rows.rows})[:5])
        if recorded:
            db.wrong(f"Table {name} is gone; the ledger recorded rows of it (entry {recorded}).")


def check_facts(db: Database, con: Connection) -> None:
    """Compare completed stages, forget requests and views with the ledger."""
    _check_stages(db, con)
    _check_requests(db, con)
    _check_erasures(db, con)
    _check_views(db, con)


def gather(db: Database, con: Connection) -> None:
    """Read what files are compared with: the digests in ``lineage.artifacts`` and the rows that reports repeat."""
    if ARTIFACTS.full_name in db.tables:
        rows = con.execute("SELECT artifact_id, sha256, asset, subject FROM lineage.artifacts WHERE kind <> 'table'")
        for name, sha256, asset, subject in rows.fetchall():
            record = db.recorded.rows_of((ARTIFACTS.full_name, subject, part_text({"asset": asset})))
            if record is not None and (name not in db.lineage or db.lineage[name].seq < record.seq):
                db.lineage[name] = Named(seq=record.seq, sha256=sha256, asset=asset)
    for name, spec in REPORTED.items():
        if spec.full_name in db.tables:
            db.reported[name] = fetch(con, f"SELECT * FROM {ddl.table(spec)}")
    db.binds = True


# ------------------------------------------------------------------- tables


def _check_partitions(db: Database, con: Connection) -> None:
    """``meta.partitions`` is what the ledger recorded last of each partition, no more and no less."""
    stored: dict[Key, tuple[Any, ...]] = {}
    facts = ("number of rows", "digest", "content", "config_digest", "run_id", "entry")
    for name, subject, part, *rest in con.execute(
        "SELECT name, subject, part, num_rows, digest, content, config_digest, run_id, seq FROM meta.partitions ORDER "
        "BY ALL"
    ).fetchall():
        key = (name, subject, _part(part))
        if key in stored:
            db.wrong(f"meta.partitions has two rows for {described(key)}.")
        stored[key] = tuple(rest)
        if key not in db.recorded.partitions:
            db.wrong(f"meta.partitions lists {described(key)}, which no entry of the ledger recorded.")
    for key, rows in db.recorded.partitions.items():
        expected = (rows.rows, rows.digest, rows.content, rows.config_digest, rows.run_id, rows.seq)
        if key not in stored:
            db.wrong(f"meta.partitions has lost {described(key)}, which entry {rows.seq} of the ledger recorded.")
        elif stored[key] != expected:
            differs = ", ".join(f for f, a, b in zip(facts, stored[key], expected, strict=True) if a != b)
            db.wrong(
                f"meta.partitions says other things of {described(key)} than entry {rows.seq} of the ledger "
                f"({differs})."
            )


def _check_relations(db: Database, con: Connection) -> None:
    """Declarations are readable and those on record; every table and view is one that the ledger records."""
    for name, version, text in con.execute(
        "SELECT name, version, declaration FROM meta.tables ORDER BY ALL"
    ).fetchall():
        declared = db.recorded.tables.get(name)
        try:
            spec = ddl.parsed(text)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            db.wrong(f"The declaration of table {name} in meta.tables cannot be read: {_first_line(error)}")
            continue
        if declared is None or spec.full_name != name or version != declared.version:
            db.wrong(f"meta.tables declares table {name} in version {version}, which no entry of the ledger records.")
        elif declared.digest not in ("", digest(spec)):
            db.wrong(
                f"The declaration of table {name} in meta.tables is not the one that entry {declared.seq} recorded."
            )
        else:
            db.tables[name] = spec
    columns: dict[str, list[str]] = {}
    for schema, table, column in con.execute(
        "SELECT schema_name, table_name, column_name FROM duckdb_columns() JOIN duckdb_tables() USING (database_name, "
        "schema_name, table_name) WHERE database_name = current_database() ORDER BY schema_name, table_name, "
        "column_index"
    ).fetchall():
        columns.setdefault(f"{schema}.{table}", []).append(column)
    for name, found in columns.items():
        own = name.partition(".")[0] in _OWN
        if not own and name not in db.tables and name not in db.recorded.kept:
            db.wrong(f"Table {name} is one that no entry of the ledger records.", _STRANGE)
        elif name in db.tables and sorted(found) != sorted(c.name for c in db.tables[name].all_columns):
            more = sorted(set(found) - {c.name for c in db.tables[name].all_columns})
            db.wrong(
                f"Table {name} has other columns than it was declared with" + (f": {', '.join(more)}." if more else ".")
            )
    for schema, view in con.execute(
        "SELECT schema_name, view_name FROM duckdb_views() WHERE database_name = current_database() AND NOT internal"
    ).fetchall():
        if f"{schema}.{view}" not in _VIEWS:
            db.wrong(f"View {schema}.{view} is not one of this program's.", _STRANGE)
    forgotten = sorted(name for name, kept in db.recorded.kept.items() if kept.spec is None and name in columns)
    if forgotten:
        db.notes.append(
            f"{db.name}{', '.join(forgotten)}: kept by an earlier version, which did not record how to check it."
        )


_STRANGE = "Drop it if you know who made it; otherwise restore the state folder from a backup."


def _check_table(db: Database, con: Connection, spec: TableSpec, records: Mapping[Key, Rows]) -> None:
    """The rows of a table, partition by partition, and those that belong to none."""
    name, stray = spec.full_name, []
    for subject, part, rows in groups_of(con, spec):
        key = (name, subject, part_text(part))
        if key not in records:
            stray.append(f"{rows} {'row' if rows == 1 else 'rows'} ({described(key).partition(' of ')[2]})")
    if stray and name in db.recorded.unbound:
        db.notes.append(
            f"{db.name}{name}: rows that an earlier version carried over without recording them: {'; '.join(stray)}."
        )
    elif stray:
        db.wrong(f"{name} holds rows that no entry of the ledger recorded: {'; '.join(stray)}.")
    for key, record in records.items():
        _check_rows(db, con, spec, key, record)


def _check_rows(db: Database, con: Connection, spec: TableSpec, key: Key, record: Rows) -> None:
    columns = [c.name for c in spec.all_columns]
    frame = read_partition(con, spec, key[1], json.loads(key[2]), columns)
    db.partitions += 1
    db.rows += frame.height
    if frame.height != record.rows:
        db.wrong(
            f"{described(key)}: it has {frame.height} rows, entry {record.seq} of the ledger recorded {record.rows}."
        )
    elif frames.digest_of(frame, spec.columns) != record.digest:
        db.wrong(
            f"{described(key)}: its {frame.height} rows are not what entry {record.seq} of the ledger recorded; values "
            "were changed."
        )
    elif record.writers is not None:
        found = {(run_id, config): rows for run_id, config, rows in writers_of(frame)}
        if found != {writer: rows for writer, rows in record.writers.items() if rows}:
            db.wrong(
                f"{described(key)}: run_id or config_digest of its rows are not those that the ledger recorded (entry "
                f"{record.seq})."
            )


# -------------------------------------------------------------------- facts


def _check_stages(db: Database, con: Connection) -> None:
    """``meta.stages`` names each asset's last completion, and the tables of that completion are still the last word."""
    stored = con.execute("SELECT asset, key, seq FROM meta.stages ORDER BY ALL").fetchall()
    expected = sorted((asset, c.key, c.seq) for asset, c in db.recorded.stages.items())
    for asset in sorted({row[0] for row in set(stored) ^ set(expected)}):
        db.wrong(f"meta.stages says another thing of {asset} than the ledger, whose entries tell of its completions.")
    if len(stored) != len(set(stored)):
        db.wrong("meta.stages has a row twice.")
    outdated: dict[str, set[str]] = {}
    for asset, seq, key, output in _claims(db.recorded):
        now, table = db.recorded.partitions.get(key), db.recorded.tables.get(key[0])
        if now is None and table is not None and table.remade > seq:
            outdated.setdefault(key[1], set()).add(key[0])
        elif now is None:
            db.wrong(f"{described(key)}: {asset} was completed with it (entry {seq}), but no entry recorded its rows.")
        elif output.get("receipt", output["digest"]) not in (now.digest, now.content):
            db.wrong(
                f"{described(key)}: entry {now.seq} of the ledger replaced the rows with which {asset} was completed "
                f"(entry {seq}), and the stage was not completed since: by a run that did not end, or past the "
                "pipeline.",
                _finish(key[1]),
            )
    for subject, tables in outdated.items():
        db.notes.append(
            f"{db.name}{', '.join(sorted(tables))}: a new version of this program made these tables anew since the "
            f"stages of {subject} were completed; palimpsest audit {subject} fills them."
        )


def _claims(recorded: Recorded) -> Iterator[tuple[str, int, Key, Mapping[str, Any]]]:
    """Asset, entry, partition and output of the latest completion that names each partition."""
    latest: dict[Key, tuple[str, int, Key, Mapping[str, Any]]] = {}
    for asset, stage in sorted(recorded.stages.items(), key=lambda item: item[1].seq):
        for output in stage.outputs:
            if output["kind"] == "table":
                key = (output["name"], subject_of(asset, output), part_text(output.get("partition") or {}))
                latest[key] = (asset, stage.seq, key, output)
    yield from latest.values()


def _finish(subject: str) -> str:
    return f"Run 'palimpsest audit {subject}' to the end and verify again; if it still says so, restore from a backup."


def _check_requests(db: Database, con: Connection) -> None:
    """Where each forget request stands: the register, its last event and the ledger say the same."""
    if REGISTER.full_name not in db.tables or REQUEST_EVENTS.full_name not in db.tables:
        if db.recorded.requests:
            db.wrong("The register of forget requests cannot be read; the ledger records requests.")
        return
    events = dict(
        con.execute(
            f"SELECT subject || '/' || request_id, arg_max(state, seq) FROM {ddl.table(REQUEST_EVENTS)} GROUP BY ALL"
        ).fetchall()
    )
    seen = set()
    for subject, request_id, state, text in con.execute(
        f"SELECT subject, request_id, state, request FROM {ddl.table(REGISTER)} ORDER BY ALL"
    ).fetchall():
        seen.add(request_id)
        asked = db.recorded.requests.get(request_id)
        if asked is None:
            db.wrong(
                f"Forget request {request_id} of {subject} is in the register, but no entry of the ledger records it."
            )
            continue
        if asked.state != state or events.get(f"{subject}/{request_id}") != state:
            db.wrong(
                f"Forget request {request_id} of {subject} is {state} in the register, {asked.state} in the ledger "
                f"(entry {asked.seq}) and {events.get(f'{subject}/{request_id}')} in its last event."
            )
        if digest(json.loads(text)) != asked.request:
            db.wrong(f"Forget request {request_id} of {subject} asks for other things than entry {asked.seq} recorded.")
    for request_id in sorted(db.recorded.requests.keys() - seen):
        db.wrong(
            f"Forget request {request_id} is not in the register; entry {db.recorded.requests[request_id].seq} records "
            "it."
        )


def _check_erasures(db: Database, con: Connection) -> None:
    """An erasure that was begun is carried out to its end; what is gone meanwhile must not come back."""
    if ERASURES.full_name not in db.tables:
        return
    for subject, request_id, left in con.execute(
        f"SELECT subject, request_id, count(*) FROM {ddl.table(ERASURES)} WHERE state = 'planned' GROUP BY ALL ORDER "
        "BY ALL"
    ).fetchall():
        db.wrong(
            f"The erasure for forget request {request_id} of {subject} was begun and {left} of its items are not done: "
            "what else is said to be gone may be so for that reason.",
            f"Do not restore anything; finish it: palimpsest erase {subject} {request_id} --execute",
        )


def _check_views(db: Database, con: Connection) -> None:
    """Each view is the statement of this program, those of the scores over the columns on record."""
    if old := views.outdated(con):
        db.notes.append(f"{db.name}{', '.join(old)}: of another version of this program, so views were not checked.")
        return
    for score, columns in views.shown(con).items():
        if columns != db.recorded.shows.get(score, columns):
            db.wrong(f"meta.scores says that scores.latest shows other columns of {score} than the ledger recorded.")
    for name, statement in (
        ("scores.latest", views.latest(con)),
        ("scores.agreement", views.agreement()),
        ("unlearning.wide", views.WIDE),
    ):
        con.execute(f"CREATE OR REPLACE TEMP VIEW expected AS {statement}")  # in memory: the file is open for reading
        found = dict(
            con.execute(
                "SELECT CASE view_name WHEN 'expected' THEN view_name ELSE schema_name || '.' || view_name END, sql "
                "FROM duckdb_views() WHERE NOT internal AND (view_name = 'expected' OR "
                "(schema_name || '.' || view_name = ? AND database_name = current_database()))",
                [name],
            ).fetchall()
        )
        texts = {view: text.partition(" AS ")[2] for view, text in found.items()}
        if texts.get(name) != texts["expected"]:
            db.wrong(f"View {name} is not the statement that this program made.")


def _part(text: str) -> str:
    try:
        return part_text(json.loads(text))
    except (ValueError, AttributeError):
        return "{}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
