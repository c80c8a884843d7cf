"""Whether the values of one quantity on the same examples have moved between two audits: a paired two-sample test.

    D    = sup_x | F_before(x) - F_after(x) |          Kolmogorov-Smirnov distance of the two sets of values
    null = within each example, before and after are exchangeable: swapping them, each example by its own fair coin,
           changes nothing. p = (1 + #{D* >= D}) / (1 + draws) over such swaps

The swaps keep each example's two values together, so the test is exact for pairs that are correlated, as scores of the
same examples are; the two-sample Kolmogorov-Smirnov test, which takes the samples for independent, would be far too
cautious. It sees any change of the distribution (place, spread, tails), and none where examples merely change places.

It is *not* a test of the models' randomness: two trainings with other seeds share what moves all examples at once, and
such a move is found as one. Hence a smallest distance beside the p-value where an alarm is raised.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from contracts.errors import InvalidInput

_AT_ONCE = 1 << 22  # numbers in memory at a time


def ks_distance(before: ArrayLike, after: ArrayLike) -> float:
    """The Kolmogorov-Smirnov distance of two samples, in [0, 1].

    Args:
        before, after: (N,), (M,) finite, at least one each.

    Raises:
        InvalidInput: a sample is empty, not a vector, or not finite.
    """
    x, y = np.sort(_checked(before, "before")), np.sort(_checked(after, "after"))
    at = np.concatenate([x, y])
    gap = np.searchsorted(x, at, "right") / len(x) - np.searchsorted(y, at, "right") / len(y)
    return float(np.abs(gap).max())


def moved(before: ArrayLike, after: ArrayLike, *, seed: int, draws: int = 999) -> tuple[float, float]:
    """Distance and p-value of "these values have not moved".

    Args:
        before, after: (N,) values of the same examples in the same order, finite.
        seed: of the swaps.
        draws: swaps; the p-value is at least 1 / (1 + draws).

    Returns:
        (D, p): D in [0, 1], higher = moved further; p in (0, 1].

    Raises:
        InvalidInput: lengths differ, nothing to compare, a value is not finite, or fewer than 1 draw.
    """
    x, y = _checked(before, "before"), _checked(after, "after")
    if len(x) != len(y):
        raise InvalidInput(f"before has {len(x)} values and after {len(y)}: both are of the same examples")
    if draws < 1:
        raise InvalidInput(f"draws = {draws} must be at least 1")
    if np.array_equal(x, y):
        return 0.0, 1.0
    n = len(x)
    pooled = np.concatenate([x, y])
    order = np.argsort(pooled, kind="stable")
    side = np.where(order < n, 1, -1)  # of the value at each place: before or after
    pair = order % n
    ends = np.flatnonzero(np.append(np.diff(pooled[order]) > 0, True))  # equal values step together
    steps = int(np.abs(np.cumsum(side)[ends]).max())
    rng = np.random.default_rng(seed)
    as_far, done = 0, 0
    while done < draws:
        rows = min(draws - done, max(1, _AT_ONCE // (2 * n)))
        swap = np.where(rng.random((rows, n)) < 0.5, 1, -1).astype(np.int8)
        walk = np.cumsum(swap[:, pair] * side, axis=1, dtype=np.int64)[:, ends]
        as_far += int((np.abs(walk).max(axis=1) >= steps).sum())
        done += rows
    return steps / n, (1 + as_far) / (1 + draws)


def _checked(values: ArrayLike, name: str) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise InvalidInput(f"{name} must be a vector of finite numbers, at least one; shape {found.shape}")
    return found
