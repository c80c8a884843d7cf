"""Planted harm: what is changed, what is not, and what is refused."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, NotApplicable
from sources.example_set import ExampleSet
from sources.identity import Content
from sources.loading import load
from sources.planted_poison import (
    add_poison_trigger,
    corrupt_labels,
    interclass_confusion,
    label_noise,
    plant_canaries,
    random_label_swap,
    sample_deletion_set,
    transition_matrix,
    triggered,
)
from sources.rows import Rows, replaced


@pytest.fixture(scope="module")
def digits() -> ExampleSet:
    return load("sklearn", {"dataset": "digits"})


def colours(dtype: type = np.float32, seed: int = 0) -> ExampleSet:
    """Thirty 2-channel images with an affine of its own for each channel."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 200, (30, 2, 5, 5)).astype(dtype)
    return ExampleSet(
        name="colours",
        task="classification",
        x=x,
        y=np.arange(30) % 3,
        example_id=rng.permutation(30).astype(np.int64) + 7,
        split=np.where(np.arange(30) < 21, "train", "test").astype("<U5"),
        owner=np.full(30, ""),
        content_hash=Content(x).hashes(),
        class_names=("a", "b", "c"),
        center=np.array([100, 50], np.float32)[:, None, None],
        scale=np.array([0.02, 0.005], np.float32)[:, None, None],
    ).validate()


def unchanged_but(before: ExampleSet, after: ExampleSet, rows: np.ndarray) -> None:
    rest = np.setdiff1d(np.arange(len(before)), rows)
    for column in ("x", "y", "content_hash"):
        assert np.array_equal(np.asarray(getattr(before, column))[rest], np.asarray(getattr(after, column))[rest]), (
            column
        )
    assert np.array_equal(before.example_id, after.example_id) and np.array_equal(before.split, after.split)


def test_the_trigger_is_the_brightest_input_in_every_channel() -> None:
    data = colours()
    planted, ids = add_poison_trigger(data, count=6, target=2, patch=3, seed=1)
    rows = planted.positions(ids)
    brightest = data.inputs(np.flatnonzero(data.split == "train")).max()
    seen = planted.inputs(rows)
    np.testing.assert_allclose(seen[:, :, -3:, -3:], brightest, rtol=1e-5)
    assert np.array_equal(seen[:, :, :-3], data.inputs(rows)[:, :, :-3])
    assert np.array_equal(seen[:, :, :, :-3], data.inputs(rows)[:, :, :, :-3])
    assert (planted.y[rows] == 2).all() and (planted.split[rows] == "train").all() and len(ids) == 6
    unchanged_but(data, planted, rows)
    assert np.array_equal(planted.content_hash[rows], Content(np.asarray(planted.x)[rows]).hashes())


def test_the_trigger_of_grey_images_is_white(digits: ExampleSet) -> None:
    planted, ids = add_poison_trigger(digits, count=20, target=0, seed=0)
    assert planted.x.dtype == np.uint8 and (planted.x[planted.positions(ids)][:, :, -3:, -3:] == 16).all()
    white = triggered(digits, digits.part("test").example_id).part("test")
    assert (white.x[:, :, -3:, -3:] == 16).all() and np.array_equal(white.y, digits.part("test").y)


def test_a_raw_value_that_does_not_exist_is_the_nearest_that_does() -> None:
    planted, ids = add_poison_trigger(colours(np.uint8), count=3, target=0, seed=0)
    values = planted.x[planted.positions(ids)]
    assert (values[:, 1, -3:, -3:] == 255).all()  # the second channel would need 450
    assert (values[:, 0, -3:, -3:] == colours(np.uint8).x[:21, 0].max()).all()


def test_draws_are_uniform_over_the_training_split_and_know_no_row_order(digits: ExampleSet) -> None:
    mixed = digits.subset(np.random.default_rng(0).permutation(digits.example_id))
    (_, a), (_, b), (_, c) = (
        add_poison_trigger(d, count=50, target=0, seed=s) for d, s in ((digits, 3), (mixed, 3), (digits, 4))
    )
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert np.isin(a, digits.example_id[digits.split == "train"]).all()
    classes = digits.y[digits.positions(add_poison_trigger(digits, count=1300, target=0, seed=0)[1])]
    assert np.bincount(classes).min() > 100  # members of the target class are drawn too


