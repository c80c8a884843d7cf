"""Labels as they are found -> task, y and class names.

    text, bool, whole numbers      classification: the levels in sorted order become 0..K-1 (so do 1..K, gaps, and
                                   -1/+1)
    whole numbers with class_names classification: indexes into the names, or as many levels as there are names
    floats                         regression; few of them, all whole (0.0, 1.0): classes
    one-hot (N, K)                 classification: the column that holds the 1

``auto`` means regression for floats that are not whole or take more than 20 values, and for whole numbers that take
more than 100 values and more than one value in 20 examples; classification otherwise. -1/+1 are two classes; any other
negative label is taken for a mark of "missing" (also in -1/0/1, the mark of semi-supervised data) and refused. Whatever
is read otherwise than it is written comes back as a note for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from contracts.errors import DataError

TASKS = ("auto", "classification", "regression")
_MANY_FLOATS = 20
_MANY_WHOLE = 100
_SHOWN = 6


class Labels(NamedTuple):
    """Encoded labels: the task; y, (N,) int64 or float64; K class names, () for regression; notes for people."""

    task: str
    y: np.ndarray
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def encode_labels(
    values: np.ndarray, origin: np.ndarray, *, task: str = "auto", class_names: Sequence[str] = ()
) -> Labels:
    """Turn raw labels into class indexes or targets.

    Args:
        values: (N,) of kind int, uint, bool, float or str; NaN and "" count as missing. (N, 1, ...) are (N,), (N, K)
            must be one-hot.
        origin: (N,) str, where the examples lie, for the messages.
        task: "auto", "classification" or "regression".
        class_names: names of the classes in the order of their indexes; text labels must be among them.

    Raises:
        DataError: missing, negative, fractional or out-of-range labels, rows that are not one-hot, naming the examples.
    """
    if values.ndim == 0 or len(values) != len(origin):
        raise DataError(f"labels have shape {values.shape}, not ({len(origin)},)")
    kind = values.dtype.kind
    if kind not in "iubfU":
        raise DataError(f"labels of type {values.dtype} cannot be used: whole numbers, text or floats are")
    notes = []
    if values.ndim > 1:
        given = values.shape
        values = values.reshape(len(values), -1)
        if values.shape[1] == 1:
            values = values[:, 0]
            notes += [f"labels of shape {given} are read as ({len(values)},)"] if len(given) > 2 else []
        else:
            values = _one_hot(values, origin)
            notes.append(f"labels of shape {given} are one-hot: the class is the column that holds the 1")
            kind = "i"
    missing = np.isnan(values) if kind == "f" else values == "" if kind == "U" else np.zeros(len(values), bool)
    if missing.any():
        raise DataError(f"{int(missing.sum())} labels are missing", where=origin[missing].tolist())
    if _task_of(values, task) == "regression":
        if kind == "U":
            raise DataError(f"regression needs numbers, the labels are text ({str(values[0])!r}, ...)")
        return Labels("regression", values.astype(np.float64), (), tuple(notes))
    if kind == "f":
        values = _whole(values, origin)
    y, names, mapped = _classes(values, origin, tuple(class_names))
    if kind == "f":
        mapped = (
            f"{mapped or 'labels are written as floats (' + _some(names) + ')'}; --task regression makes them a number "
            "to predict"
        )
    return Labels("classification", y, names, (*notes, *filter(None, [mapped])))


def _one_hot(values: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """(N,) int64, the column of the single 1 of each row."""
    if values.dtype.kind == "U":
        raise DataError(f"labels are text of shape {values.shape}; one label an example is read")
    bad = ~(np.isin(values, (0, 1)).all(axis=1) & (values.sum(axis=1) == 1))
    if bad.any():
        raise DataError(
            f"labels have shape {values.shape} and {int(bad.sum())} rows are not one-hot (a single 1, else 0): several "
            "labels or shares of classes an example are not read",
            where=origin[bad].tolist(),
        )
    return values.argmax(axis=1).astype(np.int64)


def _whole(values: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Floats that are whole, as int64."""
    with np.errstate(invalid="ignore"):
        odd = ~np.isfinite(values) | (values != np.rint(values))
    if odd.any():
        raise DataError(
            f"labels are floats that are not whole ({float(values[odd][0])!r}): set task to 'regression', or store "
            "class labels as whole numbers or text",
            where=origin[odd].tolist(),
        )
    return values.astype(np.int64)


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


def _classes(values: np.ndarray, origin: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...], str]:
    """(N,) int64 indexes, the names of the classes, and how labels were mapped ("" where nothing needs saying)."""
    if values.dtype.kind == "U":
        levels = names or tuple(np.unique(values).tolist())
        order = np.argsort(levels)
        ordered = np.array(levels)[order]
        slot = np.minimum(np.searchsorted(ordered, values), len(levels) - 1)
        unknown = ordered[slot] != values
        if unknown.any():
            raise DataError(
                f"label {str(values[unknown][0])!r} is not among class_names {', '.join(levels)}",
                where=origin[unknown].tolist(),
            )
        return order[slot].astype(np.int64), levels, ""
    found, y = np.unique(values, return_inverse=True)
    if len(found) and found[0] < 0 and found.tolist() != [-1, 1]:
        raise DataError(
            f"label {found[0]} is negative: often a mark for 'missing'; give classes names or numbers from 0 (-1 and 1 "
            "alone are read)",
            where=origin[values < 0].tolist(),
        )
    plain = values.dtype.kind == "b" or found.tolist() == list(range(len(found)))
    if names and len(found) and (found[0] < 0 or found[-1] >= len(names)):
        if len(found) != len(names):
            raise DataError(
                f"label {found[-1]} is out of range, allowed are 0..{len(names) - 1}",
                where=origin[(values < 0) | (values >= len(names))].tolist(),
            )
    elif names:
        return values.astype(np.int64), names, ""
    named = names or tuple(str(v) for v in found.tolist())
    mapped = "" if plain and not names else f"labels {_some(found)} are classes {_some([*range(len(found))])}"
    return y.astype(np.int64), named, mapped + (f", named {_some(named)}" if names else "")


def _some(values: Sequence[object] | np.ndarray) -> str:
    """The first of them, and the last, for people."""
    shown = [str(v) for v in values]
    return ", ".join(shown if len(shown) <= _SHOWN else [*shown[: _SHOWN - 2], "...", shown[-1]])
