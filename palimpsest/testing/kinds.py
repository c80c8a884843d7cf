"""What kind of method a declaration is of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contracts.methods import (
    REGISTRIES,
    AnalysisSpec,
    AttackSpec,
    CuratorSpec,
    MakerSpec,
    RecipeSpec,
    ScoreSpec,
    SourceSpec,
    TaskSpec,
    UnlearnerSpec,
)
from contracts.registry import Method, Registry

KINDS: dict[str, Registry[Any]] = {registry.kind: registry for registry in REGISTRIES}
_OF = {
    TaskSpec: "task",
    SourceSpec: "source",
    RecipeSpec: "recipe",
    ScoreSpec: "score",
    AnalysisSpec: "analysis",
    CuratorSpec: "curator",
    MakerSpec: "maker",
    UnlearnerSpec: "unlearner",
    AttackSpec: "attack",
}


def kind_of(method: Method[Any]) -> str:
    """ "score", "analysis", "curator", "maker", "unlearner", "attack", "recipe", "source" or "task".

    Raises:
        AssertionError: the declaration is none of ``contracts.methods``.
    """
    for spec, kind in _OF.items():
        if isinstance(method.spec, spec):
            return kind
    raise AssertionError(f"{type(method.spec).__name__} is no declaration of contracts.methods")


def method_of(found: Method[Any] | Callable[..., Any]) -> Method[Any]:
    """The method that is meant: itself, or the one that a function was registered as.

    Raises:
        AssertionError: a function that no declaration was put on.
    """
    if isinstance(found, Method):
        return found
    for registry in REGISTRIES:
        for method in registry.registered():
            if method.function is found:
                return method
    raise AssertionError(
        f"{getattr(found, '__qualname__', found)} is no registered method: decorate it (@score(ScoreSpec(...))), or "
        "give contracts.registry.Method(spec, function)"
    )
