"""Columns beside the examples: carried with them, part of the digest and of made ids, refused by name where they cannot
be kept.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigError, DataError
from sources.columns import BesideConfig, as_column


@pytest.fixture(scope="module")
def examples():
    from sources.assemble import assemble

    num = 40
    return assemble(
        np.random.default_rng(0).normal(size=(num, 3)).astype(np.float32),
        np.arange(num) % 4,
        name="columns",
        task="classification",
        class_names=tuple("abcd"),
        seed=0,
        test_fraction=0.25,
        columns={"client": np.array([f"c{i % 3}" for i in range(num)]), "step": np.arange(num) // 8},
        provenance={},
    ).validate()


@given(data=st.data())
def test_columns_go_with_their_examples(examples, data):
    rows = np.array(data.draw(st.lists(st.sampled_from(range(40)), unique=True, min_size=1)), np.int64)
    part = examples.take(rows)
    again = np.array(data.draw(st.lists(st.sampled_from(range(len(rows))), unique=True)), np.int64)
    for found, home in (
        (part, rows),
        (part.take(again), rows[again]),
        (examples.subset(part.example_id), rows),
        (part.by_id(), rows[np.argsort(part.example_id)]),
        (part.part("train"), rows[part.split == "train"]),
        (examples.only(rows), rows),
    ):
        assert found.columns.keys() == {"client", "step"}
        for name in found.columns:
            np.testing.assert_array_equal(found.columns[name], examples.columns[name][home])
    assert examples.take(np.array(data.draw(st.permutations(range(40))))).digest == examples.digest


def test_take_of_a_subset_is_the_subset_of_a_take(examples):
    ids = examples.example_id[[7, 3, 20, 11]]
    one = examples.subset(ids).take(np.array([2, 0]))
    other = examples.take(np.array([20, 7]))
    assert one.digest == other.digest and one.example_id.tolist() == other.example_id.tolist()


def test_the_digest_covers_names_types_and_values(examples):
    client = examples.columns["client"]
    sets = [
        {},
        {"client": client},
        {"domain": client},
        {"client": client[::-1]},
        {"client": np.arange(40)},
        {"client": np.arange(40).astype(str)},
        dict(examples.columns),
    ]
    digests = [dataclasses.replace(examples, columns=columns).validate().digest for columns in sets]
    assert len(set(digests)) == len(sets)
    turned = dict(reversed(examples.columns.items()))
    assert dataclasses.replace(examples, columns=turned).digest == examples.digest


def test_the_same_row_at_another_client_is_another_example(make_examples):
    x = np.ones((8, 2), np.float32)
    y = np.arange(8) % 2
    client = np.repeat([0, 1, 2, 3], 2)
    data = make_examples(x, y=y, num_classes=2, example_id=None, columns={"client": client})
    order = np.random.default_rng(0).permutation(8)
    moved = make_examples(x, y=y[order], num_classes=2, example_id=None, columns={"client": client[order]})
    assert dict(zip(moved.example_id.tolist(), client[order].tolist(), strict=True)) == dict(
        zip(data.example_id.tolist(), client.tolist(), strict=True)
    )


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"client": np.zeros(39, np.int64)}, r"'client' has shape \(39,\)"),
        ({"client": np.zeros((40, 1), np.int64)}, r"'client' has shape \(40, 1\)"),
        ({"client": [0] * 40}, r"'client' has shape"),
        ({"client": np.zeros(40)}, "'client' has dtype float64; int64 and text"),
        ({"client": np.zeros(40, np.int32)}, "dtype int32"),
        ({"client": np.array([None] * 40)}, "dtype object"),
        ({"owner": np.zeros(40, np.int64)}, "'owner' cannot be used"),
        ({"": np.zeros(40, np.int64)}, "'' cannot be used"),
        ({"a" * 65: np.zeros(40, np.int64)}, "cannot be used"),
        ({"1st": np.zeros(40, np.int64)}, "'1st' cannot be used"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(examples, columns, says):
    with pytest.raises(DataError, match=says):
        dataclasses.replace(examples, columns=columns).validate()


def test_values_become_whole_numbers_or_text_and_bad_rows_are_named():
    origin = np.array([f"t.csv row {i}" for i in range(1, 4)])
    for given_, want in (
        (np.array(["a", "b", "c"]), ["a", "b", "c"]),
        (np.array([True, False, True]), [1, 0, 1]),
        (np.array([1.0, -2.0, 3.0]), [1, -2, 3]),
        (np.array([1, 2, 255], np.uint8), [1, 2, 255]),
    ):
        got = as_column(given_, origin, name="step")
        assert got.tolist() == want and (got.dtype == np.int64 or got.dtype.kind == "U")
    for bad, says in (
        (np.array([1.0, np.nan, np.inf]), r"nan in 2 rows.*rows 2, 3"),
        (np.array([1.0, 2.5, 3.0]), r"2\.5 in 1 rows.*row 2"),
        (np.array(["a", "", "c"]), r"missing in 1 rows.*row 2"),
        (np.array([2**63, 0, 0], np.uint64), "more than"),
        (np.zeros(3, complex), "complex128"),
        (np.zeros((3, 2)), r"\(3, 2\)"),
    ):
        with pytest.raises(DataError, match=says):
            as_column(bad, origin, name="step")


def test_one_name_for_two_columns_is_refused():
    assert BesideConfig(domain="hospital", keep=("ward",)).beside() == {"domain": "hospital", "ward": "ward"}
    for keep, config in ((("domain",), {"domain": "hospital"}), (("ward", "ward"), {})):
        with pytest.raises(ConfigError, match="kept twice"):
            BesideConfig(keep=keep, **config).beside()
