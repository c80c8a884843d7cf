"""What is planted is found, and nothing in data without issues: each kind over several seeds."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact
from torch import nn

from contracts.errors import ConfigError, DataError
from contracts.subject import Thresholds
from explain.embeddings import over_features
from explain.neighbours import nearest
from sources.example_set import ExampleSet
from sources.loading import load
from studies.issues import groups, order, outliers, shares
from studies.issues.dataset_issues import IssuesConfig, dataset_issues
from studies.issues.neighbourhood import neighbourhood
from studies.issues.tables import EXAMPLES, ISSUES, KINDS, informing

DIM, SEEDS = 6, range(6)


def blobs(seed: int, num: int = 600, **changes: object) -> ExampleSet:
    """Three Gaussian classes in a drawn order, 400 to train on."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, num)
    x = (rng.normal(size=(3, DIM))[y] * 2 + rng.normal(size=(num, DIM))).astype(np.float32)
    data = ExampleSet(
        name="blobs",
        task="classification",  # type: ignore[arg-type]
        x=x,
        y=y,
        example_id=rng.permutation(10 * num)[:num].astype(np.int64),
        split=np.where(np.arange(num) < num * 2 // 3, "train", "test").astype("<U5"),
        owner=np.full(num, "", "<U1"),
        content_hash=np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in x]),
        class_names=("a", "b", "c"),
        center=np.zeros(DIM, np.float32),
        scale=np.ones(DIM, np.float32),
        feature_names=tuple(f"f{k}" for k in range(DIM)),
        origin=np.array([f"rows.csv row {k}" for k in range(num)]),
    )
    return with_values(data, **changes)


def with_values(data: ExampleSet, **changes: object) -> ExampleSet:
    """The examples with other values and what hangs on them."""
    data = dataclasses.replace(data, **changes)  # type: ignore[arg-type]
    x = np.asarray(data.x)
    hashes = np.array([hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest() for row in x])
    return dataclasses.replace(data, content_hash=hashes)


def found(data: ExampleSet, *, model: nn.Module | None = None, **config: object) -> tuple[pl.DataFrame, pl.DataFrame]:
    network = over_features(int(np.prod(data.input_shape)), max(data.num_classes, 1))
    tables = dataset_issues(
        data, config=IssuesConfig.from_mapping(config), seed=0, model=model or network, encoder=network
    )
    return tables[ISSUES.name], tables[EXAMPLES.name]


def nearest_mean(data: ExampleSet) -> nn.Module:
    """Right about most examples of every class."""
    train = data.part("train")
    means = torch.stack([torch.from_numpy(train.x[train.y == k].mean(0)) for k in range(3)])
    model = nn.Sequential(nn.Linear(DIM, 3))
    with torch.no_grad():
        model[0].weight.copy_(means)
        model[0].bias.copy_(-means.square().sum(1) / 2)
    return model.eval()


# ---- all at once -------------------------------------------------------------------------------------------------


def test_nothing_is_found_in_data_without_issues() -> None:
    """Six sets, six kinds each at level 0.05: two false alarms are the most that chance explains."""
    alarms = []
    for seed in SEEDS:
        data = blobs(seed)
        issues, examples = found(data, model=nearest_mean(data), least_gap=0.25)
        assert set(issues["issue"]) == set(KINDS)
        alarms += issues.filter("found")["issue"].to_list()
        assert set(examples["issue"]) <= set(issues.filter("found")["issue"])
        assert issues.filter(~pl.col("found"))["to_do"].eq("").all()
        assert issues.filter("found")["to_do"].ne("").all()
    assert len(alarms) <= 2, alarms


def test_the_findings_inform_and_decide_nothing() -> None:
    data = blobs(0)
    x = np.asarray(data.x).copy()
    x[:, 2:4] = 1.0
    issues, examples = found(with_values(data, x=x), look_for=["near_constant", "imbalance"])
    [(about, finding)] = informing({ISSUES.name: issues, EXAMPLES.name: examples}, Thresholds())
    assert about == "the data set" and not finding.judged and finding.what == "dataset_issues/near_constant"
    assert "same value of 'f2'. (1 more of the kind.)" in finding.sentence and "To do: leave it out" in finding.sentence


def test_what_cannot_be_looked_for_is_refused() -> None:
    with pytest.raises(DataError, match="has no column client; it has: none"):
        found(blobs(0), columns=["client"])
    with pytest.raises(DataError, match="2 training examples; 3 are needed"):
        data = blobs(0)
        found(data.subset(np.concatenate([data.part("train").example_id[:2], data.part("test").example_id])))
    with pytest.raises(ConfigError, match="look_for"):
        IssuesConfig.from_mapping({"look_for": ["luck"]})
    issues, _ = found(blobs(0).part("train"))
    assert set(issues["issue"]) == set(KINDS) - {"group", "train_test"}


