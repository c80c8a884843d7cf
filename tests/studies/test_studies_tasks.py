"""Studies of tasks without classes: numbers to predict and items to rank, against figures worked out by hand."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from contracts.errors import NotApplicable
from contracts.progress import silent
from curation.quality_pools import QualityPoolsConfig as CuratorConfig
from curation.quality_pools import quality_pools as cut_pools
from recipes.models import builder
from recipes.predict import predict_logits
from recipes.recsys import BprConfig, bpr
from recipes.schedule import SupervisedConfig
from recipes.supervised import supervised
from scoring.worst_case_forget import WorstCaseForgetConfig
from sources.example_set import ExampleSet
from sources.loading import load
from stats.order import ranking
from studies.forget_selectors import SELECTORS, ForgetSelectorsConfig, choose, forget_selectors
from studies.pruning_curve import PruningCurveConfig, pruning_curve
from studies.quality_pools import QualityPoolsConfig, quality_pools
from studies.retraining import error_rate, hold_out, splits_by_id

RECIPE = SupervisedConfig(lr=0.05, epochs=10, batch=32)


@pytest.fixture(scope="module")
def numbers() -> ExampleSet:
    return load("sklearn", {"dataset": "diabetes", "test_fraction": 0.5}, seed=1)


@pytest.fixture(scope="module")
def items() -> ExampleSet:
    return load("synthetic_interactions", {"num_users": 12, "num_items": 40, "per_user": 12, "dim": 2})


def network(data: ExampleSet, members: ExampleSet, seed: int, *, effort=1.0, steps=None, observe=None) -> nn.Module:
    build = builder("mlp", {"hidden": (8,)}, input_shape=data.input_shape, num_outputs=1)
    plan = dataclasses.replace(RECIPE, epochs=max(1, round(RECIPE.epochs * effort)), steps=steps)
    return supervised(build, members, config=plan, seed=seed, observe=observe)


def quality(model: nn.Module, data: ExampleSet) -> np.ndarray:
    """1 - error / error of the mean, cut to 0..1."""
    sd, naive = (float(data.constants[name]) for name in ("sd", "naive"))
    return np.clip(1 - np.abs(predict_logits(model, data)[:, 0] - data.y) / (sd * naive), 0, 1)


def test_the_error_of_a_regression_is_what_its_quality_lacks(numbers):
    train, test = splits_by_id(numbers, name="it")
    model = network(numbers, train, 0)
    assert error_rate(model, test) == pytest.approx(1 - quality(model, test).mean(), abs=1e-6)


def test_bins_of_the_target_give_their_share_to_the_validation_part(numbers):
    train, _ = splits_by_id(numbers, name="it")
    left, _, validation = hold_out(train, np.zeros(len(train)), 0.2, seed=3, name="it")
    bins = train.task.strata(train.x, train.y, train.example_id)
    held = np.isin(train.example_id, validation.example_id)
    for k in range(10):
        assert held[bins == k].sum() == max(1, round(0.2 * (bins == k).sum()))
    assert not np.intersect1d(left.example_id, validation.example_id).size


def test_the_pruning_curve_of_a_regression(numbers):
    """Mean qualities of the same trainings, done again by hand; no class has a share."""
    train, test = splits_by_id(numbers, name="it")
    values = np.abs(train.y - train.y.mean())
    frame = pl.DataFrame({"example_id": train.example_id, "value": values})
    log: list[tuple[ExampleSet, int, nn.Module]] = []

    def logged(members, seed, **length):
        model = network(numbers, members, seed, **length)
        log.append((members, seed, model))
        return model

    config = PruningCurveConfig(fractions=(0.5,), rules=("easiest", "stratified", "random"), seeds=2, effort=0.3)
    out = pruning_curve(numbers, config=config, seed=0, progress=silent, scores=lambda name: frame, train=logged)
    assert len(out["pruning_classes"]) == 0 and len(out["pruning_choice"]) == 1
    curve = out["pruning_curve"]
    left, kept, _ = hold_out(train, values, 0.2, seed=0, name="it")
    order = ranking(kept)
    easy = set(left.example_id[order[: curve.filter(rule="easiest", fraction=0.5)["num_kept"].item()]].tolist())
    runs = [model for members, _, model in log if set(members.example_id.tolist()) == easy]
    assert len(runs) == 2
    want = np.mean([quality(model, test).mean() for model in runs])
    assert curve.filter(rule="easiest", fraction=0.5)["accuracy"].item() == pytest.approx(want, abs=1e-6)
    assert curve["accuracy"].is_between(0, 1).all() and curve["accuracy"].max() > 0.1


@pytest.mark.parametrize("kind", ["numbers", "items"])
def test_pools_of_a_study_are_those_of_the_curator_and_their_errors_what_quality_lacks(request, kind):
    data: ExampleSet = request.getfixturevalue(kind)
    train, test = splits_by_id(data, name="it")
    frame = pl.DataFrame({"example_id": train.example_id, "value": np.sin(train.example_id.astype(float))})
    log: list[tuple[ExampleSet, nn.Module]] = []

    def logged(members, seed, *, effort=1.0, observe=None):
        if kind == "numbers":
            model = network(data, members, seed, effort=effort, observe=observe)
        else:
            build = builder("mf", {"dim": 4}, input_shape=(data.num_users,), num_outputs=data.num_classes)
            plan = BprConfig(epochs=max(1, round(20 * effort)), batch=32, lr=0.05)
            model = bpr(build, members, config=plan, seed=seed, observe=observe)
        log.append((members, model))
        return model

    config = QualityPoolsConfig(num_pools=2, efforts=(0.1, 0.3, 0.6), seeds=1, validation=0.25, unions=False)
    out = quality_pools(data, config=config, seed=0, progress=silent, scores=lambda name: frame, train=logged)
    left, values, _ = hold_out(train, frame["value"].to_numpy(), 0.25, seed=0, name="it")
    mine = pl.DataFrame({"example_id": left.example_id, "value": values})
    roles = cut_pools(left, config=CuratorConfig(num_pools=2), seed=0, scores=lambda name: mine)
    for p, (members, _) in enumerate((log[0], log[-1])):
        want = roles.filter(role=f"pool_{p + 1}")["example_id"].to_list()
        assert sorted(members.example_id.tolist()) == want
    errors = [error_rate(model, test) for _, model in log]
    assert out["pool_curves"]["test_error"].to_list() == pytest.approx(errors)


def test_forget_sets_of_a_regression_by_hand(numbers):
    train, _ = splits_by_id(numbers, name="it")
    model = network(numbers, train, 0)
    search = WorstCaseForgetConfig(fraction=0.1, upper_steps=2, lower_epochs=1)
    error = np.square(predict_logits(model, train)[:, 0] - train.y)
    norms = []
    for b in range(len(train)):
        x = torch.from_numpy(train.inputs(slice(b, b + 1)))
        loss = (model(x)[0, 0] - train.y[b]) ** 2
        norms.append(sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(model.parameters()))) ** 0.5)
    num = round(0.1 * len(train))
    for name, value in (("lowest_loss", error), ("highest_loss", -error), ("lowest_gradient", np.array(norms))):
        found = choose(name, model, train, config=search, seed=0)
        assert found.example_id.tolist() == train.example_id[np.argsort(value, kind="stable")[:num]].tolist()
    with pytest.raises(NotApplicable, match="one of K classes"):
        choose("moderate", model, train, config=search, seed=0)
    with pytest.raises(NotApplicable, match="one of K classes"):
        choose("random", model, train, config=dataclasses.replace(search, group="class"), seed=0)


def test_selectors_that_need_classes_are_left_out_of_the_comparison_and_named(numbers):
    train, _ = splits_by_id(numbers, name="it")
    model = network(numbers, train, 0)

    def train_many(members, seeds, *, data):
        return [network(numbers, data.subset(ids), seed) for ids, seed in zip(members, seeds, strict=True)]

    search = WorstCaseForgetConfig(fraction=0.1, upper_steps=2, lower_epochs=1)
    out = forget_selectors(
        numbers, config=ForgetSelectorsConfig(search=search, trials=2), seed=0, model=model, train_many=train_many
    )
    table = {row["selector"]: row for row in out["forget_selector_difficulty"].iter_rows(named=True)}
    assert set(table) == set(SELECTORS) and table["moderate"]["num_trials"] == 0
    assert "one of K classes" in table["moderate"]["says"]
    for name in ("lowest_loss", "highest_loss"):
        gone = set(choose(name, model, train, config=search, seed=0).example_id.tolist())
        kept = [i for i in train.example_id.tolist() if i not in gone]
        assert table[name]["num_forget"] == len(gone) and len(kept) + len(gone) == len(train)
    assert table["highest_loss"]["ua"] > table["lowest_loss"]["ua"]
    assert table["highest_loss"]["loss"] > table["lowest_loss"]["loss"]
    assert out["forget_selectors"]["largest_class"].null_count() == len(out["forget_selectors"])


def test_a_recommender_has_forget_sets_too(items):
    train = items.part("train")
    build = builder("mf", {"dim": 4}, input_shape=(items.num_users,), num_outputs=items.num_classes)
    model = bpr(build, train, config=BprConfig(epochs=40, batch=32, lr=0.05), seed=0)
    search = WorstCaseForgetConfig(fraction=0.1, upper_steps=2, lower_epochs=1)
    pick = partial(choose, model=model, data=train, config=search, seed=0)
    sets = {name: set(pick(name).example_id.tolist()) for name in SELECTORS if name != "moderate"}
    assert all(len(ids) == round(0.1 * len(train)) for ids in sets.values())
    assert not sets["lowest_loss"] & sets["highest_loss"]
