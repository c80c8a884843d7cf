"""Twins across the splits: planted bytes, noise and crops, and nothing where there is nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from near_copies import copies, hashed
from scipy.stats import binomtest
from sklearn.datasets import load_digits

from contracts.errors import DataError, NotApplicable
from sources.example_set import ExampleSet
from studies.train_test_duplicates import TrainTestConfig, train_test_duplicates


def run(data: ExampleSet, **config) -> tuple[dict, pl.DataFrame]:
    found = train_test_duplicates(data, config=TrainTestConfig(**config), seed=0)
    return found["train_test_summary"].row(0, named=True), found["train_test_duplicates"]


@pytest.fixture(scope="module")
def planted() -> tuple[ExampleSet, dict[int, tuple[int, str]]]:
    """900 digits to train on, 600 to test on, 60 of which are copies: id -> (id of the original, kind)."""
    bunch = load_digits()
    rng = np.random.default_rng(3)
    order = rng.permutation(1797)
    x, y = bunch.images.astype(np.uint8)[order, None], bunch.target.astype(np.int64)[order]
    origin = rng.permutation(900)[:60]
    x[900:960] = np.concatenate(
        [
            copies(x, o, kind, rng, white=16)
            for kind, o in zip(("byte", "noise0.02", "crop1"), origin.reshape(3, 20), strict=True)
        ]
    )
    y[900:955] = y[origin[:55]]
    y[955:960] = (y[origin[55:]] + 1) % 10
    data = hashed(x[:1500], y[:1500], num_classes=10)
    data = dataclasses.replace(data, split=np.where(np.arange(1500) < 900, "train", "test").astype("<U5"))
    kinds = np.repeat(["byte", "noise", "crop"], 20)
    ids = data.example_id
    return data, {int(ids[900 + i]): (int(ids[origin[i]]), str(kinds[i])) for i in range(60)}


@pytest.mark.parametrize("index", ["exact", "hnsw"])
def test_planted_twins_and_no_others(planted, index: str) -> None:
    data, expected = planted
    summary, found = run(data, index=index)
    rows = {row["example_id"]: row for row in found.iter_rows(named=True)}
    assert set(rows) <= set(expected) and found["example_id"].is_sorted()
    labels = dict(zip(data.example_id.tolist(), data.y.tolist(), strict=True))
    for kind, least in (("byte", 20), ("noise", 20), ("crop", 18)):
        right = [e for e, (o, k) in expected.items() if k == kind and e in rows and rows[e]["train_id"] == o]
        assert len(right) >= least, kind
    for example, row in rows.items():
        assert row["identical"] == (expected[example][1] == "byte")
        assert row["distance_ratio"] <= (0.0 if row["identical"] else summary["limit"])
        assert row["same_label"] == (labels[example] == labels[row["train_id"]])
    assert (summary["num_test"], summary["num_twins"], summary["num_identical"]) == (600, len(rows), 20)
    assert summary["num_conflicts"] == (~found["same_label"]).sum() >= 3
    assert summary["share"] == pytest.approx(len(rows) / 600)
    exact = binomtest(len(rows), 600).proportion_ci(method="wilson")
    assert (summary["share_low"], summary["share_high"]) == pytest.approx((exact.low, exact.high), rel=1e-4)


def test_twins_within_a_split_are_not_its_business(planted) -> None:
    data, expected = planted
    honest = data.subset(np.setdiff1d(data.example_id, list(expected)))
    x = np.array(honest.x)
    train, test = (np.flatnonzero(honest.split == split) for split in ("train", "test"))
    x[test[:9]], x[train[:9]] = x[test[20]], x[train[30]]
    doubled = hashed(x, honest.y, num_classes=10)
    doubled = dataclasses.replace(doubled, example_id=honest.example_id, split=honest.split)
    assert run(doubled)[0]["num_twins"] == 0


def test_the_order_of_the_rows_does_not_matter_and_the_smallest_of_equals_is_named(planted) -> None:
    data, _ = planted
    mixed = data.subset(np.random.default_rng(1).permutation(data.example_id))
    assert run(data)[1].equals(run(mixed)[1]) and run(data)[0] == run(mixed)[0]
    x, content = np.array(data.x), data.content_hash.copy()
    x[:3], content[:3] = x[1200], content[1200]  # three training copies of one test example
    (row,) = (
        run(dataclasses.replace(data, x=x, content_hash=content))[1]
        .filter(pl.col("example_id") == data.example_id[1200])
        .iter_rows(named=True)
    )
    assert row["train_id"] == data.example_id[:3].min() and row["identical"] and row["distance_ratio"] == 0


def test_odd_sets(examples, regression) -> None:
    summary, found = run(examples)  # no test split
    assert (summary["num_test"], summary["share"], found.height) == (0, None, 0)
    split = np.where(np.arange(37) < 36, "test", "train").astype("<U5")
    summary, found = run(dataclasses.replace(examples, split=split))  # one training example
    assert (summary["num_test"], found.height) == (36, 0)
    half = np.where(np.arange(37) < 20, "train", "test").astype("<U5")
    assert run(dataclasses.replace(regression, split=half))[0]["num_test"] == 17
    constant = dataclasses.replace(examples, x=np.ones_like(examples.x), split=half)
    assert run(constant)[0]["share"] == 1.0
    off = dataclasses.replace(constant, x=np.where(np.arange(37)[:, None] < 30, 1, 2).astype(np.float32))
    assert run(off)[0]["num_twins"] == 10, "what is constant in training may still differ"


def test_refusals(examples) -> None:
    with pytest.raises(NotApplicable, match="ranking"):
        run(dataclasses.replace(examples, task="ranking"))
    broken = examples.x.copy()
    broken[5] = np.nan
    with pytest.raises(DataError, match="not finite") as error:
        run(dataclasses.replace(examples, x=broken))
    assert error.value.example_ids == (examples.example_id[5],)
    split = np.where(np.arange(37) == 5, "test", "train").astype("<U5")
    with pytest.raises(DataError, match="not finite") as error:
        run(dataclasses.replace(examples, x=broken, split=split))
    assert error.value.example_ids == (examples.example_id[5],)
