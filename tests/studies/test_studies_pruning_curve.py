"""What is trained against what the curators keep; the curve on data where it is known what helps; equal steps."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from contracts.errors import ConfigError, DataError, InvalidInput, NotApplicable
from contracts.methods import analysis, curator
from contracts.progress import silent
from curation.prune import keep_hardest, offset_window
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.supervised import supervised
from sources.example_set import ExampleSet
from sources.loading import load
from sources.planted import plant_label_noise
from studies.pruning_curve import INCONCLUSIVE, RULES, PruningCurveConfig, _choices, _Measured, pruning_curve
from studies.retraining import hold_out, mean_interval

RECIPE = SupervisedConfig(lr=0.2, epochs=20, batch=32)


def trainer(data: ExampleSet, log: list | None = None, recipe: SupervisedConfig = RECIPE):
    build = builder("mlp", {"hidden": (16,)}, input_shape=data.input_shape, num_outputs=data.num_classes)

    def train(members: ExampleSet, seed: int, *, effort: float = 1.0, steps=None, observe=None) -> nn.Module:
        if log is not None:
            log.append((tuple(members.example_id.tolist()), seed, steps or effort))
        plan = dataclasses.replace(recipe, epochs=max(1, round(recipe.epochs * effort)), steps=steps)
        return supervised(build, members, config=plan, seed=seed, observe=observe)

    return train


@pytest.fixture(scope="module")
def wine() -> ExampleSet:
    return load("sklearn", {"dataset": "wine", "test_fraction": 0.4}, seed=1)


def scores_of(data: ExampleSet, values: np.ndarray | None = None):
    train = data.part("train")
    values = np.random.default_rng(0).normal(size=len(train)) if values is None else values
    return lambda name: pl.DataFrame({"example_id": train.example_id, "value": values})


def parts(data: ExampleSet, *, seed: int = 0, share: float = 0.2) -> tuple[ExampleSet, ExampleSet]:
    """What is left to train on, and the validation part."""
    train = data.part("train").subset(np.sort(data.part("train").example_id))
    left, _, validation = hold_out(train, np.zeros(len(train)), share, seed=seed, name="")
    return left, validation


LEFT = 85  # of the 107 training examples of wine


def run(data, scores, train, *, seed=0, progress=silent, **config):
    settings = PruningCurveConfig.from_mapping(config)
    return pruning_curve(data, config=settings, seed=seed, progress=progress, scores=scores, train=train)


class Untrained(nn.Module):
    """The majority class, whatever it is shown: what is trained on matters here, not what comes of it."""

    def forward(self, x):
        return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 3).float()


def recorder(log: list):
    """A recipe that takes ten steps, or those asked for, and writes down what it was given."""

    def train(members: ExampleSet, seed: int, *, effort: float = 1.0, steps=10, observe=None) -> nn.Module:
        log.append(tuple(members.example_id.tolist()))
        for _ in range(steps):
            observe(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 3))
        return Untrained()

    return train


@settings(max_examples=30)
@given(
    levels=st.lists(st.integers(0, 3), min_size=107, max_size=107),
    fraction=st.floats(0.05, 0.95),
    offset=st.floats(0, 0.9),
    hard=st.sampled_from(["highest", "lowest"]),
)
def test_the_curve_trains_exactly_what_the_curators_keep_ties_included(wine, levels, fraction, offset, hard):
    """A score of four values: 107 examples, most of them tied, 22 of them held out."""
    log, rules = [], [rule for rule in RULES if rule != "random"]
    scores = scores_of(wine, np.array(levels, float))
    out = run(
        wine,
        scores,
        recorder(log),
        fractions=(fraction,),
        offset=(offset,),
        hard=hard,
        seeds=1,
        rules=("random", *rules),
    )["pruning_curve"].filter(fraction=fraction)
    n = out["num_kept"][0]
    other = {"highest": "lowest", "lowest": "highest"}[hard]
    skip = dict(out.select("rule", "skip").iter_rows())
    away = min(round(offset * LEFT), LEFT - n)
    assert skip["offset"] == skip["stratified_offset"] == (LEFT - n - away if hard == "highest" else away)
    left, _ = parts(wine)
    kept_scores = scores("s").filter(pl.col("example_id").is_in(left.example_id))
    curators = {
        "hardest": (keep_hardest, {"count": n, "end": hard}),
        "easiest": (keep_hardest, {"count": n, "end": other}),
        "stratified": (keep_hardest, {"count": n, "end": hard, "stratified": True}),
        "offset": (offset_window, {"skip": skip["offset"], "take": n}),
        "stratified_offset": (offset_window, {"skip": skip["offset"], "take": n, "stratified": True}),
    }
    for rule, members in zip(rules, log[3:], strict=True):  # after the full set, twice, and the random one
        curate, config = curators[rule]
        plan = curator.get(curate.__name__).spec.config(score="s", **config)
        kept = curate(left, config=plan, seed=0, scores=lambda name: kept_scores).filter(role="keep")["example_id"]
        assert sorted(kept.to_list()) == list(members)


@pytest.mark.parametrize(("epochs", "warmup"), [(13, 0), (15, 0), (15, 1)])
def test_every_set_is_trained_for_the_steps_of_the_full_set(wine, epochs, warmup):
    """Effort 0.1 of 13 and 15 epochs is 1.3 and 1.5: neither these nor the epochs of the small sets are whole
    numbers."""
    log, recipe = [], SupervisedConfig(lr=0.2, epochs=epochs, batch=8, warmup_epochs=warmup)
    train = trainer(wine, log, recipe)
    curve = run(wine, scores_of(wine), train, fractions=(0.3, 0.6), seeds=2, effort=0.1)["pruning_curve"]
    steps = round(0.1 * epochs) * 11  # 85 examples
    assert (curve["num_steps"] == steps).all()
    assert {(len(ids), length) for ids, _, length in log} == {(LEFT, 0.1), (LEFT, steps), (26, steps), (51, steps)}
    assert curve.filter(pl.col("fraction") < 1)["num_kept"].unique().sort().to_list() == [26, 51]


def test_a_recipe_that_takes_other_steps_is_refused(wine):
    def train(members, seed, *, effort=1.0, steps=10, observe=None):
        for _ in range(steps + len(members) % 2):
            observe(torch.zeros(1), torch.zeros(1))
        return Untrained()

    with pytest.raises(InvalidInput, match="taken 12 steps where 11 were asked for"):
        run(wine, scores_of(wine), train)


def test_seeds_are_shared_random_sets_are_not_and_are_nested(wine):
    log = []
    run(wine, scores_of(wine), trainer(wine, log), fractions=(0.2, 0.5), seeds=2, rules=("hardest", "random"))
    assert len({seed for _, seed, _ in log}) == 2 and len(log) == 1 + 2 + 2 * 2 * 2
    by_size = {n: [set(ids) for ids, _, _ in log if len(ids) == n] for n in (17, 42)}
    *random_small, hard_small, _ = by_size[17]
    assert by_size[17][2] == by_size[17][3] and random_small[0] != random_small[1]
    assert all(small < large for small, large in zip(random_small, by_size[42][:2], strict=True))
    values = dict(scores_of(wine)("").iter_rows())
    assert min(values[i] for i in hard_small) >= sorted(values[i] for i in parts(wine)[0].example_id.tolist())[-17]


def test_several_offsets_are_several_curves(wine):
    rules = ("offset", "stratified_offset", "random")
    out = run(wine, scores_of(wine), trainer(wine), fractions=(0.3,), offset=(0.0, 0.1, 0.3), seeds=1, rules=rules)
    curve, classes = out["pruning_curve"], out["pruning_classes"]
    for frame in (curve, classes):
        found = set(frame.select("rule", "offset", "fraction").unique().iter_rows())
        want = {(r, o, f) for r in rules[:2] for o in (0.0, 0.1, 0.3) for f in (0.3, 1.0)}
        assert found == want | {("random", 0.0, f) for f in (0.3, 1.0)}
    part = curve.filter(rule="offset", fraction=0.3)
    assert part["curve"].to_list() == ["offset 0", "offset 0.1", "offset 0.3"]
    assert part["skip"].to_list() == [LEFT - 26 - away for away in (0, 8, 26)]


def test_the_validation_part_is_in_no_set_and_the_choice_is_measured_on_it(wine):
    seen = set()
    for seed in range(3):
        log: list = []
        out = run(wine, scores_of(wine), trainer(wine, log), seed=seed, fractions=(0.5,), seeds=2, validation=0.25)
        _, validation = parts(wine, seed=seed, share=0.25)
        part = frozenset(validation.example_id.tolist())
        assert set().union(*(ids for ids, _, _ in log)) == set(wine.part("train").example_id.tolist()) - part
        assert (out["pruning_choice"]["num_validation"] == len(part)).all() and len(part) == 27
        assert (out["pruning_curve"]["num_test"] == len(wine.part("test"))).all()
        seen.add(part)
    assert len(seen) == 3


class ByOffset(nn.Module):
    """Right on the share ``validation`` of the validation part and on the share ``test`` of the test split."""

    def __init__(self, validation: float, test: float) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.tensor([validation, test]))

    def forward(self, x):
        wrong = x[:, 2] >= torch.where(x[:, 1] > 0, self.shares[1], self.shares[0])
        return nn.functional.one_hot((x[:, 3].to(torch.int64) + wrong) % 2, 2).float()


def two_worlds(num: int = 1000) -> ExampleSet:
    """Feature 0: score, the hardest fifth above 0.8; 1: test or not; 2: spread over [0, 1); 3: the label."""
    rng = np.random.default_rng(0)
    y = np.tile([0, 1], num // 2)
    x = np.column_stack([rng.permutation(num) / num, np.arange(num) % 4 >= 2, rng.uniform(size=num), y])
    return ExampleSet(
        name="two worlds",
        task="classification",
        x=x.astype(np.float32),
        y=y,
        example_id=np.arange(num),
        split=np.where(x[:, 1] > 0, "test", "train").astype("<U5"),
        owner=np.full(num, "", "<U1"),
        content_hash=np.full(num, "", "<U64"),
        class_names=("a", "b"),
        center=np.zeros(4, np.float32),
        scale=np.ones(4, np.float32),
    )


def by_offset(better_on_test: float):
    """A recipe that is right on 0.9 of the validation part without examples over 0.8 and 0.6 with; 0.75 for random
    sets."""

    def train(members: ExampleSet, seed: int, *, effort: float = 1.0, steps=10, observe=None) -> nn.Module:
        for _ in range(steps):
            observe(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2))
        score = members.x[:, 0]
        share = 0.9 if score.max() <= 0.81 else 0.6 if score.min() > 0.5 else 0.75
        return ByOffset(share + 1e-3 * (seed % 5), better_on_test * share + (1 - better_on_test) * (1.5 - share))

    return train


@pytest.mark.parametrize("better_on_test", [0.0, 1.0])
def test_the_offset_is_the_one_that_is_better_on_held_out_examples_whatever_the_test_split_says(better_on_test):
    data = two_worlds()
    scores = scores_of(data, data.part("train").x[:, 0].astype(float))
    plan = {"offset": (0.0, 0.2), "rules": ("offset", "random"), "fractions": (0.2,), "seeds": 2}
    out = run(data, scores, by_offset(better_on_test), **plan)
    (choice,) = out["pruning_choice"].to_dicts()
    assert choice["choice"] == choice["best"] == "offset 0.2" and choice["num_needed"] is None
    assert choice["validation_gain"] == pytest.approx(0.15, abs=0.06) and choice["num_validation"] == 100
    assert (choice["test_gain"] > 0.1) == bool(better_on_test) and (choice["test_gain"] < -0.1) != bool(better_on_test)
    curve = out["pruning_curve"].filter(fraction=0.2, curve="offset 0.2")
    assert (choice["test_accuracy"], choice["test_gain"]) == (curve["accuracy"][0], curve["gain"][0])
    y, kept = data.y.copy(), np.ones(len(data), bool)
    test = np.flatnonzero(data.split == "test")
    y[test], kept[test[::3]] = 1 - y[test], False
    for other in (dataclasses.replace(data, y=y), data.subset(data.example_id[kept])):
        (same,) = run(other, scores, by_offset(better_on_test), **plan)["pruning_choice"].to_dicts()
        moved = {"test_accuracy", "test_gain"}
        assert {k for k in choice if choice[k] != same[k]} == moved


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_the_offset_chosen_on_validation_data_skips_planted_noise(seed):
    """A fifth of the labels are changed and rank hardest: an offset of 0 keeps them, 0.2 leaves them out."""
    digits, flipped = plant_label_noise(
        load("sklearn", {"dataset": "digits", "test_fraction": 0.5}, seed=seed), fraction=0.2, seed=seed
    )
    values = np.isin(digits.part("train").example_id, flipped) + np.random.default_rng(seed).uniform(size=899)
    plan = {"offset": (0.0, 0.2), "rules": ("offset", "random"), "fractions": (0.25,), "seeds": 3, "effort": 0.3}
    (choice,) = run(digits, scores_of(digits, values), trainer(digits), **plan)["pruning_choice"].to_dicts()
    assert choice["best"] == "offset 0.2" and choice["choice"] in ("offset 0.2", INCONCLUSIVE)


def measured(*rates: float, num: int = 100, seeds: int = 2) -> list[_Measured]:
    """Right on the first ``rate`` of the validation examples by every seed."""
    return [_Measured(np.full(seeds, 0.5), np.tile(np.arange(num) < rate * num, (seeds, 1))) for rate in rates]


def test_a_choice_needs_a_gain_above_chance_and_says_how_many_examples_would_do():
    random, little, more = measured(0.5, 0.52, 0.6)
    rows = _choices({0.3: {"random": random, "a": little}, 0.6: {"random": random, "a": little, "b": more}})
    assert [row["best"] for row in rows] == ["a", "b"] and rows[1]["choice"] == "b"
    # One candidate: z = 1.645; v = 0.02 * 0.98 * 100 / 99; no spread between seeds; gain 0.02 against 1.645 sqrt(v /
    # 100).
    v = 0.02 * 0.98 * 100 / 99
    assert (
        rows[0]["choice"] == INCONCLUSIVE
        and rows[0]["num_needed"] == math.ceil(v * 1.6448536269514722**2 / 0.02**2) == 134
    )
    assert rows[0]["stderr"] == pytest.approx(math.sqrt(v / 100)) and "about 134 examples would do" in rows[0]["why"]
    (twice,) = _choices({0.3: dict(zip(("random", "a"), measured(0.5, 0.52, num=150), strict=True))})
    assert twice["choice"] == "a" and twice["num_needed"] is None
    (worse,) = _choices({0.3: {"random": more, "a": random}})
    assert worse["choice"] == "random" and "no rule" in worse["why"]
    (single,) = _choices({0.3: dict(zip(("random", "a"), measured(0.5, 0.9, seeds=1), strict=True))})
    assert single["choice"] == INCONCLUSIVE and single["stderr"] is None and single["num_needed"] is None
    right = np.tile(np.arange(100) < 60, (2, 1))
    right[1, :40] = False  # seeds 0.4 apart: no number of examples makes that a gain
    (seeds,) = _choices({0.3: {"random": measured(0.3)[0], "a": _Measured(np.full(2, 0.5), right)}})
    assert seeds["choice"] == INCONCLUSIVE and seeds["num_needed"] is None and "more seeds" in seeds["why"]


@pytest.mark.stat
def test_rules_that_are_no_better_than_random_sets_are_rarely_chosen():
    """Four rules and random sets of the same accuracy, 400 draws: at most 5% and chance are chosen."""
    rng, names = np.random.default_rng(0), ("random", "a", "b", "c", "d")
    chosen = 0
    for _ in range(400):
        easy = rng.uniform(0.3, 1.0, 200)  # the same examples for all
        sets = {name: _Measured(np.full(3, 0.5), rng.uniform(size=(3, 200)) < easy) for name in names}
        (row,) = _choices({0.3: sets})
        chosen += row["choice"] in names[1:]
    assert chosen <= 0.05 * 400 + 2 * math.sqrt(0.05 * 0.95 * 400)


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
        "offset": (0.2,),
        "seeds": 2,
        "effort": 0.4,
        "rules": ("hardest", "offset", "random"),
    }
    out = run(digits, scores_of(digits, values), trainer(digits), **settings)
    gain = dict(out["pruning_curve"].filter(pl.col("fraction") == 0.25).select("rule", "gain").iter_rows())
    assert gain["hardest"] < -0.2 and gain["offset"] > 0.02  # four fifths of the hardest are noise; none of the offset


def test_keep_rates_of_the_classes(wine):
    train, _ = parts(wine)
    out = run(wine, scores_of(wine, -wine.part("train").y.astype(float)), trainer(wine), fractions=(0.3,), seeds=2)
    rates = {(r["rule"], r["fraction"], r["label"]): r["keep_rate"] for r in out["pruning_classes"].to_dicts()}
    size = round(0.3 * len(train))
    assert rates["hardest", 0.3, 0] == size / np.sum(train.y == 0) and rates["hardest", 0.3, 2] == 0
    assert rates["easiest", 0.3, 0] == 0 and rates["random", 1.0, 1] == 1
    assert all(abs(rates["stratified", 0.3, k] - 0.3) < 1 / np.sum(train.y == k) for k in range(3))
    counts = np.bincount(train.y)
    for rule in PruningCurveConfig().rules:
        assert sum(rates[rule, 0.3, k] * counts[k] for k in range(3)) == pytest.approx(size)


def test_lowest_is_hardest_when_said_so(wine):
    one, two = [], []
    values = np.random.default_rng(4).normal(size=len(wine.part("train")))
    settings = {"fractions": (0.3,), "seeds": 1, "rules": ("hardest", "random")}
    first = run(wine, scores_of(wine, values), trainer(wine, one), **settings)
    second = run(wine, scores_of(wine, -values), trainer(wine, two), hard="lowest", **settings)
    assert one == two
    assert first["pruning_curve"].drop("skip").equals(second["pruning_curve"].drop("skip"))
    assert (first["pruning_curve"]["skip"].to_list(), second["pruning_curve"]["skip"].to_list()) == (
        [LEFT - 26, 0, None, None],
        [0, 0, None, None],
    )
    assert first["pruning_curve"]["low"].null_count() == 4  # one seed, no interval


def test_examples_without_a_value_take_no_part(wine):
    values = np.arange(len(wine.part("train")), dtype=float)
    values[::2] = np.nan
    log = []
    settings = {"fractions": (0.5,), "seeds": 1, "rules": ("random",), "validation": 0.4}
    out = run(wine, scores_of(wine, values), trainer(wine, log), **settings)
    scored = set(wine.part("train").example_id[1::2].tolist())
    left = len(scored) - out["pruning_curve"]["num_kept"].max()
    assert 20 <= left < 24 and all(set(ids) <= scored for ids, _, _ in log) and out["pruning_choice"].height == 0


def test_order_of_rows_and_progress(wine):
    told = []
    shuffled = wine.subset(np.random.default_rng(2).permutation(wine.example_id))
    settings = {"fractions": (0.3,), "seeds": 2, "rules": ("stratified", "random")}
    first = run(wine, scores_of(wine), trainer(wine), progress=lambda *a: told.append(a), **settings)
    second = run(shuffled, scores_of(wine), trainer(wine), **settings)
    assert all(first[name].equals(second[name]) for name in first)
    assert [done for done, _, _ in told] == list(range(1, 8)) and {total for _, total, _ in told} == {7}


def test_what_is_refused(wine):
    train, scores = trainer(wine), scores_of(wine)
    with pytest.raises(ConfigError, match="random"):
        PruningCurveConfig(rules=("hardest",))
    with pytest.raises(ConfigError, match="increasing"):
        PruningCurveConfig(fractions=(0.5, 0.2))
    with pytest.raises(DataError, match="keeps 0 of 85"):
        run(wine, scores, train, fractions=(0.001,))
    with pytest.raises(NotApplicable, match="test split"):
        run(wine.part("train"), scores, train)
    with pytest.raises(NotApplicable, match=r"0\.1 of 107 are 11, at least 20 are needed: about 200 examples"):
        run(wine, scores, train, validation=0.1)
    stale = pl.DataFrame({"example_id": wine.part("test").example_id[:2], "value": [0.1, 0.2]})
    with pytest.raises(DataError, match="no training examples"):
        run(wine, lambda name: stale, train)
    with pytest.raises(DataError, match="twice"):
        run(wine, lambda name: pl.concat([scores(name)] * 2), train)
    with pytest.raises(ConfigError, match="increasing"):
        PruningCurveConfig(offset=())
    with pytest.raises(InvalidInput, match="no mini-batch"):
        run(wine, scores, lambda data, seed, *, effort, observe: train(data, seed, effort=effort))


def test_declared_for_what_the_pipeline_hands_over():
    spec = analysis.get("pruning_curve").spec
    assert spec.needs == ("scores", "train") and spec.tables[1].full_name == "scores.pruning_curve"
