"""Near-duplicate groups: planted twins, brute force, chains, crowds."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_data import make_examples
from torch import nn

from contracts.errors import DataError, InvalidInput, NotApplicable
from scoring.near_duplicates import NearDuplicatesConfig, duplicate_groups, near_duplicates
from scoring.neighbours import unit_vectors


class Bare(nn.Module):
    """A network whose penultimate activations are its inputs."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.head = nn.Linear(dim, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def naive_groups(points: np.ndarray, threshold: float) -> np.ndarray:
    """Smallest position in each component, by flooding the whole graph."""
    alike = np.round(points.astype(float) @ points.astype(float).T, 6) >= threshold
    group = np.arange(len(points))
    while True:
        spread = np.array([group[row | (np.arange(len(points)) == i)].min() for i, row in enumerate(alike)])
        if (spread == group).all():
            return group
        group = spread


def run(data, *, dim: int = 6, outputs: int = 4, **config) -> pl.DataFrame:
    return near_duplicates(data, config=NearDuplicatesConfig(**config), seed=0, model=Bare(dim, outputs))


@pytest.fixture
def planted():
    """60 directions in 16 dimensions, 12 of which have one or two twins with a little noise; ids out of order."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 16))
    twins = np.concatenate([x[:12] + 0.02 * rng.normal(size=(12, 16)), x[:5] + 0.02 * rng.normal(size=(5, 16))])
    x = np.concatenate([x, twins]).astype(np.float32)
    origin = np.concatenate([np.arange(60), np.arange(12), np.arange(5)])
    order = rng.permutation(77)
    ids = rng.permutation(1000)[:77]
    return make_examples(x[order], rng.integers(0, 3, 77), num_classes=3, ids=ids), origin[order]


def test_planted_twins_are_found_and_nothing_else(planted) -> None:
    data, origin = planted
    found = run(data, dim=16, outputs=3, threshold=0.99)
    group = dict(found.select("example_id", "group_id").iter_rows())
    for i, example in enumerate(data.example_id.tolist()):
        alike = data.example_id[origin == origin[i]]
        assert group[example] == alike.min()
        row = found.row(by_predicate=pl.col("example_id") == example, named=True)
        labels = data.y[origin == origin[i]]
        assert (row["group_size"], row["group_labels"]) == (len(alike), len(set(labels)))
        if len(alike) > 1:
            assert row["nearest_id"] in alike and row["similarity"] >= 0.99
            assert row["same_label"] == (data.y[data.example_id == row["nearest_id"]][0] == data.y[i])


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.floats(0.3, 1.0))
def test_groups_against_flooding(seed: int, num: int, threshold: float) -> None:
    points = unit_vectors(np.random.default_rng(seed).integers(-2, 3, (num, 3)).astype(np.float32))
    group, _ = duplicate_groups(points, threshold=threshold)
    np.testing.assert_array_equal(group, naive_groups(points, threshold))


def test_a_chain_is_one_group_and_a_crowd_is_not_cut_short() -> None:
    angle = np.concatenate([np.arange(40) * 0.05, np.full(30, 3.0)])  # a chain, and 30 copies of one point
    points = unit_vectors(np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32))
    group, _ = duplicate_groups(points, threshold=float(np.cos(0.06)))
    assert (group[:40] == 0).all() and (group[40:] == 40).all()
    apart, _ = duplicate_groups(points, threshold=float(np.cos(0.04)))
    assert (apart[:40] == np.arange(40)).all() and (apart[40:] == 40).all()


def test_a_bridge_that_no_short_list_holds(monkeypatch) -> None:
    """Two crowds of exact copies whose members' four nearest are all copies: only the whole graph joins them."""
    points = unit_vectors(np.repeat(np.array([[1, 0], [1, 0.1]], np.float32), 20, axis=0))
    for cells in (41, 4_000_000):
        monkeypatch.setattr(sys.modules["scoring.neighbours"], "_CELLS", cells)
        group, found = duplicate_groups(points, threshold=0.99)
        assert (found.similarity == 1).all() and (group == 0).all()


@pytest.mark.parametrize("index", ["hnsw", "cells"])
def test_the_other_indexes_give_the_same_groups_on_planted_twins(planted, index: str) -> None:
    data, _ = planted
    exact, fast = (run(data, dim=16, outputs=3, threshold=0.99, index=index) for index in ("exact", index))
    assert exact["group_id"].equals(fast["group_id"])


def test_names_of_groups_do_not_depend_on_the_rows_nor_the_batch(planted) -> None:
    data, _ = planted
    mixed = data.subset(np.random.default_rng(1).permutation(data.example_id))
    whole = run(data, dim=16, outputs=3, threshold=0.99)
    assert whole.equals(run(mixed, dim=16, outputs=3, threshold=0.99))
    assert whole.equals(run(data, dim=16, outputs=3, threshold=0.99, batch=7))


def test_copies_are_counted_by_content(examples) -> None:
    hashes = np.array([f"{i % 30:064d}" for i in range(37)])
    found = run(dataclasses.replace(examples, content_hash=hashes)).sort("example_id")
    order = np.argsort(examples.example_id)
    expected = [int((hashes == h).sum()) - 1 for h in hashes[order]]
    assert found["num_copies"].to_list() == expected and max(expected) == 1
    assert run(examples)["num_copies"].to_list() == [0] * 37, "an unknown hash is nobody's copy"


def test_odd_sets(examples, regression) -> None:
    alone = run(examples.subset(examples.example_id[:1]))
    assert alone.select("similarity", "nearest_id", "same_label").row(0) == (None, None, None)
    assert alone.select("group_size", "group_id").row(0) == (1, examples.example_id[0])
    assert run(examples.subset([])).schema == run(examples).schema
    constant = dataclasses.replace(examples, x=np.ones_like(examples.x))
    assert set(run(constant)["group_size"]) == {37} and set(run(constant)["similarity"]) == {1.0}
    dead = dataclasses.replace(examples, x=np.where(np.arange(37)[:, None] < 3, 0, examples.x).astype(np.float32))
    assert run(dead).filter(pl.col("example_id").is_in(examples.example_id[:3]))["group_size"].to_list() == [3] * 3
    assert run(regression, outputs=1)["group_labels"].min() == 1


def test_refusals(examples) -> None:
    with pytest.raises(NotApplicable, match="ranking"):
        run(dataclasses.replace(examples, task="ranking"))
    with pytest.raises(DataError, match="labels outside") as error:
        run(examples, outputs=2)
    assert set(error.value.example_ids) == set(examples.example_id[examples.y >= 2].tolist())
    doubled = examples.example_id.copy()
    doubled[4] = doubled[0]
    with pytest.raises(DataError, match="twice"):
        run(dataclasses.replace(examples, example_id=doubled))
    with pytest.raises(InvalidInput, match="threshold"):
        duplicate_groups(np.ones((2, 1), np.float32), threshold=0.0)
    with pytest.raises(NotApplicable, match="linear"):
        near_duplicates(examples, config=NearDuplicatesConfig(), seed=0, model=nn.Sequential(nn.ReLU()))
