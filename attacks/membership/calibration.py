"""Thresholds that know what they were chosen on, and refuse to be judged there.

A threshold chosen on the examples that it is then judged on reports its own luck: the false-positive rate looks kept,
balanced accuracy is above 0.5 for coins, and a bound on epsilon loses its guarantee (Jagielski et al., NeurIPS 2020).
The same holds for a threshold fitted to scores of examples from which the attack itself learned. Here both are errors:

    trial          one (model, example) pair; without a model number, the example under any model
    learned_from   trials that taught the attack (its shadow models, its classifier)
    fitting        refuses trials in learned_from          calling    refuses trials in learned_from or fitted on

A number that was picked by hand or taken from elsewhere is no ``Threshold``; whoever compares with it answers for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.curve import allowed, counts, defined
from contracts.errors import DataError, InvalidInput

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


class Leakage(DataError):
    """The same trial was about to be used for two purposes that must be kept apart."""


@dataclass(frozen=True, eq=False)
class Trials:
    """What scores were computed on.

    Attributes:
        example_id: (N,) int64, distinct.
        model: number of the audited model; None stands for any model, and then the example alone decides.

    Raises:
        InvalidInput: not a vector of distinct ids.
    """

    example_id: NDArray[np.int64]
    model: int | None = None

    def __post_init__(self) -> None:
        if self.example_id.ndim != 1 or len(np.unique(self.example_id)) != len(self.example_id):
            raise InvalidInput(f"trials of model {self.model}: example_id must be a vector of distinct ids")

    def shared_with(self, other: Trials) -> NDArray[np.int64]:
        """Ids of the trials that are in both, ascending."""
        if self.model is not None and other.model is not None and self.model != other.model:
            return np.empty(0, np.int64)
        return np.intersect1d(self.example_id, other.example_id)


@dataclass(frozen=True, eq=False, kw_only=True)
class Threshold:
    """The lowest score that is called a member, with what it was chosen on. Made by :func:`at_fpr` and :func:`at_best`.

    Attributes:
        value: the smallest score called a member; +inf calls nobody one.
        rule: how it was chosen, in words.
        fitted_on: the trials it was chosen on.
        learned_from: the trials that the attack itself had learned from.
    """

    value: float
    rule: str
    fitted_on: Trials
    learned_from: tuple[Trials, ...] = ()

    def calls(self, scores: Float, trials: Trials) -> Bool:
        """(N,) bool: which of these trials are called members; a NaN score is not.

        Raises:
            Leakage: a trial that the threshold was chosen on, or that the attack learned from; the message names the
                ids.
            InvalidInput: as many scores as trials are needed.
        """
        _check_length(scores, trials)
        _refuse(self.fitted_on, trials, f"a threshold ({self.rule}) is not judged on the trials it was chosen on")
        for seen in self.learned_from:
            _refuse(seen, trials, "an attack is not judged on the trials it learned from")
        with np.errstate(invalid="ignore"):
            return np.asarray(scores >= self.value)


def at_fpr(scores: Float, trials: Trials, cap: float, *, learned_from: Sequence[Trials] = ()) -> Threshold:
    """The lowest threshold between non-members that lets at most a share ``cap`` of THESE non-members through.

    A fresh non-member passes with probability (r + 1) / (n + 1) at most, r = floor(cap n): the next order statistic.

    Args:
        scores: (N,) of non-members, larger = more likely a member; NaN is left out.
        trials: what they were computed on.
        cap: in (0, 1).

    Raises:
        Leakage: a trial that the attack learned from.
        InvalidInput: cap outside (0, 1), or cap * n < 1, which not one non-member could meet.
    """
    _check_fit(scores, trials, learned_from)
    if not 0 < cap < 1:
        raise InvalidInput(f"cap = {cap} is outside its allowed range: > 0 and < 1")
    known = np.sort(scores[~np.isnan(scores)])[::-1]
    passing = allowed(cap, len(known))
    if passing < 1:
        raise InvalidInput(
            f"cap = {cap} lets not one of {len(known)} non-members through: raise it, or bring {int(np.ceil(1 / cap))}"
        )
    # Just above the first non-member that must stay out: the whole gap up to the last one let through belongs to
    # members.
    value = -np.inf if passing == len(known) else float(np.nextafter(known[passing], np.inf))
    return Threshold(value=value, rule=f"FPR <= {cap:g}", fitted_on=trials, learned_from=tuple(learned_from))


def at_best(
    scores: Float, is_member: Bool, trials: Trials, *, learned_from: Sequence[Trials] = (), midway: bool = False
) -> Threshold:
    """The threshold that maximises (TPR + TNR) / 2 on these trials, +inf when calling nobody a member is best; NaN is
    left out.

    Args:
        scores, is_member, trials: (N,) each.
        learned_from: trials that the attack learned from.
        midway: place it halfway to the next lower score. These trials are called alike; with few of them, fresh ones
            are called better than at the very score of the last member.

    Raises:
        Leakage: a trial that the attack learned from.
        InvalidInput: members or non-members are missing.
    """
    _check_fit(scores, trials, learned_from)
    tp, fp, values = counts(*defined(scores, is_member))
    best = int(np.argmax(tp / tp[-1] - fp / fp[-1]))
    value = float(values[best])
    if midway and 0 < best < len(values) - 1:
        value = 0.5 * value + 0.5 * float(values[best + 1])
    return Threshold(value=value, rule="best balanced accuracy", fitted_on=trials, learned_from=tuple(learned_from))


def _check_fit(scores: Float, trials: Trials, learned_from: Sequence[Trials]) -> None:
    _check_length(scores, trials)
    for seen in learned_from:
        _refuse(seen, trials, "a threshold is not chosen on the trials that the attack learned from")


def _check_length(scores: Float, trials: Trials) -> None:
    if scores.shape != trials.example_id.shape:
        raise InvalidInput(f"scores {scores.shape} and trials {trials.example_id.shape} must be of one length")


def _refuse(before: Trials, now: Trials, why: str) -> None:
    shared = before.shared_with(now)
    if len(shared):
        raise Leakage(why, example_ids=shared)
