"""Registries: unknown and taken names, entry points of other packages; and evidence that no attack is given."""

from __future__ import annotations

import dataclasses
from importlib import metadata
from typing import Any

import numpy as np
import pytest

from contracts.errors import DataError, NameTaken, UnknownName
from contracts.registry import Registry
from palimpsest.testing import WORLDS
from palimpsest.testing.kinds import KINDS


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
    assert [m.spec.name for m in fresh.registered() if m.function is plugged] == ["from-elsewhere"]


def test_evidence_of_nan_or_twice_the_same_is_refused():
    evidence = WORLDS["classes"]().evidence
    target = evidence.target.copy()
    target[0, 3, 1] = np.nan
    with pytest.raises(DataError) as error:
        dataclasses.replace(evidence, target=target)
    assert error.value.example_ids == (int(evidence.example_id[3]),)
    ids = evidence.example_id.copy()
    ids[1] = ids[0]
    with pytest.raises(DataError, match="distinct"):
        dataclasses.replace(evidence, example_id=ids)