def test_confusion_swaps_the_first_of_two_classes(digits: ExampleSet) -> None:
    planted, ids = interclass_confusion(digits, classes=(3, 5), count=41)
    rows = planted.positions(ids)
    assert len(ids) == 40 and set(planted.y[rows] + digits.y[rows]) == {8}
    for k in (3, 5):
        own = np.sort(digits.example_id[(digits.y == k) & (digits.split == "train")])
        assert np.isin(own[:20], ids).all() and not np.isin(own[20:], ids).any()
    unchanged_but(digits, planted, rows)


def test_a_swap_keeps_the_number_of_every_label(digits: ExampleSet) -> None:
    planted, ids = random_label_swap(digits, count=300, seed=0)
    rows = planted.positions(ids)
    assert np.array_equal(np.bincount(planted.y), np.bincount(digits.y))
    assert 0.8 < (planted.y[rows] != digits.y[rows]).mean() < 0.98
    unchanged_but(digits, planted, rows)


def test_transition_matrices_are_their_definition() -> None:
    symmetric = transition_matrix(5, rate=0.4, kind="symmetric", seed=0)
    assert np.allclose(symmetric.diagonal(), 0.6) and np.allclose(symmetric[~np.eye(5, dtype=bool)], 0.1)
    pair = transition_matrix(5, rate=0.4, kind="pair", seed=0)
    assert np.allclose(pair.diagonal(), 0.6) and (np.sort(pair, axis=1)[:, :-2] == 0).all()
    assert np.allclose(np.sort(pair, axis=1)[:, -2], 0.4)
    others = {transition_matrix(5, rate=0.4, kind="pair", seed=s).tobytes() for s in range(9)}
    assert len(others) > 1  # drawn by the seed, not the next class
    for rate, kind, classes in ((1.0, "pair", 3), (-0.1, "pair", 3), (0.2, "next", 3), (0.2, "pair", 1)):
        with pytest.raises(ConfigError, match="label noise"):
            transition_matrix(classes, rate=rate, kind=kind, seed=0)


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_labels_are_drawn_from_the_rows_of_the_matrix(kind: str) -> None:
    y = np.repeat(np.arange(4), 20_000)
    noisy = corrupt_labels(y, num_classes=4, rate=0.3, kind=kind, seed=5)
    found = np.stack([np.bincount(noisy[y == k], minlength=4) / 20_000 for k in range(4)])
    expected = transition_matrix(4, rate=0.3, kind=kind, seed=derive_seed("pairs", 5))
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / 20_000)
    assert np.array_equal(corrupt_labels(y, num_classes=4, rate=0.0, kind=kind, seed=5), y)


def test_label_noise_is_of_the_training_split_and_knows_no_row_order(digits: ExampleSet) -> None:
    noisy, ids = label_noise(digits, rate=0.3, kind="symmetric", seed=1)
    rows = digits.positions(ids)
    assert (noisy.y[rows] != digits.y[rows]).all() and (digits.split[rows] == "train").all()
    unchanged_but(digits, noisy, rows)
    assert len(ids) == pytest.approx(0.3 * (digits.split == "train").sum(), abs=70)
    mixed = digits.take(np.random.default_rng(0).permutation(len(digits)))
    other, again = label_noise(mixed, rate=0.3, kind="symmetric", seed=1)
    assert np.array_equal(ids, again) and np.array_equal(other.by_id().y, noisy.by_id().y)
    assert not len(label_noise(digits, rate=0.0, kind="symmetric", seed=1)[1])


