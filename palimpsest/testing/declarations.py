"""What a method declares, and that its configuration keeps its own ranges. Nothing is run here."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from contracts.errors import ConfigError
from contracts.identity import check_name
from contracts.methods import NEEDS
from contracts.params import Config, allowed_range
from contracts.registry import Method
from palimpsest.testing.conform import claim
from palimpsest.testing.kinds import kind_of
from palimpsest.testing.world import World

# What a method of each kind is called with besides its needs.
CALLED_WITH = {
    "score": {"config", "seed"},
    "analysis": {"config", "seed", "progress"},
    "curator": {"config", "seed"},
    "maker": {"config", "seed", "progress"},
    "attack": {"config", "seed"},
    "source": {"config", "seed"},
    "recipe": {"config", "seed"},
    "unlearner": {"retain", "forget", "config", "seed", "progress"},
}
_OPTIONAL = {"recipe": {"checkpoints", "progress", "device", "stop_after", "observe"}}  # given to those that take them
_PUBLISHED = {"score", "analysis", "maker", "unlearner", "attack", "recipe"}


def complete(world: World, method: Method[Any]) -> None:
    """Name, one sentence, source and documented fields."""
    spec, kind = method.spec, kind_of(method)
    claim(check_name(spec.name) == spec.name, f"{spec.name!r} is no name")
    claim(
        spec.doc and spec.doc[0].isupper() and spec.doc.endswith("."),
        f"doc is a sentence with a capital and a full stop, not {spec.doc!r}",
    )
    claim(spec.source or kind not in _PUBLISHED, "source names the paper, or says 'definition'")
    claim(spec.version >= 1 and set(spec.needs) <= set(NEEDS), "version is 1 or more, and needs are words of NEEDS")
    claim(issubclass(spec.config, Config) and dataclasses.is_dataclass(spec.config), "config is a dataclass of Config")
    for field in dataclasses.fields(spec.config):
        claim(field.metadata.get("doc"), f"{spec.config.__name__}.{field.name} has no doc")


def signature(world: World, method: Method[Any]) -> None:
    """The function takes what it is given, and needs no more."""
    kind = kind_of(method)
    parameters = inspect.signature(method.function).parameters.values()
    keyword = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    given = CALLED_WITH[kind] | set(method.spec.needs) | ({"mask"} if getattr(method.spec, "masked", False) else set())
    claim(given <= set(keyword), f"the function does not take {', '.join(sorted(given - set(keyword)))} by keyword")
    needed = {n for n, p in keyword.items() if p.default is p.empty} - _OPTIONAL.get(kind, set())
    claim(needed <= given, f"the function needs {', '.join(sorted(needed - given))}, which nobody gives to it")
    claim(len(parameters) - len(keyword) <= 2, "more than two arguments are not keyword-only")
    claim(method.function.__doc__, "the function has no docstring")
    module = inspect.getmodule(method.function)
    claim(module is not None and module.__doc__, "the file has no docstring: paper, equation, shapes")


def columns(world: World, method: Method[Any]) -> None:
    """A score says what its columns hold; a curator has at least two roles; a maker's tables are of made examples."""
    spec, kind = method.spec, kind_of(method)
    if kind == "curator":
        claim(len(spec.roles) >= 2 and len(set(spec.roles)) == len(spec.roles), f"roles {spec.roles}: two, distinct")
    if kind == "maker":
        whose = ("dataset_id",)
        claim(
            all(t.key[:1] == whose == t.partition and t.schema == "curation" for t in spec.tables),
            "a table is no contracts.methods.made_table",
        )
    if kind != "score":
        return
    claim(spec.higher_means, "higher_means says what a high value is")
    value = next(c for c in spec.columns if c.name == spec.value)
    claim(value.dtype == "float64" and value.direction, f"{value.name}, the value, is float64 and has a direction")
    claim(value.low is not None or value.high is not None, f"{value.name}, the value, has no bound on either side")
    for column in spec.columns:
        claim(column.doc, f"column {column.name} has no doc")
        claim(
            column.name not in ("example_id", "subject", "run_id", "config_digest"),
            f"column {column.name} is every table's own",
        )
    if spec.stderr:
        error = next(c for c in spec.columns if c.name == spec.stderr)
        claim(error.low == 0, f"{error.name}, a standard error, has low = 0")
    claim(spec.table.key == ("example_id",), "the key of a score's table is example_id")


def ranges(world: World, method: Method[Any]) -> None:
    """A value past the end of a field's range is refused naming field and range."""
    for field in dataclasses.fields(method.spec.config):
        for value in outside(field):
            given = [value, value] if "tuple" in str(field.type) else value
            given = float(given) if "float" in str(field.type) and not isinstance(given, list) else given
            told = f"{method.spec.config.__name__}.{field.name} = {given!r}"
            try:
                world.config(method, **{field.name: given})
            except ConfigError as error:
                claim(field.name in str(error), f"{told}: the refusal does not name the field: {error}")
                claim(allowed_range(field) in str(error), f"{told}: the refusal does not say what is allowed: {error}")
            else:
                raise AssertionError(f"{told} is out of its range and was taken")


def outside(field: dataclasses.Field[Any]) -> list[Any]:
    """Values just past each end of a field's range."""
    meta, values = field.metadata, []
    for key, step in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
        if meta.get(key) is not None:
            values.append(meta[key] + step)
    if meta.get("choices") is not None:
        values.append("none of these")
    return values


def fields(world: World, method: Method[Any]) -> None:
    """Unknown and ill-typed fields are refused, and the digest of a configuration is stable."""
    wrong: list[tuple[dict[str, Any], str]] = [({"no_such_field": 1}, "has no field no_such_field")]
    wrong += [({f.name: object()}, f.name) for f in dataclasses.fields(method.spec.config)]
    for given, word in wrong:
        try:
            world.config(method, **given)
        except ConfigError as error:
            claim(word in str(error), f"the refusal of {given} does not say {word!r}: {error}")
        else:
            raise AssertionError(f"the configuration took {given}")
    claim(world.config(method).digest() == world.config(method).digest(), "two equal configurations, two digests")
