"""Lower bounds on differential privacy from what an attack achieved.

(eps, delta)-DP bounds every test of "trained with the canary" against "without it":

    TPR <= e^eps FPR + delta        TNR <= e^eps FNR + delta

    many runs (Jagielski et al., NeurIPS 2020): with one-sided Clopper-Pearson bounds TPR_L, FPR_U at level 1 - alpha/2
    each
        eps_L = max(0, log((TPR_L - delta) / FPR_U), log((1 - FPR_U - delta) / (1 - TPR_L)));  / k for a canary repeated
            k times
    Gaussian DP (Nasr et al., USENIX Security 2023; Dong, Roth, Su 2022)
        mu_L = PhiInv(1 - FPR_U) - PhiInv(1 - TPR_L),   delta(eps) = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2)
    one run (Steinke, Nasr, Jagielski, NeurIPS 2023): m canaries, each included with probability 1/2; r guessed, v right
        q = 1 / (1 + e^-eps),  beta = P[Bin(r, q) >= v],
        p = min(1, beta + 2 m delta max_{i = 1..v} P[v > Bin(r, q) >= v - i] / i);  eps_L = largest eps with p < alpha

These are statements about the mechanism, at level 1 - alpha, if (1) the attack's threshold was fixed on other trials
and (2) each trial is one independently trained model (many runs) or one independently included canary (one run).
Not upper bounds: a weak attack proves little, and n trials a side prove no more than about log(n / 3.7) however good
the attack (5.6 for n = 1,000; log(0.997 / 0.003) = 5.8 by the rule of three, which spends alpha on one side only). An
audit therefore carries the largest bound that it could have proved, and a claim beyond that is not tested by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri
from scipy.stats import binom

from attacks.membership.calibration import Threshold, Trials
from contracts.errors import InvalidInput
from stats import lower_bound, upper_bound

_LARGEST = 700.0  # e^eps overflows beyond


def eps_lower_bound(
    true_positives: int,
    n_pos: int,
    false_positives: int,
    n_neg: int,
    *,
    alpha: float = 0.05,
    delta: float = 0.0,
    repeats: int = 1,
) -> float:
    """eps that the mechanism must exceed at level 1 - alpha, given hits in each world (one Bernoulli trial a trained
    model).

    Args:
        true_positives: trials WITH the canary that the attack called "with", of n_pos.
        false_positives: trials WITHOUT it that the attack called "with", of n_neg.
        delta: in [0, 1).
        repeats: copies k of the canary in the data; the bound for one example is then 1/k of it, which needs delta = 0.

    Raises:
        InvalidInput: impossible counts, alpha or delta out of range, or repeats > 1 with delta > 0.

    >>> round(eps_lower_bound(500, 500, 0, 500), 3)
    4.906
    """
    _check_delta(delta)
    if repeats < 1 or (repeats > 1 and delta > 0):
        raise InvalidInput(
            f"repeats = {repeats} with delta = {delta}: needs repeats >= 1, and delta = 0 when repeats > 1"
        )
    tpr, fpr = _bounds(true_positives, n_pos, false_positives, n_neg, alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = [np.log(max(tpr - delta, 0.0)) - np.log(fpr), np.log(max(1 - fpr - delta, 0.0)) - np.log(1 - tpr)]
    return max([0.0, *(float(eps) for eps in found if np.isfinite(eps))]) / repeats


def largest_provable_eps(n_pos: int, n_neg: int, *, alpha: float = 0.05, delta: float = 0.0, repeats: int = 1) -> float:
    """What :func:`eps_lower_bound` gives for a perfect attack: no number of trials proves more.

    >>> round(largest_provable_eps(1000, 1000), 3)
    5.601
    """
    return eps_lower_bound(n_pos, n_pos, 0, n_neg, alpha=alpha, delta=delta, repeats=repeats)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpsilonAudit:
    """A lower bound with what it rests on.

    Attributes:
        eps: the mechanism's epsilon exceeds it, at level 1 - alpha.
        largest: the bound that a perfect attack would have given with these trials.
        true_positives, n_pos, false_positives, n_neg: hits and trials in each world.
    """

    eps: float
    largest: float
    true_positives: int
    n_pos: int
    false_positives: int
    n_neg: int
    alpha: float
    delta: float

    @property
    def sentence(self) -> str:
        """For the report: the bound, its trials, and the most they could have shown."""
        return (
            f"Epsilon is at least {self.eps:.2f} ({100 * (1 - self.alpha):g}% confidence, delta {self.delta:g}; "
            f"{self.true_positives} of {self.n_pos} models with the "
            f"canary and {self.false_positives} of {self.n_neg} without it called members). The largest bound that so "
            f"many trials can prove is {self.largest:.2f}."
        )


def audit_epsilon(
    scores: NDArray[np.float64],
    is_member: NDArray[np.bool_],
    trials: Trials,
    threshold: Threshold,
    *,
    alpha: float = 0.05,
    delta: float = 0.0,
    repeats: int = 1,
) -> EpsilonAudit:
    """Bound epsilon from attack scores at a threshold that was chosen on other trials.

    Args:
        scores: (N,) one a trial (an independently trained model), larger = the canary was in.
        is_member: (N,) was it.
        trials: what the scores were computed on; one number a trial.
        threshold: from ``attacks.membership.at_best`` or ``at_fpr`` on other trials.

    Raises:
        Leakage: a trial that the threshold was chosen on. Searching it on the same trials voids the guarantee.
        InvalidInput: NaN scores, or see :func:`eps_lower_bound`.
    """
    if np.isnan(scores).any() or scores.shape != is_member.shape:
        raise InvalidInput(
            "an epsilon audit needs one defined score and one truth a trial: leaving trials out would bias it"
        )
    called = threshold.calls(scores, trials)
    tp, n_pos = int(called[is_member].sum()), int(is_member.sum())
    fp, n_neg = int(called[~is_member].sum()), int((~is_member).sum())
    return EpsilonAudit(
        eps=eps_lower_bound(tp, n_pos, fp, n_neg, alpha=alpha, delta=delta, repeats=repeats),
        largest=largest_provable_eps(n_pos, n_neg, alpha=alpha, delta=delta, repeats=repeats),
        true_positives=tp,
        n_pos=n_pos,
        false_positives=fp,
        n_neg=n_neg,
        alpha=alpha,
        delta=delta,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianBound:
    """Lower bounds at level 1 - alpha if the mechanism is Gaussian-DP: ``mu``, and ``eps`` at the delta asked for."""

    mu: float
    eps: float


def gdp_lower_bound(
    true_positives: int, n_pos: int, false_positives: int, n_neg: int, *, delta: float, alpha: float = 0.05
) -> GaussianBound:
    """As :func:`eps_lower_bound` for a mechanism known to be Gaussian (DP-SGD, in good approximation); 0 < delta <
    1."""
    _check_delta(delta, positive=True)
    tpr, fpr = _bounds(true_positives, n_pos, false_positives, n_neg, alpha)
    mu = float(ndtri(1 - fpr) - ndtri(1 - tpr))
    mu = max(0.0, mu) if np.isfinite(mu) else 0.0
    return GaussianBound(mu=mu, eps=eps_of_mu(mu, delta=delta))


def log_ratio_audit(first: NDArray[np.float64], second: NDArray[np.float64], *, thresholds: Sequence[float]) -> float:
    """Largest |log P1(E) / P2(E)| over the events "above t" and "below t", as the draws estimate it: at most eps for an
    (eps, 0)-DP mechanism on two neighbouring data sets, up to the error of the estimate. A point estimate and no bound:
    ``eps_lower_bound`` of the same counts is one.

    Args:
        first, second: draws of a released number (n,) on either data set.
        thresholds: fixed without a look at the draws.

    Raises:
        InvalidInput: no draws or no thresholds.

    >>> round(log_ratio_audit(np.array([0.0, 1.0, 1.0]), np.array([0.0, 0.0, 1.0]), thresholds=[0.5]), 3)
    0.693
    """
    if not len(first) or not len(second) or not len(thresholds):
        raise InvalidInput(f"{len(first)} and {len(second)} draws and {len(thresholds)} thresholds: each takes some")
    cuts = np.asarray(thresholds, np.float64)
    p, q = (np.stack([(d[:, None] > cuts).mean(0), (d[:, None] < cuts).mean(0)]) for d in (first, second))
    seen = (p > 0) | (q > 0)
    with np.errstate(divide="ignore"):
        apart = np.abs(np.log(p[seen]) - np.log(q[seen]))
    return float(apart.max(initial=0.0))


def delta_of_eps(eps: float, *, mu: float) -> float:
    """delta(eps) of a mu-Gaussian-DP mechanism; 0 for mu = 0."""
    if mu == 0:
        return 0.0
    # e^eps * Phi(.) in log space: the factor overflows where the product is tiny.
    return float(ndtr(-eps / mu + mu / 2) - np.exp(eps + log_ndtr(-eps / mu - mu / 2)))


def eps_of_mu(mu: float, *, delta: float) -> float:
    """The eps >= 0 at which a mu-Gaussian-DP mechanism has the given delta; 0 where delta(0) is already smaller."""
    _check_delta(delta, positive=True)
    if delta_of_eps(0.0, mu=mu) <= delta:
        return 0.0
    top = mu * (mu / 2 - ndtri(delta)) + 1.0  # there Phi(-eps/mu + mu/2) < delta already
    return float(brentq(lambda eps: delta_of_eps(eps, mu=mu) - delta, 0.0, top, xtol=1e-12))


def one_run_p_value(eps: float, *, num_canaries: int, num_guesses: int, num_right: int, delta: float = 0.0) -> float:
    """p-value of "the mechanism is (eps, delta)-DP" given v of r guesses right about m canaries."""
    m, r, v = num_canaries, num_guesses, num_right
    _check_delta(delta)
    if not (0 <= v <= r <= m and r >= 1):
        raise InvalidInput(f"{v} right of {r} guesses on {m} canaries is not possible")
    q = 1.0 / (1.0 + np.exp(-eps))
    beta = float(binom.sf(v - 1, r, q))
    if delta == 0 or v == 0:
        return beta
    i = np.arange(1, v + 1)
    between = binom.cdf(v - 1, r, q) - binom.cdf(v - i - 1, r, q)
    return min(1.0, beta + 2 * m * delta * float((between / i).max()))


def one_run_eps(
    num_canaries: int, num_guesses: int, num_right: int, *, delta: float = 0.0, alpha: float = 0.05
) -> float:
    """Largest eps that one training run with m random canaries refutes at level 1 - alpha; 0 when it refutes none.

    >>> round(one_run_eps(1000, 1000, 731), 3)
    0.881
    """

    def excess(eps: float) -> float:
        p = one_run_p_value(eps, num_canaries=num_canaries, num_guesses=num_guesses, num_right=num_right, delta=delta)
        return p - alpha

    if excess(0.0) >= 0:
        return 0.0
    top = 1.0
    while excess(top) < 0 and top < _LARGEST:
        top *= 2
    return float(brentq(excess, 0.0, top, xtol=1e-10))


def _bounds(tp: int, n_pos: int, fp: int, n_neg: int, alpha: float) -> tuple[float, float]:
    return float(lower_bound(tp, n_pos, alpha=alpha / 2)), float(upper_bound(fp, n_neg, alpha=alpha / 2))


def _check_delta(delta: float, *, positive: bool = False) -> None:
    if not (0 < delta < 1 if positive else 0 <= delta < 1):
        raise InvalidInput(f"delta = {delta} is outside its allowed range: {'> 0' if positive else '>= 0'} and < 1")
