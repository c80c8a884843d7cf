"""Rank statistics of scores of members against non-members, ties counted half.

    AUC = P[s+ > s-] + P[s+ = s-] / 2                                               Mann and Whitney 1947
    DeLong et al., Biometrics 1988 (fast form: Sun and Xu, IEEE SPL 2014), with mid-ranks T over all and T+, T- within a class:
        V10_i = (T_i - T+_i) / n-      V01_j = 1 - (T_j - T-_j) / n+      var = var(V10) / n+ + var(V01) / n-
    interval: on the logit scale, logit(AUC) -+ z sqrt(var) / (AUC (1 - AUC)), so that it stays within [0, 1]

A perfect separation has var = 0 and says nothing about its own error; the bound is then that of Clopper and Pearson for
min(n+, n-) pairs of which none is out of order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import hypergeom, norm, rankdata

from contracts.errors import InvalidInput

Float = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class AucInterval:
    """AUC in [0, 1] with its bounds; ``stderr`` is DeLong's."""

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
    ranks = rankdata(np.concatenate([pos, neg]))
    return float((ranks[: len(pos)].sum() - len(pos) * (len(pos) + 1) / 2) / (len(pos) * len(neg)))


def auc_interval(positive: ArrayLike, negative: ArrayLike, *, alpha: float = 0.05) -> AucInterval:
    """AUC with DeLong's interval at level 1 - ``alpha``.

    Raises:
        InvalidInput: an empty class, or scores that are NaN.
    """
    pos, neg = _checked(positive, negative)
    ranks = rankdata(np.concatenate([pos, neg]))
    v10 = (ranks[: len(pos)] - rankdata(pos)) / len(neg)
    v01 = 1.0 - (ranks[len(pos) :] - rankdata(neg)) / len(pos)
    value = float(v10.mean())
    if len(pos) < 2 or len(neg) < 2:
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


def exceedance_p_value(num_positive_above: int, *, n_pos: int, n_neg: int, num_negative_above: int) -> float:
    """P[at least that many of n_pos positives lie above all but ``num_negative_above`` negatives | both are alike].

    Exact for exchangeable scores, although the threshold is an order statistic of the negatives (negative
    hypergeometric law); conservative with ties. It is the test of "TPR at FPR <= a is no larger than chance".

    >>> round(exceedance_p_value(1, n_pos=1, n_neg=9, num_negative_above=0), 3)
    0.1
    """
    k, r = num_positive_above, num_negative_above
    if not (0 <= k <= n_pos and 0 <= r <= n_neg and n_pos and n_neg):
        raise InvalidInput(f"{k} of {n_pos} positives above all but {r} of {n_neg} negatives is not possible")
    if k == 0:
        return 1.0
    return float(hypergeom.cdf(r, n_pos + n_neg, n_neg, min(k + r, n_pos + n_neg)))


def _checked(positive: ArrayLike, negative: ArrayLike) -> tuple[Float, Float]:
    pos, neg = (np.asarray(v, dtype=np.float64).ravel() for v in (positive, negative))
    if not len(pos) or not len(neg):
        raise InvalidInput(f"needs members and non-members; there are {len(pos)} and {len(neg)}")
    if np.isnan(pos).any() or np.isnan(neg).any():
        raise InvalidInput("scores must not be NaN; leave undefined examples out")
    return pos, neg
