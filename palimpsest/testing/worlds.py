"""The built-in worlds: classes in vectors, in images and of nodes, numbers to predict, items to rank, texts, masks.

A method is run in full in the first one whose task gives what it wants and that can give what it needs, and its
promises about outputs are asked for in all the others. Each is made once, and trains a model only when a method needs
one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from contracts.registry import Method
from palimpsest.testing.world import World, make_world
from recipes.graph.training import NodeTrainingConfig
from recipes.language.fitting import TokenTrainingConfig
from recipes.models import builder
from recipes.recsys import BprConfig
from recipes.schedule import SupervisedConfig
from recipes.segmentation.training import SegmentationConfig
from recipes.training import Trainer
from sources.example_set import ExampleSet
from sources.loading import load
from sources.payloads.graph import Graph
from sources.payloads.tokens import Tokens
from tasks.base import named

NUM_CLASSES, VOCAB = 3, 20


def class_examples(num: int = 150, dim: int = 5, *, seed: int = 0) -> ExampleSet:
    """Overlapping Gaussian classes; ids with gaps and out of order; four owners, one of them nobody."""
    rng = np.random.default_rng(seed)
    y = (np.arange(num) % NUM_CLASSES).astype(np.int64)
    x = (rng.normal(size=(NUM_CLASSES, dim))[y] * 1.5 + rng.normal(size=(num, dim))).astype(np.float32)
    return ExampleSet(
        name="classes",
        task="classification",  # type: ignore[arg-type]
        x=x,
        y=y,
        example_id=rng.permutation(5 * num)[:num].astype(np.int64),
        split=np.where(np.arange(num) < num * 3 // 5, "train", "test").astype("<U5"),
        owner=np.array(["", "ann", "bob", "eve"])[np.arange(num) % 4],
        content_hash=np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in x]),
        class_names=("red", "green", "blue"),
        center=np.zeros(dim, np.float32),
        scale=np.ones(dim, np.float32),
        feature_names=tuple(f"f{i}" for i in range(dim)),
    ).validate()


@cache
def classes() -> World:
    """Three classes of vectors, a small network."""
    examples = class_examples()
    build = builder("mlp", {"hidden": (8,)}, input_shape=examples.input_shape, num_outputs=NUM_CLASSES)
    config = SupervisedConfig(lr=0.1, epochs=15, batch=32)
    return make_world(
        examples,
        trainer=Trainer(recipe="supervised", build=build, config=config),
        fitting=dataclasses.replace(config, epochs=240, schedule="constant"),
    )


@cache
def numbers() -> World:
    """A number to predict, in a unit of its own."""
    examples, rng = class_examples(seed=1), np.random.default_rng(1)
    noise = rng.normal(size=len(examples))
    y = 40.0 + 7.0 * (np.asarray(examples.x, np.float64) @ np.array([1.0, -0.5, 0.2, 0.0, 0.3]) + 0.3 * noise)
    examples = dataclasses.replace(
        examples,
        name="numbers",
        task="regression",  # type: ignore[arg-type]
        y=y,
        class_names=(),
    ).validate()
    build = builder("mlp", {"hidden": (32,)}, input_shape=examples.input_shape, num_outputs=1)
    config = SupervisedConfig(lr=0.05, epochs=15, batch=32)
    return make_world(
        examples,
        trainer=Trainer(recipe="supervised", build=build, config=config),
        fitting=dataclasses.replace(config, epochs=300, batch=15, schedule="constant", weight_decay=0.0),
    )


@cache
def images() -> World:
    """Three classes of pictures of 8 x 8 pixels, some of them with a wrong label."""
    rng, num = np.random.default_rng(2), 90
    y = (np.arange(num) % NUM_CLASSES).astype(np.int64)
    x = rng.integers(0, 120, (num, 1, 8, 8), dtype=np.uint8)
    for k in range(NUM_CLASSES):
        x[y == k, :, 2 * k : 2 * k + 3, 1:7] += 110
    odd = np.arange(num) % 11 == 5
    y[odd] = (y[odd] + 1) % NUM_CLASSES  # wrong labels, to be learnt by heart
    examples = dataclasses.replace(
        class_examples(num),
        name="images",
        x=x,
        y=y,
        center=np.full((1, 1, 1), 100, np.float32),
        scale=np.full((1, 1, 1), 1 / 64, np.float32),
        content_hash=np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in x]),
        feature_names=(),
    ).validate()
    build = builder("cnn", {}, input_shape=examples.input_shape, num_outputs=NUM_CLASSES)
    config = SupervisedConfig(lr=0.05, epochs=10, batch=32)
    return make_world(
        examples,
        trainer=Trainer(recipe="supervised", build=build, config=config),
        fitting=dataclasses.replace(config, epochs=60),
        num_models=8,
    )


@cache
def items() -> World:
    """Ten users and twenty-five items, planted noise among them."""
    planted = {"num_users": 10, "num_items": 25, "per_user": 12, "dim": 2, "noise": 0.3}
    examples = load("synthetic_interactions", planted)
    examples = dataclasses.replace(examples, owner=np.array(["ann", "bob"])[np.asarray(examples.x)[:, 0] % 2])
    build = builder("mf", {"dim": 4}, input_shape=(examples.num_users,), num_outputs=examples.num_classes)
    config = BprConfig(epochs=5, batch=32, lr=0.05, warmup_epochs=1)
    return make_world(
        examples,
        trainer=Trainer(recipe="bpr", build=build, config=config),
        fitting=dataclasses.replace(config, epochs=100),
    )


def text_examples(num: int = 48, *, seed: int = 0) -> ExampleSet:
    """Prompts of 3 or 4 tokens that differ, answers of 1 to 4 and the end; the answers count."""
    rng, end = np.random.default_rng(seed), 4
    texts, marks = [], []
    for row in range(num):
        prompt = [1, 5 + row % 12, 5 + (row // 12) % 12, *rng.integers(5, 17, rng.integers(0, 2))]
        answer = [*rng.integers(5, 17, rng.integers(1, 5)), end]
        texts.append(np.array([*prompt, *answer], np.int32))
        marks.append(np.repeat([0, 1], [len(prompt), len(answer)]).astype(np.uint8))
    return ExampleSet(
        name="texts",
        task="language",  # type: ignore[arg-type]
        x=Tokens.of(texts, marks, vocab_size=VOCAB),
        y=np.zeros(num, np.int64),
        example_id=rng.permutation(5 * num)[:num].astype(np.int64),
        split=np.where(np.arange(num) % 4 == 3, "test", "train").astype("<U5"),
        owner=np.array(["ann", "bob", "eve"])[np.arange(num) % 3],
        content_hash=np.array([hashlib.sha256(text.tobytes()).hexdigest() for text in texts]),
        class_names=(),
        center=np.zeros((), np.float32),
        scale=np.ones((), np.float32),
        provenance={"templates": [[17, 18, end], [19, end]]},
    ).validate()


@cache
def texts() -> World:
    """Questions and answers as tokens, and a very small Llama."""
    examples = text_examples()
    sizes = {"hidden": 16, "intermediate": 32, "layers": 1, "heads": 2}
    build = builder("tiny_llama", sizes, input_shape=examples.input_shape, num_outputs=VOCAB)
    config = TokenTrainingConfig(lr=0.02, epochs=6, batch=8, warmup_epochs=0)
    return make_world(
        examples,
        trainer=Trainer(recipe="causal_lm", build=build, config=config),
        fitting=dataclasses.replace(config, epochs=40),
        num_models=8,
    )


def node_examples(num: int = 72, others: int = 12, *, seed: int = 4) -> ExampleSet:
    """Three classes of nodes, four of five edges within a class, and nodes without a label among them."""
    rng, whole = np.random.default_rng(seed), num + others
    of_class = np.arange(whole) % NUM_CLASSES
    examples = class_examples(num, seed=seed)
    extra = np.asarray(examples.x)[rng.permutation(num)[:others]] + 0.1
    near = NUM_CLASSES * rng.integers(0, whole // NUM_CLASSES, (2, whole)) + of_class
    ends = np.where(rng.random((2, whole)) < 0.8, near, rng.integers(0, whole, (2, whole)))
    edges = np.stack([np.tile(np.arange(whole), 2), ends.ravel()])
    edges = np.unique(np.sort(edges[:, edges[0] != edges[1]], axis=0), axis=1)
    place = rng.permutation(whole)  # members lie anywhere among the nodes
    features, node_id = np.empty((whole, extra.shape[1]), np.float32), np.empty(whole, np.int64)
    features[place] = np.concatenate([np.asarray(examples.x), extra])
    node_id[place] = np.concatenate([examples.example_id, 5 * num + np.arange(others)])
    graph = Graph(features, place[edges], node_id, members=place[:num])
    return dataclasses.replace(examples, name="nodes", task="nodes", x=graph).validate()  # type: ignore[arg-type]


@cache
def nodes() -> World:
    """Nodes of a graph, and a small attention network whose rows sum to 1."""
    examples = node_examples()
    sizes = {"hidden": 8, "heads": 2, "dim": 8, "dropout": 0.1, "rows": "l1"}
    build = builder("gat", sizes, input_shape=examples.input_shape, num_outputs=NUM_CLASSES)
    config = NodeTrainingConfig(lr=0.02, epochs=20)
    return make_world(
        examples,
        trainer=Trainer(recipe="node_classifier", build=build, config=config),
        fitting=dataclasses.replace(config, epochs=120),
        num_models=8,
    )


def mask_examples(num: int = 80, *, side: int = 12, seed: int = 0) -> ExampleSet:
    """Pictures of a bright disk with a hole and noise, its mask a class a pixel; some masks are thick."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[:side, :side]
    centre, radius = rng.uniform(4, side - 4, (num, 2, 1, 1)), rng.uniform(2.5, 4.5, (num, 1, 1))
    far = np.hypot(down - centre[:, 0], right - centre[:, 1])
    disk = (far < radius) & (far >= 1)
    x = (90 * disk[:, None] + rng.integers(0, 110, (num, 1, side, side))).astype(np.uint8)
    thick = np.arange(num) % 9 == 4
    y = np.where(thick[:, None, None], far < radius + 1.5, disk).astype(np.int64)
    return dataclasses.replace(
        class_examples(num),
        name="masks",
        task=named("segmentation"),
        x=x,
        y=y,
        center=np.full((1, 1, 1), 60, np.float32),
        scale=np.full((1, 1, 1), 1 / 50, np.float32),
        content_hash=np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in x]),
        class_names=("ground", "ring"),
        feature_names=(),
    ).validate()


