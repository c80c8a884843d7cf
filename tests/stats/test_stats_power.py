"""Sample sizes and powers against closed forms, enumeration, published tables and simulation."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import chi2, norm, ttest_ind
from scipy.stats import t as student_t

from contracts.errors import InvalidInput
from stats import (
    auc,
    auc_of_effect,
    auc_power,
    auc_stderr,
    detectable_auc,
    detectable_effect,
    effect_power,
    examples_for_auc,
    examples_for_auc_difference,
    examples_for_tpr_difference,
    mcnemar,
    minimum_negatives,
    minimum_references,
    pairs_for_tpr_difference,
    rate_test_power,
    runs_for_effect,
    trials_for_rate,
    upper_bound,
)


@given(st.floats(1e-3, 0.5), st.integers(0, 6), st.floats(1e-3, 0.3))
def test_minimum_negatives_is_where_the_exact_bound_meets_the_claim(fpr: float, alarms: int, alpha: float) -> None:
    n = minimum_negatives(fpr, alpha=alpha, alarms=alarms)
    assert n > alarms
    assert upper_bound(alarms, n, alpha=alpha) <= fpr * (1 + 1e-12)
    assert n - 1 <= alarms or upper_bound(alarms, n - 1, alpha=alpha) > fpr * (1 - 1e-12)


def test_rule_of_three() -> None:
    assert [minimum_negatives(a) for a in (0.001, 0.01, 0.05)] == [2995, 299, 59]
    assert minimum_negatives(0.001) == pytest.approx(3 / 0.001, rel=0.005)


def test_minimum_references() -> None:
    assert [minimum_references(a) for a in (0.05, 0.01, 0.1, 0.5)] == [19, 99, 9, 1]


@pytest.mark.parametrize(("n", "null", "true"), [(5, 0.5, 0.9), (20, 0.5, 0.8), (40, 0.05, 0.2), (3, 0.05, 0.5)])
def test_rate_power_equals_enumeration(n: int, null: float, true: float) -> None:
    def tail(c: int, rate: float) -> float:
        return sum(comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(c, n + 1))

    critical = next(c for c in range(n + 2) if tail(c, null) <= 0.05)
    assert rate_test_power(n, null=null, true=true) == pytest.approx(tail(critical, true))


@pytest.mark.parametrize(("null", "true"), [(0.01, 0.1), (0.05, 0.5), (0.5, 0.6), (0.001, 0.02)])
def test_trials_for_a_rate_have_the_power_from_there_on(null: float, true: float) -> None:
    n = trials_for_rate(null=null, true=true)
    assert all(rate_test_power(m, null=null, true=true) >= 0.8 for m in range(n, 2 * n))
    assert n == 1 or rate_test_power(n - 1, null=null, true=true) < 0.8


def test_hanley_and_mcneil_published_value() -> None:
    # Radiology 1982, the paper's example: AUC 0.893 with 51 abnormal and 58 normal cases has a standard error of 0.032.
    assert auc_stderr(0.893, 51, 58) == pytest.approx(0.0320, abs=2e-3)
    # Under no difference the formula is exact: (n+ + n- + 1) / (12 n+ n-).
    assert auc_stderr(0.5, 30, 70) == pytest.approx(np.sqrt(101 / (12 * 30 * 70)))


def test_examples_for_an_auc_reach_their_power_in_simulation() -> None:
    n = examples_for_auc(0.62)
    assert auc_power(0.62, n, n) >= 0.8 > auc_power(0.62, n - 1, n - 1)
    rng = np.random.default_rng(0)
    shift = np.sqrt(2) * norm.ppf(0.62)
    limit = norm.isf(0.025) * auc_stderr(0.5, n, n)
    found = [abs(auc(rng.normal(shift, 1, n), rng.normal(0, 1, n)) - 0.5) > limit for _ in range(800)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)
    assert examples_for_auc(0.62, negatives_per_positive=4) < n
    assert auc_power(0.5, 50, 50) == pytest.approx(0.05)


@given(st.integers(5, 5000), st.integers(5, 5000), st.floats(1e-4, 0.2), st.floats(0.3, 0.99))
def test_the_detectable_auc_is_where_its_power_is_reached(n_pos: int, n_neg: int, alpha: float, power: float) -> None:
    found = detectable_auc(n_pos, n_neg, alpha=alpha, power=power)
    if found == np.inf:  # even a perfect separation stays below the critical value
        assert 0.5 + norm.isf(alpha / 2) * auc_stderr(0.5, n_pos, n_neg) >= 1
        return
    assert 0.5 < found <= 1
    assert auc_power(min(found, 1 - 1e-12), n_pos, n_neg, alpha=alpha) >= power - 1e-9
    assert all(auc_power(0.5 + f * (found - 0.5), n_pos, n_neg, alpha=alpha) < power for f in (0.3, 0.9, 0.999))


@pytest.mark.parametrize(("n_pos", "n_neg", "alpha"), [(60, 60, 0.05), (40, 200, 0.05), (150, 90, 0.01)])
def test_the_detectable_auc_is_detected_as_often_as_claimed(n_pos: int, n_neg: int, alpha: float) -> None:
    found = detectable_auc(n_pos, n_neg, alpha=alpha)
    rng = np.random.default_rng(n_pos)
    limit = norm.isf(alpha / 2) * auc_stderr(0.5, n_pos, n_neg)
    shift = np.sqrt(2) * norm.ppf(found)
    seen = [abs(auc(rng.normal(shift, 1, n_pos), rng.normal(0, 1, n_neg)) - 0.5) > limit for _ in range(1000)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.05)


def test_the_detectable_auc_is_the_inverse_of_the_examples_needed() -> None:
    n = examples_for_auc(0.6)
    assert detectable_auc(n, n, alpha=0.05) <= 0.6 < detectable_auc(n - 1, n - 1, alpha=0.05)
    assert detectable_auc(100, 100, alpha=0.05) < detectable_auc(100, 100, alpha=0.01)
    assert detectable_auc(100, 100, alpha=0.05) < detectable_auc(100, 50, alpha=0.05)
    assert detectable_auc(2, 2, alpha=0.05) == np.inf


def test_published_sample_sizes_of_the_t_test() -> None:
    # Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, table 2.4.1: two-sided 0.05, power 0.80.
    assert [runs_for_effect(d, alpha=0.05) for d in (0.2, 0.5, 0.8, 1.0)] == [394, 64, 26, 17]
    assert runs_for_effect(-0.5, alpha=0.05) == 64
    # Many runs: the normal formula 2 ((z_{alpha/2} + z_power) / mu)^2.
    large = 2 * ((norm.isf(0.025) + norm.ppf(0.8)) / 0.001) ** 2
    assert runs_for_effect(0.001, alpha=0.05) == pytest.approx(large, rel=1e-5)


@pytest.mark.parametrize("n", [2, 3, 5, 20, 300])
@pytest.mark.parametrize("alpha", [0.05, 0.01, 1e-5])
def test_the_detectable_effect_is_the_inverse_of_the_runs_needed(n: int, alpha: float) -> None:
    mu = detectable_effect(n, n, alpha=alpha)
    assert effect_power(mu, n, n, alpha=alpha) == effect_power(-mu, n, n, alpha=alpha) == pytest.approx(0.8, abs=1e-6)
    assert runs_for_effect(mu * (1 + 1e-6), alpha=alpha) == n
    assert runs_for_effect(mu * (1 - 1e-6), alpha=alpha) == n + 1
    assert effect_power(0.0, n, n, alpha=alpha) == pytest.approx(alpha)


@pytest.mark.parametrize(("n_a", "n_b", "alpha"), [(3, 3, 0.05), (1, 9, 0.05), (6, 12, 0.01), (16, 16, 0.05)])
def test_the_detectable_effect_is_detected_as_often_as_claimed(n_a: int, n_b: int, alpha: float) -> None:
    mu = detectable_effect(n_a, n_b, alpha=alpha)
    rng = np.random.default_rng(n_a)
    a, b = rng.normal(mu, 1, (20_000, n_a)), rng.normal(0, 1, (20_000, n_b))
    assert (ttest_ind(a, b, axis=1).pvalue <= alpha).mean() == pytest.approx(0.8, abs=0.012)
    above = (rng.normal(mu, 1, 100_000) > rng.normal(0, 1, 100_000)).mean()
    assert above == pytest.approx(auc_of_effect(mu), abs=0.006)


@pytest.mark.parametrize(("freedom", "alpha"), [(1, 0.05), (1, 1e-6), (2, 1e-4), (4, 1e-9), (30, 1e-6)])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.2, 2.0])
def test_the_power_of_the_t_test_is_exact_far_out(freedom: int, alpha: float, factor: float) -> None:
    critical = student_t.isf(alpha / 2, freedom)
    shift = factor * critical
    # The same integral taken the other way: over the estimated standard deviation s, the normal probability within.
    ends = np.sqrt(chi2.ppf([1e-18, 1 - 1e-15], freedom) / freedom)
    tails = [
        quad(
            lambda s, side=side: (
                norm.cdf(side * shift - critical * s) * chi2.pdf(freedom * s**2, freedom) * 2 * freedom * s
            ),
            *ends,
            points=[factor],
            limit=400,
        )[0]
        for side in (1, -1)
    ]
    n_a, n_b = freedom + 1, 1
    power = effect_power(shift / np.sqrt(n_a * n_b / (n_a + n_b)), n_a, n_b, alpha=alpha)
    assert power == pytest.approx(sum(tails), abs=1e-7)


def test_examples_for_an_auc_difference_fall_with_the_correlation() -> None:
    sizes = [examples_for_auc_difference(0.70, 0.65, correlation=r) for r in (0.0, 0.5, 0.9)]
    assert sizes[0] > 1.9 * sizes[1] > 1.9 * 4 * sizes[2]
    n = sizes[1]
    a, b = auc_stderr(0.70, n, n), auc_stderr(0.65, n, n)
    assert norm.sf(norm.isf(0.025) - 0.05 / np.sqrt(a**2 + b**2 - a * b)) == pytest.approx(0.8, abs=0.005)


def test_examples_for_a_tpr_difference_published_and_simulated() -> None:
    assert (
        examples_for_tpr_difference(0.2, 0.1) == examples_for_tpr_difference(0.1, 0.2) == 219
    )  # Fleiss et al., tables
    n = pairs_for_tpr_difference(0.15, 0.05)
    rng = np.random.default_rng(1)
    found = []
    for _ in range(600):
        kind = rng.choice(3, size=n, p=(0.15, 0.05, 0.8))
        found.append(mcnemar(kind == 0, kind == 1) <= 0.05)
    assert np.mean(found) == pytest.approx(0.78, abs=0.06)  # the exact test is a little conservative


@pytest.mark.parametrize(
    "call",
    [
        lambda: minimum_negatives(0.0),
        lambda: minimum_negatives(0.1, alpha=1.0),
        lambda: minimum_negatives(0.1, alarms=-1),
        lambda: minimum_references(1.0),
        lambda: rate_test_power(0, null=0.1, true=0.2),
        lambda: trials_for_rate(null=0.2, true=0.1),
        lambda: trials_for_rate(null=0.2, true=0.2 + 1e-12),
        lambda: auc_stderr(1.0, 5, 5),
        lambda: auc_stderr(0.6, 0, 5),
        lambda: detectable_auc(0, 5, alpha=0.05),
        lambda: detectable_auc(5, 0, alpha=0.05),
        lambda: detectable_auc(5, 5, alpha=0.0),
        lambda: detectable_auc(5, 5, alpha=0.05, power=1.0),
        lambda: detectable_auc(5, 5, alpha=0.05, power=0.05),
        lambda: detectable_effect(0, 5, alpha=0.05),
        lambda: detectable_effect(1, 1, alpha=0.05),
        lambda: detectable_effect(5, 5, alpha=1.0),
        lambda: detectable_effect(5, 5, alpha=0.1, power=0.1),
        lambda: effect_power(np.nan, 5, 5, alpha=0.05),
        lambda: effect_power(np.inf, 5, 5, alpha=0.05),
        lambda: effect_power(1.0, 2, 0, alpha=0.05),
        lambda: runs_for_effect(0.0, alpha=0.05),
        lambda: runs_for_effect(np.nan, alpha=0.05),
        lambda: runs_for_effect(1e-6, alpha=0.05),
        lambda: runs_for_effect(1.0, alpha=0.05, power=0.01),
        lambda: examples_for_auc(0.5),
        lambda: examples_for_auc(0.6, negatives_per_positive=0),
        lambda: examples_for_auc(0.5 + 1e-7),
        lambda: examples_for_auc_difference(0.6, 0.7, correlation=1.0),
        lambda: examples_for_tpr_difference(0.2, 0.2),
        lambda: examples_for_tpr_difference(0.2, 0.2 + 1e-9),
        lambda: pairs_for_tpr_difference(0.7, 0.6),
        lambda: pairs_for_tpr_difference(0.1, 0.1),
    ],
)
def test_what_cannot_be_planned_is_refused(call) -> None:
    with pytest.raises(InvalidInput):
        call()
