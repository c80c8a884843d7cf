"""Which examples are near copies of one another, by distances that are judged against the data's own.

    r_i    = max(distance of i to its 10th nearest, half the median of these over all i)
    i ~ j  when d(i, j) <= rho min(r_i, r_j);   rho = min(ratio, (chance / 9)^(1 / m))
    m      = sum_j (1/j + ... + 1/9) / sum_j ln(d_10 / d_j),   j = 5..9, over all i

d is that of ``explain.payloads``. Points without near copies lie about i as in a ball of m dimensions, where the
nearest of ten is within rho of the tenth with probability about 9 rho^m: in few dimensions near neighbours are no
copies, and rho falls until ``chance`` of the examples have one by accident. The half median lets more than ten copies
of one example be found, as long as they are within rho / 2 of the median.

Source: definition; m is the estimate of Levina & Bickel, "Maximum Likelihood Estimation of Intrinsic Dimension"
    (NeurIPS 2004),
without the nearest four, which copies would spoil. An example is joined directly to its 16
nearest at most. Measured: ``near_duplicates``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.errors import InvalidInput
from explain.cells import Found, in_cells
from explain.components import Groups
from explain.neighbours import CELLS, Floats, Ints
from explain.payloads import PayloadSpace

_KEPT, _RANK, _SKIPPED = 16, 10, 4
_FLOOR = 0.5  # of the median
_BLOCK = 16_384  # rows judged at a time
_SAMPLE = 65_536  # rows whose median is taken


@dataclass(frozen=True, eq=False)
class Twins:
    """Near copies among N points.

    Attributes:
        group: int64 (N,), smallest position in each point's group.
        near: int64 (N,), position of the nearest other, the smaller one of equals; -1 where there is none.
        similarity: float64 (N,) in [0, 1], 1 - d / min(r of both), cut at 0; NaN where there is none.
        radius: float32 (N,), r.
        limit: rho: two points are near copies when their similarity is at least 1 - rho.
    """

    group: Ints
    near: Ints
    similarity: Floats
    radius: NDArray[np.float32]
    limit: float


def twins(space: PayloadSpace, num: int, *, ratio: float, chance: float, index: str = "exact", seed: int = 0) -> Twins:
    """Near copies among the points of a space.

    Args:
        space: of N examples.
        num: N.
        ratio: largest rho, in (0, 1).
        chance: share of examples that may have a near copy by accident, in (0, 1).
        index: "exact", "hnsw" or "cells" (``explain.cells``; the lists are made twice and none is kept).
        seed: of the cells.

    Raises:
        InvalidInput: ratio or chance out of range.
    """
    if not (0 < ratio < 1 and 0 < chance < 1):
        raise InvalidInput(f"ratio = {ratio} and chance = {chance} must be inside (0, 1)")
    lists = _lists(space, num, index, seed)
    radius, limit = np.zeros(num, np.float32), _Limit(ratio, chance)
    for rows, _, distance, angle in lists():
        radius[rows] = tenth(distance)
        limit.see(distance if angle is None else angle)
    if num:
        np.maximum(radius, _FLOOR * np.median(radius[:: num // _SAMPLE + 1]), out=radius)
    groups, near, similarity = Groups(num), np.full(num, -1), np.full(num, np.nan)
    for rows, position, distance, _ in lists():
        alike = likeness(distance, radius[rows], radius[position])
        there = np.isfinite(distance[:, 0])  # lists are nearest first
        near[rows[there]], similarity[rows[there]] = position[there, 0], alike[there, 0]
        row, column = np.nonzero(alike >= 1 - limit.value)
        groups.join(rows[row], position[row, column])
    return Twins(groups.settled(), near, similarity, radius, limit.value)


def tenth(distance: Floats) -> Floats:
    """Distance to the tenth nearest of each row (B, K), or to the furthest there is; 0 where there is none: (B,)."""
    ranked = np.sort(distance, axis=1)[:, :_RANK]
    radius: Floats = np.where(np.isfinite(ranked), ranked, 0.0).max(1, initial=0.0)
    return radius


def likeness(distance: Floats, radius: NDArray[np.float32], others: NDArray[np.float32]) -> Floats:
    """1 - d / min(r_i, r_j), cut at 0, of distances (B, K), radii (B,) and (B, K); 1 at distance 0, whatever the
    radii."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = distance / np.minimum(radius[:, None], others).astype(np.float64)
    alike: Floats = np.where(distance == 0, 1.0, np.clip(1.0 - share, 0.0, 1.0))
    return alike


class _Limit:
    """rho, from as many lists of distances as are seen."""

    def __init__(self, ratio: float, chance: float) -> None:
        self._ratio, self._chance = ratio, chance
        self._expected = self._found = 0.0
        self._others = 1

    def see(self, distance: Floats) -> None:
        """Distances (B, K) of some points to their nearest, in any order."""
        ranked = np.sort(distance, axis=1)[:, :_RANK]
        last = ranked.shape[1]
        j = np.arange(_SKIPPED + 1, last)
        ranked = ranked[np.isfinite(ranked).all(1)]
        ranked = ranked[(ranked[:, _SKIPPED:] > 0).all(1)]
        if not len(j) or not len(ranked):
            return
        beyond = np.cumsum(1.0 / np.arange(last - 1, _SKIPPED, -1))[::-1]
        self._expected += len(ranked) * float(beyond.sum())
        self._found += float(np.log(ranked[:, -1:] / ranked[:, j - 1]).sum())
        self._others = last - 1

    @property
    def value(self) -> float:
        if not self._found:
            return self._ratio
        return min(self._ratio, float((self._chance / self._others) ** (self._found / self._expected)))


_List = tuple[Ints, Ints, Floats, Floats | None]


def _lists(space: PayloadSpace, num: int, index: str, seed: int) -> Callable[[], Iterator[_List]]:
    """(rows, positions (B, K), d (B, K), distances in the space of the search where that is another), as often as
    asked."""

    def judged(rows: Ints, position: Ints, similarity: Floats, distance: Floats) -> _List:
        angle = np.sqrt(np.maximum(2 - 2 * similarity[:, :_RANK], 0)) if space.shifts else None
        order = np.lexsort((position, distance), axis=1)[:, :_KEPT]
        return rows, np.take_along_axis(position, order, 1), np.take_along_axis(distance, order, 1), angle

    if num < 2:
        return lambda: iter(())
    if index == CELLS:

        def in_cell(part: Found) -> _List:
            known = part.position >= 0
            distance = np.where(known, space.distances(part.rows, np.where(known, part.position, 0)), np.inf)
            return judged(part.rows, part.position, part.similarity, distance)

        k = min(space.candidates, num - 1)
        return lambda: map(in_cell, in_cells(space.vectors, num, k=k, seed=seed))
    found, apart = space.others(index)
    blocks = [np.arange(start, min(start + _BLOCK, num)) for start in range(0, num, _BLOCK)]
    kept = [judged(rows, found.position[rows], found.similarity[rows], apart[rows]) for rows in blocks]
    return lambda: iter(kept)
