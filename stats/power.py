"""What a number of examples or models can claim, and how many it takes: power and sample sizes.

    rule of three     no alarm in n trials claims a rate <= ln(1/alpha) / n, about 3 / n; with k alarms the smallest n
                      whose Clopper-Pearson upper bound is <= the rate       (Hanley and Lippman-Hand, JAMA 1983, for k
                                                                             = 0)
    p-value of one    with K reference values no empirical p-value is below 1 / (K + 1)
    rate above null   exact one-sided binomial test: reject when k >= c, c the smallest with P[Bin(n, null) >= c] <=
                      alpha
    AUC               Hanley and McNeil, Radiology 1982: with Q1 = A / (2 - A), Q2 = 2 A^2 / (1 + A)
                          var = (A (1 - A) + (n+ - 1) (Q1 - A^2) + (n- - 1) (Q2 - A^2)) / (n+ n-)
                      two AUCs on the same examples, correlation r (1983):  var = var_a + var_b - 2 r sqrt(var_a var_b)
    mean difference   two-sample t test of normal figures one run each, mu = (mean_a - mean_b) / common standard
                      deviation:
                          T ~ noncentral t, n_a + n_b - 2 degrees of freedom, noncentrality mu sqrt(n_a n_b / (n_a +
                          n_b)); exact
                      P[a run of a > a run of b] = AUC = Phi(mu / sqrt 2)
    two TPRs          other examples for each: Fleiss, Levin, Paik 2003, chapter 4, with continuity correction
                      the same examples (McNemar): Connor, Biometrics 1987, with p = P[only one finds it], d = TPR_a -
                      TPR_b
                          n = (z_{alpha/2} sqrt(p) + z_power sqrt(p - d^2))^2 / d^2

Planning figures: an audit's own figures carry exact intervals. Members and non-members are counted on each side alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtr, ndtr
from scipy.stats import binom, norm
from scipy.stats import t as student_t

from contracts.errors import InvalidInput
from stats.binomial import upper_bound

_LARGEST = 10**9
# Quadrature of the noncentral t law: Gauss and Legendre over 9 standard deviations; degrees of freedom from which S is
# narrow.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(300)
_REACH, _MANY = 9.0, 200


def minimum_negatives(fpr: float, *, alpha: float = 0.05, alarms: int = 0) -> int:
    """Fewest non-members with at most ``alarms`` false alarms among them that can claim an FPR of at most ``fpr``.

    Args:
        fpr: the claim, in (0, 1).
        alpha: 1 - level of the one-sided bound.
        alarms: false alarms seen.

    Raises:
        InvalidInput: fpr or alpha outside (0, 1), alarms negative.

    >>> minimum_negatives(0.001), minimum_negatives(0.001, alarms=1)
    (2995, 4742)
    """
    _inside(fpr=fpr, alpha=alpha)
    if alarms < 0:
        raise InvalidInput(f"alarms = {alarms} is outside its allowed range: >= 0")
    if alarms == 0:
        return math.ceil(math.log(alpha) / math.log1p(-fpr))
    enough = alarms + 1
    while upper_bound(alarms, enough, alpha=alpha) > fpr:
        enough *= 2
    short = enough // 2
    while enough - short > 1:  # the bound falls with n
        middle = (short + enough) // 2
        if middle > alarms and upper_bound(alarms, middle, alpha=alpha) <= fpr:
            enough = middle
        else:
            short = middle
    return enough


def minimum_references(p_value: float) -> int:
    """Fewest reference models with which one example can reach ``p_value``: 1 / (K + 1) <= p_value.

    >>> minimum_references(0.05)
    19
    """
    _inside(p_value=p_value)
    return math.ceil(1 / p_value - 1e-9) - 1


def rate_test_power(n: int, *, null: float, true: float, alpha: float = 0.05) -> float:
    """P[n trials reject "rate <= null"] when the rate is ``true``; exact one-sided binomial test.

    >>> round(rate_test_power(20, null=0.5, true=0.8), 3)
    0.804
    """
    _inside(null=null, true=true, alpha=alpha)
    if n < 1:
        raise InvalidInput(f"n = {n} is outside its allowed range: >= 1")
    critical = binom.isf(alpha, n, null) + 1  # smallest c with P[Bin >= c] <= alpha
    return float(binom.sf(critical - 1, n, true))


def trials_for_rate(*, null: float, true: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Fewest trials from which on the exact test of "rate <= null" has ``power`` against ``true`` > null.

    The power of an exact test rises in steps with relapses; from the returned number on (up to four times the normal
    approximation) it stays above ``power``.

    Raises:
        InvalidInput: rates outside (0, 1), or true <= null.
    """
    _inside(null=null, true=true, alpha=alpha, power=power)
    if true <= null:
        raise InvalidInput(f"true = {true} must exceed null = {null}: the test is one-sided")
    z, y = norm.isf(alpha), norm.ppf(power)
    about = ((z * math.sqrt(null * (1 - null)) + y * math.sqrt(true * (1 - true))) / (true - null)) ** 2
    n = np.arange(1, _whole(4 * max(about, 0) + 50) + 1)
    reached = binom.sf(binom.isf(alpha, n, null), n, true) >= power
    short = np.flatnonzero(~reached)
    return int(n[short[-1]] + 1) if len(short) else 1


