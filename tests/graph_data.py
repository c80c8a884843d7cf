"""A graph of nodes in three classes, nodes without a label among them, and networks for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from torch import nn

from palimpsest.testing.worlds import node_examples
from recipes.models import builder
from sources.example_set import ExampleSet


def make_nodes(num: int = 72, *, seed: int = 4) -> ExampleSet:
    """Nodes whose ids are neither consecutive nor in order; every edge counts both ways."""
    return node_examples(num, seed=seed)


def network(name: str = "gat", **changed: object) -> Callable[[int], nn.Module]:
    """seed -> a small network with dropout."""
    sizes = {"hidden": 8, "dim": 6, "dropout": 0.3} | ({"heads": 2} if name == "gat" else {}) | changed
    return builder(name, sizes, input_shape=(5,), num_outputs=3)


def with_features(data: ExampleSet, features: np.ndarray) -> ExampleSet:
    """The same graph of other features."""
    return dataclasses.replace(data, x=dataclasses.replace(data.x, features=features))


def with_edges(data: ExampleSet, edges: np.ndarray) -> ExampleSet:
    """The same nodes under other edges."""
    return dataclasses.replace(data, x=dataclasses.replace(data.x, edges=edges))
