"""Paired tests against their definitions, enumeration and simulation."""

from __future__ import annotations

import math
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from contracts.errors import InvalidInput
from stats import (
    auc,
    auc_interval,
    bounded_difference,
    delong_paired,
    mcnemar,
    paired_bootstrap,
    sign_flip_p_value,
    wilcoxon_p_value,
)

small = st.integers(0, 5)
rows = st.lists(st.tuples(small, small, st.booleans()), min_size=8, max_size=45).filter(
    lambda r: 1 <= sum(m for *_, m in r) <= len(r) - 1
)


def naive_placements(scores: np.ndarray, member: np.ndarray) -> tuple[list[float], list[float]]:
    pos, neg = scores[member], scores[~member]
    wins = [[1.0 if p > n else 0.5 if p == n else 0.0 for n in neg] for p in pos]
    return [sum(w) / len(neg) for w in wins], [sum(w[j] for w in wins) / len(pos) for j in range(len(neg))]


@given(rows)
def test_paired_delong_equals_its_definition(given_rows: list[tuple[int, int, bool]]) -> None:
    a, b = (np.array([float(r[i]) for r in given_rows]) for i in (0, 1))
    member = np.array([r[2] for r in given_rows])
    found = delong_paired(a, b, member)
    v10_a, v01_a = naive_placements(a, member)
    v10_b, v01_b = naive_placements(b, member)
    assert found.auc_a == pytest.approx(auc(a[member], a[~member]))
    assert found.value == pytest.approx(np.mean(v10_a) - np.mean(v10_b), abs=1e-12)
    if min(len(v10_a), len(v01_a)) < 10:  # too few for a variance: nothing is claimed
        assert np.isnan(found.stderr) and (found.low, found.high, found.p_value) == (-1, 1, 1)
        return
    # The paper's form: variances and the covariance of both AUCs, not the variance of the difference.
    s10, s01 = np.cov(v10_a, v10_b), np.cov(v01_a, v01_b)
    s = s10 / len(v10_a) + s01 / len(v01_a)
    variance = s[0, 0] + s[1, 1] - 2 * s[0, 1]
    assert found.stderr == pytest.approx(np.sqrt(max(variance, 0)), abs=1e-7)
    assert -1 <= found.low <= found.value <= found.high <= 1 and 0 <= found.p_value <= 1
    swapped = delong_paired(b, a, member)
    assert (swapped.value, swapped.low, swapped.p_value) == pytest.approx((-found.value, -found.high, found.p_value))


def test_paired_delong_of_uncorrelated_scores_is_the_unpaired_one_and_of_correlated_ones_is_sharper() -> None:
    rng = np.random.default_rng(0)
    member = np.arange(4000) < 2000
    a, b = (rng.normal(size=4000) + 0.5 * member for _ in range(2))
    alone = [auc_interval(v[member], v[~member]).stderr for v in (a, b)]
    assert delong_paired(a, b, member).stderr == pytest.approx(np.hypot(*alone), rel=0.05)
    assert delong_paired(a, a + 0.1 * b, member).stderr < 0.2 * np.hypot(*alone)


def test_paired_delong_without_variance_is_honest() -> None:
    member = np.arange(20) < 10
    perfect = member.astype(float)
    same = delong_paired(perfect, 2 * perfect, member)
    assert (same.value, same.p_value) == (0, 1) and same.high == -same.low == pytest.approx(1 - 0.025 ** (1 / 10))
    against = delong_paired(perfect, -perfect, member)
    assert against.value == 1 and against.p_value == pytest.approx(2 / 2**10) and against.low < 1
    assert delong_paired(perfect, np.zeros(20), member).value == 0.5


