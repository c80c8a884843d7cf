"""Examples that are read, encoded and written at a time: so many that they stay within a few MiB, whatever one takes
and however many there are."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from sources.example_set import SPLITS, ExampleSet
from sources.rows import BLOCK_BYTES, Rows

_MOST = 4096  # examples of which every column is held as Python objects


def row_blocks(data: ExampleSet, num: int | None = None) -> Iterator[slice]:
    """Consecutive slices of ``num`` rows, of all of them without it, whose values, with their masks where they have
    any, take about ``sources.rows.BLOCK_BYTES``; of one row where it is larger."""
    num, step = len(data) if num is None else num, _MOST
    if isinstance(data.x, (np.ndarray, Rows)):
        own = sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in (data.x, data.y))
        step = min(max(1, BLOCK_BYTES // max(own, 1)), _MOST)
    return (slice(start, min(start + step, num)) for start in range(0, num, step))


def splits(data: ExampleSet) -> list[tuple[str, np.ndarray]]:
    """Each split that the examples have, and the rows of its examples, in their order."""
    rows = ((name, np.flatnonzero(data.split == name)) for name in sorted(SPLITS))
    return [(name, own) for name, own in rows if len(own)]


def blocks_of(data: ExampleSet, rows: np.ndarray) -> Iterator[ExampleSet]:
    """The examples of these rows, block after block; columns are copied of a block at a time alone."""
    return (data.take(rows[block]) for block in row_blocks(data, len(rows)))
