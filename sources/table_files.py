"""CSV, Parquet and JSON files, or a folder of such shards, as named columns of polars, judged before they are read.

CSV: UTF-8, a header row, one separator (``,`` ``;`` tab or ``|``, with or without blanks behind it); types are inferred
    from the
whole file; blanks around a cell are not part of it. Refused: no header, a column name twice, rows longer than the
header. An empty cell is a missing value. JSON: one object a line, or one list of objects.
Parquet: columns are read one at a time from a file that is opened once; the footer's row count and sizes are compared
    with
``max_bytes`` first. They are decoded by pyarrow: one flipped bit in a page makes polars' own decoder ask for 2 EB and
abort the process. Rotten bits inside a page without a checksum (the default of most writers) are not detected by any
reader; the SHA-256 of the file in the provenance is what tells.

A folder stands for its shards, the files of one kind in the order of their names; where all names speak of a split
("train-00000-of-00002.parquet", "test.csv"), they say each row's.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.errors import DataError
from sources.files import PICTURES, check_size, entries, head, inside, refuse_pickle
from sources.given_splits import split_of

SEPARATORS = (",", ";", "\t", "|")
UNNAMED = ("", "__index_level_0__", "Unnamed: 0")  # what pandas calls a saved row index
_MAX_LINE = 2**20
_PARQUET = b"PAR1"
_SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
_SHARD = re.compile(r"(.*?)[-_.]?(\d+)-of-(\d+)\b")
_READ_ERRORS = (
    pa.ArrowException,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    OSError,
    ValueError,
    MemoryError,
)


@dataclass(frozen=True, slots=True)
class _Part:
    """One file: its columns in memory, or a Parquet file that is open and read column by column."""

    path: Path
    num_rows: int
    schema: Mapping[str, pl.DataType]
    content: pl.DataFrame | pq.ParquetFile
    decimal_comma: bool = False

    def column(self, name: str) -> pl.Series:
        if isinstance(self.content, pl.DataFrame):
            return self.content.get_column(name)
        try:
            column = self.content.read(columns=[name], use_threads=False).column(name)
            column.validate(full=True)
            series = pl.Series(name, pl.from_arrow(column))
        except _READ_ERRORS as error:
            raise DataError(f"{self.path.name}: column {name!r} cannot be read: {error}") from None
        if len(series) != self.num_rows:
            raise DataError(
                f"{self.path.name}: column {name!r} has {len(series)} rows, the footer says {self.num_rows}"
            )
        return series


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of a file, or of shards one below the other.

    Attributes:
        name: of the file or folder, for messages.
        schema: columns and their types; the same of every part.
        rows: (N,) int64, the rows of the parts that are in the table; None for all.
        decimal_comma: "1,234" is more likely 1.234 than 1234 here.
        metadata: key and value texts of a Parquet footer.
    """

    name: str
    schema: Mapping[str, pl.DataType]
    parts: tuple[_Part, ...]
    metadata: Mapping[str, str]
    rows: np.ndarray | None = None

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self.parts) if self.rows is None else len(self.rows)

    @property
    def paths(self) -> list[Path]:
        return [part.path for part in self.parts]

    @property
    def decimal_comma(self) -> bool:
        return any(part.decimal_comma for part in self.parts)

    def column(self, name: str) -> pl.Series:
        """One column.

        Raises:
            DataError: unknown (the known ones are listed), or its bytes cannot be read.
        """
        if name not in self.schema:
            raise DataError(f"{self.name} has no column {name!r}; columns are: {', '.join(map(repr, self.schema))}")
        pieces = [part.column(name) for part in self.parts]
        try:
            series = pieces[0] if len(pieces) == 1 else pl.concat([p.cast(self.schema[name]) for p in pieces])
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{self.name}: the shards differ in column {name!r}: {error}") from None
        return series if self.rows is None else series.gather(self.rows)

    def origin(self) -> np.ndarray:
        """(N,) str: "people.csv row 7", rows counted from 1 below the header."""
        rows = np.arange(self.num_rows) if self.rows is None else self.rows
        starts = np.cumsum([0, *(part.num_rows for part in self.parts)])
        of = np.searchsorted(starts, rows, side="right") - 1
        names = [part.path.name for part in self.parts]
        return np.array([f"{names[k]} row {row}" for k, row in zip(of, rows - starts[of] + 1, strict=True)], dtype=str)

    def splits(self) -> np.ndarray | None:
        """(N,) "<U5", the split that each shard's name speaks of; None for one file, and unless every name speaks of
        one, not all of the same."""
        spoken = [split_of(part.path.name) for part in self.parts]
        if len(set(spoken)) < 2 or None in spoken:
            return None
        splits = np.repeat(np.array(spoken, "<U5"), [part.num_rows for part in self.parts])
        return splits if self.rows is None else splits[self.rows]

    def class_names(self, name: str) -> list[str]:
        """Names of the classes of a label column, where Hugging Face's ``datasets`` wrote them into the footer; else
        none."""
        try:
            features = json.loads(self.metadata.get("huggingface", "{}"))["info"]["features"]
            return [str(n) for n in features[name]["names"]]
        except (ValueError, KeyError, TypeError):
            return []

    def take(self, kept: np.ndarray) -> Table:
        """The table of the rows that ``kept``, (N,) bool, is true for."""
        rows = np.flatnonzero(kept)
        return dataclasses.replace(self, rows=rows if self.rows is None else self.rows[rows])


