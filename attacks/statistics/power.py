"""What a number of examples or models can claim, and how many it takes: power and sample sizes.

    rule of three     no alarm in n trials claims a rate <= ln(1/alpha) / n, about 3 / n; with k alarms the smallest n whose
                      Clopper-Pearson upper bound is <= the rate       (Hanley and Lippman-Hand, JAMA 1983, for k = 0)
    p-value of one    with K reference values no empirical p-value is below 1 / (K + 1)
    rate above null   exact one-sided binomial test: reject when k >= c, c the smallest with P[Bin(n, null) >= c] <= alpha
    AUC               Hanley and McNeil, Radiology 1982: with Q1 = A / (2 - A), Q2 = 2 A^2 / (1 + A)
                          var = (A (1 - A) + (n+ - 1) (Q1 - A^2) + (n- - 1) (Q2 - A^2)) / (n+ n-)
                      two AUCs on the same examples, correlation r (1983):  var = var_a + var_b - 2 r sqrt(var_a var_b)
    two TPRs          other examples for each: Fleiss, Levin, Paik 2003, chapter 4, with continuity correction
                      the same examples (McNemar): Connor, Biometrics 1987, with p = P[only one finds it], d = TPR_a - TPR_b
                          n = (z_{alpha/2} sqrt(p) + z_power sqrt(p - d^2))^2 / d^2

Planning figures: an audit's own figures carry exact intervals. Members and non-members are counted on each side alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import binom, norm

from attacks.statistics.binomial import upper_bound
from contracts.errors import InvalidInput

_LARGEST = 10**9


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


def _smallest(enough: Callable[[int], bool]) -> int:
    """The smallest n >= 2 for which ``enough``, which stays true once it is."""
    high = 2
    while not enough(high):
        high *= 2
        if high > _LARGEST:
            raise InvalidInput(
                f"more than {_LARGEST} examples would be needed: the difference is too small to be found"
            )
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


def _positive(ratio: float) -> float:
    if not (ratio > 0 and math.isfinite(ratio)):
        raise InvalidInput(f"negatives_per_positive = {ratio} is outside its allowed range: > 0")
    return ratio


def _differ(name: str, value: float, other: str, reference: float) -> None:
    if value == reference:
        raise InvalidInput(f"{name} = {other} = {value}: no number of examples tells equal values apart")