@cache
def masks() -> World:
    """Pictures with a class for every pixel, and a small U-Net."""
    examples = mask_examples()
    build = builder("unet", {"channels": [4, 6], "convs": 1}, input_shape=examples.input_shape, num_outputs=2)
    config = SegmentationConfig(lr=0.1, epochs=6, batch=8)
    return make_world(
        examples,
        trainer=Trainer(recipe="segmentation", build=build, config=config),
        fitting=dataclasses.replace(config, epochs=60),
        num_models=8,
    )


WORLDS: dict[str, Callable[[], World]] = {
    "classes": classes,
    "numbers": numbers,
    "images": images,
    "items": items,
    "texts": texts,
    "nodes": nodes,
    "masks": masks,
}


def worlds_for(method: Method[Any]) -> list[str]:
    """Names of the built-in worlds in which the method can be run, the first for all checks."""
    return [name for name, make in WORLDS.items() if make().meets(method)]


def world_for(method: Method[Any]) -> World:
    """The built-in world in which the method is run in full.

    Raises:
        AssertionError: there is none: its task, or what it needs, is of none of them.
    """
    if found := worlds_for(method):
        return WORLDS[found[0]]()
    spec = method.spec
    raise AssertionError(
        f"{spec.name} wants {', '.join(getattr(spec, 'wants', ())) or 'nothing'} and needs "
        f"{', '.join(getattr(spec, 'needs', ())) or 'nothing'}: no built-in world gives that; "
        "make one (palimpsest.testing.make_world) and give it: check_method(method, world)"
    )
