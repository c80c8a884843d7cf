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
    return encode_labels(values, np.arange(len(values)) + 100, **more)


@given(st.lists(st.sampled_from(["b", "a", "ü", "10", "9"]), min_size=1))
def test_text_levels_are_sorted_and_decode_back(words):
    task, y, names = _encode(words)
    assert task == "classification" and list(names) == sorted(set(words))
    assert [names[k] for k in y] == words


def test_whole_numbers_are_levels_or_indexes():
    assert _encode([7, 2, 7])[1:][1] == ("2", "7")
    assert _encode([7, 2, 7])[1].tolist() == [1, 0, 1]
    _, y, names = _encode(np.array([2, 0, 2], np.uint8), indexes=True)
    assert y.tolist() == [2, 0, 2] and y.dtype == np.int64 and names == ("0", "1", "2")
    assert _encode([1, 0], class_names=("no", "yes"))[2] == ("no", "yes")
    assert _encode([True, False])[2] == ("False", "True")


def test_names_give_the_order_of_text_labels():
    _, y, names = _encode(["low", "high", "low"], class_names=("low", "mid", "high"))
    assert y.tolist() == [0, 2, 0] and names == ("low", "mid", "high")


@pytest.mark.parametrize(
    ("values", "more", "message", "ids"),
    [
        ([0, -1, 2], {}, "negative", [101]),
        ([0.0, np.nan, 1.0], {}, "missing", [101]),
        (["a", ""], {}, "missing", [101]),
        ([0.0, 1.0, 1.0], {}, "labels are floats \\(0.0, 1.0\\)", [100, 101, 102]),
        ([0.5, 1.0], {"task": "classification"}, "floats", [100, 101]),
        ([0, 1, 5], {"class_names": ("a", "b")}, "allowed are 0..1", [102]),
        ([0, 1, 10**9], {"indexes": True}, "some class must be empty", [102]),
        (["a", "b"], {"class_names": ("a", "c")}, "'b' is not among", [101]),
        (["a", "b"], {"task": "regression"}, "text", []),
        ([b"x", b"y"], {}, "cannot be used", []),
        ([1 + 2j], {}, "complex", []),
        ([[1], [2]], {}, "shape", []),
    ],
)
def test_refused(values, more, message, ids):
    with pytest.raises(DataError, match=message) as error:
        _encode(values, **more)
    assert list(error.value.example_ids) == ids


def test_auto_tells_targets_from_classes():
    rng = np.random.default_rng(0)
    assert _encode(rng.normal(size=50))[0] == "regression"
    assert _encode(np.arange(50.0))[0] == "regression"  # whole, but more values than classes are written as floats
    assert _encode(rng.integers(0, 100_000, 400))[0] == "regression"  # a price
    assert _encode(np.arange(5000) % 1000)[0] == "regression"
    assert _encode(np.arange(50_000) % 1000)[0] == "classification"  # ImageNet
    assert _encode(np.arange(100))[0] == "classification"
    task, y, names = _encode(np.arange(10), task="regression")
    assert task == "regression" and y.dtype == np.float64 and names == ()
