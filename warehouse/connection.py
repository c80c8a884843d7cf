"""Doors to DuckDB: the writer's private file, and the locked-down read-only door. Both always close.

Everything is opened through an in-memory instance that attaches the file as ``palimpsest``: a new file then gets the
1.5 storage format (readable by DuckDB 1.5 and 2.x), and a reader in the same process sees a snapshot published since,
which a second ``duckdb.connect(path)`` would not while an older connection is open.

Starting an instance takes longer (10 ms) than most of what is asked of one, so the last one is kept for the next who
opens a file. Nothing of a file stays in it: it is detached, and the connection with its temporary tables is closed.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from contracts.errors import DataError, IntegrityError, InvalidInput, LockTimeout, NotReady
from warehouse import fsio

STORAGE = "v1.5.0"
CATALOG = "palimpsest"
Connection = duckdb.DuckDBPyConnection


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What DuckDB may use. What does not fit in ``memory`` goes to a folder of its own below ``spill``."""

    memory: str = "2GB"
    threads: int | None = None
    spill: Path | None = None


@contextmanager
def opened(path: Path, *, limits: Limits, read_only: bool = False) -> Iterator[Connection]:
    """The database file ``path`` as the current catalog, created when absent (unless read-only).

    Raises:
        IntegrityError: DuckDB's own checksums do not fit; names the path.
        OSError: the disk failed or is full; names the path.
    """
    with translated(path), _lent(limits) as con:
        _attach(con, path, read_only=read_only)
        # Rows are sorted when they are read; writing them in any order takes half the time.
        con.execute(f"SET preserve_insertion_order = {str(read_only).lower()}")
        yield con
        # A writer's write-ahead log is merged into the file here, and it is said when that cannot be.
        con.execute("USE memory")
        con.execute(f"DETACH {CATALOG}")


@contextmanager
def beside(con: Connection, path: Path, *, read_only: bool = True) -> Iterator[str]:
    """A second database file in the instance of ``con``: the catalog's name in SQL. The current one stays current.

    Raises:
        IntegrityError, OSError: as :func:`opened`.
    """
    with translated(path):
        con.execute(f"ATTACH {literal(str(path))} AS beside ({_mode(read_only)})")
        try:
            yield "beside"
        finally:
            con.execute("DETACH beside")


@contextmanager
def door(path: Path, *, limits: Limits) -> Iterator[Connection]:
    """A reader that can neither write, nor reach any other file, nor loosen its own settings.

    Raises:
        NotReady: nothing has been published yet.
    """
    refuse_unpublished(path)
    with translated(path), _instance(limits) as con:
        _attach(con, path, read_only=True)
        lock_down(con)
        yield con


def refuse_unpublished(path: Path) -> None:
    """Raise :class:`NotReady` where no snapshot lies."""
    if not path.exists():
        raise NotReady(f"{path} does not exist yet: run `palimpsest audit` (it publishes its tables) first")


@contextmanager
def scratch(*, limits: Limits) -> Iterator[Connection]:
    """An empty in-memory instance; the caller fills it and then calls :func:`lock_down`."""
    with _instance(limits) as con:
        yield con


def lock_down(con: Connection) -> None:
    """No files, no network, no extensions, no Python variables, and no way back."""
    con.execute("SET python_enable_replacements = false")
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")


