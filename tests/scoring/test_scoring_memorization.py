"""Memorization: invariants of the estimator, brute force, and the exact 1-nearest-neighbour oracle."""

from __future__ import annotations

import dataclasses
import math
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scoring_data import as_regression, make_examples, predicting, saying

from contracts.errors import DataError, InvalidInput
from contracts.methods import score
from contracts.params import Config
from contracts.subject import Ensemble
from recipes.design import balanced_design
from recipes.ensemble import ReferenceEnsemble, train_ensemble
from recipes.models import builder
from recipes.recsys import BprConfig
from reproductions.memorization import nearest_neighbour_oracle, nearest_neighbour_runs
from scoring.memorization import FEWEST, MEMORISED, memorization, memorization_scores
from sources.loading import load
from stats.proportions import newcombe


def design(models: int, num: int, *, seed: int) -> np.ndarray:
    return balanced_design(models, num, seed=seed)


def make_ensemble(data, keep: np.ndarray, logits: np.ndarray, pool: np.ndarray | None = None) -> ReferenceEnsemble:
    return ReferenceEnsemble.of_logits(
        example_id=data.example_id,
        pool=np.ones(len(data), bool) if pool is None else pool,
        labels=data.y,
        keep=keep,
        logits=logits.astype(np.float32),
        config_digest="0" * 64,
    )


@pytest.fixture
def planted():
    """40 examples, 8 models with random logits; the last 10 examples are population."""
    rng = np.random.default_rng(3)
    data = make_examples(
        rng.normal(size=(40, 2)).astype(np.float32),
        rng.integers(0, 3, 40),
        num_classes=3,
        ids=rng.permutation(500)[:40],
    )
    keep = np.zeros((8, 40), bool)
    keep[:, :30] = design(8, 30, seed=1)
    ensemble = make_ensemble(data, keep, rng.normal(size=(8, 40, 3)), np.arange(40) < 30)
    return data, ensemble


def test_a_constant_predictor_memorises_nothing() -> None:
    right = np.random.default_rng(0).random(50) < 0.3
    found = memorization_scores(design(20, 50, seed=0), np.tile(right, (20, 1)))
    assert (found.mem == 0).all() and (found.low < 0).all() and (found.high > 0).all()


@pytest.mark.parametrize("k", [2, 10])
def test_a_lookup_table_that_guesses_otherwise(k: int) -> None:
    rng = np.random.default_rng(k)
    keep = design(400, 300, seed=2)
    found = memorization_scores(keep, keep | (rng.random(keep.shape) < 1 / k))
    assert (found.acc_in == 1).all()
    spread = math.sqrt((1 / k) * (1 - 1 / k) / 200)
    assert abs(found.mem.mean() - (1 - 1 / k)) < 5 * spread / math.sqrt(300)
    assert (np.abs(found.mem - (1 - 1 / k)) < 6 * spread).all()


