"""Bounds on epsilon from an ensemble: planted canaries, soundness on models that answer with a known epsilon."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from attacks.dp_audit import largest_provable_eps
from attacks.epsilon_audit import EpsilonConfig, epsilon
from contracts.errors import ConfigError
from contracts.methods import analysis
from recipes.ensemble import ReferenceEnsemble
from sources.example_set import ExampleSet


def world(phi: np.ndarray, keep: np.ndarray, *, population: int = 5) -> tuple[ExampleSet, ReferenceEnsemble]:
    """Two-class models with these log-odds of label 0 on the pool (M, N); a few population examples behind it."""
    models, pool = phi.shape
    num = pool + population
    in_pool = np.arange(num) < pool
    logits = np.zeros((models, num, 2), dtype=np.float32)
    logits[:, in_pool, 0] = phi
    whole = np.zeros((models, num), dtype=bool)
    whole[:, in_pool] = keep
    data = ExampleSet(
        name="planted",
        task="classification",
        x=np.zeros((num, 1), np.float32),
        y=np.zeros(num, np.int64),
        example_id=10 + np.arange(num),
        split=np.where(in_pool, "train", "test").astype("<U5"),
        owner=np.full(num, ""),
        content_hash=np.full(num, "", "<U64"),
        class_names=("a", "b"),
        center=np.zeros(1, np.float32),
        scale=np.ones(1, np.float32),
    )
    ensemble = ReferenceEnsemble.of_logits(
        example_id=data.example_id, pool=in_pool, labels=data.y, keep=whole, logits=logits, config_digest="planted"
    )
    return data, ensemble


def balanced(rng: np.random.Generator, models: int, pool: int) -> np.ndarray:
    return rng.random((models, pool)).argsort(axis=0) < models // 2


def run(made: tuple[ExampleSet, ReferenceEnsemble], seed: int = 0, **config: object) -> dict[str, dict[str, object]]:
    frame = epsilon(made[0], config=EpsilonConfig.from_mapping(config), seed=seed, ensemble=made[1])["epsilon"]
    return {row["method"]: row for row in frame.iter_rows(named=True)}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_perfect_canary_is_found_and_proves_all_that_the_models_can(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keep = balanced(rng, 64, 50)
    phi = rng.normal(size=keep.shape)
    phi[:, 17] += 30 * keep[:, 17]
    rows = run(world(phi, keep), seed=seed)
    many = rows["many_runs"]
    assert many["canary"] == 27 and many["n_trials"] == many["n_right"] == 32
    assert many["eps_lower"] == many["eps_largest"] > 1
    n_pos = next(n for n in range(33) if f" of {n} models with the canary" in many["sentence"])
    assert many["eps_largest"] == pytest.approx(largest_provable_eps(n_pos, 32 - n_pos, delta=1e-5))
    assert rows["gaussian"]["eps_lower"] == rows["gaussian"]["eps_largest"] > 0
    assert rows["one_run"]["n_trials"] == 4 and rows["one_run"]["canary"] is None


def test_one_run_counts_the_surest_guesses_of_one_model() -> None:
    rng = np.random.default_rng(3)
    keep = balanced(rng, 8, 2000)
    told = run(world(10.0 * keep + rng.random(keep.shape), keep), guessed=0.2, delta=1e-9)["one_run"]
    assert told["n_trials"] == told["n_right"] == 400 and told["eps_lower"] == told["eps_largest"] > 4
    blind = run(world(rng.normal(size=keep.shape), keep), guessed=1.0)["one_run"]
    assert blind["n_trials"] == 2000 and abs(blind["n_right"] - 1000) < 4 * math.sqrt(500)
    assert "1000 canaries" not in blind["sentence"] and "2000 canaries" in blind["sentence"]


def test_the_judged_half_does_not_choose() -> None:
    """Outputs of the models that judge do not move the canary."""
    rng = np.random.default_rng(4)
    keep = balanced(rng, 16, 80)
    phi = rng.normal(size=keep.shape) + keep
    order = np.random.default_rng(0).permutation(16)
    moved = phi.copy()
    moved[order[8:]] = rng.normal(size=(8, 80)) - 5 * keep[order[8:]]
    before, after = (run(world(p, keep))["many_runs"] for p in (phi, moved))
    assert before["canary"] == after["canary"] and before["n_right"] != after["n_right"]


def test_too_few_models_are_refused() -> None:
    rng = np.random.default_rng(5)
    keep = balanced(rng, 4, 30)
    with pytest.raises(ConfigError, match="too few"):
        run(world(rng.normal(size=keep.shape), keep))


def test_it_is_registered_and_its_table_is_an_audit() -> None:
    spec = analysis.get("epsilon").spec
    assert [t.full_name for t in spec.tables] == ["audits.epsilon"] and spec.judge is None


@pytest.mark.stat
@pytest.mark.parametrize("eps", [0.5, 1.5])
def test_f5_bounds_from_an_ensemble_are_sound_on_randomised_response(eps: float) -> None:
    """Each model answers whether each example was in training, by randomised response: the truth is eps-DP by
    example."""
    truth = 1 / (1 + math.exp(-eps))
    below: dict[str, list[bool]] = {"many_runs": [], "one_run": []}
    for seed in range(600):
        rng = np.random.default_rng(seed)
        keep = balanced(rng, 32, 60)
        answer = np.where(rng.random(keep.shape) < truth, keep, ~keep)
        rows = run(world(6.0 * answer - 3, keep), seed=seed, guessed=1.0)
        for name, found in below.items():
            found.append(rows[name]["eps_lower"] <= eps)
    for found in below.values():
        assert sum(found) >= binom.ppf(0.001, 600, 0.95)
