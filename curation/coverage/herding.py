"""Herding: what is kept has the mean of what it is chosen from, and every beginning of it nearly has.

    w_0 = mu,  c_t = argmax_i <w_{t-1}, phi_i> over those not chosen,  w_t = w_{t-1} + mu - phi_{c_t}
    phi        penultimate activations of the audited model, each of length 1; mu their mean over the group

Source: Welling, "Herding Dynamical Weights to Learn" (ICML 2009); as a selection of exemplars Rebuffi et al., "iCaRL"
(CVPR 2017, arXiv 1611.07725).
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
        name="herding",
        doc="Keeps examples whose mean is that of all, in what the audited model sees.",
        source="Welling, ICML 2009; Rebuffi et al., CVPR 2017 (arXiv 1611.07725)",
        config=CoverageConfig,
        needs=("encoder",),
        wants=("features",),
        roles=ROLES,
        weighs=True,
        version=2,
    )
)
def herding(data: ExampleSet, *, config: CoverageConfig, seed: int, encoder: nn.Module) -> pl.DataFrame:
    """(example_id, role, reason, weight) over the training split; ``seed`` is not used.

    Raises:
        NotApplicable, DataError: as ``choosing.choose_by_embeddings``.
    """
    return choose_by_embeddings(data, encoder, config, herded, name="herding")


def herded(phi: Float, num: int) -> NDArray[np.int64]:
    """Positions in the order of their choice, int64 (num,).

    >>> herded(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], np.float32), 1).tolist()
    [2]
    """
    unit = phi.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    mean = unit.mean(0)
    weight, free, chosen = mean.copy(), np.ones(len(unit), bool), []
    for _ in range(num):
        at = int(np.where(free, unit @ weight, -np.inf).argmax())
        chosen.append(at)
        free[at] = False
        weight += mean - unit[at]
    return np.array(chosen, np.int64)
