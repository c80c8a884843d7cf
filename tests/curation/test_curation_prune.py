"""Pruning by a score: against sorting in plain Python, the stratified quotas, and what is refused."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigError, DataError, UnknownName
from contracts.methods import curator
from curation.split import apply_split

VALUES = st.lists(st.sampled_from([0.0, -1.5, 2.0, 2.25, 1e9, float("inf")]), min_size=60, max_size=60)


def _train(data):
    return sorted(int(i) for i, s in zip(data.example_id, data.split, strict=True) if s == "train")


def _labels(data):
    label = dict(zip(data.example_id.tolist(), data.y.tolist(), strict=True))
    return [label[i] for i in _train(data)]


def _run(name, data, values, **config):
    method = curator.get(name)
    train = _train(data)
    frame = pl.DataFrame({"example_id": train[::-1], "value": pl.Series(values[::-1], dtype=pl.Float64)})
    config = {"score": "el2n", **config}
    members = method(data, config=method.spec.config.from_mapping(config), seed=0, scores=lambda name: frame)
    assert members.schema == {"example_id": pl.Int64, "role": pl.String, "reason": pl.String}
    assert members["example_id"].to_list() == train and set(members["role"]) == {"keep", "drop"}
    return members


def _ascending(values, ids):
    """Ids by value; of equal values the smaller id is the higher."""
    return [i for _, i in sorted(zip(values, ids, strict=True), key=lambda p: (p[0], -p[1]))]


def _kept(members):
    return members.filter(pl.col("role") == "keep")["example_id"].to_list()


@given(values=VALUES, count=st.integers(1, 59), end=st.sampled_from(["highest", "lowest"]))
def test_keep_hardest(data, values, count, end):
    ranked = _ascending(values, _train(data))
    want = ranked[60 - count :] if end == "highest" else ranked[:count]
    assert _kept(_run("keep_hardest", data, values, count=count, end=end)) == sorted(want)


@given(values=VALUES, skip=st.integers(0, 58), take=st.integers(1, 59))
def test_offset_window(data, values, skip, take):
    ranked = _ascending(values, _train(data))
    if skip + take > 60:
        with pytest.raises(DataError, match=f"skip {skip} \\+ take {take} is more than the 60"):
            _run("offset_window", data, values, skip=skip, take=take)
        return
    assert _kept(_run("offset_window", data, values, skip=skip, take=take)) == sorted(ranked[skip : skip + take])


@given(values=VALUES, take=st.integers(1, 59), stratified=st.booleans())
def test_keep_hardest_is_the_window_at_an_end_ties_included(data, values, take, stratified):
    for end, skip in (("highest", 60 - take), ("lowest", 0)):
        window = _run("offset_window", data, values, skip=skip, take=take, stratified=stratified)
        assert _run("keep_hardest", data, values, count=take, end=end, stratified=stratified).equals(window)


def test_fractions_are_of_the_training_split(data):
    values = np.random.default_rng(0).normal(size=60).tolist()
    by_count = _run("keep_hardest", data, values, count=18)
    assert _run("keep_hardest", data, values, fraction=0.3).equals(by_count)
    window = _run("offset_window", data, values, skip_fraction=0.2, take_fraction=0.5)
    assert window.equals(_run("offset_window", data, values, skip=12, take=30))
    # the top of the ranking is the window that ends at its end
    assert _kept(_run("offset_window", data, values, skip_fraction=0.7, take_fraction=0.3)) == _kept(by_count)


@pytest.mark.parametrize("end", ["highest", "lowest"])
def test_stratified_keeps_every_class_in_proportion_and_sets_are_nested(data, end):
    labels = np.array(_labels(data))
    # one class is the hardest throughout: unstratified, it alone would be kept
    values = (np.random.default_rng(1).normal(size=60) + 100 * (labels == 2)).tolist()
    sizes = np.bincount(labels)
    assert set(np.array(labels)[np.isin(_train(data), _kept(_run("keep_hardest", data, values, count=10)))]) == {2}
    before: set[int] = set()
    for count in range(1, 60):
        kept = _kept(_run("keep_hardest", data, values, count=count, stratified=True, end=end))
        assert len(kept) == count and before <= set(kept)
        before = set(kept)
        inside = np.isin(_train(data), kept)
        assert (np.abs(np.bincount(labels[inside], minlength=4) - count * sizes / 60) <= 1).all()
        for k in range(4):  # within a class, its own extreme values
            own = np.array(values)[labels == k]
            sign = 1 if end == "highest" else -1
            mine, others = sign * own[inside[labels == k]], sign * own[~inside[labels == k]]
            assert not len(mine) or not len(others) or mine.min() >= others.max()


def test_a_stratified_window_is_the_difference_of_two_stratified_sets(data):
    values = np.random.default_rng(2).normal(size=60).tolist()
    low = set(_kept(_run("keep_hardest", data, values, count=13, end="lowest", stratified=True)))
    high = set(_kept(_run("keep_hardest", data, values, count=41, end="lowest", stratified=True)))
    window = _kept(_run("offset_window", data, values, skip=13, take=28, stratified=True))
    assert sorted(high - low) == window


def test_reasons_give_value_rank_and_the_class_rate(data):
    values, labels = list(np.arange(60.0)), _labels(data)
    members = _run("keep_hardest", data, values, count=20)
    kept_of = np.bincount(np.array(labels)[40:], minlength=4)
    sizes = np.bincount(labels)
    for position, (_, role, reason) in enumerate(members.iter_rows()):
        k = labels[position]
        assert role == ("keep" if position >= 40 else "drop")
        assert reason == (
            f"el2n {position}, rank {position + 1} of 60 ascending; "
            f"kept of {data.class_names[k]!r}: {kept_of[k]} of {sizes[k]} ({kept_of[k] / sizes[k]:.1%})"
        )


@pytest.mark.parametrize("hole", [None, float("nan")])
def test_examples_without_a_value_are_refused_or_ranked_where_said(data, hole):
    values, train = list(np.arange(60.0)), _train(data)
    values[5] = hole
    with pytest.raises(DataError, match="no value for 1 training examples") as error:
        _run("keep_hardest", data, values, count=3)
    assert error.value.example_ids == (train[5],)
    highest = _run("keep_hardest", data, values, count=3, missing="highest")
    assert _kept(highest) == sorted([train[5], train[58], train[59]])
    assert "el2n no value, rank 60" in highest.filter(pl.col("example_id") == train[5])["reason"].item()
    assert train[5] not in _kept(_run("keep_hardest", data, values, count=59, missing="lowest"))
    assert _kept(_run("offset_window", data, values, skip=0, take=1, missing="lowest")) == [train[5]]


def test_both_work_on_regression_whose_strata_are_bins_of_the_target(regression):
    values, train = list(np.arange(60.0)), _train(regression)
    assert _kept(_run("keep_hardest", regression, values, count=2)) == sorted(train[-2:])
    part = regression.subset(train)
    bins = part.task.strata(part.x, part.y, part.example_id)
    kept = np.isin(train, _kept(_run("keep_hardest", regression, values, count=24, stratified=True)))
    assert np.bincount(bins).tolist() == [10] * 6 and np.bincount(bins[kept]).tolist() == [4] * 6
    for k in range(6):
        own = np.flatnonzero(bins == k)
        assert kept[own].tolist() == [False] * 6 + [True] * 4, "the highest of each bin, in the order of the ids"
    window = _run("offset_window", regression, values, skip=12, take=12, stratified=True)
    assert np.bincount(bins[np.isin(train, _kept(window))]).tolist() == [2] * 6
    assert window["reason"].str.contains("kept of 'stratum [0-5]': 2 of 10").all()


def test_the_members_become_data_sets(data):
    members = _run("offset_window", data, list(np.arange(60.0)), skip=10, take=20)
    parts = apply_split(data, members, roles=curator.get("offset_window").spec.roles)
    assert parts["keep"].example_id.tolist() == _train(data)[10:30] and len(parts["drop"]) == 40


def test_refusals(data):
    values = list(np.arange(60.0))
    for config in ({}, {"count": 3, "fraction": 0.1}):
        with pytest.raises(ConfigError, match="either fraction or count"):
            _run("keep_hardest", data, values, **config)
    with pytest.raises(ConfigError, match="either skip_fraction or skip"):
        _run("offset_window", data, values, take=3)
    with pytest.raises(ConfigError, match="either take_fraction or take"):
        _run("offset_window", data, values, skip=3)
    with pytest.raises(ConfigError, match="must be <= 1"):
        _run("offset_window", data, values, skip_fraction=0.6, take_fraction=0.5)
    with pytest.raises(DataError, match="keep none"):
        _run("keep_hardest", data, values, fraction=0.001)
    for name, config in (("keep_hardest", {"count": 60}), ("offset_window", {"skip": 0, "take": 60})):
        with pytest.raises(DataError, match="nothing is pruned"):
            _run(name, data, values, **config)

    method = curator.get("keep_hardest")

    def unknown(name):
        raise UnknownName("score", name, ["grand"])

    config = method.spec.config(score="el3n", count=3)
    with pytest.raises(UnknownName, match="el3n"):
        method(data, config=config, seed=0, scores=unknown)
    stale = pl.DataFrame({"example_id": [*_train(data)[:-1], 7777], "value": values})
    with pytest.raises(DataError, match="not in the training split") as error:
        method(data, config=config, seed=0, scores=lambda name: stale)
    assert error.value.example_ids == (7777,)