def as_texts(series: pl.Series) -> pl.Series:
    """Values as text, missing as missing. Floats that are all whole are written whole: pandas makes floats of whole
    numbers where a cell is empty, and who owns "17.0" is asked for as 17."""
    if series.dtype.is_float():
        known = series.drop_nulls().drop_nans()
        if (known.is_finite() & (known == known.round()) & (known.abs() < 2**53)).all():
            series = series.fill_nan(None).cast(pl.Int64)
    return series.cast(pl.String)


def kind_of(path: Path) -> str | None:
    """ "parquet", "json", "csv" or None, by content: Parquet's magic, an object or list, or a first row of at least two
    cells."""
    start = head(path, 65_536)
    if start.startswith(_PARQUET):
        return "parquet"
    if b"\0" in start:
        return None
    text = start.decode("utf-8-sig", errors="replace").lstrip()
    if "\ufffd" in text.split("\n", 1)[0][:1000]:
        return None
    if text.startswith(("{", "[{")) or re.match(r"\[\s+\{", text):
        return "json"
    return "csv" if len(_first_row(*_told(text))[1]) > 1 else None


def shards(folder: Path) -> list[Path]:
    """The tables in a folder, in the order of their names; empty where it holds folders or other files as well."""
    files = entries(folder)
    if any(e.is_dir() for e in files):
        return []
    found = [f for f in files if f.suffix in _SUFFIXES and kind_of(f)]
    kinds = {kind_of(f) for f in found}
    if len(kinds) > 1:
        found = [f for f in found if f.suffix in (".parquet", ".pq")]
    notes = (".md", ".txt", ".json", ".yaml", ".yml", "")  # a README, a licence, dataset_info.json
    rest = [f for f in files if f not in found and f.suffix.lower() not in notes]
    return [] if rest else found


def shard_of(path: Path) -> str:
    """A sentence where a file is one of several; else ""."""
    found = _SHARD.fullmatch(path.stem)
    if found is None or int(found[3]) < 2:
        return ""
    return f"{path.name} is one of {int(found[3])} shards; --data {path.parent} reads all of them"


def picture_column(path: Path) -> str | None:
    """The first column of pictures in a Parquet file or its shards: Hugging Face's {bytes, path}, or bytes that begin
    as one."""
    path = next(iter(shards(path)), path) if path.is_dir() else path
    if kind_of(path) != "parquet":
        return None
    try:
        with pq.ParquetFile(path) as file:
            for field in file.schema_arrow:
                if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
                    return str(field.name)
                if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
                    batch = next(file.iter_batches(batch_size=1, columns=[field.name]), None)
                    value = batch.column(0)[0].as_py() if batch is not None and batch.num_rows else None
                    if value and value.startswith(PICTURES):
                        return str(field.name)
    except _READ_ERRORS:
        return None
    return None


def is_tables(path: Path) -> bool:
    """True for a table, or a folder of shards of one."""
    return bool(shards(path)) if path.is_dir() else path.is_file() and kind_of(path) is not None


