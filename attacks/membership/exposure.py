"""Which examples are exposed: how often an attack finds each of them when it was in training, and at what price.

Every model of a balanced design serves once as the audited one. For model t the threshold is the one that lets at most
a share ``fpr_cap`` of ITS non-members through (Carlini et al., IEEE S&P 2022, section VI; Carlini et al., "The Privacy
Onion Effect", NeurIPS 2022, for the view by example). Over models, for example n:

    found = models trained with n in which n lies above the threshold          times_member = models trained with n
    exposure = found / times_member, with Clopper-Pearson bounds
    false_alarms = the same for models trained WITHOUT n, against the threshold that the OTHER non-members give

    p_value = max(Fisher's exact test of "found no more often when in than when out", one-sided,
                  Mann-Whitney test of "n's signal is no higher in models trained with it", one-sided)

Which models train on n is drawn at random, balanced. If training on n changes nothing, that draw is independent of
every output, and the Mann-Whitney test is exact whatever the models and the other examples do. Fisher's test alone is
not: an attack that learns n's normals from the other models does not judge them independently. (Simulated without any
    trace, 16
and 64 models, caps 0.05 and 0.2, LiRA, RMIA and LOSS, it kept its level too: at most 0.009 of the examples below 0.01.)
A claim about a person should not rest on that: both tests must speak, so the larger p-value counts.

The bounds of ``exposure`` are about an attacker who holds these reference models and meets fresh audited ones:
simulated coverage 0.94 to 0.99 (LiRA, 64 models, traces of 0 to 3 standard deviations, caps 0.01 and 0.05). Over fresh
reference models as well, faint traces vary more: up to 2.7 times the binomial variance at an exposure of one half.

An average hides the exposed few: this names them. Shapes: scores, is_member, phi (T, N); one row an example.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import hypergeom, mannwhitneyu

from attacks.membership.calibration import Trials, at_fpr
from attacks.membership.curve import allowed
from contracts.errors import InvalidInput
from stats import clopper_pearson

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


def exposure_table(
    scores: Float,
    is_member: Bool,
    example_id: NDArray[np.int64],
    *,
    trace: Float,
    fpr_cap: float = 0.01,
    alpha: float = 0.05,
) -> pl.DataFrame:
    """One row an example that was a member of some model and a non-member of another, most exposed first.

    Args:
        scores: (T, N), larger = more likely a member; NaN counts neither way.
        is_member: (T, N) truth, drawn at random.
        example_id: (N,), distinct.
        trace: (N,) p-values from :func:`trace_p_values`.
        fpr_cap: in (0, 1), at least 1 / (non-members of a model).

    Returns:
        example_id, times_member, found, times_out, false int64; exposure, exposure_lo, exposure_hi, false_alarms,
        p_value float64 in [0, 1]; ordered by exposure_lo descending, then false_alarms, then example_id.

    Raises:
        InvalidInput: shapes differ, or a model has too few non-members for the cap.
    """
    if scores.ndim != 2 or scores.shape != is_member.shape or not (example_id.shape == trace.shape == scores.shape[1:]):
        raise InvalidInput(
            f"scores {scores.shape}, is_member {is_member.shape}, example_id {example_id.shape}, trace {trace.shape} "
            "do not fit (T, N), (T, N), (N,), (N,)"
        )
    above = np.zeros(scores.shape, dtype=bool)
    for t, (row, member) in enumerate(zip(scores, is_member, strict=True)):
        outside = Trials(example_id[~member], model=t)
        threshold = at_fpr(row[~member], outside, fpr_cap)
        above[t, member] = threshold.calls(row[member], Trials(example_id[member], model=t))
        above[t, ~member] = _above_the_others(row[~member], fpr_cap)
    known = ~np.isnan(scores)
    times, found = (known & is_member).sum(axis=0), (above & is_member).sum(axis=0)
    without, false = (known & ~is_member).sum(axis=0), (above & ~is_member).sum(axis=0)
    rows = (times > 0) & (without > 0)
    times, found, without, false = times[rows], found[rows], without[rows], false[rows]
    low, high = clopper_pearson(found, times, alpha=alpha)
    fisher = hypergeom.sf(found - 1, times + without, found + false, times)
    return pl.DataFrame(
        {
            "example_id": example_id[rows],
            "times_member": times,
            "found": found,
            "times_out": without,
            "false": false,
            "exposure": found / times,
            "exposure_lo": low,
            "exposure_hi": high,
            "false_alarms": false / without,
            "p_value": np.clip(np.maximum(fisher, trace[rows]), 0.0, 1.0),
        }
    ).sort("exposure_lo", "false_alarms", "example_id", descending=[True, False, False])


def trace_p_values(phi: Float, is_member: Bool) -> Float:
    """(N,) one-sided Mann-Whitney p-values of "training on the example does not raise its signal".

    Exact for 8 models or fewer on a side without ties; else the normal approximation with continuity and tie
    correction, which is on the safe side in the tail that many tests at once ask for.

    Args:
        phi: (T, N) signals of the models on the examples.
        is_member: (T, N), every column with as many members as the others.

    Raises:
        InvalidInput: shapes differ, or columns with other numbers of members.
    """
    if phi.ndim != 2 or phi.shape != is_member.shape:
        raise InvalidInput(f"phi {phi.shape} and is_member {is_member.shape} must both be (models, examples)")
    inside = is_member.sum(axis=0)
    if phi.shape[1] == 0 or (inside != inside[0]).any() or not 0 < inside[0] < len(phi):
        raise InvalidInput(
            "every example must be a member of the same number of models, and not of all or none of them"
        )
    values, chosen = phi.T, is_member.T
    members = values[chosen].reshape(len(values), -1)
    return np.asarray(
        mannwhitneyu(members, values[~chosen].reshape(len(values), -1), alternative="greater", axis=1).pvalue
    )


def smallest_p_value(num_models: int) -> float:
    """Smallest p-value that an example can reach in a balanced design: one in all ways to choose the models trained on
    it.

    >>> smallest_p_value(4) == 1 / 6
    True
    """
    return float(hypergeom.pmf(num_models // 2, num_models, num_models // 2, num_models // 2))


def _above_the_others(scores: Float, cap: float) -> Bool:
    """Which non-members lie above the threshold that the other ones give: no example takes part in its own."""
    known = ~np.isnan(scores)
    ordered = np.sort(scores[known])
    # Others at or above s: all at or above it, less s itself.
    at_or_above = len(ordered) - np.searchsorted(ordered, scores, side="left") - 1
    return np.asarray(known & (at_or_above <= allowed(cap, len(ordered) - 1)))
