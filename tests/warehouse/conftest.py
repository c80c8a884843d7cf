from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from warehouse import Limits, Warehouse

LIMITS = Limits(memory="512MB", threads=1)


@pytest.fixture(scope="session")
def fresh_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder as it is after the first opening."""
    home = tmp_path_factory.mktemp("fresh") / "home"
    Warehouse.open(home, limits=LIMITS)
    return home


@pytest.fixture
def home(tmp_path: Path, fresh_home: Path) -> Path:
    return Path(shutil.copytree(fresh_home, tmp_path / "home"))


@pytest.fixture
def w(home: Path) -> Warehouse:
    return Warehouse.open(home, limits=LIMITS)
