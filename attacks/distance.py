"""How far one unlearned model is from retraining, and what it costs, with intervals paired by example.

    d_X      = mean over the examples of X of (quality under the method - quality under retraining)   same examples,
             paired
    avg_gap  = mean of |d| over the forget set, the retained and the test examples, and membership efficacy
    lost_X   = -d_X for what is kept: retained and test examples

The pair cancels what makes an example hard for both. The interval of d is that of a paired difference of values in [0,
1] (``stats.bounded_difference``): right and wrong, as Agresti and Min (Statistics in Medicine 2005), or right by
degrees. It does not collapse when no example differs. The interval of avg_gap joins those of its four parts at 1 -
alpha / 4 each: at least 1 - alpha together, whatever their dependence. Two models that read the same everywhere are one
model: their gap is 0 and has no error.

Shapes: n examples of a set; vectors in one order, values in [0, 1] or bool. Percentage points.
Source: the gaps of Fan et al., SalUn, ICLR 2024, arXiv 2310.12508; the intervals are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stats import bounded_difference

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A figure in percentage points with its bounds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Answers:
    """What one model says, example by example.

    Attributes:
        forget, retain, test: quality on each example of the set (of classes right or wrong); test examples of forgotten
            classes left out.
        non_member: (F,) whether the efficacy attack calls the forgotten example a non-member.
    """

    forget: Float | Bool
    retain: Float | Bool
    test: Float | Bool
    non_member: Bool


def paired_difference(own: Float | Bool, other: Float | Bool, *, alpha: float) -> Interval:
    """Mean of ``own`` less that of ``other``, the same examples, in points, at 1 - ``alpha``.

    Raises:
        InvalidInput: not two vectors of one length >= 1 of values in [0, 1].

    >>> found = paired_difference(np.ones(100, bool), np.ones(100, bool), alpha=0.05)
    >>> found.value, round(found.high, 2)
    (0.0, 1.92)
    """
    found = bounded_difference(own, other, alpha=alpha)
    return Interval(value=100 * found.value, low=100 * found.low, high=100 * found.high)


def gap_to_retraining(own: Answers, retrained: Answers, *, alpha: float, same: bool = False) -> Interval:
    """avg_gap with its interval.

    Args:
        same: both read the same on every example.

    Raises:
        InvalidInput: sets that differ, or an empty one.
    """
    if same:
        return Interval(value=0.0, low=0.0, high=0.0)
    parts = [
        _absolute(paired_difference(getattr(own, name), getattr(retrained, name), alpha=alpha / 4))
        for name in ("forget", "retain", "test", "non_member")
    ]
    return Interval(**{side: float(np.mean([getattr(p, side) for p in parts])) for side in ("value", "low", "high")})


def quality_lost(own: Answers, retrained: Answers, *, alpha: float, same: bool = False) -> Mapping[str, Interval]:
    """Quality (accuracy for classes) lost against retraining on retained and on test examples; negative = better than
    retraining."""
    if same:
        nothing = Interval(value=0.0, low=0.0, high=0.0)
        return {"retained": nothing, "test": nothing}
    return {
        name: paired_difference(theirs, ours, alpha=alpha)
        for name, ours, theirs in (("retained", own.retain, retrained.retain), ("test", own.test, retrained.test))
    }


def _absolute(d: Interval) -> Interval:
    """Of |d|."""
    low = 0.0 if d.low <= 0 <= d.high else min(abs(d.low), abs(d.high))
    return Interval(value=abs(d.value), low=low, high=max(abs(d.low), abs(d.high)))
