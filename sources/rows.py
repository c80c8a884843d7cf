"""Rows of one or several arrays on top of one another, chosen by an index and gathered on demand.

``x[rows]`` of a memory-mapped data set would copy every chosen row at once. ``Rows`` keeps the index instead and reads
only what is asked for, so a retain set of 99% of a file costs 8 bytes a row. It also lets two files (train, test) be
one array without joining them in memory. It answers ``shape``, ``dtype``, ``len``, ``x[int | slice | array]`` and
``numpy.asarray(x)`` (which does gather everything); it is read-only and not an ndarray.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

BLOCK_BYTES = 4 * 2**20


class Rows:
    """A lazy array.

    Args:
        parts: arrays (N_i, *shape) of one dtype and one row shape, stacked in order.
        index: (N,) int64 positions into the stack; None for all of it.
    """

    def __init__(self, parts: Sequence[np.ndarray], index: np.ndarray | None = None) -> None:
        self._parts = tuple(np.asarray(p) for p in parts)  # asarray drops the memmap subclass, not the mapping
        self._starts = np.cumsum([0, *(len(p) for p in self._parts)])
        self._index = index
        self.dtype = self._parts[0].dtype
        self.shape = (int(self._starts[-1]) if index is None else len(index), *self._parts[0].shape[1:])
        if any(p.dtype != self.dtype or p.shape[1:] != self.shape[1:] for p in self._parts):
            raise ValueError("Rows: the parts differ in dtype or row shape")

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes it would take when gathered."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Rows(shape={self.shape}, dtype={self.dtype})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("Rows cannot become an array without a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, tuple):
            rows, *rest = key
            picked = self[rows]
            return picked[tuple(rest)] if isinstance(rows, (int, np.integer)) else picked[(slice(None), *rest)]
        if isinstance(key, (int, np.integer)):
            return self._gather(self._positions(np.array([key])))[0]
        return self._gather(self._positions(key))

    def _positions(self, key: Any) -> np.ndarray:
        """Positions in the stack; negative ones count from the end, as numpy's do."""
        num = len(self)
        if isinstance(key, slice):
            chosen = np.arange(*key.indices(num))
        else:
            chosen = _as_positions(key)
            if chosen.size and not (-num <= chosen.min() and chosen.max() < num):
                raise IndexError(f"row {chosen.min()}..{chosen.max()} is out of range for {num} rows")
            chosen = np.where(chosen < 0, chosen + num, chosen)
        return chosen if self._index is None else self._index[chosen]

    def _gather(self, positions: np.ndarray) -> np.ndarray:
        if len(self._parts) == 1:
            return gather(self._parts[0], positions)
        out = np.empty((*positions.shape, *self.shape[1:]), self.dtype)
        owner = np.searchsorted(self._starts, positions, side="right") - 1
        for number, part in enumerate(self._parts):
            mine = owner == number
            out[mine] = gather(part, positions[mine] - self._starts[number])
        return out

    def select(self, positions: np.ndarray) -> np.ndarray | Rows:
        """The given rows, without reading them. A run of neighbours in one part comes back as a plain view of it."""
        chosen = positions if self._index is None else self._index[positions]
        run = run_of(chosen)
        if run is not None:
            number = int(np.searchsorted(self._starts, run.start, side="right")) - 1
            if run.stop <= self._starts[number + 1]:
                first = int(self._starts[number])
                return self._parts[number][run.start - first : run.stop - first]
        return Rows(self._parts, chosen)


def gather(x: np.ndarray | Rows, rows: slice | np.ndarray) -> np.ndarray:
    """``x[rows]``, the fastest way; a view for a slice of an array, fresh memory for positions.

    ``numpy.take`` is twice as fast as indexing, but would first copy the whole of an array that is not contiguous.
    """
    if isinstance(rows, slice) or isinstance(x, Rows):
        return x[rows]
    plain = np.asarray(x)
    rows = _as_positions(rows)
    return np.take(plain, rows, axis=0) if plain.flags.c_contiguous else plain[rows]


def select(x: np.ndarray | Rows, positions: np.ndarray) -> np.ndarray | Rows:
    """The rows at ``positions``: a view where they are neighbours, lazy when ``x`` lies on disk, else a copy of
    them."""
    if isinstance(x, Rows):
        return x.select(positions)
    run = run_of(positions)
    if run is not None:
        return x[run]
    return Rows([x], positions) if on_disk(x) else gather(x, positions)


def replaced(x: np.ndarray | Rows, positions: np.ndarray, values: np.ndarray) -> np.ndarray | Rows:
    """``x`` with other rows at ``positions``; ``x`` itself is not changed, and not read when it lies on disk."""
    if not on_disk(x):
        out = np.array(x)
        out[positions] = values
        return out
    parts, index = (x._parts, x._index) if isinstance(x, Rows) else ((x,), None)
    index = np.arange(len(x)) if index is None else index.copy()
    index[positions] = sum(map(len, parts)) + np.arange(len(values))
    return Rows([*parts, values], index)


def on_disk(x: np.ndarray | Rows) -> bool:
    """True when the array, or one it is a view of, is a memory map."""
    base: Any = x
    while base is not None:
        if isinstance(base, (Rows, np.memmap)):
            return True
        base = getattr(base, "base", None)
    return False


def blocks(x: np.ndarray | Rows) -> Iterator[slice]:
    """Consecutive slices of about ``BLOCK_BYTES`` each: what bounds the memory of every full pass."""
    row_bytes = max(1, math.prod(x.shape[1:]) * x.dtype.itemsize)
    step = max(1, BLOCK_BYTES // row_bytes)
    return (slice(start, min(start + step, len(x))) for start in range(0, len(x), step))


def _as_positions(rows: Any) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.dtype == bool:
        return np.flatnonzero(rows)
    return rows if rows.size else rows.astype(np.int64)


def run_of(positions: np.ndarray) -> slice | None:
    """The slice that equals ``positions`` when they are consecutive and ascending."""
    if len(positions) == 0:
        return slice(0, 0)
    first, last = int(positions[0]), int(positions[-1])
    if last - first + 1 == len(positions) and bool((np.diff(positions) == 1).all()):
        return slice(first, last + 1)
    return None
