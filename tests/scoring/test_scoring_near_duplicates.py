"""Near duplicates: planted copies of every kind, brute force, nothing where there is nothing, refusal, hostile
input."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from near_copies import copies, hashed, recall_and_precision
from scoring_data import make_examples
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

import explain.payloads as payloads
from contracts.errors import ConfigError, DataError, InvalidInput, NotApplicable
from contracts.methods import score
from explain.components import components_at
from explain.neighbours import unit_vectors
from explain.payloads import PayloadSpace
from explain.twins import twins
from scoring.near_duplicates import NearDuplicatesConfig, near_duplicates, same_content
from sources.loading import load

SPEC = score.get("near_duplicates").spec
FASHION = Path("/usr/share/datasets/fashion-mnist")


def run(data, **config) -> pl.DataFrame:
    return near_duplicates(data, config=NearDuplicatesConfig(**config), seed=0)


def table_of(bundled) -> tuple[np.ndarray, np.ndarray]:
    bunch = bundled()
    _, own = np.unique(bunch.data.astype(np.float32), axis=0, return_index=True)  # iris and wine hold true copies
    return bunch.data[own].astype(np.float32), bunch.target[own].astype(np.int64)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    return bunch.images.astype(np.uint8)[:, None], bunch.target.astype(np.int64)


def shapes(num: int, seed: int) -> np.ndarray:
    """Grey pictures (num, 1, 28, 28) with soft shapes on a black ground, as photographs of garments are."""
    rng = np.random.default_rng(seed)
    at = np.arange(28)
    out = np.zeros((num, 28, 28))
    for _ in range(12):
        row, column, tall, wide = (rng.uniform(*r, (num, 1, 1)) for r in ((8, 20), (8, 20), (1.5, 4), (1.5, 4)))
        blot = np.exp(-(((at[:, None] - row) / tall) ** 2) - ((at - column) / wide) ** 2)
        out = np.maximum(out, rng.uniform(80, 255, (num, 1, 1)) * blot)
    return np.round(out).astype(np.uint8)[:, None]


# ---- what is found, and what is not ------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["exact", "hnsw", "cells"])
def test_digits_hold_no_near_duplicates(digits, index: str) -> None:
    x, y = digits
    found = run(hashed(x, y, num_classes=10), index=index)
    assert (found["group_size"] > 1).mean() <= 0.002
    assert found["class_margin"].min() > 0.9


def test_no_model_has_a_say() -> None:
    """Activations of any network bring a class together: what is judged is what the examples hold."""
    assert "model" not in SPEC.needs and SPEC.version == 2


@pytest.mark.parametrize("bundled", [load_wine, load_breast_cancer, load_iris])
def test_tables_hold_few_by_accident(bundled) -> None:
    x, y = table_of(bundled)
    assert (run(hashed(x, y, num_classes=3))["group_size"] > 1).mean() <= 0.02


@pytest.mark.parametrize("dim", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", ["uniform", "normal", "lognormal"])
def test_the_chance_of_a_false_call_is_the_plan_s_in_any_dimension(dim: int, shape: str) -> None:
    rng = np.random.default_rng(dim)
    x = rng.uniform(size=(4000, dim)) if shape == "uniform" else rng.normal(size=(4000, dim))
    data = make_examples((np.exp(x) if shape == "lognormal" else x).astype(np.float32), np.zeros(4000), num_classes=2)
    for chance in (0.002, 0.02):
        assert (run(data, chance=chance, ratio=0.9)["group_size"] > 1).mean() <= 3 * chance


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "least"), [("byte", 1.0), ("noise0.02", 1.0), ("noise0.04", 0.9), ("crop1", 0.92)])
def test_copies_planted_among_digits(digits, kind: str, least: float, seed: int) -> None:
    recall, precision = recall_and_precision(*digits, kind, num=90, seed=seed, white=16)
    assert recall >= least and precision >= 0.97


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["byte", "noise0.02", "crop1", "crop2"])
def test_copies_planted_among_pictures(kind: str, seed: int) -> None:
    x = shapes(500, seed)
    recall, precision = recall_and_precision(x, np.arange(500) % 10, kind, num=50, seed=seed, white=255)
    assert recall >= 0.96 and precision >= 0.96


@pytest.mark.journey
@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's dataset-fashion-mnist")
@pytest.mark.parametrize("kind", ["byte", "noise0.02", "noise0.04", "crop1", "crop2"])
def test_copies_planted_among_garments(kind: str) -> None:
    x = np.asarray(load("idx", {"root": str(FASHION)}, seed=0).part("train").x[:2000])
    recall, precision = recall_and_precision(x, np.arange(2000) % 10, kind, num=100, seed=0, white=255)
    assert recall >= 0.95 and precision >= 0.97


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bundled", [load_wine, load_breast_cancer])
@pytest.mark.parametrize("kind", ["byte", "noise0.01", "noise0.03"])
def test_copies_planted_in_tables(bundled, kind: str, seed: int) -> None:
    x, y = table_of(bundled)
    recall, precision = recall_and_precision(x, y, kind, num=20, seed=seed)
    assert recall >= 0.95 and precision >= 0.95


def test_more_copies_than_neighbours_are_judged_by(digits) -> None:
    """Thirty noisy copies of each of three digits: the tenth neighbour of a copy is a copy."""
    x, y = digits
    rows = np.repeat([10, 600, 1200], 30)
    many = np.concatenate([x, copies(x, rows, "noise0.02", np.random.default_rng(0), white=16)])
    found = run(make_examples(many, np.concatenate([y, y[rows]]), num_classes=10))
    for original in (10, 600, 1200):
        (size,) = found.filter(pl.col("example_id") == original)["group_size"]
        assert size >= 28


# ---- the same by brute force -------------------------------------------------------------------------------------


def naive(x: np.ndarray, ratio: float, chance: float) -> tuple[np.ndarray, float]:
    """(groups, limit) of a table from the whole matrix of distances."""
    z = x.astype(np.float64)
    spread = z.std(0)
    z = ((z - z.mean(0)) / np.where(spread > 0, spread, 1.0))[:, spread > 0]
    distance = np.sqrt(np.square(z[:, None] - z[None]).sum(2))
    np.fill_diagonal(distance, np.inf)
    last = min(10, len(x) - 1)
    ranked = np.sort(distance, axis=1)[:, :last]
    limit, logs, expected = ratio, 0.0, 0.0
    for row in ranked:
        for j in range(5, last):
            if row[4] > 0:
                logs += np.log(row[-1] / row[j - 1])
                expected += sum(1 / i for i in range(j, last))
    if logs:
        limit = min(ratio, (chance / (last - 1)) ** (logs / expected))
    radius = np.maximum(ranked[:, -1], np.median(ranked[:, -1]) / 2)
    alike = distance <= limit * np.minimum(radius[:, None], radius[None]) + 1e-9
    group = np.arange(len(x))
    while True:
        spread_out = np.array([group[row | (np.arange(len(x)) == i)].min() for i, row in enumerate(alike)])
        if (spread_out == group).all():
            return group, limit
        group = spread_out


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 17), st.integers(1, 6), st.floats(0.1, 0.9), st.floats(0.01, 0.9))
def test_against_the_whole_matrix(seed: int, num: int, dim: int, ratio: float, chance: float) -> None:
    """Up to 17 points, all of which are candidates of one another."""
    x = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    group, limit = naive(x, ratio, chance)
    found = twins(PayloadSpace(x, np.arange(num)), num, ratio=ratio, chance=chance)
    assert found.limit == pytest.approx(limit, rel=1e-4)
    np.testing.assert_array_equal(found.group, group)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.floats(0.3, 1.0))
def test_components_against_flooding(seed: int, num: int, threshold: float) -> None:
    points = unit_vectors(np.random.default_rng(seed).integers(-2, 3, (num, 3)).astype(np.float32))
    alike = np.round(points.astype(float) @ points.astype(float).T, 6) >= threshold
    group = np.arange(num)
    for _ in range(num):
        group = np.array([group[row | (np.arange(num) == i)].min() for i, row in enumerate(alike)])
    np.testing.assert_array_equal(components_at(points, threshold=threshold)[0], group)


def test_a_chain_is_one_component_and_a_crowd_is_not_cut_short() -> None:
    angle = np.concatenate([np.arange(40) * 0.05, np.full(30, 3.0)])  # a chain, and 30 copies of one point
    points = unit_vectors(np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32))
    group, _ = components_at(points, threshold=float(np.cos(0.06)))
    assert (group[:40] == 0).all() and (group[40:] == 40).all()
    apart, _ = components_at(points, threshold=float(np.cos(0.04)))
    assert (apart[:40] == np.arange(40)).all() and (apart[40:] == 40).all()


def test_a_bridge_that_no_short_list_holds(monkeypatch) -> None:
    """Two crowds of exact copies whose members' four nearest are all copies: only the whole graph joins them."""
    points = unit_vectors(np.repeat(np.array([[1, 0], [1, 0.1]], np.float32), 20, axis=0))
    for cells in (41, 4_000_000):
        monkeypatch.setattr("explain.neighbours._CELLS", cells)
        group, found = components_at(points, threshold=0.99)
        assert (found.similarity == 1).all() and (group == 0).all()


