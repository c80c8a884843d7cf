"""Targets that are one class a pixel: y (N, H, W), uint8 or int64, an ndarray, a memory map or ``Rows``.

Beside them stand the labels (N,) of every other task: what is done with either is here, so that nobody else asks which
of them it is. What values a mask may hold, and what the data digest covers of it, is its task's to say
(``tasks.segmentation``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError
from sources.rows import Rows, gather, select
from tasks.pixels import mask_blocks, mask_digests

_DTYPES = ("uint8", "int64")


def taken(y: NDArray[Any] | Rows, rows: NDArray[Any]) -> Any:
    """The targets of these rows (positions or a mask); masks on disk are not read: an index is kept."""
    if y.ndim == 1:
        return y[rows]
    chosen = np.asarray(rows)
    return select(y, np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64))


def targets_of(y: NDArray[Any] | Rows, rows: slice | NDArray[Any]) -> NDArray[Any]:
    """The targets of these rows in fresh memory; masks as int64 (B, H, W)."""
    block = gather(y, rows)
    return np.array(block) if y.ndim == 1 else block.astype(np.int64)


def labels_of(y: NDArray[Any] | Rows, class_names: Sequence[str]) -> NDArray[Any]:
    """(N,) what makes another target another example: the name of the class, the number, or the digest of the mask."""
    if y.ndim == 1:
        plain = np.asarray(y)
        return np.asarray(class_names)[plain] if len(class_names) else plain
    parts = [mask_digests(masks) for _, masks in mask_blocks(y)]
    return np.concatenate([np.empty(0, "<U64"), *parts])


def told(y: NDArray[Any] | Rows, rows: NDArray[Any], digest: Callable[[NDArray[Any]], list[Any]]) -> list[Any]:
    """What the data digest covers of the targets of these rows, one entry an example; masks some at a time.

    Args:
        digest: ``target_digest`` of the task.
    """
    if y.ndim == 1:
        return digest(y[rows])
    lazy = y.select(rows) if isinstance(y, Rows) else Rows([y], rows)
    parts = (digest(masks) for _, masks in mask_blocks(lazy))
    return list(itertools.chain.from_iterable(parts))


def check_shape(
    y: NDArray[Any] | Rows, *, num: int, dtype: str, shape: tuple[int, ...], masks: bool, name: str
) -> None:
    """Refuse targets that do not fit the examples by type and shape.

    Args:
        y: the targets.
        num: examples.
        dtype: of a label; a mask may be uint8 too.
        shape: of one example.
        masks: whether the task has a class for every pixel.
        name: of the data set.

    Raises:
        DataError: says what is needed.
    """
    if not masks:
        if y.shape != (num,):
            raise DataError(f"{name}: y has shape {tuple(y.shape)}, the ids have ({num},)")
        if y.dtype != np.dtype(dtype):
            raise DataError(f"{name}: y has dtype {y.dtype}, not {dtype}")
        return
    if y.dtype.name not in _DTYPES or y.ndim != 3:
        raise DataError(f"{name}: masks are {y.dtype} {tuple(y.shape)}, not uint8 or int64 (N, H, W)")
    if len(y) != num:
        raise DataError(f"{name}: {len(y)} masks for {num} ids")
    if len(shape) != 3 or tuple(y.shape[1:]) != tuple(shape[1:]):
        raise DataError(
            f"{name}: masks are {tuple(y.shape[1:])}, examples {tuple(shape)}: pictures (C, H, W) need masks (H, W)"
        )
