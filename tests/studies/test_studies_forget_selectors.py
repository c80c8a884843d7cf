"""Forget-set selectors against naive ones, stored as splits."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from scoring_data import make_examples
from torch import nn

from contracts.errors import ConfigError, DataError, NotApplicable
from contracts.methods import curator
from scoring.worst_case_forget import WorstCaseForgetConfig, select_worst_case
from studies.forget_selectors import SELECTORS, ForgetSelectorsConfig, choose, forget_selectors

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


class Retrainings:
    """Gives ``make(ids left in, seed)`` for every training set, and remembers what was asked."""

    def __init__(self, make) -> None:
        self.make, self.asked = make, []

    def __call__(self, members, seeds, *, data):
        self.asked.append((members, list(seeds)))
        return [self.make(kept, seed) for kept, seed in zip(members, seeds, strict=True)]


def test_the_table_of_selectors(both_splits, mlp) -> None:
    config = ForgetSelectorsConfig(search=SEARCH, trials=2)
    out = forget_selectors(
        both_splits, config=config, seed=1, model=mlp(0), train_many=Retrainings(lambda k, s: mlp(s))
    )
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


def test_difficulty_is_what_retrained_models_make_of_the_sets(both_splits, mlp) -> None:
    """Every figure by a loop over trials; one seed a trial for all sets, drawn sets anew, the others as they were."""
    names = ("random", "worst_case", "lowest_loss", "easiest", "highest_loss")
    bench = Retrainings(lambda kept, seed: mlp((seed + int(kept.sum())) % 1000))
    config = ForgetSelectorsConfig(selectors=names, search=SEARCH, trials=4)
    out = forget_selectors(both_splits, config=config, seed=5, model=mlp(0), train_many=bench)
    train = both_splits.part("train").by_id()
    assert len(bench.asked) == 4 and len({seeds[0] for _, seeds in bench.asked}) == 4
    nats, wrong, sets = ({name: [] for name in names} for _ in range(3))
    for members, seeds in bench.asked:
        assert len(set(seeds)) == 1
        for name, kept, seed in zip(names, members, seeds, strict=True):
            gone = train.take(np.flatnonzero(~np.isin(train.example_id, kept)))
            z = bench.make(kept, seed)(torch.from_numpy(gone.inputs(slice(None)))).detach().double()
            y = torch.from_numpy(gone.y)
            nats[name].append(F.cross_entropy(z, y).item())
            wrong[name].append(100 * float((z.argmax(1) != y).float().mean()))
            sets[name].append(frozenset(gone.example_id.tolist()))
    assert len(set(sets["random"])) > 1 and len(set(sets["lowest_loss"])) == 1
    table = {row["selector"]: row for row in out["forget_selector_difficulty"].iter_rows(named=True)}
    assert list(table) == list(names)
    members = out["forget_selector_members"]
    for name, row in table.items():
        assert set(members.filter(pl.col("selector") == name)["example_id"]) == sets[name][0]
        assert (row["num_forget"], row["num_trials"]) == (len(sets[name][0]), 4)
        assert row["loss"] == pytest.approx(np.exp(np.log(nats[name]).mean()), rel=1e-5)
        assert (row["loss_low"], row["loss_high"]) == pytest.approx((min(nats[name]), max(nats[name])), rel=1e-5)
        assert (row["ua"], row["ua_low"], row["ua_high"]) == pytest.approx(
            (np.mean(wrong[name]), min(wrong[name]), max(wrong[name])), rel=1e-5
        )
    for search, baseline in (("worst_case", "lowest_loss"), ("easiest", "highest_loss")):
        log = np.log(nats[search]) - np.log(nats[baseline])
        half = student.ppf(0.95, 3) * log.std(ddof=1) / 2
        row = table[search]
        assert row["baseline"] == baseline and row["ratio"] == pytest.approx(np.exp(log.mean()), rel=1e-5)
        assert np.log([row["ratio_low"], row["ratio_high"]]) == pytest.approx(
            [log.mean() - half, log.mean() + half], rel=1e-4
        )
    assert table["random"]["winner"] == table["random"]["says"] == table["random"]["baseline"] == ""


@pytest.mark.parametrize(
    ("harder", "winners"),
    [
        ("lowest_loss", ("baseline", "baseline")),
        ("worst_case", ("search", "search")),
        ("neither", ("cannot be told apart",) * 2),
    ],
)
def test_who_won_is_said_by_the_interval(both_splits, mlp, harder, winners) -> None:
    """Retrained models that lose by plan: the loss of a set is that of the logits a constant model gives."""
    rng, calls = np.random.default_rng(0), iter(range(10**6))
    names = ("worst_case", "lowest_loss", "easiest", "highest_loss")

    class Flat(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(scale))

        def forward(self, x):
            return self.weight * F.one_hot(torch.zeros(len(x), dtype=torch.int64), 4).float()

    def make(kept, seed):
        lossy = {"lowest_loss": ("worst_case", "highest_loss"), "worst_case": ("lowest_loss", "easiest"), "neither": ()}
        return Flat(5.0 * (names[next(calls) % 4] in lossy[harder]) + 0.05 * rng.normal())

    data = dataclasses.replace(both_splits, y=np.where(both_splits.split == "train", 1, both_splits.y))
    config = ForgetSelectorsConfig(selectors=names, search=SEARCH, trials=4)
    out = forget_selectors(data, config=config, seed=5, model=mlp(0), train_many=Retrainings(make))
    table = {row["selector"]: row for row in out["forget_selector_difficulty"].iter_rows(named=True)}
    assert (table["worst_case"]["winner"], table["easiest"]["winner"]) == winners
    words = {
        "search": "the search won over",
        "baseline": "which costs nothing, won",
        "cannot be told apart": "cannot be told apart",
    }
    for search in ("worst_case", "easiest"):
        assert words[table[search]["winner"]] in table[search]["says"] and "4 trials" in table[search]["says"]


class Headless(nn.Module):
    """Logits without a linear output layer: there are no penultimate activations, hence no moderate set."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 24).reshape(6, 4))

    def forward(self, x):
        return x @ self.weight