# ---- outliers ----------------------------------------------------------------------------------------------------


def test_planted_outliers_are_found() -> None:
    recall, false = [], []
    for seed in SEEDS:
        data = blobs(seed)
        x = np.asarray(data.x).copy()
        rng = np.random.default_rng(100 + seed)
        planted = rng.permutation(np.flatnonzero(data.split == "train"))[:8]
        direction = rng.normal(size=(8, DIM))
        x[planted] = 14 * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        _, examples = found(with_values(data, x=x), look_for=["outliers"])
        called, ids = set(examples["example_id"].to_list()), set(data.example_id[planted].tolist())
        recall.append(len(called & ids) / 8)
        false.append(len(called - ids))
    assert np.mean(recall) >= 0.95 and sum(false) <= 4, (recall, false)


def test_what_the_model_sees_may_be_what_nearness_is_of() -> None:
    """Directions count there, not lengths: of vectors along five lines one that lies across is far."""
    rng = np.random.default_rng(0)
    data = blobs(0)
    x = np.eye(DIM)[rng.integers(0, 5, len(data))] * rng.uniform(1, 9, (len(data), 1))
    x = (x + 0.02 * rng.normal(size=x.shape)).astype(np.float32)
    odd = int(np.flatnonzero(data.split == "train")[3])
    x[odd] = np.eye(DIM)[5]
    _, examples = found(with_values(data, x=x), look_for=["outliers"], space="model")
    assert data.example_id[odd] in examples["example_id"].to_list()
    near = neighbourhood(data.part("train"), over_features(DIM, 3), k=10, space="model")
    assert near.distance.shape == near.position.shape == (400, 10) and (np.diff(near.distance, axis=1) >= 0).all()


def test_strange_pictures_among_digits_are_found() -> None:
    """Noise and inverted digits; of the untouched ones hardly any is called."""
    data = load("sklearn", {"dataset": "digits", "test_fraction": 0.3}, seed=0)
    train = np.flatnonzero(data.split == "train")
    for seed in range(3):
        rng = np.random.default_rng(seed)
        planted = rng.permutation(train)[:12]
        x = np.asarray(data.x).copy()
        x[planted[:6]] = rng.integers(0, 17, (6, 1, 8, 8))
        x[planted[6:]] = 16 - x[planted[6:]]
        _, examples = found(with_values(data, x=x), look_for=["outliers"])
        called, ids = set(examples["example_id"].to_list()), set(data.example_id[planted].tolist())
        assert len(called & ids) >= 11 and len(called - ids) <= 3
        assert examples["value"].is_sorted(descending=True)
    assert found(data, look_for=["outliers"])[0]["severity"][0] < 0.005


