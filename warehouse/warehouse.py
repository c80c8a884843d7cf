"""The warehouse of one state folder: the single place where results become rows and files.

    home/warehouse/palimpsest.duckdb        the writer's file, opened only inside a transaction
    home/warehouse/palimpsest.read.duckdb   the published snapshot, for everyone else; its SHA-256 beside it
    home/warehouse/ledger.head              the ledger's head, mirrored after each commit
    home/warehouse/writer.lock, salt        kernel lock; salt of the owner tokens (0600, never leaves this file)
    home/warehouse/filesums.json            files read before, see ``warehouse.filesums``; may be lost
    home/artifacts/                         bulk results, see ``warehouse.artifacts``

An object of this class holds paths and settings, no connection: it may be shared between threads and sent to processes.
``warehouse.session`` opens the files; here is what is written to and read from them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from contracts.errors import DataError, IntegrityError, InvalidInput, NotReady, NotTrusted, UnknownName
from contracts.identity import MAX_EXAMPLE_ID, check_name
from contracts.methods import ScoreSpec
from contracts.progress import silent
from contracts.schema import CERTIFICATES, COLUMNS, EXAMPLES, TABLES
from contracts.tables import TableSpec
from warehouse import (
    auditors,
    chain,
    connection,
    ddl,
    fsio,
    lineage,
    publish,
    reader,
    salt,
    signing,
    verify_database,
    views,
    writer,
)
from warehouse.artifacts import Artifact, ArtifactStore
from warehouse.chain import Head
from warehouse.connection import Connection, Limits, fetch, first
from warehouse.erasure import Erasures
from warehouse.faults import fault
from warehouse.filesums import FileSums
from warehouse.ledger import Ledger
from warehouse.lineage import Lineage
from warehouse.requests import Requests
from warehouse.session import AGAIN, Open, Session
from warehouse.writer import Receipt, Transaction

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

    from warehouse.expectations import CheckReport

_PATIENCE_S = 2.0  # a writer holds its lock for the moment of a transaction; who only looks waits no longer than that


def _now() -> datetime:
    return datetime.now(UTC)


class Warehouse(Session):
    """See the module. Made by :meth:`open`.

    Attributes:
        artifacts: bulk results.
        ledger: the tamper-evident log.
        requests: forget requests.
        lineage: what was made from what.
        erasures: what holds or was made from examples, and taking it out.
    """

    def __init__(
        self, home: Path, *, limits: Limits, lock_timeout_s: float, clock: Callable[[], datetime], looks: bool = False
    ) -> None:
        super().__init__(home, limits=limits, lock_timeout_s=lock_timeout_s, clock=clock, looks=looks)
        self.artifacts = ArtifactStore(home / "artifacts", sums=self.sums)
        self.ledger, self.requests, self.lineage = Ledger(self), Requests(self), Lineage(self)
        self.erasures = Erasures(self, self.artifacts.names)

    @classmethod
    def open(
        cls,
        home: Path | str,
        *,
        limits: Limits | None = None,
        lock_timeout_s: float = 120.0,
        clock: Callable[[], datetime] = _now,
    ) -> Warehouse:
        """The warehouse under ``home``, created or brought up to date when needed.

        Args:
            home: the state folder.
            limits: what DuckDB may use (default 2 GB, all cores).
            lock_timeout_s: how long to wait for another writer.
            clock: the time that rows and ledger entries carry; order never depends on it.

        Raises:
            StateError: it was written by a newer version of this program.
            IntegrityError: its database is gone or damaged.
        """
        root = Path(home).expanduser().resolve()
        folder = root / "warehouse"
        for needed in (folder, root / "artifacts"):
            fsio.make_folder(needed)
        limits = limits or Limits()
        limits = replace(limits, spill=limits.spill or folder / "spill")
        w = cls(root, limits=limits, lock_timeout_s=lock_timeout_s, clock=clock)
        with w.locked():
            fsio.sweep(folder)
            fsio.sweep_scratch(folder / "spill")
            created = w._create()
        with w.reading() as con:
            stale, old_views = ddl.outdated(con, TABLES), views.outdated(con)
        if stale or old_views:
            with w.transaction() as t:
                t.declare(stale)
                if "scores.agreement" in old_views:
                    views.lay_out(t.con)
                views.lay_out_wide(t.con)
                if old_views and not created:
                    t.note("view", {"view": ", ".join(old_views), "done": "replaced"})
        if old_views and w.snapshot.exists():
            w.publish()  # a reader must find the view that this version's queries name
        return w

    @classmethod
    def existing(cls, home: Path | str, *, limits: Limits | None = None) -> Warehouse:
        """What lies under ``home``, for looking only: nothing is created, brought up to date or swept, and there may be
        nothing at all. Tables are read from the published snapshot, so it waits for no writer and reads a medium that
        cannot be written. Arguments as :meth:`open`."""
        return cls(
            Path(home).expanduser().resolve(),
            limits=limits or Limits(),
            lock_timeout_s=_PATIENCE_S,
            clock=_now,
            looks=True,
        )

    # ---------------------------------------------------------------- writing

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Several writes that happen together or not at all; the lock is held for the block, so keep it short.

        Raises:
            LockTimeout: another writer did not end in time.
            IntegrityError: committed entries of the ledger are gone.
        """
        return writer.transaction(self)

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
        """Replace a partition of a table by ``frame``, atomically; the same content again is a no-op.

        Args:
            spec: the declaration; a ScoreSpec also says which of its columns ``scores.latest`` shows.
            frame: exactly the declared columns (partition columns may be left out), rows in any order.
            partition: a value for each of the spec's partition columns.

        Raises:
            DataError: the frame does not satisfy the declaration (names columns, range and ids); nothing was written.
        """
        with self.transaction() as t:
            return t.replace(
                spec, frame, subject=subject, run_id=run_id, config_digest=config_digest, partition=partition
            )

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
        """Add rows to a partition; a key that is already there is refused. Arguments as :meth:`replace`."""
        with self.transaction() as t:
            return t.append(
                spec, frame, subject=subject, run_id=run_id, config_digest=config_digest, partition=partition
            )

    def complete(
        self,
        asset: str,
        key: str,
        record: Mapping[str, Any] | None = None,
        *,
        outputs: Iterable[Any] = (),
        within: Transaction | None = None,
    ) -> Head:
        """Put on record that ``asset`` (``subject/stage/name``) is done for the idempotence key ``key``; in an open
        transaction, or in one of its own.

        Args:
            record: JSON-able facts that :meth:`completed` gives back; may hold ``outputs``.
            outputs: receipts, artefacts, or their ``output()`` mappings.
        """
        listed = [o if isinstance(o, Mapping) else o.output() for o in outputs]
        body = {"outputs": listed, **(record or {}), "asset": asset, "key": key}
        with self.transaction() if within is None else nullcontext(within) as t:
            return t.complete(asset, key, body)

    def record_lineage(
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
        """Replace what lineage knows of ``asset``: its results, its parents, the example ids it was made from; in an
        open transaction, or in one of its own."""
        self.lineage.record(
            asset,
            within=within,
            subject=subject,
            run_id=run_id,
            config_digest=config_digest,
            parents=parents,
            artifacts=artifacts,
            key=key,
            members=members,
        )

    def compact(self) -> None:
        """Write the database and the snapshot anew from their live rows: DuckDB keeps the bytes of deleted rows in free
        blocks, whatever is deleted, checkpointed or vacuumed. Whoever has the old snapshot open keeps it until they
        close it.

        Raises:
            OSError: the disk failed or is full; the old files stay.
        """
        beside = self.folder / f".{self.database.name}.compact.tmp"  # swept by the next who opens, if we die
        with self.locked():
            fsio.sweep(self.folder)
            with connection.opened(self.database, limits=self._limits) as con:
                chain.guard(con, chain.read_mirror(self.head_file))
                publish.copy(con, beside)
            with connection.opened(beside, limits=self._limits) as con:
                publish.publish(con, self.snapshot, sums=self.sums)
            fault("erasure.before_swap")
            fsio.adopt(beside, self.database)
            fsio.remove(self.database.with_name(f"{self.database.name}.wal"))
            fault("erasure.after_swap")

    # ---------------------------------------------------------------- reading

    def read(
        self,
        spec: TableSpec | ScoreSpec | str,
        *,
        subject: str,
        partition: Mapping[str, Any] | None = None,
        columns: Sequence[str] = (),
    ) -> pl.DataFrame:
        """A subject's rows with the declared columns (``columns`` chooses some, also run_id and config_digest), sorted
        by key. ``partition`` may name any of the partition columns. No row is an empty frame.

        Raises:
            UnknownName: no table of that name was ever written.
        """
        with self.reading() as con:
            known = ddl.declared(con)
            name = spec if isinstance(spec, str) else (spec.table if isinstance(spec, ScoreSpec) else spec).full_name
            if name not in known:
                raise UnknownName("table", name, known)
            chosen = known[name]
            unknown = sorted({*(partition or {})} - set(chosen.partition)) + sorted(
                set(columns) - {c.name for c in chosen.all_columns}
            )
            if unknown:
                raise DataError(f"table {name} has no (partition) column {', '.join(unknown)}")
            return writer.read_partition(con, chosen, subject, dict(partition or {}), columns)

    def receipt(self, spec: TableSpec, *, subject: str, partition: Mapping[str, Any] | None = None) -> Receipt | None:
        """What the last write of a partition left; None if it was never written (zero rows are a result)."""
        with self.reading() as con:
            found = writer.receipt_of(con, spec.full_name, subject, dict(partition or {}))
        return found[0] if found else None

    def completed(self, asset: str, key: str) -> dict[str, Any] | None:
        """The record of the asset's last completion, if it was for ``key`` and its results are still in place."""
        record, trouble = self.completions([asset]).get(asset, ({}, ""))
        return record if record and not trouble and record["key"] == key else None

    def completions(self, assets: Iterable[str]) -> dict[str, tuple[dict[str, Any], str]]:
        """The record of each asset's last completion and what is wrong with its results, in words, in one reading: ""
        where its rows are still those on record, and every artefact of it undamaged, byte for byte (see
        :meth:`ArtifactStore.trouble`). An asset that was never completed is left out."""
        names = list(assets)
        with self.reading() as con:
            bodies = _rows_of(
                con, "SELECT s.asset, e.body FROM meta.stages s JOIN ledger.entries e USING (seq)", "s.asset", names
            )
            records: dict[str, dict[str, Any]] = {asset: json.loads(body) for asset, body in bodies}
            subjects = {writer.subject_of(a, output) for a, record in records.items() for output in record["outputs"]}
            stored = _rows_of(
                con, "SELECT name, subject, part, digest, content FROM meta.partitions", "subject", sorted(subjects)
            )
            listed = _rows_of(con, "SELECT asset, kind, artifact_id, sha256 FROM lineage.artifacts", "asset", names)
        receipts = {(name, subject, part): digests for name, subject, part, *digests in stored}
        files: dict[str, dict[str, str]] = {asset: {} for asset in records}
        for asset, kind, name, sha256 in listed:
            if kind != "table" and asset in files:
                files[asset][name] = sha256

        def trouble(asset: str) -> str:
            outputs = records[asset]["outputs"]
            for output in outputs:
                if output["kind"] == "artifact":
                    continue
                part = writer.part_text(output.get("partition") or {})
                found = receipts.get((output["name"], writer.subject_of(asset, output), part), ())
                if output.get("receipt", output["digest"]) not in found:
                    return f"its rows in {output['name']} are no longer those on record"
            own = {output["name"]: output["digest"] for output in outputs if output["kind"] == "artifact"}
            said = (self.artifacts.trouble(name, sha256) for name, sha256 in {**files[asset], **own}.items())
            return next(filter(None, said), "")

        found = {asset: (record, trouble(asset)) for asset, record in records.items()}
        self.sums.keep()
        return found

    def versions(self, assets: Iterable[str]) -> dict[str, str]:
        """Data version of every asset that was ever completed, in one reading."""
        with self.reading() as con:
            found = {asset: _last_stage(con, asset) for asset in assets}
        return {asset: str(body["data_version"]) for asset, body in found.items() if body is not None}

    def last_complete(self, asset: str) -> dict[str, Any] | None:
        """The record of the asset's last completion, whatever its key; None if there never was one."""
        with self.reading() as con:
            return _last_stage(con, asset)

    def num_training(self, subject: str) -> int:
        """Training examples of a subject on record; 0 where none were recorded."""
        with self.reading() as con:
            counted = f"SELECT count(*) FROM {ddl.table(EXAMPLES)} WHERE subject = ? AND split = 'train'"
            return int(con.execute(counted, [subject]).fetchall()[0][0])

    def latest_score(self, subject: str, name: str) -> pl.DataFrame:
        """``(example_id, value, stderr)`` of a current score that met its gates, by example id.

        Args:
            name: of the score; ``<score>.<column>`` asks for another of its columns as ``value`` (its own type, stderr
                null).

        Raises:
            UnknownName: no such score was ever stored, or it has no such column.
            NotReady: it was not computed for this subject.
            NotTrusted: it did not meet its gates; says which.
        """
        name, _, column = name.partition(".")
        with self.reading() as con:
            known = [row[0] for row in con.execute("SELECT score FROM meta.scores").fetchall()]
            if name not in known:
                raise UnknownName("stored score", name, known)
            frame = fetch(
                con,
                "SELECT example_id, value, stderr FROM scores.latest WHERE subject = ? AND score = ? ORDER BY "
                "example_id",
                [subject, name],
            )
            if column:
                columns = [c.name for c in ddl.declared(con)[f"scores.{name}"].columns]
                if column not in columns:
                    raise UnknownName(f"column of score {name}", column, columns)
                asked = (
                    f"SELECT example_id, {ddl.quoted(column)} AS value FROM scores.{ddl.quoted(name)} WHERE subject = ?"
                )
                values = fetch(con, asked, [subject])
                frame = frame.select("example_id").join(values, on="example_id", how="left", maintain_order="left")
                frame = frame.with_columns(stderr=pl.lit(None, dtype=pl.Float64))
            run = first(con, "SELECT passed, reason FROM scores.runs WHERE subject = ? AND score = ?", [subject, name])
            judged = first(
                con, "SELECT 1 FROM meta.partitions WHERE name = ? AND subject = ?", [f"scores.{name}", subject]
            )
        if run is None or judged is None:
            raise NotReady(f"score {name} of {subject} has not been computed; run: palimpsest audit {subject}")
        if not run[0]:
            raise NotTrusted(f"score {name} of {subject} did not meet its gates: {run[1]}")
        return frame

    def select_where(self, subject: str, predicate: str) -> np.ndarray[Any, Any]:
        """Ids (int64, ascending) of the subject's training examples for which an SQL boolean expression over
        ``data.examples`` is true, e.g. ``label_name = 'ship' AND owner <> ''``. What ``data.columns`` knows of the
        examples stands beside, a column a name (``client = 'b7' AND step >= 3``): whole numbers where all values are,
        else text; one that is named like a column of ``data.examples`` as ``column_<name>``.

        Raises:
            NotReady: the subject's examples have not been recorded.
            InvalidInput: not one boolean expression, or refused by DuckDB (with its message).
        """
        examples = self.read(EXAMPLES, subject=subject)
        if not examples.height:
            raise NotReady(f"the examples of {subject} have not been recorded; run: palimpsest audit {subject}")
        train = examples.filter(pl.col("split") == "train")
        known = self._beside(subject, taken=train.columns)
        beside = train.join(known, on="example_id", how="left", maintain_order="left")
        return reader.select_where(beside, predicate, limits=self._limits)

    def _beside(self, subject: str, *, taken: Sequence[str]) -> pl.DataFrame:
        """(example_id, a column for each name in ``data.columns``) of a subject's examples."""
        try:
            rows = self.read(COLUMNS, subject=subject)
        except UnknownName:  # recorded before there was such a table
            return pl.DataFrame(schema={"example_id": pl.Int64})
        wide = rows.pivot("name", index="example_id", values="value")
        numbers = wide.select(pl.exclude("example_id").cast(pl.Int64, strict=False))
        lost = [name for name in numbers.columns if numbers[name].null_count() > wide[name].null_count()]
        wide = wide.with_columns(numbers.drop(lost))
        return wide.rename({name: f"column_{name}" for name in wide.columns[1:] if name in taken})

    def query(self, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> pl.DataFrame:
        """Rows of one SELECT over the published snapshot, on a door that can neither write nor reach anything else.

        Raises:
            NotReady: nothing has been published yet.
            InvalidInput: not one reading statement, or refused by DuckDB (with its message).
            IntegrityError: the snapshot is damaged, and cannot be published anew now.
        """
        self.check_snapshot()
        try:
            return reader.query(self.snapshot, sql, params, limits=self._limits)
        except IntegrityError as error:  # what DuckDB's own checksums find, and the file system did not tell of
            self.check_snapshot(FileSums())
            if not publish.is_recorded(self.snapshot):
                raise IntegrityError(f"{error}; {AGAIN}") from error
            return reader.query(self.snapshot, sql, params, limits=self._limits)

    def query_groups(self, sql: str, params: Sequence[Any] | Mapping[str, Any] = (), *, k: int) -> pl.DataFrame:
        """Rows of one SELECT over tables of groups of k people or more, made from the published snapshot: the door for
        people who may see no row; see ``warehouse.auditors``.

        Raises:
            NotReady: nothing has been published yet.
            InvalidInput: k is below 5, not one reading statement, or refused by DuckDB (with its message).
            IntegrityError: the snapshot or the salt is damaged: people who may only ask have nothing written for them.
        """
        self.check_snapshot(anew=False)
        key = self._salt_to_read()
        with self.published() as con:
            frames = auditors.tables_of(con, k=k, salt=key)
        return auditors.query(frames, sql, params, limits=self._limits)

    def trace(self, example_id: int, subject: str | None = None) -> pl.DataFrame:
        """Everything an example touched: ``(subject, kind, location, asset, detail)``; see
        ``warehouse.lineage.trace``."""
        if isinstance(example_id, bool) or not isinstance(example_id, int) or not 0 <= example_id <= MAX_EXAMPLE_ID:
            raise InvalidInput(f"example id {example_id!r} is not a whole number from 0 to {MAX_EXAMPLE_ID}")
        if subject is not None:
            check_name(subject, kind="subject")
        with self.reading() as con:
            return lineage.trace(con, example_id, subject)

    def curated(
        self, *, example_ids: Sequence[int] = (), owner: str | None = None, subject: str | None = None
    ) -> pl.DataFrame:
        """The curated sets with a role for any of these examples, or for any of the owner's (a token); see
        ``warehouse.lineage.curated``."""
        with self.reading() as con:
            return lineage.curated(con, example_ids, subject, owner)

    def owned(self, owner: str, subject: str | None = None) -> pl.DataFrame:
        """``(subject, example_id, split)`` of an owner's examples.

        Args:
            owner: a token (``contracts.identity.owner_token``).
        """
        with self.reading() as con:
            return lineage.owned(con, owner, subject)

    def check(
        self, spec: TableSpec | ScoreSpec, *, subject: str, partitions: Sequence[Mapping[str, Any]] = ({},)
    ) -> CheckReport:
        """The Great Expectations suite generated from ``spec``, run once on the stored rows of ``partitions``
        together."""
        from warehouse import expectations  # slow to import, and needed here only

        table = spec.table if isinstance(spec, ScoreSpec) else spec
        everything = [c.name for c in table.all_columns]
        with self.reading() as con:
            stored = [writer.read_partition(con, table, subject, p, everything) for p in partitions]
        return expectations.check(table, pl.concat(stored))

    def verify_tables(self) -> list[str]:
        """Re-read every partition and compare it with what the ledger recorded last; the problems found, as sentences.

        Rows and tables that the ledger does not tell of are problems as well. ``warehouse.verify`` checks all the rest.
        """
        found = verify_database.Database()
        with self.reading() as con:
            verify_database.read_ledger(found, con)
            verify_database.check_declared(found, con)
            verify_database.check_tables(found, con, silent)
        return [problem.sentence for problem in found.problems]

    def salt(self) -> bytes:
        """The salt of the owner tokens and pins: made at its first use, readable by this user only.

        Raises:
            IntegrityError: it is gone or damaged: a token made with another would name nobody. Says what to do.
            NotReady: opened for looking only, and none was ever used.
        """
        path, on_record = self._salt_file()
        if not on_record and not self.looks:
            with self.writing(Open) as t:  # another process may have been first
                check = salt.on_record(t.con)
                salt.refuse(path, check, used=False)
                if not path.exists():
                    fsio.write_bytes(path, os.urandom(salt.NUM_BYTES), mode=0o600)
                if check is None:
                    t.note(salt.KIND, {"check": salt.check_of(path.read_bytes())})
        if not path.exists():
            raise NotReady(f"{path} does not exist yet: no owner has a token in this state folder")
        return path.read_bytes()

    def signer(self, *, renew: bool = False) -> CryptoSigner:
        """The key that certificates are signed with: the one that has signed those issued so far; see
        ``warehouse.signing``.

        Args:
            renew: make or take another one from now on.

        Raises:
            IntegrityError: it is gone, damaged or another one; says what to do.
            InvalidInput: the file that PALIMPSEST_SIGNING_KEY names is not there, or is no Ed25519 key.
        """
        with self.reading() as con:
            known = CERTIFICATES.full_name in ddl.declared(con)
            issued = f"SELECT DISTINCT key_id FROM {ddl.table(CERTIFICATES)}"
            used = [str(row[0]) for row in con.execute(issued).fetchall()] if known else []
        return signing.signing_key(self.home, used=used, renew=renew)

    def request_token(self, request_id: str) -> str:
        """What stands for a forget request at the auditors' door."""
        return auditors.request_token(request_id, salt=self._salt_to_read())

    # ---------------------------------------------------------------- inside

    def _salt_to_read(self) -> bytes:
        """The salt; where none was used yet, one that holds for this call: who only reads writes nothing."""
        path, _ = self._salt_file()
        return path.read_bytes() if path.exists() else os.urandom(salt.NUM_BYTES)

    def _salt_file(self) -> tuple[Path, bool]:
        """Where the salt lies, if it does, and whether it is on record.

        Raises:
            IntegrityError: it is not the one in use.
        """
        path = self.folder / salt.KIND
        with self.reading() as con:
            check, used = salt.on_record(con), salt.is_used(con)
        salt.refuse(path, check, used=used)
        return path, check is not None

    def _create(self) -> bool:
        """The database file, whole or not at all, if there is none; the caller holds the lock. Whether there was
        none."""
        if self.database.exists():
            return False
        mirrored = chain.read_mirror(self.head_file)
        if mirrored is not None and mirrored.seq > 0:
            raise IntegrityError(f"{self.database} is gone, but {self.head_file} knows {mirrored.seq} ledger entries")
        chain.write_mirror(self.head_file, Head())
        with fsio.replacing(self.database) as temp:
            fault("warehouse.before_create")
            with connection.opened(temp, limits=self._limits) as con:
                con.execute(ddl.LAYOUT)
                views.lay_out(con)
        fault("warehouse.after_create")
        return True


def _last_stage(con: Connection, asset: str) -> dict[str, Any] | None:
    row = first(con, "SELECT e.body FROM meta.stages s JOIN ledger.entries e USING (seq) WHERE s.asset = ?", [asset])
    return dict(json.loads(row[0])) if row else None


def _rows_of(con: Connection, select: str, column: str, values: Sequence[str]) -> list[tuple[Any, ...]]:
    """The rows of a query whose ``column`` is one of the values.

    They are written as literals: to bind a parameter DuckDB imports pandas, which takes longer than the reading.
    """
    listed = ", ".join(connection.literal(value) for value in values)
    return con.execute(f"{select} WHERE {column} IN ({listed})").fetchall() if listed else []
