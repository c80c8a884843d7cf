"""What the ledger says is stored now: its entries read in order, a later one over an earlier one.

Of several entries about one partition, artefact, stage or request only the last one binds: results are replaced, and
the digests of those that are gone stay in the ledger. All digests of artefacts are kept by digest as well, so that a
report of an earlier audit is still recognised.

    replace, append   the rows of a partition: their number, digest and writers
    table             a table's version; a migration carries rows over, or keeps the old table under another name
    view              what ``scores.latest`` shows of a score
    stage             the last completion of an asset and its outputs; any entry with ``outputs`` names artefacts
    request           where a forget request stands
    erase_rows        the rows of a partition that an erasure left
    erase             artefacts that an erasure removed, and an asset whose completion does not hold any more
    remove            artefacts that a person took out because nothing needs them
    accepted_loss     entries that are known to be gone
    salt              by what the salt of owner tokens and pins is recognised
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts.digests import canonical_json
from contracts.tables import TableSpec
from warehouse import ddl
from warehouse.chain import Entry
from warehouse.writer import part_text

Key = tuple[str, str, str]  # table, subject, canonical JSON of the partition


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be.

    Attributes:
        sentence: what is wrong and where.
        todo: what to do about it.
    """

    sentence: str
    todo: str


RESTORE = (
    "Restore the state folder from a backup and verify again, or audit anew in an empty one "
    "(PALIMPSEST_HOME=FOLDER palimpsest audit SUBJECT)."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The last record of a partition.

    Attributes:
        seq: the entry.
        rows: number of rows. ``digest``: of all the spec's columns. ``content``: without the volatile ones.
        config_digest: of the last write. ``run_id``: of the last write.
        writers: rows by (run_id, config_digest); None where that is not on record.
    """

    seq: int
    rows: int
    digest: str
    content: str = ""
    config_digest: str = ""
    run_id: str = ""
    writers: Mapping[tuple[str, str], int] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """A table as it was last created, migrated or described: the entry, its version, the digest of its declaration
    ("" in ledgers that did not record it) and the entry that last made it anew (0: never since it was created)."""

    seq: int
    version: int
    digest: str = ""
    remade: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A table of an earlier version that lies beside the new one: its declaration (None in ledgers that did not record
    it) and what was on record of its rows."""

    spec: TableSpec | None
    rows: Mapping[Key, Rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """The last completion of an asset."""

    seq: int
    key: str
    outputs: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """An artefact as an entry or a row of ``lineage.artifacts`` names it; ``asset`` is "" outside stages."""

    seq: int
    sha256: str
    asset: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A forget request as its last entry records it."""

    seq: int
    state: str
    request: str


@dataclass(slots=True)
class Recorded:
    """See the module. Made by :meth:`of`.

    Attributes:
        partitions: what ``meta.partitions`` must say, word for word.
        carried: rows that a migration carried over; they have no row in ``meta.partitions``.
        unbound: tables with rows that a migration carried over without recording them (an earlier version did).
        kept: tables of an earlier version, by the full name they have now.
        digests: (entry, artefact) for each SHA-256 ever named as an output.
        losses: (entry, reason) of each accepted loss.
        salt: the check of the salt (``warehouse.salt``); None where it is on no record.
        problems: entries that cannot be read, or contradict each other.
    """

    partitions: dict[Key, Rows] = field(default_factory=dict)
    carried: dict[Key, Rows] = field(default_factory=dict)
    unbound: set[str] = field(default_factory=set)
    tables: dict[str, Declared] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)
    shows: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stages: dict[str, Completion] = field(default_factory=dict)
    artifacts: dict[str, Named] = field(default_factory=dict)
    digests: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    requests: dict[str, Asked] = field(default_factory=dict)
    losses: list[tuple[int, str]] = field(default_factory=list)
    salt: str | None = None
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Recorded:
        """Read a ledger's entries, given in order."""
        out = cls()
        for seq, _, _, kind, text in entries:
            try:
                body = json.loads(text)
                out._outputs(seq, body)
                reader = _READERS.get(kind)
                if reader is not None:
                    reader(out, seq, kind, body)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                out.problems.append(
                    Problem(
                        f"Entry {seq} of the ledger ({kind[:40]}) is not one that this program writes "
                        f"({type(error).__name__}: {str(error)[:100]}).",
                        RESTORE,
                    )
                )
        return out

    @property
    def is_empty(self) -> bool:
        """Whether no result, artefact or request was ever recorded."""
        return not (self.partitions or self.carried or self.kept or self.stages or self.artifacts or self.requests)

    def rows_of(self, key: Key) -> Rows | None:
        return self.partitions.get(key) or self.carried.get(key)

    def _write(self, seq: int, kind: str, body: Mapping[str, Any]) -> None:
        key = (body["table"], body["subject"], part_text(body["partition"]))
        before = self.rows_of(key)
        self.carried.pop(key, None)
        writer, rows = (body["run_id"], body["config_digest"]), int(body["rows"])
        writers: dict[tuple[str, str], int] | None = {writer: rows}
        if kind == "append" and before is not None:
            writers = None if before.writers is None else dict(before.writers)
            if writers is not None:
                writers[writer] = writers.get(writer, 0) + rows - before.rows
        self.partitions[key] = Rows(
            seq=seq,
            rows=rows,
            digest=body["digest"],
            content=body["content"],
            config_digest=body["config_digest"],
            run_id=body["run_id"],
            writers=writers,
        )

    def _table(self, seq: int, kind: str, body: Mapping[str, Any]) -> None:
        name, done = body["table"], body["done"]
        old = self.tables.get(name)
        remade = seq if done in ("migrated", "archived") else old.remade if old else 0
        if remade == seq:
            mine = {
                key: rows for held in (self.carried, self.partitions) for key, rows in held.items() if key[0] == name
            }
            for key in mine:
                self.partitions.pop(key, None)
                self.carried.pop(key, None)
            if done == "archived" and old is not None:
                spec = ddl.parsed(canonical_json(body["was"])) if "was" in body else None
                self.kept[f"{name}__v{old.version}"] = Kept(spec=spec, rows=mine)
            elif "carried" in body:
                self._carry(seq, name, body["carried"], mine)
            elif mine:
                self.unbound.add(name)
        self.tables[name] = Declared(
            seq=seq, version=int(body["version"]), digest=body.get("declaration", ""), remade=remade
        )

    def _carry(self, seq: int, name: str, carried: Sequence[Mapping[str, Any]], mine: Mapping[Key, Rows]) -> None:
        """Rows that a migration carried over, and whether they were those on record before."""
        was: dict[Key, str] = {}
        for facts in carried:
            key = (name, facts["subject"], part_text(facts["partition"]))
            writers = {(run_id, config): int(rows) for run_id, config, rows in facts["writers"]}
            self.carried[key] = Rows(seq=seq, rows=int(facts["rows"]), digest=facts["digest"], writers=writers)
            was[key] = facts["was"]
        if name in self.unbound or not all(was.values()):  # the new version divides the table otherwise
            return
        recorded = {key: rows.digest for key, rows in mine.items() if rows.rows}
        for key in sorted(was.keys() | recorded.keys()):
            if was.get(key) != recorded.get(key):
                before = f"those that entry {mine[key].seq} had recorded" if key in mine else "on record"
                self.problems.append(
                    Problem(
                        f"{described(key)}: when entry {seq} of the ledger made a new version of the table, its rows "
                        f"were not {before}; they were changed before that.",
                        RESTORE,
                    )
                )

    def _outputs(self, seq: int, body: Mapping[str, Any]) -> None:
        for output in body.get("outputs", ()):
            if output["kind"] == "artifact":
                name, sha256 = output["name"], output["digest"]
                self.artifacts[name] = Named(seq=seq, sha256=sha256, asset=body.get("asset", ""))
                self.digests.setdefault(sha256, []).append((seq, name))

    def _stage(self, seq: int, kind: str, body: Mapping[str, Any]) -> None:
        self.stages[body["asset"]] = Completion(seq=seq, key=body["key"], outputs=body["outputs"])

    def _request(self, seq: int, kind: str, body: Mapping[str, Any]) -> None:
        self.requests[body["request_id"]] = Asked(seq=seq, state=body["state"], request=body["request"])

    def _erased_rows(self, seq: int, kind: str, body: Mapping[str, Any]) -> None:
        key = (body["table"], body["subject"], part_text(body["partition"]))
        self.carried.pop(key, None)
        self.partitions[key] = Rows(
            seq=seq,
            rows=int(body["rows"]),
            digest=body["digest"],
            content=body["content"],
            config_digest=body["config_digest"],
            run_id=body["run_id"],
            writers={(run_id, config): int(rows) for run_id, config, rows in body["writers"]},
        )

    def _erased(self, seq: int, kind: str, body: Mapping[str, Any]) -> None:
        for name in body["removed"]:
            self.artifacts.pop(name, None)
        for table in body.get("tables", ()):
            self.kept.pop(table, None)
        if body["dropped"]:
            self.stages.pop(body["asset"], None)

    def _removed(self, seq: int, kind: str, body: Mapping[str, Any]) -> None:
        for name in body["removed"]:
            self.artifacts.pop(name, None)

    def _view(self, seq: int, kind: str, body: Mapping[str, Any]) -> None:
        if "score" in body:
            self.shows[body["score"]] = tuple(body["shows"])

    def _loss(self, seq: int, kind: str, body: Mapping[str, Any]) -> None:
        self.losses.append((seq, str(body["reason"])))

    def _salt(self, seq: int, kind: str, body: Mapping[str, Any]) -> None:
        self.salt = str(body["check"])


_READERS = {
    "replace": Recorded._write,
    "append": Recorded._write,
    "table": Recorded._table,
    "stage": Recorded._stage,
    "request": Recorded._request,
    "erase_rows": Recorded._erased_rows,
    "erase": Recorded._erased,
    "remove": Recorded._removed,
    "view": Recorded._view,
    "accepted_loss": Recorded._loss,
    "salt": Recorded._salt,
}


def described(key: Key) -> str:
    """A partition in words: ``audits.findings of digits, audited = target``."""
    table, subject, part = key
    inside = ", ".join(f"{name} = {value}" for name, value in json.loads(part).items())
    return f"{table} of {subject}" + (f", {inside}" if inside else "")
