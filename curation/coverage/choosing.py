"""What every selection by coverage shares: how many, within which groups, and the members table.

    groups   the strata of the task (classes; bins of a target), each keeping its share of m, or all examples as one
    m        count, or round(fraction N); a group's share by largest remainders, at least one

    near     of every example the kept one of its group that is nearest to it, the first chosen of equals; an example
             that is kept is its own. weight_j = number of those whose nearest j is: with gradients for features the
             weights of CRAIG, sum_j weight_j g_j in place of sum_i g_i

A rule gets the (n, d) float32 features of a group in ascending order of the examples' ids and the number to keep, and
gives the positions in the order of their choice. Ties go to the smaller id: nothing depends on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import nn

from contracts.errors import DataError
from contracts.params import Config, param
from explain.embeddings import embeddings
from explain.neighbours import blocks_of
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
    """(example_id, role "keep" or "drop", reason, weight) of the examples, by id; weight int64, null for the dropped.

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
    rank, near, apart = np.zeros(num, np.int64), np.full(num, -1), np.zeros(num)
    for group, share in enumerate(shares(np.bincount(strata), wanted)):
        rows = np.flatnonzero(strata == group)
        chosen = rule(features[rows], int(share))
        rank[rows[chosen]] = 1 + np.arange(len(chosen))
        if len(chosen):
            own, apart[rows] = nearest_kept(features[rows], chosen)
            near[rows] = rows[own]
    kept = rank > 0
    weight, ids = np.bincount(near[near >= 0], minlength=num), data.example_id
    told = zip(rank.tolist(), weight.tolist(), near.tolist(), ids[near].tolist(), apart.tolist(), strict=True)
    reason = [
        f"chosen {r}. of its group by {name}, stands for {w}"
        if r
        else f"nearest to {of} that {name} chose, at {d:.4g}"
        if at >= 0
        else f"of {wanted} that {name} kept none was left for its small group"
        for r, w, at, of, d in told
    ]
    frame = {"example_id": ids, "role": np.where(kept, "keep", "drop").tolist(), "reason": reason, "weight": weight}
    schema = {"example_id": pl.Int64, "role": pl.String, "reason": pl.String, "weight": pl.Int64}
    return pl.DataFrame(frame, schema=schema).with_columns(
        pl.when(pl.Series("kept", kept)).then(pl.col("weight")).alias("weight")
    )


def nearest_kept(features: Float, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(position of the nearest chosen one, distance to it) of every example, int64 (n,) and float64 (n,).

    Args:
        features: (n, d). ``chosen``: positions, in the order of their choice, one at least.

    >>> [a.tolist() for a in nearest_kept(np.array([[0.0], [1.0], [5.0]], np.float32), np.array([2, 0]))]
    [[0, 0, 2], [0.0, 1.0, 0.0]]
    """
    own, apart = np.empty(len(features), np.int64), np.empty(len(features))
    kept = features[chosen].astype(np.float64)
    for rows in blocks_of(len(features), 2 * len(chosen)):
        distance = cdist(features[rows].astype(np.float64), kept)
        nearest = distance.argmin(1)
        own[rows], apart[rows] = chosen[nearest], distance[np.arange(len(nearest)), nearest]
    own[chosen], apart[chosen] = chosen, 0.0
    return own, apart


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