# ---- distances ---------------------------------------------------------------------------------------------------


def test_distance_of_moved_pictures_is_that_of_the_best_overlap() -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, 3, 16, 17)).astype(np.uint8)
    x[1, :, 1:, :-2] = x[0, :, :-1, 2:]  # the same picture, one down and two to the left
    space = PayloadSpace(x, np.arange(6))
    assert space.shifts == 2
    every = np.tile(np.arange(6), (6, 1))
    found, a = space.distances(np.arange(6), every), x.astype(float)
    assert found[0, 1] == found[1, 0] == 0 and (np.diag(found) == 0).all()
    np.testing.assert_allclose(found, found.T, rtol=1e-5)
    expected = min(
        np.sqrt(
            np.square(
                a[2][:, d : 16 + min(d, 0) or None, r : 17 + min(r, 0) or None][:, : 16 - abs(d), : 17 - abs(r)]
                - a[3][:, max(-d, 0) :, max(-r, 0) :][:, : 16 - abs(d), : 17 - abs(r)]
            ).mean()
        )
        if d >= 0 and r >= 0
        else np.inf
        for d in range(-2, 3)
        for r in range(-2, 3)
    )
    assert found[2, 3] <= expected + 1e-4


def test_large_pictures_are_compared_by_the_means_of_their_cells(monkeypatch) -> None:
    x = np.random.default_rng(0).normal(size=(4, 2, 70, 9)).astype(np.float32)
    cells = payloads._cells(x)
    bounds = [*(i * 70 // 32 for i in range(32)), 70]
    loop = np.stack([x[:, :, a:b].mean(2) for a, b in itertools.pairwise(bounds)], 2)
    np.testing.assert_allclose(cells, loop, rtol=1e-5, atol=1e-6)
    every = np.tile(np.arange(4), (4, 1))
    whole, vectors = (
        PayloadSpace(x, np.arange(4)).distances(np.arange(4), every),
        PayloadSpace(x, np.arange(4)).vectors(np.arange(4)),
    )
    monkeypatch.setattr("explain.neighbours._CELLS", 600)
    blocks = PayloadSpace(x, np.arange(4))
    np.testing.assert_allclose(blocks.distances(np.arange(4), every), whole)
    np.testing.assert_allclose(blocks.vectors(np.arange(4)), vectors, atol=1e-6)


def test_units_offsets_and_constant_columns_do_not_matter() -> None:
    x, y = table_of(load_breast_cancer)
    rows = np.arange(30)
    both = np.concatenate([x, copies(x, rows, "noise0.02", np.random.default_rng(0))])
    labels = np.concatenate([y, y[rows]])
    units = np.geomspace(1e-4, 1e4, x.shape[1]).astype(np.float32)
    other = np.column_stack([both * units, np.full(len(both), 0.1, np.float32)])
    first, second = (run(make_examples(v, labels, num_classes=2)) for v in (both, other))
    assert first.drop("similarity").equals(second.drop("similarity"))
    np.testing.assert_allclose(first["similarity"], second["similarity"], atol=1e-3)
    assert (first["group_size"] > 1).sum() >= 58


# ---- rows, order, copies -----------------------------------------------------------------------------------------


def test_rows_of_planted_groups() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 12))
    x = np.concatenate([x, x[:20] + 0.01 * rng.normal(size=(20, 12)), x[:5] + 0.01 * rng.normal(size=(5, 12))])
    origin = np.concatenate([np.arange(300), np.arange(20), np.arange(5)])
    order = rng.permutation(325)
    data = hashed(x[order].astype(np.float32), rng.integers(0, 3, 325), num_classes=3)
    origin = origin[order]
    rows = {row["example_id"]: row for row in run(data).iter_rows(named=True)}
    for i, example in enumerate(data.example_id.tolist()):
        alike, labels, row = data.example_id[origin == origin[i]], data.y[origin == origin[i]], rows[example]
        assert (row["group_id"], row["group_size"], row["group_labels"]) == (alike.min(), len(alike), len(set(labels)))
        assert row["class_margin"] == pytest.approx(1 - len(alike) / (data.y == data.y[i]).sum())
        if len(alike) > 1:
            assert row["nearest_id"] in alike and row["similarity"] >= 0.7
            assert row["same_label"] == (data.y[data.example_id == row["nearest_id"]][0] == data.y[i])
    mixed = data.subset(rng.permutation(data.example_id))
    assert run(data).equals(run(mixed))
    assert run(data).drop("similarity").equals(run(data, index="cells").drop("similarity"))


