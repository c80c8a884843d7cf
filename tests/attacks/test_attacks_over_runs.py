"""Figures over runs that judge the same examples: their intervals must cover, which those of a bootstrap over runs do
not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from planted_logits import LogitEvidence

from attacks.membership import report_over_targets
from attacks.membership.over_runs import auc_over_runs, tpr_over_runs
from contracts.errors import InvalidInput
from contracts.methods import attack
from stats import auc_interval, clopper_pearson

CAP = 0.1


def audited(rng: np.random.Generator, models: int, examples: int, effect: float, name: str) -> tuple[np.ndarray, ...]:
    """Scores (T, N) and truth of an attack on models of a balanced design, every one a target with the others as its
    references.

    Log-odds are normal; training raises an example's by ``effect`` times its own log-normal factor.
    """
    keep = rng.random((models, examples)).argsort(axis=0) < models // 2
    trace = effect * np.exp(rng.normal(0, 0.5, examples))
    spread = np.exp(rng.normal(0, 0.3, examples))
    phi = rng.normal(0, 2, examples) + spread * rng.normal(size=keep.shape) + trace * keep
    points = rng.normal(0, 2, (models, 200, 2))
    logits = np.stack([phi, np.zeros_like(phi)], axis=-1)
    evidence = LogitEvidence(
        example_id=np.arange(examples),
        labels=np.zeros(examples, np.int64),
        target_logits=logits,
        reference_logits=logits,
        keep=keep,
        population_labels=np.zeros(200, np.int64),
        population_target_logits=points,
        population_reference_logits=points,
        target_index=np.arange(models),
    )
    method = attack.get(name)
    return method(evidence, config=method.spec.config(), seed=0), keep


def simulated(
    seed: int, worlds: int, models: int, examples: int, effect: float, name: str = "lira_online"
) -> dict[str, np.ndarray]:
    """(worlds, 3) value, low, high of each figure of ``report_over_targets``."""
    rng = np.random.default_rng(seed)
    reports = [
        report_over_targets(*audited(rng, models, examples, effect, name), fpr_caps=(CAP,), seed=w)
        for w in range(worlds)
    ]
    each = [report.select("value", "low", "high").to_numpy() for report in reports]
    return {figure: np.array([rows[i] for rows in each]) for i, figure in enumerate(reports[0]["figure"])}


@pytest.mark.parametrize("effect", [0.0, 1.0])
def test_intervals_are_as_wide_as_the_figures_scatter(effect: float) -> None:
    """A bootstrap over the models alone gives 0.46 to 0.86 of the scatter: it knows nothing of the examples that all
    share."""
    for figure, found in simulated(0, 120, 30, 60, effect).items():
        half = (found[:, 2] - found[:, 1]).mean() / 2
        assert 0.88 < half / (1.96 * found[:, 0].std(ddof=1)) < 2.2, figure


def test_copies_of_one_run_know_what_one_run_knows() -> None:
    rng = np.random.default_rng(1)
    scores, member = rng.normal(size=(1, 120)), rng.random((1, 120)) < 0.5
    scores += member
    alone = auc_interval(scores[member], scores[~member])
    report = report_over_targets(np.repeat(scores, 60, axis=0), np.repeat(member, 60, axis=0), fpr_caps=(CAP,))
    area, tpr = report.iter_rows(named=True)
    assert area["value"] == pytest.approx(alone.value)
    assert (area["low"], area["high"]) == pytest.approx((alone.low, alone.high), abs=0.01)
    assert tpr["high"] - tpr["low"] > 0.1


def by_hand(scores: np.ndarray, positive: np.ndarray, cap: float) -> float:
    """Share of positives above all but floor(cap n-) negatives; NaN when that is none of them, or not one positive."""
    known = ~np.isnan(scores)
    pos, neg = np.sort(scores[known & positive]), np.sort(scores[known & ~positive])[::-1]
    passing = int(np.floor(cap * len(neg) + 1e-9))
    return float((pos > neg[passing]).mean()) if 1 <= passing < len(neg) and len(pos) else float("nan")


@pytest.mark.parametrize("cap", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("hidden", [0.0, 0.3])
def test_the_resampled_tpr_equals_the_one_of_resampled_scores(cap: float, hidden: float) -> None:
    rng = np.random.default_rng(2)
    scores, positive = rng.normal(size=(7, 90)).round(1), rng.random((7, 90)) < 0.4  # with ties
    scores += 0.5 * positive
    scores[rng.random(scores.shape) < hidden] = np.nan
    value, low, high = tpr_over_runs(scores, positive, cap=cap, alpha=0.1, seed=3, repeats=60)
    each = np.array([by_hand(s, p, cap) for s, p in zip(scores, positive, strict=True)])
    assert value == pytest.approx(each.mean(), nan_ok=True)
    draws, means = np.random.default_rng(3), []
    for _ in range(60):
        runs, examples = draws.integers(7, size=7), draws.integers(90, size=90)
        drawn = np.array([by_hand(scores[t, examples], positive[t, examples], cap) for t in runs])
        means.append(np.nanmean(drawn) if not np.isnan(drawn).all() else np.nan)
    expected = np.nanquantile(means, [0.05, 0.95]) if not np.isnan(value) else [np.nan, np.nan]
    assert (low, high) == pytest.approx(tuple(expected), nan_ok=True)


def test_without_any_spread_the_bounds_are_those_of_a_single_run() -> None:
    member = np.arange(60) < 20
    scores, truth = np.tile(member.astype(float), (30, 1)), np.tile(member, (30, 1))
    area = auc_over_runs(scores, truth)
    assert area.value == 1 and area.interval(0.05) == pytest.approx((0.025 ** (1 / 20), 1))
    assert auc_over_runs(-scores, truth).interval(0.05) == pytest.approx((0, 1 - 0.025 ** (1 / 20)))
    one = float(clopper_pearson(20, 20)[0])
    assert tpr_over_runs(scores, truth, cap=CAP, alpha=0.05, seed=0) == pytest.approx((1, one, 1))
    value, low, high = tpr_over_runs(-scores, truth, cap=CAP, alpha=0.05, seed=0)
    assert (value, low) == (0, 0) and high == pytest.approx(1 - one)


def test_a_tpr_that_a_run_cannot_carry_has_no_value() -> None:
    rng = np.random.default_rng(4)
    scores, member = rng.normal(size=(4, 40)), rng.random((4, 40)) < 0.5
    assert np.isnan(tpr_over_runs(scores, member, cap=0.01, alpha=0.05, seed=0)).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: auc_over_runs(np.zeros((1, 9)), np.arange(9)[None] < 3),
        lambda: auc_over_runs(np.zeros((3, 9)), np.zeros((2, 9), bool)),
        lambda: auc_over_runs(np.zeros((3, 9)), np.zeros((3, 9), bool)),
    ],
)
def test_what_cannot_be_judged_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidInput):
        call()


@pytest.mark.stat
@pytest.mark.parametrize("name", ["lira_online", "rmia_online"])
@pytest.mark.parametrize(
    ("models", "examples", "effect"),
    [(60, 100, 0.0), (60, 100, 1.0), (30, 60, 0.0), (30, 60, 1.0), (16, 40, 0.0), (16, 40, 1.5)],
)
def test_intervals_over_runs_cover(models: int, examples: int, effect: float, name: str) -> None:
    """1,000 worlds each (an error of 0.007); the truth is their mean. A world in which a model cannot carry the cap has
    no TPR."""
    for figure, each in simulated(models, 1000, models, examples, effect, name).items():
        found = each[~np.isnan(each[:, 0])]
        truth = found[:, 0].mean()
        covered = (found[:, 1] <= truth) & (truth <= found[:, 2])
        assert covered.mean() >= 0.93, figure
