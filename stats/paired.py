"""Is one attack, or one model, better than another on the SAME examples? Paired tests.

    DeLong     two correlated AUCs (DeLong et al., Biometrics 1988): with V10, V01 of ``ranking`` for each score a, b
                   var(AUC_a - AUC_b) = var(V10_a - V10_b) / n+ + var(V01_a - V01_b) / n-
               referred to Student's t with Welch's degrees of freedom (simulated coverage of 95%: 0.949 to 0.957; ten
               against 50: 0.94 to 0.98; three and five 0.88 and 0.92 when the AUCs differ, so below ten there is no
               interval)
    McNemar    exact: of the n examples that only one of the two finds, k are a's; p of Bin(n, 1/2) (Psychometrika 1947)
    sign flips the differences d_i, each sign equally likely when there is no difference; all 2^n flips while they are
               few, else random ones, the observed one counted in (Fisher; Phipson and Smyth 2010)
    Wilcoxon   signed ranks of d_i, zeros by Pratt's rule
    bootstrap  interval of the mean difference, pairs resampled; bias-corrected and accelerated (Efron, JASA 1987)
    bounded    interval of the mean difference of values in [0, 1] (Agresti and Min, Statistics in Medicine 2005, and
               beyond 0/1):
                   S = sum_i d_i,  Q = sum_i d_i^2,  n' = n + 2:   S / n'  +-  z sqrt(Q + 1 - S^2 / n') / n'
               the mean of n + 2 pairs, half a pair at +1, half a one at -1 and one at 0 added. Where d is -1, 0 or 1, S
               = b - c and Q = b + c, which is their interval to the bit. In between, var d <= E d^2 <= 1 as there, and
               no smallness of what was seen makes it shorter than z / n': differences that are rare and large leave
               small samples looking alike

Why paired: both sides see the same hard examples, and what they share cancels. Two separate intervals that overlap do
not mean that there is no difference. Pairs must be independent of each other: examples of one model, or whole models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from contracts.errors import InvalidInput
from stats.ranking import FEWEST_A_SIDE, placements

Float = NDArray[np.float64]
Alternative = Literal["two-sided", "greater", "less"]
_FLIPS = 99_999
_RESAMPLES = 9_999


@dataclass(frozen=True, kw_only=True, slots=True)
class AucDifference:
    """AUC_a - AUC_b on the same examples, with bounds at level 1 - alpha, DeLong's standard error and two-sided
    p-value.

    With too few examples on a side nothing is claimed: low -1, high 1, stderr NaN, p_value 1.
    """

    auc_a: float
    auc_b: float
    value: float
    low: float
    high: float
    stderr: float
    p_value: float


def delong_paired(
    scores_a: ArrayLike, scores_b: ArrayLike, is_member: ArrayLike, *, alpha: float = 0.05
) -> AucDifference:
    """Difference of two AUCs of scores of the same examples.

    Without any variance (say, both separate perfectly) the data says nothing about the error of the difference; bounds
    and p-value are then those of min(n+, n-) disjoint pairs that all point one way, as for a single perfect AUC. With
    fewer than ten members or non-members (``ranking``) the difference has neither: bounds -1 and 1, stderr NaN, p-value
    1.

    Args:
        scores_a, scores_b: (N,) larger = more likely a member, no NaN.
        is_member: (N,) bool, of each kind one at least.

    Raises:
        InvalidInput: shapes differ, NaN, no member or no non-member, alpha outside (0, 1).

    >>> found = delong_paired([3, 2, 1, 0], [3, 1, 2, 0], [True, True, False, False])
    >>> found.value, found.low, found.high, found.p_value
    (0.25, -1.0, 1.0, 1.0)
    """
    a, b = (np.asarray(v, dtype=np.float64) for v in (scores_a, scores_b))
    member = np.asarray(is_member)
    if not (a.ndim == 1 and a.shape == b.shape == member.shape and member.dtype == np.bool_):
        raise InvalidInput(
            f"scores {a.shape}, {b.shape} and is_member {member.dtype} {member.shape}: needs three vectors of one "
            "length, the last bool"
        )
    _check_alpha(alpha)
    v10_a, v01_a = placements(a[member], a[~member])
    v10_b, v01_b = placements(b[member], b[~member])
    value = float((v10_a - v10_b).mean())
    pairs = min(len(v10_a), len(v01_a))
    if pairs < FEWEST_A_SIDE:
        return AucDifference(
            auc_a=float(v10_a.mean()),
            auc_b=float(v10_b.mean()),
            value=value,
            low=-1.0,
            high=1.0,
            stderr=float("nan"),
            p_value=1.0,
        )
    parts = [(u - v).var(ddof=1) / len(u) for u, v in ((v10_a, v10_b), (v01_a, v01_b))]
    variance = sum(parts)
    if variance < 1e-28:  # rounding of a mean of equal numbers leaves some 1e-33
        slack, stderr = 1 - (alpha / 2) ** (1 / pairs), 0.0
        p_value = min(1.0, 2.0 * 0.5**pairs) if abs(value) > 1e-14 else 1.0
    else:
        freedom = variance**2 / (parts[0] ** 2 / (len(v10_a) - 1) + parts[1] ** 2 / (len(v01_a) - 1))
        stderr = float(np.sqrt(variance))
        slack = float(stats.t.isf(alpha / 2, freedom)) * stderr
        p_value = float(2 * stats.t.sf(abs(value) / stderr, freedom))
    return AucDifference(
        auc_a=float(v10_a.mean()),
        auc_b=float(v10_b.mean()),
        value=value,
        low=max(-1.0, value - slack),
        high=min(1.0, value + slack),
        stderr=stderr,
        p_value=p_value,
    )


def mcnemar(found_a: ArrayLike, found_b: ArrayLike) -> float:
    """Two-sided exact p-value of "both find examples equally often", from who found which of the same examples.

    Args:
        found_a, found_b: (N,) bool.

    Raises:
        InvalidInput: not two bool vectors of one length.

    >>> mcnemar([True] * 6, [False] * 6)
    0.03125
    """
    a, b = np.asarray(found_a), np.asarray(found_b)
    if not (a.ndim == 1 and a.shape == b.shape and a.dtype == b.dtype == np.bool_):
        raise InvalidInput(
            f"found_a {a.dtype} {a.shape} and found_b {b.dtype} {b.shape}: needs two bool vectors of one length"
        )
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def sign_flip_p_value(
    a: ArrayLike, b: ArrayLike, *, alternative: Alternative = "two-sided", seed: int = 0, flips: int = _FLIPS
) -> float:
    """p-value of "the paired values a, b have one distribution" by the mean difference; "greater" means a > b.

    Exact (all sign flips) while 2^n <= flips, else simulated and never below 1 / (flips + 1).

    Raises:
        InvalidInput: not two finite vectors of one length, n < 1.
    """
    difference = _differences(a, b, fewest=1)
    found = stats.permutation_test(
        (difference,),
        _mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=flips,
        alternative=alternative,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def wilcoxon_p_value(a: ArrayLike, b: ArrayLike, *, alternative: Alternative = "two-sided") -> float:
    """p-value of Wilcoxon's signed-rank test; 1 when all pairs are equal. Raises as :func:`sign_flip_p_value`."""
    difference = _differences(a, b, fewest=1)
    if not difference.any():
        return 1.0
    # Exact where scipy can (no ties, n <= 50); zeros keep their ranks (Pratt), so that ties do not look like evidence.
    return float(stats.wilcoxon(difference, zero_method="pratt", alternative=alternative).pvalue)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedInterval:
    """Mean of a - b over ``num_pairs`` with bootstrap bounds at level 1 - alpha."""

    value: float
    low: float
    high: float
    num_pairs: int


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, alpha: float = 0.05, seed: int = 0, resamples: int = _RESAMPLES
) -> PairedInterval:
    """Interval of the mean of a - b, the pairs resampled.

    Below some 20 pairs the bootstrap covers too rarely (0.90 to 0.93 instead of 0.95 at n = 10); use sign flips to
    test.

    Raises:
        InvalidInput: not two finite vectors of one length, fewer than two pairs, alpha outside (0, 1).
    """
    difference = _differences(a, b, fewest=2)
    _check_alpha(alpha)
    value = float(difference.mean())
    if np.ptp(difference) == 0:
        return PairedInterval(value=value, low=value, high=value, num_pairs=len(difference))
    found = stats.bootstrap(
        (difference,),
        np.mean,
        confidence_level=1 - alpha,
        n_resamples=resamples,
        method="BCa",
        batch=max(1, 10**7 // len(difference)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return PairedInterval(value=value, low=float(found.low), high=float(found.high), num_pairs=len(difference))


def bounded_difference(a: ArrayLike, b: ArrayLike, *, alpha: float = 0.05) -> PairedInterval:
    """Interval of the mean of a - b, values in [0, 1] (shares, qualities, right and wrong), paired; see the module.

    It never collapses, and never claims more than n pairs can: simulated coverage of 95% 0.95 or more (tests/stats).

    Args:
        a, b: (n,) bool, or finite in [0, 1].

    Raises:
        InvalidInput: not two vectors of one length, n < 1, values outside [0, 1], alpha outside (0, 1).

    >>> found = bounded_difference([1.0, 0.5, 1.0], [1.0, 0.5, 1.0])
    >>> found.value, round(found.low, 3), round(found.high, 3)
    (0.0, -0.392, 0.392)
    """
    first, second = (np.asarray(v, dtype=np.float64) for v in (a, b))
    difference = _differences(first, second, fewest=1)
    _check_alpha(alpha)
    if min(first.min(), second.min()) < 0 or max(first.max(), second.max()) > 1:
        raise InvalidInput("paired values must lie in [0, 1]")
    num = len(difference)
    total, squares, more = float(difference.sum()), float(np.square(difference).sum()), num + 2.0
    centre = total / more
    reach = float(stats.norm.isf(alpha / 2)) * float(np.sqrt(max(squares + 1 - total**2 / more, 0.0))) / more
    value = total / num
    low, high = min(value, centre - reach), max(value, centre + reach)
    return PairedInterval(value=value, low=max(-1.0, low), high=min(1.0, high), num_pairs=num)


def _mean(values: Float, axis: int) -> Float:
    return np.asarray(values.mean(axis=axis))


def _differences(a: ArrayLike, b: ArrayLike, *, fewest: int) -> Float:
    first, second = (np.asarray(v, dtype=np.float64) for v in (a, b))
    if not (first.ndim == 1 and first.shape == second.shape and len(first) >= fewest):
        raise InvalidInput(f"a {first.shape} and b {second.shape}: needs two vectors of one length, at least {fewest}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InvalidInput("paired values must be finite; leave out pairs of which one is undefined")
    return first - second


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InvalidInput(f"alpha = {alpha} is outside its allowed range: > 0 and < 1")
