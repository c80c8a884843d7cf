"""What the scores that read the reference ensemble share: joining on ids, and its logits in double precision by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError
from recipes.ensemble import ReferenceEnsemble
from sources.example_set import ExampleSet
from tasks.base import require

Ints = NDArray[np.int64]
_AT_ONCE = 65_536  # ids compared at a time


def members(name: str, data: ExampleSet, ensemble: ReferenceEnsemble) -> tuple[Ints, Ints]:
    """Rows of ``data`` and columns of the ensemble of the same example, members of the pool only, in the order of ``data``.

    Raises:
        NotApplicable: not a classification task.
        DataError: no example of ``data`` is in the pool; labels that differ from those the ensemble was trained on or
            are outside its outputs.
    """
    require(data, name, "classes")
    columns = _columns_of(ensemble, data.example_id)
    rows = np.flatnonzero(columns >= 0)
    if len(rows) < len(data):
        columns = columns[rows]
    if len(data) and not len(rows):
        raise DataError(f"no example of {data.name} is in the ensemble's pool", example_ids=data.example_id)
    for start in range(0, len(rows), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        ids, labels = data.example_id[rows[some]], ensemble.labels[columns[some]]
        other = data.y[rows[some]] != labels
        if other.any():
            raise DataError("labels differ from those the ensemble was trained on", example_ids=ids[other])
        outside = (labels < 0) | (labels >= ensemble.outputs.shape[2])
        if outside.any():
            raise DataError(
                f"labels outside 0..{ensemble.outputs.shape[2] - 1}, the ensemble's outputs", example_ids=ids[outside]
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


def logits_of(
    ensemble: ReferenceEnsemble, columns: Ints, *, block: int = 1024
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """(slice of ``columns``, logits float64 (M, B, K)) of all models, fresh memory; one empty block when there are none.

    Raises:
        DataError: NaN or infinite logits; names the examples.
    """
    for start in range(0, max(len(columns), 1), block):
        rows = slice(start, min(start + block, len(columns)))
        logits = ensemble.outputs[:, columns[rows]].astype(np.float64)
        finite = np.isfinite(logits).all(axis=(0, 2))
        if not finite.all():
            raise DataError(
                "the ensemble has NaN or infinite logits", example_ids=ensemble.example_id[columns[rows]][~finite]
            )
        yield rows, logits


def correctness(ensemble: ReferenceEnsemble, columns: Ints, *, block: int = 1024) -> NDArray[np.bool_]:
    """Which model is right on which example: bool (M, len(columns)).

    Raises:
        DataError: NaN or infinite logits; names the examples.
    """
    correct = np.empty((len(ensemble.keep), len(columns)), dtype=np.bool_)
    for rows, logits in logits_of(ensemble, columns, block=block):
        correct[:, rows] = logits.argmax(2) == ensemble.labels[columns[rows]]
    return correct


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities over the last axis.

    >>> softmax(np.array([1e300, 0.0])).tolist()
    [1.0, 0.0]
    """
    p: NDArray[np.float64] = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return p