def auc_stderr(auc: float, n_pos: int, n_neg: int) -> float:
    """Standard error that an AUC of ``auc`` will have on n_pos members and n_neg non-members (Hanley and McNeil).

    >>> round(auc_stderr(0.5, 100, 100), 4)
    0.0409
    """
    _inside(auc=auc)
    if n_pos < 1 or n_neg < 1:
        raise InvalidInput(f"n_pos = {n_pos}, n_neg = {n_neg}: both must be >= 1")
    return math.sqrt(_auc_variance(auc, n_pos, n_neg))


def auc_power(
    auc: float, n_pos: int, n_neg: int, *, null: float = 0.5, alpha: float = 0.05, two_sided: bool = True
) -> float:
    """P[the AUC is found different from ``null``] when it is ``auc``; normal approximation."""
    z = norm.isf(alpha / 2 if two_sided else alpha)
    spread, under_null = auc_stderr(auc, n_pos, n_neg), auc_stderr(null, n_pos, n_neg)
    above = norm.sf((null + z * under_null - auc) / spread)
    below = norm.cdf((null - z * under_null - auc) / spread) if two_sided else 0.0
    return float(above + below)


def detectable_auc(n_pos: int, n_neg: int, *, alpha: float, power: float = 0.8) -> float:
    """Smallest AUC above 0.5 that a two-sided test at level ``alpha`` finds with ``power``: the inverse of
    :func:`auc_power`.

    The null "AUC = 0.5" is rejected beyond Phi^-1(1 - alpha / 2) standard errors at 0.5; the estimate has the standard
    error at the AUC that it estimates. What an audit that found nothing has NOT excluded: every AUC below this one.

    Args:
        n_pos, n_neg: members and non-members, at least one each, independent of each other.
        alpha: level of the test, in (0, 1); for a one-sided test at level a, 2 a.
        power: in (alpha, 1).

    Returns:
        AUC in (0.5, 1], with at least that power to within 1e-12; infinity when there are so few examples that
        not even a perfect separation rejects the null.

    Raises:
        InvalidInput: fewer than one member or non-member, alpha or power outside its range.

    >>> round(detectable_auc(130, 130, alpha=0.05), 4), round(detectable_auc(1000, 1000, alpha=0.05), 4)
    (0.5998, 0.5361)
    >>> detectable_auc(2, 2, alpha=0.05)
    inf
    """
    _level_below_power(alpha, power)
    critical = 0.5 + float(norm.isf(alpha / 2)) * auc_stderr(0.5, n_pos, n_neg)
    if critical >= 1:
        return math.inf
    low, high = 0.5, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if auc_power(middle, n_pos, n_neg, alpha=alpha) >= power else (middle, high)
    return high


def effect_power(mu: float, n_a: int, n_b: int, *, alpha: float) -> float:
    """P[a two-sided two-sample t test finds a standardised mean difference of ``mu``]; exact for normal figures.

    Args:
        mu: (mean_a - mean_b) / common standard deviation; finite, of either sign.
        n_a, n_b: independent runs on each side, at least one each and three together.
        alpha: level of the test, in (0, 1).

    >>> round(effect_power(0.5, 64, 64, alpha=0.05), 4)
    0.8015
    """
    _inside(alpha=alpha)
    _two_sides(n_a, n_b)
    if not math.isfinite(mu):
        raise InvalidInput(f"mu = {mu} is outside its allowed range: finite")
    freedom = n_a + n_b - 2
    return _t_power(abs(mu) * _effect_scale(n_a, n_b), freedom, float(student_t.isf(alpha / 2, freedom)))


