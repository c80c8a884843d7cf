"""k-NN disagreement against a loop, on planted noise, and where it is undefined."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scoring_data import make_examples
from sklearn.metrics import roc_auc_score
from torch import nn

from contracts.errors import DataError, NotApplicable
from explain.embeddings import embeddings
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.supervised import supervised
from scoring.knn_disagreement import KnnDisagreementConfig, _votes, knn_disagreement
from sources.loading import load
from sources.planted import plant_label_noise


def run(data, model: nn.Module, **config) -> pl.DataFrame:
    return knn_disagreement(data, config=KnnDisagreementConfig(**config), seed=0, encoder=model)


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_votes_against_counting(num: int, k: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, counted = rng.integers(0, classes, (num, k)), rng.random((num, k)) < 0.7
    times, label = _votes(labels, counted)
    for row in range(num):
        counts = np.bincount(labels[row, counted[row]], minlength=classes)
        assert (times[row], label[row]) == (counts.max(), counts.argmax())


def test_a_million_classes_take_no_more_memory_than_ten() -> None:
    rng = np.random.default_rng(0)
    peaks = []
    for classes in (10, 1_000_000):
        labels = rng.integers(0, classes, (2000, 10))
        tracemalloc.start()
        _votes(labels, np.ones(labels.shape, bool))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize("k", [1, 4, 36, 100])
def test_against_a_loop(examples, mlp, k: int) -> None:
    model = mlp(1)
    h = embeddings(model, examples).astype(np.float64)
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    found = run(examples, model, k=k)
    for row in found.iter_rows(named=True):
        i = int(np.flatnonzero(examples.example_id == row["example_id"])[0])
        others = [(-round(float(h[i] @ h[j]), 6), examples.example_id[j], j) for j in range(37) if j != i]
        near = [j for *_, j in sorted(others)[:k]]
        labels = examples.y[near].tolist()
        assert row["num_neighbours"] == min(k, 36) == len(near)
        assert row["disagreement"] == pytest.approx(np.mean([y != examples.y[i] for y in labels]), abs=1e-12)
        most = max(Counter(labels).values())
        assert row["neighbour_label"] == min(y for y, c in Counter(labels).items() if c == most)
        assert row["neighbour_share"] == most / len(near)
        assert row["kth_similarity"] == pytest.approx(-sorted(others)[len(near) - 1][0], abs=2e-6)


def test_ties_do_not_depend_on_the_order_of_the_rows(mlp) -> None:
    """Many copies of few points, labels at random: which copies are asked decides the score."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6))[rng.integers(0, 4, 80)].astype(np.float32)
    data = make_examples(x, rng.integers(0, 4, 80), num_classes=4, ids=rng.permutation(500)[:80])
    mixed = data.subset(rng.permutation(data.example_id))
    assert run(data, mlp(2), k=5).equals(run(mixed, mlp(2), k=5))


def test_an_example_is_not_its_own_neighbour(mlp) -> None:
    x = np.repeat(np.eye(6, dtype=np.float32), 2, axis=0)
    data = make_examples(x, np.tile([0, 1], 6), num_classes=4)
    identity = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    assert run(data, identity, k=1)["disagreement"].to_list() == [1.0] * 12


def test_planted_label_noise_on_digits() -> None:
    digits = load("sklearn", {"dataset": "digits", "test_fraction": 0.5}, seed=0).part("train")
    data, flipped = plant_label_noise(digits, fraction=0.1, seed=1)
    build = builder("mlp", {"hidden": (64,)}, input_shape=data.input_shape, num_outputs=10)
    found = run(data, supervised(build, data, config=SupervisedConfig(lr=0.1, epochs=5), seed=2))
    planted = found["example_id"].is_in(flipped.tolist()).to_numpy()
    assert roc_auc_score(planted, found["disagreement"]) >= 0.97
    clean = digits.y[digits.positions(found["example_id"].to_numpy())]
    assert (found["neighbour_label"].to_numpy() == clean)[planted].mean() >= 0.9, "neighbours tell the true label"


def test_odd_sets(examples, regression, mlp) -> None:
    alone = run(examples.subset(examples.example_id[:1]), mlp(0))
    assert alone.row(0)[1:] == (None, None, None, None, 0)
    assert run(examples.subset([]), mlp(0)).schema == run(examples, mlp(0)).schema
    one = dataclasses.replace(examples, y=np.zeros_like(examples.y))
    assert set(run(one, mlp(0))["disagreement"]) == {0.0}
    with pytest.raises(NotApplicable, match="regression"):
        run(regression, mlp(0))
    far = examples.y.copy()
    far[3] = 4
    with pytest.raises(DataError) as error:
        run(dataclasses.replace(examples, y=far), mlp(0))
    assert error.value.example_ids == (examples.example_id[3],)
