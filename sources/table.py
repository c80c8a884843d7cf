"""Tables: one row an example, one column the label, the others features (CSV, Parquet, JSON lines, folders of shards).

Numbers, categories, text that is numbers, and lists of numbers become features (``sources.features``); dates, nested
values and free text do not: list them in ``drop`` or turn them into numbers.

``label``, ``owner``, ``id`` and ``split`` name columns that are not features. Missing, NaN and infinite values are
refused by row. Ids without an ``id`` column come from the feature columns, label, owner and given split of the row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from contracts.errors import ConfigError, DataError
from contracts.methods import Asked, Reading, SourceSpec, source
from contracts.params import param
from sources.assemble import assemble, check_ids, made_ids
from sources.columns import BesideConfig, as_column
from sources.example_set import ExampleSet
from sources.features import (
    IDS,
    MAX_LEVELS,
    another_role,
    content_of,
    encode,
    features_of,
    is_text,
    judged,
    refuse_missing,
    says_nothing,
    why_left_out,
)
from sources.files import MAX_BYTES, FileConfig, check_size, manifest, root_folder
from sources.given_splits import COLUMNS, VAL, read_splits, settle, split_of, without_splits
from sources.graph_tables import graph_tables
from sources.interactions import is_interactions
from sources.labels import TASKS, Labels, encode_labels
from sources.numbers import read_numbers
from sources.splits import stratified_split
from sources.table_files import SEPARATORS, Table, as_texts, is_tables, picture_column, read_table, shard_of
from sources.text_files import is_texts
from tasks.base import named

_LABELS = ("label", "target", "class", "y")


@dataclass(frozen=True, kw_only=True)  # no slots: it is joined with another configuration
class ColumnsConfig(BesideConfig, FileConfig):
    """Fields that name the columns of a table of examples."""

    file: str = param(doc="name of the CSV, Parquet or JSON file inside the root, or of a folder of such shards")
    label: str = param(doc="column of the label")
    owner: str = param("", doc="column of whose data a row is")
    id: str = param("", doc="column of whole, unique ids; made from the row when empty")
    split: str = param("", doc="column of 'train', 'test' and 'val'; the names of the shards, or drawn, when empty")
    val: str = param("auto", choices=VAL, doc="validation rows: auto leaves them out where there are test rows")
    drop: tuple[str, ...] = param((), doc="columns that are not used")
    task: str = param("auto", choices=TASKS, doc="auto: floats of many values are targets")
    class_names: tuple[str, ...] = param((), doc="names of the classes in order; the sorted levels when empty")

    def check(self) -> None:
        roles = Counter([*filter(None, (self.label, self.owner, self.id, self.split)), *self.drop])
        doubled = sorted(n for n, count in roles.items() if count > 1)
        if doubled:
            raise ConfigError(
                f"{type(self).__name__}: column {doubled[0]!r} has two roles among label, owner, id, split, drop"
            )
        kept = sorted({*self.beside().values()} & {self.label, self.split, *self.drop})
        if kept:
            raise ConfigError(
                f"{type(self).__name__}: column {kept[0]!r} is kept, and is the label, the split or dropped"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TableConfig(ColumnsConfig):
    categorical: tuple[str, ...] = param((), doc="number columns whose values are names of categories")
    separator: str = param("", choices=("", *SEPARATORS), doc="of a CSV; found in the header when empty")
    max_levels: int = param(MAX_LEVELS, ge=2, le=10_000, doc="most levels of a categorical column")


def _detects(path: Path) -> bool:
    others = is_interactions(path) or is_texts(path) or graph_tables(path) or picture_column(path) is not None
    return is_tables(path) and not others


def _from_path(path: Path, asked: Asked) -> Reading:
    data, config, notes = named_columns(path, asked)
    return with_drops(data, config, notes, drop=asked.drop)


def with_drops(data: Table, config: dict[str, object], notes: list[str], *, drop: Sequence[str]) -> Reading:
    """The fields that name columns, with those that are better left out, and why.

    Raises:
        DataError: no column is left to learn from; says why of each.
    """
    drop, left_out, same, used = list(drop), [], [], False
    for name in data.schema:
        if name in drop or name in (config.get(role) for role in ("label", "owner", "id", "split")):
            continue
        feature = judged(data, name)
        why = feature.why_not or why_left_out(data, feature)
        if why:
            drop.append(name)
            left_out.append(f"column {name!r} is left out: {why}")
            continue
        if says_nothing(data, feature):
            same.append(name)
            continue
        used = True
        if hint := another_role(data, feature, owned="owner" in config):
            left_out.append(hint)
    if same:
        named = f"{', '.join(map(repr, same[:5]))}{', ...' if len(same) > 5 else ''}"
        left_out.append(f"one value in all rows, of which nothing is learnt: {len(same)} of the columns ({named})")
    if not used and left_out and data.num_rows:
        raise DataError(
            f"{data.name} has no column to learn from: {'; '.join(left_out[:10])} (an embedding of a text is a list of "
            "numbers)"
        )
    return Reading(config | ({"drop": drop} if drop else {}), (*notes, *left_out))


def named_columns(path: Path, asked: Asked) -> tuple[Table, dict[str, object], list[str]]:
    """A user's table, the fields of its configuration that name columns, and notes for people about what was found by
    its name.

    Raises:
        ConfigError: the label is needed, a name is no column, or a column that is called id or split cannot be what it
            is called.
        DataError: the table cannot be read, or is one of several shards.
    """
    single = shard_of(path)
    if single:
        raise DataError(single)
    data = read_table(path.parent, path.name, max_bytes=MAX_BYTES)
    names = ", ".join(map(repr, list(data.schema)[:100])) + (", ..." if len(data.schema) > 100 else "")
    label, notes = asked.label, []
    if label is None:
        guesses = [n for n in data.schema if n.lower() in _LABELS]
        if len(guesses) != 1:
            found = f"{', '.join(guesses)} could all be" if guesses else "none is called label, target, class or y"
            raise ConfigError(
                f"which column is the label? {found}; pass --label, or --user and --item where a row is something that "
                f"a user did with an item; columns are: {names}"
            )
        label = guesses[0]
        notes.append(f"column {label!r} is the label, by its name (--label names another)")
    given = {"label": label, "owner": asked.owner, "id": asked.id, "split": asked.split}
    given = {option: name for option, name in given.items() if name is not None}
    for option, name in (*given.items(), *(("drop", name) for name in asked.drop)):
        if name not in data.schema:
            raise ConfigError(f"--{option} {name!r} is not a column of {path.name}; columns are: {names}")
    rest = [n for n in data.schema if n not in (*given.values(), *asked.drop)]
    if "id" not in given and (named := next((n for n in rest if n.lower() in IDS), None)) and _is_id(data, named):
        given["id"] = named
        notes.append(f"column {named!r} holds the example ids, by its name")
    if "split" not in given and (named := next((n for n in rest if n.lower() in COLUMNS), None)):
        if _is_split(data, named):
            given["split"] = named
            notes.append(f"column {named!r} says what is for training and testing, by its name")
    elif "split" not in given and data.splits() is not None:
        notes.append("the names of the files say what is for training and testing")
    config: dict[str, object] = {"root": str(path.parent), "file": path.name, **given}
    config |= {option: value for option in ("task", "val") if (value := getattr(asked, option)) is not None}
    if classes := data.class_names(label):
        config["class_names"] = classes
    return data, config, notes


def _is_id(data: Table, name: str) -> bool:
    """True for a column that can be the ids; False for one of text, which is then left out with its reason.

    Raises:
        ConfigError: whatever it is, it is not one that may be guessed: numbers that repeat or are not whole.
    """
    series = data.column(name)
    if not series.dtype.is_numeric():
        return False
    try:
        refuse_missing(series, data, role="id")
        check_ids(series.to_numpy())
    except DataError as error:
        raise ConfigError(
            f"column {name!r} is called an id and cannot be one: {error}; pass --owner {name} if it says whose row it "
            f"is, --drop {name} to leave it out, or --id with another column"
        ) from None
    return True


def _is_split(data: Table, name: str) -> bool:
    """True for a column of splits; False for another thing that is called set, subset or partition.

    Raises:
        ConfigError: it is called split and holds no words that say which rows are for training.
    """
    words = data.column(name).unique().cast(pl.String).drop_nulls().sort().to_list()
    if is_text(data.schema[name]) and words and all(map(split_of, words)):
        return True
    if name.lower() != "split":
        return False
    raise ConfigError(
        f"column {name!r} holds {', '.join(words[:5])}: which of them is training cannot be known; write train, test "
        f"or val in its place, or pass --drop {name}, and a test split is drawn"
    )


@source(
    SourceSpec(
        name="table",
        version=2,
        doc="CSV (UTF-8, header row), Parquet or JSON lines, or a folder of such shards: number, category and "
        "embedding columns, a label column (--label), optionally an owner column (--owner).",
        source="RFC 4180; Apache Parquet; JSON Lines",
        config=TableConfig,
        detects=_detects,
        from_path=_from_path,
    )
)
def table(*, config: TableConfig, seed: int) -> ExampleSet:
    """The rows of one table as feature vectors.

    Raises:
        UnsafeFile: outside the root, or more than ``max_bytes`` once encoded.
        DataError: columns that are missing or cannot be features, missing values (by row), too many levels.
    """
    root = root_folder(config.root)
    data = read_table(root, config.file, separator=config.separator, max_bytes=config.max_bytes)
    data, own, notes = given_split(data, config)
    origin = data.origin()
    absent = [n for n in (*config.drop, *config.categorical, *config.beside().values()) if n not in data.schema]
    if absent:
        raise DataError(f"{data.name} has no column {absent[0]!r}; columns are: {', '.join(map(repr, data.schema))}")
    task, y, class_names, mapped = column_labels(data, config, origin)
    owner = column_texts(data, config.owner, max_bytes=config.max_bytes) if config.owner else None
    roles = filter(None, (config.label, config.owner, config.id, config.split))
    columns = beside_columns(data, config)
    kept = config.beside().values()
    features = features_of(data, skip={*roles, *config.drop, *kept}, categorical=config.categorical)
    content = content_of(data, features, max_bytes=config.max_bytes)
    if config.id:
        ids = column_ids(data, config.id)
        notes += ["ids are written as floats and read as whole numbers"] if data.schema[config.id].is_float() else []
    else:
        ids = made_ids(content, y, class_names, owner, own, *(columns[name] for name in sorted(columns)))
    split = own
    if split is None:  # the levels are those of the training split, so it is needed now; assemble draws the same one
        split = stratified_split(named(task).strata(None, y, ids), ids, test_fraction=config.test_fraction, seed=seed)
    x, names, one_hot = encode(
        data,
        features,
        content,
        train=split == "train",
        max_levels=config.max_levels,
        max_bytes=config.max_bytes,
    )
    return assemble(
        x,
        y,
        name=config.name or Path(data.name).stem,
        task=task,
        class_names=class_names,
        seed=seed,
        test_fraction=config.test_fraction,
        example_id=ids,
        split=own,
        owner=owner,
        origin=origin,
        content=content,
        keep_columns=one_hot,
        feature_names=names,
        columns=columns,
        provenance={
            "source": "table",
            "files": manifest(root, data.paths),
            "licence": config.licence,
            "notes": [*notes, *mapped, *(f"column {f.name!r}: {f.how}" for f in features if f.how)],
        },
    )


class _SplitFields(Protocol):
    """What a configuration says of splits."""

    @property
    def split(self) -> str: ...
    @property
    def val(self) -> str: ...
    @property
    def max_bytes(self) -> int: ...


def given_split(data: Table, config: _SplitFields) -> tuple[Table, np.ndarray | None, list[str]]:
    """The rows that take part; their splits by the column, else by the names of the shards (None: to be drawn); notes
    for people.

    Raises:
        DataError: no rows, or words that are no splits.
    """
    if not data.num_rows:
        raise DataError(f"{data.name} has no rows")
    if config.split:
        series = data.column(config.split)
        text = is_text(series.dtype)
        values = column_texts(data, config.split, max_bytes=config.max_bytes) if text else series.to_numpy()
        words: np.ndarray | None = read_splits(values, data.origin(), name=config.split)
    else:
        words = data.splits()
    if words is None:
        return data, None, without_splits(config.val)
    kept, split, notes = settle(words, val=config.val)
    return (data if kept.all() else data.take(kept)), split, notes


def beside_columns(data: Table, config: BesideConfig) -> dict[str, np.ndarray]:
    """What the configuration keeps beside the examples, by the names that ``ExampleSet.columns`` has them under.

    Raises:
        DataError: columns that are missing, or hold neither whole numbers nor text, or hold nothing in some rows.
    """
    found, origin = {}, data.origin()
    for name, column in config.beside().items():
        series = data.column(column)
        refuse_missing(series, data, role=name)
        if not (series.dtype.is_numeric() or series.dtype == pl.Boolean or is_text(series.dtype)):
            raise DataError(
                f"{data.name}: column {column!r} is {series.dtype}; whole numbers and text are kept as {name!r}"
            )
        if is_text(series.dtype):
            values = np.array(series.cast(pl.String).to_list(), dtype=str)
        else:
            values = (series.cast(pl.Float64) if series.dtype.is_decimal() else series).to_numpy()
        found[name] = as_column(values, origin, name=column)
    return found


def column_ids(data: Table, name: str) -> np.ndarray:
    """(N,) int64 ids of a column.

    Raises:
        DataError: missing, not whole, or used twice.
    """
    series = data.column(name)
    refuse_missing(series, data, role="id")
    return check_ids(series.to_numpy())


def column_labels(data: Table, config: ColumnsConfig, origin: np.ndarray) -> Labels:
    """The label column, encoded.

    Raises:
        DataError: missing or unusable labels; see ``encode_labels``.
    """
    series, how = data.column(config.label), ""
    refuse_missing(series, data, role="label")
    if series.dtype == pl.String and not config.class_names:
        numbers = read_numbers(series, prefer_comma=data.decimal_comma)
        if numbers is not None:
            series, how = numbers
            refuse_missing(series, data, role="label")
    if series.dtype.is_numeric():
        values = series.cast(pl.Float64).to_numpy() if series.dtype.is_decimal() else series.to_numpy()
    elif series.dtype == pl.Boolean:
        values = series.to_numpy().astype(bool)
    elif is_text(series.dtype):
        values = column_texts(data, config.label, max_bytes=config.max_bytes)
    else:
        raise DataError(f"label column {config.label!r} is {series.dtype}; labels are whole numbers, text or floats")
    found = encode_labels(values, origin, task=config.task, class_names=config.class_names)
    return found._replace(notes=(*([f"label {config.label!r}: {how}"] if how else []), *found.notes))


def column_texts(data: Table, name: str, *, max_bytes: int) -> np.ndarray:
    """Values as numpy str, "" where missing. Every row takes the memory of the longest, so that is checked first.

    Raises:
        UnsafeFile: they would take more than ``max_bytes``.
    """
    texts = as_texts(data.column(name)).fill_null("")
    check_size(4 * len(texts) * int(texts.str.len_chars().max() or 0), max_bytes, f"column {name!r}")
    return np.array(texts.to_list(), dtype=str)