@pytest.mark.parametrize("ratio", [1e-6, 0.3, 0.99])
def test_byte_copies_join_at_any_ratio(ratio: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8)).astype(np.float32)
    x[50:65], x[100] = x[7], x[9]  # more copies than neighbours are asked for
    found = run(hashed(x, rng.integers(0, 2, 200), num_classes=2), ratio=ratio, chance=1e-6)
    ids = hashed(x, np.zeros(200), num_classes=2).example_id
    copied = found.filter(pl.col("num_copies") > 0)
    assert sorted(copied["num_copies"].unique()) == [1, 15] and copied["similarity"].unique().to_list() == [1.0]
    for at, many in (([7, *range(50, 65)], 16), ([9, 100], 2)):
        group = found.filter(pl.col("example_id").is_in(ids[at].tolist()))
        assert group["group_id"].unique().to_list() == [ids[at].min()] and group["group_size"].unique().to_list() == [
            many
        ]
        first, *others = sorted(ids[at].tolist())
        nearest = dict(group.select("example_id", "nearest_id").iter_rows())
        assert nearest == {first: others[0], **dict.fromkeys(others, first)}
    assert (found.filter(pl.col("num_copies") == 0)["group_size"] == 1).mean() > 0.99


def test_copies_are_counted_by_content(examples) -> None:
    hashes = np.array([f"{i % 30:064x}" for i in range(37)])
    found = run(dataclasses.replace(examples, content_hash=hashes)).sort("example_id")
    order = np.argsort(examples.example_id)
    expected = [int((hashes == h).sum()) - 1 for h in hashes[order]]
    assert found["num_copies"].to_list() == expected and max(expected) == 1
    assert run(examples)["num_copies"].to_list() == [0] * 37, "an unknown hash is nobody's copy"
    first, others = same_content(np.array(["", "f" * 64, "", "f" * 64, "e" * 64]))
    assert (first.tolist(), others.tolist()) == ([0, 1, 2, 1, 4], [0, 1, 0, 1, 0])


