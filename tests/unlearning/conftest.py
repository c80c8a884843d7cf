"""A small planted world: four overlapping Gaussian classes, one MLP that has learned them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from recipes.models import builder
from recipes.rng import local_rng
from recipes.schedule import SupervisedConfig
from recipes.supervised import supervised
from sources.example_set import ExampleSet

CLASSES = 4


def make_examples(*, num: int = 240, dim: int = 6, seed: int = 0, spread: float = 1.6) -> ExampleSet:
    """Gaussian classes around random centres; ids are neither consecutive nor in order."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CLASSES, dim)) * spread
    y = np.arange(num) % CLASSES
    x = (centres[y] + rng.normal(size=(num, dim))).astype(np.float32)
    return ExampleSet(
        name="blobs",
        task="classification",
        x=x,
        y=y.astype(np.int64),
        example_id=rng.permutation(num * 3)[:num].astype(np.int64),
        split=np.where(np.arange(num) < num * 2 // 3, "train", "test").astype("<U5"),
        owner=np.full(num, "", dtype="<U1"),
        content_hash=np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in x]),
        class_names=tuple("abcd"),
        center=np.zeros(dim, np.float32),
        scale=np.ones(dim, np.float32),
    )


@dataclass(frozen=True)
class World:
    model: nn.Module
    retain: ExampleSet
    forget: ExampleSet
    test: ExampleSet
    train: Callable[[ExampleSet, int], nn.Module]

    @property
    def sets(self) -> dict[str, ExampleSet]:
        return {"retain": self.retain, "forget": self.forget}


@pytest.fixture(scope="session")
def world() -> World:
    examples = make_examples()
    build = builder("mlp", {"hidden": (16,)}, input_shape=examples.input_shape, num_outputs=CLASSES)
    recipe = SupervisedConfig(lr=0.1, momentum=0.9, batch=32, epochs=30)

    def train(data: ExampleSet, seed: int) -> nn.Module:
        return supervised(build, data, config=recipe, seed=seed)

    training = examples.part("train")
    ids = np.random.default_rng(1).permutation(training.example_id)
    return World(
        model=train(training, 0),
        retain=training.subset(ids[24:]),
        forget=training.subset(ids[:24]),
        test=examples.part("test"),
        train=train,
    )


@pytest.fixture
def flat() -> Callable[[nn.Module], torch.Tensor]:
    """All parameters and buffers of a model in one vector."""
    return lambda model: torch.cat([t.detach().double().flatten() for t in model.state_dict().values()])


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[[int], nn.Module]:
    """seed -> a fresh Llama of 20 words and two small blocks."""
    from recipes.language.models import TinyLlamaConfig, tiny_llama

    config = TinyLlamaConfig(hidden=16, intermediate=32, layers=2, heads=2)

    def build(seed: int) -> nn.Module:
        with local_rng(seed):
            return tiny_llama(config, input_shape=(8,), num_outputs=20)

    return build
