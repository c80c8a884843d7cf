"""What analyses that train again share: a stored score joined by id, the error of a model, and how much a run has seen."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor, nn

from contracts.errors import DataError, InvalidInput, NotApplicable
from recipes.predict import predict_logits
from sources.example_set import ExampleSet

LEVEL = 0.90  # of the intervals over seeds


class Seen:
    """Counts the mini-batches of a training: hand it over as ``observe``."""

    def __init__(self) -> None:
        self.steps = self.samples = 0

    def __call__(self, rows: NDArray[np.int64] | Tensor, logits: Tensor) -> None:
        self.steps += 1
        self.samples += len(rows)

    def check(self, name: str) -> None:
        """Raise :class:`InvalidInput` when the recipe has told of no mini-batch."""
        if not self.steps:
            raise InvalidInput(f"{name}: the recipe tells of no mini-batch, so the samples it has seen are not known")


def splits_by_id(data: ExampleSet, *, name: str) -> tuple[ExampleSet, ExampleSet]:
    """Training and test examples, each ordered by id: what is trained does not depend on the order of the rows.

    Raises:
        NotApplicable: not classification, or no test examples.
        DataError: an id used twice, or a label out of range.
    """
    if data.task != "classification":
        raise NotApplicable(f"{name} measures classification error; {data.name} is a {data.task} task")
    values, counts = np.unique(data.example_id, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{data.name} has ids twice", example_ids=values[counts > 1])
    data.check_classes()
    train, test = (data.subset(np.sort(data.example_id[data.split == part])) for part in ("train", "test"))
    if not len(test):
        raise NotApplicable(f"{name} measures error on the test split; {data.name} has none")
    return train, test


def scored(train: ExampleSet, frame: pl.DataFrame, *, score: str) -> tuple[ExampleSet, NDArray[np.float64]]:
    """The training examples that have a value, and the values, (N,) float64, ordered by id.

    Raises:
        DataError: ids twice or of other data (a stale score), or no values at all.
    """
    ids = frame.get_column("example_id").to_numpy()
    values = frame.get_column("value").cast(pl.Float64).fill_null(math.nan).to_numpy()
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"score {score!r} has examples twice", example_ids=unique[counts > 1])
    other = ids[~np.isin(ids, train.example_id)]
    if len(other):
        raise DataError(f"score {score!r} is about examples that are no training examples", example_ids=other)
    known = ~np.isnan(values)
    order = np.argsort(ids[known], kind="stable")
    if not len(order):
        raise DataError(f"score {score!r} has no value for the training examples of {train.name}")
    return train.subset(ids[known][order]), values[known][order]


def test_error(model: nn.Module, test: ExampleSet) -> float:
    """Share of ``test`` that ``model`` gets wrong, in [0, 1]."""
    return float((predict_logits(model, test).argmax(1) != test.y).mean())


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float | None, float | None]:
    """Mean over seeds with its 90% Student interval; no interval for a single seed."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None, None
    half = float(student.ppf(0.5 + LEVEL / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half
