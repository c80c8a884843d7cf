"""The stratified split: counts by brute force, independence of row order, uniformity over seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import DataError
from sources.splits import stratified_split
from tasks.base import named


def _split(y, ids=None, *, task="classification", test_fraction=0.25, seed=0):
    ids = np.arange(len(y)) if ids is None else ids
    return stratified_split(named(task).strata(None, np.asarray(y), ids), ids, test_fraction=test_fraction, seed=seed)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=8).filter(lambda s: max(s) > 1),
    fraction=st.floats(0.05, 0.9),
    seed=st.integers(0, 2**31),
)
def test_every_class_trains_and_counts_follow_the_fraction(sizes, fraction, seed):
    y = np.repeat(np.arange(len(sizes)) * 3, sizes)
    split = _split(y, test_fraction=fraction, seed=seed)
    assert split.dtype == "<U5" and set(split) == {"train", "test"}
    num_test = {k: int((split[y == 3 * k] == "test").sum()) for k in range(len(sizes))}
    assert all(num_test[k] <= n - 1 for k, n in enumerate(sizes))
    room = sum(n - 1 for n in sizes)
    assert sum(num_test.values()) == min(max(round(fraction * sum(sizes)), 1), room)
    capped = any(num_test[k] == n - 1 for k, n in enumerate(sizes))
    if not capped:  # largest remainders: every class gets the floor or the ceiling of its quota
        assert all(abs(num_test[k] - fraction * n) < 1 for k, n in enumerate(sizes))


@given(
    order=st.permutations(range(50)), seed=st.integers(0, 1000), task=st.sampled_from(["classification", "regression"])
)
def test_split_belongs_to_the_ids_not_to_the_rows(order, seed, task):
    ids = np.random.default_rng(1).permutation(10_000)[:50]
    y = np.random.default_rng(2).integers(0, 4, 50)
    y = y if task == "classification" else y.astype(float)
    order = np.array(order)
    straight = _split(y, ids, task=task, seed=seed)
    np.testing.assert_array_equal(_split(y[order], ids[order], task=task, seed=seed), straight[order])


def test_an_added_example_moves_at_most_one_other_of_each_class():
    y, ids = np.arange(200) % 4, np.arange(200)
    before = _split(y, ids)
    after = _split(np.append(y, 2), np.append(ids, 777))[:-1]
    for k in range(4):
        assert (before[y == k] != after[y == k]).sum() <= 1


def test_each_example_is_tested_equally_often_over_the_seeds():
    y, seeds, fraction = np.arange(120) % 3, 600, 0.25
    tested = np.mean([_split(y, seed=s) == "test" for s in range(seeds)], axis=0)
    spread = np.sqrt(fraction * (1 - fraction) / seeds)
    assert np.abs(tested - fraction).max() < 5 * spread
    # The spread itself is that of independent draws, so seeds are not copies of one another.
    assert 0.7 * spread < tested.std() < 1.3 * spread


def test_regression_bins_cover_the_range():
    y = np.random.default_rng(3).exponential(size=400)
    split = _split(y, task="regression")
    bins = np.argsort(np.argsort(y)) // 40
    assert [(split[bins == b] == "test").sum() for b in range(10)] == [10] * 10


def test_no_example_can_be_spared():
    with pytest.raises(DataError, match="every class keeps one"):
        _split(np.arange(5))
