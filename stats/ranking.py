"""Rank statistics of scores of members against non-members, ties counted half.

    AUC = P[s+ > s-] + P[s+ = s-] / 2                                               Mann and Whitney 1947
    DeLong et al., Biometrics 1988 (fast form: Sun and Xu, IEEE SPL 2014), with mid-ranks T over all and T+, T- within a
    class:
        V10_i = (T_i - T+_i) / n-      V01_j = 1 - (T_j - T-_j) / n+      var = var(V10) / n+ + var(V01) / n-
    interval: on the logit scale, logit(AUC) -+ z sqrt(var) / (AUC (1 - AUC)), so that it stays within [0, 1]

Simulated coverage of 95% (normal, exponential, two-point and mixed scores, 40 to 1,000 a side): 0.94 to 0.965 for AUCs
up to 0.93; beyond 0.95 with fewer than 100 on a side only 0.88 to 0.93, too often too high. Score-type intervals do no
better. Below ten on a side there is no interval: var is itself estimated from so few that against 50 or 100 on the
other side three cover 0.86 to 0.88 and five 0.85 to 0.92. Ten cover 0.94 to 0.95 for AUCs up to 0.75, and 0.87 to 0.93
at 0.9. A perfect separation has var = 0 and says nothing about its own error; the bound is then that of Clopper and
Pearson for min(n+, n-) pairs of which none is out of order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import hypergeom, norm, rankdata

from contracts.errors import InvalidInput

Float = NDArray[np.float64]

FEWEST_A_SIDE = 10  # fewer positives or negatives: no interval of an AUC
_DRAWS = 99_999


@dataclass(frozen=True, kw_only=True, slots=True)
class AucInterval:
    """AUC in [0, 1] with its bounds; ``stderr`` is DeLong's, NaN when there are too few for an interval."""

    value: float
    low: float
    high: float
    stderr: float


def auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Area under the ROC curve, ties half.

    >>> auc([2.0, 1.0], [1.0, 0.0])
    0.875
    """
    pos, neg = _checked(positive, negative)
    pos, neg = np.sort(pos), np.sort(neg)  # in order the searches stay in the cache
    twice_won = sum(int(np.searchsorted(neg, pos, side=side).sum()) for side in ("left", "right"))
    return twice_won / (2 * len(pos) * len(neg))


def auc_interval(positive: ArrayLike, negative: ArrayLike, *, alpha: float = 0.05) -> AucInterval:
    """AUC with DeLong's interval at level 1 - ``alpha``; below ten on a side none: low 0, high 1, stderr NaN.

    Raises:
        InvalidInput: an empty class, scores that are NaN, or alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise InvalidInput(f"alpha = {alpha} is outside its allowed range: > 0 and < 1")
    pos, neg = _checked(positive, negative)
    v10, v01 = placements(pos, neg)
    value = float(v10.mean())
    if min(len(pos), len(neg)) < FEWEST_A_SIDE:
        return AucInterval(value=value, low=0.0, high=1.0, stderr=float("nan"))
    variance = v10.var(ddof=1) / len(pos) + v01.var(ddof=1) / len(neg)
    if value in (0.0, 1.0) or variance == 0:
        slack = 1 - (alpha / 2) ** (1 / min(len(pos), len(neg)))
        return AucInterval(value=value, low=max(0.0, value - slack), high=min(1.0, value + slack), stderr=0.0)
    stderr = float(np.sqrt(variance))
    reach = norm.ppf(1 - alpha / 2) * stderr / (value * (1 - value))
    centre = np.log(value / (1 - value))
    low, high = (float(1 / (1 + np.exp(-(centre + side * reach)))) for side in (-1, 1))
    return AucInterval(value=value, low=low, high=high, stderr=stderr)


def at_level(value: float, low: float, high: float, *, alpha: float, level: float) -> tuple[float, float]:
    """An interval at 1 - ``alpha`` of a share or an AUC as it would be at 1 - ``level``, on the logit scale.

    No interval (0 to 1) stays none. A perfect separation has the bound of n pairs of which none is out of order, 1 -
    (a/2)^(1/n).

    >>> [round(v, 3) for v in at_level(0.7, 0.6, 0.785, alpha=0.05, level=0.05)]
    [0.6, 0.785]
    """
    if (low <= 0 and high >= 1) or level == alpha:
        return low, high
    if value in (0.0, 1.0):
        slack = max(value - low, high - value)
        pairs = math.log(alpha / 2) / math.log1p(-min(slack, 1 - 1e-12))
        wider = 1 - (level / 2) ** (1 / max(pairs, 1e-12))
        return max(0.0, value - wider), min(1.0, value + wider)
    ratio = float(norm.isf(level / 2) / norm.isf(alpha / 2))
    centre = logit(value)
    down, up = (centre - logit(max(low, 1e-12))) * ratio, (logit(min(high, 1 - 1e-12)) - centre) * ratio
    return float(expit(centre - down)), float(expit(centre + up))


