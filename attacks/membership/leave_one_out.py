"""Statistics of a group of models per example, with each audited model left out of its own: all targets at once.

For each example n and target t the group is G = {m : member[m, n]} \\ {index[t]}. Wanted for every (t, n):

    size |G|,  median_G v,  SS = sum_G (v - mean_G v)^2

The naive way costs T x M x N. Here the group is sorted once per example; leaving one value x out of the sorted
s_0 <= ... <= s_{n-1} moves the i-th order statistic to s_{i+1} when x <= s_i and leaves it otherwise, and

    SS without x = SS - (x - mean)^2 n / (n - 1)

so the whole costs M x N sorts plus a few passes over T x N. Where that difference cancels (x holds nearly all of SS)
the few entries concerned are formed anew from their group. Shapes: values, member (M, N); index (T,), -1 leaves none
out.

One of several values is chosen by sums of products with 0.0 and 1.0: exact, and several times faster than
``numpy.where``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
_CANCELLED = 1e-6  # share of SS below which what is left of it is formed anew
POOLED_CANCELLED = 1e-3  # the same for SS of all examples together


@dataclass(frozen=True, eq=False)
class Group:
    """The group of each example, values and member (M, N), for each target of index (T,) without itself.

    Results are (T, N), or (1, N) when no target is left out. What is not asked for is not formed.
    """

    values: Float
    member: Bool
    index: NDArray[np.int64]

    @property
    def size(self) -> NDArray[np.int64]:
        """Models in the group."""
        return self._full_size[None] if self._nobody else self._full_size - self._own.astype(np.int64)

    @property
    def smallest(self) -> int:
        """A lower bound of every size: of the full groups, less one where somebody is left out."""
        return int(self._full_size.min()) - (not self._nobody)

    @cached_property
    def median(self) -> Float:
        """NaN where the group is empty."""
        size, ordered = self._full_size, self._ordered
        full = 0.5 * (_pick(ordered, (size - 1) // 2) + _pick(ordered, size // 2))
        if self._nobody:
            return full[None]
        low, high = (size - 2) // 2, (size - 1) // 2  # of what is left
        picked = [_pick(ordered, at) for at in (low, low + 1, high, high + 1)]
        few = size < 2  # without the target their group is empty
        if few.any():
            picked, full = [np.where(few, 0.0, p) for p in picked], np.where(size == 0, 0.0, full)
        low_here, low_next, high_here, high_next = picked
        x, own = self._row(self.values), self._own
        below = (x <= low_here).astype(np.float64)
        below *= own
        median = full * (1.0 - own)
        if (low == high).all():
            median += low_next * below
            np.subtract(own, below, out=below)
            median += np.multiply(low_here, below, out=below)
        else:
            up_to = (x <= high_here) * own
            median += 0.5 * (low_next + high_next) * below
            median += 0.5 * (low_here + high_next) * (up_to - below)
            median += 0.5 * (low_here + high_here) * (own - up_to)
        if few.any():
            median[:, few] = np.where(size[few] == own[:, few], np.nan, median[:, few])
        return median

    @cached_property
    def sum_squares(self) -> Float:
        """Sum of squared deviations from the group's mean."""
        squares: Float = self._squares.sum(axis=0)
        if self._nobody:
            return squares[None]
        size, own = self._full_size, self._own
        rest: Float = squares - self._taken * (size / np.maximum(size - 1, 1))
        cancelled = rest < _CANCELLED * squares
        if cancelled.any():
            rest = np.where((own > 0) & (size < 3), 0.0, rest)  # one value, or none, does not spread
            for t, n in zip(*np.nonzero(cancelled & (own > 0) & (size >= 3)), strict=True):
                others = self.member[:, n].copy()
                others[self.index[t]] = False
                rest[t, n] = np.square(self.values[others, n] - self.values[others, n].mean()).sum()
        return rest

    def pooled(self) -> tuple[float, Float, Float]:
        """(SS of all examples together, what of it each target holds (T,), degrees of freedom without the target (T,)).

        A group of one or none has no SS and no degree of freedom. Without anybody left out T is 1.
        """
        size = self._full_size
        total, freedom = float(self._squares.sum()), float(np.maximum(size - 1, 0).sum())
        if self._nobody:
            return total, np.zeros(1), np.array([freedom])
        held = self._taken @ (size / np.maximum(size - 1, 1))
        return total, held, freedom - self._own @ (size >= 2).astype(np.float64)

    @cached_property
    def _nobody(self) -> bool:
        return bool((self.index < 0).all())

    @cached_property
    def _each_its_own(self) -> bool:
        """The targets are the models, in their order."""
        return len(self.index) == len(self.values) and bool((self.index == np.arange(len(self.values))).all())

    @cached_property
    def _full_size(self) -> NDArray[np.int64]:
        return np.asarray(np.count_nonzero(self.member, axis=0))

    @cached_property
    def _inside(self) -> Float:
        """(M, N) 1.0 where the model is in the group, else 0.0."""
        return self.member.astype(np.float64)

    @cached_property
    def _own(self) -> Float:
        """(T, N) 1.0 where the target is in the group, and is left out, else 0.0."""
        own = self._row(self._inside)
        return own if (self.index >= 0).all() else own * (self.index >= 0)[:, None]

    def _row(self, of: NDArray[Any]) -> NDArray[Any]:
        """(T, N) each target's row; that of model 0 for a target that is none of the models."""
        return of if self._each_its_own else of[np.maximum(self.index, 0)]

    @cached_property
    def _squares(self) -> Float:
        """(M, N) squared deviations from the mean of the full group, 0 outside it."""
        deviation = self.values * self._inside
        mean = deviation.sum(axis=0) / np.maximum(self._full_size, 1)
        np.subtract(self.values, mean, out=deviation)
        deviation *= self._inside
        deviation *= deviation
        return deviation

    @cached_property
    def _taken(self) -> Float:
        """(T, N) squared deviation of what is left out; 0 where nothing is."""
        taken = self._row(self._squares)
        return taken if (self.index >= 0).all() else taken * (self.index >= 0)[:, None]

    @cached_property
    def _ordered(self) -> Float:
        """(N, n_max): each example's group in ascending order, filled up with +inf."""
        size = self._full_size
        by_example, member = np.ascontiguousarray(self.values.T), np.ascontiguousarray(self.member.T)
        if len(size) and (size == size[0]).all():  # balanced design: no filling, half the sort
            ordered = by_example.take(np.flatnonzero(member)).reshape(len(size), size[0])
        else:
            ordered = np.where(member, by_example, np.inf)
        ordered.sort(axis=1)
        return ordered