@pytest.mark.parametrize(("n_pos", "n_neg"), [(9, 60), (60, 9), (9, 9), (1, 60)])
def test_paired_delong_of_too_few_claims_nothing(n_pos: int, n_neg: int) -> None:
    member = np.arange(n_pos + n_neg) < n_pos
    found = delong_paired(member.astype(float), -member.astype(float), member)
    assert (found.value, found.low, found.high, found.p_value) == (1, -1, 1, 1) and np.isnan(found.stderr)
    member = np.arange(70) < 10
    assert delong_paired(member.astype(float), -member.astype(float), member).p_value < 0.01


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=25))
def test_mcnemar_equals_the_binomial_law(found: list[tuple[bool, bool]]) -> None:
    a, b = np.array(found).T
    k, n = int((a & ~b).sum()), int((a != b).sum())
    tail = sum(comb(n, i) for i in range(max(k, n - k), n + 1)) / 2**n
    assert mcnemar(a, b) == pytest.approx(min(1.0, 2 * tail) if n else 1.0)
    assert mcnemar(a, b) == pytest.approx(mcnemar(b, a))


def test_sign_flips_and_wilcoxon_equal_enumeration() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.6, 1, 9), np.zeros(9)
    means = [np.mean(np.array(signs) * a) for signs in product((1, -1), repeat=9)]
    assert sign_flip_p_value(a, b, alternative="greater") == pytest.approx(np.mean(np.array(means) >= a.mean() - 1e-12))
    both = 2 * min(np.mean(np.array(means) >= a.mean() - 1e-12), np.mean(np.array(means) <= a.mean() + 1e-12))
    assert sign_flip_p_value(a, b) == pytest.approx(min(1.0, both))
    ranks = np.abs(a).argsort().argsort() + 1
    sums = [ranks[np.array(signs) > 0].sum() for signs in product((1, -1), repeat=9)]
    greater = np.mean(np.array(sums) >= ranks[a > 0].sum())
    assert wilcoxon_p_value(a, b, alternative="greater") == pytest.approx(greater)


def test_simulated_sign_flips_repeat_by_seed_and_never_reach_zero() -> None:
    rng = np.random.default_rng(2)
    a = rng.normal(5, 1, 40)
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the global generator must be left alone
    first, second = (sign_flip_p_value(a, np.zeros(40), seed=3, flips=999) for _ in range(2))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert first == second == pytest.approx(2 / 1000)


def test_equal_pairs_are_no_evidence() -> None:
    a = np.arange(6.0)
    assert sign_flip_p_value(a, a) == wilcoxon_p_value(a, a) == 1
    found = paired_bootstrap(a + 1, a)
    assert (found.value, found.low, found.high, found.num_pairs) == (1, 1, 1, 6)


def test_paired_bootstrap_is_sharper_than_its_halves_and_covers() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        shared = rng.normal(0, 5, 40)
        a, b = shared + rng.exponential(1, 40), shared
        found = paired_bootstrap(a, b, seed=trial, resamples=999)
        assert found.high - found.low < 1.5
        covered += found.low <= 1 <= found.high
    assert covered / 200 >= 0.89


@pytest.mark.parametrize(
    "call",
    [
        lambda: delong_paired([1, 2], [1, 2], [True, True]),
        lambda: delong_paired([1, 2, 3, np.nan], [1, 2, 3, 4], [True, True, False, False]),
        lambda: delong_paired([1, 2, 3, 4], [1, 2, 3], [True, True, False, False]),
        lambda: delong_paired([1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 0, 0]),
        lambda: delong_paired([1, 2, 3, 4], [1, 2, 3, 4], [True, True, False, False], alpha=0),
        lambda: mcnemar([1, 0], [True, False]),
        lambda: mcnemar([True], [True, False]),
        lambda: sign_flip_p_value([1.0, np.nan], [0.0, 0.0]),
        lambda: wilcoxon_p_value([], []),
        lambda: paired_bootstrap([1.0], [0.0]),
        lambda: paired_bootstrap([1.0, 2.0], [0.0, 1.0], alpha=1),
    ],
)
def test_what_is_not_paired_is_refused(call) -> None:
    with pytest.raises(InvalidInput):
        call()


