"""Plans of earlier versions are read, those of later ones refused with what reads them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import migrations
from contracts.errors import ConfigError
from contracts.migrations import CURRENT, FIELD, MIGRATIONS, migrated, reader_of
from contracts.subject import Subject

PLAN = {"subject": "mine", "source": "sklearn", "model": "mlp", "recipe": "supervised", "seed": 3}


def test_there_is_a_step_from_every_version_and_the_release_reads_the_current_one():
    assert sorted(MIGRATIONS) == list(range(CURRENT))
    version = tomllib.loads((Path(migrations.__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
    assert [int(n) for n in version.split(".")[:2]] >= [int(n) for n in reader_of(CURRENT).split(".")]


@pytest.mark.promise("G5")
def test_a_plan_without_a_version_is_of_version_0_and_means_the_same_in_version_1():
    assert migrated(PLAN) == {FIELD: 1, **PLAN} == migrated({FIELD: 0, **PLAN}) == migrated({FIELD: 1, **PLAN})
    assert Subject.from_mapping(PLAN) == Subject.from_mapping({FIELD: 1, **PLAN})
    assert Subject.from_mapping(PLAN).schema_version == 1 and FIELD not in PLAN


@given(st.dictionaries(st.text(min_size=1).filter(lambda name: name != FIELD), st.integers()))
def test_migrating_twice_is_migrating_once(plan):
    assert migrated(migrated(plan)) == migrated(plan)


def test_the_steps_are_taken_in_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(migrations, "CURRENT", 3)
    monkeypatch.setitem(
        MIGRATIONS, 1, lambda plan: {**{k: v for k, v in plan.items() if k != "old"}, "new": plan["old"]}
    )
    monkeypatch.setitem(MIGRATIONS, 2, lambda plan: {**plan, "new": plan["new"] + 1})
    assert migrated({"old": 1, "a": 0}) == {FIELD: 3, "a": 0, "new": 2}
    assert migrated({FIELD: 2, "new": 5}) == {FIELD: 3, "new": 6}
    with pytest.raises(ConfigError, match=r"f\.yaml: the plan of schema_version 1 cannot be brought to 2: 'old'"):
        migrated({FIELD: 1}, where="f.yaml")


def test_a_later_version_is_refused_with_the_release_that_reads_it():
    with pytest.raises(
        ConfigError, match=rf"schema_version {CURRENT + 1}, .*reads up to {CURRENT}; palimpsest 0\.{CURRENT + 1} or"
    ):
        Subject.from_mapping({FIELD: CURRENT + 1, **PLAN})


@pytest.mark.parametrize("version", [-1, 1.0, "1", True, None])
def test_a_version_is_a_whole_number(version):
    with pytest.raises(ConfigError, match="not a whole number"):
        migrated({FIELD: version, **PLAN})


@pytest.mark.parametrize("entry", ["qualification", {"name": "qualification", "config": {"trials": 3}}])
def test_a_method_that_has_gone_is_refused_with_what_to_write_instead(entry):
    with pytest.raises(
        ConfigError, match=r"f\.yaml: analyses\[1\]: qualification is gone: leaderboard .*seeds.*trials"
    ):
        migrated({**PLAN, "analyses": ["data_diet", entry]}, where="f.yaml")
    assert migrated({**PLAN, "analyses": ["leaderboard"]})["analyses"] == ["leaderboard"]
