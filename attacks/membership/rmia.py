"""RMIA, the relative attack: is the example likelier under this model than population points are, each relative to
what reference models give it?

Source: Zarifzadeh, Liu, Shokri, "Low-Cost High-Power Membership Inference Attacks", ICML 2024, eqs. 5, 8, 9 and 10.

    ratio_x = p(x | target) / p(x)
    online    p(x) = (mean_IN + mean_OUT) / 2                means of p(x | model) over reference models with / without
              x
    offline   p(x) = ((1 + a) mean_OUT + (1 - a) L) / 2      a in [0, 1]
    ratio_z   the same for population points z (non-members of every model): p(z | target) / mean over all references
    score     share of z with ratio_x / ratio_z >= gamma

``a`` is tuned on 0, 0.1, ..., 1 for the AUC of an attack on one REFERENCE model by the others, the audited model left
out of both sides. The share has a resolution of 1/P, so P >= 10 / (target FPR); ties are broken by ratio_x:

    returned score = (number of z + r / (1 + r)) / (P + 1),  r = ratio_x        in [0, 1], larger = more likely a member

p(x | model) is the exponential of the task's log-likelihood: of classes p_y, as published. L is the largest likelihood
there can be, 1 of classes: what p(x | model) tends to for a member. Ratios know no unit, so an example that is so
(im)probable under every model that its likelihoods leave float64, as sums over many dimensions are, is first divided by
the largest of them.

Shapes: Evidence with T, M, N and P population points -> (T, N); NaN where an example has no reference model with
(online) or without it. Cost O((N + P) log P) a target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.membership.evidence import Evidence
from attacks.membership.leave_one_out import count_below, sums_without
from contracts.methods import AttackSpec, attack
from contracts.params import Config, param
from stats import auc

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

A_GRID = tuple(i / 10 for i in range(11))
_BLOCK = 1024  # examples at a time: M x _BLOCK float64 stays near the cache
_TUNING = 2000  # candidates on which ``a`` is tuned: the AUC's standard error is then about 0.01
# Share of a group's sum above which one model is not subtracted from it: too few digits would be left.
_DOMINANT = 0.999
_FLOOR = 1e-300  # keeps 0/0 out of ratios whose likelihoods all underflow
_RANGE = 600.0  # nats within which a likelihood is far enough from the ends of float64
_LARGEST = 690.0  # nats; 1 / _FLOOR


@dataclass(frozen=True, kw_only=True, slots=True)
class RmiaOnlineConfig(Config):
    gamma: float = param(1.0, gt=0, le=1000, doc="a population point counts when ratio_x / ratio_z >= gamma")


@dataclass(frozen=True, kw_only=True, slots=True)
class RmiaOfflineConfig(Config):
    gamma: float = param(1.0, gt=0, le=1000, doc="a population point counts when ratio_x / ratio_z >= gamma")
    a: float | None = param(
        None, ge=0, le=1, doc="weight of mean_OUT in p(x); tuned on reference models when not given"
    )


@attack(
    AttackSpec(
        name="rmia_online",
        wants=("reading",),
        doc="Share of population points that the example beats, relative to reference models with and without it.",
        source="Zarifzadeh et al., ICML 2024",
        config=RmiaOnlineConfig,
        references=2,
    )
)
def rmia_online(evidence: Evidence, *, config: RmiaOnlineConfig, seed: int) -> Float:
    """Online RMIA, (T, N) in [0, 1]. ``seed`` is not used.

    Raises:
        ConfigError: fewer than 2 reference models besides the audited one.
        InvalidInput: no population points.
    """
    _, keep = evidence.references("rmia_online", fewest=2)
    return _score(evidence, keep, gamma=config.gamma, a=None)


@attack(
    AttackSpec(
        name="rmia_offline",
        wants=("reading",),
        doc="Share of population points that the example beats, relative to reference models without it.",
        source="Zarifzadeh et al., ICML 2024",
        config=RmiaOfflineConfig,
        references=3,
    )
)
def rmia_offline(evidence: Evidence, *, config: RmiaOfflineConfig, seed: int) -> Float:
    """Offline RMIA, (T, N) in [0, 1]; ``seed`` draws the reference model on which ``a`` is tuned.

    Raises:
        ConfigError: fewer than 3 reference models besides the audited one (1 to tune on, 2 to compare it with).
        InvalidInput: no population points.
    """
    _, keep = evidence.references("rmia_offline", fewest=3)
    theirs, own = evidence.reference_log_likelihood, evidence.left_out
    a = tune_a(theirs, keep, own, seed=seed) if config.a is None else np.full(evidence.num_targets, config.a)
    return _score(evidence, keep, gamma=config.gamma, a=a)


def tune_a(log_likelihood: Float, keep: Bool, left_out: NDArray[np.int64], *, seed: int) -> Float:
    """(T,) weight ``a`` of each target: the best AUC of the ratio on another reference model, attacked by the rest.

    Args:
        log_likelihood: (M, N) under the reference models, less that of the best answer there can be.

    The ratio alone ranks as RMIA does for one model, because a single model's scores are monotone in ratio_x.
    """
    rng = np.random.default_rng(seed)
    num = log_likelihood.shape[1]
    at = np.sort(rng.permutation(num)[:_TUNING])
    shift = _shift(log_likelihood[:, at])
    p, member, best = _likelihood(log_likelihood[:, at], shift), keep[:, at], _likeliest(shift)
    order = rng.permutation(len(log_likelihood))
    outside = np.where(member, 0.0, p)
    total, count = outside.sum(axis=0), (~member).sum(axis=0)
    tuned = np.empty(len(left_out))
    known: dict[int, float] = {}
    for t, own in enumerate(left_out):
        if int(own) not in known:
            attacked = int(order[0] if order[0] != own else order[1])
            rows = [attacked] if own < 0 else [attacked, int(own)]
            with np.errstate(invalid="ignore", divide="ignore"):
                mean_out = (total - outside[rows].sum(axis=0)) / (count - (~member[rows]).sum(axis=0))
            known[int(own)] = _best_a(p[attacked], mean_out, member[attacked], best)
        tuned[t] = known[int(own)]
    return tuned


def _best_a(p: Float, mean_out: Float, member: Bool, best: Float) -> float:
    defined = np.isfinite(mean_out)
    p, mean_out, member, best = p[defined], np.maximum(mean_out[defined], 0.0), member[defined], best[defined]
    if not member.any() or member.all():
        return A_GRID[-1]
    ratios = (p / _offline(mean_out, a, best) for a in A_GRID)
    reached = [auc(ratio[member], ratio[~member]) for ratio in ratios]
    return A_GRID[int(np.argmax(reached))]


def _score(evidence: Evidence, keep: Bool, *, gamma: float, a: Float | None) -> Float:
    evidence.require_population("rmia_online" if a is None else "rmia_offline", references=True)
    left_out = evidence.left_out
    beaten_at = np.sort(_population_ratio(evidence) * gamma, axis=1)
    num_points = beaten_at.shape[1]
    theirs, own = evidence.reference_log_likelihood, evidence.target_log_likelihood
    scores = np.empty(own.shape)
    for start in range(0, own.shape[1], _BLOCK):
        at = slice(start, start + _BLOCK)
        shift = _shift(theirs[:, at], own[:, at])
        p, member = _likelihood(theirs[:, at], shift), keep[:, at]
        target = p if theirs is own else _likelihood(own[:, at], shift)
        if a is None:
            with_x = _mean_of_both(p, member, left_out)
        else:
            with_x = _offline(_mean_out(p, member, left_out), a[:, None], _likeliest(shift))
        np.divide(target, with_x, out=scores[:, at])
    for ratio, limits in zip(scores, beaten_at, strict=True):
        beaten = count_below(limits, ratio, side="right")
        ratio /= 1.0 + ratio  # the fraction that breaks ties, below 1
        ratio += beaten
        ratio /= num_points + 1
    return scores


def _shift(*log_likelihoods: Float) -> Float:
    """(n,) nats taken off the log-likelihoods (models, n) of each example: their largest, where no model's could be
    represented."""
    largest = np.max([values.max(axis=0) for values in log_likelihoods], axis=0)
    return np.where(np.abs(largest) > _RANGE, largest, 0.0)


def _likelihood(log_likelihood: Float, shift: Float) -> Float:
    p = log_likelihood - shift
    np.exp(p, out=p)
    p += _FLOOR
    return p


def _likeliest(shift: Float) -> Float:
    """(n,) the largest likelihood there can be, in the unit of the shifted ones."""
    return np.asarray(np.exp(np.minimum(-shift, _LARGEST)))


def _offline(mean_out: Float, a: Float | float, best: Float) -> Float:
    return np.asarray(0.5 * ((1.0 + a) * mean_out + (1.0 - a) * best))


def _mean_of_both(p: Float, member: Bool, left_out: NDArray[np.int64]) -> Float:
    """(T, N) mean of the means over the models with and without the example, the target left out of its own; NaN
    without either."""
    inside = member.astype(np.float64)
    (total_in, num_in), (total_out, num_out) = _totals(p, inside)
    own, x = _own(inside, left_out), _own(p, left_out)
    other, buffer = 1.0 - own, np.empty(own.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_in, mean_out = total_in / num_in, total_out / num_out
        hard = (num_in < 2) | (num_out < 2)  # a group that is empty without the target
        easy_in, easy_out = (np.where(hard, 1.0, mean) for mean in (mean_in, mean_out))
        rest: Float = total_in * own
        rest += np.multiply(total_out, other, out=buffer)
        hard |= (np.multiply(rest, _DOMINANT, out=buffer) < x).any(axis=0)
        rest -= x
        rest /= (num_in - 1) * own + (num_out - 1) * other if (num_in != num_out).any() else num_in - 1
        rest += np.multiply(easy_out, own, out=buffer)
        rest += np.multiply(easy_in, other, out=buffer)
    rest *= 0.5
    rest[left_out < 0] = 0.5 * (mean_in + mean_out)
    if hard.any():
        of = p[:, hard], member[:, hard]
        rest[:, hard] = 0.5 * (_group_mean(of[0], ~of[1], left_out) + _group_mean(*of, left_out))
    return rest


def _mean_out(p: Float, member: Bool, left_out: NDArray[np.int64]) -> Float:
    """(T, N) mean over the models without the example, the target left out; NaN when there is none."""
    inside = member.astype(np.float64)
    _, (total, num) = _totals(p, inside)
    outside = 1.0 - _own(inside, left_out)
    if (left_out < 0).any():
        outside[left_out < 0] = 0.0
    own = _own(p, left_out) * outside
    hard = (own > _DOMINANT * total).any(axis=0) | (num < 2)
    np.subtract(total, own, out=own)
    with np.errstate(invalid="ignore", divide="ignore"):
        own /= np.subtract(num, outside, out=outside)
    if hard.any():
        own[:, hard] = _group_mean(p[:, hard], ~member[:, hard], left_out)
    return own


def _totals(p: Float, inside: Float) -> tuple[tuple[Float, NDArray[np.int64]], tuple[Float, NDArray[np.int64]]]:
    """Sum of p and number of models, (N,) each, with and without the example; inside (M, N) is 1.0 or 0.0."""
    masked, num_in = p * inside, inside.sum(axis=0).astype(np.int64)
    total_in = masked.sum(axis=0)
    np.subtract(p, masked, out=masked)
    return (total_in, num_in), (masked.sum(axis=0), len(p) - num_in)


def _own(of: NDArray[Any], left_out: NDArray[np.int64]) -> NDArray[Any]:
    """(T, N) each target's own row, that of model 0 where it has none."""
    if len(left_out) == len(of) and (left_out == np.arange(len(of))).all():
        return of
    return of[np.maximum(left_out, 0)]


def _group_mean(p: Float, member: Bool, left_out: NDArray[np.int64]) -> Float:
    """(T, N) mean over the group without the target; NaN for an empty group."""
    size = np.count_nonzero(member, axis=0)
    own = _own(member, left_out) & (left_out >= 0)[:, None]
    sums = sums_without(p, member, left_out)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums / (size - own))


def _population_ratio(evidence: Evidence) -> Float:
    """ratio_z, (T, P)."""
    theirs, own = evidence.population_reference_log_likelihood, evidence.population_target_log_likelihood
    shift = _shift(theirs, own)
    reference = _likelihood(theirs, shift)
    everyone = np.ones(reference.shape, dtype=bool)
    return _likelihood(own, shift) / _group_mean(reference, everyone, evidence.left_out)