def test_remoteness_is_the_distance_and_the_tail_is_exponential() -> None:
    data = blobs(1).part("train")
    near = neighbourhood(data, over_features(DIM, 3), k=5, space="data")
    z = (np.asarray(data.x, np.float64) - data.x.mean(0)) / data.x.std(0)
    apart = np.linalg.norm(z[:, None] - z[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    r = np.sort(apart, axis=1)[:, :5].mean(1)
    assert np.allclose(outliers.remoteness(near), np.log(r), atol=1e-5)
    draws = np.random.default_rng(0)
    alarms = [(outliers.tail_p_values(draws.exponential(size=500)) <= 0.05).any() for _ in range(300)]
    assert np.mean(alarms) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300) + 0.02
    spoilt = np.concatenate([draws.exponential(size=480), 20 + draws.exponential(size=20)])
    assert (outliers.tail_p_values(spoilt)[-20:] <= 0.05).all(), "4% of them do not move the tail"
    assert (outliers.tail_p_values(np.arange(49.0)) == 1).all() and (outliers.tail_p_values(np.ones(80)) == 1).all()


# ---- order -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sorted by class", "drift", "batches"])
def test_an_order_that_tells_is_found(kind: str) -> None:
    for seed in SEEDS:
        data = blobs(seed)
        rows = np.arange(len(data))
        if kind == "sorted by class":
            rows = np.argsort(data.y, kind="stable")
        x = np.asarray(data.x).copy()
        if kind == "drift":
            x[:, 0] += 4 * np.arange(len(x)) / len(x)
        if kind == "batches":
            x += 0.8 * np.random.default_rng(seed).normal(size=(20, DIM))[np.arange(len(x)) // 30]
        place = np.empty(len(data), np.int64)
        place[rows] = np.arange(len(data))
        origin = np.array([f"rows.csv row {k}" for k in place])
        issues, _ = found(with_values(data, x=x, origin=origin), look_for=["order"])
        by = {row["about"]: row for row in issues.to_dicts()}
        assert by["neighbours"]["found"] and by["neighbours"]["p_value"] <= 0.02
        assert by["labels"]["found"] == (kind == "sorted by class")


def test_places_are_those_of_the_source() -> None:
    data = blobs(0, num=12)
    mixed = data.take(np.random.default_rng(0).permutation(12))
    assert [mixed.origin[row] for row in np.argsort(order.places(mixed))] == data.origin.tolist(), "2 before 10"
    without = dataclasses.replace(data, origin=None)
    assert np.array_equal(np.argsort(order.places(without)), np.argsort(data.example_id))


@given(st.integers(3, 30), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_expected_share_is_that_of_all_pairs(num: int, seed: int) -> None:
    """With every other example for a neighbour, F is T whatever the order."""
    everyone = np.array([[j for j in range(num) if j != i] for i in range(num)])
    assert abs(order.nearness(np.random.default_rng(seed).permutation(num), everyone)) < 1e-12


def test_p_values_of_an_order_without_meaning_are_uniform() -> None:
    rng = np.random.default_rng(0)
    p = []
    for _ in range(120):
        x = rng.normal(size=(40, 2))
        apart = np.linalg.norm(x[:, None] - x[None], axis=2)
        np.fill_diagonal(apart, np.inf)
        p.append(order.order_test(rng.permutation(40), np.argsort(apart, 1)[:, :4], permutations=39, rng=rng)[1])
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 120)
    assert 0.4 < np.mean(p) < 0.6
    assert order.label_test(np.arange(9), np.zeros(9, np.int64), classes=True) == (0.0, 1.0)


# ---- groups ------------------------------------------------------------------------------------------------------


def test_a_group_that_is_answered_worse_is_found() -> None:
    hits, alarms = 0, 0
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        of = rng.choice(["north", "south", "east", "west"], 800)
        other = rng.choice([f"c{k}" for k in range(10)], 800)
        right = rng.random(800) < np.where(of == "west", 0.6, 0.9)
        tested = groups.tested_groups(right.astype(float), {"place": of, "client": other}, smallest=20, alpha=0.05)
        called = {one.name for one in tested if one.p_value <= 0.05}
        hits += "place = west" in called
        alarms += len(called - {"place = west"})
        [west] = [one for one in tested if one.name == "place = west"]
        assert west.low <= 0.3 <= west.high and np.array_equal(west.rows, np.flatnonzero(of == "west"))
    assert hits == len(SEEDS) and alarms <= 1


def test_groups_that_are_alike_give_few_alarms_together() -> None:
    rng, alarms = np.random.default_rng(3), 0
    for _ in range(60):
        columns: Mapping[str, np.ndarray] = {f"c{k}": rng.choice([*"abcdef"], 300) for k in range(5)}
        quality = (rng.random(300) < 0.8).astype(float)
        alarms += any(one.p_value <= 0.05 for one in groups.tested_groups(quality, columns, smallest=10, alpha=0.05))
    assert alarms <= 60 * 0.05 + 3 * np.sqrt(60 * 0.05 * 0.95)


def test_the_p_value_is_fisher_s_times_holm_s_factor() -> None:
    quality = np.array([1.0] * 30 + [0.0] * 10 + [1.0] * 10 + [0.0] * 30)
    of = np.array(["a"] * 40 + ["b"] * 40)
    by = {one.name: one for one in groups.tested_groups(quality, {"c": of}, smallest=5, alpha=0.05)}
    assert by["c = b"].p_value == pytest.approx(2 * fisher_exact([[10, 30], [30, 10]], alternative="less").pvalue)
    assert by["c = b"].gap == 0.5 and by["c = a"].gap == -0.5 and by["c = a"].p_value > 0.99
    assert groups.tested_groups(quality, {"c": of}, smallest=41, alpha=0.05) == []
    uneven = quality * np.linspace(0.4, 1, 80)
    assert groups.tested_groups(uneven, {"c": of}, smallest=5, alpha=0.05)[1].p_value < 0.02


def test_a_hard_cluster_and_a_hard_column_come_out_of_the_whole() -> None:
    """A cluster of its own whose labels are drawn, and a column whose value names it."""
    data = blobs(2, num=1500)
    rng = np.random.default_rng(0)
    hard = rng.random(len(data)) < 0.15
    x, y = np.asarray(data.x).copy(), data.y.copy()
    x[hard] = (8 + rng.normal(size=(int(hard.sum()), DIM))).astype(np.float32)
    y[hard] = rng.integers(0, 3, int(hard.sum()))
    columns = {"lamp": np.where(hard, "dim", "bright").astype(str)}
    data = with_values(data, x=x, y=y, columns=columns)
    issues, examples = found(data, model=nearest_mean(blobs(2, num=1500)), look_for=["group"], least_gap=0.15)
    called = issues.filter("found")
    assert "lamp = dim" in called["about"].to_list() and "lamp = bright" not in called["about"].to_list()
    assert called["about"].str.starts_with("cluster").any()
    test_hard = set(data.example_id[hard & (data.split == "test")].tolist())
    own = examples.filter(pl.col("about") == "lamp = dim")
    assert set(own["example_id"].to_list()) == test_hard and own["value"].is_sorted()


# ---- shares ------------------------------------------------------------------------------------------------------


def test_a_rare_class_is_found_and_a_small_sample_is_not_called_one() -> None:
    y = np.repeat([0, 1, 2], [600, 590, 10])
    share, high, rare = shares.rare_classes(y, 3, imbalance=0.1, alpha=0.05)
    assert rare.tolist() == [False, False, True] and share[2] == pytest.approx(10 / 1200 * 3) and high[2] < 0.1
    assert shares.rare_classes(np.array([0, 0, 0, 1]), 3, imbalance=0.1, alpha=0.05)[2].tolist() == [False] * 3
    for seed in SEEDS:
        y = np.random.default_rng(seed).integers(0, 10, 400)
        assert not shares.rare_classes(y, 10, imbalance=0.1, alpha=0.05)[2].any()


def test_features_that_hardly_vary_are_found() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 4)).astype(np.float32)
    x[:, 1], x[:, 2] = 3.0, rng.random(2000) < 0.002
    share, low, called = shares.near_constant(x, constant=0.99, alpha=0.05)
    assert called.tolist() == [False, True, True, False] and share[1] == 1 and (low <= share).all()
    few = shares.near_constant(x[:20, :2], constant=0.99, alpha=0.05)[2]
    assert few.tolist() == [False, True], "one value in every row is constant, however few there are"


