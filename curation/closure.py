"""Closure of a forget set: what was asked for, and its near duplicates in the training data.

    closure(A) = A  and every example whose group (near_duplicates.group_id) holds an example of A

An example is not forgotten while its twin is still trained on: the model keeps predicting it as if it had seen it. The
pure function :func:`closure` serves the planning of forget requests; the curator applies it to a stored split.
Not a search for duplicates (``scoring.near_duplicates`` makes the groups), and no judgement on whether the twins'
owners agree: the reason of every added example names the request that it follows from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from contracts.errors import DataError
from contracts.methods import CuratorSpec, curator
from contracts.params import param
from curation.members import ForgetConfig, forget_retain, training_ids
from sources.example_set import ExampleSet

REQUESTED = "requested"


def closure(ids: Iterable[int] | np.ndarray, groups: pl.DataFrame) -> pl.DataFrame:
    """Near-duplicate closure of a set of examples.

    Args:
        ids: the examples asked for.
        groups: (example_id int64, group_id): examples with equal group_id are near duplicates; null = in no group.

    Returns:
        (example_id int64, reason str, follows int64), ordered by id: "requested" with follows null, or "near duplicate
        of <id>" with the smallest requested id of the group.

    Raises:
        DataError: ids asked for twice or without a group row (a score of other data); groups with an example twice.

    >>> frame = pl.DataFrame({"example_id": [1, 2, 3], "group_id": [1, 2, 1]})
    >>> closure([3], frame)["reason"].to_list()
    ['near duplicate of 3', 'requested']
    """
    wanted = pl.Series("example_id", np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64))
    for what, column in (("the request", wanted), ("the groups", groups["example_id"])):
        doubled = column.filter(column.is_duplicated()).unique()
        if len(doubled):
            raise DataError(f"{what} name examples twice", example_ids=doubled.sort())
    unknown = wanted.filter(~wanted.is_in(groups["example_id"].implode()))
    if len(unknown):
        raise DataError(f"{len(unknown)} examples are not in the near-duplicate groups", example_ids=unknown.sort())
    table = groups.select("example_id", "group_id").with_columns(
        asked=pl.col("example_id").is_in(wanted.implode()), in_group=pl.col("group_id").is_not_null()
    )
    first = (
        table.filter(pl.col("asked") & pl.col("in_group")).group_by("group_id").agg(follows=pl.col("example_id").min())
    )
    return (
        table.join(first, on="group_id", how="left")
        .filter(pl.col("asked") | pl.col("follows").is_not_null())
        .with_columns(follows=pl.when(~pl.col("asked")).then(pl.col("follows")))
        .with_columns(
            reason=pl.when(pl.col("asked"))
            .then(pl.lit(REQUESTED))
            .otherwise(pl.format("near duplicate of {}", pl.col("follows")))
        )
        .select("example_id", "reason", "follows")
        .sort("example_id")
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosureConfig(ForgetConfig):
    """The split to close and the score that holds the groups."""

    split: str = param(doc="name of a stored forget/retain split", ref="split")
    score: str = param("near_duplicates", doc="name of a stored score with a column of groups", ref="score")
    column: str = param("group_id", doc="its column: examples with equal values are near duplicates")


@curator(
    CuratorSpec(
        name="closure",
        doc="Forgets what a stored split forgets, and the near duplicates of it.",
        config=ClosureConfig,
        needs=("splits", "scores"),
    )
)
def closed_split(
    data: ExampleSet,
    *,
    config: ClosureConfig,
    seed: int,
    splits: Callable[[str], pl.DataFrame],
    scores: Callable[[str], pl.DataFrame],
) -> pl.DataFrame:
    """(example_id, role, reason) over the training split; ``seed`` is not used.

    Args:
        splits: gives (example_id, role) of a stored split by its name.
        scores: gives (example_id, value) of a stored score's column by "<score>.<column>".

    Raises:
        DataError: the split or the groups are about other data (stale), name an example twice, or leave an example of
            the split out; the closure is the whole training split.
    """
    train = training_ids(data)
    members = splits(config.split)
    forget = members.filter(pl.col("role") == "forget")["example_id"].to_numpy()
    groups = scores(f"{config.score}.{config.column}").rename({"value": "group_id"})
    for what, ids in (
        (f"split {config.split!r}", members["example_id"]),
        (f"score {config.score!r}", groups["example_id"]),
    ):
        other = np.setdiff1d(ids.to_numpy(), train)
        if len(other):
            raise DataError(
                f"{what} is about examples that are not in the training split of {data.name}", example_ids=other
            )
    closed = closure(forget, groups)
    return forget_retain(
        data,
        closed["example_id"].to_numpy(),
        what=f"the closure of split {config.split!r}",
        reason=[
            f"near duplicate of {follows}, which split {config.split!r} forgets"
            if follows is not None
            else f"forgotten by split {config.split!r}"
            for follows in closed["follows"].to_list()
        ],
        allow_empty=config.allow_empty,
    )
