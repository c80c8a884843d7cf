"""One transaction: replace or append partitions, note them in the ledger, all or nothing.

replace = BEGIN; DELETE the partition; INSERT BY NAME; read back, compare row count and digest; ledger row; COMMIT.
A frame that says what is already there, under the same configuration, changes nothing and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from contracts.digests import canonical_json, digest, plain
from contracts.errors import DataError, IntegrityError, InvalidInput
from contracts.identity import check_name
from contracts.methods import ScoreSpec
from contracts.tables import TableSpec
from warehouse import ddl, frames, views
from warehouse.chain import Head
from warehouse.connection import Connection, fetch, first
from warehouse.faults import fault
from warehouse.session import Open, Session

_CHUNK_ROWS = 1 << 18
_ROW = "subject = ? AND name = ? AND part = ?::JSON"


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What a write left behind.

    Attributes:
        table: full name of the table.
        subject: whose rows.
        partition: which rows.
        rows: rows now in the partition.
        digest: SHA-256 of all its columns, in any row order.
        content: the same without volatile columns.
        changed: False when the write was a no-op.
        seq: the ledger entry that records this content.
    """

    table: str
    subject: str
    partition: Mapping[str, Any] = field(default_factory=dict)
    rows: int
    digest: str
    content: str
    changed: bool
    seq: int

    @property
    def name(self) -> str:
        """Table and partition in one text, e.g. ``models.checkpoints[role=target]``."""
        inside = ",".join(f"{k}={v}" for k, v in self.partition.items())
        return f"{self.table}[{inside}]" if inside else self.table

    def output(self) -> dict[str, Any]:
        """This receipt as an output of a stage, for ``Warehouse.complete``."""
        return {
            "kind": "table",
            "name": self.table,
            "subject": self.subject,
            "partition": dict(self.partition),
            "digest": self.content,
            "receipt": self.digest,
        }


def transaction(session: Session) -> AbstractContextManager[Transaction]:
    """Several writes that happen together or not at all. Raises as ``Session.writing``."""
    return session.writing(Transaction)