@pytest.mark.stat
def test_paired_delong_covers_and_keeps_its_level() -> None:
    """Two correlated attacks, 6,000 data sets each (their share of 95% intervals has an error of 0.003)."""
    from scipy.stats import norm

    rng = np.random.default_rng(4)
    few = (1.5, 0.8, 10, 50)  # ten, the fewest that have an interval
    for gain_a, gain_b, n_pos, n_neg in ((0.5, 0.5, 130, 250), (0.8, 0.5, 100, 100), few):
        truth = norm.cdf(gain_a / np.sqrt(2)) - norm.cdf(gain_b / np.sqrt(2))
        member = np.arange(n_pos + n_neg) < n_pos
        covered = []
        for _ in range(6000):
            common = rng.normal(size=len(member))
            a, b = (0.8 * common + 0.6 * rng.normal(size=len(member)) + gain * member for gain in (gain_a, gain_b))
            found = delong_paired(a, b, member)
            covered.append(found.low <= truth <= found.high)
        assert np.mean(covered) >= (0.93 if n_pos == 10 else 0.94)


# --- the mean difference of values in [0, 1] ----------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.floats(0.001, 0.3))
def test_of_right_and_wrong_it_is_the_interval_of_agresti_and_min(pairs: list[tuple[bool, bool]], alpha: float) -> None:
    n, b, c = len(pairs), sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    b_, c_, n_ = b + 0.5, c + 0.5, n + 2
    reach = norm.isf(alpha / 2) * math.sqrt(b_ + c_ - (b_ - c_) ** 2 / n_) / n_
    found = bounded_difference(*np.array(pairs).T, alpha=alpha)
    assert found.value == (b - c) / n
    assert found.low == pytest.approx(max(-1, min((b - c) / n, (b_ - c_) / n_ - reach)), abs=1e-12)
    assert found.high == pytest.approx(min(1, max((b - c) / n, (b_ - c_) / n_ + reach)), abs=1e-12)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40))
def test_it_holds_what_was_seen_never_collapses_and_turns_round(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    found, turned = bounded_difference(a, b), bounded_difference(b, a)
    assert -1 <= found.low <= found.value <= found.high <= 1 and found.high - found.low > 1 / (len(a) + 2)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    wider = bounded_difference(a, b, alpha=0.01)
    assert wider.low <= found.low and wider.high >= found.high


def _qualities(kind: str, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    base = rng.beta(2, 1, n)
    match kind:
        case "close":
            return base, np.clip(base - 0.03 + 0.05 * rng.normal(size=n), 0, 1)
        case "rare":  # one example in fifty is lost altogether, the others are as they were
            return base, np.where(rng.random(n) < 0.02, 0.0, base)
        case "cut":  # many at the ends of the range
            raw = rng.normal(0.6, 0.6, n)
            return np.clip(raw, 0, 1), np.clip(raw - 0.1 + 0.3 * rng.normal(size=n), 0, 1)
        case "apart":
            return rng.random(n), rng.beta(1, 3, n)
        case _:
            return (rng.random(n) < 0.9).astype(float), rng.beta(5, 1, n)


@pytest.mark.parametrize("kind", ["close", "rare", "cut", "apart", "mixed"])
@pytest.mark.parametrize("n", [20, 120])
def test_it_covers(kind: str, n: int) -> None:
    rng = np.random.default_rng(4)
    a, b = _qualities(kind, rng, 400_000)
    truth = float((a - b).mean())
    covered = []
    for _ in range(1500):
        found = bounded_difference(*_qualities(kind, rng, n), alpha=0.05)
        covered.append(found.low <= truth <= found.high)
    assert np.mean(covered) >= 0.94


def test_it_refuses_what_is_no_share() -> None:
    for a, b in (([0.5, 1.1], [0, 0]), ([-0.1], [0.2]), ([0.5], [0.5, 0.5]), ([], []), ([np.nan], [0.1])):
        with pytest.raises(InvalidInput):
            bounded_difference(a, b)
    with pytest.raises(InvalidInput, match="alpha"):
        bounded_difference([0.5], [0.5], alpha=1.0)
