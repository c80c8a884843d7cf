"""Facility location: every example is near one that is kept; with gradients as features this is CRAIG.

    F(S)       sum_i max_{j in S} s_ij,   s_ij = d_max - |g_i - g_j|
               monotone and submodular: greedy gives at least 1 - 1/e of the best
    features   "gradient": softmax of the audited model minus the target's indicator, the gradient of the loss in the
               logits (within a class it differs by softmax alone); "embedding": penultimate activations

    weight     of j in S: the examples of its group whose nearest in S is j, so that sum_j weight_j g_j stands for
               sum_i g_i, within sum_i min_j |g_i - g_j|. Train on what is kept with the weights (``curation.weights``;
               an export has them as a column): without, rare kinds count as much as common ones

Lazy greedy (Minoux 1978): a gain only falls as S grows, so an example is looked at again only when its last gain is the
largest; the same choice as looking at all. A group's similarities are held in memory, float32 (n, n).

Source: Mirzasoleiman, Bilmes, Leskovec, "Coresets for Data-efficient Training of Machine Learning Models" (ICML 2020,
arXiv 1906.01827).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import softmax
from torch import nn

from contracts.errors import DataError, NotApplicable
from contracts.methods import CuratorSpec, curator
from contracts.params import param
from curation.coverage.choosing import ROLES, CoverageConfig, Float, choose, choose_by_embeddings
from sources.example_set import ExampleSet
from tasks.base import require

MOST = 20_000  # examples of a group: 1.6 GB of similarities


@dataclass(frozen=True, kw_only=True, slots=True)
class FacilityConfig(CoverageConfig):
    features: str = param("gradient", choices=("gradient", "embedding"), doc="what nearness is of; gradient is CRAIG")


@curator(
    CuratorSpec(
        name="facility_location",
        doc="Keeps examples so that every other is near one of them, by gradients (CRAIG) or by what the model sees.",
        source="Mirzasoleiman et al., ICML 2020 (arXiv 1906.01827)",
        config=FacilityConfig,
        needs=("encoder", "outputs"),
        wants=("outputs", "classes", "features"),
        roles=ROLES,
        weighs=True,
        version=2,
    )
)
def facility_location(
    data: ExampleSet,
    *,
    config: FacilityConfig,
    seed: int,
    encoder: nn.Module,
    outputs: Callable[[ExampleSet], NDArray[Any]],
) -> pl.DataFrame:
    """(example_id, role, reason, weight) over the training split; ``seed`` is not used.

    Raises:
        NotApplicable: no classes, or a group of more than ``MOST`` examples.
        DataError: as ``choosing.choose``; outputs that are not finite.
    """
    require(data, "facility_location", "outputs", "classes", "features")
    data.check_targets()
    if config.features == "embedding":
        return choose_by_embeddings(data, encoder, config, greedy, name="facility_location")
    data = data.part("train").by_id()
    logits = np.asarray(outputs(data), np.float64)
    if not np.isfinite(logits).all():
        raise DataError(
            "facility_location: the model's outputs are not finite",
            example_ids=data.example_id[~np.isfinite(logits).all(1)],
        )
    gradient = softmax(logits, axis=1)
    gradient[np.arange(len(data)), data.y] -= 1
    return choose(data, gradient.astype(np.float32), config, greedy, name="facility_location")


def greedy(features: Float, num: int) -> NDArray[np.int64]:
    """Positions in the order of their choice, int64 (num,).

    Raises:
        NotApplicable: more than ``MOST`` examples.

    >>> greedy(np.array([[0.0], [0.1], [0.2], [5.0]], np.float32), 2).tolist()
    [1, 3]
    """
    if len(features) > MOST:
        raise NotApplicable(
            f"facility_location holds the similarities of a group in memory, at most {MOST:,} examples; there are "
            f"{len(features):,}: choose within classes (stratified), or from a smaller set"
        )
    near = similarities(features)
    best, more, chosen = np.zeros(len(near), np.float32), np.empty(len(near), np.float32), np.empty(num, np.int64)
    covered = 0.0  # F of what is chosen
    bounds = [(-gain, at) for at, gain in enumerate(near.sum(1, dtype=np.float64).tolist())]  # ties: the smaller id
    heapq.heapify(bounds)
    for t in range(num):
        while True:
            _, at = heapq.heappop(bounds)
            gain = (covered - float(np.add.reduce(np.maximum(near[at], best, out=more), dtype=np.float64)), at)
            if not bounds or gain <= bounds[0]:
                break
            heapq.heappush(bounds, gain)
        chosen[t] = at
        np.maximum(best, near[at], out=best)
        covered = float(best.sum(dtype=np.float64))
    return chosen


def similarities(features: Float) -> Float:
    """(n, n) float32: the largest distance minus each distance, >= 0."""
    squared = np.einsum("nd,nd->n", features, features)
    near: Float = features @ features.T
    near *= -2
    near += squared[:, None]
    near += squared
    np.sqrt(np.maximum(near, 0, out=near), out=near)
    np.subtract(near.max(initial=0), near, out=near)
    return near
