"""What is known of each example beside its values, label and owner: client, domain, step, group, or any other name.

Columns are no features: a model does not see them. They go with an example into every subset, are part of the data
digest, and, where an id is made from content, of the id: the same row at another client is another example.

    client   federated training and its audits         step    the stage of a stream or of a continual run
    domain   adaptation, shift                          group   what belongs together (the document of a chunk, a scene)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ConfigError, DataError
from contracts.params import Config, param

ROLES = ("step", "domain", "client", "group")
_TAKEN = ("example_id", "x", "y", "label", "split", "owner", "content_hash", "origin")
_NAME = re.compile(r"[^\W\d][\w .:/-]{0,63}")


@dataclass(frozen=True, kw_only=True)  # no slots: it is joined with other configurations
class BesideConfig(Config):
    """Fields that name columns which are kept beside the examples and are no features."""

    step: str = param("", doc="column of the step of a stream at which a row comes; kept as 'step'")
    domain: str = param("", doc="column of the domain that a row is from; kept as 'domain'")
    client: str = param("", doc="column of the client that holds a row in federated training; kept as 'client'")
    group: str = param("", doc="column of what rows belong together; kept as 'group'")
    keep: tuple[str, ...] = param((), doc="columns that are kept beside the examples under their own names")

    def beside(self) -> dict[str, str]:
        """Name in ``ExampleSet.columns`` -> column of the data.

        Raises:
            ConfigError: one name for two columns.
        """
        roles = {role: column for role in ROLES if (column := getattr(self, role))}
        doubled = [name for name in self.keep if name in roles or self.keep.count(name) > 1]
        if doubled:
            raise ConfigError(f"{type(self).__name__}.keep = {doubled[0]!r} is kept twice")
        return roles | {name: name for name in self.keep}


def as_column(values: NDArray[Any], origin: NDArray[np.str_], *, name: str) -> NDArray[Any]:
    """A column as it is kept, int64 or text (N,).

    Args:
        values: (N,) text, whole numbers, bool (0 and 1), or floats that are whole.
        origin: (N,) where the rows lie, for the message.
        name: of the column.

    Raises:
        DataError: another type, missing, or fractional, naming the rows.
    """
    kind = values.dtype.kind
    if kind == "U" and values.ndim == 1:
        missing = values == ""
        if missing.any():
            raise DataError(f"column {name!r} is missing in {int(missing.sum())} rows", where=origin[missing].tolist())
        return values
    if kind not in "iubf" or values.ndim != 1:
        raise DataError(f"column {name!r} is {values.dtype} {values.shape}; whole numbers and text are kept")
    if kind == "f":
        with np.errstate(invalid="ignore"):
            odd = ~(np.abs(values) < 2**53) | (values != np.rint(values))
        if odd.any():
            raise DataError(
                f"column {name!r} holds {float(values[odd][0])!r} in {int(odd.sum())} rows; "
                "whole numbers and text are kept",
                where=origin[odd].tolist(),
            )
    if kind == "u" and len(values) and values.max() > np.iinfo(np.int64).max:
        raise DataError(f"column {name!r} holds {values.max()}, more than 2**63 - 1")
    return values.astype(np.int64)


def check_columns(name: str, columns: Mapping[str, NDArray[Any]], num: int) -> None:
    """Refuse columns that cannot be kept.

    Args:
        name: of the data set.
        columns: by name.
        num: examples.

    Raises:
        DataError: a name that is taken or no name, a length, or a type other than int64 and text.
    """
    for column, values in columns.items():
        if not isinstance(column, str) or not _NAME.fullmatch(column) or column in _TAKEN:
            raise DataError(
                f"{name}: column name {column!r} cannot be used: 1 to 64 letters, digits, blanks and _.:/-, "
                f"a letter first, and none of {', '.join(_TAKEN)}"
            )
        if not isinstance(values, np.ndarray) or values.shape != (num,):
            raise DataError(f"{name}: column {column!r} has shape {np.shape(values)}, the ids have ({num},)")
        if values.dtype != np.int64 and values.dtype.kind != "U":
            raise DataError(f"{name}: column {column!r} has dtype {values.dtype}; int64 and text are kept")


def taken(columns: Mapping[str, NDArray[Any]], rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The columns of these rows."""
    return {name: values[rows] for name, values in columns.items()}


def digested(columns: Mapping[str, NDArray[Any]], shared: Mapping[str, str]) -> dict[str, Any]:
    """What the header of a data digest says of columns, and of what examples share; nothing where there are none."""
    named: dict[str, Any] = {"columns": {name: values.dtype.kind for name, values in sorted(columns.items())}}
    return (named if columns else {}) | ({"shared": dict(shared)} if shared else {})


def in_order(columns: Mapping[str, NDArray[Any]]) -> Iterable[NDArray[Any]]:
    """The columns in the order of their names."""
    return (columns[name] for name in sorted(columns))
