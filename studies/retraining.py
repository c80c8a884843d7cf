"""What analyses that train again share: a stored score joined by id, a validation part, a model's error, what a run has
seen.

What an analysis chooses (an offset, a union of pools, a law) it chooses on a validation part held out of the training
split and never trained on. The test split only reports: what it has chosen, it cannot judge.
"""

from __future__ import annotations

import math

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import DataError, InvalidInput, NotApplicable
from recipes.predict import read
from sources.example_set import ExampleSet
from tasks.base import require

LEVEL = 0.90  # of the intervals over seeds
FEWEST_HELD_OUT = 20  # validation examples: an error of less than 1 in 20 could not be told from none


class Seen:
    """Counts the mini-batches of a training: hand it over as ``observe``."""

    def __init__(self) -> None:
        self.steps = self.samples = 0

    def __call__(self, rows: NDArray[np.int64] | Tensor, logits: Tensor) -> None:
        self.steps += 1
        self.samples += len(rows)

    def check(self, name: str) -> None:
        """Raise :class:`InvalidInput` when the recipe has reported no mini-batch."""
        if not self.steps:
            raise InvalidInput(f"{name}: the recipe reports no mini-batch, so the samples it has seen are not known")


def splits_by_id(data: ExampleSet, *, name: str) -> tuple[ExampleSet, ExampleSet]:
    """Training and test examples, each ordered by id: what is trained does not depend on the order of the rows.

    Raises:
        NotApplicable: no test examples.
        DataError: an id used twice, or a target that is none of the task's.
    """
    require(data, name, "reading")
    values, counts = np.unique(data.example_id, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{data.name} has ids twice", example_ids=values[counts > 1])
    data.check_targets()
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


def hold_out(
    examples: ExampleSet, values: NDArray[np.float64], share: float, *, seed: int, name: str
) -> tuple[ExampleSet, NDArray[np.float64], ExampleSet]:
    """Examples to train on with their values, and the validation part, in the order given (``scored`` orders by id).

    Of the n examples of each class (stratum of the task: bin of the target, user) round(share * n) are drawn, at least
    one and not all; a class of a single example stays in training. The part depends on these examples, ``share`` and
    ``seed`` alone.

    Args:
        examples: N training examples.
        values: (N,) float64, of the score.
        share: of the examples to hold out, in (0, 1).
        seed: root of the draw.
        name: of the analysis, for the refusal.

    Raises:
        NotApplicable: fewer than 20 are held out; says how many examples it takes.
    """
    rng = np.random.default_rng(derive_seed("validation part", seed))
    held = np.zeros(len(examples), bool)
    strata = strata_of(examples)
    for k in np.unique(strata):
        rows = rng.permutation(np.flatnonzero(strata == k))
        most = len(rows) - 1
        held[rows[: min(max(round(share * len(rows)), 1), most)]] = True
    if held.sum() < FEWEST_HELD_OUT:
        raise NotApplicable(
            f"{name} chooses on held-out examples: {share:g} of {len(examples)} are {held.sum()}, at least "
            f"{FEWEST_HELD_OUT} are needed: about {math.ceil(FEWEST_HELD_OUT / share)} examples, or a larger share"
        )
    ids = examples.example_id
    return examples.subset(ids[~held]), values[~held], examples.subset(ids[held])


def strata_of(examples: ExampleSet) -> NDArray[np.int64]:
    """(N,) the group of each example that keeps its share in every part: the classes, where the task has such."""
    return examples.task.strata(examples.x, examples.y, examples.example_id)


def quality(model: nn.Module, examples: ExampleSet) -> NDArray[np.float64]:
    """What the task's users call right of each of the N ``examples``, float64 (N,) in [0, 1]: 1 for a class that is
    right."""
    return read(model, examples).quality


def error_rate(model: nn.Module, examples: ExampleSet) -> float:
    """1 - mean quality: the share of ``examples`` that ``model`` gets wrong, in [0, 1]."""
    return float((1.0 - quality(model, examples)).mean())


def mean_interval(values: NDArray[np.float64], *, level: float = LEVEL) -> tuple[float, float | None, float | None]:
    """Mean over seeds with its Student interval, by default of 90%; no interval for a single seed."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None, None
    half = float(student.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half
