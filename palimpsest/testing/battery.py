"""The checks by the kinds of methods that they are for, and what runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from contracts.errors import PalimpsestError
from contracts.registry import Method
from palimpsest.testing import attacks, behaviour, declarations, tasks
from palimpsest.testing.kinds import kind_of, method_of
from palimpsest.testing.world import World
from palimpsest.testing.worlds import WORLDS, world_for, worlds_for

Check = Callable[[World, Method[Any]], None]
_ALL = ("score", "analysis", "curator", "maker", "attack", "source", "recipe", "unlearner")
_ON_DATA = ("score", "analysis", "curator", "maker", "unlearner", "recipe")

# check -> the kinds that it is for
CHECKS: dict[Check, tuple[str, ...]] = {
    **dict.fromkeys((declarations.complete, declarations.signature, declarations.columns), _ALL),
    **dict.fromkeys((declarations.ranges, declarations.fields), _ALL),
    behaviour.untouched: _ON_DATA,
    **dict.fromkeys((behaviour.output, behaviour.repeatable), _ALL),
    behaviour.order: ("score", "analysis", "curator", "maker", "unlearner"),
    behaviour.batch_of_one: ("score",),
    behaviour.double_precision: ("score",),
    **({behaviour.on_cuda: ("score", "analysis", "maker", "unlearner", "recipe")} if torch.cuda.is_available() else {}),
    behaviour.odd_data: _ON_DATA,
    behaviour.spoilt_target: ("score", "analysis", "maker", "unlearner", "recipe"),
    behaviour.same_id_twice: _ON_DATA,
    behaviour.broken_model: ("score", "analysis", "unlearner"),
    behaviour.other_task: _ON_DATA,
    **dict.fromkeys((attacks.any_order, attacks.own_row, attacks.references, attacks.odd_evidence), ("attack",)),
    **dict.fromkeys((tasks.readings, tasks.losses, tasks.data_side), ("task",)),
}
# What is asked for in every other world in which the method applies, too.
EVERYWHERE: tuple[Check, ...] = (behaviour.output, behaviour.order, behaviour.spoilt_target)


def checks_of(method: Method[Any]) -> list[Check]:
    """The checks for a method of its kind."""
    return [check for check, kinds in CHECKS.items() if kind_of(method) in kinds]


def name_of(check: Check) -> str:
    """A check's name, for reports: ``behaviour.order``."""
    return f"{check.__module__.rpartition('.')[2]}.{check.__name__}"


def run_check(check: Check, world: World, method: Method[Any], *, elsewhere: bool = False) -> None:
    """One check; what fails in it says which check and what it promises.

    Args:
        elsewhere: in a world where the method may say that it does not apply (``NotApplicable``), and why.

    Raises:
        AssertionError: of the check, or for an error that it did not expect.
    """
    if elsewhere and world.refusal(method):
        return
    what = f"{kind_of(method)} {method.spec.name}, {name_of(check)} on {world.examples.name}"
    try:
        check(world, method)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}\n  promised: {(check.__doc__ or '').strip()}") from error
    except PalimpsestError as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


def check_method(
    method: Method[Any] | Callable[..., Any],
    world: World | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    everywhere: bool = True,
) -> None:
    """Every check of the battery for a method of its kind; see the package.

    Args:
        method: a decorated function, a registered method, or ``contracts.registry.Method(spec, function)``.
        world: where it is run; without one, in the built-in worlds in which it applies. A task needs one.
        config: fields of its configuration: required ones, or quicker values.
        everywhere: also ask for its outputs in the other built-in worlds.

    Raises:
        AssertionError: of the first check that fails, with the method, the check, what was promised and what was found.
    """
    found = method_of(method)
    fields = {(kind_of(found), found.spec.name): dict(config or {})}

    def with_fields(one: World) -> World:
        return dataclasses.replace(one, configs={**one.configs, **fields}) if config else one

    first = with_fields(world_for(found) if world is None else world)
    for check in checks_of(found):
        run_check(check, first, found)
    if world is not None or not everywhere or kind_of(found) in ("source", "attack", "task"):
        return
    elsewhere = {name: with_fields(WORLDS[name]()) for name in worlds_for(found)[1:]}
    for name in elsewhere:
        for check in checks_of(found):
            if check in EVERYWHERE:
                run_check(check, elsewhere[name], found, elsewhere=True)
