"""Every method of the project passes the battery that it offers to others; tasks too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from battery_methods import METHODS, cases, configured, method_named

from palimpsest.testing import WORLDS, World, check_method, checks_of, run_check, worlds_for
from palimpsest.testing.battery import CHECKS, Check
from palimpsest.testing.kinds import KINDS


@pytest.mark.parametrize(("world", "kind", "name", "check", "elsewhere"), cases())
@pytest.mark.promise("C2", "C3", "C5", "C8", "C9")
def test_it_keeps_its_promises(
    world_of: Callable[[str, str, str], World], world: str, kind: str, name: str, check: Check, elsewhere: bool
) -> None:
    run_check(check, world_of(world, kind, name), method_named(kind, name), elsewhere=elsewhere)


@pytest.mark.parametrize("name", WORLDS)
def test_the_task_of_each_world_keeps_its_promises(name: str) -> None:
    world = configured(name)
    check_method(KINDS["task"].get(world.examples.task.name), world)


def test_something_of_every_kind_is_asked_something() -> None:
    asked = {kind for kinds in CHECKS.values() for kind in kinds}
    assert {kind for kind, _ in METHODS} | {"task"} == set(KINDS) == asked


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_every_method_has_a_world_and_is_asked_by_its_kind(kind: str, name: str) -> None:
    method = method_named(kind, name)
    assert worlds_for(method), f"no world gives what {name} wants and needs"
    assert checks_of(method) == [check for check, kinds in CHECKS.items() if kind in kinds]
