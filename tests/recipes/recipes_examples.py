"""Small data sets with known structure."""

from __future__ import annotations

import numpy as np

from sources.example_set import ExampleSet


def make_examples(
    num: int, *, shape: tuple[int, ...] = (6,), classes: int = 3, seed: int = 0, task: str = "classification"
) -> ExampleSet:
    """Noisy clusters around one random centre a class (or a noisy linear target); every fourth example is test."""
    rng = np.random.default_rng(seed)
    y = np.arange(num) % classes
    x = (rng.normal(size=(classes, *shape))[y] + 0.7 * rng.normal(size=(num, *shape))).astype(np.float32)
    target = y.astype(np.int64) if task == "classification" else 100 + 30 * x.reshape(num, -1)[:, 0].astype(np.float64)
    return ExampleSet(
        name="clusters",
        task=task,
        x=x,
        y=target,
        example_id=rng.permutation(10 * num)[:num].astype(np.int64),
        split=np.where(np.arange(num) // classes % 4 == 3, "test", "train").astype("<U5"),
        owner=np.array([""] * num),
        content_hash=np.array([f"{i:064x}" for i in range(num)]),
        class_names=tuple(f"c{k}" for k in range(classes)) if task == "classification" else (),
        center=np.full((1,) * len(shape), 0.1, np.float32),
        scale=np.full((1,) * len(shape), 0.5, np.float32),
    ).validate()
