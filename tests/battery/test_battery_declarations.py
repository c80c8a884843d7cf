"""What every registered method declares, and that its configuration keeps its own ranges. Nothing is run here."""

from __future__ import annotations

import dataclasses
import inspect
import re
from importlib import metadata
from typing import Any

import pytest
from battery_world import KINDS, METHODS, World, of

from contracts.errors import ConfigError, NameTaken, UnknownName
from contracts.identity import check_name
from contracts.methods import NEEDS
from contracts.params import Config, allowed_range
from contracts.registry import Registry

EVERYTHING = of(*KINDS)
# What a method of each kind is called with besides its needs.
CALLED_WITH = {
    "score": {"config", "seed"},
    "analysis": {"config", "seed", "progress"},
    "curator": {"config", "seed"},
    "attack": {"config", "seed"},
    "source": {"config", "seed"},
    "recipe": {"config", "seed", "checkpoints", "progress"},
    "unlearner": {"retain", "forget", "config", "seed", "progress"},
}
PUBLISHED = ("score", "analysis", "unlearner", "attack", "recipe")


def test_something_of_every_kind_is_registered():
    assert {kind for kind, _ in METHODS} == set(KINDS) == set(CALLED_WITH)


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_the_declaration_is_complete(kind, name):
    spec = KINDS[kind].get(name).spec
    assert check_name(spec.name) == name
    assert spec.doc and spec.doc[0].isupper() and spec.doc.endswith(".")
    assert spec.source or kind not in PUBLISHED, "name the paper, or 'definition'"
    assert spec.version >= 1 and set(spec.needs) <= set(NEEDS)
    assert issubclass(spec.config, Config) and dataclasses.is_dataclass(spec.config)
    for field in dataclasses.fields(spec.config):
        assert field.metadata.get("doc"), f"{spec.config.__name__}.{field.name} has no documentation"


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_the_function_takes_what_is_handed_to_it_and_no_more(kind, name):
    method = KINDS[kind].get(name)
    parameters = inspect.signature(method.function).parameters.values()
    keyword = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    given = CALLED_WITH[kind] | set(method.spec.needs)
    assert given <= set(keyword), f"does not take {given - set(keyword)}"
    needed = {n for n, p in keyword.items() if p.default is p.empty}
    assert needed <= given, f"needs {needed - given}, which nobody gives to it"
    assert len(parameters) - len(keyword) <= 2
    assert method.function.__doc__ and inspect.getmodule(method.function).__doc__


@pytest.mark.parametrize(("kind", "name"), of("score"))
def test_the_columns_say_what_they_hold(kind, name):
    spec = KINDS[kind].get(name).spec
    assert spec.higher_means
    value = next(c for c in spec.columns if c.name == spec.value)
    assert value.dtype == "float64" and value.direction and not (value.low is None and value.high is None)
    for column in spec.columns:
        assert column.doc and column.name not in ("example_id", *("subject", "run_id", "config_digest"))
    if spec.stderr:
        assert next(c for c in spec.columns if c.name == spec.stderr).low == 0
    assert spec.table.key == ("example_id",) and spec.table.full_name == f"scores.{name}"


@pytest.mark.parametrize(("kind", "name"), of("curator"))
def test_roles_are_declared(kind, name):
    roles = KINDS[kind].get(name).spec.roles
    assert len(roles) >= 2 and len(set(roles)) == len(roles)


def outside(field: dataclasses.Field[Any]) -> list[Any]:
    """Values just past each end of a field's range."""
    meta, values = field.metadata, []
    for key, step in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
        if meta.get(key) is not None:
            values.append(meta[key] + step)
    if meta.get("choices") is not None:
        values.append("none of these")
    return values


RANGED = [
    pytest.param(kind, name, field.name, value, id=f"{kind}-{name}-{field.name}-{value}")
    for kind, name in METHODS
    for field in dataclasses.fields(KINDS[kind].get(name).spec.config)
    for value in outside(field)
]


@pytest.mark.parametrize(("kind", "name", "field", "value"), RANGED)
def test_a_configuration_out_of_range_is_refused_naming_the_range(world: World, kind, name, field, value):
    method = KINDS[kind].get(name)
    declared = next(f for f in dataclasses.fields(method.spec.config) if f.name == field)
    if "tuple" in str(declared.type):
        value = [value, value]
    elif "float" in str(declared.type):
        value = float(value)
    with pytest.raises(ConfigError) as error:
        world.config(kind, method, **{field: value})
    assert field in str(error.value) and allowed_range(declared) in str(error.value)


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_unknown_and_ill_typed_fields_are_refused(world: World, kind, name):
    method = KINDS[kind].get(name)
    with pytest.raises(ConfigError, match="has no field no_such_field"):
        world.config(kind, method, no_such_field=1)
    for field in dataclasses.fields(method.spec.config):
        with pytest.raises(ConfigError, match=re.escape(field.name)):
            world.config(kind, method, **{field.name: object()})


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_the_digest_of_a_configuration_is_stable(world: World, kind, name):
    method = KINDS[kind].get(name)
    assert world.config(kind, method).digest() == world.config(kind, method).digest()


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_names_list_the_known(kind):
    registry = KINDS[kind]
    with pytest.raises(UnknownName) as error:
        registry.get("no-such-method")
    assert all(name in str(error.value) for name in registry.names())


@pytest.mark.parametrize("kind", KINDS)
def test_a_taken_name_raises(kind):
    registry = KINDS[kind]
    method = next(iter(registry))
    with pytest.raises(NameTaken, match=method.spec.name):
        registry(method.spec)(lambda: None)
    assert registry.get(method.spec.name) is method


@pytest.mark.parametrize("kind", KINDS)
def test_a_plugin_comes_in_through_an_entry_point(kind, monkeypatch):
    """A registry like the real one, whose group has one entry point, as an installed package would give it."""
    real = KINDS[kind]
    fresh: Registry[Any] = Registry(real.kind, group=real.group, homes=real.homes)
    spec = dataclasses.replace(next(iter(real)).spec, name="from-elsewhere")

    class Point:
        def load(self) -> None:
            fresh(spec)(plugged)

    def plugged() -> str:
        return "called"

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Point()] if group == real.group else [])
    assert fresh.get("from-elsewhere").spec is spec
    assert fresh.get("from-elsewhere")() == "called"
    assert "from-elsewhere" not in real
