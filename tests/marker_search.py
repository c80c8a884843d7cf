"""Where a text is under a folder: in the bytes of every file, in every cell of its databases, in what it decodes to."""

from __future__ import annotations

import base64
import gzip
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

_BASE64 = re.compile(rb"[A-Za-z0-9+/]{24,}={0,2}")


def holding(home: Path, marker: str) -> list[str]:
    """Every file under a folder in whose name, bytes or decoded content the marker is."""
    return sorted({place.partition("!")[0] for place in places(home, marker)})


def places(home: Path, marker: str) -> list[str]:
    """As :func:`holding`; of a table in a database, ``file!schema.table``."""
    found = set()
    for path in sorted(home.rglob("*")):
        name = path.relative_to(home).as_posix()
        if marker in path.name:
            found.add(name)
        if path.is_file():
            found |= {f"{name}!{where}" if where else name for where in _in_file(path, marker.encode())}
    return sorted(found)


def _in_file(path: Path, marker: bytes) -> set[str]:
    """The tables of a database that hold it; {""} where it is elsewhere in the file."""
    found = {where for where, piece in decoded(path) if marker in piece}
    return found - {""} or found


def decoded(path: Path) -> Iterator[tuple[str, bytes]]:
    """(table, content) of everything in a file; table "" of what is no database: first of all the file's bytes."""
    data = path.read_bytes()
    yield "", data
    for text in _BASE64.findall(data) if len(data) < 1 << 20 else ():
        yield "", base64.b64decode(text[: len(text) // 4 * 4])
    if data[:16] == b"SQLite format 3\0":
        with closing(sqlite3.connect(path)) as con:
            for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for row in con.execute(f'SELECT * FROM "{name}"'):
                    yield from ((name, _plain(cell)) for cell in row)
    elif data[8:12] == b"DUCK":
        with duckdb.connect(str(path), read_only=True) as con:
            listed = "SELECT schema_name, table_name FROM duckdb_tables()"
            for schema, name in con.execute(listed).fetchall():
                for row in con.execute(f'SELECT * FROM "{schema}"."{name}"').fetchall():
                    yield from ((f"{schema}.{name}", _plain(cell)) for cell in row)
    elif data[:2] == b"\x1f\x8b":
        yield "", gzip.decompress(data)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (("", archive.read(name)) for name in archive.namelist())
    elif data[:4] == b"PAR1":
        yield "", pl.read_parquet(path).write_csv().encode()


def _plain(cell: Any) -> bytes:
    if not isinstance(cell, bytes):
        return str(cell).encode()
    try:
        return cell + zlib.decompress(cell)  # as Dagster keeps its snapshots
    except zlib.error:
        return cell
