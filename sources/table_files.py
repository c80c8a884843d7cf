"""CSV and Parquet files as named columns of polars, judged before they are read.

CSV: UTF-8, a header row, one separator (``,`` ``;`` tab or ``|``); types are inferred from the whole file. Refused: no
header, a column name twice, rows longer than the header. An empty cell is a missing value.
Parquet: columns are read one at a time; the footer's row count and sizes are compared with ``max_bytes`` first. They are
decoded by pyarrow: one flipped bit in a page makes polars' own decoder ask for 2 EB and abort the process. Rotten bits
inside a page without a checksum (the default of most writers) are not detected by any reader; the SHA-256 of the file
in the provenance is what tells.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.errors import DataError
from sources.files import check_size, head, refuse_pickle

SEPARATORS = (",", ";", "\t", "|")
UNNAMED = ("", "__index_level_0__")  # what pandas calls a saved row index
_MAX_LINE = 2**20
_PARQUET = b"PAR1"
_ARROW_ERRORS = (
    pa.ArrowException,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    OSError,
    ValueError,
    MemoryError,
)


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of one file. ``frame`` is None for Parquet, whose columns are read when asked for."""

    path: Path
    num_rows: int
    schema: Mapping[str, pl.DataType]
    frame: pl.DataFrame | None

    def column(self, name: str) -> pl.Series:
        """One column.

        Raises:
            DataError: unknown (the known ones are listed), or its bytes cannot be read.
        """
        if name not in self.schema:
            raise DataError(
                f"{self.path.name} has no column {name!r}; columns are: {', '.join(map(repr, self.schema))}"
            )
        if self.frame is not None:
            return self.frame.get_column(name)
        try:
            with _parquet(self.path) as file:
                column = file.read(columns=[name], use_threads=False).column(name)
                column.validate(full=True)
            series = pl.Series(name, pl.from_arrow(column))
        except _ARROW_ERRORS as error:
            raise DataError(f"{self.path.name}: column {name!r} cannot be read: {error}") from None
        if len(series) != self.num_rows:
            raise DataError(
                f"{self.path.name}: column {name!r} has {len(series)} rows, the footer says {self.num_rows}"
            )
        return series


def kind_of(path: Path) -> str | None:
    """ "parquet", "csv" or None, by content: Parquet's magic, or a first line of text with at least two cells."""
    start = head(path, 4096)
    if start.startswith(_PARQUET):
        return "parquet"
    line = start.split(b"\n", 1)[0]
    if not line.strip() or b"\0" in start:
        return None
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(line) - 4 or len(line) < len(start):
            return None
    return "csv" if any(line.count(s.encode()) for s in SEPARATORS) else None


def read_table(path: Path, *, separator: str, max_bytes: int) -> Table:
    """Open a CSV or Parquet file.

    Args:
        path: a regular file.
        separator: of a CSV; "" takes the one that is most frequent in the header.
        max_bytes: largest file, and largest table that a Parquet footer may declare (8 bytes a value).

    Raises:
        UnsafeFile: too large, or a pickle.
        DataError: neither CSV nor Parquet, truncated, damaged, or a header that cannot be used.
    """
    refuse_pickle(path)
    check_size(path.stat().st_size, max_bytes, path.name)
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"{path.name} is neither Parquet (PAR1) nor UTF-8 CSV with a header row; unpack a .gz first")
    return _read_parquet(path, max_bytes) if kind == "parquet" else _read_csv(path, separator)


def _read_parquet(path: Path, max_bytes: int) -> Table:
    try:
        with _parquet(path) as file:
            meta, names = file.metadata, file.schema_arrow.names
            empty = file.schema_arrow.empty_table()
        declared = max(
            meta.num_rows * meta.num_columns * 8,
            sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)),
        )
        check_size(declared, max_bytes, path.name)
        _refuse_doubled(path, names)
        schema = pl.DataFrame(empty).schema
    except DataError:
        raise
    except _ARROW_ERRORS as error:
        raise DataError(f"{path.name} is not a readable Parquet file: {error}") from None
    return Table(path, meta.num_rows, dict(schema), None)


def _parquet(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, page_checksum_verification=True)


def _read_csv(path: Path, separator: str) -> Table:
    separator, names = _header(path, separator)
    _refuse_doubled(path, names)
    if all(_is_number(n) for n in names):
        raise DataError(f"{path.name} has no header row: its first line is {', '.join(names[:5])}, ...")
    try:
        frame = pl.read_csv(path, separator=separator, infer_schema_length=None, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read as CSV separated by {separator!r}: {error}") from None
    if frame.width != len(names):
        raise DataError(f"{path.name}: the header names {len(names)} columns, {frame.width} were read")
    return Table(path, frame.height, dict(frame.schema), frame)


def _header(path: Path, separator: str) -> tuple[str, list[str]]:
    with path.open("rb") as stream:
        line = stream.readline(_MAX_LINE + 1)
    if len(line) > _MAX_LINE:
        raise DataError(f"{path.name}: the first line is longer than {_MAX_LINE:,} bytes; is it a table?")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8: {error}; save it as UTF-8") from None
    separator = separator or max(SEPARATORS, key=text.count)
    return separator, next(csv.reader(io.StringIO(text), delimiter=separator), [])


def _refuse_doubled(path: Path, names: list[str]) -> None:
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise DataError(f"{path.name}: column {doubled[0]!r} appears {names.count(doubled[0])} times in the header")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
