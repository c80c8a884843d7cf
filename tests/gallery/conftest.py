"""Cheats in the registry, and a state folder of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cheats import registered


@pytest.fixture
def cheats() -> Iterator[list[str]]:
    with registered() as names:
        yield names


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    return tmp_path / "state"
