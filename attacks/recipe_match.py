"""Could the stated recipe have made the given model? Reference models say something of it only then.

    acc_m   mean quality (of classes the accuracy) of model m on P examples, on which no model was trained
    rho_m   Spearman correlation over these of the signal phi_m (of classes log p_y - log(1 - p_y)) with the mean phi of
            the recipe's (other) models
    t       (T_given - mean_r T_r) / (s_r sqrt(1 + 1/R)), Student's t with R - 1 degrees of freedom: one more of R
            models

    p = min(1, 2 min(p of acc, two-sided; p of atanh rho, low))        Bonferroni over the two tests

R models of the stated recipe, on the very rows that the given one is said to be trained on, other seeds: were it one of
them, both figures would be as theirs, and p below alpha would happen in at most alpha of all audits. Accuracy is the
same whatever the scale of the outputs, as attacks on one scale are; the correlation sees other data, another
architecture, noisy labels. A model that is better than the recipe's may have been trained on the examples that are
taken for unseen.

Not a proof of likeness: what is learnt by heart does not show on unseen examples. Source: prediction interval of one
more observation, definition; Carlini et al. 2022, section VI, for what reference models of another recipe cost an
attack.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from scipy.stats import t as student_t

from contracts.errors import InvalidInput
from contracts.subject import Thresholds
from contracts.verdicts import COVERAGE, DISTANCE, QUALITY, Finding, Verdict
from tasks.base import Reading

Float = NDArray[np.float64]
SET_GONE = "against retraining"  # the finding about a very set, beside retrainings without it
FEWEST = 10  # unseen examples below which nothing is compared
_CLOSEST = 0.999  # correlations above it do not differ
_LEAST_SPREAD = 0.05  # of atanh rho: recipes whose models hardly depend on the seed


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeMatch:
    """Accuracies (of other tasks: mean qualities) and correlations in [0, 1] and [-1, 1]: the given model's, the mean
    and standard deviation of the recipe's."""

    num_examples: int
    num_models: int
    accuracy: float
    recipe_accuracy: float
    recipe_accuracy_sd: float
    likeness: float
    recipe_likeness: float
    detectable: float
    p_value: float


def recipe_match(given: Reading, recipe: Reading, *, alpha: float) -> RecipeMatch:
    """Compare a given model with models of the stated recipe.

    Args:
        given: (P, 4) of the given model on P >= 10 unseen examples, finite.
        recipe: (R, P, 4) of R >= 3 models of the recipe.
        alpha: level at which ``detectable`` is told, the smallest difference of accuracy that is then significant.

    Raises:
        InvalidInput: shapes that do not fit, or too few.

    >>> z = np.random.default_rng(0).normal(2, 2, 300) + np.random.default_rng(1).normal(0, 0.5, (21, 300))
    >>> of = lambda v: Reading.of(loss=-v, signal=v, log_likelihood=v, quality=v > 0)
    >>> own, theirs, other = of(z[0]), of(z[1:]), of(-z[0])
    >>> recipe_match(own, theirs, alpha=0.05).p_value > 0.05, recipe_match(other, theirs, alpha=0.05).p_value < 1e-6
    (True, True)
    """
    given_P, recipe_RP = given.signal, recipe.signal
    if given_P.ndim != 1 or recipe_RP.ndim != 2 or recipe_RP.shape[1] != len(given_P):
        raise InvalidInput(f"readings {given_P.shape} and {recipe_RP.shape} do not fit: (P,) and (R, P) are needed")
    num_models, num = recipe_RP.shape
    if num < FEWEST or num_models < 3:
        raise InvalidInput(f"{num} unseen examples and {num_models} models of the recipe: {FEWEST} and 3 are needed")
    everyone = np.vstack([given_P, recipe_RP])
    accuracy = np.vstack([given.quality, recipe.quality]).mean(axis=1)
    whole = recipe_RP.sum(axis=0)
    others = [whole, *(whole - row for row in recipe_RP)]
    likeness = np.array([_spearman(row, other) for row, other in zip(everyone, others, strict=True)])
    z = np.arctanh(np.clip(likeness, -_CLOSEST, _CLOSEST))
    t_accuracy, reach = _one_more(accuracy, least=1 / num)
    t_likeness, _ = _one_more(z, least=_LEAST_SPREAD)
    freedom = num_models - 1
    p_values = (2 * student_t.sf(abs(t_accuracy), freedom), student_t.cdf(t_likeness, freedom))
    return RecipeMatch(
        num_examples=num,
        num_models=num_models,
        accuracy=float(accuracy[0]),
        recipe_accuracy=float(accuracy[1:].mean()),
        recipe_accuracy_sd=float(accuracy[1:].std(ddof=1)),
        likeness=float(likeness[0]),
        recipe_likeness=float(likeness[1:].mean()),
        detectable=float(min(1.0, reach * student_t.isf(alpha / 4, freedom))),
        p_value=float(min(1.0, 2 * min(p_values))),
    )


