"""The published snapshot: a copy of the whole database that analysts read while an audit writes.

CHECKPOINT, COPY FROM DATABASE into a new file, sync, rename. Whoever has the old snapshot open keeps it; whoever opens
the name next gets the new one. The copy holds live rows only: bytes of deleted rows do not travel.
"""

from __future__ import annotations

from pathlib import Path

from contracts.errors import IntegrityError
from warehouse import connection, fsio
from warehouse.chain import Head, head_of
from warehouse.connection import CATALOG, STORAGE, Connection, Limits, literal
from warehouse.faults import fault


def snapshot_head(path: Path, *, limits: Limits) -> Head | None:
    """Ledger head of a published snapshot; None when there is none.

    Raises:
        IntegrityError: the file is damaged.
    """
    if not path.exists():
        return None
    with connection.opened(path, limits=limits, read_only=True) as con:
        return head_of(con)


def publish(con: Connection, target: Path, *, limits: Limits) -> Head:
    """Write what ``con`` holds to ``target``; its ledger head. The caller holds the writer's lock.

    Raises:
        OSError: the disk failed or is full; the old snapshot stays.
    """
    head = head_of(con)
    with fsio.replacing(target) as temp:
        fault("publish.before_copy")
        with connection.translated(target):
            con.execute(f"CHECKPOINT {CATALOG}")
            con.execute(f"ATTACH {literal(str(temp))} AS snapshot (STORAGE_VERSION '{STORAGE}')")
            try:
                con.execute(f"COPY FROM DATABASE {CATALOG} TO snapshot")
            finally:
                con.execute("DETACH snapshot")
        fault("publish.after_copy")
        copied = snapshot_head(temp, limits=limits)
        if copied != head:
            raise IntegrityError(f"the copy for {target} ends at ledger entry {copied}, the warehouse at {head}")
    fault("publish.after_rename")
    return head
