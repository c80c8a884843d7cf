"""Raw labels to class indexes or targets, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import DataError
from sources.labels import encode_labels


def _encode(values, **more):
    values = np.asarray(values)
    return encode_labels(values, np.array([f"row {i}" for i in range(len(values))]), **more)


@given(st.lists(st.sampled_from(["b", "a", "ü", "10", "9"]), min_size=1))
def test_text_levels_are_sorted_and_decode_back(words):
    task, y, names, notes = _encode(words)
    assert task == "classification" and list(names) == sorted(set(words)) and notes == ()
    assert [names[k] for k in y] == words


@pytest.mark.parametrize(
    ("values", "y", "names", "said"),
    [
        ([7, 2, 7], [1, 0, 1], ("2", "7"), "labels 2, 7 are classes 0, 1"),
        (np.array([2, 0, 2], np.uint8), [1, 0, 1], ("0", "2"), "labels 0, 2 are classes 0, 1"),
        ([1, 2, 3], [0, 1, 2], ("1", "2", "3"), "labels 1, 2, 3 are classes 0, 1, 2"),
        ([1, -1, 1], [1, 0, 1], ("-1", "1"), "labels -1, 1 are classes 0, 1"),
        ([-1.0, 1.0], [0, 1], ("-1", "1"), "labels -1, 1 are classes 0, 1; --task regression"),
        ([0.0, 1.0, 1.0], [0, 1, 1], ("0", "1"), "labels are written as floats (0, 1); --task regression"),
        ([[0, 1], [1, 0], [0, 1]], [1, 0, 1], ("0", "1"), "labels of shape (3, 2) are one-hot"),
        (np.eye(3, dtype=np.float32), [0, 1, 2], ("0", "1", "2"), "labels of shape (3, 3) are one-hot"),
        ([[0, 1, 0], [0, 0, 1]], [0, 1], ("1", "2"), "one-hot"),
        (np.array([1, 0]).reshape(2, 1, 1), [1, 0], ("0", "1"), "labels of shape (2, 1, 1) are read as (2,)"),
        ([[1], [0]], [1, 0], ("0", "1"), None),
        ([1, 0], [1, 0], ("0", "1"), None),
        ([True, False], [1, 0], ("False", "True"), None),
    ],
)
def test_labels_are_mapped_and_the_mapping_is_said(values, y, names, said):
    found = _encode(values)
    assert found.task == "classification" and found.y.tolist() == y and found.class_names == names
    assert (not found.notes) if said is None else any(said in note for note in found.notes)


def test_names_give_the_order_of_labels():
    assert _encode([1, 0], class_names=("no", "yes")).class_names == ("no", "yes")
    found = _encode(["low", "high", "low"], class_names=("low", "mid", "high"))
    assert found.y.tolist() == [0, 2, 0] and found.class_names == ("low", "mid", "high")
    found = _encode([1, 2, 2], class_names=("no", "yes"))  # as many levels as names, counted from 1
    assert found.y.tolist() == [0, 1, 1] and found.notes == ("labels 1, 2 are classes 0, 1, named no, yes",)


@pytest.mark.parametrize(
    ("values", "more", "message", "rows"),
    [
        ([0, -1, 2], {}, "negative", [1]),
        ([0, -1, 1], {}, "negative", [1]),
        ([0.0, np.nan, 1.0], {}, "missing", [1]),
        (["a", ""], {}, "missing", [1]),
        ([0.5, 1.0], {"task": "classification"}, "not whole \\(0.5\\)", [0]),
        ([0, 1, 5], {"class_names": ("a", "b")}, "allowed are 0..1", [2]),
        (["a", "b"], {"class_names": ("a", "c")}, "'b' is not among", [1]),
        (["a", "b"], {"task": "regression"}, "text", []),
        ([b"x", b"y"], {}, "cannot be used", []),
        ([1 + 2j], {}, "complex", []),
        ([[1, 1], [0, 1]], {}, "not one-hot", [0]),
        ([[0.2, 0.8], [0, 1]], {}, "not one-hot", [0]),
        ([["a", "b"]], {}, "text of shape", []),
    ],
)
def test_refused(values, more, message, rows):
    with pytest.raises(DataError, match=message) as error:
        _encode(values, **more)
    assert list(error.value.where) == [f"row {row}" for row in rows]


def test_auto_tells_targets_from_classes():
    rng = np.random.default_rng(0)
    assert _encode(rng.normal(size=50)).task == "regression"
    assert _encode(np.arange(50.0)).task == "regression"  # whole, but more values than classes are written as floats
    assert _encode(rng.integers(0, 100_000, 400)).task == "regression"  # a price
    assert _encode(np.arange(5000) % 1000).task == "regression"
    assert _encode(np.arange(50_000) % 1000).task == "classification"  # ImageNet
    assert _encode(np.arange(100)).task == "classification"
    found = _encode(np.arange(10), task="regression")
    assert found.task == "regression" and found.y.dtype == np.float64 and found.class_names == ()
