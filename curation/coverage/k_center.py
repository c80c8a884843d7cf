"""k-center: what is kept leaves no example far from it.

    c_1      the example nearest the group's mean
    c_t      the example that is farthest from all chosen before: argmax_i min_s |phi_i - phi_{c_s}|
    phi      penultimate activations of the audited model

Within 2 of the least possible largest distance (Gonzalez, TCS 1985). Outliers are far from everything, so they are kept
first: look at them, or choose by ``facility_location``.

Source: Sener & Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach" (ICLR 2018, arXiv
1708.00489).
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from contracts.methods import CuratorSpec, curator
from curation.coverage.choosing import ROLES, CoverageConfig, Float, choose_by_embeddings
from sources.example_set import ExampleSet


@curator(
    CuratorSpec(
        name="k_center",
        doc="Keeps examples that leave none far from what is kept, in what the audited model sees.",
        source="Sener & Savarese, ICLR 2018 (arXiv 1708.00489); Gonzalez, TCS 1985",
        config=CoverageConfig,
        needs=("encoder",),
        wants=("features",),
        roles=ROLES,
        weighs=True,
        version=2,
    )
)
def k_center(data: ExampleSet, *, config: CoverageConfig, seed: int, encoder: nn.Module) -> pl.DataFrame:
    """(example_id, role, reason, weight) over the training split; ``seed`` is not used.

    Raises:
        NotApplicable, DataError: as ``choosing.choose_by_embeddings``.
    """
    return choose_by_embeddings(data, encoder, config, farthest_first, name="k_center")


def farthest_first(phi: Float, num: int) -> NDArray[np.int64]:
    """Positions in the order of their choice, int64 (num,).

    >>> farthest_first(np.array([[0.0], [1.0], [5.0], [9.0]], np.float32), 3).tolist()
    [2, 0, 3]
    """
    at = int(_squared(phi, phi.mean(0)).argmin())
    chosen, nearest = np.empty(num, np.int64), np.full(len(phi), np.inf)
    for t in range(num):
        chosen[t] = at
        nearest = np.minimum(nearest, _squared(phi, phi[at]))
        nearest[at] = -1  # also among equals it is not chosen again
        at = int(nearest.argmax())
    return chosen


def _squared(phi: Float, point: Float) -> NDArray[np.float64]:
    apart = (phi - point).astype(np.float64)
    return np.asarray(np.einsum("nd,nd->n", apart, apart))
