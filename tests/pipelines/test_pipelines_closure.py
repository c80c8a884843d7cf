"""A forget request and the near duplicates of what it names."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from assets.requests import _closed
from contracts.errors import DataError, NotReady
from contracts.subject import Subject

MEMBERS = pl.DataFrame(
    {"example_id": [1, 2, 3, 4], "role": ["forget", "retain", "retain", "retain"], "reason": ["asked", "", "", ""]}
)


def run_of(small: Subject, groups: list[int] | NotReady, *, included: bool) -> Any:
    def stored(name: str) -> pl.DataFrame:
        assert name == "near_duplicates.group_id"
        if isinstance(groups, NotReady):
            raise groups
        return pl.DataFrame({"example_id": [1, 2, 3, 4], "value": groups})

    assert small.unlearning is not None
    plan = dataclasses.replace(small.unlearning, closure=included)
    return SimpleNamespace(subject=dataclasses.replace(small, unlearning=plan), stored_score=stored)


def test_twins_are_counted_and_join_when_the_plan_says_so(small: Subject) -> None:
    same, note = _closed(run_of(small, [1, 1, 3, 4], included=False), MEMBERS)
    assert same.equals(MEMBERS) and note == "; 1 near duplicates of them stay"
    closed, note = _closed(run_of(small, [1, 1, 3, 4], included=True), MEMBERS)
    assert closed.filter(pl.col("role") == "forget")["example_id"].to_list() == [1, 2]
    assert closed["reason"][1] == "near duplicate of 1" and "1 of them near duplicates" in note


def test_a_missing_score_holds_up_a_request_only_where_the_plan_needs_it(small: Subject) -> None:
    missing = NotReady("score near_duplicates of small has not been computed")
    same, note = _closed(run_of(small, missing, included=False), MEMBERS)
    assert same.equals(MEMBERS) and "were not counted" in note
    with pytest.raises(NotReady):
        _closed(run_of(small, missing, included=True), MEMBERS)


def test_a_closure_that_leaves_nothing_is_refused(small: Subject) -> None:
    with pytest.raises(DataError, match="nothing would be retained"):
        _closed(run_of(small, [1, 1, 1, 1], included=True), MEMBERS)
