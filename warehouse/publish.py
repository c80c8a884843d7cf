"""The published snapshot: a copy of the whole database that analysts read while an audit writes.

CHECKPOINT, COPY FROM DATABASE into a new file, sync, rename. Whoever has the old snapshot open keeps it; whoever opens
the name next gets the new one. The copy holds live rows only: bytes of deleted rows do not travel.

    palimpsest.read.sums.json   SHA-256 of what was published, the latest first; written before the rename, so that
                                whoever reads between the two finds the old snapshot's there as well

A snapshot whose SHA-256 is not among them is damaged: it is refused, and published anew by the next who may write.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from contracts.digests import canonical_json, digest
from contracts.errors import IntegrityError
from warehouse import connection, fsio
from warehouse.chain import Head, head_of
from warehouse.connection import CATALOG, Connection
from warehouse.faults import fault
from warehouse.filesums import FileSums

_KEPT = 4  # of those published before: one is enough, and a process killed between record and rename adds one
_TRIES = 5


def snapshot_head(con: Connection, path: Path) -> Head | None:
    """Ledger head of a snapshot, by a connection to another database; None when there is none.

    Raises:
        IntegrityError: the file is damaged.
    """
    if not path.exists():
        return None
    with connection.beside(con, path) as name:
        return head_of(con, name)


def publish(con: Connection, snapshot: Path, *, sums: FileSums) -> Head:
    """Publish what ``con`` holds as ``snapshot``, with its SHA-256 on record; its ledger head. Else as :func:`copy`.

    Args:
        sums: are told of it.
    """
    made: list[str] = []

    def record(temp: Path) -> None:
        made.append(fsio.sha256_of(temp))
        _record(snapshot, made[0])
        fault("publish.after_record")

    head = copy(con, snapshot, before_rename=record)
    sums.note(snapshot, made[0])
    sums.keep()
    return head


def copy(con: Connection, target: Path, *, before_rename: Callable[[Path], None] = lambda _: None) -> Head:
    """Write what ``con`` holds to ``target``; its ledger head. The caller holds the writer's lock.

    Args:
        before_rename: called with the whole copy under another name.

    Raises:
        OSError: the disk failed or is full; the old snapshot stays.
    """
    head = head_of(con)
    with fsio.replacing(target) as temp:
        fault("publish.before_copy")
        with connection.translated(target):
            con.execute(f"CHECKPOINT {CATALOG}")
            with connection.beside(con, temp, read_only=False) as name:
                con.execute(f"COPY FROM DATABASE {CATALOG} TO {name}")
        fault("publish.after_copy")
        copied = snapshot_head(con, temp)
        if copied != head:
            raise IntegrityError(f"the copy for {target} ends at ledger entry {copied}, the warehouse at {head}")
        before_rename(temp)
    fault("publish.after_rename")
    return head


def sums_file(snapshot: Path) -> Path:
    """Where the SHA-256 of a snapshot is on record."""
    return snapshot.with_name(f"{snapshot.stem}.sums.json")


def is_recorded(snapshot: Path) -> bool:
    """Whether a SHA-256 is on record of what was published: earlier versions of this program kept none."""
    return bool(_recorded(snapshot))


def refuse_damaged(snapshot: Path, sums: FileSums) -> None:
    """Nothing, where a snapshot is one that was published, byte for byte, or none is on record.

    Raises:
        IntegrityError: it is damaged, or its record is.
        FileNotFoundError: there is no snapshot.
    """
    for _ in range(_TRIES):  # a writer may publish another between our two readings
        before = snapshot.stat()
        found = sums.sha256(snapshot)
        recorded = _recorded(snapshot)
        if not recorded or found in recorded:
            return
        now = snapshot.stat()
        if (now.st_ino, now.st_ctime_ns) == (before.st_ino, before.st_ctime_ns):
            break
    raise IntegrityError(
        f"the published snapshot {snapshot} is damaged: its SHA-256 is not the one of what was published "
        f"({found[:16]}..., published {recorded[0][:16]}...)"
    )


def _record(snapshot: Path, sha256: str) -> None:
    """Put the next snapshot's SHA-256 on record beside those of the one in place."""
    try:
        before: Sequence[str] = [one for one in _recorded(snapshot) if one != sha256][:_KEPT]
    except IntegrityError:
        before = []  # what is in place is damaged as far as anybody can tell, and is replaced now
    found = {"sha256": [sha256, *before]}
    text = canonical_json({**found, "check": digest(found)})
    fsio.write_bytes(sums_file(snapshot), text.encode("utf-8") + b"\n")


def _recorded(snapshot: Path) -> list[str]:
    """SHA-256 of what was published, the latest first; none where an earlier version published it.

    Raises:
        IntegrityError: the record is damaged.
    """
    path = sums_file(snapshot)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        kept = json.loads(text)
        found = {"sha256": [str(one) for one in kept["sha256"]]}
        if not found["sha256"] or text != canonical_json({**found, "check": digest(found)}).encode("utf-8") + b"\n":
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{path} is damaged: it does not hold the SHA-256 of the published snapshot") from error
    return found["sha256"]
