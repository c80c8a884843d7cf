"""What the sizes of an audit allow before any work is done: how often would exact removal pass?

    every figure f of every model s:   d_fs ~ N(0, sd_f^2) about 1/2 when nothing is left        passes when |d_fs| <=
                                       c_f
    attack AUC      sd^2 = (n+ + n- + 1) / (12 n+ n-)  (Mann and Whitney 1947)     c = tolerance - half width of its own
                    interval
    population      sd^2 = 0.65 / (4 * 2n), c from the Clopper-Pearson interval at 2n / 1.3 trials
                    (``population_umia``), n = min(n+, n-)
    pass            P[all |d_fs| <= c_f]: the figures are correlated normals, drawn 20,000 times from a fixed seed

Figures of several models of one method share their examples. Correlations measured on 140 exact removals of random sets
of 269 and 89 digits, three models each: between models 0.93 (attacks without references), 0.65 (with), 0.87
(population); between attacks with references 0.45, with and without 0.25, the population attack and the others 0.1. Of
those audits 0.925 (269) and 0.03 (89) passed; this computes 0.92 and 0.02.

A set that is not random, or a request, is judged by R retrainings without it (``retraining_null``): the mean m over its
F examples is one more retraining's, m / sd ~ Student's t of R - 1 degrees with sd = sqrt((1 + 1/R) / F), and passes
when it lies within the tolerance and |m| + t_{R-1, 1-alpha/2} sd <= max_trace x trace:
    best chance    P[|m| <= tolerance]                                              however well the untouched model
                   knows the set
    trace needed   (t_{R-1, 0.9} + t_{R-1, 1-alpha/2}) sd / max_trace               to pass in 4 of 5 audits as far as
                   the trace goes
That is the least: examples that move together (a class, one person's rows) vary more than F independent ones.

Not a power analysis of what is to be found: see ``statistics.power``. Source: the verdict's own rules
(``attacks.verdicts``).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t

from attacks.membership.population_umia import FEWEST, interval_of
from attacks.membership.shadow_runs import tolerated_mu
from attacks.verdicts import CLAIM_FPR
from contracts.errors import InvalidInput
from contracts.subject import Thresholds
from stats import auc_stderr, detectable_auc, minimum_negatives, minimum_references

_DRAWS = 20_000
_SAME_MODEL_FREE = {"plain": 0.93, "reference": 0.65, "population": 0.87}
_BETWEEN = {
    frozenset({"reference"}): 0.45,
    frozenset({"plain"}): 0.8,
    frozenset({"plain", "reference"}): 0.25,
    frozenset({"population", "plain"}): 0.1,
    frozenset({"population", "reference"}): 0.1,
}


def pass_probability(
    num_forget: int,
    num_unseen: int,
    *,
    plain: int,
    reference: int,
    models: int,
    num_references: int,
    thresholds: Thresholds,
) -> float:
    """Share of audits of an exactly removed random set that pass all their attacks.

    Args:
        num_forget, num_unseen: forgotten examples and unseen ones that attacks compare them with.
        plain, reference: attacks without and with reference models; the population attack comes on top.
        models: models of the method that are judged; the worst counts.
        num_references: reference models on each side of an example.
        thresholds: max_auc, max_umia and alpha of the plan.

    Returns:
        In [0, 1]; 0 where the sizes cannot carry a claim at all.

    Raises:
        InvalidInput: a negative number, or no model.

    >>> limits = Thresholds()
    >>> more = dict(plain=1, reference=2, models=3, num_references=32, thresholds=limits)
    >>> round(pass_probability(269, 449, **more), 2), round(pass_probability(20, 449, **more), 2)
    (0.92, 0.0)
    """
    if min(num_forget, num_unseen, plain, reference, num_references) < 0 or models < 1:
        raise InvalidInput("sizes and numbers of attacks must not be negative, and one model at least is judged")
    if why_not(
        num_forget, num_unseen, uses_references=reference > 0, num_references=num_references, thresholds=thresholds
    ):
        return 0.0
    alpha = thresholds.alpha
    sd = auc_stderr(0.5, num_forget, num_unseen)
    room = {
        "auc": thresholds.max_auc - 0.5 - float(norm.isf(alpha / 2)) * sd,
        "population": _population_room(num_forget, num_unseen, thresholds),
    }
    smaller = min(num_forget, num_unseen)
    spread = {"auc": sd, "population": math.sqrt(0.65 / (8 * smaller))}
    kinds = ["plain"] * plain + ["reference"] * reference + ["population"]
    family = np.repeat(np.arange(len(kinds)), models)
    within = [_SAME_MODEL_FREE[kinds[f]] for f in family]
    correlation = np.empty((len(family), len(family)))
    for i, a in enumerate(family):
        for j, b in enumerate(family):
            between = _BETWEEN.get(frozenset({kinds[a], kinds[b]}), 0.0)
            correlation[i, j] = 1.0 if i == j else within[i] if a == b else between
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    z = np.random.default_rng(0).normal(size=(_DRAWS, len(family))) @ root.T
    which = ["population" if kinds[f] == "population" else "auc" for f in family]
    allowed = np.array([room[w] / spread[w] for w in which])
    return float((np.abs(z) <= allowed).all(axis=1).mean())


def against_retraining_allows(num_forget: int, *, retrainings: int, thresholds: Thresholds) -> tuple[float, float]:
    """What the size of a set that is not random allows; see the module.

    Args:
        num_forget: examples of the set, >= 1.
        retrainings: R, >= 2.
        thresholds: max_auc, max_trace and alpha of the plan.

    Returns:
        best chance: share of audits of an exactly removed set that can pass, in (0, 1).
        trace needed: how much better the untouched model must know the set than retrainings without it, on average, in
            standard deviations of one example over the retrainings, so that 4 of 5 such audits pass as far as the trace
            goes.

    Raises:
        InvalidInput: counts out of range.

    >>> chance, trace = against_retraining_allows(100, retrainings=20, thresholds=Thresholds())
    >>> round(chance, 3), round(trace, 2)
    (0.998, 1.75)
    """
    if num_forget < 1 or retrainings < 2:
        raise InvalidInput(f"num_forget = {num_forget} and retrainings = {retrainings} must be >= 1 and >= 2")
    law, sd = student_t(retrainings - 1), math.sqrt((1 + 1 / retrainings) / num_forget)
    chance = 2 * law.cdf(tolerated_mu(thresholds.max_auc) / sd) - 1
    return float(chance), float(law.ppf([0.9, 1 - thresholds.alpha / 2]).sum() * sd / thresholds.max_trace)


def why_not(
    num_forget: int, num_unseen: int, *, uses_references: bool, num_references: int, thresholds: Thresholds
) -> str:
    """What the sizes lack for any pass, with the number that would do; "" when nothing."""
    needed = max(math.ceil(10 / CLAIM_FPR - 1e-9), minimum_negatives(CLAIM_FPR, alpha=thresholds.alpha))
    if num_unseen < needed:
        return (
            f"{num_unseen} unseen examples; {needed} are needed for a claim at a false-positive rate of {CLAIM_FPR:g}"
        )
    if num_forget < FEWEST or detectable_auc(num_forget, num_unseen, alpha=thresholds.alpha) > thresholds.max_auc:
        enough = next(
            (
                n
                for n in range(FEWEST, 100_000)
                if detectable_auc(n, num_unseen, alpha=thresholds.alpha) <= thresholds.max_auc
            ),
            None,
        )
        more = f"{enough} are needed" if enough else "no number is enough with so few unseen ones"
        return f"{num_forget} forgotten examples; {more} to find an AUC of {thresholds.max_auc:g}"
    if uses_references and num_references < minimum_references(CLAIM_FPR):
        return (
            f"{num_references} reference models with and as many without an example; {minimum_references(CLAIM_FPR)} "
            "are needed"
        )
    return ""


def _population_room(num_forget: int, num_unseen: int, thresholds: Thresholds) -> float:
    """How far the population attack's accuracy may lie from 1/2 with its whole interval tolerated; negative: never."""
    size, limit = min(num_forget, num_unseen), thresholds.max_umia
    grid = np.linspace(0.5, limit, 201)
    inside = [a for a in grid if interval_of(float(a), size, alpha=thresholds.alpha)[1] <= limit]
    return float(max(inside) - 0.5) if inside else -1.0
