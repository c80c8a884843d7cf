"""Which examples are exposed: how often an attack finds each of them when it was in training, and at what price.

For every audited model the threshold is the score that lets at most a share ``fpr_cap`` of ITS non-members through
(Carlini et al., IEEE S&P 2022, section VI; Jagielski et al., "privacy onion", 2022, for the per-example view). Then

    found[n] = models trained with n in which n lies above the threshold        times_member[n] = models trained with n
    exposure = found / times_member        false_alarms = share of models trained WITHOUT n in which n lies above it

An average hides the exposed few: this table names them. Shapes: scores, is_member (T, N); one row an example.
Not independent over examples of one model; the interval of an example is over models, which are.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from attacks.membership.metrics import threshold_at_fpr
from attacks.statistics import clopper_pearson
from contracts.errors import InvalidInput

Float = NDArray[np.float64]


def exposure_table(
    scores: Float,
    is_member: NDArray[np.bool_],
    example_id: NDArray[np.int64],
    *,
    fpr_cap: float = 0.01,
    alpha: float = 0.05,
) -> pl.DataFrame:
    """One row an example that was a member of some model, most exposed first.

    Args:
        scores: (T, N), larger = more likely a member; NaN counts neither way.
        is_member: (T, N) truth.
        example_id: (N,).
        fpr_cap: in (0, 1), at least 1 / (non-members of a model).

    Returns:
        example_id, times_member, found int64; exposure, exposure_lo, exposure_hi (Clopper-Pearson), false_alarms float64 in
        [0, 1] (null for an example without a non-member model); ordered by exposure_lo, then example_id.

    Raises:
        InvalidInput: shapes differ, or a model has too few non-members for the cap.
    """
    if scores.ndim != 2 or scores.shape != is_member.shape or example_id.shape != scores.shape[1:]:
        raise InvalidInput(f"scores {scores.shape}, is_member {is_member.shape}, example_id {example_id.shape} do not fit (T, N), (T, N), (N,)")  # fmt: skip
    limits = np.array([threshold_at_fpr(s, m, fpr_cap) for s, m in zip(scores, is_member, strict=True)])
    if np.isnan(limits).any():
        raise InvalidInput(f"fpr_cap = {fpr_cap} lets not one non-member of some model through: raise it")
    known = ~np.isnan(scores)
    above = known & (scores >= limits[:, None])
    times, found = (known & is_member).sum(axis=0), (above & is_member).sum(axis=0)
    rows = times > 0
    low, high = clopper_pearson(found[rows], times[rows], alpha=alpha)
    without = (known & ~is_member).sum(axis=0)[rows]
    with np.errstate(invalid="ignore"):
        false_alarms = (above & ~is_member).sum(axis=0)[rows] / without
    return (
        pl.DataFrame(
            {
                "example_id": example_id[rows],
                "times_member": times[rows],
                "found": found[rows],
                "exposure": found[rows] / times[rows],
                "exposure_lo": low,
                "exposure_hi": high,
                "false_alarms": false_alarms,
            }
        )
        .with_columns(pl.col("false_alarms").fill_nan(None))
        .sort("exposure_lo", "example_id", descending=[True, False])
    )
