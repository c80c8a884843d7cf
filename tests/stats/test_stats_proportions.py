"""Intervals of proportions: published values, coverage by enumeration, and what they call among examples that are not
memorised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from contracts.errors import InvalidInput
from stats.proportions import newcombe, wilson

# Newcombe 1998, table II, method 10: successes and trials of both, then the limits.
PUBLISHED = [
    (56, 70, 48, 80, 0.0524, 0.3339),
    (9, 10, 3, 10, 0.1705, 0.8090),
    (6, 7, 2, 7, 0.0582, 0.8062),
    (5, 56, 0, 29, -0.0381, 0.1926),
    (0, 10, 0, 20, -0.1611, 0.2775),
    (0, 10, 0, 10, -0.2775, 0.2775),
    (10, 10, 0, 20, 0.6791, 1.0),
    (10, 10, 0, 10, 0.6075, 1.0),
]


def test_published_values() -> None:
    a, m, b, n, low, high = np.array(PUBLISHED).T
    found = newcombe(a / m, m, b / n, n)
    np.testing.assert_allclose(found, (low, high), atol=5e-5)


@given(st.integers(1, 60), st.integers(0, 60), st.floats(0.5, 0.999))
def test_wilson_against_scipy(trials: int, hits: int, level: float) -> None:
    hits = min(hits, trials)
    exact = binomtest(hits, trials).proportion_ci(level, method="wilson")
    np.testing.assert_allclose(wilson(hits / trials, trials, level=level), (exact.low, exact.high), atol=1e-12)


@given(st.integers(1, 30), st.integers(1, 30))
def test_it_is_never_of_width_zero_and_never_outside(m: int, n: int) -> None:
    one, other = np.arange(m + 1)[:, None] / m, np.arange(n + 1)[None] / n
    low, high = newcombe(one, m, other, n)
    assert (high - low > 1e-3).all() and (low >= -1).all() and (high <= 1).all()
    assert ((low <= one - other) & (one - other <= high)).all()
    mirrored = newcombe(other, n, one, m)
    np.testing.assert_allclose(mirrored, (-high, -low), atol=1e-12)


@pytest.mark.parametrize(("trials", "least"), [(10, 0.91), (32, 0.93)])
def test_coverage_over_all_truths(trials: int, least: float) -> None:
    """By enumeration of all outcomes, for 49 x 49 pairs of proportions."""
    share = np.arange(trials + 1) / trials
    low_OO, high_OO = newcombe(share[:, None], trials, share[None], trials)
    truth_T = np.linspace(0.02, 0.98, 49)
    weight_TO = binom.pmf(np.arange(trials + 1), trials, truth_T[:, None])
    true_TT = (truth_T[:, None] - truth_T)[..., None, None]
    covered = (low_OO <= true_TT + 1e-12) & (true_TT - 1e-12 <= high_OO)
    coverage_TT = np.einsum("to,up,tuop->tu", weight_TO, weight_TO, covered)
    assert 0.94 < coverage_TT.mean() < 0.97
    assert np.quantile(coverage_TT, 0.01) >= least and coverage_TT[10:-10, 10:-10].max() < 0.99


def test_nothing_is_known_without_trials() -> None:
    low, high = newcombe([0.5, np.nan], [4, 0], [1.0, 1.0], [4, 4])
    assert np.isfinite([low[0], high[0]]).all() and np.isnan([low[1], high[1]]).all()


@pytest.mark.parametrize(
    ("share", "trials", "level"),
    [(1.1, 3, 0.9), (-0.1, 3, 0.9), (np.nan, 3, 0.9), (0.5, -1, 0.9), (0.5, 3, 1.0), (0.5, 3, 0.0)],
)
def test_what_is_no_proportion_is_refused(share: float, trials: int, level: float) -> None:
    with pytest.raises(InvalidInput):
        wilson(share, trials, level=level)
