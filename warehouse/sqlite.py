"""SQLite files of other programs below the state folder: taking rows out for good.

A deleted row stays in a file's free pages until VACUUM, and in the write-ahead log until that is truncated.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from contracts.errors import StateError

_BUSY_MS = 5000
_BY_ASSET = ("asset_keys", "event_logs", "asset_event_tags", "asset_check_executions", "asset_check_partitions")


def forget_assets(path: Path, subject: str) -> None:
    """Delete what Dagster's tables hold of assets of a subject; wiping leaves the assets themselves with their last
    event."""
    start = f'["{subject}"'  # compared as it is: LIKE takes the underscore of a name for any letter
    with closing(_opened(path)) as con, con:
        for table in _BY_ASSET:
            if "asset_key" in _columns(con, table):  # an unknown table has no columns
                con.execute(f"DELETE FROM {table} WHERE substr(asset_key, 1, ?) = ?", [len(start), start])


def _columns(con: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in con.execute(f"PRAGMA table_info({table})")}


def rewrite(path: Path) -> str:
    """Write a SQLite file anew from its live rows, and empty its log; its size, in words.

    Raises:
        StateError: somebody else has it open.
    """
    try:
        with closing(_opened(path)) as con:
            con.isolation_level = None
            con.execute("PRAGMA secure_delete = ON")
            con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            con.execute("VACUUM")
            busy, *_ = con.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise sqlite3.OperationalError("its log is in use")
    except sqlite3.OperationalError as error:
        raise StateError(
            f"{path} cannot be written anew ({error}): stop what has it open ('make ui', dagster dev), then run the "
            "same command again: it goes on where it was"
        ) from error
    return f"{path.stat().st_size:,} bytes, from live rows only"


def _opened(path: Path) -> sqlite3.Connection:
    con = sqlite3.connect(path)
    con.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
    return con