@given(st.integers(2, 12), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_against_a_loop(models: int, num: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keep, correct = rng.random((models, num)) < rng.random(), rng.random((models, num)) < 0.6
    found = memorization_scores(keep, correct)
    for i in range(num):
        inside, outside = correct[keep[:, i], i], correct[~keep[:, i], i]
        assert (found.n_in[i], found.n_out[i]) == (len(inside), len(outside))
        if not len(inside) or not len(outside):
            assert math.isnan(found.mem[i]) and math.isnan(found.stderr[i])
            continue
        q1, q0 = inside.mean(), outside.mean()
        assert found.mem[i] == pytest.approx(q1 - q0, abs=1e-12)
        limits = newcombe(q1, len(inside), q0, len(outside))
        assert (found.low[i], found.high[i]) == pytest.approx(limits, abs=1e-12)
        assert found.stderr[i] > 0 and found.mem[i] - 1.96 * found.stderr[i] <= found.low[i] + 1e-4


@given(st.integers(1, 10), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_mean_mem_is_the_gap_of_the_means_when_counts_are_equal(half: int, num: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keep, correct = design(2 * half, num, seed=seed), rng.random((2 * half, num)) < 0.7
    found = memorization_scores(keep, correct)
    assert found.mem.mean() == pytest.approx(correct[keep].mean() - correct[~keep].mean(), abs=1e-12)
    assert ((found.mem >= -1) & (found.mem <= 1)).all()


def test_the_standard_error_is_not_too_small_and_at_most_a_fifth_too_large() -> None:
    rng = np.random.default_rng(4)
    keep = design(40, 4000, seed=5)
    correct = np.where(keep, rng.random(keep.shape) < 0.9, rng.random(keep.shape) < 0.4)
    found = memorization_scores(keep, correct)
    assert abs(found.mem.mean() - 0.5) < 0.01
    assert 1 <= np.sqrt((found.stderr**2).mean()) / found.mem.std() < 1.2


@pytest.mark.parametrize("models", [20, 64])
def test_what_is_not_memorised_is_hardly_ever_called_so(models: int) -> None:
    """40,000 examples at each of nine accuracies, the same inside and outside; then at the cut itself."""
    rng = np.random.default_rng(models)
    keep = np.repeat(np.arange(models) < models // 2, 40_000).reshape(models, -1)
    shares, by_estimate = [], []
    for p in np.linspace(0.1, 0.9, 9):
        found = memorization_scores(keep, rng.random(keep.shape) < p)
        assert (found.stderr > 0).all()
        assert 0.92 < ((found.low <= 0) & (found.high >= 0)).mean() < (0.99 if 0.15 < p < 0.85 else 1.0)
        shares.append((found.low > MEMORISED).mean())
        by_estimate.append((found.mem >= MEMORISED).mean())
        at_cut = memorization_scores(keep, rng.random(keep.shape) < np.where(keep, min(p + MEMORISED, 1.0), p))
        if p + MEMORISED <= 1:
            assert (at_cut.low > MEMORISED).mean() <= 0.03
    assert max(shares) < 0.003
    assert max(by_estimate) > (0.11 if models == 20 else 0.025), "the estimate alone would call them"


def test_fewer_than_eight_models_can_call_nothing_and_are_refused() -> None:
    at_best = [memorization_scores(*[[[True]] * n + [[False]] * n] * 2).low[0] for n in range(1, FEWEST + 1)]
    assert max(at_best[:-1]) < MEMORISED < at_best[-1]
    _, gate = score.get("memorization").spec.gates
    assert (gate.column, gate.at_least, gate.statistic) == ("n_out", FEWEST, "min")
    assert "8 reference models are the fewest" in gate.refusal(3)


def test_what_is_called_is_above_the_cut_with_its_whole_interval(planted) -> None:
    calls = score.get("memorization").spec.calls
    assert (calls.column, calls.above) == ("mem_low", MEMORISED)
    data, ensemble = planted
    found = memorization(data, config=Config(), seed=0, ensemble=ensemble)
    assert (found["mem_low"] < found["mem"]).all() and (found["mem"] < found["mem_high"]).all()
    assert (found["stderr"] > 0).all()


def test_an_example_present_in_all_or_no_runs_is_undefined() -> None:
    found = memorization_scores([[True, False], [True, False]], [[True, True], [False, True]])
    assert np.isnan(found.mem).all()
    assert found.acc_in[0] == 0.5 and math.isnan(found.acc_out[0]) and found.acc_out[1] == 1


@pytest.mark.parametrize(
    ("keep", "correct"),
    [
        ([[1, 0]], [[True, True]]),
        ([[True]], [[True, False]]),
        ([[True]], [[1.5]]),
        ([[True]], [[math.nan]]),
        ([True], [1]),
    ],
)
def test_what_is_no_correctness_table_is_refused(keep, correct) -> None:
    with pytest.raises(InvalidInput):
        memorization_scores(keep, correct)


def test_the_table_against_a_loop(planted) -> None:
    data, ensemble = planted
    found = memorization(data, config=Config(), seed=0, ensemble=ensemble)
    assert found["example_id"].to_list() == data.example_id[:30].tolist(), "population examples are not scored"
    for row in found.iter_rows(named=True):
        i = int(np.flatnonzero(data.example_id == row["example_id"])[0])
        z = ensemble.logits[:, i].astype(np.float64)
        p = (np.exp(z) / np.exp(z).sum(1, keepdims=True))[:, data.y[i]]
        right, inside = z.argmax(1) == data.y[i], ensemble.keep[:, i]
        assert (row["n_in"], row["n_out"]) == (4, 4)
        assert row["acc_in"] == right[inside].mean() and row["acc_out"] == right[~inside].mean()
        assert row["mem"] == pytest.approx(right[inside].mean() - right[~inside].mean(), abs=1e-12)
        assert row["mem_prob"] == pytest.approx(p[inside].mean() - p[~inside].mean(), abs=1e-12)


def test_ids_join_whatever_the_order(planted) -> None:
    data, ensemble = planted
    rng = np.random.default_rng(0)
    whole = memorization(data, config=Config(), seed=0, ensemble=ensemble)
    some = data.subset(rng.permutation(data.example_id)[:25])
    part = memorization(some, config=Config(), seed=0, ensemble=ensemble)
    in_pool = set(data.example_id[:30].tolist())
    assert part["example_id"].to_list() == [i for i in some.example_id.tolist() if i in in_pool]
    assert part.sort("example_id").equals(whole.filter(pl.col("example_id").is_in(some.example_id)).sort("example_id"))


def test_blocks_give_what_the_whole_gives(planted, monkeypatch) -> None:
    data, ensemble = planted
    whole = memorization(data, config=Config(), seed=0, ensemble=ensemble)
    monkeypatch.setattr(sys.modules["scoring.memorization"], "_BLOCK", 7)
    assert memorization(data, config=Config(), seed=0, ensemble=ensemble).equals(whole)


def test_large_logits_do_not_overflow(planted) -> None:
    data, ensemble = planted
    large = saying(ensemble, ensemble.logits * 1e30)
    found = memorization(data, config=Config(), seed=0, ensemble=large)
    assert found["mem_prob"].is_finite().all()
    assert found["mem"].equals(memorization(data, config=Config(), seed=0, ensemble=ensemble)["mem"])


def test_refusals(planted) -> None:
    data, ensemble = planted

    def run(data, ensemble):
        return memorization(data, config=Config(), seed=0, ensemble=ensemble)

    with pytest.raises(DataError, match="pool"):
        run(data.subset(data.example_id[30:]), ensemble)
    changed = dataclasses.replace(data, y=np.where(np.arange(40) == 2, (data.y + 1) % 3, data.y))
    with pytest.raises(DataError, match="labels differ") as error:
        run(changed, ensemble)
    assert error.value.example_ids == (data.example_id[2],)
    for bad in (np.nan, np.inf):
        logits = ensemble.logits.copy()
        logits[1, 5, 0] = bad
        with pytest.raises(DataError, match="NaN") as error:
            run(data, saying(ensemble, logits))
        assert error.value.example_ids == (data.example_id[5],)
    with pytest.raises(DataError, match=r"0\.\.1"):
        run(dataclasses.replace(data, class_names=data.class_names[:2]), ensemble)
    assert len(run(data.subset([]), ensemble)) == 0


def test_regression_is_the_difference_of_mean_qualities(planted) -> None:
    """Against a loop over errors; then planted: three examples that only their own models predict."""
    data, ensemble = planted
    rng = np.random.default_rng(6)
    data = as_regression(data, rng.normal(size=40))
    y, keep, unit = data.y, ensemble.keep, float(np.abs(data.y - data.y.mean()).mean())
    error = np.abs(rng.normal(scale=0.4, size=keep.shape))
    error[:, :3] = np.where(keep[:, :3], 0.0, 5.0)
    models = predicting(data, keep, (y + error * unit)[..., None], ensemble.pool)
    found = memorization(data, config=Config(), seed=0, ensemble=models)
    assert found["mem_prob"].null_count() == 30
    for row in found.iter_rows(named=True):
        i = int(np.flatnonzero(data.example_id == row["example_id"])[0])
        quality, inside = np.clip(1 - error[:, i], 0, 1), keep[:, i]
        assert row["acc_in"] == pytest.approx(quality[inside].mean(), abs=1e-12)
        assert row["mem"] == pytest.approx(quality[inside].mean() - quality[~inside].mean(), abs=1e-12)
    assert (found["mem"][:3] == 1).all() and (found["mem_low"][:3] > MEMORISED).all()
    assert (found["mem"][3:].abs() < 0.9).all()


def test_the_interval_of_a_quality_between_0_and_1_is_too_wide_rather_than_too_narrow() -> None:
    """2,000 examples without memorization whose quality is spread over 0..1: fewer than 2.5% above on each side."""
    rng = np.random.default_rng(11)
    keep = design(20, 2000, seed=1)
    found = memorization_scores(keep, rng.beta(2, 2, keep.shape))
    assert (found.low > 0).mean() < 0.005 and (found.high < 0).mean() < 0.005
    assert (found.low < MEMORISED).all()


def test_ranking_is_the_difference_of_shares_in_the_top() -> None:
    """Reference models of the recommender's own recipe; the table against a loop over what each model ranks."""
    data = load("synthetic_interactions", {"num_users": 8, "num_items": 40, "per_user": 8, "dim": 2})
    build = builder("mf", {"dim": 4}, input_shape=(data.num_users,), num_outputs=data.num_classes)
    ensemble = train_ensemble(
        build,
        data,
        recipe="bpr",
        config=BprConfig(epochs=20, batch=32, lr=0.05),
        ensemble=Ensemble(num_models=8, population_fraction=0.5),
        seed=1,
    )
    train = data.part("train")
    found = memorization(train, config=Config(), seed=0, ensemble=ensemble)
    column = {i: c for c, i in enumerate(ensemble.example_id.tolist())}
    for row in found.iter_rows(named=True):
        at, keep = column[row["example_id"]], ensemble.keep[:, column[row["example_id"]]]
        top = ensemble.reading[:, at, 3]
        assert set(top.tolist()) <= {0.0, 1.0} and (row["n_in"], row["n_out"]) == (4, 4)
        assert row["mem"] == pytest.approx(top[keep].mean() - top[~keep].mean(), abs=1e-12)
    assert found["mem"].mean() > 0.1 and found["mem_prob"].null_count() == len(found)


def test_the_gate_asks_for_models_that_fit() -> None:
    gate, _ = score.get("memorization").spec.gates
    assert (gate.column, gate.at_least, gate.statistic) == ("acc_in", 0.98, "mean")


def test_one_nearest_neighbour_oracle() -> None:
    """Runs of a learner whose memorization is known exactly."""
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(120, 5)), rng.integers(0, 3, 120)
    exact = nearest_neighbour_oracle(x, y, subset=84)
    keep, correct = nearest_neighbour_runs(x, y, subset=84, runs=4000, seed=1)
    found = memorization_scores(keep, correct)
    assert (found.acc_in == 1).all()
    assert np.sqrt(np.mean((found.mem - exact) ** 2)) < 0.014
    assert np.abs(found.mem - exact).max() < 0.05


def test_the_oracle_against_enumeration() -> None:
    """Every subset of 4 of 7 points, one by one."""
    from itertools import combinations

    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(7, 2)), rng.integers(0, 2, 7)
    distance = np.square(x[:, None] - x[None]).sum(2)
    exact = np.empty(7)
    for i in range(7):
        subsets = [np.array(s) for s in combinations([j for j in range(7) if j != i], 4)]
        exact[i] = 1 - np.mean([y[s[distance[i, s].argmin()]] == y[i] for s in subsets])
    np.testing.assert_allclose(nearest_neighbour_oracle(x, y, subset=4), exact, atol=1e-12)
