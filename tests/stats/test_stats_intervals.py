"""Exact intervals, rank statistics and adjustments against closed forms, enumeration and simulation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from contracts.errors import InvalidInput
from stats import (
    auc,
    auc_interval,
    benjamini_hochberg,
    clopper_pearson,
    exceedance_p_value,
    holm,
    low_fpr_p_value,
    lower_bound,
    ranking,
    upper_bound,
)


def test_clopper_pearson_known_values() -> None:
    low, high = clopper_pearson([0, 1000, 7], [1000, 1000, 50])
    assert high[0] == pytest.approx(0.003682, abs=5e-7) and low[0] == 0
    assert high[1] == 1 and low[1] == pytest.approx(1 - 0.003682, abs=5e-7)
    exact = binomtest(7, 50).proportion_ci(0.95, method="exact")
    assert (low[2], high[2]) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize("n", [1, 5, 30])
def test_clopper_pearson_covers_every_rate_exactly(n: int) -> None:
    """Exact coverage by summing over all outcomes, no simulation."""
    k = np.arange(n + 1)
    low, high = clopper_pearson(k, n)
    for rate in np.linspace(0.001, 0.999, 97):
        weights = np.array([binom_pmf(n, int(i), rate) for i in k])
        assert weights[(low <= rate) & (rate <= high)].sum() >= 0.95 - 1e-12


def binom_pmf(n: int, k: int, rate: float) -> float:
    from math import comb

    return comb(n, k) * rate**k * (1 - rate) ** (n - k)


def test_one_sided_bounds_are_the_halves_of_the_two_sided_one() -> None:
    assert lower_bound(3, 20, alpha=0.025) == clopper_pearson(3, 20)[0]
    assert upper_bound(3, 20, alpha=0.025) == clopper_pearson(3, 20)[1]


@pytest.mark.parametrize(("k", "n", "alpha"), [(-1, 5, 0.05), (6, 5, 0.05), (0, 0, 0.05), (1, 5, 0.0), (1, 5, 2.0)])
def test_impossible_counts_are_refused(k: int, n: int, alpha: float) -> None:
    with pytest.raises(InvalidInput):
        clopper_pearson(k, n, alpha=alpha)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_and_benjamini_hochberg_equal_their_definitions(p: list[float]) -> None:
    order = np.argsort(p, kind="stable")
    m = len(p)
    stepped, running = {}, 0.0
    for i, j in enumerate(order):
        running = max(running, min(1.0, (m - i) * p[j]))
        stepped[j] = running
    assert holm(p).tolist() == pytest.approx([stepped[j] for j in range(m)])
    falling, running = {}, 1.0
    for i, j in reversed(list(enumerate(order))):
        running = min(running, p[j] * m / (i + 1))
        falling[j] = running
    assert benjamini_hochberg(p).tolist() == pytest.approx([falling[j] for j in range(m)])
    assert (benjamini_hochberg(p) <= holm(p) + 1e-12).all()


def test_p_values_outside_the_unit_interval_are_refused() -> None:
    with pytest.raises(InvalidInput):
        holm([0.1, np.nan])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=25), st.lists(st.integers(0, 6), min_size=1, max_size=25))
def test_delong_equals_its_definition_with_ties(pos: list[int], neg: list[int]) -> None:
    wins = np.array([[float(p > n) + 0.5 * (p == n) for n in neg] for p in pos])
    found = auc_interval(pos, neg)
    assert found.value == pytest.approx(wins.mean()) == auc(pos, neg)
    if min(len(pos), len(neg)) < 10:  # too few for a variance: no interval
        assert np.isnan(found.stderr) and (found.low, found.high) == (0, 1)
        return
    variance = wins.mean(axis=1).var(ddof=1) / len(pos) + wins.mean(axis=0).var(ddof=1) / len(neg)
    assert found.stderr == pytest.approx(np.sqrt(variance) if 0 < found.value < 1 else 0.0, abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_perfect_separation_has_an_honest_bound() -> None:
    found = auc_interval(np.arange(50) + 100, np.arange(80))
    assert found.value == found.high == 1
    assert found.low == pytest.approx(0.025 ** (1 / 50))


@pytest.mark.parametrize(("n_pos", "n_neg"), [(9, 200), (200, 9), (9, 9), (2, 2), (1, 40)])
def test_fewer_than_ten_on_a_side_have_no_interval(n_pos: int, n_neg: int) -> None:
    rng = np.random.default_rng(n_pos)
    for pos in (rng.normal(size=n_pos), np.arange(n_pos) + 10.0):  # the second separates perfectly
        found = auc_interval(pos, rng.normal(size=n_neg))
        assert (found.low, found.high) == (0, 1) and np.isnan(found.stderr) and 0 <= found.value <= 1
    enough = auc_interval(rng.normal(size=10), rng.normal(size=max(10, n_neg)))
    assert 0 < enough.low < enough.value < enough.high < 1 and enough.stderr > 0


def test_auc_refuses_nan_empty_classes_and_levels_outside_the_unit_interval() -> None:
    with pytest.raises(InvalidInput):
        auc([np.nan], [1.0])
    with pytest.raises(InvalidInput):
        auc_interval([], [1.0])
    with pytest.raises(InvalidInput, match="alpha"):
        auc_interval([1.0, 2.0], [0.0, 1.0], alpha=1.0)


def test_exceedance_p_value_equals_enumeration() -> None:
    n_pos, n_neg = 4, 5
    for r in range(n_neg + 1):
        above = []
        for places in combinations(range(n_pos + n_neg), n_pos):  # places of the positives, best first
            negatives = [i for i in range(n_pos + n_neg) if i not in places]
            limit = negatives[r] if r < n_neg else n_pos + n_neg
            above.append(sum(i < limit for i in places))
        for k in range(n_pos + 1):
            expected = np.mean(np.array(above) >= k)
            assert exceedance_p_value(k, n_pos=n_pos, n_neg=n_neg, num_negative_above=r) == pytest.approx(expected)


def test_low_fpr_test_equals_a_permutation_test() -> None:
    n_pos, n_neg, allowed = 30, 50, np.array([1, 5, 12])
    rng = np.random.default_rng(0)
    best_first = rng.permuted(np.tile(np.arange(n_pos + n_neg) < n_pos, (40_000, 1)), axis=1)
    above, negatives = best_first.cumsum(axis=1), (~best_first).cumsum(axis=1)
    # The place just before negative number r + 1.
    counts = np.stack(
        [np.take_along_axis(above, (negatives <= r).sum(axis=1, keepdims=True) - 1, 1)[:, 0] for r in allowed], 1
    )
    statistic = (counts / (allowed + 1)).sum(axis=1)
    for k in ([3, 8, 14], [1, 4, 8], [0, 12, 20]):
        expected = np.mean(statistic >= (np.array(k) / (allowed + 1)).sum() - 1e-9)
        found = low_fpr_p_value(k, allowed.tolist(), n_pos=n_pos, n_neg=n_neg)
        assert found == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 40_000))
    assert low_fpr_p_value([3], [1], n_pos=30, n_neg=50) == exceedance_p_value(
        3, n_pos=30, n_neg=50, num_negative_above=1
    )
    assert low_fpr_p_value([30, 30, 30], [0, 5, 50], n_pos=30, n_neg=50) == pytest.approx(1e-5)
    assert low_fpr_p_value([0, 0], [0, 50], n_pos=30, n_neg=50) == 1


@pytest.mark.parametrize(("k", "r"), [([5], [1, 2]), ([], []), ([31], [1]), ([1], [51]), ([-1], [0])])
def test_impossible_exceedances_are_refused(k: list[int], r: list[int]) -> None:
    with pytest.raises(InvalidInput):
        low_fpr_p_value(k, r, n_pos=30, n_neg=50)


@pytest.mark.stat
def test_delong_covers() -> None:
    rng = np.random.default_rng(0)
    for shift, n_pos, n_neg in ((0.0, 130, 250), (0.5, 60, 60), (2.0, 200, 50)):
        truth = norm.cdf(shift / np.sqrt(2))
        covered = [
            (lambda a: a.low <= truth <= a.high)(auc_interval(rng.normal(shift, 1, n_pos), rng.normal(0, 1, n_neg)))
            for _ in range(2000)
        ]
        assert np.mean(covered) >= 0.94


@pytest.mark.stat
@pytest.mark.parametrize("truth", [0.5, 0.6, 0.75])
def test_delong_covers_from_ten_on_a_side_and_not_with_three(truth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """95% intervals, n positives against 50 negatives: 10 cover 0.94 to 0.95, 5 0.91 to 0.92, 3 0.86 (4,000 data sets
    each)."""

    def covered(n_pos: int) -> float:
        rng = np.random.default_rng(n_pos)
        shift = np.sqrt(2) * norm.ppf(truth)
        each = [auc_interval(rng.normal(shift, 1, n_pos), rng.normal(0, 1, 50)) for _ in range(4000)]
        return float(np.mean([a.low <= truth <= a.high for a in each]))

    assert covered(10) >= 0.93
    monkeypatch.setattr(ranking, "FEWEST_A_SIDE", 2)
    assert covered(3) < 0.9 and covered(5) < 0.93