def placements(positive: ArrayLike, negative: ArrayLike) -> tuple[Float, Float]:
    """DeLong's V10 (n+,), the share of negatives below each positive, and V01 (n-,), the share of positives above each
    negative.

    >>> [v.tolist() for v in placements([2.0, 1.0], [1.0, 0.0])]
    [[1.0, 0.75], [0.75, 1.0]]
    """
    pos, neg = _checked(positive, negative)
    ranks = rankdata(np.concatenate([pos, neg]))
    v10 = (ranks[: len(pos)] - rankdata(pos)) / len(neg)
    v01 = 1.0 - (ranks[len(pos) :] - rankdata(neg)) / len(pos)
    return v10, v01


def exceedance_p_value(num_positive_above: int, *, n_pos: int, n_neg: int, num_negative_above: int) -> float:
    """P[at least that many of n_pos positives lie above all but ``num_negative_above`` negatives | both are alike].

    Exact for exchangeable scores, although the threshold is an order statistic of the negatives (negative
    hypergeometric law); conservative with ties. It is the test of "TPR at FPR <= a is no larger than chance".

    >>> round(exceedance_p_value(1, n_pos=1, n_neg=9, num_negative_above=0), 3)
    0.1
    """
    _check_counts([num_positive_above], [num_negative_above], n_pos, n_neg)
    if num_positive_above == 0:
        return 1.0
    drawn = min(num_positive_above + num_negative_above, n_pos + n_neg)
    return float(hypergeom.cdf(num_negative_above, n_pos + n_neg, n_neg, drawn))


def low_fpr_p_value(
    num_positive_above: Sequence[int], num_negative_above: Sequence[int], *, n_pos: int, n_neg: int
) -> float:
    """One test of "no more positives than chance stand out at low false-positive rates", over several thresholds at
    once.

        W = sum_c k_c / (r_c + 1),   k_c positives above all but r_c negatives

    k_c has mean (r_c + 1) n_pos / (n_neg + 1) for exchangeable scores, so every threshold weighs the same: W is the
    area under the ROC on a logarithmic FPR axis, read off at the thresholds. Its law is simulated from the order
    statistics of uniform scores (100,000 draws from a fixed seed; the p-value counts the observed value among them, so
    it is valid for any number of draws and never below 1e-5); exact for a single threshold. Conservative with ties.

    Against Holm over the same thresholds it finds more: on 36 digits models with everything to find it rejects 34
    at 0.0167 (LiRA, 135 positives, 225 negatives, FPR 1% and 5%) where Holm rejects 32, on 36 retrained ones both none.

    Args:
        num_positive_above, num_negative_above: k_c and r_c, one a threshold, at least one.
    """
    k, r = np.asarray(num_positive_above), np.asarray(num_negative_above)
    _check_counts(k, r, n_pos, n_neg)
    order = np.argsort(r)
    k, r = k[order], r[order]
    if len(k) == 1:
        return exceedance_p_value(int(k[0]), n_pos=n_pos, n_neg=n_neg, num_negative_above=int(r[0]))
    observed = float((k / (r + 1)).sum())
    below = np.searchsorted(_under_chance(tuple(r.tolist()), n_pos, n_neg), observed - 1e-9)
    return float((1 + _DRAWS - below) / (1 + _DRAWS))


@functools.lru_cache(maxsize=16)  # every attack on the same people asks for the same one
def _under_chance(r: tuple[int, ...], n_pos: int, n_neg: int) -> Float:
    """Draws of W for exchangeable scores, ascending (_DRAWS,)."""
    rng = np.random.default_rng(0)
    remaining = np.full(_DRAWS, n_pos)
    above = np.zeros(_DRAWS, dtype=np.int64)
    drawn, statistic = 0, np.zeros(_DRAWS)
    for allowed in r:
        # Gap of the uniform order statistics from negative number ``drawn`` to number allowed + 1, as a share of what
        # is left.
        step = min(allowed + 1, n_neg) - drawn
        rest = n_neg + 1 - drawn - step
        share = rng.beta(step, rest, _DRAWS) if step else np.zeros(_DRAWS)
        if allowed + 1 > n_neg:
            share = np.ones(_DRAWS)
        more = rng.binomial(remaining, share)
        above, remaining = above + more, remaining - more
        drawn += step
        statistic += above / (allowed + 1)
    return np.sort(statistic)


def _check_counts(k: ArrayLike, r: ArrayLike, n_pos: int, n_neg: int) -> None:
    k, r = np.asarray(k), np.asarray(r)
    possible = len(k) == len(r) >= 1 and n_pos >= 1 and n_neg >= 1
    if not possible or (k < 0).any() or (k > n_pos).any() or (r < 0).any() or (r > n_neg).any():
        raise InvalidInput(f"{k} of {n_pos} positives above all but {r} of {n_neg} negatives is not possible")


def _checked(positive: ArrayLike, negative: ArrayLike) -> tuple[Float, Float]:
    pos, neg = (np.asarray(v, dtype=np.float64).ravel() for v in (positive, negative))
    if not len(pos) or not len(neg):
        raise InvalidInput(f"needs members and non-members; there are {len(pos)} and {len(neg)}")
    if np.isnan(pos).any() or np.isnan(neg).any():
        raise InvalidInput("scores must not be NaN; leave undefined examples out")
    return pos, neg
