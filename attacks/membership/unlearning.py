"""Audits of unlearning over shadow runs: was the example trained on and then removed, or never seen?

(a) U-LiRA (Hayes et al., SaTML 2025, arXiv 2403.01218): R shadow runs; in each, every target example is IN (trained,
    kept), OUT (never trained) or UNLEARN (trained, then removed), R/3 runs each. With phi of the unlearned model

        score of j on a held-out run = log N(phi; UNLEARN_j) - log N(phi; OUT_j)

    from runs that are not judged: the run itself and one of the other state are left out (``_held_out`` says why)

(b) Collateral: the same test, IN against OUT, before and after unlearning: do retained examples leak more?
(c) Effect and epsilon of one example, from its own UNLEARN and OUT values (n_U, n_O of them, s their pooled spread):

        t_j = (mean_U - mean_O) / (s sqrt(1/n_U + 1/n_O)), n_U + n_O - 2 degrees of freedom       p-value, two-sided
        mu_j = |mean_U - mean_O| / s                     eps_j by Gaussian differential privacy (``attacks.dp_audit``)

    Under exact unlearning phi does not depend on which of the two a run was, and the design draws every example's runs
    on its own: the t of the examples are independent, each close to its permutation law. Holm's correction over all
    targets then holds its level; a spread pooled over examples would not (examples differ in theirs).

The population attack on one model is ``population_umia``. A population audit near 0.5 says little: U-LiRA is often far
above. phi is the task's signal (of classes the log-odds of the label). Shapes: R runs, N target examples; phi (R, N)
float64, state (R, N) int8 in {IN, OUT, UNLEARN}.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

from attacks.dp_audit import eps_of_mu
from attacks.membership.gaussian import Variance
from attacks.membership.lira import log_ratio
from attacks.membership.over_runs import auc_over_runs, tpr_over_runs
from attacks.membership.population_umia import UMIAResult, population_umia
from attacks.membership.shadow_runs import IN, OUT, UNLEARN, State, shadow_unlearning, three_state_design
from contracts.errors import InvalidInput

__all__ = [
    "IN",
    "OUT",
    "UNLEARN",
    "CollateralResult",
    "ULiRAResult",
    "UMIAResult",
    "collateral",
    "example_epsilon",
    "population_umia",
    "removed_scores",
    "shadow_unlearning",
    "three_state_design",
    "u_lira",
]

Float = NDArray[np.float64]
MOST_MU = 100.0  # two groups further apart than any model's rounding lets one measure; epsilon is above 5,000 there


@dataclass(frozen=True, eq=False, kw_only=True)
class ULiRAResult:
    """U-LiRA over held-out shadow runs.

    Attributes:
        scores: (R, N) log-likelihood ratio in nats, larger = was trained and removed; NaN where the state is IN.
        is_unlearned: (R, N) truth, meaningful where scores are defined.
        auc, auc_low, auc_high: mean over runs; errors clustered by run and by example (``over_runs``).
        accuracy: share of (run, example) with the right sign; ideal 0.5.
        tpr_at_1, tpr_at_1_low, tpr_at_1_high: TPR at 1% FPR, mean over runs; NaN with fewer than 100 OUT examples a
            run.
        example_accuracy: (N,) share of held-out runs in which the sign is right for the example.
    """

    scores: Float
    is_unlearned: NDArray[np.bool_]
    auc: float
    auc_low: float
    auc_high: float
    accuracy: float
    tpr_at_1: float
    tpr_at_1_low: float
    tpr_at_1_high: float
    example_accuracy: Float


def u_lira(
    signal: Float, state: State, *, variance: Variance = "pooled", alpha: float = 0.05, seed: int = 0
) -> ULiRAResult:
    """Tell UNLEARN from OUT on every run, with the other runs as references.

    Args:
        signal: (R, N) of the models after unlearning, or any other sign of what is left; finite where the state is not
            IN.
        state: (R, N), see :func:`three_state_design`.
        variance: spread of the normals (``membership.gaussian``); pooled suits the usual tens of runs.
        seed: of the bootstrap behind the interval of the TPR.

    Raises:
        InvalidInput: shapes that do not fit, or a signal that is not finite.
    """
    scores = removed_scores(signal, state, variance=variance)
    judged, truth = state != IN, state == UNLEARN
    area = auc_over_runs(scores, truth)
    low, high = area.interval(alpha)
    tpr = tpr_over_runs(scores, truth, cap=0.01, alpha=alpha, seed=seed)
    right = np.where(judged, (scores > 0) == truth, False)
    return ULiRAResult(
        scores=scores,
        is_unlearned=truth,
        auc=area.value,
        auc_low=low,
        auc_high=high,
        accuracy=float(right.sum() / judged.sum()),
        tpr_at_1=tpr[0],
        tpr_at_1_low=tpr[1],
        tpr_at_1_high=tpr[2],
        example_accuracy=right.sum(axis=0) / judged.sum(axis=0),
    )


def removed_scores(signal: Float, state: State, *, variance: Variance = "pooled") -> Float:
    """(R, N) log-likelihood ratio of UNLEARN against OUT on held-out runs, NaN where the state is IN.

    Args:
        signal: (R, N) finite where the state is UNLEARN or OUT; elsewhere it is not read.

    Raises:
        InvalidInput: shapes that do not fit, a signal that is not finite, or an unbalanced design.
    """
    _check_state(state)
    judged = state != IN
    if signal.shape != state.shape or not np.isfinite(signal[judged]).all():
        raise InvalidInput(f"signal {signal.shape} and state {state.shape} do not fit, or the signal is not finite")
    return _held_out(np.where(judged, signal, 0.0), state, UNLEARN, OUT, variance)


@dataclass(frozen=True, kw_only=True, slots=True)
class CollateralResult:
    """Leakage about retained examples: AUC of IN against OUT before and after unlearning, and its change, paired by run
    and example (``over_runs``). ``low`` > 0: retained people leak more than they did; ``p_value``: one-sided, of "they
    do not".
    """

    auc_before: float
    auc_after: float
    change: float
    low: float
    high: float
    p_value: float


def collateral(
    before: Float,
    after: Float,
    state: State,
    *,
    variance: Variance = "pooled",
    alpha: float = 0.05,
) -> CollateralResult:
    """Online LiRA of IN against OUT on the signals (R, N) of the same runs before and after unlearning, paired.

    Retraining on less data may itself leak more about what is left (the onion effect, Carlini et al., NeurIPS 2022).
    With the retrained models as ``before`` the change is what a method adds to that.
    """
    areas = []
    for signal in (before, after):
        _check_runs(signal, state)
        scores = _held_out(signal, state, IN, OUT, variance)
        areas.append(auc_over_runs(scores, state == IN))
    grown = areas[1] - areas[0]
    low, high = grown.difference_interval(alpha)
    return CollateralResult(
        auc_before=areas[0].value,
        auc_after=areas[1].value,
        change=grown.value,
        low=low,
        high=high,
        p_value=grown.grown_p_value(),
    )


def example_epsilon(phi: Float, state: State, *, delta: float = 1e-5, alpha: float = 0.05) -> pl.DataFrame:
    """What the UNLEARN and OUT values of each example, signals (R, N), say about its privacy, (c) of this module.

    mu_j = |mean_UNLEARN - mean_OUT| / s_j with the example's own spread; ``mu_low`` takes off the sampling error at
    one-sided level 1 - alpha / 2, with the large-sample variance 1/n_U + 1/n_O + mu^2 / (2 df) of a standardised
    difference (Hedges and Olkin 1985). eps solves delta(eps) = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2) = delta.
    One example at a time: for bounds that hold for all N together give alpha / N, and correct the p-values with
    ``stats`` before naming the worst. A spread of 0 beside a difference counts as mu = 100.

    Returns:
        position int64 (column of ``state``), mu, mu_low, eps, eps_low float64, p_value (two-sided, of "no difference").
    """
    _check_runs(phi, state)
    groups = [state == UNLEARN, state == OUT]
    sizes = [g.sum(axis=0) for g in groups]
    means = [np.where(g, phi, 0.0).sum(axis=0) / n for g, n in zip(groups, sizes, strict=True)]
    residuals = np.where(groups[0], phi - means[0], np.where(groups[1], phi - means[1], 0.0))
    squares, freedom = np.square(residuals).sum(axis=0), sizes[0] + sizes[1] - 2
    gap = np.abs(means[0] - means[1])
    # Differences at the level of rounding are none: constant models must not come out as infinitely exposed.
    gap = np.where(gap > 1e-9 * (1 + np.abs(means[1])), gap, 0.0)
    s = np.sqrt(squares / freedom)
    mu = np.minimum(np.divide(gap, s, out=np.where(gap > 0, MOST_MU, 0.0), where=s > gap / MOST_MU), MOST_MU)
    spread = 1 / sizes[0] + 1 / sizes[1]
    error = np.sqrt(spread + mu**2 / (2 * freedom))
    mu_low = np.maximum(0.0, mu - norm.ppf(1 - alpha / 2) * error)
    return pl.DataFrame(
        {
            "position": np.arange(phi.shape[1]),
            "mu": mu,
            "mu_low": mu_low,
            "eps": [eps_of_mu(m, delta=delta) for m in mu],
            "eps_low": [eps_of_mu(m, delta=delta) for m in mu_low],
            "p_value": 2 * student_t.sf(mu / np.sqrt(spread), freedom),
        }
    )


def _held_out(phi: Float, state: State, first: int, second: int, variance: Variance) -> Float:
    """(R, N) log N(phi; first) - log N(phi; second) of every run from other runs; NaN where the run is neither.

    The k-th run of one state is judged without itself and without the k-th run of the other: both normals then rest on
    the same number of runs. Leaving out the judged run alone makes its own state's normal the noisier one, and an exact
    method would come out below 0.5 (0.485 on the digits with 60 runs).
    """
    rows = [np.argsort(state != s, axis=0, kind="stable")[: int((state[:, 0] == s).sum())] for s in (first, second)]
    values = [np.take_along_axis(phi, at, axis=0) for at in rows]
    num, nobody = len(rows[0]), np.array([-1, -1])
    inside = np.repeat([True, False], num - 1)[:, None] & np.ones(phi.shape[1], dtype=bool)
    scores = np.full(phi.shape, np.nan)
    for k in range(num):
        judged = np.stack([v[k] for v in values])
        others = np.concatenate([np.delete(v, k, axis=0) for v in values])
        ratio = log_ratio(judged, others, inside, ~inside, nobody, variance=variance)
        for at, own in zip(rows, ratio, strict=True):
            np.put_along_axis(scores, at[k : k + 1], own[None], axis=0)
    return scores


def _check_runs(signal: Float, state: State) -> None:
    if signal.ndim != 2 or signal.shape != state.shape:
        raise InvalidInput(f"signal {signal.shape} and state {state.shape} do not fit (R, N), (R, N)")
    if not np.isfinite(signal).all():
        raise InvalidInput("the signal holds values that are not finite")
    _check_state(state)


def _check_state(state: State) -> None:
    if not np.isin(state, (IN, OUT, UNLEARN)).all():
        raise InvalidInput("state holds values other than IN = 0, OUT = 1, UNLEARN = 2")
    counts = np.array([(state == s).sum(axis=0) for s in (IN, OUT, UNLEARN)])
    if not counts.size or (counts != len(state) // 3).any() or len(state) < 9:
        raise InvalidInput("every example must be in each state in a third of the runs, 3 at least: three_state_design")
