"""Configurations: what is let in, what is refused and how it is named, and that digests are of values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigError
from contracts.params import REFERENCES, Config, Ref, Reference, allowed_range, param, references


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner(Config):
    depth: int = param(1, ge=1, le=3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer(Config):
    name: str = param(doc="required")
    lr: float = param(0.5, gt=0, le=1, unit="1/s")
    kind: str = param("a", choices=("a", "b"))
    mode: Literal["x", "y"] = param("x")
    widths: tuple[int, ...] = param((4,), ge=1, le=8)
    pair: tuple[int, float] = param((1, 2.0))
    inner: Inner = param(Inner())
    limit: int | None = param(None, ge=0)
    extra: dict[str, Any] = param({})
    flag: bool = param(False)

    def check(self) -> None:
        if self.flag and self.limit is None:
            raise ConfigError("Outer.flag needs Outer.limit")


def test_plain_data_becomes_a_configuration():
    built = Outer.from_mapping(
        {"name": "n", "lr": 1, "widths": [2, 3], "pair": [1, 2], "inner": {"depth": 2}, "limit": 0, "extra": {"k": [1]}}
    )
    assert built.lr == 1.0 and isinstance(built.lr, float)
    assert built.widths == (2, 3) and built.pair == (1, 2.0)
    assert built.inner == Inner(depth=2)
    assert built == Outer.from_mapping({**dataclasses.asdict(built), "inner": built.inner})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "needs name"),
        ({"name": "n", "colour": 1}, "no field colour; it has: name, lr"),
        ({"name": 3}, "not a str"),
        ({"name": "n", "lr": 0}, "> 0 and <= 1 1/s"),
        ({"name": "n", "lr": 1.01}, "> 0 and <= 1"),
        ({"name": "n", "lr": float("nan")}, "not finite"),
        ({"name": "n", "lr": float("inf")}, "not finite"),
        ({"name": "n", "lr": True}, "not a number"),
        ({"name": "n", "lr": "0.5"}, "not a number"),
        ({"name": "n", "kind": "c"}, "one of 'a', 'b'"),
        ({"name": "n", "mode": "z"}, "'x', 'y'"),
        ({"name": "n", "widths": [1, 9]}, ">= 1 and <= 8"),
        ({"name": "n", "widths": 3}, "not a list"),
        ({"name": "n", "widths": [1.0]}, "not a whole number"),
        ({"name": "n", "pair": [1]}, "exactly 2"),
        ({"name": "n", "inner": {"depth": 4}}, "Inner.depth = 4"),
        ({"name": "n", "inner": {"width": 4}}, "no field width"),
        ({"name": "n", "inner": 4}, "mapping"),
        ({"name": "n", "limit": -1}, ">= 0"),
        ({"name": "n", "limit": True}, "not a whole number"),
        ({"name": "n", "extra": [1]}, "not a mapping"),
        ({"name": "n", "flag": True}, "needs Outer.limit"),
        ({"name": "n", "flag": 1}, "not a bool"),
    ],
)
def test_what_is_refused_and_named(fields, says):
    with pytest.raises(ConfigError, match=says):
        Outer.from_mapping(fields)


@pytest.mark.parametrize("values", [[1], "text", 3])
def test_only_a_mapping_configures(values):
    with pytest.raises(ConfigError, match="takes a mapping"):
        Outer.from_mapping(values)


def test_a_method_without_fields():
    assert Config.from_mapping(None) == Config() == Config.from_mapping({})
    with pytest.raises(ConfigError, match=r"no field a; it has: \(none\)"):
        Config.from_mapping({"a": 1})


def test_frozen_and_defaults_are_not_shared():
    a, b = Outer(name="a"), Outer(name="b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.lr = 0.1
    a.extra["k"] = 1
    assert b.extra == {} and Outer(name="c").extra == {}


@given(lr=st.floats(0.001, 1), widths=st.lists(st.integers(1, 8), max_size=4), name=st.text(max_size=8))
def test_the_digest_is_of_the_values(lr, widths, name):
    one = Outer(name=name, lr=lr, widths=tuple(widths))
    assert one.digest() == Outer.from_mapping({"widths": list(widths), "lr": lr, "name": name}).digest()
    assert one.digest() != dataclasses.replace(one, kind="b").digest()
    assert one.digest() != dataclasses.replace(one, widths=(*widths, 1)).digest()


def test_ranges_in_words():
    words = {f.name: allowed_range(f) for f in dataclasses.fields(Outer)}
    assert words["lr"] == "> 0 and <= 1 1/s"
    assert words["kind"] == "one of 'a', 'b'"
    assert words["mode"] == "any"


@dataclass(frozen=True, kw_only=True, slots=True)
class Named(Config):
    name: str = param("", doc="as in a choice of a method")


@dataclass(frozen=True, kw_only=True, slots=True)
class Naming(Config):
    ordered_by: str = param("", ref="score")
    score: str = param("not a reference")
    removers: tuple[str, ...] = param((), ref="unlearner")
    chosen: tuple[Named, ...] = param((), ref="attack")
    inner: Named = param(Named())


def test_references_are_the_typed_fields_with_their_paths():
    config = Naming(
        ordered_by="el2n", removers=("a", "", "b"), chosen=(Named(name="loss"), Named()), inner=Named(name="x")
    )
    assert list(references(config, "here")) == [
        Reference("here.ordered_by", "score", "el2n"),
        Reference("here.removers[0]", "unlearner", "a"),
        Reference("here.removers[2]", "unlearner", "b"),
        Reference("here.chosen[0]", "attack", "loss"),
    ]
    assert list(references(Naming())) == []


def test_a_field_refers_to_something_there_is():
    with pytest.raises(ConfigError, match="cannot refer to 'scores'; it can to: score, split"):
        param("", ref="scores")
    assert {Ref(kind).kind for kind in REFERENCES} == set(REFERENCES)