class Transaction(Open):
    """An open transaction that replaces and appends partitions. Committed when its block ends well."""

    def declare(self, specs: Iterable[TableSpec]) -> None:
        """Bring the tables of ``specs`` into being or up to date."""
        for spec in specs:
            self._declare(spec, None)

    def complete(self, asset: str, key: str, body: Mapping[str, Any]) -> Head:
        """Note that an asset is done; the entry becomes its last completion. ``body["outputs"]``: see
        ``Receipt.output``."""
        for output in body["outputs"]:
            if output.get("kind") not in ("table", "artifact") or not output.get("name") or not output.get("digest"):
                raise InvalidInput(f"{asset}: output {dict(output)} needs kind (table or artifact), name and digest")
        head = self.note("stage", body)
        self.con.execute("DELETE FROM meta.stages WHERE asset = ?", [asset])
        self.con.execute("INSERT INTO meta.stages VALUES (?, ?, ?)", [asset, key, head.seq])
        return head

    def replace(
        self,
        spec: TableSpec | ScoreSpec,
        frame: pl.DataFrame,
        *,
        subject: str,
        run_id: str,
        config_digest: str,
        partition: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Replace a partition of a subject by ``frame``.

        Raises:
            DataError: the frame does not satisfy the declaration; nothing was written.
        """
        spec, part = self._prepare(spec, subject, partition)
        rows = frames.checked(spec, frame, part)
        content = frames.digest_of(rows, frames.content_columns(spec))
        stored = receipt_of(self.con, spec.full_name, subject, part)
        if stored is not None and stored[0].content == content and stored[1] == config_digest:
            return stored[0]
        fault("writer.before_delete")
        where, values = _partition_where(subject, part)
        self.con.execute(f"DELETE FROM {ddl.table(spec)} WHERE {where}", values)
        fault("writer.after_delete")
        self._insert(spec, rows, subject, run_id, config_digest)
        return self._settle("replace", spec, rows, content, subject, part, run_id, config_digest)

    def append(
        self,
        spec: TableSpec | ScoreSpec,
        frame: pl.DataFrame,
        *,
        subject: str,
        run_id: str,
        config_digest: str,
        partition: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Add rows to a partition; a key that is already there is refused.

        Raises:
            DataError: the frame does not satisfy the declaration, or repeats a stored key; nothing was written.
        """
        spec, part = self._prepare(spec, subject, partition)
        rows = frames.checked(spec, frame, part)
        before = read_partition(self.con, spec, subject, part)
        stored = receipt_of(self.con, spec.full_name, subject, part)
        if stored is not None and not rows.height:
            return stored[0]
        whole = frames.checked(spec, pl.concat([before, rows]), part)
        self._insert(spec, rows, subject, run_id, config_digest)
        content = frames.digest_of(whole, frames.content_columns(spec))
        return self._settle("append", spec, whole, content, subject, part, run_id, config_digest)

    def take_out(
        self, spec: TableSpec, *, subject: str, partition: Mapping[str, Any], ids: Sequence[int] | None
    ) -> Receipt:
        """Delete the rows about some examples from a partition, or all of them (``ids`` None); those of others stay as
        they are, with who wrote them. What is left, on record."""
        where, values = _partition_where(subject, partition)
        if ids is not None:
            where, values = f"{where} AND example_id IN (SELECT unnest(?::BIGINT[]))", [*values, list(ids)]
        self.con.execute(f"DELETE FROM {ddl.table(spec)} WHERE {where}", values)
        return self._left(spec, subject, dict(partition))

    def put_back(self, spec: TableSpec, frame: pl.DataFrame, *, subject: str, partition: Mapping[str, Any]) -> Receipt:
        """Replace a partition's rows by some of them, with their values changed or not, as written by who wrote them
        last: what an erasure leaves of a row."""
        part = dict(partition)
        stored = first(
            self.con, f"SELECT run_id, config_digest FROM meta.partitions WHERE {_ROW}", _where_row(spec, subject, part)
        )
        if stored is None:
            raise DataError(f"table {spec.full_name}: nothing was ever written to {part_text(part)} of {subject}")
        rows = frames.checked(spec, frame, part)
        where, values = _partition_where(subject, part)
        self.con.execute(f"DELETE FROM {ddl.table(spec)} WHERE {where}", values)
        if rows.height:
            self._insert(spec, rows, subject, *map(str, stored))
        return self._left(spec, subject, part)

    def _left(self, spec: TableSpec, subject: str, part: dict[str, Any]) -> Receipt:
        """Put on record what an erasure left in a partition."""
        row = _where_row(spec, subject, part)
        stored = first(self.con, f"SELECT run_id, config_digest FROM meta.partitions WHERE {_ROW}", row)
        run_id, config_digest = map(str, stored) if stored else ("", "")
        frame = read_partition(self.con, spec, subject, part, [c.name for c in spec.all_columns])
        facts = {
            "rows": frame.height,
            "digest": frames.digest_of(frame, spec.columns),
            "content": frames.digest_of(frame, frames.content_columns(spec)),
            "config_digest": config_digest,
            "run_id": run_id,
        }
        named = {"table": spec.full_name, "version": spec.version, "subject": subject, "partition": part}
        head = self.note("erase_rows", {**named, **facts, "writers": writers_of(frame)})
        self.con.execute(
            "UPDATE meta.partitions SET num_rows = ?, digest = ?, content = ?, seq = ? WHERE " + _ROW,
            [facts["rows"], facts["digest"], facts["content"], head.seq, *row],
        )
        return Receipt(
            table=spec.full_name,
            subject=subject,
            partition=part,
            rows=frame.height,
            digest=str(facts["digest"]),
            content=str(facts["content"]),
            changed=True,
            seq=head.seq,
        )

    def _prepare(
        self, spec: TableSpec | ScoreSpec, subject: str, partition: Mapping[str, Any] | None
    ) -> tuple[TableSpec, dict[str, Any]]:
        check_name(subject, kind="subject")
        if isinstance(spec, ScoreSpec):
            table = spec.table
            self._declare(table, spec)
        else:
            table = spec
            self._declare(table, None)
        return table, dict(partition or {})

    def _declare(self, table: TableSpec, score: ScoreSpec | None) -> None:
        if table.full_name in ("scores.latest", "scores.agreement"):
            raise DataError(f"{table.full_name} is a view over all scores; no score may be called {table.name}")
        if ddl.outdated(self.con, [table]):
            old = ddl.declared(self.con).get(table.full_name)
            before = _stocktake(self.con, old) if old is not None and old.version != table.version else {}
            done = ddl.ensure(self.con, table)
            body: dict[str, Any] = {
                "table": table.full_name,
                "version": table.version,
                "done": done,
                "declaration": digest(table),
            }
            if done == "migrated":
                after = _stocktake(self.con, table)
                body["carried"] = [
                    facts | {"was": before.get(key, {}).get("digest", "")} for key, facts in after.items()
                ]
            if done == "archived":
                body["was"] = plain(old)
            self.note("table", body)
        columns = views.refresh(self.con, score) if score else None
        if score and columns:
            self.note("view", {"view": "scores.latest", "score": score.name, "shows": list(columns)})

    def _insert(self, spec: TableSpec, rows: pl.DataFrame, subject: str, run_id: str, config_digest: str) -> None:
        if not run_id or not config_digest:
            raise DataError(f"table {spec.full_name}: run_id and config_digest may not be empty")
        # DuckDB reads one chunk of a frame with one thread.
        parts = list(rows.iter_slices(_CHUNK_ROWS)) or [rows]
        self.con.register("incoming", pl.concat(parts, rechunk=False))
        try:
            self.con.execute(
                f"INSERT INTO {ddl.table(spec)} BY NAME SELECT ?::VARCHAR AS subject, ?::VARCHAR AS run_id, ?::VARCHAR "
                "AS config_digest, * FROM incoming",
                [subject, run_id, config_digest],
            )
        finally:
            self.con.unregister("incoming")
        fault("writer.after_insert")

    def _settle(
        self,
        kind: str,
        spec: TableSpec,
        expected: pl.DataFrame,
        content: str,
        subject: str,
        part: dict[str, Any],
        run_id: str,
        config_digest: str,
    ) -> Receipt:
        """Read the partition back, compare it with what was meant, and put it on record.

        Args:
            content: the digest of what ``expected`` says (``frames.content_columns``).
        """
        whole = frames.content_columns(spec) == list(spec.columns)
        digest = content if whole else frames.digest_of(expected, spec.columns)
        back = read_partition(self.con, spec, subject, part)
        if back.height != expected.height or frames.digest_of(back, spec.columns) != digest:
            raise IntegrityError(
                f"table {spec.full_name}: {expected.height} rows were written, {back.height} rows with other content "
                "came back"
            )
        head = self.note(
            kind,
            {
                "table": spec.full_name,
                "version": spec.version,
                "subject": subject,
                "partition": part,
                "rows": expected.height,
                "digest": digest,
                "content": content,
                "config_digest": config_digest,
                "run_id": run_id,
            },
        )
        text = part_text(part)
        self.con.execute(f"DELETE FROM meta.partitions WHERE {_ROW}", [subject, spec.full_name, text])
        self.con.execute(
            "INSERT INTO meta.partitions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [spec.full_name, subject, text, expected.height, digest, content, config_digest, run_id, head.seq],
        )
        return Receipt(
            table=spec.full_name,
            subject=subject,
            partition=part,
            rows=expected.height,
            digest=digest,
            content=content,
            changed=True,
            seq=head.seq,
        )


def _stocktake(con: Connection, spec: TableSpec) -> dict[str, dict[str, Any]]:
    """What a migration puts on record of each partition that holds rows: their number, digest and writers."""
    out = {}
    for subject, part, _ in groups_of(con, spec):
        frame = read_partition(con, spec, subject, part, [c.name for c in spec.all_columns])
        facts = {"subject": subject, "partition": part, "rows": frame.height, "writers": writers_of(frame)}
        out[canonical_json([subject, part])] = facts | {"digest": frames.digest_of(frame, spec.columns)}
    return out


def groups_of(con: Connection, spec: TableSpec) -> list[tuple[str, dict[str, Any], int]]:
    """Subject, partition and number of rows of all that lies in a table, on record or not."""
    names = ", ".join(map(ddl.quoted, ("subject", *spec.partition)))
    rows = con.execute(f"SELECT {names}, count(*) FROM {ddl.table(spec)} GROUP BY ALL ORDER BY ALL").fetchall()
    return [(row[0], dict(zip(spec.partition, row[1:-1], strict=True)), row[-1]) for row in rows]


def writers_of(frame: pl.DataFrame) -> list[list[Any]]:
    """``[run_id, config_digest, rows]`` for each writer of a frame that has the common columns, in order."""
    counted = frame.group_by("run_id", "config_digest").len("rows").sort("run_id", "config_digest")
    return [list(row) for row in counted.rows()]


def subject_of(asset: str, output: Mapping[str, Any]) -> str:
    """Whose rows an output of a stage is: a :class:`Receipt` says it, an older record leaves it to the asset's name."""
    return str(output.get("subject") or asset.partition("/")[0])


def _where_row(spec: TableSpec, subject: str, part: Mapping[str, Any]) -> list[Any]:
    return [subject, spec.full_name, part_text(part)]


def part_text(partition: Mapping[str, Any]) -> str:
    return canonical_json(plain(partition))


def receipt_of(con: Connection, table: str, subject: str, partition: Mapping[str, Any]) -> tuple[Receipt, str] | None:
    """The receipt (marked unchanged) and configuration digest of what a partition holds now; None if never written."""
    row = first(
        con,
        f"SELECT num_rows, digest, content, seq, config_digest FROM meta.partitions WHERE {_ROW}",
        [subject, table, part_text(partition)],
    )
    if row is None:
        return None
    receipt = Receipt(
        table=table,
        subject=subject,
        partition=dict(partition),
        rows=row[0],
        digest=row[1],
        content=row[2],
        changed=False,
        seq=row[3],
    )
    return receipt, str(row[4])


def read_partition(
    con: Connection, spec: TableSpec, subject: str, partition: Mapping[str, Any], columns: Sequence[str] = ()
) -> pl.DataFrame:
    """The spec's columns (or some of them) of a partition, or of several when ``partition`` names fewer columns;
    sorted by key."""
    where, values = _partition_where(subject, partition)
    chosen = [c for c in spec.all_columns if c.name in columns] if columns else list(spec.columns)
    names = ", ".join(ddl.quoted(c.name) for c in chosen)
    frame = fetch(con, f"SELECT {names} FROM {ddl.table(spec)} WHERE {where}", values)
    other = [c for c in chosen if frame.schema[c.name] != frames.POLARS[c.dtype]]
    frame = frame.with_columns(pl.col(c.name).cast(frames.POLARS[c.dtype]) for c in other) if other else frame
    # Sorted here, not by ORDER BY: DuckDB's sort of 10M rows spills at the memory limit we give it.
    key = [k for k in spec.key if k not in partition and k in frame.columns]
    return frame.sort(key, nulls_last=True, maintain_order=True) if key else frame


def _partition_where(subject: str, partition: Mapping[str, Any]) -> tuple[str, list[Any]]:
    conditions = ["subject = ?", *(f"{ddl.quoted(name)} = ?" for name in partition)]
    return " AND ".join(conditions), [subject, *partition.values()]
