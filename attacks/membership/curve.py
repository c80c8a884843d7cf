"""Scores and truth, checked and counted: what the ROC, the reports and the thresholds share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contracts.errors import InvalidInput

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
Int = NDArray[np.int64]


def defined(scores: Float, is_member: Bool) -> tuple[Float, Bool]:
    """Both without the undefined (NaN) scores.

    Raises:
        InvalidInput: shapes differ, or members or non-members are missing.
    """
    scores, is_member = np.asarray(scores, dtype=np.float64), np.asarray(is_member)
    if scores.ndim != 1 or scores.shape != is_member.shape or is_member.dtype != np.bool_:
        raise InvalidInput(
            f"scores {scores.shape} and is_member {is_member.dtype} {is_member.shape}: needs two vectors of one "
            "length, the second bool"
        )
    known = ~np.isnan(scores)
    scores, is_member = scores[known], is_member[known]
    if not is_member.any() or is_member.all():
        raise InvalidInput(
            f"an attack is judged on members and non-members with defined scores; there are {is_member.sum()} and "
            f"{(~is_member).sum()}"
        )
    return scores, is_member


def counts(scores: Float, is_member: Bool) -> tuple[Int, Int, Float]:
    """(tp, fp, values): counts of "score >= value" at every distinct value, descending, after the empty (0, 0,
    +inf)."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    tp = np.cumsum(is_member[order])[last]
    return np.append(0, tp), np.append(0, last + 1 - tp), np.append(np.inf, ordered[last])


def allowed(cap: float, n_neg: int) -> int:
    """Non-members that may lie above a threshold: the largest r with r / n_neg <= cap.

    >>> allowed(0.05, 20)
    1
    """
    return int(np.floor(cap * n_neg * (1 + 1e-12)))  # 0.05 * 20 is 1 example, not 0.99999