def test_a_selector_that_does_not_apply_is_left_out_and_named(both_splits) -> None:
    config = ForgetSelectorsConfig(selectors=("random", "moderate", "lowest_loss"), search=SEARCH, trials=2)
    bench = Retrainings(lambda kept, seed: Headless())
    out = forget_selectors(both_splits, config=config, seed=1, model=Headless(), train_many=bench)
    difficulty = out["forget_selector_difficulty"].row(by_predicate=pl.col("selector") == "moderate", named=True)
    assert "output layer" in difficulty["says"] and difficulty["num_trials"] == 0 and difficulty["loss"] is None
    table = out["forget_selectors"]
    assert set(out["forget_selector_members"]["selector"]) == {"random", "lowest_loss"}
    named = table.row(by_predicate=pl.col("selector") == "moderate", named=True)
    assert "output layer" in named["why"] and named["num_forget"] is None and named["jaccard"] is None
    applied = table.filter(pl.col("selector") != "moderate")
    assert applied.height == 4 and set(applied["why"]) == {""} and applied.null_count().pipe(sum).item() == 0
    with pytest.raises(NotApplicable, match="moderate"):
        only = dataclasses.replace(config, selectors=("moderate",))
        forget_selectors(both_splits, config=only, seed=1, model=Headless(), train_many=bench)


# --- the curator --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [SEARCH, BY_CLASS], ids=["examples", "classes"])
@pytest.mark.parametrize("selector", SELECTORS)
def test_a_forget_set_of_any_selector_is_a_split(both_splits, mlp, selector, search) -> None:
    method = curator.get("forget_set")
    given = method.spec.config.from_mapping({"selector": selector, "search": dataclasses.asdict(search)})
    found = method(both_splits, config=given, seed=3, model=mlp(0))
    train = both_splits.part("train")
    assert found["example_id"].to_list() == np.sort(train.example_id).tolist()
    exact = choose(selector, mlp(0), train, config=search, seed=3)
    forget = found.filter(pl.col("role") == "forget")
    assert set(forget["example_id"]) == set(exact.example_id)
    reasons = dict(zip(forget["example_id"], forget["reason"], strict=True))
    for place, (example, value) in enumerate(zip(exact.example_id, exact.value, strict=True), 1):
        assert reasons[example] == f"{selector} {value:.6g}, place {place} of {len(exact.example_id)}"
    kept = found.filter(pl.col("role") != "forget")
    assert set(kept["role"]) == {"retain"} and set(kept["reason"]) == {"not selected"}
