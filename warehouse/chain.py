"""The chain under the ledger: everything that changed the warehouse, in order, each entry bound to the one before.

hash_n = SHA-256(canonical JSON of {seq: n, prev_hash: hash_(n-1), kind, body}), hash_0 = 64 zeros, n = 1, 2, 3, ...

Order comes from ``seq`` alone; the clock reading in ``body.at`` is information. A row is written in the transaction
of the change that it records. The head is mirrored in ``ledger.head`` after each commit: a database that lost its tail
(a torn write-ahead log, a restored backup) no longer contains that head, which is noticed before the next write.
Someone who rewrites both is noticed by a head that was noted before: in a report, in the published snapshot, or outside
the state folder (``palimpsest verify --head``). Bodies hold names and digests, never examples or owners: a ledger
cannot forget. A body is stored as its canonical JSON text, byte for byte: a second reading of it would be a second
truth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.digests import canonical_json, digest
from contracts.errors import IntegrityError, InvalidInput
from warehouse import fsio
from warehouse.connection import Connection, first
from warehouse.faults import fault

GENESIS = "0" * 64
_HEAD = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})")

Entry = tuple[int, str, str, str, str]  # seq, prev_hash, hash, kind, body as canonical JSON text
Anchor = tuple[str, Callable[[], "Head | None"]]  # what knows a head, in words; how to ask it


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry: ``seq`` 0 and the genesis hash for an empty ledger."""

    seq: int = 0
    hash: str = GENESIS

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """The head that ``SEQ:HASH`` names, as reports and ``palimpsest verify`` print it.

        Raises:
            InvalidInput: it is written otherwise, or names entry 0, which every ledger contains.
        """
        match = _HEAD.fullmatch(text.strip().lower())
        if match is None:
            raise InvalidInput(
                f"{text[:100]!r} is not a ledger head: write SEQ:HASH, the number of an entry (1 or more) and its 64 "
                "hex digits, as a report or 'palimpsest verify' prints it"
            )
        return cls(int(match[1]), match[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerReport:
    """What ``Ledger.verify`` found. ``problems`` is empty when all is well.

    ``first_missing`` is the lowest sequence number that should be there and is not.
    """

    num_entries: int
    head: Head
    problems: tuple[str, ...] = ()
    first_missing: int | None = None

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        if self.ok:
            return f"{self.num_entries:,} entries, whole up to {self.head}"
        lost = f" (first missing entry: {self.first_missing})" if self.first_missing else ""
        return f"{self.num_entries} entries, not whole: {'; '.join(self.problems)}{lost}"


def entry_hash(seq: int, prev_hash: str, kind: str, body: Any) -> str:
    return digest({"seq": seq, "prev_hash": prev_hash, "kind": kind, "body": body})


def head_of(con: Connection, catalog: str = "") -> Head:
    """The last entry of a database; of the current one unless another catalog is named."""
    entries = f"{catalog}.ledger.entries" if catalog else "ledger.entries"
    row = first(con, f"SELECT seq, hash FROM {entries} ORDER BY seq DESC LIMIT 1")
    return Head(int(row[0]), str(row[1])) if row else Head()


def insert(con: Connection, head: Head, kind: str, body: Mapping[str, Any]) -> Head:
    """Add one entry after ``head`` inside the caller's transaction; the new head."""
    text = canonical_json(body)
    new = Head(head.seq + 1, entry_hash(head.seq + 1, head.hash, kind, json.loads(text)))
    fault("ledger.before_insert")
    con.execute("INSERT INTO ledger.entries VALUES (?, ?, ?, ?, ?)", [new.seq, head.hash, new.hash, kind, text])
    return new


def read_mirror(path: Path) -> Head | None:
    """The mirrored head; None when the file is missing.

    Raises:
        IntegrityError: it is not what was written.
    """
    try:
        stored = json.loads(path.read_bytes())
        head = Head(stored["seq"], stored["hash"])
        if stored["check"] != digest([head.seq, head.hash]):
            raise ValueError
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{path} is damaged: it does not hold a ledger head") from error
    return head


def write_mirror(path: Path, head: Head) -> None:
    text = canonical_json({"seq": head.seq, "hash": head.hash, "check": digest([head.seq, head.hash])})
    fsio.write_bytes(path, text.encode() + b"\n")


def guard(con: Connection, mirrored: Head | None) -> None:
    """Make sure that the database still contains the mirrored head.

    A mirror that lags behind (the process died between commit and mirror) is in order.

    Raises:
        IntegrityError: entries that were once committed are gone.
    """
    known = {}
    if mirrored is not None:
        row = first(con, "SELECT hash FROM ledger.entries WHERE seq = ?", [mirrored.seq])
        known = {mirrored.seq: str(row[0])} if row else {}
    problem, _ = contained(known, head_of(con), mirrored, "ledger.head")
    if problem:
        raise IntegrityError(
            f"{problem}. Committed changes were lost (torn write-ahead log, restored backup?); nothing is written "
            "until the loss is put on record with Ledger.accept_loss(reason)"
        )


def contained(hashes: Mapping[int, str], head: Head, anchor: Head | None, name: str) -> tuple[str, int | None]:
    """What is wrong if a ledger does not contain ``anchor`` ("" when it does), and the first entry that is missing.

    Args:
        hashes: hash of the ledger's entries by number, at least of the anchor's.
        head: the ledger's head.
        anchor: a head that was noted at some time; None when whatever should know one does not.
        name: what knows the anchor, in words.
    """
    if anchor is None:
        return f"head mismatch: {name} is missing", None
    if anchor.seq > head.seq:
        return f"head mismatch: {name} knows entry {anchor.seq}, the ledger ends at {head.seq}", head.seq + 1
    if anchor.seq and hashes.get(anchor.seq) != anchor.hash:
        return f"head mismatch: entry {anchor.seq} is not the one that {name} knows", None
    return "", None


def entries_of(con: Connection) -> list[Entry]:
    """Everything that lies in the ledger's table, in order of ``seq``."""
    return con.execute("SELECT seq, prev_hash, hash, kind, body FROM ledger.entries ORDER BY seq, hash").fetchall()


def examine(entries: Sequence[Entry], anchors: Sequence[Anchor] = ()) -> LedgerReport:
    """Recompute the chain of ``entries`` and look for the anchors in it."""
    problems, first_missing = _chain(entries)
    hashes = {entry[0]: entry[2] for entry in entries}
    head = Head(entries[-1][0], entries[-1][2]) if entries else Head()
    for name, look in anchors:
        try:
            problem, missing = contained(hashes, head, look(), name)
        except (IntegrityError, OSError) as error:
            problem, missing = str(error), None
        if problem:
            problems.append(problem)
            first_missing = first_missing or missing
    return LedgerReport(num_entries=len(entries), head=head, problems=tuple(problems), first_missing=first_missing)


def _chain(rows: Sequence[Entry]) -> tuple[list[str], int | None]:
    """Problems of a chain in order of ``seq``, and the first missing number."""
    problems: list[str] = []
    first_missing: int | None = None
    previous = Head()
    for seq, prev_hash, stored, kind, body in rows:
        if seq != previous.seq + 1:
            if seq > previous.seq + 1:
                problems.append(f"entries {previous.seq + 1} to {seq - 1} are missing")
                first_missing = first_missing or previous.seq + 1
            else:
                problems.append(f"entry {seq} is there twice")
        if prev_hash != previous.hash:
            problems.append(f"entry {seq} does not follow entry {previous.seq}")
        if _hash_or_none(seq, prev_hash, kind, body) != stored:
            problems.append(f"entry {seq} was changed: its hash does not fit")
        elif not _is_canonical(body):
            problems.append(f"entry {seq} was changed: its text is not the one that its hash was made of")
        previous = Head(seq, stored)
    return problems, first_missing


def _hash_or_none(seq: int, prev_hash: str, kind: str, body: str) -> str | None:
    try:
        return entry_hash(seq, prev_hash, kind, json.loads(body))
    except (ValueError, RecursionError):
        return None


def _is_canonical(body: str) -> bool:
    """Whether a body that parses is the text that was hashed: a doubled field, say, reads differently elsewhere."""
    return canonical_json(json.loads(body)) == body
