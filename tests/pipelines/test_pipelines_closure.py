"""A forget request and the near duplicates of what it names."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from assets import curation, needs
from assets.requests import _closed
from assets.stage import APPLIES
from contracts.errors import DataError, NotReady, NotTrusted
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


REFUSED = "score near_duplicates of small did not meet its gates: min class_margin is 0.000, below 0.5"


def test_groups_that_were_refused_close_nothing(small: Subject) -> None:
    same, note = _closed(run_of(small, NotTrusted(REFUSED), included=False), MEMBERS)
    assert same.equals(MEMBERS) and "class_margin is 0.000" in note
    with pytest.raises(NotTrusted, match="class_margin"):
        _closed(run_of(small, NotTrusted(REFUSED), included=True), MEMBERS)


def test_a_split_of_refused_groups_is_not_made_and_the_audit_goes_on(
    small: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> pl.DataFrame:
        raise NotTrusted(REFUSED)

    monkeypatch.setattr(curation, "choose", refused)
    run = SimpleNamespace(subject=small)
    output = curation.curate(run, "closed", "closure", None, {})  # type: ignore[arg-type]
    assert [frame.height for _, frame, _ in output.tables] == [0, 0] and not output.artifacts
    assert output.warnings == {APPLIES: f"split closed was not made: {REFUSED}"}
    with pytest.raises(NotTrusted):  # nothing to remove, nothing to audit
        curation.curate(run, "random", "closure", None, {})  # type: ignore[arg-type]


def test_who_reads_a_split_that_was_not_made_is_told_why() -> None:
    stage = SimpleNamespace(path=("curation", "closed"))
    run = SimpleNamespace(stage=SimpleNamespace(deps=(stage,)), why_not=lambda _: REFUSED)
    with pytest.raises(NotTrusted, match="class_margin"):
        needs._split(run, "closed")  # type: ignore[arg-type]