def test_blank_pictures_are_found() -> None:
    data = load("sklearn", {"dataset": "digits", "test_fraction": 0.3}, seed=0)
    train = np.flatnonzero(data.split == "train")
    x = np.asarray(data.x).copy()
    x[train[5]], x[train[9]] = 0, 7
    issues, examples = found(with_values(data, x=x), look_for=["near_constant"])
    assert set(examples["example_id"].to_list()) == set(data.example_id[train[[5, 9]]].tolist())
    assert issues["found"].all() and not found(data, look_for=["near_constant"])[0]["found"].any()


def test_copies_across_the_splits_are_those_of_their_own_analysis() -> None:
    data = blobs(4)
    x = np.asarray(data.x).copy()
    train, test = np.flatnonzero(data.split == "train"), np.flatnonzero(data.split == "test")
    x[test[:9]] = x[train[:9]]
    issues, examples = found(with_values(data, x=x), look_for=["train_test"])
    assert set(examples["example_id"].to_list()) >= set(data.example_id[test[:9]].tolist())
    row = issues.row(0, named=True)
    assert row["found"] and row["low"] <= 9 / len(test) <= row["high"] and "byte for byte" in row["what"]
    assert not found(data, look_for=["train_test"])[0]["found"].any()


@pytest.mark.parametrize("copied", [False, True])
def test_the_training_examples_are_searched_once_for_all_issues(copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search is what grows with the square. What is found is what each issue finds by itself; where some training
    examples are copies, duplicates across the splits are looked for among the others, in a search of their own."""
    x = np.asarray(blobs(3).x).copy()
    if copied:
        x[1] = x[0]
    data = blobs(3, x=x)
    searched: list[tuple[int, bool]] = []

    def counted(points, *, queries=None, **more):  # type: ignore[no-untyped-def]
        searched.append((len(points), queries is None))
        return nearest(points, queries=queries, **more)

    for module in ("explain.payloads", "studies.train_test_duplicates", "studies.issues.neighbourhood"):
        monkeypatch.setattr(f"{module}.nearest", counted)
    together = found(data)[0]
    train = int((data.split == "train").sum())
    own = [(train, True)] + ([(train - 1, True)] if copied else [])
    assert sorted(searched) == sorted([*own, (train - copied, False)])
    alone = pl.concat([found(data, look_for=[kind])[0] for kind in KINDS])
    assert together.sort("issue", "about").equals(alone.sort("issue", "about"))
