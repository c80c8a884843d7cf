"""Small example sets out of arrays."""

from __future__ import annotations

import dataclasses

import numpy as np

from recipes.ensemble import ReferenceEnsemble
from sources.example_set import ExampleSet
from tasks.base import OutputTask


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


def saying(ensemble: ReferenceEnsemble, logits: np.ndarray) -> ReferenceEnsemble:
    """The same models, but with these outputs (M, N, K)."""
    with np.errstate(invalid="ignore", over="ignore"):  # outputs of NaN are read as NaN
        return ReferenceEnsemble.of_logits(
            logits=np.asarray(logits, np.float32),
            **{n: getattr(ensemble, n) for n in ("example_id", "pool", "labels", "keep", "config_digest")},
        )


def as_regression(data: ExampleSet, y: np.ndarray) -> ExampleSet:
    """The same examples with a number each to predict."""
    return dataclasses.replace(data, task="regression", y=np.asarray(y, np.float64), class_names=())


def predicting(data: ExampleSet, keep: np.ndarray, outputs: np.ndarray, pool: np.ndarray) -> ReferenceEnsemble:
    """Models of any task of outputs: what they say (M, N, K) of ``data``, without the outputs themselves."""
    assert isinstance(data.task, OutputTask)
    return ReferenceEnsemble(
        example_id=data.example_id,
        pool=pool,
        labels=data.y,
        keep=keep,
        reading=data.task.reading_of(outputs, data.y, data.constants).values,
        config_digest="0" * 64,
    )
