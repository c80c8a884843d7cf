"""ExampleSet: the affine against a naive loop, look-ups by id, laziness, the digest, every refusal."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import DataError
from sources.rows import Rows, blocks, gather, on_disk, select


def _images(num=30, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (num, 2, 3, 4), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["features", "uint8", "float images"])
def test_inputs_is_the_affine_of_each_row(make_examples, kind):
    x = {"features": None, "uint8": _images(), "float images": _images().astype(np.float32) * 3 - 7}[kind]
    data = make_examples(x)
    before = np.array(data.x)
    rows = np.random.default_rng(0).permutation(len(data))[:11]
    naive = np.stack([(np.float64(data.x[r]) - data.center) * data.scale for r in rows])
    got = data.inputs(rows)
    assert got.dtype == np.float32 and got.flags.writeable
    np.testing.assert_allclose(got, naive, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(data.inputs(slice(2, 9)), data.inputs(np.arange(2, 9)))
    mask = np.zeros(len(data), bool)
    mask[[3, 8]] = True
    np.testing.assert_array_equal(data.inputs(mask), data.inputs(np.array([3, 8])))
    got[:] = -1
    np.testing.assert_array_equal(data.x, before)


def test_affine_is_fitted_on_the_training_split_alone(make_examples):
    x = np.random.default_rng(2).normal(50, [1.0, 30.0, 0.1], (200, 3)).astype(np.float32)
    data = make_examples(x)
    train = data.split == "train"
    np.testing.assert_allclose(data.center, x[train].mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(1 / data.scale, x[train].std(0, dtype=np.float64), rtol=1e-5)
    wild = x.copy()
    wild[~train] *= 1000
    moved = make_examples(wild)
    np.testing.assert_array_equal(moved.center, data.center)
    np.testing.assert_array_equal(moved.scale, data.scale)


def test_affine_of_many_blocks_equals_one_pass(make_examples, monkeypatch):
    x = np.random.default_rng(3).normal(1e4, 1, (500, 3, 2, 2)).astype(np.float32)
    whole = make_examples(x)
    monkeypatch.setattr("sources.rows.BLOCK_BYTES", 100)
    np.testing.assert_allclose(make_examples(x).center, whole.center, rtol=1e-6)
    np.testing.assert_allclose(make_examples(x).scale, whole.scale, rtol=1e-6)
    train = x[whole.split == "train"].astype(np.float64)
    np.testing.assert_allclose(1 / whole.scale.ravel(), train.std((0, 2, 3)), rtol=1e-4)


def test_constant_column_is_scaled_by_one(make_examples):
    x = np.random.default_rng(4).normal(0, 1, (40, 3)).astype(np.float32)
    x[:, 1] = 0.1
    data = make_examples(x).validate()
    assert data.scale[1] == 1
    np.testing.assert_allclose(data.inputs(slice(None))[:, 1], 0, atol=1e-6)


@given(order=st.permutations(range(40)), data=st.data())
def test_positions_and_subset_follow_the_ids(make_examples_once, order, data):
    base = make_examples_once
    examples = base.take(np.array(order))
    wanted = data.draw(st.lists(st.sampled_from(base.example_id.tolist()), unique=True))
    rows = examples.positions(wanted)
    assert examples.example_id[rows].tolist() == wanted
    part = examples.subset(wanted)
    assert part.example_id.tolist() == wanted
    for row, example_id in enumerate(wanted):
        home = base.example_id.tolist().index(example_id)
        np.testing.assert_array_equal(part.x[row], base.x[home])
        assert (part.y[row], part.split[row], part.content_hash[row]) == (
            base.y[home],
            base.split[home],
            base.content_hash[home],
        )
    assert examples.digest == base.digest
    assert part.center is base.center


@pytest.fixture(scope="module")
def make_examples_once():
    from sources.assemble import assemble

    x = np.random.default_rng(9).normal(0, 1, (40, 3)).astype(np.float32)
    return assemble(
        x,
        np.arange(40) % 4,
        name="m",
        task="classification",
        class_names=tuple("abcd"),
        seed=0,
        test_fraction=0.25,
        example_id=np.random.default_rng(8).permutation(1000)[:40],
        provenance={},
    )


def test_unknown_and_impossible_ids_are_named(make_examples):
    data = make_examples()
    with pytest.raises(DataError, match="4, 9") as error:
        data.subset([3, 4, 10, 9])
    assert error.value.example_ids == (4, 9)
    with pytest.raises(DataError, match=r"twice.*10"):
        data.subset([3, 10, 10])
    for bad in ([0.5], np.array([True]), np.array([[3]]), np.array([2**63 + 5], np.uint64), ["3"]):
        with pytest.raises(DataError):
            data.positions(bad)
    with pytest.raises(DataError, match=str(2**62)):
        data.positions([2**62])
    assert data.subset([]).num_examples == 0
    with pytest.raises(DataError):
        data.subset([]).positions([3])
    with pytest.raises(DataError, match="'training'"):
        data.part("training")


def test_parts_are_a_partition(make_examples):
    data = make_examples()
    train, test = data.part("train"), data.part("test")
    assert set(train.split) == {"train"} and set(test.split) == {"test"}
    assert sorted([*train.example_id, *test.example_id]) == sorted(data.example_id)
    assert train.digest != data.digest
    assert train.num_classes == 3 and test.input_shape == (4,) and len(train) == train.num_examples


def test_content_hash_is_sha256_of_the_raw_values(make_examples):
    x = _images()
    assert make_examples(x).content_hash.tolist() == [hashlib.sha256(row.tobytes()).hexdigest() for row in x]
    floats = np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, 2.0], [3.0, 1.0]], np.float32)
    hashes = make_examples(floats, num_classes=2).content_hash
    assert hashes[0] == hashes[1] == hashlib.sha256(floats[0].astype("<f4").tobytes()).hexdigest()
    assert len(set(hashes)) == 3


CHANGES = {
    "y": lambda d: _set(d.y, 5, (d.y[5] + 1) % 3),
    "example_id": lambda d: _set(d.example_id, 5, 9999),
    "split": lambda d: _set(d.split, 5, "test" if d.split[5] == "train" else "train"),
    "owner": lambda d: _set(d.owner.astype("<U3"), 5, "ann"),
    "content_hash": lambda d: _set(d.content_hash, 5, "f" * 64),
    "class_names": lambda d: ("c0", "c1", "other"),
}


@pytest.mark.parametrize("column", CHANGES)
def test_digest_sees_every_column(make_examples, column):
    data = make_examples()
    assert dataclasses.replace(data, **{column: CHANGES[column](data)}).digest != data.digest


def test_digest_keeps_columns_and_rows_apart(make_examples):
    data = make_examples()
    owner = np.array(["ab", "c", *[""] * 38])
    other = np.array(["a", "bc", *[""] * 38])
    assert dataclasses.replace(data, owner=owner).digest != dataclasses.replace(data, owner=other).digest


def test_subset_of_a_memory_map_reads_nothing(make_examples, tmp_path, peak_below):
    path = tmp_path / "big.bin"
    num, side = 1500, 1024
    with path.open("wb") as stream:
        stream.truncate(num * side * side)  # sparse: 1.5 GB declared, nothing on disk
    mapped = np.memmap(path, np.uint8, "r", shape=(num, 1, side, side))
    small = make_examples(num=num)
    data = dataclasses.replace(
        small, x=mapped, center=np.zeros((1, 1, 1), np.float32), scale=np.ones((1, 1, 1), np.float32)
    )
    with peak_below(40e6):
        retain = data.subset(np.delete(data.example_id, 700)).part("train")
        assert retain.inputs(np.array([0, 5])).shape == (2, 1, side, side)
        neighbours = data.subset(data.example_id[10:20])
    assert isinstance(retain.x, Rows) and on_disk(retain.x)
    assert isinstance(neighbours.x, np.ndarray) and on_disk(neighbours.x)
    assert retain.x.nbytes == retain.num_examples * side * side


@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=3).filter(lambda s: sum(s) > 0),
    data=st.data(),
)
def test_rows_behave_like_the_stacked_array(sizes, data):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 2, 3)).astype(np.float32) for n in sizes]
    stacked = np.concatenate(parts)
    num = len(stacked)
    lazy, plain = Rows(parts), stacked
    for _ in range(data.draw(st.integers(0, 2))):
        if not len(plain):
            break
        chosen = np.array(data.draw(st.lists(st.integers(0, len(plain) - 1), max_size=8)), np.int64)
        lazy, plain = select(lazy, chosen), plain[chosen]
    assert lazy.shape == plain.shape and lazy.dtype == plain.dtype and len(lazy) == len(plain)
    np.testing.assert_array_equal(np.asarray(lazy), plain)
    np.testing.assert_array_equal(np.array([lazy[i] for i in range(len(lazy))]).reshape(plain.shape), plain)
    cut = data.draw(st.slices(max(len(plain), 1)))
    np.testing.assert_array_equal(lazy[cut], plain[cut])
    if len(plain):
        rows = np.array(data.draw(st.lists(st.integers(-len(plain), len(plain) - 1), max_size=5)), np.int64)
        np.testing.assert_array_equal(gather(lazy, rows), plain[rows])
        np.testing.assert_array_equal(lazy[rows, 1], plain[rows, 1])
        np.testing.assert_array_equal(lazy[-1, 0, 2], plain[-1, 0, 2])
        with pytest.raises(IndexError):
            lazy[len(plain)]
    assert num == sum(sizes)


def test_rows_refuse_what_does_not_stack():
    with pytest.raises(ValueError, match="differ"):
        Rows([np.zeros((2, 3)), np.zeros((2, 4))])
    with pytest.raises(ValueError, match="copy"):
        np.array(Rows([np.zeros((2, 3))]), copy=False)


def test_gather_does_not_copy_an_array_that_is_not_contiguous(peak_below):
    base = np.zeros((4000, 50, 50, 3), np.uint8).transpose(0, 3, 1, 2)
    with peak_below(1e6):
        assert gather(base, np.array([1, 2])).shape == (2, 3, 50, 50)


def test_blocks_cover_every_row_once():
    x = np.zeros((1001, 1000, 3), np.float64)
    cuts = list(blocks(x))
    assert len(cuts) > 1 and [i for c in cuts for i in range(c.start, c.stop)] == list(range(1001))


def _set(values, row, value):
    changed = np.array(values)
    changed[row] = value
    return changed


REFUSALS = {
    "nan value": (lambda d: {"x": _set(d.x, (4, 1), np.nan)}, "NaN", [4]),
    "infinite value": (lambda d: {"x": _set(d.x, (6, 0), -np.inf)}, "infinite", [6]),
    "overflow when scaled": (lambda d: {"x": _set(d.x, (2, 0), 3e38), "scale": d.scale * 1e3}, "infinite", [2]),
    "duplicate id": (lambda d: {"example_id": _set(d.example_id, 3, d.example_id[9])}, "more than once", [9]),
    "negative id": (lambda d: {"example_id": _set(d.example_id, 0, -5)}, ">= 0", None),
    "label above": (lambda d: {"y": _set(d.y, 7, 3)}, "outside 0..2", [7]),
    "label below": (lambda d: {"y": _set(d.y, 7, -1)}, "outside 0..2", [7]),
    "float labels": (lambda d: {"y": d.y.astype(float)}, "y has dtype float64", None),
    "short column": (lambda d: {"owner": d.owner[:-1]}, "owner has shape", None),
    "rows and ids": (lambda d: {"x": d.x[:-1]}, "39 rows", None),
    "strange split": (lambda d: {"split": _set(d.split, 1, "valid")}, "'valid'", [1]),
    "no training": (lambda d: {"split": np.full(40, "test")[:].astype("<U5")}, "no training example", None),
    "three axes": (lambda d: {"x": d.x[:, :, None]}, "allowed are images", None),
    "float64": (lambda d: {"x": d.x.astype(np.float64)}, "allowed are images", None),
    "no features": (lambda d: {"x": d.x[:, :0]}, "allowed are images", None),
    "one class": (lambda d: {"y": d.y * 0, "class_names": ("a",)}, "at least 2", None),
    "class twice": (lambda d: {"class_names": ("a", "b", "a")}, "'a' is used more than once", None),
    "empty class": (lambda d: {"class_names": ("c0", "c1", "c2", "ghost")}, "'ghost' \\(index 3\\)", None),
    "feature names": (lambda d: {"feature_names": ("a", "b")}, "2 feature names", None),
    "scale zero": (lambda d: {"scale": d.scale * 0}, "scale must not be 0", None),
    "center nan": (lambda d: {"center": d.center * np.nan}, "center must be finite", None),
    "center shape": (lambda d: {"center": np.zeros(3, np.float32)}, "center has shape", None),
    "ranking of features": (lambda d: {"task": "ranking"}, "needs user indexes", None),
    "provenance": (lambda d: {"provenance": {"when": object()}}, "canonical JSON", None),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_validate_refuses(make_examples, case):
    data = make_examples().validate()
    change, message, rows = REFUSALS[case]
    changed = dataclasses.replace(data, **change(data))
    with pytest.raises(ValueError, match=message) as error:
        changed.validate()
    if rows is not None:
        assert set(error.value.example_ids) == {int(data.example_id[r]) for r in rows}


def test_class_that_is_only_in_the_test_split_is_refused(make_examples):
    data = make_examples()
    split = np.where(data.y == 1, "test", "train").astype("<U5")
    with pytest.raises(DataError, match="'c1'"):
        dataclasses.replace(data, split=split).validate()


def test_regression_targets(make_examples):
    y = np.linspace(-1, 1, 40)
    data = make_examples(y=y, task="regression", class_names=()).validate()
    assert data.num_classes == 0 and data.digest != make_examples(y=-y, task="regression", class_names=()).digest
    with pytest.raises(DataError, match="not finite") as error:
        dataclasses.replace(data, y=_set(y, 8, np.inf)).validate()
    assert error.value.example_ids == (data.example_id[8],)
    with pytest.raises(DataError, match="no class names"):
        dataclasses.replace(data, class_names=("a", "b")).validate()
    empty = dataclasses.replace(
        data, **{k: getattr(data, k)[:0] for k in ("x", "y", "example_id", "split", "owner", "content_hash")}
    )
    with pytest.raises(DataError, match="no examples"):
        empty.validate()
