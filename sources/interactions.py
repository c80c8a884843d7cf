"""Implicit feedback: a table of (user, item[, rating][, time]), one row an interaction (CSV and Parquet).

    x (N, 1) int64     index of the user among the users that are kept, in the order of their ids
    y (N,)   int64     index of the item; class_names are the items' ids as text
    owner (N,)         the user's id as text

1. With ``min_rating`` only rows rated that high are interactions; without it every row is one, whatever its rating.
2. A pair (user, item) that occurs several times is kept once: the earliest by time, else the first row.
3. Users with fewer than ``min_interactions`` pairs are dropped; items nobody is left with go with them.
4. The test split is ``test_fraction`` of each user's pairs, by largest remainders: the last ones where there is a time
   (ties: the later items), else drawn. Every user keeps training pairs. A drawn split would train on what came after
   the test.

How many rows each step removed is in the provenance. Ids without an ``id`` column come from user and item. Ids of
users and items sort as numbers when they are whole numbers, else as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from contracts.errors import ConfigError, DataError
from contracts.methods import Asked, Reading, SourceSpec, source
from contracts.params import param
from sources.assemble import assemble, check_ids
from sources.example_set import ExampleSet
from sources.features import IDS, refuse_missing
from sources.files import FileConfig, check_size, manifest, root_folder
from sources.identity import Content
from sources.loading import only
from sources.splits import largest_remainders
from sources.table_files import SEPARATORS, Table, column_names, is_tables, read_table

_USERS = ("user", "user_id", "userid")
_ITEMS = tuple(f"{what}{end}" for what in ("item", "movie", "product", "book", "track") for end in ("", "_id", "id"))
_TIMES = ("time", "timestamp", "date", "datetime")
_RATINGS = ("rating", "ratings", "stars")


@dataclass(frozen=True, kw_only=True, slots=True)
class InteractionsConfig(FileConfig):
    """Which columns say who, what and when."""

    file: str = param(doc="name of the CSV, Parquet or JSON lines file inside the root, or of a folder of such shards")
    user: str = param("user", doc="column of the user: whole numbers or text")
    item: str = param("item", doc="column of the item: whole numbers or text")
    time: str = param(
        "",
        doc="column of the time; the earliest of several equal pairs is kept, and the last of each user's are for "
        "testing",
    )
    rating: str = param("", doc="column of the rating; read only for min_rating")
    min_rating: float | None = param(None, doc="rows rated lower are no interactions; none: every row is one")
    id: str = param("", doc="column of whole, unique ids of the interactions; made from user and item when empty")
    test_fraction: float = param(0.2, gt=0, lt=1, doc="share of each user's interactions in the test split")
    holdout: str = param(
        "last", choices=("last", "random"), doc="which: the last by time, or drawn; drawn anyway where there is no time"
    )
    min_interactions: int = param(
        10, ge=2, le=1_000_000, doc="users with fewer pairs are dropped; each needs one to train on and one to test"
    )
    separator: str = param("", choices=("", *SEPARATORS), doc="of a CSV; found in the header when empty")

    def check(self) -> None:
        roles = [r for r in (self.user, self.item, self.time, self.rating, self.id) if r]
        if len(set(roles)) < len(roles) or not self.user or not self.item:
            raise ConfigError(
                f"InteractionsConfig: user, item, time, rating and id must name different columns, not {roles}"
            )
        if self.min_rating is not None and not self.rating:
            raise ConfigError(f"InteractionsConfig.min_rating = {self.min_rating:g} needs the column: rating")


def is_interactions(path: Path) -> bool:
    """True for a table of a user column, an item column, and nothing but a rating, a time and an id besides, by their
    names."""
    names = [n.lower() for n in column_names(path)] if is_tables(path) else []
    known = (_USERS, _ITEMS, _TIMES, _RATINGS, IDS)
    counts = [sum(n in group for n in names) for group in known]
    return counts[:2] == [1, 1] and max(counts[2:]) <= 1 and sum(counts) == len(names)


def from_columns(
    path: Path, *, user: str, item: str, time: str | None = None, id: str | None = None, drop: Sequence[str] = ()
) -> Reading:
    """How to read a file whose columns are named by a person; time, rating and id are found by their names where they
    are not.

    Raises:
        ConfigError: a name is no column of the file.
    """
    names = column_names(path)
    given = {"user": user, "item": item, "time": time, "id": id}
    for option, name in (*given.items(), *(("drop", name) for name in drop)):
        if name is not None and name not in names:
            listed = ", ".join(map(repr, names)) or "none: no CSV, Parquet or JSON lines file"
            raise ConfigError(f"--{option} {name!r} is not a column of {path.name}; columns are: {listed}")
    rest = {n.lower(): n for n in names if n not in given.values() and n not in drop}
    found = {
        role: next((rest[n] for n in group if n in rest), "")
        for role, group in (("time", _TIMES), ("rating", _RATINGS), ("id", IDS))
    }
    roles = found | {role: name for role, name in given.items() if name is not None}
    unused = [n for n in names if n not in roles.values()]
    notes = [f"columns left out, as a log holds user, item, time and rating: {', '.join(unused)}"] if unused else []
    config = {"root": str(path.parent), "file": path.name, **{role: name for role, name in roles.items() if name}}
    return Reading(config, tuple(notes))


def _from_path(path: Path, asked: Asked) -> Reading:
    names = column_names(path)
    user, item = (next(n for n in names if n.lower() in group) for group in (_USERS, _ITEMS))
    if asked.owner not in (None, user):
        raise ConfigError(f"--owner {asked.owner!r}: the owner of an interaction is its user, column {user!r}")
    refuse_asked(asked)
    return from_columns(path, user=user, item=item, id=asked.id, drop=asked.drop)


def refuse_asked(asked: Asked) -> None:
    """Refuse the options that a log of interactions has no place for.

    Raises:
        ConfigError: names one.
    """
    only(
        asked,
        "a log of interactions",
        label="the item is what is predicted",
        split="the last of each user are tested, or drawn",
        task="it is ranking",
        val="there are no validation rows",
    )


@source(
    SourceSpec(
        name="interactions",
        version=2,
        doc="Implicit feedback as CSV or Parquet: a user and an item column (--user, --item where they are called "
        "otherwise), optionally rating, time and id, and no others.",
        source="definition",
        config=InteractionsConfig,
        detects=is_interactions,
        from_path=_from_path,
    )
)
def interactions(*, config: InteractionsConfig, seed: int) -> ExampleSet:
    """The distinct pairs of one table.

    Raises:
        UnsafeFile: outside the root, or more than ``max_bytes``.
        DataError: columns that are missing, incomplete or no ids (by row number), or no user with enough pairs.
    """
    root = root_folder(config.root)
    data = read_table(root, config.file, separator=config.separator, max_bytes=config.max_bytes)
    if not data.num_rows:
        raise DataError(f"{data.name} has no rows")
    rows = np.arange(data.num_rows, dtype=np.int64)
    _, user_of_row = _indexes(data, config.user)
    _, item_of_row = _indexes(data, config.item)
    ids = check_ids(_complete(data, config.id).to_numpy()) if config.id else None
    times = _times(data, config.time) if config.time else None
    counted = rows if config.min_rating is None else np.flatnonzero(_ratings(data, config.rating) >= config.min_rating)
    order = counted if times is None else counted[np.argsort(times[counted], kind="stable")]
    pairs = user_of_row * (int(item_of_row.max()) + 1) + item_of_row
    _, first = np.unique(pairs[order], return_index=True)
    distinct = np.sort(order[first])
    enough = np.bincount(user_of_row[distinct], minlength=int(user_of_row.max()) + 1) >= config.min_interactions
    kept = distinct[enough[user_of_row[distinct]]]
    if not len(kept):
        raise DataError(f"{data.name}: no user has {config.min_interactions} different items (min_interactions)")
    provenance = {
        "source": "interactions",
        "files": manifest(root, data.paths),
        "licence": config.licence,
        "rated_lower": data.num_rows - len(counted),
        "duplicates_removed": len(counted) - len(distinct),
        "users_dropped": int((~enough).sum()),
        "rows_of_dropped_users": len(distinct) - len(kept),
    }
    provenance["notes"] = _left_out(config, **{k: v for k, v in provenance.items() if isinstance(v, int)})
    split = None
    if times is not None and config.holdout == "last":
        split = _last(user_of_row[kept], times[kept], item_of_row[kept], config.test_fraction)
        provenance["split"] = f"the last of each user by {config.time}, test_fraction {config.test_fraction:g}"
    return ranking_set(
        _names(data, config.user, kept, config),
        _names(data, config.item, kept, config),
        users=user_of_row[kept],
        items=item_of_row[kept],
        example_id=None if ids is None else ids[kept],
        name=config.name or Path(data.name).stem,
        seed=seed,
        test_fraction=config.test_fraction,
        split=split,
        origin=data.take(np.isin(rows, kept)).origin(),
        provenance=provenance,
    )


def ranking_set(
    user_names: np.ndarray | Sequence[str],
    item_names: np.ndarray | Sequence[str],
    *,
    users: np.ndarray,
    items: np.ndarray,
    example_id: np.ndarray | None = None,
    name: str,
    seed: int,
    test_fraction: float,
    split: np.ndarray | None = None,
    origin: np.ndarray | None = None,
    provenance: dict[str, object],
) -> ExampleSet:
    """An ExampleSet of distinct pairs. It is validated by ``sources.load``, not here.

    Args:
        user_names, item_names: (N,) the name of each row's user and item.
        users, items: (N,) int64 keys of the same; equal key, equal name. Indexes follow the order of the keys.
        example_id: (N,) int64; made from the two names when None.
        split: (N,) "train" or "test"; drawn when None.
        origin: (N,) str, where each row lies.
    """
    _, user_at, user = np.unique(users, return_index=True, return_inverse=True)
    _, item_at, item = np.unique(items, return_index=True, return_inverse=True)
    owner = np.asarray(user_names)
    names = pl.DataFrame({"user": owner, "item": np.asarray(item_names)})
    content = Content(texts=names.select(pl.concat_str("user", "item", separator="\0")).to_series())
    return assemble(
        user.astype(np.int64)[:, None],
        item.astype(np.int64),
        name=name,
        task="ranking",
        class_names=np.asarray(item_names)[item_at].tolist(),
        seed=seed,
        test_fraction=test_fraction,
        example_id=content.ids() if example_id is None else example_id,  # the split depends on the other rows
        split=split,
        owner=owner,
        content=content,
        origin=origin,
        feature_names=("user",),
        provenance={**provenance, "num_users": len(user_at)},
    )


def _left_out(
    config: InteractionsConfig,
    *,
    rated_lower: int,
    duplicates_removed: int,
    users_dropped: int,
    rows_of_dropped_users: int,
) -> list[str]:
    """What is not in the set, and why, for people."""
    return [
        *([f"{rated_lower:,} rows are rated lower than min_rating = {config.min_rating:g}"] if rated_lower else []),
        *(
            [f"{duplicates_removed:,} rows repeat a pair of user and item; one of each is kept"]
            if duplicates_removed
            else []
        ),
        *(
            [
                f"{users_dropped:,} users with fewer than {config.min_interactions} different items are left out, "
                f"{rows_of_dropped_users:,} rows (min_interactions)"
            ]
            if users_dropped
            else []
        ),
    ]


def _complete(data: Table, name: str) -> pl.Series:
    """A column without missing values."""
    series = data.column(name)
    refuse_missing(series, data)
    return series


def _indexes(data: Table, name: str) -> tuple[pl.Series, np.ndarray]:
    """The column, and each row's int64 index in the order of its values."""
    series = _complete(data, name)
    if not (series.dtype.is_integer() or series.dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise DataError(f"{data.name}: column {name!r} is {series.dtype}; ids are whole numbers or text")
    if not series.dtype.is_integer():
        series = series.cast(pl.String)
    return series, series.rank("dense").to_numpy().astype(np.int64) - 1


def _names(data: Table, name: str, kept: np.ndarray, config: InteractionsConfig) -> np.ndarray:
    """Names of the kept rows. Every row takes the memory of the longest, so that is checked first."""
    texts = data.column(name).gather(kept).cast(pl.String)
    check_size(4 * len(texts) * int(texts.str.len_chars().max() or 0), config.max_bytes, f"column {name!r}")
    return np.array(texts.to_list(), dtype=str)


def _times(data: Table, name: str) -> np.ndarray:
    """Dense ranks of the times: whatever sorts is a time."""
    series = _complete(data, name)
    if series.dtype.is_nested() or series.dtype == pl.Boolean:
        raise DataError(f"{data.name}: column {name!r} is {series.dtype}, which is no time")
    return series.rank("dense").to_numpy()


def _ratings(data: Table, name: str) -> np.ndarray:
    series = _complete(data, name)
    if not series.dtype.is_numeric():
        raise DataError(f"{data.name}: column {name!r} is {series.dtype}; ratings are numbers")
    return series.to_numpy()


def _last(users: np.ndarray, times: np.ndarray, items: np.ndarray, fraction: float) -> np.ndarray:
    """ "test" for each user's last interactions (of one moment, those of the later items), "train" for the others."""
    order = np.lexsort((items, times, users))
    _, start, size = np.unique(users[order], return_index=True, return_counts=True)
    from_end = np.repeat(start + size, size) - np.arange(len(order))
    split = np.empty(len(users), "<U5")
    split[order] = np.where(from_end <= np.repeat(largest_remainders(size, fraction), size), "test", "train")
    return split
