"""Columns of a table as features: which can be one, why the others cannot, and the matrix of those that do.

number, bool            one float32 column
text that is numbers    the same; see ``sources.numbers``
text, categorical       one-hot columns "name=level", one a level of the training split, sorted; an unseen level is all
                        zeros
list of k numbers       k columns "name[0]" ... "name[k-1]"
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from contracts.errors import DataError
from sources.files import check_size
from sources.identity import Content
from sources.numbers import read_numbers
from sources.table_files import UNNAMED, Table

IDS = ("example_id", "id")
MAX_LEVELS = 100
_FEW_LEVELS = 20
_DATE = r"^\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\d{1,2}:\d{2}.*)?$|^\d{1,2}:\d{2}(:\d{2})?$"
_LIKE_AN_OWNER = re.compile(
    r"^(owner|user|person|patient|customer|client|subject|author|member|employee|student|e?-?mail)([ "
    r"_-]?(id|name|nr|no))?$",
    re.IGNORECASE,
)
_LIKE_AN_ID = re.compile(r"(^|_|-| )(id|idx|index|nr|no|key)$|Id$|ID$", re.IGNORECASE)


class Feature(NamedTuple):
    """How a column is read, or why it is no feature; ``how`` is for people, where text is read as numbers."""

    name: str
    kind: Literal["numbers", "levels", "list"] = "numbers"
    width: int = 1
    how: str = ""
    why_not: str = ""


def judged(data: Table, name: str, *, categorical: bool = False) -> Feature:
    """The column as a feature; its values are looked at where the type alone does not tell."""
    dtype = data.schema[name]
    if name in UNNAMED:
        return Feature(name, why_not="it looks like a saved row index")
    if not categorical and (dtype.is_numeric() or dtype == pl.Boolean):
        return Feature(name)
    nested = dtype in (pl.List, pl.Array)
    if dtype.is_temporal():
        return Feature(name, why_not="it is dates or times; turn them into numbers")
    if not (nested or categorical or is_text(dtype) or dtype == pl.Null):
        return Feature(name, why_not=f"it is {dtype}, which is no number, no category and no list of numbers")
    series = data.column(name)
    if series.null_count() == len(series):
        return Feature(name, why_not="it is empty")
    if nested:
        return _list(name, series)
    if dtype == pl.String and not categorical:
        numbers = read_numbers(series, prefer_comma=data.decimal_comma)
        if numbers is not None:
            return Feature(name, how=numbers.how)
    if name.lower() in IDS:
        return Feature(name, why_not="it is called like an id and holds text; example ids are whole numbers")
    return Feature(name, "levels")


def why_left_out(data: Table, feature: Feature) -> str:
    """Why a column is better left out: empty, or text of too many different values, or of another in nearly every row;
    else ""."""
    if feature.kind == "list":
        return ""
    series = data.column(feature.name)
    if feature.kind == "numbers":
        return "it is empty" if series.dtype.is_float() and series.fill_nan(None).null_count() == len(series) else ""
    num = series.n_unique()
    if num <= MAX_LEVELS and (num <= _FEW_LEVELS or 2 * num <= len(series)):
        return ""
    texts = series.cast(pl.String).drop_nulls()
    if texts.str.contains(_DATE).all():
        return f"it is dates or times written as text ({texts[0]!r}); turn them into numbers"
    if num > MAX_LEVELS:
        return f"it is text of {num:,} different values, more than {MAX_LEVELS} (names, or free text)"
    return f"it is text that differs in nearly every row ({num} values in {len(series)} rows: names, or free text)"


def says_nothing(data: Table, feature: Feature) -> bool:
    """Whether the column holds one value in all of several rows: nothing is learnt from it."""
    series = data.column(feature.name)
    return feature.kind != "list" and len(series) > 1 and bool((series == series[0]).all())


def another_role(data: Table, feature: Feature, *, owned: bool) -> str:
    """What a person should know of a column that is read as a feature and may be none, by its name and values; else "".

    Args:
        owned: the owner is known.
    """
    name = feature.name
    if not owned and _LIKE_AN_OWNER.match(name):
        return f"column {name!r} is read as a feature: --owner {name} if it says whose row it is"
    integers = _LIKE_AN_ID.search(name) and data.schema[name].is_integer() and data.num_rows > 1
    if integers and data.column(name).n_unique() == data.num_rows:
        other = f"--id {name} or --drop {name} if it names rows"
        return f"column {name!r} is read as a feature, another number in every row: {other}"
    return ""


def _list(name: str, series: pl.Series) -> Feature:
    inner = series.dtype.inner  # type: ignore[attr-defined]
    if not inner.is_numeric():
        return Feature(name, why_not=f"it is {series.dtype}, which is no list of numbers")
    sizes = series.list.len() if series.dtype == pl.List else pl.Series([series.dtype.size])  # type: ignore[attr-defined]
    if sizes.drop_nulls().n_unique() != 1 or not sizes.max():
        return Feature(
            name, why_not=f"its lists have {sizes.min()} to {sizes.max()} numbers; an embedding has as many in each row"
        )
    return Feature(name, "list", width=int(sizes.max()))  # type: ignore[arg-type]


def features_of(data: Table, *, skip: Collection[str], categorical: Collection[str]) -> list[Feature]:
    """The feature columns, in order.

    Args:
        skip: columns that are no features.
        categorical: number columns whose values are names.

    Raises:
        DataError: a column that cannot be one, or none at all.
    """
    features = [judged(data, name, categorical=name in categorical) for name in data.schema if name not in skip]
    bad = next((feature for feature in features if feature.why_not), None)
    if bad is not None:
        raise DataError(f"{data.name}: column {bad.name!r} cannot be used: {bad.why_not}; list it in 'drop'")
    if not features:
        raise DataError(
            f"{data.name} has no feature column besides {', '.join(map(repr, skip))}: numbers, categories and lists of "
            "numbers are read; free text and dates are not (an embedding of a text is a list of numbers)"
        )
    return features


def content_of(data: Table, features: Sequence[Feature], *, max_bytes: int) -> Content:
    """The columns as they are: a float32 matrix of the numbers, and the categories of each row as one text.

    Raises:
        UnsafeFile: the matrix would take more than ``max_bytes``.
        DataError: missing values.
    """
    width = sum(feature.width for feature in features if feature.kind != "levels")
    check_size(4 * width * data.num_rows, max_bytes, f"{data.name}: numbers")
    values = np.empty((data.num_rows, width), np.float32)
    texts = []
    at = 0
    for feature in features:
        series = data.column(feature.name)
        if feature.kind == "numbers" and series.dtype == pl.String:
            numbers = read_numbers(series, prefer_comma=data.decimal_comma)
            assert numbers is not None, "it was judged by the same values"
            series = numbers.values
        refuse_missing(series, data)
        if feature.kind == "levels":
            texts.append(series.cast(pl.String))
            continue
        flat = series.explode(empty_as_null=False) if feature.kind == "list" else series
        with np.errstate(over="ignore"):  # becomes Inf, which is refused
            values[:, at : at + feature.width] = flat.cast(pl.Float64).to_numpy().reshape(data.num_rows, feature.width)
        _refuse_infinite(values[:, at : at + feature.width], data, name=feature.name)
        at += feature.width
    joined = pl.DataFrame(texts).select(pl.concat_str(pl.all(), separator="\0")).to_series() if texts else None
    return Content(values, joined)


def encode(
    data: Table,
    features: Sequence[Feature],
    content: Content,
    *,
    train: np.ndarray,
    max_levels: int,
    max_bytes: int,
) -> tuple[np.ndarray, list[str], list[int]]:
    """The float32 matrix (N, D), the names of its columns, and which of them are 0/1.

    The matrix is allocated once, after its size was checked; it is that of ``content`` where there are no categories.

    Args:
        train: (N,) bool, the rows whose levels count.
        max_levels: most levels of a column.
        max_bytes: largest matrix.

    Raises:
        UnsafeFile: the matrix would be larger.
        DataError: too many levels.
    """
    levels = {f.name: _levels(data, f.name, train, max_levels) for f in features if f.kind == "levels"}
    width = sum(len(levels[f.name]) if f.kind == "levels" else f.width for f in features)
    check_size(4 * width * data.num_rows, max_bytes, f"{data.name}: encoded features")
    assert isinstance(content.values, np.ndarray)
    x = np.zeros((data.num_rows, width), np.float32) if levels else content.values
    names: list[str] = []
    binary: list[int] = []
    start = 0
    for feature in features:
        at = len(names)
        if feature.kind == "levels":
            own = levels[feature.name]
            slot = data.column(feature.name).cast(pl.String).cast(pl.Enum(own), strict=False).to_physical()
            seen = slot.is_not_null().to_numpy()  # null where training never saw the level
            x[np.flatnonzero(seen), at + slot.drop_nulls().to_numpy()] = 1.0
            names += [f"{feature.name}={level}" for level in own]
            binary += range(at, len(names))
            continue
        if levels:
            x[:, at : at + feature.width] = content.values[:, start : start + feature.width]
        start += feature.width
        several = [f"{feature.name}[{i}]" for i in range(feature.width)]
        names += several if feature.kind == "list" else [feature.name]
        binary += [at] if data.schema[feature.name] == pl.Boolean else []
    return x, names, binary


def _levels(data: Table, name: str, train: np.ndarray, most: int) -> list[str]:
    levels = data.column(name).filter(pl.Series(train)).unique().cast(pl.String)
    if len(levels) > most:
        raise DataError(
            f"{data.name}: column {name!r} has {len(levels)} levels, more than max_levels = {most}; "
            "an identifier or free text belongs in 'drop'"
        )
    return sorted(levels.to_list())


def refuse_missing(series: pl.Series, data: Table, *, role: str = "") -> None:
    """Refuse a column of ``data`` with missing or NaN values.

    Args:
        role: what the column is for; "" for a feature, which could be left out.

    Raises:
        DataError: names the rows.
    """
    missing = series.is_null()
    if series.dtype.is_float():
        missing = missing | series.is_nan()
    if missing.any():
        where = data.origin()[missing.to_numpy()].tolist()
        advice = "fill them in or take the rows out"
        if not role:
            advice = "fill them in, take the rows out, or leave the column out (--drop, or 'drop' in the plan)"
        raise DataError(
            f"{data.name}: column {series.name!r} is missing (or NaN) in {len(where)} rows: {advice}",
            where=where,
        )


def _refuse_infinite(values: np.ndarray, data: Table, *, name: str) -> None:
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        where = data.origin()[bad].tolist()
        raise DataError(
            f"{data.name}: column {name!r} is NaN, infinite or larger than float32 holds in {len(where)} rows: correct "
            "them, take the rows out, or leave the column out (--drop, or 'drop' in the plan)",
            where=where,
        )


def is_text(dtype: pl.DataType) -> bool:
    """True for what polars reads text as."""
    return dtype in (pl.String, pl.Categorical, pl.Enum)
