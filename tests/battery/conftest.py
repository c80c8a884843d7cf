"""The battery's world, once a session."""

from __future__ import annotations

import pytest
from battery_world import KINDS, World, make_language_world, make_ranking_world, make_world


@pytest.fixture(scope="session")
def classification_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def ranking_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_ranking_world(tmp_path_factory.mktemp("interactions"))


@pytest.fixture(scope="session")
def language_world() -> World:
    return make_language_world()


WORLDS = {"interactions": "ranking_world", "tokens": "language_world"}


@pytest.fixture
def world(request: pytest.FixtureRequest) -> World:
    """The world of the method under test: of classes, or of what it works on and nothing else does."""
    asked = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    spec = KINDS[asked["kind"]].get(asked["name"]).spec if "name" in asked else None
    wanted = (asked.get("name"), *getattr(spec, "wants", ()))
    found = [fixture for view, fixture in WORLDS.items() if view in wanted]
    return request.getfixturevalue(found[0] if found else "classification_world")