def column_names(path: Path) -> list[str]:
    """Of a table's header, of the first shard of a folder; empty when there is none to be read. The values are not
    looked at."""
    if path.is_dir():
        path = next(iter(shards(path)), path)
    kind = kind_of(path) if path.is_file() else None
    if kind == "parquet":
        try:
            return list(pq.read_schema(path).names)
        except _READ_ERRORS:
            return []
    if kind == "csv":
        text = head(path, _MAX_LINE).decode("utf-8-sig", errors="replace").lstrip("\r\n")
        return _first_row(*_told(text))[1]
    if kind == "json":
        line = head(path, _MAX_LINE).split(b"\n", 1)[0].rstrip(b",\r")
        try:
            found = json.loads(line)
        except ValueError:
            return []
        return list(found) if isinstance(found, dict) else []
    return []


def read_table(root: Path, name: str, *, separator: str = "", max_bytes: int) -> Table:
    """Open a file, or all shards of a folder.

    Args:
        root: resolved folder.
        name: of a regular file below it, or of a folder of shards ("." for the root itself).
        separator: of a CSV; "" takes the one that makes most cells of the header.
        max_bytes: largest file, and largest table that a Parquet footer may declare (8 bytes a value).

    Raises:
        UnsafeFile: outside the root, too large, or a pickle.
        DataError: no table, truncated, damaged, a header that cannot be used, or shards of different columns.
    """
    folder = (root / name).is_dir()
    if folder:
        paths = [inside(root, path.relative_to(root)) for path in shards(inside(root, name, folder=True))]
    else:
        paths = [inside(root, name)]
    if not paths:
        raise DataError(f"{root / name} holds no CSV, Parquet or JSON files, or others beside them")
    for path in paths:
        refuse_pickle(path)
    check_size(sum(path.stat().st_size for path in paths), max_bytes, paths[0].parent.name if folder else name)
    parts, bad = [], []
    for path in paths:
        try:
            parts.append(_read(path, separator, max_bytes))
        except DataError as error:
            bad.append(str(error))
    if bad:
        more = f"; {len(bad)} of {len(paths)} shards cannot be read" if len(bad) > 1 else ""
        raise DataError("; ".join(bad[:10]) + more)
    first = parts[0]
    for part in parts[1:]:
        missing = [n for n in first.schema if n not in part.schema] + [n for n in part.schema if n not in first.schema]
        if missing:
            raise DataError(
                f"{first.path.name} and {part.path.name} are no shards of one table: column {missing[0]!r} is in one "
                "of them only; give a single file with --data"
            )
    schema = {n: _common([part.schema[n] for part in parts]) for n in first.schema}
    metadata: dict[str, str] = {}
    if isinstance(first.content, pq.ParquetFile):
        metadata = {k.decode(): v.decode() for k, v in (first.content.schema_arrow.metadata or {}).items()}
    return Table((root / name).resolve().name, schema, tuple(parts), metadata)


def _common(dtypes: list[pl.DataType]) -> pl.DataType:
    """The type of a column of shards, whose readers may have inferred whole numbers in one and floats in another."""
    if all(d == dtypes[0] for d in dtypes):
        return dtypes[0]
    return pl.Float64() if all(d.is_numeric() for d in dtypes) else pl.String()


def _read(path: Path, separator: str, max_bytes: int) -> _Part:
    kind = kind_of(path)
    if kind is None:
        raise DataError(
            f"{path.name} is neither Parquet (PAR1), nor JSON, nor UTF-8 CSV with a header row; unpack a .gz first"
        )
    if kind == "parquet":
        return _read_parquet(path, max_bytes)
    return _read_csv(path, separator) if kind == "csv" else _read_json(path)


def _read_parquet(path: Path, max_bytes: int) -> _Part:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
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
    except _READ_ERRORS as error:
        raise DataError(f"{path.name} is not a readable Parquet file: {error}") from None
    return _Part(path, meta.num_rows, dict(schema), file)


def _read_json(path: Path) -> _Part:
    lines = head(path, 64).lstrip().startswith((b"{", b"\xef\xbb\xbf{"))
    try:
        frame = (
            pl.read_ndjson(path, infer_schema_length=None) if lines else pl.read_json(path, infer_schema_length=None)
        )
    except (*_READ_ERRORS, RecursionError) as error:
        raise DataError(f"{path.name} cannot be read as JSON, one object a line: {_reason(error)}") from None
    return _Part(path, frame.height, dict(frame.schema), frame)


