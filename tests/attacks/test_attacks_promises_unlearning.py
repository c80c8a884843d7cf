"""Promises of the unlearning audit, simulated: calibrated when nothing is left (F3), power when everything is (F4),
worst case before average (F7), retained people (F8). Bounds are binomial at one in a thousand, for any seed, not for a
lucky one."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom, kstest
from shadow_world import Subject, gaussians

from attacks.membership.shadow_audit import ShadowUnlearningConfig, shadow_unlearning_audit
from attacks.membership.shadow_results import Recorded, tables_of
from attacks.membership.unlearning import IN, UNLEARN, collateral, three_state_design, u_lira
from attacks.shadow_verdicts import judge_shadow_unlearning
from contracts.subject import Thresholds
from contracts.verdicts import Finding, Verdict, overall
from recipes.schedule import SupervisedConfig
from sources.loading import load
from tasks.base import named
from tasks.signals import log_odds

pytestmark = pytest.mark.stat
ALPHA = 0.05
TINY = SupervisedConfig(lr=0.2, epochs=15, batch=32)


def audit(subject: Subject, *, seed: int, **config: Any) -> dict[str, pl.DataFrame]:
    return shadow_unlearning_audit(
        subject.data,
        config=ShadowUnlearningConfig.from_mapping(config),
        seed=seed,
        train_many=subject.train_many,
        unlearn_from=subject.unlearn_from,
    )


def verdicts(tables: dict[str, pl.DataFrame], method: str) -> dict[str, Finding]:
    found = judge_shadow_unlearning(tables, Thresholds(alpha=ALPHA))
    return {f.what.removeprefix("unlearning/"): f for a, f in found if a == f"shadow/{method}"}


def most(trials: int, rate: float = ALPHA) -> int:
    """Alarms that chance exceeds once in a thousand when each trial has ``rate``."""
    return int(binom.ppf(0.999, trials, rate))


@pytest.mark.promise("F3")
def test_f3_exact_unlearning_is_a_null(num_worlds: int = 50) -> None:
    """ "Unlearned" models that were retrained without the forget set with another seed, in worlds of their own."""
    p_values, holm, bh, covered, failed = [], 0, 0, 0, 0
    for seed in range(num_worlds):
        subject = Subject(gaussians(120, seed=seed), recipe=TINY, hidden=8)
        tables = audit(subject, seed=seed, runs=30, targets=30, methods=[], canaries=0, relearn_steps=1)
        examples = tables["u_lira_examples"].filter(pl.col("method") == "retrain")
        p_values.append(examples["p_value"].to_numpy())
        holm += bool((examples["p_holm"] <= ALPHA).any())
        bh += bool((examples["p_bh"] <= ALPHA).any())
        row = tables["u_lira"].row(by_predicate=pl.col("method") == "retrain", named=True)
        covered += row["auc_lo"] <= 0.5 <= row["auc_hi"]
        failed += any(f.verdict is Verdict.FAIL for f in verdicts(tables, "retrain").values())
    assert kstest(np.concatenate(p_values), "uniform").pvalue > 0.01
    assert holm <= most(num_worlds) and bh <= most(num_worlds) and failed <= most(num_worlds)
    assert num_worlds - covered <= most(num_worlds)


@pytest.mark.parametrize(("runs", "targets"), [(60, 100), (30, 60), (12, 40)])
@pytest.mark.promise("F3")
def test_f3_the_interval_of_the_auc_covers_a_coin(runs: int, targets: int, trials: int = 200) -> None:
    """Examples of unlike difficulty and spread, runs that share a shift, nothing to find: a bootstrap over runs fails
    this."""
    missed = 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        phi = rng.normal(0, 3, targets) + rng.normal(size=(runs, targets)) * rng.gamma(3, 1, targets)
        phi += 0.5 * rng.normal(size=(runs, 1))
        found = u_lira(phi, three_state_design(runs, targets, seed=seed))
        missed += not found.auc_low <= 0.5 <= found.auc_high
    assert missed <= most(trials)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.promise("F4")
def test_f4_what_was_not_removed_cannot_pass(seed: int) -> None:
    """Mislabelled canaries, ten copies each: exposed where nothing was done, where next to nothing was done, and not
    after retraining."""
    data = load("sklearn", {"dataset": "digits", "test_fraction": 0.5}, seed=seed)
    recipe = SupervisedConfig(optimizer="sgd", lr=0.2, momentum=0.9, batch=64, epochs=40)
    subject = Subject(data, recipe=recipe, hidden=64)
    subject.unlearners["lower-lr"] = subject.go_on(lr=1e-4, epochs=3)
    tables = audit(subject, seed=seed, runs=60, targets=200, methods=["no-op", "lower-lr"], relearn_steps=2)
    for method in ("none", "no-op", "lower-lr"):
        canaries = tables["u_lira_canaries"].filter(pl.col("method") == method)
        assert len(canaries) == 10 and canaries["exposed"].mean() >= 0.9
        found = verdicts(tables, method)
        assert found["canaries"].verdict is Verdict.FAIL
        assert overall(f.verdict for f in found.values()) is Verdict.FAIL
    exact = verdicts(tables, "retrain")
    assert set(exact) == {"u_lira", "examples", "canaries"}
    assert {f.verdict for f in exact.values()} == {Verdict.PASS}


def planted(seed: int, *, exposed: int, runs: int = 60, targets: int = 1000) -> dict[str, pl.DataFrame]:
    """Two-class logits of a method that leaves a trace of ``exposed`` of its targets, and of none of the others."""
    rng = np.random.default_rng(seed)
    canaries = 10
    state = np.concatenate(
        [three_state_design(runs, n, seed=seed + k) for k, n in enumerate((targets, canaries))], axis=1
    )
    labels = rng.integers(2, size=targets + canaries)
    noise = rng.normal(0, 3, targets + canaries) + rng.normal(size=(3, *state.shape))
    noise[0] += 10.0 * (state != 1) * (np.arange(len(labels)) >= targets)  # before: canaries are memorised
    trained = noise[0] + 1.0 * (state != 1)
    phi = {"none": trained, "m": noise[1] + (state == IN), "retrain": noise[2] + (state == IN)}
    phi["m"][:, :exposed] += 6.0 * (state[:, :exposed] == UNLEARN)

    def readings(values: np.ndarray) -> np.ndarray:
        out = np.zeros((*values.shape, 2), np.float32)
        np.put_along_axis(
            out, np.broadcast_to(labels[:, None], (len(values), len(labels), 1)), values[..., None], axis=2
        )
        return named("classification").reading_of(out, labels, {}).values

    recorded = {}
    for name, values in phi.items():
        recorded[name] = Recorded(
            readings=list(readings(values)), area=list(values[:, :targets]), steps=[(1, 1)] * runs
        )
    return tables_of(
        recorded,
        readings(trained),
        state,
        target_ids=5000 + np.arange(targets),
        canary_ids=np.arange(canaries),
        wrong=labels[targets:],
        num_train=2 * targets,
        repeats=10,
        steps=1,
        delta=1e-5,
        alpha=ALPHA,
        seed=seed,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.promise("F7")
def test_f7_one_exposed_in_a_thousand_fails(seed: int) -> None:
    tables = planted(seed, exposed=1)
    row = tables["u_lira"].row(by_predicate=pl.col("method") == "m", named=True)
    found = verdicts(tables, "m")
    assert abs(row["auc"] - 0.5) < 0.02 and found["u_lira"].verdict is Verdict.PASS  # the average does not see it
    assert found["examples"].verdict is Verdict.FAIL and "ids 5000" in found["examples"].sentence
    assert row["worst_example"] == 5000 and row["eps_max"] > 3 * row["eps_p99"] > row["eps_mean"]
    assert row["eps_low_max"] > 5


@pytest.mark.promise("F7")
def test_f7_nobody_exposed_seldom_fails(trials: int = 20) -> None:
    failed = [
        verdicts(planted(100 + seed, exposed=0, targets=200), "m")["examples"].verdict is Verdict.FAIL
        for seed in range(trials)
    ]
    assert sum(failed) <= most(trials)


@pytest.mark.promise("F8")
def test_f8_retained_people_who_leak_more_block() -> None:
    """A method that overfits what is retained against one that does not, on the same runs."""
    recipe = dataclasses.replace(TINY, epochs=3)
    subject = Subject(gaussians(240, spread=2.0, dim=20), recipe=recipe, hidden=32)
    subject.unlearners["overfit"] = subject.go_on(lr=0.5, epochs=60)
    tables = audit(subject, seed=0, runs=60, targets=100, methods=["overfit", "no-op"], canaries=0, relearn_steps=1)
    overfit, noop = (tables["u_lira"].row(by_predicate=pl.col("method") == m, named=True) for m in ("overfit", "no-op"))
    assert overfit["kept_change_lo"] > 0.05 and overfit["kept_p_value"] < 1e-4
    assert verdicts(tables, "overfit")["kept"].verdict is Verdict.FAIL
    assert noop["kept_change"] == 0 and verdicts(tables, "no-op")["kept"].verdict is not Verdict.FAIL


@pytest.mark.promise("F8")
def test_f8_the_paired_test_is_calibrated(trials: int = 200) -> None:
    """Before and after alike but for chance: the interval covers 0 and the test alarms at its rate."""
    missed, alarms = 0, 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        state = three_state_design(24, 60, seed=seed)
        own = rng.normal(0, 3, 60) + 0.7 * rng.normal(size=state.shape) + 1.0 * (state == IN)
        logits = np.zeros((2, *state.shape, 2))
        logits[..., 0] = own + 0.7 * rng.normal(size=(2, *state.shape))
        found = collateral(*log_odds(logits, np.zeros(60, dtype=np.int64)), state)
        missed += not found.low <= 0 <= found.high
        alarms += found.p_value <= ALPHA
    assert missed <= most(trials) and alarms <= most(trials)
