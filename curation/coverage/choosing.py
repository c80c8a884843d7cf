"""What every selection by coverage shares: how many, within which groups, and the members table.

    groups   the strata of the task (classes; bins of a target), each keeping its share of m, or all examples as one
    m        count, or round(fraction N); a group's share by largest remainders, at least one

A rule gets the (n, d) float32 features of a group in ascending order of the examples' ids and the number to keep, and
gives the positions in the order of their choice. Ties go to the smaller id: nothing depends on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from contracts.errors import DataError
from contracts.params import Config, param
from explain.embeddings import embeddings
from sources.example_set import ExampleSet
from tasks.base import require

ROLES = ("keep", "drop")
Float = NDArray[np.float32]
Rule = Callable[[Float, int], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CoverageConfig(Config):
    """Fields of every selection by coverage."""

    fraction: float = param(0.1, gt=0, lt=1, doc="share of the training examples to keep")
    count: int | None = param(None, ge=1, unit="examples", doc="number to keep; instead of fraction")
    stratified: bool = param(True, doc="within every class, or stratum of the task, in its proportion")


def choose(data: ExampleSet, features: Float, config: CoverageConfig, rule: Rule, *, name: str) -> pl.DataFrame:
    """(example_id, role "keep" or "drop", reason) of the examples, by id.

    Args:
        data: the training split in ascending order of its ids. ``features``: (N, d), one row an example.

    Raises:
        DataError: nothing, or everything, would be kept.
    """
    num = len(data)
    wanted = config.count if config.count is not None else round(config.fraction * num)
    if not 0 < wanted < num:
        raise DataError(f"{name}: {wanted} of {num} training examples would be kept; some, and not all, have to be")
    strata = np.zeros(num, np.int64)
    if config.stratified:
        strata = np.unique(data.task.strata(data.x, data.y, data.example_id), return_inverse=True)[1].reshape(-1)
    rank = np.zeros(num, np.int64)
    for group, share in enumerate(shares(np.bincount(strata), wanted)):
        rows = np.flatnonzero(strata == group)
        chosen = rule(features[rows], int(share))
        rank[rows[chosen]] = 1 + np.arange(len(chosen))
    kept = rank > 0
    reason = [f"chosen {r}. of its group by {name}" if r else f"covered by what {name} chose" for r in rank.tolist()]
    return pl.DataFrame(
        {"example_id": data.example_id, "role": np.where(kept, "keep", "drop").tolist(), "reason": reason},
        schema={"example_id": pl.Int64, "role": pl.String, "reason": pl.String},
    )


def choose_by_embeddings(
    data: ExampleSet, encoder: nn.Module, config: CoverageConfig, rule: Rule, *, name: str
) -> pl.DataFrame:
    """As :func:`choose`, of the training split in what a model sees: its penultimate activations.

    Raises:
        NotApplicable: examples that are no vectors or images.
        DataError: as :func:`choose`; activations that are not finite.
    """
    require(data, name, "features")
    data = data.part("train").by_id()
    return choose(data, embeddings(encoder, data), config, rule, name=name)


def shares(sizes: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """How many of each group are kept: in proportion, by largest remainders; one at least while there are enough, and
    no more than there are.

    >>> shares(np.array([50, 30, 20]), 10).tolist(), shares(np.array([98, 1, 1]), 10).tolist()
    ([5, 3, 2], [8, 1, 1])
    """
    exact = sizes * (wanted / sizes.sum())
    share = np.minimum(np.maximum(np.floor(exact).astype(np.int64), np.minimum(1, sizes)), sizes)
    while share.sum() < wanted:
        share[np.argmax(np.where(share < sizes, exact - share, -np.inf))] += 1
    while share.sum() > wanted:
        spare = share > 1 if (share > 1).any() else share > 0
        share[np.argmax(np.where(spare, share - exact, -np.inf))] -= 1
    return share
