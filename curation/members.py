"""What every forget/retain curator ends with: one row a training example, ordered by id, nothing left out.

    example_id int64 | role "forget" or "retain" | reason str

Asking for nothing is refused unless it is said to be meant (``allow_empty``: a request that matches nobody is a result,
and its record is a split in which everything is retained). Forgetting everything is always refused: there is no model
left to compare with. Reasons never hold an owner's name: they are stored, and the warehouse keeps tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from contracts.errors import DataError
from contracts.params import Config, param
from sources.example_set import ExampleSet


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetConfig(Config):
    """Field of every forget/retain curator."""

    allow_empty: bool = param(False, doc="an empty forget set is a result, not an error")


def training_ids(data: ExampleSet) -> np.ndarray:
    """(N_train,) int64, ascending."""
    return np.sort(data.example_id[data.split == "train"])


def forget_retain(
    data: ExampleSet,
    forget: np.ndarray,
    *,
    what: str,
    reason: str | Sequence[str],
    retain_reason: str | np.ndarray = "not selected",
    allow_empty: bool,
) -> pl.DataFrame:
    """The members table of a forget/retain split.

    Args:
        data: the training split, or a set whose training split is meant.
        forget: ids to forget, in any order, without repeats.
        what: the selection in words, for the messages ("class 'cat'").
        reason: why an example is forgotten; one text, or one for each id of ``forget``.
        retain_reason: why one is retained; one text, or one for each training example ordered by id.
        allow_empty: see the module.

    Returns:
        (N_train, 3) polars frame, ordered by ``example_id``.

    Raises:
        DataError: ids that are not training examples (named), nothing to forget, or nothing to retain.
    """
    train = training_ids(data)
    forget = np.asarray(forget)
    if forget.size and forget.dtype.kind not in "iu":
        raise DataError(f"{what} gave ids of type {forget.dtype}; example ids are whole numbers")
    forget = forget.astype(np.int64)
    unknown = forget[~np.isin(forget, train)]
    if len(unknown):
        in_test = int(np.isin(unknown, data.example_id).sum())
        hint = f"; {in_test} of them are test examples, which no model was trained on" if in_test else ""
        raise DataError(
            f"{what}: {len(unknown)} ids are no training examples of {data.name}{hint}", example_ids=unknown
        )
    if not len(forget) and not allow_empty:
        raise DataError(f"{what} selects no training example of {data.name}; set allow_empty if that is a result")
    if len(forget) == len(train):
        raise DataError(f"{what} selects all {len(train)} training examples of {data.name}; nothing would be retained")
    slot = np.searchsorted(train, forget)
    role = np.full(len(train), "retain", object)
    reasons = np.full(len(train), "", object)
    reasons[:] = retain_reason
    role[slot] = "forget"
    reasons[slot] = reason
    return pl.DataFrame(
        {"example_id": train, "role": role.tolist(), "reason": reasons.tolist()},
        schema={"example_id": pl.Int64, "role": pl.String, "reason": pl.String},
    )
