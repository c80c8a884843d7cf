"""A given model beside models of the stated recipe: the level is kept, other models are found, and a pass becomes
none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from attacks.recipe_match import FEWEST, SET_GONE, judge_recipe, on_another_recipe, recipe_match
from contracts.errors import InvalidInput
from contracts.subject import Thresholds
from contracts.verdicts import ATTACK, COVERAGE, DISTANCE, QUALITY, RESULT, Finding, Verdict
from tasks.base import Reading

LIMITS = Thresholds()


def models(num: int, *, points: int = 200, seed: int = 0, hard: int = 0, noise: float = 0.6) -> np.ndarray:
    """Log-odds (num, points) of models that find the same points hard, up to noise of the seed."""
    base = np.random.default_rng([hard, points]).normal(2.5, 2.0, points)
    return base + np.random.default_rng(seed).normal(0, noise, (num, points))


def said(z: np.ndarray) -> Reading:
    """Log-odds as readings: above 0 = right."""
    return Reading.of(loss=np.logaddexp(0, -z), signal=z, log_likelihood=-np.logaddexp(0, -z), quality=z > 0)


def test_the_figures_are_those_of_a_loop():
    z = models(13, points=80)
    found = recipe_match(said(z[0]), said(z[1:]), alpha=0.05)
    assert (found.num_examples, found.num_models) == (80, 12)
    assert found.accuracy == np.mean(z[0] > 0) and found.recipe_accuracy == pytest.approx(np.mean(z[1:] > 0))
    assert found.likeness == pytest.approx(spearmanr(z[0], z[1:].mean(0)).statistic)
    others = [spearmanr(z[r], np.delete(z[1:], r - 1, axis=0).mean(0)).statistic for r in range(1, 13)]
    assert found.recipe_likeness == pytest.approx(np.mean(others))


@pytest.mark.parametrize("num", [10, 20])
@pytest.mark.parametrize("noise", [0.2, 1.5])
def test_one_more_model_of_the_recipe_is_called_another_in_at_most_alpha(num, noise):
    rejected = [
        recipe_match(said(z[0]), said(z[1:]), alpha=0.05).p_value < 0.05
        for z in (models(num + 1, seed=s, noise=noise) for s in range(300))
    ]
    assert np.mean(rejected) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize(
    "other",
    [
        lambda z: np.random.default_rng(1).normal(-2.2, 1, z.shape[1]),  # untouched: it knows nothing
        lambda z: -z[0],  # the labels of another data set
        lambda z: models(1, hard=7)[0],  # as good, on other examples
        lambda z: np.abs(z[0]) + 1,  # trained on the very examples that are taken for unseen
        lambda z: z[0] - 1.5,  # worse
        lambda z: np.zeros(z.shape[1]),  # one answer to everything
    ],
    ids=["untouched", "labels", "data", "leaked", "worse", "constant"],
)
def test_another_model_is_found(other):
    z = models(21)
    found = recipe_match(said(other(z)), said(z[1:]), alpha=0.05)
    assert found.p_value < 0.001
    finding = judge_recipe(found, what="recipe", thresholds=LIMITS)
    assert (
        finding.verdict is Verdict.INCONCLUSIVE
        and finding.judged
        and "not one of the stated recipe" in finding.sentence
    )


def test_a_model_that_knows_the_unseen_examples_is_said_to_be_better():
    z = models(21)
    leaked = judge_recipe(
        recipe_match(said(np.abs(z[0]) + 1), said(z[1:]), alpha=0.05), what="recipe", thresholds=LIMITS
    )
    worse = judge_recipe(recipe_match(said(z[0] - 1.5), said(z[1:]), alpha=0.05), what="recipe", thresholds=LIMITS)
    assert "on examples that are taken for unseen" in leaked.sentence and "taken for unseen" not in worse.sentence


def test_the_scale_of_the_outputs_is_no_mismatch():
    z = models(21)
    for scaled in (0.1 * z[0], 50 * z[0]):
        assert recipe_match(said(scaled), said(z[1:]), alpha=0.05).p_value > 0.05


def test_a_match_claims_nothing():
    z = models(21, seed=3)
    finding = judge_recipe(recipe_match(said(z[0]), said(z[1:]), alpha=0.05), what="recipe", thresholds=LIMITS)
    assert finding.verdict is Verdict.PASS and not finding.judged and "would have been found" in finding.sentence


def test_recipes_without_spread_do_not_divide_by_it():
    z = np.repeat(models(1, noise=0.0), 11, axis=0)
    assert recipe_match(said(z[0]), said(z[1:]), alpha=0.05).p_value == 1.0
    one_off = z[0].copy()
    one_off[np.argmin(np.abs(one_off))] *= -1
    assert recipe_match(said(one_off), said(z[1:]), alpha=0.05).p_value > 0.05, (
        "one answer of 200 more or less is no other recipe"
    )


@pytest.mark.parametrize(("given", "recipe"), [((9,), (5, 9)), ((50,), (2, 50)), ((50,), (5, 49)), ((5, 50), (5, 50))])
def test_what_cannot_be_compared_is_refused(given, recipe):
    with pytest.raises(InvalidInput):
        recipe_match(said(np.ones(given)), said(np.ones(recipe)), alpha=0.05)
    assert FEWEST == 10


@pytest.mark.parametrize(
    ("kind", "what", "before", "after"),
    [
        (ATTACK, "attack/lira_online", Verdict.PASS, Verdict.INCONCLUSIVE),
        (ATTACK, "attack/lira_online", Verdict.FAIL, Verdict.FAIL),  # telling members is evidence, however it was done
        (ATTACK, "attack/lira_online", Verdict.BROKEN, Verdict.BROKEN),
        (ATTACK, SET_GONE, Verdict.FAIL, Verdict.INCONCLUSIVE),  # relative to retraining: says nothing either way
        (ATTACK, SET_GONE, Verdict.PASS, Verdict.INCONCLUSIVE),
        (DISTANCE, "gap", Verdict.FAIL, Verdict.INCONCLUSIVE),
        (QUALITY, "quality", Verdict.PASS, Verdict.INCONCLUSIVE),
        (COVERAGE, "u_lira", Verdict.PASS, Verdict.INCONCLUSIVE),
        (RESULT, "result", Verdict.FAIL, Verdict.FAIL),
    ],
)
def test_on_another_recipe_no_pass_is_left(kind, what, before, after):
    found = on_another_recipe(Finding(what=what, kind=kind, verdict=before, sentence="As it was."))
    assert found.verdict is after and found.sentence.endswith("As it was.")
    assert ("Measured on something else" in found.sentence) == (before is not after)