def sums_without(values: Float, member: NDArray[np.bool_], index: NDArray[np.int64]) -> Float:
    """sum over the group of values >= 0, (T, N), each target left out; by prefix and suffix sums, so nothing
    cancels."""
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
    """How many of the ascending ``limits`` are < (left) or <= (right) each of ``values``; none of a NaN."""
    # A binary search of all values at once, one comparison a step: without branches, three times faster than
    # numpy.searchsorted.
    compare = np.less if side == "left" else np.less_equal
    counts = np.zeros(len(values), dtype=np.int64)
    if not len(limits):
        return counts
    bits = len(limits).bit_length()
    padded = np.concatenate([limits, np.full(2**bits - len(limits), np.nan)])  # NaN is below nothing
    found, more, is_below = np.empty(len(values)), np.empty_like(counts), np.empty(len(values), dtype=bool)
    for bit in reversed(range(bits)):
        np.take(padded[2**bit - 1 :], counts, out=found, mode="clip")
        compare(found, values, out=is_below)
        more[...] = is_below
        more <<= bit
        counts |= more
    return counts


def _pick(ordered: Float, position: NDArray[np.int64]) -> Float:
    """Order statistic ``position`` of every example, NaN outside the group."""
    width = ordered.shape[1]
    if width == 0:
        return np.full(len(ordered), np.nan)
    inside = (position >= 0) & (position < width)
    if inside.all() and (position == position[0]).all():  # balanced design
        return ordered[:, position[0]].copy()
    at = np.clip(position, 0, width - 1)
    picked = ordered[np.arange(len(ordered)), at]
    return np.where(inside, picked, np.nan)
