"""All pairs of methods over the same runs: closed forms, family-wise error by simulation, letters by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from contracts.errors import InvalidInput
from stats.multiple import holm
from stats.pairwise import all_pairs, letters


def test_pairs_are_paired_t_tests_with_holm_and_bonferroni():
    values = np.random.default_rng(0).normal([0, 1, 5, 5], 1, (6, 4))
    found = all_pairs(values, alpha=0.1)
    p = []
    for k, (i, j) in enumerate(itertools.combinations(range(4), 2)):
        test = stats.ttest_rel(values[:, i], values[:, j])
        bounds = test.confidence_interval(1 - 0.1 / 6)
        assert (found.first[k], found.second[k], found.num[k]) == (i, j, 6)
        assert found.p_value[k] == pytest.approx(test.pvalue)
        assert (found.low[k], found.high[k]) == pytest.approx((bounds.low, bounds.high))
        p.append(test.pvalue)
    np.testing.assert_allclose(found.p_holm, holm(p))
    assert (found.apart == (found.p_holm <= 0.1)).all() and found.apart.any() and not found.apart.all()


def test_the_pairing_is_used():
    run = np.array([0.0, 10.0, 20.0, 30.0])[:, None]
    values = run + np.array([0.0, 1.0]) + np.array([[0.1, 0], [0, 0.1], [0, 0], [0.05, 0]])
    assert all_pairs(values).apart[0], "what the runs share cancels; two separate intervals would overlap widely"
    shuffled = np.stack([values[:, 0], values[[1, 2, 3, 0], 1]], axis=1)
    assert not all_pairs(shuffled).apart[0]


def test_runs_that_only_one_has_do_not_count():
    values = np.random.default_rng(1).normal([0, 3], 1, (8, 2))
    with_gaps = np.concatenate([values, [[np.nan, 1.0], [5.0, np.nan]]])
    one, two = all_pairs(values), all_pairs(with_gaps)
    assert (one.difference, one.p_value, one.num) == (two.difference, two.p_value, two.num)
    lonely = all_pairs([[1.0, np.nan], [np.nan, 2.0]])
    assert lonely.num[0] == 0 and lonely.p_value[0] == 1.0 and np.isnan(lonely.low[0]) and not lonely.apart[0]


def test_values_that_agree_are_known_to_their_resolution_only():
    values = np.array([[1.0, 2.0]] * 3)
    assert all_pairs(values).p_value[0] == 0.0
    error = np.sqrt(3.0**2 / 12 / 3)
    found = all_pairs(values, step=3.0)
    assert found.p_value[0] == pytest.approx(2 * stats.t.sf(1 / error, 2)) and not found.apart[0]
    assert all_pairs([[1.0, 1.0]] * 3).p_value[0] == 1.0


def test_the_chance_of_any_false_difference_is_kept():
    rng = np.random.default_rng(2)
    spread = np.array([0.1, 1.0, 3.0, 1.0, 0.5])  # methods do not vary alike
    alarms = sum(all_pairs(rng.normal(0, 1, (4, 1)) + rng.normal(0, spread, (4, 5))).apart.any() for _ in range(600))
    # at most 30 expected of 600, standard deviation 5.3
    assert alarms < 30 + 4 * 5.3
    covered = 0
    for _ in range(400):
        found = all_pairs(rng.normal(np.arange(5.0), spread, (4, 5)))
        true = found.first - found.second
        covered += bool(((found.low <= true) & (true <= found.high)).all())
    assert covered > 380 - 4 * 4.4, "all intervals together"


@given(
    st.integers(1, 7).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))
    )
)
def test_two_share_a_letter_if_and_only_if_they_are_not_told_apart(case):
    num, drawn = case
    different = {(min(p), max(p)) for p in drawn if p[0] != p[1]}
    found = letters(range(num), different)
    for i, j in itertools.combinations(range(num), 2):
        assert bool(set(found[i]) & set(found[j])) == ((i, j) not in different)
    groups = [
        frozenset(m for m in range(num) if letter in found[m]) for letter in sorted({c for f in found for c in f})
    ]
    cliques = [
        frozenset(c)
        for size in range(1, num + 1)
        for c in itertools.combinations(range(num), size)
        if not any(p in different for p in itertools.combinations(c, 2))
    ]
    largest = {c for c in cliques if not any(c < other for other in cliques)}
    assert set(groups) == largest and len(groups) == len(largest), "every group once, none inside another"
    assert all(found) and "a" in found[0]


def test_letters_follow_the_order_given():
    assert letters([2, 0, 1], {(2, 1), (1, 0)}) == ["a", "b", "a"]
    assert letters([], set()) == []


@pytest.mark.parametrize("bad", [{"alpha": 0.0}, {"alpha": 1.0}, {"step": -1.0}])
def test_what_is_refused(bad):
    with pytest.raises(InvalidInput):
        all_pairs([[1.0, 2.0]], **bad)
    with pytest.raises(InvalidInput):
        all_pairs([1.0, 2.0])
    with pytest.raises(InvalidInput):
        all_pairs([[np.inf, 2.0]])


def test_one_method_has_no_pair():
    found = all_pairs([[1.0], [2.0]])
    assert not len(found.first) and found.letters([0]) == ["a"]