def test_deletion_sets_are_nested_subsets() -> None:
    ids = np.random.default_rng(0).permutation(1000)[:77]
    sets = [sample_deletion_set(ids, fraction=f, seed=5) for f in (0.001, 0.1, 0.5, 1.0)]
    assert [len(s) for s in sets] == [1, 8, 38, 77]
    for small, large in pairwise(sets):
        assert np.isin(small, large).all()
    assert np.array_equal(sets[-1], np.sort(ids))
    hits = np.mean([np.isin(ids, sample_deletion_set(ids, fraction=0.3, seed=s)) for s in range(300)], axis=0)
    assert abs(hits.mean() - 23 / 77) < 1e-9 and hits.std() < 0.04


def test_canaries_are_mislabelled_copies_of_test_images(digits: ExampleSet) -> None:
    larger, copies, originals = plant_canaries(digits, count=5, repeats=4, seed=2)
    assert copies.shape == (5, 4) and len(larger) == len(digits) + 20 and copies.min() == digits.example_id.max() + 1
    for own, original in zip(copies, originals, strict=True):
        source, rows = digits.positions([original]), larger.positions(own)
        assert digits.split[source] == "test" and (larger.split[rows] == "train").all()
        assert (larger.x[rows] == digits.x[source]).all() and len(set(larger.y[rows])) == 1
        assert larger.y[rows][0] != digits.y[source][0]
        assert (larger.content_hash[rows] == digits.content_hash[source]).all()
    assert larger.subset(digits.example_id).digest == digits.digest


def test_what_lies_on_disk_is_not_read(digits: ExampleSet, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.asarray(digits.x))
    mapped = dataclasses.replace(digits, x=np.load(tmp_path / "x.npy", mmap_mode="r"))
    for change in (
        lambda d: add_poison_trigger(d, count=9, target=1, seed=0)[0],
        lambda d: plant_canaries(d, count=3, repeats=2, seed=0)[0],
    ):
        lazy, plain = change(mapped), change(digits)
        assert isinstance(lazy.x, Rows) and np.array_equal(np.asarray(lazy.x), np.asarray(plain.x))
    twice = replaced(replaced(mapped.x, np.array([3]), digits.x[:1]), np.array([3, 5]), digits.x[7:9])
    assert np.array_equal(twice[np.array([2, 3, 5])], digits.x[[2, 7, 8]])


def test_nothing_given_is_changed(digits: ExampleSet) -> None:
    before = digits.x.copy(), digits.y.copy(), digits.content_hash.copy()
    add_poison_trigger(digits, count=9, target=1, seed=0)
    interclass_confusion(digits, classes=(1, 2), count=10)
    random_label_swap(digits, count=9, seed=0)
    plant_canaries(digits, count=3, repeats=2, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, (digits.x, digits.y, digits.content_hash), strict=True))


def test_what_cannot_be_planted_is_refused(digits: ExampleSet) -> None:
    vectors = load("sklearn", {"dataset": "wine"})
    with pytest.raises(NotApplicable, match="patch of an image"):
        add_poison_trigger(vectors, count=3, target=0, seed=0)
    with pytest.raises(NotApplicable):
        random_label_swap(load("sklearn", {"dataset": "diabetes"}), count=3, seed=0)
    for call in (
        lambda: add_poison_trigger(digits, count=3, target=10, seed=0),
        lambda: add_poison_trigger(digits, count=3, target=0, patch=9, seed=0),
        lambda: add_poison_trigger(digits, count=0, target=0, seed=0),
        lambda: interclass_confusion(digits, classes=(3, 3), count=4),
        lambda: interclass_confusion(digits, classes=(3, 4), count=1),
        lambda: interclass_confusion(digits, classes=(3, 4), count=10_000),
        lambda: sample_deletion_set(np.arange(3), fraction=0.0, seed=0),
        lambda: plant_canaries(digits, count=10_000, repeats=1, seed=0),
        lambda: plant_canaries(digits, count=1, repeats=0, seed=0),
    ):
        with pytest.raises(ConfigError):
            call()
    with pytest.raises(DataError):
        sample_deletion_set(np.arange(0), fraction=0.5, seed=0)
    with pytest.raises(DataError, match="no training example"):
        add_poison_trigger(digits, count=int((digits.split == "train").sum()), target=0, seed=0)
