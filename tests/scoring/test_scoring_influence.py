"""Influence: the dense formula, blocks, undefined sides, exact p-values, and the false-discovery rate on known
truth."""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, hypergeom
from scoring_data import as_regression, make_examples, predicting, saying

from contracts.errors import DataError, InvalidInput, NotApplicable
from recipes.design import balanced_design
from recipes.ensemble import ReferenceEnsemble
from reproductions.memorization import nearest_neighbour_influence, nearest_neighbour_runs_on
from scoring.influence import (
    InfluenceBlock,
    InfluenceConfig,
    high_influence_pairs,
    influence,
    influence_matrix,
    serfling_tail,
    upper_tail,
)
from scoring.memorization import memorization_scores
from stats.proportions import newcombe


def dense(keep: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """infl (P, N) and its limits (2, P, N) by a loop over all pairs."""
    infl = np.full((correct.shape[1], keep.shape[1]), np.nan)
    limits = np.full((2, *infl.shape), np.nan)
    for j in range(correct.shape[1]):
        for i in range(keep.shape[1]):
            inside, outside = correct[keep[:, i], j], correct[~keep[:, i], j]
            if len(inside) and len(outside):
                q1, q0 = inside.mean(), outside.mean()
                infl[j, i] = q1 - q0
                limits[:, j, i] = newcombe(q1, len(inside), q0, len(outside))
    return infl, limits


def intervals(part: InfluenceBlock) -> np.ndarray:
    """The limits of all pairs of a block (2, b, N)."""
    at = np.indices(part.hits.shape)
    return np.stack(part.interval(at[0].ravel(), at[1].ravel())).reshape(2, *part.hits.shape)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_blocks_equal_the_loop_over_pairs(models: int, num: int, tests: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keep, correct = rng.random((models, num)) < rng.random(num), rng.random((models, tests)) < 0.6
    parts = list(influence_matrix(keep, correct, block=block))
    assert [p.rows.start for p in parts] == list(range(0, tests, block))
    infl, limits = dense(keep, correct)
    if parts:
        np.testing.assert_allclose(np.concatenate([p.infl for p in parts]), infl, atol=1e-12)
        np.testing.assert_allclose(np.concatenate([intervals(p) for p in parts], axis=1), limits, atol=1e-12)
        (whole,) = influence_matrix(keep, correct, block=tests)
        np.testing.assert_array_equal(np.concatenate([p.infl for p in parts]), whole.infl)


def test_an_example_in_all_runs_has_no_influence_rather_than_zero() -> None:
    keep = np.array([[True, False, True], [True, False, False]])
    (part,) = influence_matrix(keep, np.array([[True], [False]]))
    assert np.isnan(part.infl[0, :2]).all() and np.isnan(intervals(part)[:, 0, :2]).all() and part.infl[0, 2] == 1
    found = high_influence_pairs(keep, np.array([[True], [False]]), np.ones(3), fdr=1.0)
    assert (found.train.tolist(), found.num_memorised, found.num_tested) == ([2], 1, 1)


def test_influence_on_itself_is_memorization() -> None:
    rng = np.random.default_rng(0)
    keep, correct = balanced_design(20, 15, seed=1), rng.random((20, 15)) < 0.6
    (part,) = influence_matrix(keep, correct)
    found = memorization_scores(keep, correct)
    np.testing.assert_allclose(np.diag(part.infl), found.mem, atol=1e-12)
    both = np.arange(15)
    np.testing.assert_allclose(part.interval(both, both), (found.low, found.high), atol=1e-12)


@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_p_values_are_the_hypergeometric_tail(models: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keep = rng.random((models, 7)) < rng.random(7)
    correct = rng.random((models, 4)) < rng.random(4)
    (part,) = influence_matrix(keep, correct)
    exact = hypergeom.sf(part.hits - 1, models, part.right[:, None], part.n_in[None])
    np.testing.assert_allclose(upper_tail(part.hits, part.right, part.n_in, models), exact, rtol=1e-8, atol=1e-14)


def test_p_values_by_enumeration() -> None:
    """Every way in which 3 of 7 models could have held the example."""
    correct = np.array([1, 1, 0, 1, 0, 0, 1], bool)
    ways = [correct[list(members)].sum() for members in combinations(range(7), 3)]
    for hits in range(4):
        p = upper_tail(np.array([[hits]]), np.array([4]), np.array([3]), 7)[0, 0]
        assert p == pytest.approx(np.mean([w >= hits for w in ways]), abs=1e-12)


def test_tails_far_out_keep_their_digits() -> None:
    p = upper_tail(np.array([[100]]), np.array([100]), np.array([100]), 200)[0, 0]
    assert p == pytest.approx(1 / math.comb(200, 100), rel=1e-9)


@given(st.integers(4, 16), st.integers(1, 8), st.integers(1, 8), st.floats(0.02, 1.0), st.integers(0, 2**32 - 1))
def test_the_cut_against_a_library_on_all_pairs(models: int, num: int, tests: int, fdr: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keep = rng.random((models, num)) < rng.uniform(0.2, 0.8, num)
    correct = np.where(
        rng.random((models, tests)) < 0.7, keep[:, rng.integers(0, num, tests)], rng.random((models, tests)) < 0.5
    )
    mem = rng.uniform(-0.2, 1, num)
    found = high_influence_pairs(keep, correct, mem, fdr=fdr, block=3)
    infl, limits = dense(keep, correct)
    family = np.flatnonzero((mem >= 0.25) & ~np.isnan(infl[0]))
    p = np.array(
        [
            [
                hypergeom.sf((keep[:, i] & correct[:, j]).sum() - 1, models, correct[:, j].sum(), keep[:, i].sum())
                for i in family
            ]
            for j in range(tests)
        ]
    )
    assert (found.num_memorised, found.num_tested) == (len(family), p.size)
    if not p.size:
        assert not len(found.train)
        return
    p = np.minimum(p, 1)
    q = false_discovery_control(p.ravel()).reshape(p.shape)
    # At the very threshold the library's p-values decide by their last digit.
    sure = np.abs(q - fdr) > 1e-9
    expected = {
        (int(i), j)
        for j in range(tests)
        for c, i in enumerate(family)
        if sure[j, c] and q[j, c] <= fdr and infl[j, i] >= 0.15
    }
    column = {int(i): c for c, i in enumerate(family)}
    got = set(zip(found.train.tolist(), found.test.tolist(), strict=True))
    assert {(i, j) for i, j in got if sure[j, column[i]]} == expected
    np.testing.assert_allclose((found.low, found.high), limits[:, found.test, found.train], atol=1e-12)
    for i, j, value, qv in zip(found.train, found.test, found.infl, found.q_value, strict=True):
        assert value == pytest.approx(infl[j, i])
        assert qv == pytest.approx(q[j, column[i]], rel=1e-6)
    assert found.num_over == int((infl[:, family] >= 0.15).sum())
    assert (np.diff(found.infl) <= 0).all()


def test_false_discoveries_without_influence_and_found_pairs_with_it() -> None:
    """3,000 x 200 pairs, 64 models: by chance tens of thousands exceed 0.15; the cut lets through the planted ones."""
    rng = np.random.default_rng(5)
    keep = balanced_design(64, 3000, seed=6)
    correct = rng.random((64, 200)) < rng.uniform(0.2, 1, 200)
    null = high_influence_pairs(keep, correct, np.ones(3000))
    assert null.num_over > 20_000 and len(null.train) <= 1
    planted = rng.choice(3000, 50, replace=False)
    correct[:, :50] = keep[:, planted] ^ (rng.random((64, 50)) < 0.05)
    found = high_influence_pairs(keep, correct, np.ones(3000))
    true = {(int(i), j) for j, i in enumerate(planted)}
    got = set(zip(found.train.tolist(), found.test.tolist(), strict=True))
    assert len(got & true) >= 48 and len(got - true) <= 0.1 * len(got)
    unmemorised = high_influence_pairs(keep, correct, np.where(np.isin(np.arange(3000), planted), 0.2, np.nan))
    assert (unmemorised.num_memorised, len(unmemorised.train)) == (0, 0)


def test_few_models_find_nothing_however_strong() -> None:
    """8 models: the smallest p-value is 1/70, too large for 500 tests; the Wald ratio would be infinite."""
    keep = balanced_design(8, 500, seed=7)
    found = high_influence_pairs(keep, keep[:, :1].copy(), np.ones(500))
    assert found.num_over > 100 and not len(found.train)


def test_exact_influence_of_nearest_neighbours() -> None:
    """Every subset of 4 of 7 training points, for 5 test points."""
    rng = np.random.default_rng(2)
    x, y, tx, ty = rng.normal(size=(7, 2)), np.arange(7) % 2, rng.normal(size=(5, 2)), np.arange(5) % 2
    distance = np.square(tx[:, None] - x[None]).sum(2)
    exact = np.empty((5, 7))
    for j in range(5):
        for i in range(7):
            sides = [[], []]
            for s in combinations(range(7), 4):
                nearest = s[int(distance[j, list(s)].argmin())]
                sides[i in s].append(y[nearest] == ty[j])
            exact[j, i] = np.mean(sides[1]) - np.mean(sides[0])
    assert exact.max() > 0.4 and exact.min() < -0.4
    np.testing.assert_allclose(nearest_neighbour_influence(x, y, tx, ty, subset=4), exact, atol=1e-12)
    keep, correct = nearest_neighbour_runs_on(x, y, tx, ty, subset=4, runs=4000, seed=3)
    (part,) = influence_matrix(keep, correct)
    assert np.abs(part.infl - exact).max() < 0.08
    low, high = intervals(part)
    assert ((low <= exact) & (exact <= high)).mean() > 0.85  # 35 pairs


@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_the_bound_is_never_below_the_p_value_by_enumeration(models: int, seed: int) -> None:
    """Qualities between 0 and 1: every way in which n of the M models could have held the example."""
    rng = np.random.default_rng(seed)
    quality = np.round(rng.random(models), 2)
    for n in range(1, models + 1):
        sums = np.array([quality[list(members)].sum() for members in combinations(range(models), n)])
        hits = rng.choice(sums)
        exact = (sums >= hits - 1e-12).mean()
        bound = serfling_tail(
            np.array([[hits]]), np.array([quality.sum()]), np.array([n]), models, spread=np.ptp(quality)[None]
        )
        assert exact <= bound[0, 0] + 1e-12 <= 1 + 1e-12


@given(st.integers(2, 12), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_qualities_between_0_and_1_equal_the_loop_over_pairs(
    models: int, num: int, tests: int, block: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    keep, quality = rng.random((models, num)) < rng.random(num), rng.random((models, tests))
    infl, limits = dense(keep, quality)
    parts = list(influence_matrix(keep, quality, block=block))
    np.testing.assert_allclose(np.concatenate([p.infl for p in parts]), infl, atol=1e-12)
    np.testing.assert_allclose(np.concatenate([intervals(p) for p in parts], axis=1), limits, atol=1e-12)


def test_quality_of_0_and_1_has_the_same_influence_as_bool_and_no_smaller_p() -> None:
    rng = np.random.default_rng(9)
    keep, correct = balanced_design(64, 40, seed=3), rng.random((64, 30)) < 0.6
    correct[:, :5] = keep[:, :5]
    hard = high_influence_pairs(keep, correct, np.ones(40))
    soft = high_influence_pairs(keep, correct.astype(np.float64), np.ones(40))
    strength = dict(zip(zip(hard.train, hard.test, strict=True), zip(hard.p_value, hard.z, strict=True), strict=True))
    assert {(i, i) for i in range(5)} <= set(zip(soft.train, soft.test, strict=True)) <= set(strength)
    for i, j, p, z in zip(soft.train, soft.test, soft.p_value, soft.z, strict=True):
        assert p >= strength[i, j][0] and z == pytest.approx(strength[i, j][1])


# ---- the analysis ------------------------------------------------------------------------------------------------


@pytest.fixture
def planted():
    """60 training and 20 population examples, 64 models; population example p hinges on training example p, p < 6."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 80)
    y[60:66] = y[:6]
    data = make_examples(rng.normal(size=(80, 2)).astype(np.float32), y, num_classes=3, ids=rng.permutation(900)[:80])
    data = dataclasses.replace(data, split=np.where(np.arange(80) < 60, "train", "test").astype("<U5"))
    keep = np.zeros((64, 80), bool)
    keep[:, :60] = balanced_design(64, 60, seed=4)
    right = rng.random((64, 80)) < 0.8
    right[:, :6] = keep[:, :6]
    right[:, 6:60] = True
    right[:, 60:66] = keep[:, :6]
    answer = np.where(right, y, (y + 1) % 3)
    ensemble = ReferenceEnsemble.of_logits(
        example_id=data.example_id,
        pool=np.arange(80) < 60,
        labels=data.y,
        keep=keep,
        logits=(5.0 * np.eye(3)[answer]).astype(np.float32),
        config_digest="0" * 64,
    )
    return data, ensemble


def run(data, ensemble, **config) -> dict[str, pl.DataFrame]:
    return influence(data, config=InfluenceConfig(**config), seed=0, ensemble=ensemble)


def test_the_tables(planted) -> None:
    data, ensemble = planted
    found = run(data, ensemble)
    pairs, (summary,) = found["influence_pairs"], found["influence_summary"].to_dicts()
    expected = set(zip(data.example_id[:6].tolist(), data.example_id[60:66].tolist(), strict=True))
    assert set(pairs.select("train_id", "test_id").iter_rows()) == expected
    assert set(pairs["infl"]) == {1.0} == set(pairs["mem"])
    assert pairs["infl_low"].to_list() == pytest.approx([newcombe(1, 32, 0, 32)[0]] * 6) and set(
        pairs["infl_high"]
    ) == {1.0}
    assert pairs["label"].equals(pairs["test_label"].alias("label")) and (pairs["q_value"] < 1e-9).all()
    np.testing.assert_allclose(pairs["z"], math.sqrt(63))
    assert (summary["num_models"], summary["num_train"], summary["num_memorised"]) == (64, 60, 6)
    assert (summary["num_test"], summary["num_tested"], summary["num_pairs"]) == (20, 120, 6)
    assert summary["num_over"] >= 6 and summary["acc_in"] == 1.0
    assert summary["smallest_p"] == pytest.approx(1 / math.comb(64, 32), rel=1e-6)
    assert run(data, ensemble, max_pairs=2)["influence_pairs"].equals(pairs.head(2))


def test_planted_pairs_of_a_regression_are_found(planted) -> None:
    """Six unseen examples are predicted well by the models that hold one training example, and badly by the others."""
    data, ensemble = planted
    rng = np.random.default_rng(4)
    data = as_regression(data, rng.normal(size=80))
    keep, error = ensemble.keep, np.abs(rng.normal(scale=0.002, size=(64, 80)))
    error[:, :6] += np.where(keep[:, :6], 0.0, 0.9)
    error[:, 60:66] += np.where(keep[:, :6], 0.05, 0.85)
    error[:, 66:] += rng.uniform(0.2, 0.4, size=(64, 14))
    said = data.y + error * float(data.constants["naive"] * data.constants["sd"])
    found = run(data, predicting(data, keep, said[..., None], ensemble.pool))
    pairs, (summary,) = found["influence_pairs"], found["influence_summary"].to_dicts()
    expected = set(zip(data.example_id[:6].tolist(), data.example_id[60:66].tolist(), strict=True))
    assert set(pairs.select("train_id", "test_id").iter_rows()) == expected
    np.testing.assert_allclose(pairs["infl"], 0.8, atol=0.01)
    np.testing.assert_allclose(pairs["mem"], 0.9, atol=0.01)
    assert pairs["label"].null_count() == 6 and (pairs["q_value"] < 1e-6).all() and (pairs["z"] > 7).all()
    assert summary["num_memorised"] == 6 and summary["acc_in"] > 0.99
    assert summary["smallest_p"] == pytest.approx(math.exp(-2 * 32 * 0.25 / (1 - 31 / 64)))


def test_a_chance_difference_is_not_memorised(planted) -> None:
    """Examples that half of the models get right, by chance: mem reaches 0.25 for some, the lower end of its interval
    for none."""
    data, ensemble = planted
    logits = ensemble.logits.copy()
    chance = np.random.default_rng(8).random((64, 30)) < 0.5
    logits[:, 6:36] = 5.0 * np.eye(3)[np.where(ensemble.keep[:, 6:36] | chance, data.y[6:36], (data.y[6:36] + 1) % 3)]
    wide = saying(ensemble, logits)
    own = memorization_scores(ensemble.keep[:, :60], logits[:, :60].argmax(2) == data.y[:60])
    sure = int((own.low >= 0.25).sum())
    assert sure < (own.mem >= 0.25).sum()
    assert run(data, wide)["influence_summary"]["num_memorised"][0] == sure


def test_models_that_do_not_fit_are_refused_as_memorization_refuses_them(planted) -> None:
    data, ensemble = planted
    logits = ensemble.logits.copy()
    logits[:, 6:60:20] *= -1  # 3 of the 60 training examples always wrong
    with pytest.raises(NotApplicable, match=r"mean acc_in is 0\.950, below 0\.98: the reference models do not fit"):
        run(data, saying(ensemble, logits))


def test_the_order_of_the_rows_does_not_matter(planted) -> None:
    data, ensemble = planted
    mixed = data.subset(np.random.default_rng(1).permutation(data.example_id))
    first, second = run(data, ensemble), run(mixed, ensemble)
    assert all(first[name].equals(second[name]) for name in first)


def test_refusals(planted) -> None:
    data, ensemble = planted
    logits = ensemble.logits.copy()
    logits[2, 70, 0] = np.nan
    with pytest.raises(DataError, match="NaN") as error:
        run(data, saying(ensemble, logits))
    assert error.value.example_ids == (data.example_id[70],)
    keep, correct = ensemble.keep, ensemble.keep[:, :3]
    for bad in ((keep.astype(int), correct), (keep, correct[:5]), (keep, correct[:, 0])):
        with pytest.raises(InvalidInput):
            influence_matrix(*bad)
    with pytest.raises(InvalidInput, match="block"):
        influence_matrix(keep, correct, block=0)
    for value in (1.5, np.nan):
        with pytest.raises(InvalidInput, match=r"outside \[0, 1\]"):
            influence_matrix(keep, np.full(correct.shape, value))
    for mem, fdr in ((np.ones(3), 0.1), (np.ones(80), 0.0)):
        with pytest.raises(InvalidInput):
            high_influence_pairs(keep, correct, mem, fdr=fdr)
