"""The paired drift test: its distance is Kolmogorov and Smirnov's, its p-value that of all swaps, its level is kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, ks_2samp

from contracts.errors import InvalidInput
from stats.drift import ks_distance, moved


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_the_distance_is_that_of_the_definition_ties_included(x: list[int], y: list[int]) -> None:
    naive = max(abs(np.mean(np.array(x) <= at) - np.mean(np.array(y) <= at)) for at in (*x, *y))
    assert ks_distance(x, y) == pytest.approx(naive, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9), st.integers(0, 99))
def test_the_p_value_is_that_of_all_swaps(pairs: list[tuple[int, int]], seed: int) -> None:
    x, y = np.array(pairs, dtype=float).T
    distance, p = moved(x, y, seed=seed, draws=2000)
    assert distance == pytest.approx(ks_distance(x, y))
    swaps = np.array(list(itertools.product([False, True], repeat=len(x))))
    exact = np.mean([ks_distance(np.where(s, y, x), np.where(s, x, y)) >= distance - 1e-12 for s in swaps])
    spread = 5 * np.sqrt(exact * (1 - exact) / 2000) + 1e-3
    assert abs(p - exact) <= spread or np.array_equal(x, y)


def test_exchangeable_pairs_raise_an_alarm_at_their_level_and_no_oftener() -> None:
    """Correlated pairs, 300 comparisons at 0.1; an unpaired test would hardly ever alarm."""
    rng = np.random.default_rng(7)
    alarms = unpaired = 0
    for trial in range(300):
        own = rng.normal(size=80)
        x, y = own + 0.3 * rng.normal(size=(2, 80))
        alarms += moved(x, y, seed=trial, draws=199)[1] <= 0.1
        unpaired += ks_2samp(x, y).pvalue <= 0.1
    low, high = binom.ppf([0.001, 0.999], 300, 0.1)
    assert low <= alarms <= high
    assert unpaired < low


@pytest.mark.parametrize(
    "change",
    [lambda v: v + 0.25, lambda v: 1.4 * v, lambda v: np.where(v > 1.0, v + 2, v)],
    ids=["place", "spread with the same mean", "one tail"],
)
def test_a_move_is_found(change) -> None:
    rng = np.random.default_rng(3)
    own = rng.normal(size=600)
    distance, p = moved(own, change(own) + 0.05 * rng.normal(size=600), seed=0, draws=999)
    assert p == 0.001 and distance > 0.05


def test_it_repeats_by_seed_whatever_the_order_or_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 50))
    first = moved(x, y, seed=4)
    assert moved(x, y, seed=4) == first
    monkeypatch.setattr("stats.drift._AT_ONCE", 7)
    assert moved(x, y, seed=4) == first
    assert moved(x, x, seed=4) == (0.0, 1.0)
    assert moved(x, x[::-1], seed=0)[0] == 0.0  # the same values on other examples: the distribution has not moved


@pytest.mark.parametrize(("x", "y"), [([1.0], [1.0, 2.0]), ([], []), ([np.nan], [1.0]), ([[1.0]], [[1.0]])])
def test_what_cannot_be_compared_is_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(InvalidInput):
        moved(x, y, seed=0)
    with pytest.raises(InvalidInput, match="draws"):
        moved([1.0], [2.0], seed=0, draws=0)
