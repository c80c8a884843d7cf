"""Shares that are too small or too large: classes with few examples, features and pictures that hardly vary.

    class    q_k K, its share over 1 / K; called where Clopper-Pearson's upper bound of q_k, at alpha / K, is below
             ``imbalance`` / K: so few by chance is ruled out
    feature  the share of its most common value; called where the lower bound, at alpha / D, is at least ``constant``
    picture  the standard deviation of its pixels over that of all pixels; called below 1%: blank

Source: definitions; the threshold of a tenth of an equal share is that of cleanlab's Datalab.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from explain.neighbours import Floats, Ints, blocks_of
from explain.payloads import Payload
from stats import lower_bound, upper_bound

_BLANK = 0.01


def rare_classes(
    y: Ints, num_classes: int, *, imbalance: float, alpha: float
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """(q K, its upper bound, called) of every class, each (K,)."""
    count = np.bincount(y, minlength=num_classes)
    top = upper_bound(count, len(y), alpha=alpha / num_classes) * num_classes
    return count / len(y) * num_classes, top, top < imbalance


def near_constant(x: NDArray[np.float32], *, constant: float, alpha: float) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """(share of the most common value, its lower bound, called) of every feature of (N, D), each (D,)."""
    common = np.array([int(np.unique(column, return_counts=True)[1].max()) for column in x.T])
    low = lower_bound(common, len(x), alpha=alpha / max(x.shape[1], 1))
    every = common == len(x)
    return common / len(x), low, (low >= constant) | every


def blank(x: Payload) -> Floats:
    """Standard deviation of the pixels of every image, over that of all pixels: float64 (N,)."""
    own, total, square, count = np.zeros(len(x)), 0.0, 0.0, 0
    for rows in blocks_of(len(x), math.prod(x.shape[1:])):
        values = np.asarray(x[rows], np.float64).reshape(rows.stop - rows.start, -1)
        own[rows] = values.std(1)
        total, square, count = total + values.sum(), square + np.square(values).sum(), count + values.size
    spread = math.sqrt(max(square / count - (total / count) ** 2, 0.0))
    return own / spread if spread > 0 else np.zeros(len(x))


def is_blank(spread: Floats) -> NDArray[np.bool_]:
    """Which images are; (N,)."""
    return spread < _BLANK
