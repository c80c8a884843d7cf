"""How far one unlearned model is from retraining, and what it costs, with intervals paired by example.

    d_X      = mean over the examples of X of (right under the method - right under retraining)       same examples, paired
    avg_gap  = mean of |d| over the forget set, the retained and the test examples, and membership efficacy
    lost_X   = -d_X for what is kept: retained and test examples

The pair cancels what makes an example hard for both. An interval of d from b examples right only under the method and c
right only under retraining, of n:

    d = (b' - c') / n',  variance = (b' + c' - (b' - c')^2 / n') / n'^2,     b' = b + 1/2, c' = c + 1/2, n' = n + 2

Agresti and Min, Statistics in Medicine 2005: it does not collapse when no example differs. The interval of avg_gap joins those
of its four parts at 1 - alpha / 4 each: at least 1 - alpha together, whatever their dependence. Two models that give the
same outputs everywhere are one model: their gap is 0 and has no error.

Shapes: n examples of a set; bool vectors in one order. Percentage points.
Source: the gaps of Fan et al., SalUn, ICLR 2024, arXiv 2310.12508; the intervals are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from contracts.errors import InvalidInput

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
        forget, retain, test: right or wrong on each example of the set; test examples of forgotten classes left out.
        non_member: (F,) whether the efficacy attack calls the forgotten example a non-member.
    """

    forget: Bool
    retain: Bool
    test: Bool
    non_member: Bool


def paired_difference(own: Bool, other: Bool, *, alpha: float) -> Interval:
    """Share of True in ``own`` less that in ``other``, the same examples, in points, at 1 - ``alpha``.

    Raises:
        InvalidInput: not two bool vectors of one length >= 1.

    >>> found = paired_difference(np.ones(100, bool), np.ones(100, bool), alpha=0.05)
    >>> found.value, round(found.high, 2)
    (0.0, 1.92)
    """
    if own.dtype != np.bool_ or own.shape != other.shape or own.ndim != 1 or other.dtype != np.bool_ or not len(own):
        raise InvalidInput(
            f"own {own.dtype} {own.shape} and other {other.dtype} {other.shape}: two bool vectors of one length"
        )
    n, b, c = len(own), int((own & ~other).sum()), int((~own & other).sum())
    b_, c_, n_ = b + 0.5, c + 0.5, n + 2.0
    centre = (b_ - c_) / n_
    reach = float(norm.isf(alpha / 2)) * math.sqrt(max(b_ + c_ - (b_ - c_) ** 2 / n_, 0.0)) / n_
    value = (b - c) / n
    low, high = min(value, centre - reach), max(value, centre + reach)
    return Interval(value=100 * value, low=100 * max(-1.0, low), high=100 * min(1.0, high))


def gap_to_retraining(own: Answers, retrained: Answers, *, alpha: float, same: bool = False) -> Interval:
    """avg_gap with its interval.

    Args:
        same: both give the same outputs on every example.

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
    """Accuracy lost against retraining on retained and on test examples; negative = better than retraining."""
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
