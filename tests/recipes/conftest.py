"""Small data sets with known structure, and stores that live in memory or in a folder."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
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


@contextmanager
def _global_rng_is_left_alone() -> Iterator[None]:
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002 - what is tested
    yield
    assert torch.equal(before[0], torch.get_rng_state()), "PyTorch's global generator was moved"
    assert np.array_equal(before[1], np.random.get_state()[1]), "numpy's global generator was moved"  # noqa: NPY002
    assert before[2] == random.getstate(), "Python's global generator was moved"


@pytest.fixture
def rng_left_alone() -> Callable[[], AbstractContextManager[None]]:
    """``with rng_left_alone():`` fails when a global generator is not as it was."""
    return _global_rng_is_left_alone