def fetch(con: Connection, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> pl.DataFrame:
    """The result of a query as a frame.

    DuckDB 1.5 builds a relation with parameters row by row in Python (100 times slower), DuckDB 2 has no other way.
    """
    given = params or None
    if hasattr(con, "pl"):
        return con.execute(sql, given).pl()
    return con.sql(sql, params=given).pl()


def first(con: Connection, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> tuple[Any, ...] | None:
    """The first row of a query, or None. Fetched to the end: DuckDB 2 allows nothing else on the connection before."""
    found = con.execute(sql, params or None).fetchall()
    return found[0] if found else None


def literal(text: str) -> str:
    """``text`` as an SQL string literal, for the few places where DuckDB takes no parameter."""
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def in_time(con: Connection, limit_s: float) -> Iterator[None]:
    """Interrupt what ``con`` is doing when the block takes longer than ``limit_s`` seconds."""
    done = threading.Event()

    def watch() -> None:
        # Again and again: an interrupt that comes between two queries is forgotten by DuckDB.
        if not done.wait(limit_s):
            while not done.wait(0.1):
                con.interrupt()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except duckdb.InterruptException as error:
        raise InvalidInput(f"it took longer than {limit_s:g} s and was stopped") from error
    finally:
        done.set()
        watcher.join()


_Kind = tuple[int, str, int | None]  # process, memory, threads
_idle: dict[_Kind, Connection] = {}  # at most one
_giving = threading.Lock()


@contextmanager
def _lent(limits: Limits) -> Iterator[Connection]:
    """A connection to an instance in which nobody else is; the instance is kept unless the block failed."""
    kind = (os.getpid(), limits.memory, limits.threads)
    with _giving:
        instance = _idle.pop(kind, None)
    with _spill(limits) as folder:
        instance = _started(limits) if instance is None else instance
        kept = False
        try:
            with instance.cursor() as con:
                _settle(con, folder)
                yield con
            kept = _left_alone(instance)
        finally:
            with _giving:
                if kept and not _idle:
                    _idle[kind] = instance
                else:
                    instance.close()


def _left_alone(instance: Connection) -> bool:
    """Whether the instance may be used again: DuckDB lets go of no folder into which it has spilled."""
    try:
        instance.execute("SET temp_directory = ''")
    except duckdb.Error:
        return False
    return True


@contextmanager
def _instance(limits: Limits) -> Iterator[Connection]:
    """An instance of one's own, which may be locked down."""
    with _spill(limits) as folder:
        con = _started(limits)
        try:
            _settle(con, folder)
            yield con
        finally:
            con.close()


def _settle(con: Connection, folder: Path) -> None:
    """What every session begins with: its own folder to spill into, and UTC."""
    con.execute(f"SET temp_directory = {literal(str(folder))}")
    con.execute("SET TimeZone = 'UTC'")


def _spill(limits: Limits) -> AbstractContextManager[Path]:
    return fsio.scratch_folder(limits.spill or Path(tempfile.gettempdir()) / "palimpsest-spill")


def _started(limits: Limits) -> Connection:
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": limits.memory,
        "temp_directory": "",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    if limits.threads is not None:
        config["threads"] = limits.threads
    return duckdb.connect(":memory:", config=config)


def _attach(con: Connection, path: Path, *, read_only: bool) -> None:
    con.execute(f"ATTACH {literal(str(path))} AS {CATALOG} ({_mode(read_only)})")
    con.execute(f"USE {CATALOG}")


def _mode(read_only: bool) -> str:
    return "READ_ONLY" if read_only else f"STORAGE_VERSION '{STORAGE}'"


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """DuckDB's errors in the words of ``contracts.errors``; programming errors pass through."""
    try:
        yield
    except duckdb.Error as error:
        told = _first_line(error)
        if "Could not set lock" in told:
            raise LockTimeout(f"{path} is being written: {told}") from error
        for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO):
            if os.strerror(code).lower() in str(error).lower():
                raise OSError(code, f"{os.strerror(code)}: {told}", str(path)) from error
        if isinstance(error, duckdb.ConstraintException):
            raise DataError(f"the database refused the rows: {told}") from error
        if isinstance(error, duckdb.OutOfMemoryException):
            raise MemoryError(f"{path}: {told}; open the warehouse with a higher Limits.memory") from error
        if isinstance(error, _DAMAGE) or any(word in told for word in _DAMAGED):
            raise IntegrityError(f"{path} is damaged: {told}") from error
        if isinstance(error, duckdb.IOException):
            raise OSError(errno.EIO, told, str(path)) from error
        raise


_DAMAGED = ("orrupt", "not a valid DuckDB", "Could not read enough bytes")  # the last: the file was cut
_DAMAGE = (duckdb.SerializationException, duckdb.FatalException, duckdb.InternalException)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
