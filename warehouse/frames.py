"""A frame against its declaration: types, nulls, ranges, choices, keys, and a digest that no row order changes.

The digest of a frame of R rows is SHA-256 over a header (column names and types, R) followed by every column in the
order of the spec, rows sorted by key: bit-packed validity, then little-endian int64 / IEEE float64 / microseconds, or
the lengths and UTF-8 bytes of text. It does not depend on the version of polars, unlike ``DataFrame.hash_rows``.

Not a data check in the sense of Great Expectations (``warehouse.expectations``): this gate runs before every write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from contracts.digests import canonical_json
from contracts.errors import DataError
from contracts.tables import COMMON, Column, TableSpec

POLARS: dict[str, pl.DataType] = {
    "int64": pl.Int64(),
    "float64": pl.Float64(),
    "bool": pl.Boolean(),
    "str": pl.String(),
    "timestamp": pl.Datetime("us", "UTC"),
    "json": pl.String(),
    "floats": pl.List(pl.Float64()),
}
_UTC = ("UTC", "Etc/UTC")


def empty(spec: TableSpec) -> pl.DataFrame:
    """No rows of the spec's own columns: what a method stores that does not apply."""
    return pl.DataFrame(schema={c.name: POLARS[c.dtype] for c in spec.columns})


def checked(spec: TableSpec, frame: pl.DataFrame, partition: Mapping[str, Any]) -> pl.DataFrame:
    """``frame`` with exactly the spec's columns, in its order and types, sorted by key.

    Integers and floats are widened when nothing is lost; a partition column may be missing and is filled.

    Raises:
        DataError: naming the columns, what is allowed, and (at most ten of) the example ids concerned.
    """
    where = f"table {spec.full_name}"
    if set(partition) != set(spec.partition):
        raise DataError(f"{where} is partitioned by ({', '.join(spec.partition)}), given ({', '.join(partition)})")
    _check_names(spec, frame, partition, where)
    for name, value in partition.items():
        if name not in frame.columns:
            frame = frame.with_columns(pl.lit(value, dtype=POLARS[spec.column(name).dtype]).alias(name))
    frame = pl.DataFrame([_typed(frame[c.name], c, where) for c in spec.columns])
    for column in spec.columns:
        for bad, allowed in _breaches(frame[column.name], column, partition):
            if bad.any():
                _refuse(f"{where}: {int(bad.sum())} values of {column.name} {allowed}", spec, frame.filter(bad))
    if frame.height < spec.min_rows:
        raise DataError(f"{where} needs at least {spec.min_rows} rows, given {frame.height}")
    return _unique(spec, by_key(spec, frame), where)


def by_key(spec: TableSpec, frame: pl.DataFrame) -> pl.DataFrame:
    """Rows sorted by the key, the partition's constants left out."""
    key = [k for k in spec.key if k not in spec.partition]
    return frame.sort(key, nulls_last=True) if key and frame.height > 1 else frame


def digest_of(frame: pl.DataFrame, columns: Sequence[Column]) -> str:
    """SHA-256 of ``columns`` of a frame whose rows are sorted by key."""
    sha = hashlib.sha256(canonical_json([[[c.name, c.dtype] for c in columns], frame.height]).encode())
    for column in columns:
        series = frame[column.name].rechunk()
        sha.update(np.packbits(series.is_not_null().to_numpy()).tobytes() if series.null_count() else b"all")
        for part in _buffers(series):
            sha.update(np.ascontiguousarray(part).view(np.uint8).data)
    return sha.hexdigest()


def content_columns(spec: TableSpec) -> list[Column]:
    """What a frame says: all columns but the partition's (constants that the partition already names) and the volatile
    ones."""
    return [c for c in spec.columns if not c.volatile and c.name not in spec.partition]


def _buffers(series: pl.Series) -> list[np.ndarray[Any, Any]]:
    """Lengths where there are any, and values; 0 or no text where there is none."""
    if series.dtype == pl.String:
        text = _filled(series, "").to_arrow(compat_level=pl.CompatLevel.oldest())
        _, offsets, data = text.buffers()
        if not len(text) or data is None:
            return [np.zeros(len(text), np.int64)]
        bounds = np.frombuffer(offsets, dtype=np.int64)[text.offset : text.offset + len(text) + 1]
        return [np.diff(bounds), np.frombuffer(data, dtype=np.uint8)[bounds[0] : bounds[-1]]]
    if series.dtype == pl.List:
        return [
            series.list.len().fill_null(0).cast(pl.Int64).to_numpy(),
            *_buffers(series.explode(empty_as_null=False, keep_nulls=False)),
        ]
    if series.dtype == pl.Boolean:
        return [_filled(series, False).to_numpy().astype(np.uint8)]
    if isinstance(series.dtype, pl.Datetime):
        series = series.to_physical()
    values = _filled(series, 0).to_numpy()
    return [values.astype(values.dtype.newbyteorder("<"), copy=False)]


