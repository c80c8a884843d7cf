"""The battery's world, once a session."""

from __future__ import annotations

import pytest
from battery_world import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("sources"))
