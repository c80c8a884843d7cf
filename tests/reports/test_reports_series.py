from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contracts.errors import InvalidInput
from reports import Curve, Histogram
from reports.series import MAX_BINS, MAX_POINTS


@given(
    hnp.arrays(np.float64, st.integers(0, 200), elements=st.floats(-1e6, 1e6) | st.just(float("nan"))),
    st.integers(1, MAX_BINS),
)
def test_every_finite_value_is_counted_once(values: np.ndarray, bins: int) -> None:
    made = Histogram.of(values, bins=bins)
    finite = values[np.isfinite(values)]
    assert made.counts.sum() == finite.size
    assert made.missing == values.size - finite.size
    assert (np.diff(made.edges) > 0).all()
    for q, value in made.quantiles:
        assert value == pytest.approx(np.quantile(finite, q))


def test_whole_numbers_get_a_bin_each() -> None:
    made = Histogram.of([0, 1, 1, 3], bins=40)
    assert made.edges.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]
    assert made.counts.tolist() == [1, 2, 0, 1]


def test_counts_are_those_of_a_plain_loop() -> None:
    values = np.random.default_rng(3).normal(size=500)
    made = Histogram.of(values, bins=7)
    naive = [0] * 7
    for v in values:
        naive[min(6, max(0, int(np.searchsorted(made.edges, v, side="right")) - 1))] += 1
    assert made.counts.tolist() == naive


@pytest.mark.parametrize(("values", "bins"), [([1.0], 0), ([1.0], MAX_BINS + 1), ([[1.0]], 5)])
def test_bad_histograms_are_refused(values: list, bins: int) -> None:
    with pytest.raises(InvalidInput):
        Histogram.of(values, bins=bins)


def test_a_thinned_curve_keeps_points_of_the_curve_and_its_value_at_every_low_rate() -> None:
    rng = np.random.default_rng(0)
    n = 200_000
    fpr = np.sort(rng.integers(0, n + 1, n)) / n
    tpr = np.sort(rng.random(n)) ** 0.3
    fpr[0] = tpr[0] = 0.0
    fpr[-1] = tpr[-1] = 1.0
    thin = Curve.of(fpr, tpr, n_pos=n, n_neg=n)
    assert thin.fpr.size <= MAX_POINTS
    assert set(zip(thin.fpr, thin.tpr, strict=True)) <= set(zip(fpr, tpr, strict=True))
    assert (thin.fpr[-1], thin.tpr[-1]) == (1.0, 1.0)
    for rate in np.geomspace(1 / n, 1, 7):  # the step function read off the thinned curve is never above the whole one
        whole, kept = tpr[fpr <= rate].max(), thin.tpr[thin.fpr <= rate].max()
        assert 0 <= whole - kept <= 0.03


def test_a_short_curve_is_left_alone() -> None:
    made = Curve.of([0, 0.5, 1], [0, 1, 1], n_pos=2, n_neg=2)
    assert made.facts() == {"fpr": [0, 0.5, 1], "tpr": [0, 1, 1], "n_pos": 2, "n_neg": 2}


@pytest.mark.parametrize(
    ("fpr", "tpr", "n"),
    [
        ([0, 1], [0, 1.1], 5),
        ([0, 0.5, 0.4, 1], [0, 0.1, 0.2, 1], 5),
        ([0, 1], [0, float("nan")], 5),
        ([0, 1], [0, 1], 0),
        ([0], [0], 5),
    ],
)
def test_bad_curves_are_refused(fpr: list, tpr: list, n: int) -> None:
    with pytest.raises(InvalidInput):
        Curve.of(fpr, tpr, n_pos=n, n_neg=n)