# ---- refusal -----------------------------------------------------------------------------------------------------


def refusals(frame: pl.DataFrame) -> list[str]:
    return [g.refusal(float(frame[g.column].min())) for g in SPEC.gates if frame[g.column].min() < g.at_least]


def test_groups_of_the_size_of_a_class_are_refused_by_name(digits) -> None:
    x, y = digits
    rows = np.flatnonzero(y == 3)
    x = x.copy()
    x[rows] = copies(x, np.full(len(rows), rows[0]), "noise0.02", np.random.default_rng(0), white=16)
    found = run(make_examples(x, y, num_classes=10))
    (why,) = refusals(found)
    assert "class_margin is 0.0" in why and "larger than half a class" in why
    same = np.ones((60, 1, 8, 8), np.uint8)
    assert refusals(run(hashed(same, np.arange(60) % 2, num_classes=2)))
    assert refusals(run(make_examples(same, np.arange(60) % 2, num_classes=2))), "equal values of unknown hash as well"


def test_small_classes_are_no_reason_to_refuse(digits) -> None:
    x, y = digits
    x = np.concatenate([x, x[:3]])  # class 10 has three members, all of one content with digits
    found = run(hashed(x, np.concatenate([y, [10] * 3]), num_classes=11))
    assert refusals(found) == [] and (found["group_labels"] == 2).sum() == 6


