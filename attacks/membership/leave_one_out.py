"""Statistics of a group of models per example, with each audited model left out of its own: all targets at once.

For each example n and target t the group is G = {m : member[m, n]} \\ {index[t]}. Wanted for every (t, n):

    size |G|,  median_G v,  SS = sum_G (v - mean_G v)^2

The naive way costs T x M x N. Here the group is sorted once per example; leaving one value x out of the sorted
s_0 <= ... <= s_{n-1} moves the i-th order statistic to s_{i+1} when x <= s_i and leaves it otherwise, and

    SS without x = SS - (x - mean)^2 n / (n - 1)

so the whole costs M x N sorts plus a few passes over T x N. Where that difference cancels (x holds nearly all of SS)
the few entries concerned are formed anew from their group. Shapes: values, member (M, N); index (T,), -1 leaves none out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
_CANCELLED = 1e-6  # share of SS below which what is left of it is formed anew


@dataclass(frozen=True, eq=False, kw_only=True)
class Group:
    """size int64, median and sum_squares float64, each (T, N), or (1, N) when no target is left out; median NaN when size 0."""

    size: NDArray[np.int64]
    median: Float
    sum_squares: Float


def group_statistics(values: Float, member: NDArray[np.bool_], index: NDArray[np.int64]) -> Group:
    """Size, median and sum of squared deviations of each example's group, for each target without itself."""
    size = member.sum(axis=0)
    ordered = _sorted_group(values, member, size)
    inside = member.astype(np.float64)  # multiplying by 0 or 1 is several times faster than numpy.where
    deviation = values * inside
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = deviation.sum(axis=0) / size
    np.subtract(values, mean, out=deviation)
    deviation *= inside
    deviation *= deviation
    squares = deviation.sum(axis=0)
    median = 0.5 * (_pick(ordered, (size - 1) // 2) + _pick(ordered, size // 2))
    if (index < 0).all():
        return Group(size=size[None], median=median[None], sum_squares=squares[None])

    known = index >= 0
    row = np.where(known, index, 0)
    own = member[row] & known[:, None]
    smaller = size - 1
    low, high = (smaller - 1) // 2, smaller // 2
    x = values[row]
    left = _without(ordered, low, x)
    if (low != high).any():
        left += _without(ordered, high, x)
        left *= 0.5
    # The target's own deviation is 0 where it is not in the group, and then nothing is taken away.
    rest = deviation[row] if known.all() else deviation[row] * known[:, None]
    rest *= size / np.maximum(smaller, 1)
    np.subtract(squares, rest, out=rest)
    cancelled = rest < _CANCELLED * squares
    if cancelled.any():
        rest = np.where(own & (smaller < 2), 0.0, rest)  # one value, or none, does not spread
        for t, n in zip(*np.nonzero(cancelled & own & (smaller >= 2)), strict=True):
            others = member[:, n].copy()
            others[index[t]] = False
            rest[t, n] = np.square(values[others, n] - values[others, n].mean()).sum()
    return Group(
        size=size - own,
        median=np.where(own, left, median),
        sum_squares=rest,
    )


def sums_without(values: Float, member: NDArray[np.bool_], index: NDArray[np.int64]) -> Float:
    """sum over the group of values >= 0, (T, N), each target left out; by prefix and suffix sums, so nothing cancels."""
    masked = values * member
    if (index < 0).all():
        return np.broadcast_to(masked.sum(axis=0), (len(index), values.shape[1]))
    below = np.zeros((len(values) + 1, values.shape[1]))  # below[m] = sum of rows < m
    above = np.zeros_like(below)  # above[m] = sum of rows >= m
    for m in range(len(values)):  # models, not examples; numpy.cumsum over the first axis is four times slower
        np.add(below[m], masked[m], out=below[m + 1])
    for m in reversed(range(len(values))):
        np.add(above[m + 1], masked[m], out=above[m])
    row = np.where(index >= 0, index, 0)
    sums = below[row]
    sums += above[row + 1]
    sums[index < 0] = below[-1]
    return sums


def count_below(limits: Float, values: Float, *, side: Literal["left", "right"]) -> NDArray[np.int64]:
    """How many of the ascending ``limits`` are < (left) or <= (right) each of ``values``."""
    # Asked in ascending order the binary searches stay in the cache: several times faster, the sort included.
    order = np.argsort(values)
    counts = np.empty(len(values), dtype=np.int64)
    counts[order] = np.searchsorted(limits, values[order], side=side)
    return counts


def _sorted_group(values: Float, member: NDArray[np.bool_], size: NDArray[np.int64]) -> Float:
    """(n_max, N): each example's group in ascending order, filled up with +inf."""
    by_example = np.ascontiguousarray(values.T)
    if len(size) and (size == size[0]).all():  # balanced design: no filling, half the sort
        ordered = by_example[np.ascontiguousarray(member.T)].reshape(len(size), size[0])
    else:
        ordered = np.where(member.T, by_example, np.inf)
    ordered.sort(axis=1)
    return ordered


def _pick(ordered: Float, position: NDArray[np.int64]) -> Float:
    """Order statistic ``position`` of every example, NaN outside the group."""
    width = ordered.shape[1]
    if width == 0:
        return np.full(len(ordered), np.nan)
    inside = (position >= 0) & (position < width)
    at = np.clip(position, 0, width - 1)
    picked = ordered[np.arange(len(ordered)), at]
    return np.where(inside, picked, np.nan)


def _without(ordered: Float, position: NDArray[np.int64], x: Float) -> Float:
    """Order statistic ``position`` once x (T, N), a member of the group, is removed."""
    here, above = _pick(ordered, position), _pick(ordered, position + 1)
    return np.where(x <= here, above, here)
