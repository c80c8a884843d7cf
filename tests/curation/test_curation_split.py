"""Members back to data: joined by id whatever the order, and refused when they do not fit."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import DataError
from curation.split import apply_split
from sources.rows import Rows, on_disk


def _members(data, forget, order=None):
    train = np.sort(data.part("train").example_id)
    role = np.where(np.isin(train, forget), "forget", "retain")
    order = np.arange(len(train)) if order is None else order
    return pl.DataFrame(
        {"dataset_id": ["d"] * len(train), "example_id": train[order], "role": role[order], "reason": "r"}
    )


@given(order=st.permutations(range(60)), picked=st.sets(st.integers(0, 59)))
def test_joined_by_id(data, order, picked):
    forget = np.sort(data.part("train").example_id)[sorted(picked)]
    parts = apply_split(data, _members(data, forget, np.array(order)))
    assert set(parts) == {"forget", "retain"}
    assert parts["forget"].example_id.tolist() == forget.tolist()
    both = np.concatenate([parts["forget"].example_id, parts["retain"].example_id])
    assert sorted(both) == sorted(data.part("train").example_id)
    for part in parts.values():
        rows = data.positions(part.example_id)
        np.testing.assert_array_equal(part.x, data.x[rows])
        np.testing.assert_array_equal(part.y, data.y[rows])
        np.testing.assert_array_equal(part.inputs(slice(None)), data.inputs(rows))


def test_other_roles(data):
    members = _members(data, []).with_columns(role=pl.Series(["keep", "drop", "hold"] * 20))
    parts = apply_split(data, members, roles=("keep", "drop", "hold", "none"))
    assert [p.num_examples for p in parts.values()] == [20, 20, 20, 0]
    with pytest.raises(DataError, match="'drop' is not one of forget, retain|'keep' is not one of"):  # noqa: RUF043
        apply_split(data, members)


def test_members_that_do_not_fit_are_refused_by_id(data):
    members = _members(data, [])
    train = members["example_id"].to_list()
    test_id = int(data.part("test").example_id[0])
    cases = [
        (members.filter(pl.col("example_id") != train[5]), "have no role", (train[5],)),
        (pl.concat([members, members[5:7]]), "listed twice", tuple(train[5:7])),
        (
            pl.concat([members, members[:1].with_columns(example_id=pl.lit(test_id, pl.Int64))]),
            "no training examples",
            (test_id,),
        ),
        (
            members.with_columns(role=pl.when(pl.col("example_id") == train[2]).then(None).otherwise(pl.lit("retain"))),
            "role None",
            (train[2],),
        ),
    ]
    for frame, message, named in cases:
        with pytest.raises(DataError, match=message) as error:
            apply_split(data, frame)
        assert error.value.example_ids == named
    with pytest.raises(DataError, match="no column role"):
        apply_split(data, members.drop("role"))


def test_what_lies_on_disk_stays_there(data, tmp_path):
    np.save(tmp_path / "x.npy", data.x)
    mapped = dataclasses.replace(data, x=np.load(tmp_path / "x.npy", mmap_mode="r"))
    parts = apply_split(mapped, _members(data, data.part("train").example_id[::2]))
    assert isinstance(parts["retain"].x, Rows) and on_disk(parts["retain"].x)
