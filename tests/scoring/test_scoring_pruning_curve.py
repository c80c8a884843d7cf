"""The rules of pruning against plain loops; the curve on data where it is known what helps; equal steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from contracts.errors import ConfigError, DataError, InvalidInput, NotApplicable
from contracts.methods import analysis
from contracts.progress import silent
from recipes import SupervisedConfig, builder, supervised
from scoring.pruning_curve import RULES, PruningCurveConfig, pruning_curve, rows_kept
from scoring.retraining import mean_interval
from sources import load, plant_label_noise
from sources.example_set import ExampleSet

RECIPE = SupervisedConfig(lr=0.2, epochs=20, batch=32)


def trainer(data: ExampleSet, log: list | None = None):
    build = builder("mlp", {"hidden": (16,)}, input_shape=data.input_shape, num_outputs=data.num_classes)

    def train(members: ExampleSet, seed: int, *, effort: float = 1.0, observe=None) -> nn.Module:
        if log is not None:
            log.append((tuple(members.example_id.tolist()), seed, effort))
        plan = dataclasses.replace(RECIPE, epochs=max(1, round(RECIPE.epochs * effort)))
        return supervised(build, members, config=plan, seed=seed, observe=observe)

    return train


@pytest.fixture(scope="module")
def wine() -> ExampleSet:
    return load("sklearn", {"dataset": "wine", "test_fraction": 0.4}, seed=1)


def scores_of(data: ExampleSet, values: np.ndarray | None = None):
    train = data.part("train")
    values = np.random.default_rng(0).normal(size=len(train)) if values is None else values
    return lambda name: pl.DataFrame({"example_id": train.example_id, "value": values})


def run(data, scores, train, *, seed=0, progress=silent, **config):
    settings = PruningCurveConfig.from_mapping(config)
    return pruning_curve(data, config=settings, seed=seed, progress=progress, scores=scores, train=train)


def loop(rule, hardness, labels, size, offset):
    """The rules, one example at a time."""
    order = sorted(range(len(hardness)), key=lambda i: (-hardness[i], i))
    if rule == "hardest":
        return order[:size]
    if rule == "easiest":
        return order[len(order) - size :]
    if rule == "offset":
        skip = min(round(offset * len(order)), len(order) - size)
        return order[skip:][:size]
    quota = {k: sum(v == k for v in labels) * size / len(labels) for k in sorted(set(labels))}
    take = {k: int(q) for k, q in quota.items()}
    for k in sorted(quota, key=lambda k: take[k] - quota[k])[: size - sum(take.values())]:
        take[k] += 1
    return [i for k in quota for i in [j for j in order if labels[j] == k][: take[k]]]


@given(
    rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=2, max_size=40),
    share=st.floats(0.05, 0.95),
    offset=st.floats(0, 0.9),
    rule=st.sampled_from([r for r in RULES if r != "random"]),
)
def test_rules_equal_the_loop_ties_included(rows, share, offset, rule):
    hardness, labels = np.array(rows).T
    size = min(max(1, round(share * len(rows))), len(rows) - 1)
    found = rows_kept(rule, hardness.astype(float), labels, size, offset=offset)
    assert len(found) == size == len(set(found.tolist()))
    assert sorted(found.tolist()) == sorted(loop(rule, hardness.tolist(), labels.tolist(), size, offset))


def test_every_set_is_trained_for_the_steps_of_the_full_set(wine):
    log = []
    out = run(wine, scores_of(wine), trainer(wine, log), fractions=(0.2, 0.5), seeds=2, effort=0.5)
    curve = out["pruning_curve"]
    steps = dict(curve.filter(pl.col("fraction") == 1.0).select("rule", "num_steps").iter_rows())
    assert set(steps.values()) == {10 * 4}  # 107 examples, 32 a batch
    # An epoch of 21 examples is one step; an epoch of 54 is two.
    assert (curve["num_steps"] == 40).all()
    assert {(len(ids), effort) for ids, _, effort in log} == {(107, 0.5), (21, 2.0), (54, 1.0)}
    assert curve.filter(pl.col("fraction") < 1)["num_kept"].unique().sort().to_list() == [21, 54]


def test_seeds_are_shared_random_sets_are_not_and_are_nested(wine):
    log = []
    run(wine, scores_of(wine), trainer(wine, log), fractions=(0.2, 0.5), seeds=2, rules=("hardest", "random"))
    assert len({seed for _, seed, _ in log}) == 2 and len(log) == 2 + 2 * 2 * 2
    by_size = {n: [set(ids) for ids, _, _ in log if len(ids) == n] for n in (21, 54)}
    hard_small, _, *random_small = by_size[21]
    assert by_size[21][0] == by_size[21][1] and random_small[0] != random_small[1]
    assert all(small < large for small, large in zip(random_small, by_size[54][2:], strict=True))
    values = dict(scores_of(wine)("").iter_rows())
    assert min(values[i] for i in hard_small) >= sorted(values.values())[-21]


def test_figures_are_means_over_seeds_with_paired_gains(wine):
    out = run(wine, scores_of(wine), trainer(wine), fractions=(0.3,), seeds=3, rules=("easiest", "random"))
    rows = {(r["rule"], r["fraction"]): r for r in out["pruning_curve"].to_dicts()}
    easiest, random = rows["easiest", 0.3], rows["random", 0.3]
    assert easiest["gain"] == pytest.approx(easiest["accuracy"] - random["accuracy"])
    assert random["gain"] == random["gain_low"] == random["gain_high"] == 0.0
    assert 0 <= easiest["low"] <= easiest["accuracy"] <= easiest["high"] <= 1
    full = [rows[rule, 1.0] for rule in ("easiest", "random")]
    assert full[0]["accuracy"] == full[1]["accuracy"] and full[0]["gain"] == 0.0


def test_the_interval_is_students():
    mean, low, high = mean_interval(np.array([0.5, 0.6, 0.7]))
    half = 2.9199855803537256 * 0.1 / np.sqrt(3)  # t(0.95; 2 degrees of freedom)
    assert (mean, low, high) == pytest.approx((0.6, 0.6 - half, 0.6 + half))
    assert mean_interval(np.array([0.5])) == (0.5, None, None)


def test_keeping_planted_label_noise_harms_and_skipping_it_helps():
    digits, flipped = plant_label_noise(
        load("sklearn", {"dataset": "digits", "test_fraction": 0.5}, seed=3), fraction=0.2, seed=3
    )
    values = np.isin(digits.part("train").example_id, flipped) + np.random.default_rng(1).uniform(size=899)
    settings = {
        "fractions": (0.25,),
        "offset": 0.2,
        "seeds": 2,
        "effort": 0.4,
        "rules": ("hardest", "offset", "random"),
    }
    out = run(digits, scores_of(digits, values), trainer(digits), **settings)
    gain = dict(out["pruning_curve"].filter(pl.col("fraction") == 0.25).select("rule", "gain").iter_rows())
    assert gain["hardest"] < -0.2 and gain["offset"] > 0.02  # four fifths of the hardest are noise; none of the offset


def test_keep_rates_of_the_classes(wine):
    train = wine.part("train")
    out = run(wine, scores_of(wine, -train.y.astype(float)), trainer(wine), fractions=(0.3,), seeds=2)
    rates = {(r["rule"], r["fraction"], r["label"]): r["keep_rate"] for r in out["pruning_classes"].to_dicts()}
    size = round(0.3 * len(train))
    assert rates["hardest", 0.3, 0] == size / np.sum(train.y == 0) and rates["hardest", 0.3, 2] == 0
    assert rates["easiest", 0.3, 0] == 0 and rates["random", 1.0, 1] == 1
    assert all(abs(rates["stratified", 0.3, k] - 0.3) < 1 / np.sum(train.y == k) for k in range(3))
    counts = np.bincount(train.y)
    for rule in RULES:
        assert sum(rates[rule, 0.3, k] * counts[k] for k in range(3)) == pytest.approx(size)


def test_lowest_is_hardest_when_said_so(wine):
    one, two = [], []
    values = np.random.default_rng(4).normal(size=len(wine.part("train")))
    settings = {"fractions": (0.3,), "seeds": 1, "rules": ("hardest", "random")}
    first = run(wine, scores_of(wine, values), trainer(wine, one), **settings)
    second = run(wine, scores_of(wine, -values), trainer(wine, two), hard="lowest", **settings)
    assert one == two and first["pruning_curve"].equals(second["pruning_curve"])
    assert first["pruning_curve"]["low"].null_count() == 4  # one seed, no interval


def test_examples_without_a_value_take_no_part(wine):
    values = np.arange(len(wine.part("train")), dtype=float)
    values[::2] = np.nan
    log = []
    run(wine, scores_of(wine, values), trainer(wine, log), fractions=(0.5,), seeds=1, rules=("random",))
    scored = set(wine.part("train").example_id[1::2].tolist())
    assert max(len(ids) for ids, _, _ in log) == len(scored) and all(set(ids) <= scored for ids, _, _ in log)


def test_order_of_rows_and_progress(wine):
    told = []
    shuffled = wine.subset(np.random.default_rng(2).permutation(wine.example_id))
    settings = {"fractions": (0.3,), "seeds": 2, "rules": ("stratified", "random")}
    first = run(wine, scores_of(wine), trainer(wine), progress=lambda *a: told.append(a), **settings)
    second = run(shuffled, scores_of(wine), trainer(wine), **settings)
    assert all(first[name].equals(second[name]) for name in first)
    assert [done for done, _, _ in told] == list(range(1, 7)) and {total for _, total, _ in told} == {6}


def test_what_is_refused(wine):
    train, scores = trainer(wine), scores_of(wine)
    with pytest.raises(ConfigError, match="random"):
        PruningCurveConfig(rules=("hardest",))
    with pytest.raises(ConfigError, match="increasing"):
        PruningCurveConfig(fractions=(0.5, 0.2))
    with pytest.raises(DataError, match="keeps 0 of 107"):
        run(wine, scores, train, fractions=(0.001,))
    with pytest.raises(NotApplicable, match="regression"):
        run(load("sklearn", {"dataset": "diabetes"}, seed=0), scores, train)
    with pytest.raises(NotApplicable, match="test split"):
        run(wine.part("train"), scores, train)
    stale = pl.DataFrame({"example_id": wine.part("test").example_id[:2], "value": [0.1, 0.2]})
    with pytest.raises(DataError, match="no training examples"):
        run(wine, lambda name: stale, train)
    with pytest.raises(DataError, match="twice"):
        run(wine, lambda name: pl.concat([scores(name)] * 2), train)
    with pytest.raises(InvalidInput, match="no mini-batch"):
        run(wine, scores, lambda data, seed, *, effort, observe: train(data, seed, effort=effort))


def test_declared_for_what_the_pipeline_hands_over():
    spec = analysis.get("pruning_curve").spec
    assert spec.needs == ("scores", "train") and spec.tables[0].full_name == "scores.pruning_curve"
