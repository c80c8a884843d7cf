"""Small data sets and naive references of the scoring tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scoring_data import make_examples
from torch import Tensor, nn

from sources.example_set import ExampleSet


@pytest.fixture
def examples() -> ExampleSet:
    """37 vectors of 6 features, 4 classes, ids with gaps and out of order."""
    rng = np.random.default_rng(5)
    ids = rng.permutation(1000)[:37].astype(np.int64)
    return make_examples(rng.normal(size=(37, 6)).astype(np.float32), rng.integers(0, 4, 37), num_classes=4, ids=ids)


@pytest.fixture
def regression(examples: ExampleSet) -> ExampleSet:
    return dataclasses.replace(examples, task="regression", y=examples.y.astype(np.float64), class_names=())


@pytest.fixture
def mlp() -> Callable[[int], nn.Module]:
    """seed -> 6-5-4 network in eval mode."""

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()

    return build


@pytest.fixture
def naive() -> Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]:
    """Squared gradient norms of each example's own cross-entropy, one backward pass an example, by parameter."""

    def norms(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        squared = torch.zeros(len(names), len(x), dtype=torch.float64)
        for b in range(len(x)):
            loss = F.cross_entropy(model(x[b : b + 1]), y[b : b + 1])
            parameters = [p for p in model.parameters() if p.requires_grad]
            for row, g in zip(squared, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                row[b] = 0.0 if g is None else g.double().square().sum()
        return dict(zip(names, squared, strict=True))

    return norms
