"""Closure under near-duplicate groups, against a loop, and as a curator over a stored split."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigError, DataError
from contracts.methods import curator
from curation.closure import ClosureConfig, closure


def frame(groups: dict[int, int | None]) -> pl.DataFrame:
    return pl.DataFrame(
        {"example_id": list(groups), "group_id": list(groups.values())},
        schema={"example_id": pl.Int64, "group_id": pl.Int64},
    )


@given(st.dictionaries(st.integers(0, 50), st.one_of(st.none(), st.integers(0, 6)), max_size=30), st.data())
def test_against_a_loop(groups, data) -> None:
    ids = data.draw(st.lists(st.sampled_from(sorted(groups)), unique=True)) if groups else []
    expected = {}
    for i in sorted(groups):
        twins = sorted(j for j in ids if groups[i] is not None and groups[j] == groups[i])
        if i in ids:
            expected[i] = ("requested", None)
        elif twins:
            expected[i] = (f"near duplicate of {twins[0]}", twins[0])
    found = closure(ids, frame(groups))
    assert {row[0]: row[1:] for row in found.iter_rows()} == expected
    assert found["example_id"].to_list() == sorted(expected)
    assert found.schema == {"example_id": pl.Int64, "reason": pl.String, "follows": pl.Int64}
    again = closure(found["example_id"].to_numpy(), frame(groups))
    assert again["example_id"].equals(found["example_id"]), "the closure of a closure is itself"


def test_refusals() -> None:
    groups = frame({1: 1, 2: 1, 3: 3})
    for ids, named in (([1, 9, 8], (8, 9)), ([2, 2, 1], (2,))):
        with pytest.raises(DataError) as error:
            closure(ids, groups)
        assert error.value.example_ids == named
    with pytest.raises(DataError, match="groups name examples twice"):
        closure([1], pl.concat([groups, groups.head(1)]))


@pytest.fixture
def stored(data):
    """(train ids, splits, scores): a split that forgets every tenth example; every sixth pair of neighbours is a
    group."""
    train = np.sort(data.example_id[data.split == "train"])
    role = np.where(np.arange(len(train)) % 10 == 0, "forget", "retain")
    group = np.where(np.arange(len(train)) % 6 == 1, np.roll(train, 1), train)
    asked = []

    def splits(name: str) -> pl.DataFrame:
        asked.append(name)
        return pl.DataFrame({"example_id": train, "role": role})

    def scores(name: str) -> pl.DataFrame:
        asked.append(name)
        return pl.DataFrame({"example_id": train, "value": group})

    return train, role, group, splits, scores, asked


def run(data, splits, scores, **config) -> pl.DataFrame:
    return curator.get("closure")(
        data, config=ClosureConfig(split="random", **config), seed=0, splits=splits, scores=scores
    )


def test_the_curator_closes_a_split(data, stored) -> None:
    train, role, group, splits, scores, asked = stored
    found = run(data, splits, scores)
    assert asked == ["random", "near_duplicates.group_id"]
    assert found["example_id"].to_list() == train.tolist()
    forget = [
        bool(role[i] == "forget" or any(role[j] == "forget" and group[j] == group[i] for j in range(len(train))))
        for i in range(len(train))
    ]
    assert (found["role"] == "forget").to_list() == forget and sum(forget) > (role == "forget").sum()
    reasons = dict(found.select("example_id", "reason").iter_rows())
    for i, example in enumerate(train.tolist()):
        if role[i] == "forget":
            assert reasons[example] == "forgotten by split 'random'"
        elif forget[i]:
            assert reasons[example] == f"near duplicate of {train[i - 1]}, which split 'random' forgets"
        else:
            assert reasons[example] == "not selected"


def test_stale_groups_and_splits_are_refused(data, stored) -> None:
    train, _, _, splits, scores, _ = stored
    with pytest.raises(DataError, match="score 'other' is about examples") as error:
        run(
            data, splits, lambda name: scores(name).with_columns(example_id=pl.col("example_id") + 10**6), score="other"
        )
    assert len(error.value.example_ids) == len(train)
    with pytest.raises(DataError, match="split 'random' is about examples"):
        run(data, lambda name: splits(name).with_columns(example_id=pl.col("example_id") + 10**6), scores)
    with pytest.raises(DataError, match="not in the near-duplicate groups") as error:
        run(data, splits, lambda name: scores(name).tail(-1))
    assert error.value.example_ids == (train[0],)
    with pytest.raises(DataError, match="all"):
        run(data, splits, lambda name: scores(name).with_columns(value=pl.lit(1)))
    with pytest.raises(ConfigError, match="split"):
        ClosureConfig.from_mapping({})


def test_an_empty_split_needs_to_be_meant(data, stored) -> None:
    *_, splits, scores, _ = stored
    empty = lambda name: splits(name).with_columns(role=pl.lit("retain"))  # noqa: E731
    with pytest.raises(DataError, match="allow_empty"):
        run(data, empty, scores)
    assert set(run(data, empty, scores, allow_empty=True)["role"]) == {"retain"}
