"""Small example sets out of arrays."""

from __future__ import annotations

import numpy as np

from sources.example_set import ExampleSet


def make_examples(x: np.ndarray, y: np.ndarray, *, num_classes: int, ids: np.ndarray | None = None) -> ExampleSet:
    num = len(y)
    return ExampleSet(
        name="planted",
        task="classification",
        x=x,
        y=np.asarray(y, np.int64),
        example_id=np.arange(num, dtype=np.int64) if ids is None else ids,
        split=np.full(num, "train", "<U5"),
        owner=np.full(num, "", "<U1"),
        content_hash=np.full(num, "", "<U64"),
        class_names=tuple(f"class {k}" for k in range(num_classes)),
        center=np.zeros(1, np.float32),
        scale=np.ones(1, np.float32),
    )
