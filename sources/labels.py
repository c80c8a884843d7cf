"""Labels as they are found -> task, y and class names.

    text, bool, whole numbers   classification: levels in sorted order become 0..K-1
    whole numbers as indexes    classification: kept as they are, K = largest + 1 (IDX, NPZ, or when names are given)
    floats                      regression

``auto`` means regression for floats that are not whole or take more than 20 values, and for whole numbers that take
more than 100 values and more than one value in 20 examples; classification otherwise. Floats are never taken for
classes: 1.0 may be a class, a rounding, or a target, and only the owner of the data knows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contracts.errors import DataError
from contracts.methods import Task

TASKS = ("auto", "classification", "regression")
_MANY_FLOATS = 20
_MANY_WHOLE = 100


def encode_labels(
    values: np.ndarray,
    example_id: np.ndarray,
    *,
    task: str = "auto",
    class_names: Sequence[str] = (),
    indexes: bool = False,
) -> tuple[Task, np.ndarray, tuple[str, ...]]:
    """Turn raw labels into class indexes or targets.

    Args:
        values: (N,) of kind int, uint, bool, float or str; NaN and "" count as missing.
        example_id: (N,) ids, for the messages.
        task: "auto", "classification" or "regression".
        class_names: names of the classes in the order of their indexes; text labels must be among them.
        indexes: whole numbers are class indexes from 0, not arbitrary levels.

    Returns:
        task, y ((N,) int64 or float64), class names (() for regression).

    Raises:
        DataError: missing, negative, float or out-of-range labels, naming the examples.
    """
    if values.ndim != 1 or len(values) != len(example_id):
        raise DataError(f"labels have shape {values.shape}, not ({len(example_id)},)")
    kind = values.dtype.kind
    if kind not in "iubfU":
        raise DataError(f"labels of type {values.dtype} cannot be used: whole numbers, text or floats are")
    missing = np.isnan(values) if kind == "f" else values == "" if kind == "U" else np.zeros(len(values), bool)
    if missing.any():
        raise DataError(f"{int(missing.sum())} labels are missing", example_ids=example_id[missing])
    if _task_of(values, task) == "regression":
        if kind == "U":
            raise DataError(f"regression needs numbers, the labels are text ({str(values[0])!r}, ...)")
        return "regression", values.astype(np.float64), ()
    if kind == "f":
        some = ", ".join(repr(float(v)) for v in np.unique(values)[:5])
        raise DataError(
            f"labels are floats ({some}): set task to 'regression', or store class labels as whole numbers or text",
            example_ids=example_id[:10],
        )
    return "classification", *_classes(values, example_id, tuple(class_names), indexes)


def _task_of(values: np.ndarray, task: str) -> str:
    if task != "auto" or values.dtype.kind not in "iuf" or not len(values):
        return "classification" if task == "auto" else task
    distinct = len(np.unique(values))
    if values.dtype.kind == "f":
        finite = values[np.isfinite(values)]
        many = distinct > _MANY_FLOATS or bool((finite != np.rint(finite)).any())
    else:
        many = distinct > _MANY_WHOLE and distinct * 20 > len(values)
    return "regression" if many else "classification"


def _classes(
    values: np.ndarray, example_id: np.ndarray, names: tuple[str, ...], indexes: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    if values.dtype.kind == "U":
        levels = names or tuple(np.unique(values).tolist())
        order = np.argsort(levels)
        ordered = np.array(levels)[order]
        slot = np.minimum(np.searchsorted(ordered, values), len(levels) - 1)
        unknown = ordered[slot] != values
        if unknown.any():
            raise DataError(
                f"label {str(values[unknown][0])!r} is not among class_names {', '.join(levels)}",
                example_ids=example_id[unknown],
            )
        return order[slot].astype(np.int64), levels
    if values.dtype.kind == "i" and (values < 0).any():
        raise DataError(
            f"label {values.min()} is negative: often a mark for 'missing'; give classes names or numbers from 0",
            example_ids=example_id[values < 0],
        )
    if not (names or indexes):
        levels, y = np.unique(values, return_inverse=True)
        return y.astype(np.int64), tuple(str(v) for v in levels.tolist())
    limit = len(names) or len(values)
    if (values >= limit).any():
        allowed = f"0..{limit - 1}" if names else f"0..{limit - 1} (the number of examples): some class must be empty"
        raise DataError(
            f"label {values.max()} is out of range, allowed are {allowed}", example_ids=example_id[values >= limit]
        )
    y = values.astype(np.int64)
    return y, names or tuple(str(k) for k in range(int(y.max(initial=-1)) + 1))