def _read_csv(path: Path, separator: str) -> _Part:
    separator, names, skip, quoted = _header(path, separator)
    _refuse_doubled(path, names)
    if all(_is_number(n) for n in names):
        raise DataError(f"{path.name} has no header row: its first line is {', '.join(names[:5])}, ...")
    content = io.BytesIO(_unpadded(path, separator)) if quoted else path
    try:
        frame = pl.read_csv(content, separator=separator, infer_schema_length=None, glob=False, skip_lines=skip)
    except _READ_ERRORS as error:
        why = _longer_row(path, separator, len(names), skip) or _reason(error)
        raise DataError(f"{path.name} cannot be read as CSV separated by {separator!r}: {why}") from None
    if frame.width != len(names):
        raise DataError(f"{path.name}: the header names {len(names)} columns, {frame.width} were read")
    frame.columns = names
    raw, texts = pl.col(pl.String), pl.col(pl.String).str.strip_chars(" ")
    blank = (texts == "") & (raw != "")  # a cell of nothing but blanks is empty; a quoted "" is a text
    frame = frame.with_columns(pl.when(blank).then(None).otherwise(texts).name.keep())
    return _Part(path, frame.height, dict(frame.schema), frame, decimal_comma=separator == ";")


def _reason(error: BaseException) -> str:
    """What a reader says, without its advice to programmers."""
    return str(error).strip().split("\n", 1)[0].rstrip(".")[:200]


def _longer_row(path: Path, separator: str, width: int, skip: int) -> str:
    """Which row has more cells than the header, or is no text; "" where none is found."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for number, row in enumerate(csv.reader(itertools.islice(stream, skip, None), delimiter=separator)):
                if len(row) > width:
                    return f"row {number} has {len(row)} cells, the header {width}"
    except UnicodeDecodeError as error:
        return f"byte {error.object[error.start]:#04x} is not UTF-8; save it as UTF-8"
    except csv.Error as error:
        return str(error)
    return ""


def _header(path: Path, separator: str) -> tuple[str, list[str], int, bool]:
    """Separator, names, lines above them (blank ones, and Excel's sep=), and whether quotes stand behind a blank (which
    no fast reader understands)."""
    start = head(path, _MAX_LINE + 1)
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not UTF-8 (byte {start[error.start]:#04x} at {error.start:,}); save it as UTF-8"
        ) from None
    lines = text.splitlines(keepends=True)
    skip = len(list(itertools.takewhile(lambda line: not line.strip(), lines)))
    body = "".join(lines[skip:])
    body, told = _told(body)
    if told:
        separator, skip = separator or told, skip + 1
    if "\n" not in body and "\r" in body.strip("\r"):
        raise DataError(
            f"{path.name}: its lines end in carriage returns alone, as old Macs wrote; save it with line feeds"
        )
    if len(start) > _MAX_LINE and "\n" not in body:
        raise DataError(f"{path.name}: the first line is longer than {_MAX_LINE:,} bytes; is it a table?")
    separator, names = _first_row(body, separator)
    return separator, names, skip, re.search(re.escape(separator) + ' +"', body) is not None


def _told(text: str) -> tuple[str, str]:
    """The text behind a first line that names the separator, as Excel writes and reads it ("sep=;"), and the
    separator; the text and "" where there is none."""
    found = re.match(rf"sep=([{''.join(SEPARATORS)}])\r?\n", text, re.IGNORECASE)
    return (text[found.end() :], found[1]) if found else (text, "")


def _first_row(text: str, separator: str) -> tuple[str, list[str]]:
    """The separator that makes most cells of the first row (the given one if any), and the cells."""

    def cells(mark: str) -> list[str]:
        try:
            found = next(csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True), [])
        except csv.Error:
            return []
        return [cell.strip(" ") for cell in found]

    found = {mark: cells(mark) for mark in ([separator] if separator else SEPARATORS)}
    best = max(found, key=lambda mark: len(found[mark]))
    return best, found[best]


def _unpadded(path: Path, separator: str) -> bytes:
    """The file without the blanks behind its separators."""
    out = io.StringIO(newline="")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            csv.writer(out, delimiter=separator).writerows(
                csv.reader(stream, delimiter=separator, skipinitialspace=True)
            )
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path.name} cannot be read as CSV separated by {separator!r}: {error}") from None
    return out.getvalue().encode()


def _refuse_doubled(path: Path, names: list[str]) -> None:
    doubled = sorted(n for n, count in Counter(names).items() if count > 1)
    if doubled:
        raise DataError(f"{path.name}: column {doubled[0]!r} appears {names.count(doubled[0])} times in the header")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
