"""Forget-set selectors against naive ones, and the arithmetic of the qualification on planted metrics."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from scoring_data import make_examples

from contracts.errors import ConfigError, DataError, Diverged, InvalidInput
from scoring.forget_selectors import SELECTORS, ForgetSelectorsConfig, choose, forget_selectors
from scoring.qualification import RUNS, SUMMARY, QualificationConfig, qualification
from scoring.worst_case_forget import WorstCaseForgetConfig, select_worst_case

SEARCH = WorstCaseForgetConfig(fraction=0.2, upper_steps=2, lower_epochs=1)
BY_CLASS = dataclasses.replace(SEARCH, group="class", fraction=0.5)


@pytest.fixture
def both_splits(examples):
    """37 examples, of which 9 are for testing; every class is in both parts."""
    split = np.where(np.arange(37) % 4 == 0, "test", "train").astype("<U5")
    return dataclasses.replace(examples, split=split)


def values_of(model, data) -> dict[str, np.ndarray]:
    """What each of the simple selectors goes by, the naive way."""
    x, y = torch.from_numpy(data.inputs(slice(None))), torch.from_numpy(data.y)
    loss = F.cross_entropy(model(x).double(), y, reduction="none").detach().numpy()
    features = model[1](model[0](x)).detach().double().numpy()
    distance = np.array(
        [
            np.sqrt(np.square(f - np.median(features[data.y == k], axis=0)).sum())
            for f, k in zip(features, data.y, strict=True)
        ]
    )
    norms = []
    for b in range(len(x)):
        gradients = torch.autograd.grad(F.cross_entropy(model(x[b : b + 1]), y[b : b + 1]), list(model.parameters()))
        norms.append(sum(float(g.square().sum()) for g in gradients) ** 0.5)
    return {"lowest_loss": loss, "highest_loss": -loss, "moderate": distance, "lowest_gradient": np.array(norms)}


@pytest.mark.parametrize("selector", ["lowest_loss", "highest_loss", "moderate", "lowest_gradient"])
def test_simple_selectors_equal_naive_ones(examples, mlp, selector) -> None:
    order = examples.example_id[np.argsort(values_of(mlp(0), examples)[selector])]
    exact = order[18 - 3 : 18 - 3 + 7] if selector == "moderate" else order[:7]
    found = choose(selector, mlp(0), examples, config=SEARCH, seed=0)
    assert found.example_id.tolist() == exact.tolist()


@pytest.mark.parametrize("selector", ["lowest_loss", "highest_loss", "lowest_gradient"])
def test_classes_go_by_their_mean(examples, mlp, selector) -> None:
    values = values_of(mlp(0), examples)[selector]
    means = [values[examples.y == k].mean() for k in range(4)]
    found = choose(selector, mlp(0), examples, config=BY_CLASS, seed=0)
    exact = examples.example_id[np.isin(examples.y, np.argsort(means)[:2])]
    assert set(found.example_id) == set(exact)


@pytest.mark.parametrize("config", [SEARCH, BY_CLASS], ids=["examples", "classes"])
@pytest.mark.parametrize("selector", SELECTORS)
def test_sets_depend_on_ids_and_not_on_rows(examples, mlp, selector, config) -> None:
    mixed = examples.subset(np.random.default_rng(0).permutation(examples.example_id))
    one, two = (choose(selector, mlp(0), d, config=config, seed=3) for d in (examples, mixed))
    assert one.example_id.tolist() == two.example_id.tolist()
    assert len(set(one.example_id)) == len(one.example_id) and set(one.example_id) <= set(examples.example_id)
    if config is SEARCH:
        assert len(one.example_id) == 7
    else:
        chosen = np.isin(examples.example_id, one.example_id)
        assert all(len(set(chosen[examples.y == k])) == 1 for k in range(4)), "classes are taken whole"
        assert len(np.unique(examples.y[chosen])) == 2


def test_random_classes_are_equally_likely_whatever_their_size(mlp) -> None:
    y = np.repeat([0, 1, 2, 3], [2, 2, 2, 60])
    data = make_examples(np.ones((66, 6), np.float32), y, num_classes=4)
    config = dataclasses.replace(BY_CLASS, fraction=0.25)
    drawn = [int(data.y[choose("random", mlp(0), data, config=config, seed=s).example_id[0]]) for s in range(200)]
    # 50 expected of each, standard deviation 6.1
    assert np.abs(np.bincount(drawn, minlength=4) - 50).max() < 28


def test_searches_are_those_of_the_score(examples, mlp) -> None:
    for selector, direction in (("worst_case", "hardest"), ("easiest", "easiest")):
        found = choose(selector, mlp(0), examples, config=SEARCH, seed=3)
        exact = select_worst_case(mlp(0), examples, config=SEARCH.turned(direction), seed=3)
        assert set(found.example_id) == set(exact.forget_ids)
        assert (np.diff(found.value) <= 0).all()
    with pytest.raises(ConfigError, match="lowest_loss"):
        choose("hardest", mlp(0), examples, config=SEARCH, seed=3)
    with pytest.raises(DataError):
        choose("random", mlp(0), examples.subset(examples.example_id[:1]), config=SEARCH, seed=3)


def test_the_table_of_selectors(both_splits, mlp) -> None:
    config = ForgetSelectorsConfig(search=SEARCH)
    out = forget_selectors(both_splits, config=config, seed=1, model=mlp(0))
    train, members = both_splits.part("train"), out["forget_selector_members"]
    sets = {name: set(part["example_id"]) for (name,), part in members.group_by("selector")}
    assert set(sets) == set(SELECTORS) and all(len(s) == round(0.2 * 27) <= len(train) for s in sets.values())
    assert all(s <= set(train.example_id.tolist()) for s in sets.values())
    assert out["forget_selectors"].height == len(SELECTORS) ** 2
    for row in out["forget_selectors"].iter_rows(named=True):
        a, b = sets[row["selector"]], sets[row["other"]]
        assert row["shared"] == len(a & b) and row["jaccard"] == pytest.approx(len(a & b) / len(a | b))
    mean = {row["selector"]: row["mean_loss"] for row in out["forget_selectors"].iter_rows(named=True)}
    assert mean["lowest_loss"] <= min(mean.values()) + 1e-9 and mean["highest_loss"] >= max(mean.values()) - 1e-9
    # two random sets of n among N overlap as jaccard_chance says
    overlaps = []
    for seed in range(150):
        one, two = (
            set(choose("random", mlp(0), train, config=SEARCH, seed=s).example_id) for s in (seed, 10_000 + seed)
        )
        overlaps.append(len(one & two) / len(one | two))
    chance = out["forget_selectors"].filter(pl.col("selector") != pl.col("other"))["jaccard_chance"].unique()
    assert len(chance) == 1 and abs(np.mean(overlaps) - chance[0]) < 0.06


# --- qualification ------------------------------------------------------------------------------------------------


class Bench:
    """Unlearners and metrics that are made up: a "model" is the note of how it was made."""

    def __init__(self, diverges: str = "") -> None:
        self.runs, self.diverges = [], diverges

    def unlearn(self, method, *, retain, forget, seed):
        self.runs.append((method, retain, forget, seed))
        if method == self.diverges:
            raise Diverged("on purpose")
        return method, len(self.runs), seed

    def evaluate(self, model, *, retain, forget, test, seed):
        method, number, own_seed = model
        assert own_seed == seed and set(test.split) == {"test"}
        assert not set(retain.example_id) & set(forget.example_id)
        base = {"retrain": 10.0, "good": 11.0, "bad": 30.0}[method]
        return {
            "ua": base + 0.1 * number,
            "ra": 90.0,
            "ta": 80.0,
            "mia_efficacy": None if method == "bad" else base,
            "extra": 1.0,
        }


def config(**more) -> QualificationConfig:
    fields = {"methods": ("good", "bad"), "splits": ("random", "lowest_loss"), "trials": 2, "search": SEARCH}
    return QualificationConfig(**{**fields, **more})


def test_every_run_is_recorded_with_its_gaps(both_splits, mlp) -> None:
    bench = Bench()
    out = qualification(
        both_splits, config=config(), seed=3, model=mlp(0), unlearn=bench.unlearn, evaluate=bench.evaluate
    )
    runs = out["qualification_runs"]
    assert runs.columns == [c.name for c in RUNS.columns] and out["qualification"].columns == [
        c.name for c in SUMMARY.columns
    ]
    assert runs.height == 2 * 2 * 3 and runs.select("split", "method", "trial").is_duplicated().sum() == 0
    train = set(both_splits.part("train").example_id.tolist())
    for _, retain, forget, _ in bench.runs:
        assert set(retain.example_id) | set(forget.example_id) == train and len(forget) == 5
    for (split, _trial), part in runs.group_by("split", "trial"):
        yard = part.row(by_predicate=pl.col("method") == "retrain", named=True)
        assert part["seed"].n_unique() == 1, "a method and its retraining share a seed"
        for row in part.iter_rows(named=True):
            assert row["gap_ua"] == pytest.approx(abs(row["ua"] - yard["ua"])), split
            gaps = [row[g] for g in ("gap_ua", "gap_ra", "gap_ta", "gap_mia")]
            if row["method"] == "bad":
                assert row["gap_mia"] is None and row["avg_gap"] is None, "an undefined figure has no gap"
            else:
                assert row["avg_gap"] == pytest.approx(np.mean(gaps))
    sets = {tuple(forget.example_id) for method, _, forget, _ in bench.runs if method == "retrain"}
    assert len(sets) == 3, "every trial draws its own random set; the lowest losses are the same"


def test_the_summary_is_mean_and_spread_over_trials_and_the_paired_excess(both_splits, mlp) -> None:
    bench = Bench()
    out = qualification(
        both_splits, config=config(trials=3), seed=3, model=mlp(0), unlearn=bench.unlearn, evaluate=bench.evaluate
    )
    runs = out["qualification_runs"]
    for row in out["qualification"].iter_rows(named=True):
        own = runs.filter((pl.col("split") == row["split"]) & (pl.col("method") == row["method"])).sort("trial")
        assert row["num_trials"] == 3 and row["num_diverged"] == 0
        assert row["ua"] == pytest.approx(own["ua"].mean()) and row["ua_std"] == pytest.approx(own["ua"].std())
        assert (row["ua_low"], row["ua_high"]) == (own["ua"].min(), own["ua"].max())
        usual = runs.filter((pl.col("split") == "random") & (pl.col("method") == row["method"])).sort("trial")
        if row["method"] != "bad":
            excess = own["avg_gap"].to_numpy() - usual["avg_gap"].to_numpy()
            assert row["excess"] == pytest.approx(excess.mean()) and row["excess_std"] == pytest.approx(
                excess.std(ddof=1)
            )


def test_a_method_that_diverges_is_a_finding_and_a_yardstick_that_does_is_an_error(both_splits, mlp) -> None:
    def run(diverges):
        bench = Bench(diverges)
        return qualification(
            both_splits, config=config(), seed=3, model=mlp(0), unlearn=bench.unlearn, evaluate=bench.evaluate
        )

    out = run("good")
    lost = out["qualification_runs"].filter(pl.col("method") == "good")
    assert (
        set(lost["status"]) == {"diverged"} and lost["ua"].null_count() == lost["avg_gap"].null_count() == lost.height
    )
    row = out["qualification"].row(
        by_predicate=(pl.col("method") == "good") & (pl.col("split") == "random"), named=True
    )
    assert row["num_diverged"] == 2 and row["ua"] is None and row["excess"] is None
    with pytest.raises(Diverged):
        run("retrain")


def test_one_trial_has_no_spread_and_same_seed_same_table(both_splits, mlp) -> None:
    tables = []
    for _ in range(2):
        bench = Bench()
        tables.append(
            qualification(
                both_splits,
                config=config(trials=1),
                seed=5,
                model=mlp(0),
                unlearn=bench.unlearn,
                evaluate=bench.evaluate,
            )
        )
    assert tables[0]["qualification"]["ua_std"].null_count() == 6
    assert all(tables[0][name].equals(tables[1][name]) for name in tables[0])


def test_refusals(both_splits, mlp) -> None:
    with pytest.raises(ConfigError, match="random"):
        config(splits=("worst_case",))
    with pytest.raises(ConfigError, match="twice"):
        config(methods=("good", "good"))
    bench = Bench()
    with pytest.raises(InvalidInput, match="test split"):
        qualification(
            both_splits.part("train"),
            config=config(),
            seed=0,
            model=mlp(0),
            unlearn=bench.unlearn,
            evaluate=bench.evaluate,
        )
