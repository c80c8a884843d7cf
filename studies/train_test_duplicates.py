"""Test examples that have a near copy in the training split: they measure what was learnt by heart, not what was
learnt.

    j has a twin when some training example i has its very bytes, or d(j, i) <= rho min(r_j, r_i)
    share = examples of the test split with a twin / all of them, with Wilson's 95% interval

d, r and rho are those of ``near_duplicates``, fitted to the training split; r_j is the distance of j to its 10th
nearest training example. A test accuracy on the others alone is the honest one when the share is not small.

Source: definition; Barz & Denzler, "Do We Train on Test Data? Purging CIFAR of Near-Duplicates" (J. Imaging 2020, arXiv
    1902.00423),
which found 3.3% (CIFAR-10) and 10% (CIFAR-100) of test images in training. One row a test example, to its nearest twin:
not every pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contracts.errors import DataError
from contracts.methods import AnalysisSpec, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from explain.neighbours import METHODS, Floats, Ints, nearest
from explain.payloads import PayloadSpace, check_finite
from explain.twins import likeness, tenth, twins
from scoring.near_duplicates import comparable, same_content
from sources.example_set import ExampleSet
from stats.proportions import wilson

_BLOCK = 16_384  # test examples judged at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTestConfig(Config):
    """What counts as a near copy; the fields of ``near_duplicates``."""

    ratio: float = param(
        0.3, gt=0, lt=1, doc="largest distance of near copies, as a share of that to the tenth neighbour of either"
    )
    chance: float = param(
        0.002,
        gt=0,
        lt=1,
        doc="share of examples that may have a near copy by accident; in few dimensions it lowers the ratio",
    )
    index: str = param("exact", choices=METHODS, doc="exact search, or the approximate HNSW for more than some 10^5")


_TWINS = TableSpec(
    schema="scores",
    name="train_test_duplicates",
    key=("example_id",),
    doc="Test examples with a near copy in the training split, and the nearest such copy.",
    columns=(
        Column(name="example_id", dtype="int64", low=0, doc="id of the test example"),
        Column(name="train_id", dtype="int64", low=0, doc="id of its nearest twin in training, the smallest of equals"),
        Column(
            name="distance_ratio",
            dtype="float64",
            low=0,
            high=1,
            direction="lower = more alike",
            doc="distance / that to the tenth training neighbour, the smaller of the two's; 0 = the same",
        ),
        Column(name="identical", dtype="bool", doc="equal byte for byte"),
        Column(name="same_label", dtype="bool", doc="both have the same label (regression: the same target)"),
    ),
)
_SUMMARY = TableSpec(
    schema="scores",
    name="train_test_summary",
    key=("num_test",),
    doc="How many test examples have a twin in training.",
    columns=(
        Column(name="num_test", dtype="int64", low=0, doc="examples of the test split"),
        Column(name="num_twins", dtype="int64", low=0, doc="of these, with a twin in the training split"),
        Column(name="num_identical", dtype="int64", low=0, doc="of these, byte for byte"),
        Column(name="num_conflicts", dtype="int64", low=0, doc="twins with another label (target)"),
        Column(
            name="share",
            dtype="float64",
            low=0,
            high=1,
            nullable=True,
            direction="higher = the test accuracy says less",
            doc="num_twins / num_test; null without a test split",
        ),
        Column(
            name="share_low", dtype="float64", low=0, high=1, nullable=True, doc="lower end of Wilson's 95% interval"
        ),
        Column(name="share_high", dtype="float64", low=0, high=1, nullable=True, doc="upper end"),
        Column(name="limit", dtype="float64", low=0, high=1, doc="largest distance ratio that counted as a twin"),
    ),
)


@analysis(
    AnalysisSpec(
        name="train_test_duplicates",
        doc="Test examples that have a near copy among the training examples.",
        source="definition; Barz & Denzler, J. Imaging 2020 (arXiv 1902.00423)",
        config=TrainTestConfig,
        wants=("features",),
        tables=(_SUMMARY, _TWINS),
    )
)
def train_test_duplicates(
    data: ExampleSet, *, config: TrainTestConfig, seed: int, progress: Progress = silent
) -> dict[str, pl.DataFrame]:
    """Twins across the splits.

    Args:
        data: both splits, classification or regression; at least one training example.
        config: ratio, chance and index.
        seed: not used.
        progress: called with how far the search for neighbours is.

    Returns:
        ``train_test_summary``, one row, and ``train_test_duplicates``, one row a test example that has a twin, by id.

    Raises:
        NotApplicable: a ranking task.
        DataError: no training example, ids used twice, labels outside the classes, values that are not finite.
    """
    return twins_across(data, config=config, progress=progress)


def twins_across(
    data: ExampleSet, *, config: TrainTestConfig, space: PayloadSpace | None = None, progress: Progress = silent
) -> dict[str, pl.DataFrame]:
    """As ``train_test_duplicates``, which see.

    Args:
        space: of the training examples by id, where it has been searched already; of no use where some of them are
            copies of one another.
    """
    ordered = comparable("train_test_duplicates", data)
    train, test = ordered.part("train"), ordered.part("test")
    if not len(train):
        raise DataError(f"train_test_duplicates: {data.name} has no training example")
    check_finite(test.x, test.example_id)
    first, _ = same_content(train.content_hash)
    if space is None or (first != np.arange(len(first))).any():
        train = train.take(np.flatnonzero(first == np.arange(len(first))))
        space = PayloadSpace(train.x, train.example_id)
    own = twins(space, len(train), ratio=config.ratio, chance=config.chance, index=config.index)
    near, likeness_of = _nearest(space, train, test, own.radius, config.index, progress)
    same = _same_bytes(train, test)
    identical = same >= 0
    near = np.where(identical, same, near)
    alike = np.where(identical, 1.0, likeness_of)
    found = np.flatnonzero(identical | (alike >= 1 - own.limit))
    labels = train.target_keys[near[found]] == test.target_keys[found]
    frame = pl.DataFrame(
        {
            "example_id": test.example_id[found],
            "train_id": train.example_id[near[found]],
            "distance_ratio": 1.0 - alike[found],
            "identical": identical[found],
            "same_label": labels,
        }
    )
    share = len(found) / len(test) if len(test) else None
    low, high = (None, None) if share is None else map(float, wilson(share, len(test)))
    row = {
        "num_test": len(test),
        "num_twins": len(found),
        "num_identical": int(identical.sum()),
        "num_conflicts": int((~labels).sum()),
        "share": share,
        "share_low": low,
        "share_high": high,
        "limit": own.limit,
    }
    types = {name: pl.Float64 for name in ("share", "share_low", "share_high")}
    return {"train_test_summary": pl.DataFrame([row], schema_overrides=types), "train_test_duplicates": frame}


def _nearest(
    space: PayloadSpace,
    train: ExampleSet,
    test: ExampleSet,
    radius: NDArray[np.float32],
    index: str,
    progress: Progress,
) -> tuple[Ints, Floats]:
    """Position of the most alike training example of every test example, the smaller one of equals, and the
    likeness."""
    near, alike = np.zeros(len(test), np.int64), np.zeros(len(test))
    points = space.points
    for start in range(0, len(test), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(test)))
        queries = space.vectors(rows, of=test.x)
        position = np.sort(nearest(points, k=space.candidates, queries=queries, method=index).position, axis=1)
        distance = space.distances(rows, position, of=test.x)
        own = np.maximum(tenth(distance), radius.min()).astype(np.float32)
        found = likeness(distance, own, radius[position])
        best = found.argmax(1)
        near[rows], alike[rows] = position[np.arange(len(rows)), best], found[np.arange(len(rows)), best]
        progress(int(rows[-1]) + 1, len(test), "twins in training")
    return near, alike


def _same_bytes(train: ExampleSet, test: ExampleSet) -> Ints:
    """Position of the training example of the same content as each test example, -1 where there is none."""
    known = train.content_hash != ""
    left = pl.DataFrame({"content": test.content_hash})
    right = pl.DataFrame({"content": train.content_hash[known], "at": np.flatnonzero(known)})
    return left.join(right, on="content", how="left", maintain_order="left")["at"].fill_null(-1).to_numpy()
