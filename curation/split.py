"""From a members table back to data: one ExampleSet a role, joined by id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from contracts.errors import DataError
from curation.members import training_ids
from sources.example_set import ExampleSet


def apply_split(
    data: ExampleSet, members: pl.DataFrame, *, roles: Sequence[str] = ("forget", "retain")
) -> dict[str, ExampleSet]:
    """The training examples of each role, ordered by id, without copying what lies on disk.

    Args:
        data: the set that the members were curated from, or its training split.
        members: (example_id, role, ...), every training example exactly once, rows in any order.
        roles: the curator's roles (``CuratorSpec.roles``); each gets its set, an empty one when it has no member.

    Raises:
        DataError: columns are missing, an id is listed twice, a training example is missing, an id is not a training
            example, or a role is not among ``roles``.
    """
    absent = [c for c in ("example_id", "role") if c not in members.columns]
    if absent:
        raise DataError(f"members have no column {', '.join(absent)}; they have: {', '.join(members.columns)}")
    ordered = members.sort("example_id")
    ids, role = ordered.get_column("example_id").to_numpy(), ordered.get_column("role")
    train = training_ids(data)
    values, counts = np.unique(ids, return_counts=True)
    for what, wrong in (
        ("are listed twice", values[counts > 1]),
        (f"are no training examples of {data.name}", values[~np.isin(values, train)]),
        ("have no role", train[~np.isin(train, values)]),
    ):
        if len(wrong):
            raise DataError(f"members: {len(wrong)} examples {what}", example_ids=wrong)
    strange = ~role.is_in(list(roles)).fill_null(False)
    if strange.any():
        raise DataError(
            f"role {role.filter(strange)[0]!r} is not one of {', '.join(roles)}", example_ids=ids[strange.to_numpy()]
        )
    return {name: data.subset(ids[(role == name).to_numpy()]) for name in roles}