def detectable_effect(n_a: int, n_b: int, *, alpha: float, power: float = 0.8) -> float:
    """Smallest standardised mean difference mu > 0 that a two-sided two-sample t test finds with ``power``.

    ``auc_of_effect(mu)`` says it as an AUC. Arguments as :func:`effect_power`; for a one-sided test at level a give
    alpha = 2 a.

    Raises:
        InvalidInput: fewer than one run on a side or than three in all, alpha or power outside its range.

    >>> round(detectable_effect(64, 64, alpha=0.05), 3), round(detectable_effect(3, 3, alpha=0.05), 2)
    (0.499, 3.07)
    """
    _level_below_power(alpha, power)
    _two_sides(n_a, n_b)
    freedom = n_a + n_b - 2
    critical = float(student_t.isf(alpha / 2, freedom))
    high = critical + 1.0
    while _t_power(high, freedom, critical) < power:
        high *= 2
    found = brentq(lambda shift: _t_power(shift, freedom, critical) - power, 0.0, high, xtol=1e-12, rtol=1e-12)
    return float(found) / _effect_scale(n_a, n_b)


def runs_for_effect(mu: float, *, alpha: float, power: float = 0.8) -> int:
    """Runs on EACH side it takes to find a standardised mean difference of ``mu``; the inverse of
    :func:`detectable_effect`.

    Raises:
        InvalidInput: mu is 0 or not finite, alpha or power outside its range, more than 10^9 runs needed.

    >>> runs_for_effect(0.5, alpha=0.05), runs_for_effect(1.0, alpha=0.05)
    (64, 17)
    """
    _level_below_power(alpha, power)
    if mu == 0:
        raise InvalidInput("mu = 0: no number of runs finds an effect that is not there")
    return _smallest(lambda n: effect_power(mu, n, n, alpha=alpha) >= power)


def auc_of_effect(mu: float) -> float:
    """P[a run of one side exceeds a run of the other] of normal figures whose means lie ``mu`` standard deviations
    apart.

    >>> round(auc_of_effect(0.5), 4), auc_of_effect(0.0)
    (0.6382, 0.5)
    """
    return float(ndtr(mu / math.sqrt(2)))


def examples_for_auc(
    auc: float, *, null: float = 0.5, alpha: float = 0.05, power: float = 0.8, negatives_per_positive: float = 1.0
) -> int:
    """Members it takes (with that many non-members each) to tell an AUC of ``auc`` from ``null``, two-sided.

    >>> examples_for_auc(0.6)
    130
    """
    _inside(auc=auc, null=null, alpha=alpha, power=power)
    _differ("auc", auc, "null", null)
    ratio = _positive(negatives_per_positive)

    def enough(n: int) -> bool:
        return auc_power(auc, n, max(1, round(ratio * n)), null=null, alpha=alpha) >= power

    return _smallest(enough)


