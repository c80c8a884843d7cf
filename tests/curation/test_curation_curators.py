"""Every curator against a plain loop over the examples, and what each refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigError, DataError, NotApplicable
from contracts.methods import curator


def _run(name, data, *, seed=0, needs=None, **config):
    method = curator.get(name)
    return method(data, config=method.spec.config.from_mapping(config), seed=seed, **(needs or {}))


def _train(data):
    return sorted(int(i) for i, s in zip(data.example_id, data.split, strict=True) if s == "train")


def _forgotten(members, data):
    """Checks the promise of the table, then gives the forgotten ids."""
    assert members.schema == {"example_id": pl.Int64, "role": pl.String, "reason": pl.String}
    assert members["example_id"].to_list() == _train(data)
    assert set(members["role"]) <= {"forget", "retain"} and not members["reason"].str.len_chars().eq(0).any()
    return members.filter(pl.col("role") == "forget")["example_id"].to_list()


def _where(data, wanted):
    rows = zip(data.example_id.tolist(), data.split, data.y, data.owner, strict=True)
    return sorted(i for i, s, y, o in rows if s == "train" and wanted(i, y, o))


def test_all_are_registered_with_their_needs():
    specs = {m.spec.name: m.spec for m in curator}
    assert specs.keys() >= {"by_ids", "by_owner", "by_class", "by_predicate", "random_fraction", "top_score"}
    assert specs["by_predicate"].needs == ("select_where",) and specs["top_score"].needs == ("scores",)
    assert specs["by_class"].wants == ("classes",) and specs["by_ids"].wants == ()


@given(picked=st.sets(st.integers(0, 59), min_size=1, max_size=59))
def test_by_ids(data, picked):
    ids = [_train(data)[k] for k in picked]
    assert _forgotten(_run("by_ids", data, ids=ids), data) == sorted(ids)


def test_by_ids_refuses_what_was_not_trained_on(data):
    train, test = _train(data), data.part("test").example_id
    with pytest.raises(DataError, match="no training examples") as error:
        _run("by_ids", data, ids=[train[0], 501, 777])
    assert error.value.example_ids == (501, 777)
    with pytest.raises(DataError, match="1 of them are test examples") as error:
        _run("by_ids", data, ids=[int(test[3]), train[0]])
    assert error.value.example_ids == (int(test[3]),)
    with pytest.raises(ConfigError, match=f"lists {train[4]} more than once"):
        _run("by_ids", data, ids=[train[4], train[4]])
    with pytest.raises(ConfigError, match=">= 0"):
        _run("by_ids", data, ids=[-1])
    with pytest.raises(ConfigError, match="needs ids"):
        _run("by_ids", data)


@pytest.mark.parametrize("owner", ["ann", "bob", "cy"])
def test_by_owner(data, regression, owner):
    want = _where(data, lambda i, y, o: o == owner)
    members = _run("by_owner", data, owner=owner)
    assert _forgotten(members, data) == want
    assert _forgotten(_run("by_owner", regression, owner=owner), data) == want
    assert not members["reason"].str.contains(owner).any()  # reasons are stored, raw names must not be


def test_by_owner_keeps_names_out_of_messages(data):
    with pytest.raises(DataError) as error:
        _run("by_owner", data, owner="zoe secret")
    assert not any(name in str(error.value) for name in ("zoe", "ann", "bob"))
    with pytest.raises(ConfigError, match="nobody's"):
        _run("by_owner", data, owner="")


@pytest.mark.parametrize(("name", "index"), [("ant", 0), ("dog", 3)])
def test_by_class(data, name, index):
    assert _forgotten(_run("by_class", data, class_name=name), data) == _where(data, lambda i, y, o: y == index)


def test_by_class_refuses(data, regression):
    with pytest.raises(DataError, match="no class 'cow'; classes are: ant, bee, cat, dog"):
        _run("by_class", data, class_name="cow")
    with pytest.raises(NotApplicable):
        _run("by_class", regression, class_name="ant")


def test_by_predicate(data):
    asked = []

    def select_where(text):
        asked.append(text)
        return data.part("train").example_id[::3]

    members = _run("by_predicate", data, needs={"select_where": select_where}, where="label = 3")
    assert asked == ["label = 3"] and _forgotten(members, data) == sorted(data.part("train").example_id[::3].tolist())
    with pytest.raises(DataError, match=r"no training examples.*\(example ids: 999\)"):
        _run("by_predicate", data, needs={"select_where": lambda w: np.array([999])}, where="x")
    with pytest.raises(DataError, match="whole numbers"):
        _run("by_predicate", data, needs={"select_where": lambda w: np.array([1.5])}, where="x")
    with pytest.raises(ConfigError, match="empty"):
        _run("by_predicate", data, needs={"select_where": select_where}, where="  ")


@given(fraction=st.floats(0.02, 0.98), seed=st.integers(0, 2**31))
def test_random_fraction(data, fraction, seed):
    once = _forgotten(_run("random_fraction", data, seed=seed, fraction=fraction), data)
    assert len(once) == round(fraction * 60)
    assert once == _forgotten(_run("random_fraction", data, seed=seed, fraction=fraction), data)
    more = _forgotten(_run("random_fraction", data, seed=seed, fraction=min(0.98, fraction * 1.5)), data)
    assert set(once) <= set(more)  # nested
    order = np.random.default_rng(seed).permutation(80)
    assert once == _forgotten(_run("random_fraction", data.take(order), seed=seed, fraction=fraction), data)


def test_random_fraction_is_uniform_over_examples(data):
    seeds = 500
    hits = np.zeros(60)
    for seed in range(seeds):
        hits += (_run("random_fraction", data, seed=seed, fraction=0.2)["role"] == "forget").to_numpy()
    spread = np.sqrt(0.2 * 0.8 / seeds)
    assert np.abs(hits / seeds - 0.2).max() < 5 * spread
    assert _forgotten(_run("random_fraction", data, seed=1), data) != _forgotten(
        _run("random_fraction", data, seed=2), data
    )


@given(fraction=st.floats(0.02, 0.8), seed=st.integers(0, 2**31), num=st.integers(4, 40))
def test_random_fraction_by_a_column_takes_whole_values_and_no_more_than_needed(data, fraction, seed, num):
    scene = np.random.default_rng(seed).integers(num, size=80)
    grouped = dataclasses.replace(data, columns={"scene": scene.astype(np.int64)})
    of = dict(zip(data.example_id.tolist(), scene.tolist(), strict=True))
    train = _train(data)
    try:
        once = _forgotten(_run("random_fraction", grouped, seed=seed, fraction=fraction, by="scene"), data)
    except DataError as error:  # what is needed for the fraction is all there is
        assert "nothing would be retained" in str(error)
        return
    taken = {of[i] for i in once}
    assert once == [i for i in train if of[i] in taken], "whole values, and nothing else"
    sizes = sorted(sum(of[i] == value for i in train) for value in taken)
    wanted = round(fraction * 60)
    assert len(once) >= wanted > len(once) - sizes[-1], "without one of them it would not be enough"
    order = np.random.default_rng(seed).permutation(80)
    assert once == _forgotten(
        _run("random_fraction", grouped.take(order), seed=seed, fraction=fraction, by="scene"), data
    )
    less = _forgotten(
        _run("random_fraction", grouped, seed=seed, fraction=fraction / 2, by="scene", allow_empty=True), data
    )
    assert set(less) <= set(once)  # nested


def test_random_fraction_by_a_column_draws_every_value_alike(data):
    grouped = dataclasses.replace(data, columns={"scene": np.repeat(np.arange(40), 2)})
    train, seeds = np.array(_train(data)), 400
    scene = grouped.columns["scene"][grouped.positions(train)]
    alone = np.array([(scene == value).sum() == 1 for value in scene])
    hits = np.zeros(60)
    for seed in range(seeds):
        hits += (_run("random_fraction", grouped, seed=seed, fraction=0.3, by="scene")["role"] == "forget").to_numpy()
    assert abs(hits[alone].mean() - hits[~alone].mean()) / seeds < 0.05
    assert np.abs(hits / seeds - hits.mean() / seeds).max() < 5 * np.sqrt(0.3 * 0.7 / seeds)
    with pytest.raises(ConfigError, match="by = 'client' is no column of small; its columns: 'scene'"):
        _run("random_fraction", grouped, by="client")


def _score(ids, values):
    return {"scores": lambda name: pl.DataFrame({"example_id": ids, "value": values})}


@given(
    values=st.lists(st.sampled_from([0.0, -1.5, 2.0, 1e9, float("nan"), None, float("inf")]), min_size=60, max_size=60),
    count=st.integers(1, 30),
    end=st.sampled_from(["highest", "lowest"]),
)
def test_top_score(data, values, count, end):
    train = _train(data)
    needs = _score(train[::-1], pl.Series(values[::-1], dtype=pl.Float64))
    ranked = [(v, i) for v, i in zip(values, train, strict=True) if v is not None and v == v]
    ranked.sort(key=lambda p: (-p[0] if end == "highest" else p[0], p[1]))
    if len(ranked) < count:
        with pytest.raises(DataError, match=f"has {len(ranked)} values"):
            _run("top_score", data, needs=needs, score="el2n", count=count, end=end)
        return
    members = _run("top_score", data, needs=needs, score="el2n", count=count, end=end)
    assert _forgotten(members, data) == sorted(i for _, i in ranked[:count])
    reasons = dict(members.select("example_id", "reason").iter_rows())
    for rank, (value, example_id) in enumerate(ranked[:count], start=1):
        assert reasons[example_id] == f"el2n {value:.6g}, {end} {rank} of {len(ranked)}"
    for example_id in set(train) - {i for _, i in ranked}:
        assert reasons[example_id] == "el2n has no value"


def test_top_score_fraction_counts_all_training_examples(data):
    train = _train(data)
    asked = []

    def scores(name):
        asked.append(name)
        return pl.DataFrame({"example_id": train[:30], "value": np.arange(30)})

    members = _run("top_score", data, needs={"scores": scores}, score="memorization", fraction=0.25)
    assert asked == ["memorization"] and _forgotten(members, data) == train[15:30]
    with pytest.raises(DataError, match="36 examples are to be forgotten, score 'memorization' has 30 values"):
        _run("top_score", data, needs={"scores": scores}, score="memorization", fraction=0.6)


def test_top_score_refuses(data):
    train = _train(data)
    for ids, message, named in (
        ([*train, 501], "not in the training split", (501,)),
        ([*train, train[7]], "twice", (train[7],)),
    ):
        with pytest.raises(DataError, match=message) as error:
            _run("top_score", data, needs=_score(ids, np.zeros(61)), score="s", count=3)
        assert error.value.example_ids == named
    for config in ({}, {"fraction": 0.1, "count": 3}):
        with pytest.raises(ConfigError, match="either fraction or count"):
            _run("top_score", data, needs=_score(train, np.zeros(60)), score="s", **config)
    for config in ({"fraction": 0}, {"fraction": 1}, {"count": 0}, {"count": 1, "end": "top"}):
        with pytest.raises(ConfigError, match="allowed range"):
            _run("top_score", data, needs=_score(train, np.zeros(60)), score="s", **config)


NOTHING = {
    "by_ids": ({"ids": []}, {}),
    "by_owner": ({"owner": "zoe"}, {}),
    "by_predicate": ({"where": "false"}, {"select_where": lambda w: np.array([])}),
    "random_fraction": ({"fraction": 0.001}, {}),
    "top_score": ({"score": "s", "fraction": 0.001}, None),  # needs the ids of the fixture
}


@pytest.mark.parametrize("name", NOTHING)
def test_an_empty_forget_set_must_be_meant(data, name):
    config, needs = NOTHING[name]
    needs = _score(_train(data), np.zeros(60)) if needs is None else needs
    with pytest.raises(DataError, match="selects no training example.*allow_empty"):  # noqa: RUF043
        _run(name, data, needs=needs, **config)
    members = _run(name, data, needs=needs, allow_empty=True, **config)
    assert _forgotten(members, data) == [] and members.height == 60


def test_forgetting_everything_is_refused(data):
    train = _train(data)
    everything = {
        "by_ids": ({"ids": train}, {}),
        "by_predicate": ({"where": "true"}, {"select_where": lambda w: np.array(train)}),
        "random_fraction": ({"fraction": 0.999}, {}),
        "top_score": ({"score": "s", "count": 60}, _score(train, np.zeros(60))),
    }
    for name, (config, needs) in everything.items():
        with pytest.raises(DataError, match="nothing would be retained"):
            _run(name, data, needs=needs, allow_empty=True, **config)
    with pytest.raises(DataError, match="nothing would be retained"):
        one = data.subset(data.example_id[data.owner == "ann"])
        _run("by_owner", one, owner="ann")


def test_training_part_and_whole_set_give_the_same_members(data):
    for name, config in (("by_owner", {"owner": "ann"}), ("by_class", {"class_name": "bee"}), ("random_fraction", {})):
        assert _run(name, data, **config).equals(_run(name, data.part("train"), **config))
