"""The battery's worlds, with files for sources, once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from battery_methods import RECIPES, configured

from palimpsest.testing import World


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="session")
def world_of(folder: Path) -> Callable[[str, str, str], World]:
    """(name of a world, kind of a method) -> the world."""
    return lambda world, kind, name: configured(
        world, folder if kind == "source" else None, recipe=RECIPES.get(name, "replay")
    )
