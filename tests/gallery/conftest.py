"""Cheats in the registry, and a state folder of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cheats import registered


@pytest.hookimpl(trylast=True)  # after the order was shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The gallery first: its tests are the longest, and one that starts last leaves the other cores idle."""
    items.sort(key=lambda item: Path(__file__).parent not in item.path.parents)


@pytest.fixture
def cheats() -> Iterator[list[str]]:
    with registered() as names:
        yield names


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    return tmp_path / "state"
