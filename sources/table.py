"""Tables: one row an example, one column the label, the others features (CSV and Parquet).

    number, bool            -> one float32 column, standardised on the training split (bools stay 0/1)
    text, categorical       -> one-hot columns "name=level", one a level *of the training split*, sorted;
                               a level that training never saw is all zeros
    date, list, struct, ... -> refused by name: list it in ``drop`` or turn it into numbers

``label``, ``owner``, ``id`` and ``split`` name columns that are not features. Missing, NaN and infinite values are refused by
example id. Ids without an ``id`` column come from the feature columns, label, owner and given split of the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from contracts.errors import ConfigError, DataError
from contracts.methods import SourceSpec, source
from contracts.params import param
from sources.assemble import assemble, check_ids, check_splits
from sources.example_set import ExampleSet
from sources.files import MAX_BYTES, FileConfig, check_size, inside, manifest, root_folder
from sources.identity import Content
from sources.interactions import is_interactions
from sources.labels import TASKS, encode_labels
from sources.splits import stratified_split
from sources.table_files import SEPARATORS, UNNAMED, Table, kind_of, read_table

_LABELS = ("label", "target", "class", "y")
_MAX_LEVELS = 100
_IDS = ("example_id", "id")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableConfig(FileConfig):
    file: str = param(doc="name of the CSV or Parquet file inside the root")
    label: str = param(doc="column of the label")
    owner: str = param("", doc="column of whose data a row is")
    id: str = param("", doc="column of whole, unique ids; made from the row when empty")
    split: str = param("", doc="column of 'train' and 'test'; drawn when empty")
    drop: tuple[str, ...] = param((), doc="columns that are not used")
    categorical: tuple[str, ...] = param((), doc="number columns whose values are names of categories")
    task: str = param("auto", choices=TASKS, doc="auto: floats of many values are targets")
    class_names: tuple[str, ...] = param((), doc="names of the classes in order; the sorted levels when empty")
    separator: str = param("", choices=("", *SEPARATORS), doc="of a CSV; found in the header when empty")
    max_levels: int = param(_MAX_LEVELS, ge=2, le=10_000, doc="most levels of a categorical column")

    def check(self) -> None:
        roles = [*filter(None, (self.label, self.owner, self.id, self.split)), *self.drop]
        doubled = sorted({n for n in roles if roles.count(n) > 1})
        if doubled:
            raise ConfigError(f"TableConfig: column {doubled[0]!r} has two roles among label, owner, id, split, drop")


def _detects(path: Path) -> bool:
    return path.is_file() and kind_of(path) is not None and not is_interactions(path)


def _from_path(path: Path, label: str | None, owner: str | None) -> dict[str, object]:
    table = read_table(path, separator="", max_bytes=MAX_BYTES)
    names = ", ".join(map(repr, table.schema))
    if label is None:
        guesses = [n for n in table.schema if n.lower() in _LABELS]
        if len(guesses) != 1:
            found = f"{', '.join(guesses)} could all be" if guesses else "none is called label, target, class or y"
            raise ConfigError(
                f"which column is the label? {found}; pass --label, or --user and --item where a row is something that a user "
                f"did with an item; columns are: {names}"
            )
        label = guesses[0]
    for option, name in (("--label", label), ("--owner", owner)):
        if name is not None and name not in table.schema:
            raise ConfigError(f"{option} {name!r} is not a column of {path.name}; columns are: {names}")
    config: dict[str, object] = {"root": str(path.parent), "file": path.name, "label": label}
    if owner is not None:
        config["owner"] = owner
    rest = [n for n in table.schema if n not in (label, owner)]
    for role, usable in (("id", _can_be_id), ("split", _can_be_split)):
        found = next((n for n in rest if usable(table, n)), None)
        if found is not None:
            config[role] = found
            rest.remove(found)
    drop = [n for n in rest if n in UNNAMED or not _can_be_feature(table, n)]
    return config | ({"drop": drop} if drop else {})


@source(
    SourceSpec(
        name="table",
        version=2,
        doc="CSV (UTF-8, header row) or Parquet: number and category columns, a label column (--label), optionally an owner "
        "column (--owner).",
        source="RFC 4180; Apache Parquet",
        config=TableConfig,
        detects=_detects,
        from_path=_from_path,
    )
)
def table(*, config: TableConfig, seed: int) -> ExampleSet:
    """The rows of one table as feature vectors.

    Raises:
        UnsafeFile: outside the root, or more than ``max_bytes`` once encoded.
        DataError: columns that are missing or cannot be features, missing values (by example id), too many levels.
    """
    root = root_folder(config.root)
    path = inside(root, config.file)
    data = read_table(path, separator=config.separator, max_bytes=config.max_bytes)
    if not data.num_rows:
        raise DataError(f"{path.name} has no rows")
    rows = np.arange(data.num_rows, dtype=np.int64)
    ids = None
    if config.id:
        _refuse_missing(data.column(config.id), rows, path, what="row numbers")
        ids = check_ids(data.column(config.id).to_numpy())
    named = rows if ids is None else ids  # what a message calls the examples
    labels = data.column(config.label)
    _refuse_missing(labels, named, path)
    task, y, class_names = encode_labels(
        _values(labels, config), named, task=config.task, class_names=config.class_names
    )
    own = check_splits(_texts(data.column(config.split), config), named) if config.split else None
    owner = _texts(data.column(config.owner), config) if config.owner else None
    columns = _columns(data, config)
    content = _content(data, columns, config, named)
    if ids is None:
        label = np.asarray(class_names)[y] if class_names else y
        ids = content.ids(label, *(c for c in (owner, own) if c is not None))
    split = own
    if split is None:  # the levels are those of the training split, so it is needed now; assemble draws the same one
        split = stratified_split(y, ids, task=task, test_fraction=config.test_fraction, seed=seed)
    x, features, one_hot = _features(data, columns, content, config, split == "train")
    return assemble(
        x,
        y,
        name=config.name or path.stem,
        task=task,
        class_names=class_names,
        seed=seed,
        test_fraction=config.test_fraction,
        example_id=ids,
        split=own,
        owner=owner,
        content=content,
        keep_columns=one_hot,
        feature_names=features,
        provenance={"source": "table", "files": manifest(root, [path]), "licence": config.licence},
    )


def _columns(data: Table, config: TableConfig) -> dict[str, bool]:
    """The feature columns in order, and whether each holds categories."""
    used = {*filter(None, (config.label, config.owner, config.id, config.split)), *config.drop}
    absent = [n for n in (*config.drop, *config.categorical) if n not in data.schema]
    if absent:
        raise DataError(
            f"{data.path.name} has no column {absent[0]!r}; columns are: {', '.join(map(repr, data.schema))}"
        )
    columns: dict[str, bool] = {}
    for name, dtype in data.schema.items():
        if name in used:
            continue
        if name in UNNAMED:
            raise DataError(
                f"{data.path.name}: column {name!r} looks like a saved row index; list it in 'drop' or as 'id'"
            )
        columns[name] = _is_text(dtype) or name in config.categorical
        if not columns[name] and not (dtype.is_numeric() or dtype == pl.Boolean):
            raise DataError(
                f"{data.path.name}: column {name!r} is {dtype}, which is no number and no category; list it in 'drop'"
            )
    if not columns:
        raise DataError(f"{data.path.name} has no feature column besides {', '.join(n for n in used if n)}")
    return columns


def _content(data: Table, columns: dict[str, bool], config: TableConfig, named: np.ndarray) -> Content:
    """The feature columns as they are: a float32 matrix of the numbers, and the categories of each row as one text."""
    numbers = [name for name, is_category in columns.items() if not is_category]
    check_size(4 * len(numbers) * data.num_rows, config.max_bytes, f"{data.path.name}: numbers")
    values = np.empty((data.num_rows, len(numbers)), np.float32)
    for at, name in enumerate(numbers):
        series = data.column(name)
        _refuse_missing(series, named, data.path)
        with np.errstate(over="ignore"):  # becomes Inf, which validation refuses by id
            values[:, at] = series.cast(pl.Float64).to_numpy()
    texts = []
    for name in (n for n, is_category in columns.items() if is_category):
        _refuse_missing(data.column(name), named, data.path)
        texts.append(data.column(name).cast(pl.String))
    joined = pl.DataFrame(texts).select(pl.concat_str(pl.all(), separator="\0")).to_series() if texts else None
    return Content(values, joined)


def _features(
    data: Table, columns: dict[str, bool], content: Content, config: TableConfig, train: np.ndarray
) -> tuple[np.ndarray, list[str], list[int]]:
    """The float32 matrix, its column names, and which columns are 0/1. The matrix is allocated once, after its size was checked."""
    binary = [name for name in columns if data.schema[name] == pl.Boolean]
    if content.texts is None:
        return content.values, list(columns), [at for at, name in enumerate(columns) if name in binary]
    levels = {n: _levels(data, n, train, config.max_levels) for n, is_category in columns.items() if is_category}
    width = sum(len(levels.get(name, "1")) for name in columns)
    check_size(4 * width * data.num_rows, config.max_bytes, f"{data.path.name}: encoded features")
    x = np.zeros((data.num_rows, width), np.float32)
    names: list[str] = []
    one_hot: list[int] = []
    numbers = iter(content.values.T)
    for name, is_category in columns.items():
        at = len(names)
        if is_category:
            slot = data.column(name).cast(pl.String).cast(pl.Enum(levels[name]), strict=False).to_physical()
            seen = slot.is_not_null().to_numpy()  # null where training never saw the level
            x[np.flatnonzero(seen), at + slot.drop_nulls().to_numpy()] = 1.0
            names += [f"{name}={level}" for level in levels[name]]
            one_hot += range(at, len(names))
        else:
            x[:, at] = next(numbers)
            names.append(name)
            one_hot += [at] if name in binary else []
    return x, names, one_hot


def _levels(data: Table, name: str, train: np.ndarray, most: int) -> list[str]:
    levels = data.column(name).filter(pl.Series(train)).unique().cast(pl.String)
    if len(levels) > most:
        raise DataError(
            f"{data.path.name}: column {name!r} has {len(levels)} levels, more than max_levels = {most}; "
            "an identifier or free text belongs in 'drop'"
        )
    return sorted(levels.to_list())


def _refuse_missing(series: pl.Series, ids: np.ndarray, path: Path, what: str = "examples") -> None:
    missing = series.is_null()
    if series.dtype.is_float():
        missing = missing | series.is_nan()
    if missing.any():
        raise DataError(
            f"{path.name}: column {series.name!r} is missing (or NaN) in {int(missing.sum())} {what}",
            example_ids=ids[missing.to_numpy()],
        )


def _values(series: pl.Series, config: TableConfig) -> np.ndarray:
    """Label values as numpy numbers or str."""
    if series.dtype.is_numeric():
        return series.cast(pl.Float64).to_numpy() if series.dtype.is_decimal() else series.to_numpy()
    if series.dtype == pl.Boolean:
        return series.to_numpy().astype(bool)
    if not _is_text(series.dtype):
        raise DataError(f"label column {series.name!r} is {series.dtype}; labels are whole numbers, text or floats")
    return _texts(series, config)


def _texts(series: pl.Series, config: TableConfig) -> np.ndarray:
    """Values as numpy str, "" where missing. Every row takes the room of the longest, so that is checked first."""
    texts = series.cast(pl.String).fill_null("")
    check_size(4 * len(texts) * int(texts.str.len_chars().max() or 0), config.max_bytes, f"column {series.name!r}")
    return np.array(texts.to_list(), dtype=str)


def _is_text(dtype: pl.DataType) -> bool:
    return dtype in (pl.String, pl.Categorical, pl.Enum)


def _can_be_id(data: Table, name: str) -> bool:
    if name.lower() not in _IDS or not data.schema[name].is_integer():
        return False
    series = data.column(name)
    return not series.null_count() and series.n_unique() == len(series) and series.min() >= 0


def _can_be_split(data: Table, name: str) -> bool:
    if name.lower() != "split" or not _is_text(data.schema[name]):
        return False
    return set(_words(data.column(name))) == {"train", "test"}


def _words(series: pl.Series) -> Iterator[str]:
    return (str(v).lower() for v in series.unique().to_list())


def _can_be_feature(data: Table, name: str) -> bool:
    """Numbers, bools and text of few levels; identifiers, free text, dates and nested values are not."""
    dtype = data.schema[name]
    if _is_text(dtype):
        return data.column(name).n_unique() <= _MAX_LEVELS
    return dtype.is_numeric() or dtype == pl.Boolean
