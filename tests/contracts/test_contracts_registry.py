"""The registry: decorator, look-up, plugins by entry point, and what happens when one of them fails."""

from __future__ import annotations

import sys
import types
from importlib import metadata

import pytest

from contracts.errors import ConfigError, IllegalName, NameTaken, UnknownName
from contracts.methods import NEEDS, REGISTRIES, AttackSpec, Gate, MethodSpec, ScoreSpec
from contracts.registry import Registry
from contracts.tables import Column

COLUMN = Column(name="v", dtype="float64", doc="d")


@pytest.fixture
def fresh(monkeypatch) -> Registry[MethodSpec]:
    """A registry of its own, at home in an empty module."""
    monkeypatch.setitem(sys.modules, "empty_home", types.ModuleType("empty_home"))
    return Registry("thing", group="palimpsest.things", homes=("empty_home",))


def spec(name: str) -> MethodSpec:
    return MethodSpec(name=name, doc="d")


def test_the_decorator_returns_the_function_and_the_method_calls_it(fresh):
    @fresh(spec("one"))
    def one(a, *, b):
        return a + b

    assert one(1, b=2) == 3 and fresh.get("one")(1, b=2) == 3
    assert fresh.get("one").function is one and fresh.names() == ("one",) and "one" in fresh
    assert [m.spec.name for m in fresh] == ["one"]


def test_a_taken_name_raises_and_names_who_has_it(fresh):
    fresh(spec("one"))(len)
    with pytest.raises(NameTaken, match=r"'one' is already registered by builtins\.len"):
        fresh(spec("one"))(max)
    assert fresh.get("one").function is len


def test_an_unknown_name_lists_the_known(fresh):
    fresh(spec("b"))(len)
    fresh(spec("a"))(max)
    with pytest.raises(UnknownName, match="unknown thing 'c'; known: a, b"):
        fresh.get("c")


def test_an_illegal_name_is_refused(fresh):
    with pytest.raises(IllegalName):
        fresh(spec("Not legal"))


class Point:
    """An entry point whose loading runs ``body``, as importing a plugin's module would."""

    def __init__(self, body) -> None:
        self.load = body


def plug(monkeypatch, body, group: str) -> None:
    real = metadata.entry_points
    monkeypatch.setattr(metadata, "entry_points", lambda **k: [Point(body)] if k == {"group": group} else real(**k))


def test_a_plugin_is_loaded_on_the_first_look_up_once(fresh, monkeypatch):
    loads = []

    def body():
        loads.append(1)
        fresh(spec("plugged"))(len)

    plug(monkeypatch, body, "palimpsest.things")
    assert not loads
    assert fresh.get("plugged").function is len and "plugged" in fresh
    assert loads == [1]


def test_a_plugin_that_takes_a_name_raises(fresh, monkeypatch):
    fresh(spec("one"))(len)
    plug(monkeypatch, lambda: fresh(spec("one"))(max), "palimpsest.things")
    with pytest.raises(NameTaken):
        fresh.get("one")


def test_a_broken_home_says_so_each_time(monkeypatch):
    lost = Registry("thing", group="palimpsest.things", homes=("a_module_that_is_not_there",))
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            lost.names()


def test_the_registries_have_their_own_groups_and_homes():
    kinds = ["task", "source", "recipe", "score", "analysis", "curator", "maker", "unlearner", "attack"]
    assert [r.kind for r in REGISTRIES] == kinds and len({r.group for r in REGISTRIES}) == len(kinds)


def test_needs_are_from_the_list():
    with pytest.raises(ConfigError, match="needs crystal_ball; known needs: build, checkpoints, clock"):
        MethodSpec(name="m", doc="d", needs=("crystal_ball",))
    assert AttackSpec(name="m", doc="d", needs=tuple(NEEDS)).references == 0


@pytest.mark.parametrize("more", [{"value": "w"}, {"stderr": "w"}, {"gates": (Gate(column="w", at_least=0, why="d"),)}])
def test_a_score_speaks_of_its_own_columns(more):
    with pytest.raises(ConfigError, match="w is not among its columns"):
        ScoreSpec(**{"name": "m", "doc": "d", "columns": (COLUMN,), "value": "v", "higher_means": "h"} | more)


def test_a_scores_table_follows_from_its_declaration():
    table = ScoreSpec(name="m", doc="d", columns=(COLUMN,), value="v", higher_means="h", version=3).table
    assert (table.full_name, table.key, table.version) == ("scores.m", ("example_id",), 3)
    assert [c.name for c in table.columns] == ["example_id", "v"]