def examples_for_auc_difference(
    auc_a: float, auc_b: float, *, correlation: float = 0.0, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Members, and as many non-members, it takes to tell two AUCs apart (paired DeLong), two-sided.

    Args:
        correlation: of the two estimates, in [0, 1): 0 for other examples, about 0.5 to 0.9 for the same ones.
    """
    _inside(auc_a=auc_a, auc_b=auc_b, alpha=alpha, power=power)
    _differ("auc_a", auc_a, "auc_b", auc_b)
    if not 0 <= correlation < 1:
        raise InvalidInput(f"correlation = {correlation} is outside its allowed range: >= 0 and < 1")
    reach = (norm.isf(alpha / 2) + norm.ppf(power)) / abs(auc_a - auc_b)

    def enough(n: int) -> bool:
        a, b = _auc_variance(auc_a, n, n), _auc_variance(auc_b, n, n)
        return bool(reach**2 * (a + b - 2 * correlation * math.sqrt(a * b)) <= 1)

    return _smallest(enough)


def examples_for_tpr_difference(tpr_a: float, tpr_b: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Members on EACH side it takes to tell two true-positive rates apart, two-sided, other examples for each.

    >>> examples_for_tpr_difference(0.2, 0.1)
    219
    """
    _inside(tpr_a=tpr_a, tpr_b=tpr_b, alpha=alpha, power=power)
    _differ("tpr_a", tpr_a, "tpr_b", tpr_b)
    mean, gap = (tpr_a + tpr_b) / 2, abs(tpr_a - tpr_b)
    z, y = norm.isf(alpha / 2), norm.ppf(power)
    spread = math.sqrt(tpr_a * (1 - tpr_a) + tpr_b * (1 - tpr_b))
    plain = ((z * math.sqrt(2 * mean * (1 - mean)) + y * spread) / gap) ** 2
    return _whole(plain / 4 * (1 + math.sqrt(1 + 4 / (plain * gap))) ** 2)


def pairs_for_tpr_difference(only_a: float, only_b: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Members it takes when both attacks judge the same ones (McNemar), two-sided.

    Args:
        only_a, only_b: shares of the members that only one of the attacks finds; their difference is that of the TPRs.
    """
    _inside(only_a=only_a, only_b=only_b, alpha=alpha, power=power)
    _differ("only_a", only_a, "only_b", only_b)
    if only_a + only_b > 1:
        raise InvalidInput(f"only_a + only_b = {only_a + only_b} is outside its allowed range: <= 1")
    either, gap = only_a + only_b, abs(only_a - only_b)
    reach = norm.isf(alpha / 2) * math.sqrt(either) + norm.ppf(power) * math.sqrt(either - gap**2)
    return _whole((reach / gap) ** 2)


def _auc_variance(auc: float, n_pos: int, n_neg: int) -> float:
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    return (auc * (1 - auc) + (n_pos - 1) * (q1 - auc**2) + (n_neg - 1) * (q2 - auc**2)) / (n_pos * n_neg)


def _effect_scale(n_a: int, n_b: int) -> float:
    return math.sqrt(n_a * n_b / (n_a + n_b))


def _t_power(shift: float, freedom: int, critical: float) -> float:
    """P[|T| > critical] of the noncentral t law with noncentrality ``shift`` >= 0, to 1e-9.

    With T = (Z + shift) / S, Z normal and freedom S^2 chi-square, one of the two is averaged out in closed form and the
    other by
    quadrature: Z where few degrees of freedom make S vary, S where many make its law narrow. (scipy's ``nct`` returns
        NaN for
    some left tails and loses its digits beyond a noncentrality of some hundreds.)
    """
    if freedom < _MANY:
        # |T| > critical where S^2 < ((Z + shift) / critical)^2, which has a kink where Z + shift changes its sign.
        kink = max(-_REACH, -shift)
        left, right = (_NODES + 1) / 2 * (kink + _REACH) - _REACH, (_NODES + 1) / 2 * (_REACH - kink) + kink
        weight_left, weight_right = _WEIGHTS / 2 * (kink + _REACH), _WEIGHTS / 2 * (_REACH - kink)
        z, weight = np.concatenate([left, right]), np.concatenate([weight_left, weight_right])
        density = weight * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        return float(density @ chdtr(freedom, freedom * ((z + shift) / critical) ** 2))
    off = _REACH * _NODES / math.sqrt(2 * freedom)  # S - 1
    density = _WEIGHTS * np.exp((freedom - 1) * np.log1p(off) - freedom * (off + off**2 / 2))
    within = critical * (1 + off)
    return float(density @ (ndtr(shift - within) + ndtr(-shift - within)) / density.sum())


def _smallest(enough: Callable[[int], bool]) -> int:
    """The smallest n >= 2 for which ``enough``, which stays true once it is."""
    high = 2
    while not enough(high):
        high *= 2
        if high > _LARGEST:
            raise InvalidInput(f"more than {_LARGEST} a side would be needed: the difference is too small to be found")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _whole(size: float) -> int:
    if size > _LARGEST:
        raise InvalidInput(f"more than {_LARGEST} examples would be needed: the difference is too small to be found")
    return math.ceil(size)


def _inside(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < 1:
            raise InvalidInput(f"{name} = {value} is outside its allowed range: > 0 and < 1")


def _level_below_power(alpha: float, power: float) -> None:
    _inside(alpha=alpha, power=power)
    if power <= alpha:
        raise InvalidInput(f"power = {power} is outside its allowed range: > alpha = {alpha}, which every test has")


def _two_sides(n_a: int, n_b: int) -> None:
    if not (n_a >= 1 and n_b >= 1 and n_a + n_b >= 3):
        raise InvalidInput(f"n_a = {n_a}, n_b = {n_b}: needs one run on each side, and three in all, at least")


def _positive(ratio: float) -> float:
    if not (ratio > 0 and math.isfinite(ratio)):
        raise InvalidInput(f"negatives_per_positive = {ratio} is outside its allowed range: > 0")
    return ratio


def _differ(name: str, value: float, other: str, reference: float) -> None:
    if value == reference:
        raise InvalidInput(f"{name} = {other} = {value}: no number of examples tells equal values apart")