# ---- odd sets ----------------------------------------------------------------------------------------------------


def test_odd_sets(examples, regression) -> None:
    alone = run(examples.subset(examples.example_id[:1]))
    assert alone.select("similarity", "nearest_id", "same_label").row(0) == (None, None, None)
    assert alone.select("group_size", "group_id").row(0) == (1, examples.example_id[0])
    assert run(examples.subset([])).schema == run(examples).schema
    for few in (2, 3, 10, 11):
        found = run(examples.subset(examples.example_id[:few]))
        assert found["nearest_id"].null_count() == 0 and set(found["group_size"]) == {1}
    constant = dataclasses.replace(examples, x=np.ones_like(examples.x))
    assert set(run(constant)["group_size"]) == {37} and set(run(constant)["similarity"]) == {1.0}
    zeros = dataclasses.replace(examples, x=np.where(np.arange(37)[:, None] < 3, 0, examples.x).astype(np.float32))
    assert run(zeros).filter(pl.col("example_id").is_in(examples.example_id[:3]))["group_size"].to_list() == [3] * 3
    assert run(regression)["group_labels"].min() == 1
    assert run(regression)["class_margin"].to_list() == pytest.approx([1 - 1 / 37] * 37)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 40), (1, 8, 8), (3, 33, 20)])
@pytest.mark.parametrize("index", ["exact", "cells"])
def test_pictures_of_any_shape(shape: tuple[int, ...], index: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, *shape)).astype(np.uint8)
    x[39] = x[0]
    found = run(hashed(x, np.zeros(40), num_classes=2), index=index)
    ids = hashed(x, np.zeros(40), num_classes=2).example_id
    assert found.filter(pl.col("example_id").is_in(ids[[0, 39]].tolist()))["group_id"].n_unique() == 1


def test_refusals(examples) -> None:
    with pytest.raises(NotApplicable, match="ranking"):
        run(dataclasses.replace(examples, task="ranking"))
    with pytest.raises(DataError, match="labels outside") as error:
        run(dataclasses.replace(examples, class_names=("a", "b")))
    assert set(error.value.example_ids) == set(examples.example_id[examples.y >= 2].tolist())
    doubled = examples.example_id.copy()
    doubled[4] = doubled[0]
    with pytest.raises(DataError, match="twice"):
        run(dataclasses.replace(examples, example_id=doubled))
    broken = examples.x.copy()
    broken[5, 2] = np.inf
    with pytest.raises(DataError, match="not finite") as error:
        run(dataclasses.replace(examples, x=broken))
    assert error.value.example_ids == (examples.example_id[5],)
    with pytest.raises(InvalidInput, match="ratio"):
        twins(PayloadSpace(examples.x, examples.example_id), 37, ratio=1.0, chance=0.1)
    with pytest.raises(InvalidInput, match="threshold"):
        components_at(np.ones((2, 1), np.float32), threshold=0.0)
    for field in ("ratio", "chance"):
        for value in (0.0, 1.0):
            with pytest.raises(ConfigError, match=field):
                NearDuplicatesConfig(**{field: value})
