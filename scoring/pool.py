"""What the scores that read the reference ensemble share: joining on ids, its readings, and its logits by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError
from recipes.ensemble import ReferenceEnsemble
from sources.example_set import ExampleSet
from tasks.base import Reading, require

Ints = NDArray[np.int64]
_AT_ONCE = 65_536  # ids compared at a time


def members(
    name: str, data: ExampleSet, ensemble: ReferenceEnsemble, *, wants: tuple[str, ...] = ("reading",)
) -> tuple[Ints, Ints]:
    """Rows of ``data`` and columns of the ensemble of the same example, members of the pool only, in the order of
    ``data``.

    Args:
        name: of the method, for the refusal.
        wants: views that it reads of the examples' task.

    Raises:
        NotApplicable: a task that does not give ``wants``.
        DataError: no example of ``data`` is in the pool; targets that differ from those the ensemble was trained on, or
            are none of the task's.
    """
    require(data, name, *wants)
    columns = _columns_of(ensemble, data.example_id)
    rows = np.flatnonzero(columns >= 0)
    if len(rows) < len(data):
        columns = columns[rows]
    if len(data) and not len(rows):
        raise DataError(f"no example of {data.name} is in the ensemble's pool", example_ids=data.example_id)
    data.check_targets()
    for start in range(0, len(rows) if data.y.ndim == 1 else 0, _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        other = data.y[rows[some]] != ensemble.labels[columns[some]]
        if other.any():
            raise DataError(
                "labels differ from those the ensemble was trained on", example_ids=data.example_id[rows[some]][other]
            )
    return rows, columns


def _columns_of(ensemble: ReferenceEnsemble, ids: Ints) -> Ints:
    """Column of each id, -1 where it is not in the pool. Temporaries are bounded when the ensemble's ids ascend."""
    known = ensemble.example_id
    order = None if (known[1:] > known[:-1]).all() else np.argsort(known, kind="stable")
    ordered = known if order is None else known[order]
    columns = np.full(len(ids), -1, np.int64)
    for start in range(0, len(ids) if len(known) else 0, _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        slot = np.minimum(np.searchsorted(ordered, ids[some]), len(ordered) - 1)
        found = slot if order is None else order[slot]
        columns[some] = np.where((ordered[slot] == ids[some]) & ensemble.pool[found], found, -1)
    return columns


def readings_of(ensemble: ReferenceEnsemble, columns: Ints, *, block: int = 4096) -> Iterator[tuple[slice, Reading]]:
    """(slice of ``columns``, readings (M, B) of all models); one empty block when there are none.

    Raises:
        DataError: NaN or infinite readings; names the examples.
    """
    for start in range(0, max(len(columns), 1), block):
        rows = slice(start, min(start + block, len(columns)))
        values = ensemble.reading[:, columns[rows]]
        finite = np.isfinite(values).all(axis=(0, 2))
        if not finite.all():
            raise DataError(
                "the ensemble has NaN or infinite readings", example_ids=ensemble.example_id[columns[rows]][~finite]
            )
        yield rows, Reading(values)


def qualities(ensemble: ReferenceEnsemble, columns: Ints, *, block: int = 4096) -> NDArray[np.bool_ | np.float64]:
    """What the task's users call right, (M, len(columns)): bool where it is nothing but 0 and 1, else float64 in [0,
    1].

    Raises:
        DataError: NaN or infinite readings; names the examples.
    """
    right: NDArray[np.bool_ | np.float64] = np.empty((len(ensemble.keep), len(columns)), np.bool_)
    for rows, reading in readings_of(ensemble, columns, block=block):
        quality = reading.quality
        if right.dtype == np.bool_ and not ((quality == 0) | (quality == 1)).all():
            right = right.astype(np.float64)
        right[:, rows] = quality
    return right


def logits_of(
    ensemble: ReferenceEnsemble, columns: Ints, *, block: int = 1024
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """(slice of ``columns``, logits float64 (M, B, K) of all models), fresh memory; one empty block when there are
    none.

    Raises:
        NotApplicable: whole outputs were not kept.
        DataError: NaN or infinite logits, labels that they have no output for; names the examples.
    """
    outputs = ensemble.outputs
    for start in range(0, max(len(columns), 1), block):
        rows = slice(start, min(start + block, len(columns)))
        logits, ids = outputs[:, columns[rows]].astype(np.float64), ensemble.example_id[columns[rows]]
        finite = np.isfinite(logits).all(axis=(0, 2))
        if not finite.all():
            raise DataError("the ensemble has NaN or infinite logits", example_ids=ids[~finite])
        outside = (ensemble.labels[columns[rows]] < 0) | (ensemble.labels[columns[rows]] >= outputs.shape[2])
        if outside.any():
            raise DataError(
                f"labels outside 0..{outputs.shape[2] - 1}, the ensemble's outputs", example_ids=ids[outside]
            )
        yield rows, logits


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities over the last axis.

    >>> softmax(np.array([1e300, 0.0])).tolist()
    [1.0, 0.0]
    """
    p: NDArray[np.float64] = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return p
