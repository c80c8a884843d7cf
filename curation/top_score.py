"""Forget the examples at one end of a score: the most memorised, the hardest, the easiest.

    forget = the m training examples with the highest (lowest) value;  m = count, or round(fraction * N)

N counts all training examples. Ties go to the smaller id. A score may leave examples out (memorization is defined on
its pool only): these are retained, and the reason says so; a value that is NaN counts as left out.
Not the worst-case forget set, which is a search over sets and not a ranking of examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from contracts.errors import ConfigError, DataError
from contracts.methods import CuratorSpec, curator
from contracts.params import param
from curation.members import ForgetConfig, forget_retain, training_ids
from curation.scored import score_values
from sources.example_set import ExampleSet


@dataclass(frozen=True, kw_only=True, slots=True)
class TopScoreConfig(ForgetConfig):
    score: str = param(doc="name of a stored score", ref="score")
    fraction: float | None = param(None, gt=0, lt=1, doc="share of the training examples")
    count: int | None = param(None, ge=1, doc="number of examples; instead of fraction")
    end: str = param("highest", choices=("highest", "lowest"), doc="which end of the score")

    def check(self) -> None:
        if (self.fraction is None) == (self.count is None):
            raise ConfigError("TopScoreConfig needs either fraction or count")


@curator(
    CuratorSpec(
        name="top_score",
        doc="Forgets the training examples with the highest or lowest values of a stored score.",
        config=TopScoreConfig,
        needs=("scores",),
    )
)
def top_score(
    data: ExampleSet, *, config: TopScoreConfig, seed: int, scores: Callable[[str], pl.DataFrame]
) -> pl.DataFrame:
    """(example_id, role, reason) over the training split; ``seed`` is not used.

    Args:
        scores: gives the frame (example_id, value) of a stored score by its name.

    Raises:
        DataError: the score has ids twice or of other data (a stale score), or fewer values than are to be forgotten.
    """
    train = training_ids(data)
    values = score_values(scores(config.score), train, score=config.score, data_name=data.name)
    scored = np.flatnonzero(~np.isnan(values))
    wanted = config.count if config.count is not None else round((config.fraction or 0.0) * len(train))
    if wanted > len(scored):
        raise DataError(f"{wanted} examples are to be forgotten, score {config.score!r} has {len(scored)} values")
    sign = -1.0 if config.end == "highest" else 1.0
    top = scored[np.argsort(sign * values[scored], kind="stable")[:wanted]]  # stable: ties go to the smaller id
    return forget_retain(
        data,
        train[top],
        what=f"the {config.end} {wanted} of score {config.score!r}",
        reason=[
            f"{config.score} {value:.6g}, {config.end} {rank} of {len(scored)}"
            for rank, value in enumerate(values[top].tolist(), start=1)
        ],
        retain_reason=np.where(np.isnan(values), f"{config.score} has no value", "not selected").astype(object),
        allow_empty=config.allow_empty,
    )
