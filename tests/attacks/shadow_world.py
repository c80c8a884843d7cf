"""A tiny subject for shadow runs: overlapping Gaussian classes, a small MLP, its recipe stacked, and unlearners by
name."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.stacked import StackedTrainer
from recipes.supervised import supervised
from sources.example_set import ExampleSet

RECIPE = SupervisedConfig(lr=0.2, epochs=30, batch=32)


def gaussians(num: int = 200, *, seed: int = 0, dim: int = 6, classes: int = 3, spread: float = 1.2) -> ExampleSet:
    """Half training, half test; ids with gaps and out of order."""
    rng = np.random.default_rng(seed)
    y = (np.arange(num) % classes).astype(np.int64)
    x = (rng.normal(size=(classes, dim))[y] + spread * rng.normal(size=(num, dim))).astype(np.float32)
    return ExampleSet(
        name="gaussians",
        task="classification",
        x=x,
        y=y,
        example_id=rng.permutation(4 * num)[:num].astype(np.int64),
        split=np.where(np.arange(num) < num // 2, "train", "test").astype("<U5"),
        owner=np.full(num, ""),
        content_hash=np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in x]),
        class_names=tuple("abcdefghij"[:classes]),
        center=np.zeros(dim, np.float32),
        scale=np.ones(dim, np.float32),
    ).validate()


class Subject:
    """The callables an audit is given."""

    def __init__(self, data: ExampleSet, *, recipe: SupervisedConfig = RECIPE, hidden: int = 16) -> None:
        self.data, self.recipe = data, recipe
        self.build = builder("mlp", {"hidden": (hidden,)}, input_shape=data.input_shape, num_outputs=data.num_classes)
        self.trained: list[list[np.ndarray]] = []
        self.unlearners: dict[str, Callable[..., nn.Module]] = {
            "no-op": lambda model, **_: copy.deepcopy(model),
            "retrain": lambda model, retain, seed, **_: self.train(retain, seed),
        }

    def train(self, data: ExampleSet, seed: int) -> nn.Module:
        return supervised(self.build, data, config=self.recipe, seed=seed)

    def train_many(
        self, members: Sequence[np.ndarray], seeds: Sequence[int], *, data: ExampleSet | None = None
    ) -> list[nn.Module]:
        data = self.data if data is None else data
        self.trained.append(list(members))
        rows = [data.positions(ids) for ids in members]
        return StackedTrainer(build=self.build, config=self.recipe).train(data, members=rows, seeds=seeds)

    def unlearn_from(
        self, model: nn.Module, name: str, *, retain: ExampleSet, forget: ExampleSet, seed: int
    ) -> nn.Module:
        return self.unlearners[name](model, retain=retain, forget=forget, seed=seed)

    def go_on(self, lr: float, epochs: int) -> Callable[..., nn.Module]:
        """Fine-tuning on what is retained, plain SGD: with a small lr, the method that hopes nobody looks."""
        config = SupervisedConfig(lr=lr, epochs=epochs, batch=32, schedule="constant", momentum=0.0)

        def unlearn(model: nn.Module, *, retain: ExampleSet, seed: int, **_: Any) -> nn.Module:
            return supervised(lambda _: copy.deepcopy(model), retain, config=config, seed=seed)

        return unlearn
