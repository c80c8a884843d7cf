"""KLoM against naive loops, closed forms and exact laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import entropy

from contracts.errors import InvalidInput
from stats.klom import BINS, EPS, binned_kl, klom, normal_kl


def naive_binned(p: np.ndarray, q: np.ndarray) -> float:
    """One example: shared equal bins, the greatest value in the last, shares of q not below EPS."""
    p, q = np.clip(p, -100, 100), np.clip(q, -100, 100)
    low, high = min(p.min(), q.min()), max(p.max(), q.max())
    if low == high:
        return 0.0
    shares = [np.histogram(v, bins=BINS, range=(low, high))[0] / len(v) for v in (p, q)]
    return float(entropy(shares[0], np.where(shares[0] > 0, np.maximum(shares[1], EPS), shares[1])))


@pytest.mark.parametrize("runs", [(1, 1), (3, 5), (100, 100)])
def test_the_published_bins_are_those_of_a_loop_over_examples(runs):
    rng = np.random.default_rng(0)
    p, q = rng.normal(0, 3, (runs[0], 7)), rng.normal(1, 2, (runs[1], 7))
    p[:, 0], q[:, 0] = 4.0, 4.0  # margins that never move
    p[0, 1] = 1e6  # cut to 100
    expected = [naive_binned(p[:, i], q[:, i]) for i in range(7)]
    np.testing.assert_allclose(binned_kl(p, q), expected, atol=1e-9)


def test_disjoint_laws_reach_the_most_the_bins_can_say():
    found = binned_kl(np.zeros((5, 1)), np.ones((5, 1)))[0]
    assert found == pytest.approx(math.log((1 + EPS) / EPS)) and 11.5 < found < 11.52


def test_many_runs_of_two_normals_have_their_divergence_by_both_estimators():
    rng = np.random.default_rng(1)
    p, q = rng.normal(1.0, 1.0, (200_000, 1)), rng.normal(0.0, 1.5, (200_000, 1))
    exact = math.log(1.5) + (1 + 1) / (2 * 1.5**2) - 0.5
    assert normal_kl(p, q)[0] == pytest.approx(exact, rel=0.02)
    assert binned_kl(p, q)[0] == pytest.approx(exact, rel=0.1)
    assert normal_kl(q, p)[0] == pytest.approx(-math.log(1.5) + (1.5**2 + 1) / 2 - 0.5, rel=0.02), "it has a direction"


def test_moderated_variances_are_those_of_the_formula():
    p, q = np.array([[0.0, 0.0], [2.0, 4.0]]), np.array([[1.0, 1.0], [1.0, 5.0]])
    prior = np.median([0.0, 8.0])
    s2, t2 = (1 * np.array([2.0, 8.0]) + 4 * prior) / 5, (1 * np.array([0.0, 8.0]) + 4 * prior) / 5
    d2 = np.array([0.0, 1.0])
    np.testing.assert_allclose(normal_kl(p, q), 0.5 * (np.log(t2 / s2) + (s2 + d2) / t2 - 1))


@pytest.mark.parametrize("estimator", [binned_kl, normal_kl])
@pytest.mark.parametrize("runs", [5, 12])
def test_an_exact_method_has_no_excess_however_biased_the_figure(estimator, runs):
    rng = np.random.default_rng(2)
    excess, values = [], []
    for k in range(60):
        shared = rng.normal(0, 1, (runs, 1))  # a seed's own part: runs are paired
        u, r = (shared + rng.normal(0, 1, (runs, 40)) for _ in range(2))
        found = klom(u, r, estimator=estimator, seed=k, swaps=1)
        excess.append(found.excess.mean())
        values.append(found.value.mean())
    error = np.std(excess, ddof=1) / math.sqrt(len(excess))
    assert abs(np.mean(excess)) < 4 * error, "unbiased"
    assert np.mean(values) > 6 * error, "what is not corrected for: two samples of one law are not alike"


@pytest.mark.parametrize("estimator", [binned_kl, normal_kl])
def test_what_differs_has_an_excess_and_a_small_p_value(estimator):
    rng = np.random.default_rng(3)
    u, r = rng.normal(2.0, 1, (10, 30)), rng.normal(0.0, 1, (10, 30))
    found = klom(u, r, estimator=estimator, seed=0)
    assert found.excess.mean() > 0.5 and found.p_value < 0.02


def test_false_alarms_of_the_swaps_keep_to_their_level():
    rng = np.random.default_rng(4)
    p_values = np.array(
        [
            klom(*rng.normal(0, 1, (2, 8, 10)), estimator=normal_kl, seed=k, halvings=1, swaps=39).p_value
            for k in range(250)
        ]
    )
    # 12.5 expected of 250 at 5%, standard deviation 3.4
    assert (p_values <= 0.05).sum() < 12.5 + 4 * 3.4
    assert 0.4 < p_values.mean() < 0.6


def test_few_runs_cannot_give_a_smaller_p_value_than_the_swaps_there_are():
    rng = np.random.default_rng(5)
    found = klom(rng.normal(50, 1, (3, 4)), rng.normal(0, 1, (3, 4)), seed=0, swaps=199)
    assert found.p_value >= 2.0**-3 and np.isnan(found.half).all() and np.isnan(found.floor).all()
    u, r = np.random.default_rng(6).normal(0, 1, (2, 3, 4))
    exact = [
        normal_kl(np.where(s, r, u), np.where(s, u, r)).mean()
        for s in (np.array(swap)[:, None].astype(bool) for swap in itertools.product((0, 1), repeat=3))
    ]
    share = np.mean(np.array(exact) >= exact[0])
    assert klom(u, r, estimator=normal_kl, seed=1, swaps=199).p_value == share
    wide = np.random.default_rng(8).normal(0, 1, (2, 9, 4))
    every, some = (klom(*wide, estimator=normal_kl, seed=1, swaps=n).p_value for n in (511, 400))
    assert every == pytest.approx(some, abs=0.1) and every != some and every * 512 == round(every * 512)


def test_halves_of_one_halving_by_hand():
    rng = np.random.default_rng(7)
    u, r = rng.normal(0, 1, (2, 6, 5))
    found = klom(u, r, seed=9, halvings=1, swaps=0)
    order = np.random.default_rng(9).permutation(6)
    a, b = order[:3], order[3:]
    np.testing.assert_allclose(found.half, binned_kl(u[a], r[b]))
    np.testing.assert_allclose(found.floor, binned_kl(r[a], r[b]))
    assert (found.value == binned_kl(u, r)).all()


@pytest.mark.parametrize(
    ("u", "r"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2))),
        (np.zeros((3, 2)), np.zeros((3, 1))),
        (np.zeros((1, 2)), np.zeros((1, 2))),
        (np.full((3, 2), np.nan), np.zeros((3, 2))),
        (np.zeros(3), np.zeros(3)),
    ],
)
def test_what_is_refused(u, r):
    with pytest.raises(InvalidInput):
        klom(u, r, seed=0)


def test_no_example_is_no_figure():
    found = klom(np.zeros((4, 0)), np.zeros((4, 0)), seed=0)
    assert found.value.shape == (0,) and found.p_value == 1.0
