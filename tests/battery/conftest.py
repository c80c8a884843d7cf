"""The battery's world, once a session."""

from __future__ import annotations

import pytest
from battery_world import KINDS, World, make_ranking_world, make_world


@pytest.fixture(scope="session")
def classification_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def ranking_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_ranking_world(tmp_path_factory.mktemp("interactions"))


@pytest.fixture
def world(request: pytest.FixtureRequest) -> World:
    """The world of the method under test: of classes, or of users and items when it works on nothing else."""
    asked = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    spec = KINDS[asked["kind"]].get(asked["name"]).spec if "name" in asked else None
    return request.getfixturevalue(
        "ranking_world"
        if "interactions" in (asked.get("name"), *getattr(spec, "wants", ()))
        else "classification_world"
    )
