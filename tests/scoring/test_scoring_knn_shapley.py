"""k-NN Shapley values against the definition over all coalitions, and on planted label noise."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from contracts.errors import DataError, InvalidInput, NotApplicable
from explain.embeddings import embeddings, over_features
from explain.neighbours import unit_vectors
from palimpsest.testing.worlds import class_examples, numbers
from scoring.knn_shapley import KnnShapleyConfig, knn_shapley, knn_shapley_values
from sources.example_set import ExampleSet
from sources.planted import plant_label_noise


def run(data: ExampleSet, **config: int):
    encoder = over_features(data.input_shape[0], max(data.num_classes, 1))
    return knn_shapley(data, config=KnnShapleyConfig(**config), seed=0, encoder=encoder)


def by_definition(points: np.ndarray, y: np.ndarray, at: np.ndarray, wanted: float, k: int) -> np.ndarray:
    """Every coalition, for one test point."""
    num = len(y)
    order = np.lexsort((np.arange(num), np.square(points - at).sum(1))).tolist()

    def utility(some: tuple[int, ...]) -> float:
        near = [i for i in order if i in some][:k]
        if y.dtype.kind == "i":
            return sum(float(y[i] == wanted) for i in near) / k
        return -((sum(float(y[i]) for i in near) / k - wanted) ** 2)

    out = np.zeros(num)
    for i in range(num):
        rest = [j for j in range(num) if j != i]
        for size in range(num):
            weight = math.factorial(size) * math.factorial(num - size - 1) / math.factorial(num)
            for some in itertools.combinations(rest, size):
                out[i] += weight * (utility((*some, i)) - utility(some))
    return out


@given(num=st.integers(1, 6), k=st.integers(1, 8), seed=st.integers(0, 1000), classes=st.booleans())
def test_against_the_definition(num: int, k: int, seed: int, classes: bool) -> None:
    rng = np.random.default_rng(seed)
    points, tests = rng.normal(size=(num, 2)).astype(np.float32), rng.normal(size=(3, 2)).astype(np.float32)
    y, wanted = (rng.integers(0, 2, n) if classes else rng.normal(size=n) for n in (num, 3))
    found = knn_shapley_values(points, y, k=k, test_points=tests, test_y=wanted, block=2)
    each = np.stack([by_definition(points, y, at, w, k) for at, w in zip(tests, wanted, strict=True)])
    assert np.allclose(found.mean, each.mean(0), atol=1e-10)
    assert np.allclose(found.stderr, each.std(0, ddof=1) / math.sqrt(3), atol=1e-7)


@pytest.mark.parametrize("classes", [True, False])
def test_every_example_asks_all_others(classes: bool) -> None:
    rng = np.random.default_rng(4)
    points = rng.normal(size=(6, 2)).astype(np.float32)
    y = rng.integers(0, 2, 6) if classes else rng.normal(size=6)
    total = np.zeros(6)
    for j in range(6):
        others = np.delete(np.arange(6), j)
        total[others] += by_definition(points[others], y[others], points[j], y[j], 2)
    assert np.allclose(knn_shapley_values(points, y, k=2, block=4).mean, total / 5)


def test_values_share_out_what_all_players_reach_together() -> None:
    rng = np.random.default_rng(0)
    points, y = rng.normal(size=(500, 3)).astype(np.float32), rng.integers(0, 3, 500)
    tests, wanted = rng.normal(size=(40, 3)).astype(np.float32), rng.integers(0, 3, 40)
    found = knn_shapley_values(points, y, k=7, test_points=tests, test_y=wanted)
    near = np.argsort(np.square(tests[:, None] - points[None]).sum(2), axis=1)[:, :7]
    assert found.mean.sum() == pytest.approx((y[near] == wanted[:, None]).mean())
    for block in (1, 13):
        again = knn_shapley_values(points, y, k=7, test_points=tests, test_y=wanted, block=block)
        assert np.allclose(again.mean, found.mean, atol=1e-15) and np.allclose(again.harmful_share, found.harmful_share)


def test_equal_points_go_by_their_order() -> None:
    points, y = np.zeros((3, 2), np.float32), np.array([1, 0, 0])
    found = knn_shapley_values(points, y, k=1, test_points=points[:1], test_y=np.array([1])).mean
    assert np.allclose(found, by_definition(points, y, points[0], 1, 1))


def test_the_score_is_of_the_penultimate_layer_and_in_the_order_of_ids() -> None:
    data = class_examples(90).part("train")
    frame = run(data, k=5)
    ordered = data.by_id()
    unit = unit_vectors(embeddings(over_features(5, 3), ordered))
    assert frame["example_id"].to_list() == ordered.example_id.tolist()
    assert np.allclose(frame["knn_shapley"], knn_shapley_values(unit, ordered.y, k=5).mean)


def test_wrong_labels_have_low_values_and_harm() -> None:
    data, flipped = plant_label_noise(class_examples(1500), fraction=0.1, seed=3)
    data = data.part("train")
    frame = run(data, k=10)
    wrong = np.isin(frame["example_id"].to_numpy(), flipped)
    values, harm = frame["knn_shapley"].to_numpy(), frame["harmful_share"].to_numpy()
    assert roc_auc_score(wrong, -values) > 0.85 and roc_auc_score(wrong, harm) > 0.85
    assert values[wrong].mean() < 0 < values[~wrong].mean()
    assert ((harm > 0.5) == (values < 0)).all() and (harm[wrong] > 0.5).mean() > 3 * (harm[~wrong] > 0.5).mean()


def test_numbers_that_are_far_off_have_low_values() -> None:
    data = numbers().train
    odd = data.example_id % 9 == 0
    data = dataclasses.replace(data, y=np.where(odd, data.y + np.where(data.y > 40, -40, 40), data.y))
    frame = run(data, k=5)
    wrong = np.isin(frame["example_id"].to_numpy(), data.example_id[odd])
    assert roc_auc_score(wrong, -frame["knn_shapley"].to_numpy()) > 0.9


def test_what_cannot_be_valued_is_refused_or_null() -> None:
    data = class_examples(90).part("train")
    alone = run(data.take(np.arange(1)))
    assert alone["knn_shapley"].to_list() == [None] == alone["harmful_share"].to_list()
    pair = run(data.take(np.arange(2)))
    assert pair["knn_shapley"].null_count() == 0 and pair["knn_shapley_stderr"].null_count() == 2
    with pytest.raises(DataError):
        run(dataclasses.replace(data, y=np.full(len(data), 3)))
    masks = dataclasses.replace(data, task="segmentation", y=np.zeros((len(data), 5), np.uint8))
    with pytest.raises(NotApplicable, match="classes or numbers"):
        run(masks)
    points, y = np.ones((3, 2), np.float32), np.ones(3, np.int64)
    for wrong in (
        {"k": 0},
        {"k": 1, "block": 0},
        {"k": 1, "test_points": np.ones((2, 3), np.float32), "test_y": np.ones(2, np.int64)},
        {"k": 1, "test_points": points, "test_y": np.ones(3)},
        {"k": 1, "test_points": points[:0], "test_y": y[:0]},
    ):
        with pytest.raises(InvalidInput):
            knn_shapley_values(points, y, **wrong)
