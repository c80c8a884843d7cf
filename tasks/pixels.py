"""Masks, one class a pixel, walked in blocks of bounded size: their digests, and the pixels of each class.

    digest of a mask = SHA-256 of (H, W, pixels), all as little-endian int64

so the same mask has the same digest whether it lies in a uint8 or an int64 array. Shapes: N masks of H x W pixels, K
classes; ``y`` may be any array-like that is sliced by rows, a memory map or ``sources.rows.Rows`` included.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK_BYTES = 4 * 2**20


def mask_digests(masks: NDArray[Any]) -> NDArray[np.str_]:
    """(N,) "<U64", SHA-256 of each of the masks (N, H, W)."""
    size = np.array(masks.shape[1:], "<i8").tobytes()
    found = [hashlib.sha256(size + np.ascontiguousarray(mask, "<i8").tobytes()).hexdigest() for mask in masks]
    return np.array(found, "<U64")


def mask_blocks(y: Any) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Rows and masks, about 4 MB at a time."""
    step = max(1, _BLOCK_BYTES // max(1, math.prod(y.shape[1:]) * y.dtype.itemsize))
    for start in range(0, len(y), step):
        rows = slice(start, min(start + step, len(y)))
        yield rows, np.asarray(y[rows])


def pixel_counts(y: Any, num_classes: int) -> NDArray[np.int64]:
    """(N, K + 1) how many pixels of each mask are of each class; in the last column those that are of none.

    >>> pixel_counts(np.array([[[0, 1], [1, 7]]]), 2).tolist()
    [[1, 2, 1]]
    """
    counts = np.zeros((len(y), num_classes + 1), np.int64)
    for rows, block in mask_blocks(y):
        known = np.where((block >= 0) & (block < num_classes), block, num_classes).astype(np.int64)
        flat = known.reshape(len(block), -1) + np.arange(len(block))[:, None] * (num_classes + 1)
        counts[rows] = np.bincount(flat.ravel(), minlength=counts[rows].size).reshape(len(block), -1)
    return counts