def judge_recipe(
    found: RecipeMatch, *, what: str, thresholds: Thresholds, quality: str = "accuracy", who: str = "The given model"
) -> Finding:
    """Judge whether a given model could be one of the stated recipe's; the figure is the p-value.

    A mismatch is no fault of the model: it says that reference models were made for another one, so it counts as
    inconclusive. Where none is found nothing is claimed, and the finding does not count.

    Args:
        quality: what the task's quality is, for people.
        who: the model that was compared, for people; a reference model stands for all that were given with it.
    """
    shares = (
        f"{found.accuracy:.1%} against {found.recipe_accuracy:.1%} (standard deviation {found.recipe_accuracy_sd:.1%})"
    )
    shown = (
        f"on {found.num_examples} examples that no model was trained on its {quality} is {shares} of "
        f"{found.num_models} models of the stated recipe, and its answers correlate with theirs by "
        f"{found.likeness:.3f}, theirs with each other by {found.recipe_likeness:.3f}; p = {found.p_value:.2g}, level "
        f"{thresholds.alpha:g}"
    )
    mismatch = found.p_value < thresholds.alpha
    better = found.accuracy > found.recipe_accuracy + found.detectable
    seen = (
        " It is better than they are: it was trained otherwise, or on examples that are taken for unseen."
        if better
        else ""
    )
    sentence = (
        f"{who} is not one of the stated recipe: {shown}.{seen} What reference models and retrainings say "
        "was measured on something else. State the recipe, and the rows, that made it."
        if mismatch
        else f"{who} could be one of the stated recipe: {shown}. A difference in {quality} of "
        f"{found.detectable:.1%} would have been found."
    )
    return Finding(
        what=what,
        kind=COVERAGE,
        verdict=Verdict.INCONCLUSIVE if mismatch else Verdict.PASS,
        sentence=sentence,
        value=found.p_value,
        threshold=thresholds.alpha,
        judged=mismatch,
    )


def on_another_recipe(finding: Finding, *, why: str = "the given model is not one of the stated recipe") -> Finding:
    """A finding about a model that rests on models of a recipe which is not its own.

    An attack that tells members is evidence whatever it was calibrated on; that it does not, is none. What was compared
    with retraining says nothing either way.
    """
    relative = finding.kind in (DISTANCE, QUALITY) or finding.what == SET_GONE
    said = (Verdict.PASS, Verdict.FAIL) if relative else (Verdict.PASS,)
    if finding.verdict not in said:
        return finding
    return dataclasses.replace(
        finding,
        verdict=Verdict.INCONCLUSIVE,
        sentence=f"Measured on something else, for {why}. {finding.sentence}",
    )


def _one_more(values: Float, *, least: float) -> tuple[float, float]:
    """t of the first value as one more observation of the others, and the error that it is in units of."""
    others = values[1:]
    error = max(float(others.std(ddof=1)), least) * float(np.sqrt(1 + 1 / len(others)))
    return float(values[0] - others.mean()) / error, error


def _spearman(a: Float, b: Float) -> float:
    """Rank correlation; 0 where one of them is constant."""
    ranks = np.stack([rankdata(a), rankdata(b)])
    spread = ranks.std(axis=1)
    if not spread.all():
        return 0.0
    return float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())) / spread.prod())