def _filled(series: pl.Series, value: str | float) -> pl.Series:
    # asked first: an operation on a short column takes longer than all that is done with it
    return series.fill_null(value) if series.null_count() else series


def _check_names(spec: TableSpec, frame: pl.DataFrame, partition: Mapping[str, Any], where: str) -> None:
    declared = [c.name for c in spec.columns]
    missing = [n for n in declared if n not in frame.columns and n not in partition]
    unknown = [n for n in frame.columns if n not in declared]
    if missing or unknown:
        added = [c.name for c in COMMON if c.name in unknown]
        raise DataError(
            f"{where}: "
            + "; ".join(
                filter(
                    None,
                    [
                        f"missing column {', '.join(missing)}" if missing else "",
                        f"unknown column {', '.join(unknown)}" if unknown else "",
                        f"({', '.join(added)} is added by the warehouse)" if added else "",
                        f"declared: {', '.join(declared)}",
                    ],
                )
            )
        )


def _typed(series: pl.Series, column: Column, where: str) -> pl.Series:
    wanted = POLARS[column.dtype]
    found = series.dtype
    if found == wanted:
        return series
    widening = (
        found == pl.Null
        or (column.dtype in ("int64", "float64") and found.is_integer())
        or (column.dtype == "float64" and found == pl.Float32)
        or (
            column.dtype == "floats"
            and isinstance(found, pl.List | pl.Array)
            and found.inner in (pl.Float32, pl.Float64)
        )
        or (column.dtype in ("str", "json") and found in (pl.Categorical, pl.Enum))
        or (column.dtype == "timestamp" and isinstance(found, pl.Datetime) and found.time_zone in _UTC)
    )
    if widening:
        cast = series.cast(wanted, strict=False)
        lost = (cast.is_null() != series.is_null()).any() or (
            (found.is_integer() or isinstance(found, pl.Datetime)) and not cast.cast(found).equals(series)
        )
        if not lost:
            return cast
    raise DataError(f"{where}: column {column.name} is {found}, declared {column.dtype} ({wanted})")


def _breaches(series: pl.Series, column: Column, partition: Mapping[str, Any]) -> list[tuple[pl.Series, str]]:
    """(mask of bad rows, what is allowed) for every rule of a column; nulls are judged only by the first."""
    rules: list[tuple[pl.Series, str]] = []
    if not column.nullable:
        rules.append((series.is_null(), "are null, which is not allowed"))
    present = series.is_not_null()
    if column.dtype == "float64":
        rules.append((~series.is_finite() & present, "are NaN or infinite"))
    if column.dtype == "floats":
        finite = series.list.eval(pl.element().is_finite().fill_null(False)).list.all()
        rules.append((~finite & present, "hold NaN, infinite or missing numbers"))
    unit = f" {column.unit}" if column.unit else ""
    if column.low is not None:
        rules.append(((series < column.low) & present, f"are below {column.low:g}{unit}"))
    if column.high is not None:
        rules.append(((series > column.high) & present, f"are above {column.high:g}{unit}"))
    if column.choices:
        rules.append((~series.is_in(list(column.choices)) & present, f"are not one of {', '.join(column.choices)}"))
    if column.name in partition:
        rules.append(
            ((series != partition[column.name]) & present, f"differ from the partition {partition[column.name]!r}")
        )
    if column.dtype == "json":
        rules.append((~pl.Series([_is_json(v) for v in series], dtype=pl.Boolean), "are not JSON text"))
    return [(bad.fill_null(False), allowed) for bad, allowed in rules]


def _is_json(text: str | None) -> bool:
    """Strict JSON: no NaN, not nested deeper than Python reads."""
    if text is None:
        return True
    try:
        json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return False
    return True


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _unique(spec: TableSpec, ordered: pl.DataFrame, where: str) -> pl.DataFrame:
    key = [k for k in spec.key if k not in spec.partition]
    if ordered.height < 2:
        return ordered
    same = pl.all_horizontal(pl.col(k).eq_missing(pl.col(k).shift(1)) for k in key) if key else pl.lit(True)
    repeated = ordered.select((same & (pl.int_range(pl.len()) > 0)).alias("repeated"))["repeated"]
    if repeated.any():
        _refuse(
            f"{where}: {int(repeated.sum())} rows repeat the key ({', '.join(spec.key)})",
            spec,
            ordered.filter(repeated),
        )
    return ordered


def _refuse(message: str, spec: TableSpec, bad: pl.DataFrame) -> None:
    if "example_id" in bad.columns:
        raise DataError(message, example_ids=bad["example_id"].drop_nulls().unique(maintain_order=True).to_list())
    shown = bad.select(spec.key).head(3).rows()
    raise DataError(f"{message}, e.g. {', '.join(spec.key)} = {shown}")
