"""Cut the training examples into quality pools by any stored score, best end first.

Pools are of equal size (see sources.pools), as the scaling law of mixtures needs them; what does not divide, what lies
beyond ``fraction`` and what has no value is "outside". ``stratified`` cuts every class (stratum of the task: bin of the
target, user) by itself, so that each pool has the classes' shares: by difficulty alone the easiest pool of ten digits
had no eights and nines.

Source: Goyal et al., "Scaling Laws for Data Filtering" (CVPR 2024, arXiv 2404.07177), section 3. How good a pool is
    does
not follow from its rank: the analysis of the same name measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from contracts.errors import DataError
from contracts.methods import CuratorSpec, curator
from contracts.params import Config, param
from curation.members import training_ids
from sources.example_set import ExampleSet
from sources.pools import cut

MAX_POOLS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityPoolsConfig(Config):
    score: str = param("el2n", doc="name of a stored score", ref="score")
    best: str = param("lowest", choices=("lowest", "highest"), doc="end of the score that pool_1 takes")
    num_pools: int = param(4, ge=2, le=MAX_POOLS, doc="pools of equal size")
    fraction: float = param(1.0, gt=0, le=1, doc="share of the scored examples, from the best end, cut into pools")
    stratified: bool = param(True, doc="cut every class, or stratum of the task, by itself")


@curator(
    CuratorSpec(
        name="quality_pools",
        version=2,
        doc="Cuts the training examples into pools of equal size by a stored score, best first.",
        source="Goyal et al., Scaling Laws for Data Filtering, CVPR 2024 (arXiv 2404.07177)",
        config=QualityPoolsConfig,
        needs=("scores",),
        roles=(*(f"pool_{p}" for p in range(1, MAX_POOLS + 1)), "outside"),
    )
)
def quality_pools(
    data: ExampleSet, *, config: QualityPoolsConfig, seed: int, scores: Callable[[str], pl.DataFrame]
) -> pl.DataFrame:
    """(example_id, role, reason) over the training split, ordered by id; ``seed`` is not used.

    Args:
        scores: gives the frame (example_id, value) of a stored score by its name.

    Raises:
        DataError: the score has ids twice or of other data (a stale score), or a pool would be empty.
    """
    train = training_ids(data)
    ids, values = _checked(scores(config.score), train, config.score, data.name)
    chosen = data.subset(ids)
    strata = (
        data.task.strata(chosen.x, chosen.y, chosen.example_id) if config.stratified else np.zeros(len(ids), np.int64)
    )
    found = cut(
        values, ids, strata, num_pools=config.num_pools, fraction=config.fraction, best=config.best, what=config.score
    )
    slot = np.searchsorted(train, ids)
    role, reason = np.full(len(train), "outside", object), np.full(len(train), f"{config.score} has no value", object)
    role[slot] = [f"pool_{p + 1}" if p < config.num_pools else "outside" for p in found.pool.tolist()]
    reason[slot] = [
        f"{config.score} {value:.6g}, rank {r + 1} of {of} from the {config.best}"
        for value, r, of in zip(values.tolist(), found.rank.tolist(), found.of.tolist(), strict=True)
    ]
    return pl.DataFrame(
        {"example_id": train, "role": role.tolist(), "reason": reason.tolist()},
        schema={"example_id": pl.Int64, "role": pl.String, "reason": pl.String},
    )


def _checked(frame: pl.DataFrame, train: np.ndarray, score: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids and float64 values of the examples that have one.

    Raises:
        DataError: ids twice, or that are no training examples.
    """
    ids = frame.get_column("example_id").to_numpy()
    values = frame.get_column("value").cast(pl.Float64).fill_null(math.nan).to_numpy()
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"score {score!r} has examples twice", example_ids=unique[counts > 1])
    other = ids[~np.isin(ids, train)]
    if len(other):
        raise DataError(
            f"score {score!r} is about examples that are not in the training split of {name}", example_ids=other
        )
    known = ~np.isnan(values)
    return ids[known], values[known]
