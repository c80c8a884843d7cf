"""Every name that a plan gives, and that the configurations of its methods give, stands for something: else the plan is
refused as it loads, naming the field, before any work starts.

    a score, split, data set or analysis   one that the plan lists, and lists before what reads it
    an unlearner, attack, ...              one that is registered
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from contracts.errors import ConfigError, UnknownName
from contracts.methods import (
    REGISTRIES,
    MethodSpec,
    analysis,
    attack,
    curator,
    maker,
    recipe,
    score,
    source,
    unlearner,
)
from contracts.params import REFERENCES, Config, references
from contracts.subject import Choice, Subject

LISTED = ("score", "split", "dataset", "analysis")  # what a plan lists; the other kinds are registered
_REGISTRIES = {registry.kind: registry for registry in REGISTRIES}


class Listed(NamedTuple):
    """A method of the plan: where it stands in it, its declaration and its configuration."""

    where: str
    kind: str
    name: str
    spec: MethodSpec
    config: Config


def methods(subject: Subject) -> Iterator[Listed]:
    """Every method that a plan names, in the order in which they are made, each with its own configuration.

    Raises:
        UnknownName: it is not registered.
        ConfigError: its configuration is outside its range.
    """
    yield _listed("source", "source", source, subject.source)
    if subject.recipe.name:
        yield _listed("recipe", "recipe", recipe, subject.recipe)
    for where, kind, registry, choices in (
        ("scores", "score", score, subject.scores),
        ("splits", "split", curator, [Choice(name=s.method, config=s.config) for s in subject.splits]),
        ("datasets", "dataset", maker, [Choice(name=d.method, config=d.config) for d in subject.datasets]),
        ("analyses", "analysis", analysis, subject.analyses),
        ("unlearning.methods", "unlearner", unlearner, subject.unlearning.methods if subject.unlearning else ()),
        ("attacks", "attack", attack, subject.attacks),
    ):
        for i, choice in enumerate(choices):
            found = _listed(f"{where}[{i}]", kind, registry, choice)
            named = {"split": subject.splits, "dataset": subject.datasets}.get(kind)
            yield found._replace(name=named[i].name) if named else found


def check_references(subject: Subject) -> None:
    """Nothing, when every name stands for something.

    Raises:
        UnknownName: one does not; names the field by its path, and what is known.
        ConfigError: a method's configuration is outside its range.
    """
    splits = [s.name for s in subject.splits]
    _check(subject, "", {"score": [c.name for c in subject.scores], "split": splits, "dataset": [], "analysis": []})
    before: dict[str, list[str]] = {kind: [] for kind in LISTED}
    for method in methods(subject):
        _check(method.config, f"{method.where}.config", before)
        for name in getattr(method.spec, "reads", ()):
            _refuse_unknown(f"{method.where} reads", "analysis", name, before["analysis"])
        if method.kind in before:
            before[method.kind].append(method.name)


def _listed(where: str, kind: str, registry: Any, choice: Choice) -> Listed:
    if choice.name not in registry:
        raise UnknownName(registry.kind, choice.name, registry.names(), where=where)
    spec = registry.get(choice.name).spec
    try:
        return Listed(where, kind, choice.name, spec, spec.config.from_mapping(choice.config))
    except ConfigError as error:
        raise ConfigError(f"{where}.config: {error}") from error


def _check(config: Config, path: str, listed: dict[str, list[str]]) -> None:
    for found in references(config, path):
        known: Sequence[str] = listed[found.kind] if found.kind in listed else _REGISTRIES[found.kind].names()
        _refuse_unknown(found.path, found.kind, found.name, known)


def _refuse_unknown(where: str, kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        what = f"{kind} (it has to be {REFERENCES[kind]}, listed before)" if kind in LISTED else kind
        raise UnknownName(what, name, known, where=where)
