"""Small data sets with known structure, and stores that live in memory or in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from recipes_examples import make_examples

from contracts.errors import IntegrityError
from sources.example_set import ExampleSet


class MemoryStore:
    """A CheckpointStore that keeps copies and counts; ``damage`` makes a name unreadable."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.saves: list[str] = []
        self.damaged: set[str] = set()

    def save(self, name: str, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
        self.kept[name] = ({k: np.array(v) for k, v in tensors.items()}, dict(meta))
        self.saves.append(name)
        return ""

    def load(self, name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        if name in self.damaged:
            raise IntegrityError(name)
        return self.kept.get(name)


@pytest.fixture
def examples() -> Callable[..., ExampleSet]:
    return make_examples


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()
