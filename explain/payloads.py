"""How far apart two examples are in what they hold, whatever a model makes of them.

    table    z = (x - mean) / std, column by column;   d(i, j) = |z_i - z_j|
    image    u = means over at most 32 x 32 cells;   d(i, j) = min over shifts s of the RMS of u_i(p) - u_j(p + s), p
             where both are
    search   cos of (w, c) / |(w, c)|;   w = z, or |F(u - border)| minus its mean;   c^2 = mean |w|^2

x (N, *shape) is a table (N, D) or images (N, C, H, W). Units of a column cancel; a constant one is divided by its
value. Shifts go up to 1 cell from 8 cells a side and to 2 from 16: a crop that moves the picture by so much is at
distance 0. The magnitude of the Fourier transform hardly changes when a picture moves on its background (the median of
its border), so that one search finds the moved ones too. The constant c keeps the length of w in the direction that the
search compares: a point and its double are not alike.

Source: definition; Reddy & Chatterji, "An FFT-Based Technique for Translation, Rotation, and Scale-Invariant Image
Registration" (IEEE TIP 1996) for the magnitudes. Not invariant to zoom, rotation or colour, and not what a model sees
(``explain.embeddings``): there examples of a class come together, however different they are.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError
from explain.neighbours import Floats, Ints, Neighbours, blocks_of, nearest
from sources.rows import Rows, gather

Payload = NDArray[np.float32] | NDArray[np.uint8] | Rows
_SIDE = 32  # cells a side that an image is averaged to, at most
_FITTED = 4_096  # images from which the mean of the magnitudes is taken
_FLAT = 1e-6  # of a column's largest value: a smaller spread is rounding


class PayloadSpace:
    """The space of one set of examples, to which other examples of the same shape may be compared.

    Args:
        x: (N, D) float32, or (N, C, H, W) float32 or uint8; N >= 1.
        example_id: (N,) int64, to name rows in errors.

    Attributes:
        shifts: cells by which one image may be moved against another; 0 for tables and small images.
        candidates: nearest by the search among which the nearest by d are looked for. Where a shift cuts off much of a
            picture (an eighth of 8 x 8) the search ranks its original lower: of digits moved by a pixel, 64 candidates
            find 87 to 98% and 128 find 94 to 100%.

    Raises:
        DataError: values that are not finite; names the examples.
    """

    def __init__(self, x: Payload, example_id: Ints) -> None:
        self._x, self._image = x, len(x.shape) == 4
        self.shifts = 0
        self._center, spread = self._moments(example_id)
        self._scale = 1.0 / spread
        self._middle: Floats = np.zeros(1)
        self._constant = 1.0
        self._others: dict[str, tuple[int, Neighbours, Floats]] = {}
        if self._image:
            side = min(*x.shape[2:], _SIDE)
            self.shifts = 0 if side < 8 else 1 if side < 16 else 2
        self.candidates = 128 if self.shifts == 1 else 16
        num = np.linspace(0, len(x) - 1, min(len(x), _FITTED)).astype(np.int64)
        fitted = self._features(self._x, num)
        self._middle = fitted.mean(0) if self._image else self._middle
        self._constant = math.sqrt(float(np.square(fitted - self._middle).sum(1).mean())) or 1.0

    def others(self, index: str = "exact", *, least: int = 1) -> tuple[Neighbours, Floats]:
        """Candidates of every example among the others, by the search, and d to them, float64 (N, K): ``candidates`` of
        them, or ``least``. Searched once: the longest list so far is remembered.

        Args:
            index: "exact", whose time grows with N^2, or "hnsw".
        """
        wanted = max(self.candidates, least)
        if index not in self._others or self._others[index][0] < wanted:
            every = np.arange(len(self._x))
            found = nearest(self.points, k=wanted, method=index)
            self._others[index] = wanted, found, self.distances(every, found.position)
        _, found, distance = self._others[index]
        return Neighbours(found.position[:, :wanted], found.similarity[:, :wanted]), distance[:, :wanted]

    @cached_property
    def points(self) -> NDArray[np.float32]:
        """``vectors`` of all examples, float32 (N, d), kept."""
        return self.vectors(np.arange(len(self._x)))

    def vectors(self, rows: Ints, *, of: Payload | None = None) -> NDArray[np.float32]:
        """Unit vectors whose cosines order the neighbours, float32 (B, d).

        Args:
            rows: positions (B,) int64.
            of: the array that they are positions in; that of the space without it.
        """
        x = self._x if of is None else of
        out = np.empty((len(rows), self._middle.size + 1 if self._image else x.shape[1] + 1), np.float32)
        for block in blocks_of(len(rows), 4 * math.prod(x.shape[1:])):
            w = self._features(x, rows[block]) - self._middle
            w = np.column_stack([w, np.full(len(w), self._constant)])
            out[block] = w / np.sqrt(np.square(w).sum(1, keepdims=True))
        return out

    def distances(self, rows: Ints, candidates: Ints, *, of: Payload | None = None) -> Floats:
        """d from each row to each of its candidates, float64 (B, K).

        Args:
            rows: positions (B,) int64, of ``of`` where that is given.
            candidates: positions (B, K) int64 in the space's own array.
            of: as in :meth:`vectors`.
        """
        x, out = self._x if of is None else of, np.empty(candidates.shape)
        for block in blocks_of(len(rows), 2 * candidates.shape[1] * math.prod(self._x.shape[1:])):
            a, near = self._values(x, rows[block]), candidates[block]
            b = self._values(self._x, near.ravel()).reshape(*near.shape, *a.shape[1:])
            out[block] = _moved(a, b, self.shifts) if self._image else np.sqrt(np.square(b - a[:, None]).sum(2))
        return out

    def _values(self, x: Payload, rows: Ints) -> Floats:
        """z or u of some rows."""
        block = gather(x, rows)
        return _cells(block.astype(np.float32)) if self._image else (block - self._center) * self._scale

    def _features(self, x: Payload, rows: Ints) -> Floats:
        """w, its mean not yet taken off, float64 (B, d)."""
        values = self._values(x, rows)
        if not self._image:
            return values
        border = np.concatenate([values[..., 0, :], values[..., -1, :], values[..., :, 0], values[..., :, -1]], axis=-1)
        values -= np.median(border, axis=-1)[..., None, None]
        size = tuple(side + 2 * self.shifts for side in values.shape[2:])
        return np.abs(np.fft.rfft2(values, size)).reshape(len(values), -1)

    def _moments(self, example_id: Ints) -> tuple[Floats, Floats]:
        """Mean and unit of every column: its standard deviation, or its largest value where it is constant up to
        rounding. Of images nothing but the check."""
        num, width = len(self._x), math.prod(self._x.shape[1:])
        mean, square, largest = np.zeros(width), np.zeros(width), np.zeros(width)
        for block in blocks_of(num, 2 * width):
            values = self._x[block].reshape(block.stop - block.start, -1)
            _refuse_infinite(values, example_id[block])
            if self._image:
                continue
            values = values.astype(np.float64)
            before, seen = mean, block.stop
            own = values.mean(0)
            mean = before + (own - before) * (len(values) / seen)
            square += np.square(values - own).sum(0) + np.square(own - before) * (len(values) * block.start / seen)
            largest = np.maximum(largest, np.abs(values).max(0))
        spread = np.sqrt(square / num)
        spread = np.where(spread > _FLAT * largest, spread, largest)
        return mean, np.where(spread > 0, spread, 1.0)


def check_finite(x: Payload, example_id: Ints) -> None:
    """Refuse values that are NaN or infinite, in blocks of bounded size.

    Raises:
        DataError: names the examples.
    """
    for block in blocks_of(len(x), 2 * math.prod(x.shape[1:])):
        _refuse_infinite(x[block].reshape(block.stop - block.start, -1), example_id[block])


def _refuse_infinite(values: NDArray[Any], example_id: Ints) -> None:
    if values.dtype.kind == "f" and not (finite := np.isfinite(values).all(1)).all():
        raise DataError("values are not finite", example_ids=example_id[~finite])


def _cells(images: Floats) -> Floats:
    """Means over at most 32 x 32 cells of (B, C, H, W)."""
    for axis in (2, 3):
        side = images.shape[axis]
        if side > _SIDE:
            starts = np.arange(_SIDE) * side // _SIDE
            sizes = np.diff(starts, append=side).reshape(-1, *[1] * (3 - axis))
            images = np.add.reduceat(images, starts, axis=axis) / sizes
    return images


def _moved(a: Floats, b: Floats, shifts: int) -> Floats:
    """Least RMS difference of (B, C, H, W) and each of (B, K, C, H, W) over the shifts, on what both show: (B, K)."""
    height, width = a.shape[2:]
    best = np.full(b.shape[:2], np.inf)
    for down in range(-shifts, shifts + 1):
        for right in range(-shifts, shifts + 1):
            here = a[:, None, :, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
            there = b[..., max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)]
            difference = there - here
            np.minimum(best, np.einsum("bkchw,bkchw->bk", difference, difference) / difference[0, 0].size, out=best)
    distance: Floats = np.sqrt(best)
    return distance
