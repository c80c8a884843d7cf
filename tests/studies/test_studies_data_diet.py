"""The analysis of early epochs: against el2n itself and scipy, on planted models, and what is refused."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch
from polars.testing import assert_frame_equal
from scipy.stats import spearmanr
from scoring_data import make_examples
from torch import nn

from contracts.errors import ConfigError, DataError, InvalidInput, NotApplicable
from recipes.early import early_snapshots
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from scoring.el2n import EL2NConfig, el2n
from scoring.grand import GrandConfig, grand
from studies.data_diet import DataDietConfig, data_diet

CONFIG = DataDietConfig(epochs=(0, 2, 4), halvings=7)


@pytest.fixture(scope="module")
def world():
    """Two noisy classes and their early models by epoch: 6 seeds."""
    rng = np.random.default_rng(3)
    y = np.arange(90) % 3
    x = (rng.normal(size=(3, 6))[y] * 2 + rng.normal(size=(90, 6))).astype(np.float32)
    data = make_examples(x, y, num_classes=3, ids=rng.permutation(500)[:90])
    data = dataclasses.replace(data, split=np.where(np.arange(90) < 70, "train", "test").astype("<U5"))
    build = builder("mlp", {"hidden": (8,)}, input_shape=(6,), num_outputs=3)
    recipe = SupervisedConfig(lr=0.05, epochs=6, batch=16)
    train = data.part("train")
    models = early_snapshots(build, train, recipe="supervised", config=recipe, seeds=range(6), epochs=CONFIG.epochs)
    return data, models


def run(world, config=CONFIG, seed=0, **kwargs):
    data, models = world
    return data_diet(data, config=config, seed=seed, early_at=lambda epochs: {e: models[e] for e in epochs}, **kwargs)


def measured(tables, epoch, measure):
    rows = tables["data_diet_epochs"].filter(epoch=epoch, measure=measure)
    assert len(rows) == 1
    return rows.row(0, named=True)


def test_scores_are_those_of_el2n(world):
    data, models = world
    tables = run(world)
    for epoch in CONFIG.epochs:
        want = el2n(data.part("train"), config=EL2NConfig(), seed=0, early_models=models[epoch]).sort("example_id")
        found = tables["data_diet"].filter(epoch=epoch).sort("example_id")
        same = {
            "example_id": "example_id",
            "el2n": "el2n",
            "el2n_std": "el2n_std",
            "margin": "margin_max",
            "margin_std": "margin_max_std",
            "grand_last_layer": "grand_last_layer",
            "grand_last_layer_std": "grand_last_layer_std",
            "n_seeds": "n_seeds",
        }
        for ours, theirs in same.items():
            np.testing.assert_allclose(found[ours], want[theirs], rtol=1e-5, atol=1e-7, err_msg=ours)


def test_grand_over_all_parameters_is_that_of_grand_and_null_unless_asked_for(world):
    data, models = world
    off, on = run(world), run(world, config=dataclasses.replace(CONFIG, grand=True))
    assert off["data_diet"]["grand"].null_count() == off["data_diet"]["grand_std"].null_count() == 70 * 3
    assert "input norm: grand" not in off["data_diet_epochs"]["measure"]
    train = data.subset(np.sort(data.part("train").example_id))
    norm = np.linalg.norm(train.inputs(slice(None)), axis=1)
    for epoch in CONFIG.epochs:
        want = grand(train, config=GrandConfig(), seed=0, early_models=models[epoch])
        found = on["data_diet"].filter(epoch=epoch).sort("example_id")
        for column in ("grand", "grand_std"):
            np.testing.assert_allclose(found[column], want[column], rtol=1e-5)
        rho = spearmanr(want["grand"], norm).statistic
        assert measured(on, epoch, "input norm: grand")["value"] == pytest.approx(rho, abs=1e-6)
    assert_frame_equal(on["data_diet"].drop("grand", "grand_std"), off["data_diet"].drop("grand", "grand_std"))


def test_all_epochs_are_asked_for_at_once(world):
    data, models = world
    asked = []
    data_diet(data, config=CONFIG, seed=0, early_at=lambda epochs: asked.append(tuple(epochs)) or models)
    assert asked == [(0, 2, 4)]


def test_measures_are_those_of_scipy(world):
    data, models = world
    train = data.subset(np.sort(data.part("train").example_id))
    each = {
        e: np.stack([el2n(train, config=EL2NConfig(), seed=0, early_models=[m])["el2n"].to_numpy() for m in models[e]])
        for e in CONFIG.epochs
    }
    norm = np.linalg.norm(train.inputs(slice(None)), axis=1)
    tables = run(world)
    for epoch in CONFIG.epochs:
        pairs = [spearmanr(a, b).statistic for a, b in combinations(each[epoch], 2)]
        row = measured(tables, epoch, "single seeds")
        assert row["value"] == pytest.approx(np.mean(pairs), abs=1e-6)
        assert row["low"] == pytest.approx(np.quantile(pairs, 0.05), abs=1e-6)
        assert row["num_examples"] == 70 and row["n_seeds"] == 6
        row = measured(tables, epoch, "input norm: el2n")
        assert row["value"] == pytest.approx(spearmanr(each[epoch].mean(0), norm).statistic, abs=1e-6)
        right = np.mean(
            [(m(torch.from_numpy(train.inputs(slice(None)))).argmax(1).numpy() == train.y) for m in models[epoch]]
        )
        assert measured(tables, epoch, "accuracy")["value"] == pytest.approx(right, abs=1e-9)
        # any halving lies between the worst and the best of all of them
        every = [
            spearmanr(each[epoch][list(h)].mean(0), np.delete(each[epoch], h, 0).mean(0)).statistic
            for h in combinations(range(6), 3)
        ]
        row = measured(tables, epoch, "seed halves")
        assert min(every) - 1e-6 <= row["low"] <= row["value"] <= row["high"] <= max(every) + 1e-6
    agreement = spearmanr(each[2].mean(0), each[4].mean(0)).statistic
    assert measured(tables, 2, "next epoch")["value"] == pytest.approx(agreement, abs=1e-6)
    assert measured(tables, 4, "next epoch")["value"] is None


def test_averaging_over_seeds_agrees_better_than_single_seeds(world):
    """Ten linear models, each the same map with noise of its own: half of them average half of the noise away."""
    data, models = world
    rng = np.random.default_rng(0)
    common = rng.normal(size=(3, 6))
    noisy = [nn.Linear(6, 3) for _ in range(10)]
    for model in noisy:
        model.weight.data = torch.from_numpy(common + rng.normal(size=(3, 6))).float()
    tables = data_diet(data, config=DataDietConfig(epochs=(4,)), seed=0, early_at=lambda epochs: {4: noisy})
    assert measured(tables, 4, "seed halves")["value"] > measured(tables, 4, "single seeds")["value"] + 0.1
    # equal models agree wholly
    data, models = world
    same = data_diet(data, config=DataDietConfig(epochs=(4,)), seed=0, early_at=lambda epochs: {4: [models[4][0]] * 4})
    for measure in ("seed halves", "single seeds"):
        assert measured(same, 4, measure)["value"] == pytest.approx(1)


def test_one_model_has_no_agreement_between_seeds(world):
    data, models = world
    tables = data_diet(data, config=DataDietConfig(epochs=(2,)), seed=0, early_at=lambda epochs: {2: models[2][:1]})
    assert measured(tables, 2, "seed halves")["value"] is measured(tables, 2, "single seeds")["value"] is None
    assert tables["data_diet"]["el2n_std"].null_count() == 70
    assert measured(tables, 2, "accuracy")["value"] > 0.4 and measured(tables, 2, "accuracy")["low"] is None


def test_rows_order_batch_and_test_split_do_not_matter(world):
    data, models = world
    first = run(world)
    mixed = data.subset(np.random.default_rng(0).permutation(data.example_id))
    again = run((mixed, models), config=dataclasses.replace(CONFIG, batch=13))
    for name, frame in first.items():
        key = ["epoch", "measure"] if "measure" in frame.columns else ["epoch", "example_id"]
        assert_frame_equal(frame.sort(key), again[name].sort(key), rel_tol=1e-4, abs_tol=1e-5)
    assert_frame_equal(run((data.part("train"), models))["data_diet"], first["data_diet"])


def test_a_sample_bounds_the_table_and_does_not_depend_on_the_order(world):
    data, models = world
    config = dataclasses.replace(CONFIG, max_examples=25)
    some = run(world, config=config)["data_diet"]
    mixed = data.subset(data.example_id[::-1])
    ids = set(some["example_id"])
    assert len(some) == 75 and len(ids) == 25 and ids <= set(data.part("train").example_id)
    assert set(run((mixed, models), config=config)["data_diet"]["example_id"]) == ids
    assert set(run(world, config=config, seed=1)["data_diet"]["example_id"]) != ids


def test_without_a_linear_output_layer_its_gradient_is_null(world):
    data, models = world
    tables = data_diet(
        data,
        config=DataDietConfig(epochs=(2,)),
        seed=0,
        early_at=lambda epochs: {2: [nn.Sequential(m, nn.Tanh()) for m in models[2]]},
    )
    assert tables["data_diet"]["grand_last_layer"].null_count() == 70
    assert measured(tables, 2, "input norm: grand_last_layer")["value"] is None
    assert measured(tables, 2, "input norm: el2n")["value"] is not None


def test_constant_scores_have_no_rank_correlation(world):
    data, _ = world
    constant = nn.Linear(6, 3)
    nn.init.zeros_(constant.weight)
    nn.init.zeros_(constant.bias)
    tables = data_diet(
        data,
        config=DataDietConfig(epochs=(1, 2)),
        seed=0,
        early_at=lambda epochs: {e: [constant, constant] for e in epochs},
    )
    for measure in ("seed halves", "single seeds", "input norm: el2n", "next epoch"):
        assert measured(tables, 1, measure)["value"] is None


def test_refusals(world, regression):
    data, models = world
    with pytest.raises(NotApplicable, match="regression"):
        run((regression, models))
    with pytest.raises(InvalidInput, match="no training example"):
        run((data.part("test"), models))
    with pytest.raises(InvalidInput, match="early_models is empty"):
        data_diet(data, config=CONFIG, seed=0, early_at=lambda epochs: {e: [] for e in epochs})
    for epochs in ((), (3, 2), (2, 2)):
        with pytest.raises(ConfigError, match="increasing"):
            DataDietConfig(epochs=epochs)
    x = data.x.copy()
    x[4] = np.nan
    with pytest.raises(DataError, match="NaN") as error:
        run((dataclasses.replace(data, x=x), models))
    assert error.value.example_ids == (data.example_id[4],)
