"""The audit's tables: their declaration, what is right about each row, and models of every kind."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from attacks.gradient_inversion import DropoutInversionConfig, dropout_inversion_audit
from contracts.errors import DataError, NotApplicable
from contracts.methods import analysis
from recipes.models import build
from sources.loading import load

TINY = {"num_examples": 3, "steps": 4, "dlg_steps": 2}


@pytest.fixture(scope="module")
def digits():
    return load("sklearn", {"dataset": "digits", "test_fraction": 0.5})


def mlp(**config):
    return build("mlp", {"hidden": [32], "activation": "gelu", **config}, input_shape=(1, 8, 8), num_outputs=10, seed=0)


def run(data, model, *, seed=0, **config):
    return dropout_inversion_audit(data, config=DropoutInversionConfig(**{**TINY, **config}), seed=seed, model=model)


def test_what_is_measured_on_an_untrained_network(digits):
    out = run(
        digits, mlp(), num_examples=6, dropout=[0.5], steps=200, patience=40, attacks=["ig", "dia", "wiig", "analytic"]
    )
    summary = {row["attack"]: row for row in out["dropout_inversion_summary"].to_dicts()}
    assert summary["analytic"]["median_psnr"] > 90 and summary["wiig"]["median_psnr"] > 35
    assert summary["dia"]["median_psnr"] > summary["ig"]["median_psnr"] + 8
    assert summary["dia"]["over_ig_low"] > 0 and summary["dia"]["median_mask_accuracy"] > 0.9
    rows = out["dropout_inversion"]
    for attack, row in summary.items():
        part = rows.filter(pl.col("attack") == attack)
        assert row["n"] == 6 and row["dropout"] == "inserted" and row["labels_right"] == 1.0
        assert row["median_psnr"] == pytest.approx(part["psnr"].median())
        assert (row["psnr_low"], row["psnr_high"]) == (part["psnr"].min(), part["psnr"].max())
    # What is drawn is what was measured.
    images = out["inversion_images"]
    original = images.filter(pl.col("attack") == "original")
    for row in images.filter(pl.col("attack") == "dia").to_dicts():
        truth = np.array(original.filter(pl.col("example_id") == row["example_id"])["image"][0])
        np.testing.assert_array_equal(truth, digits.inputs(digits.positions([row["example_id"]])).ravel())
        span = 1.0  # digits: 0 to 16, scaled by 1/16
        error = ((np.array(row["image"]) - truth) / span) ** 2
        assert row["psnr"] == pytest.approx(-10 * np.log10(error.mean()), abs=1e-6)
    assert set(rows["example_id"]) <= set(digits.part("train").example_id.tolist())
    assert dict(zip(rows["example_id"], rows["label"], strict=True)) == {
        i: int(digits.y[digits.positions([i])][0]) for i in set(rows["example_id"])
    }


def test_the_tables_are_as_declared_and_same_seed_gives_same_bits(digits):
    spec = analysis.get("dropout_inversion").spec
    first, second, other = (run(digits, mlp(), seed=s) for s in (0, 0, 1))
    for table in spec.tables:
        frame = first[table.name]
        assert frame.columns == [c.name for c in table.columns]
        assert not frame.select(table.key).is_duplicated().any()
        assert frame.equals(second[table.name])
        for column in table.columns:
            values = frame[column.name].drop_nulls()
            assert column.nullable or len(values) == len(frame), column.name
            if column.dtype == "float64" and len(values):
                assert values.is_finite().all() and (column.low is None or values.min() >= column.low)
                assert column.high is None or values.max() <= column.high
            if column.choices:
                assert set(values) <= set(column.choices)
    assert set(first["dropout_inversion"]["example_id"]) != set(other["dropout_inversion"]["example_id"])
    combinations = first["dropout_inversion"].select("attack", "dropout_p").unique()
    assert (
        combinations.height == 3 * 3 + 2 * 2
    )  # ig, dlg, analytic at 0, 0.25, 0.5; dia and wiig where there is dropout


def test_a_models_own_dropout_is_audited_at_its_own_rate(digits):
    out = run(digits, mlp(dropout=0.1))
    summary = out["dropout_inversion_summary"]
    assert set(summary["dropout"]) == {"own"} and set(summary["dropout_p"].round(6)) == {0.0, 0.1}
    without = run(digits, mlp(dropout=0.1), dropout=[])
    assert set(without["dropout_inversion_summary"]["dropout_p"].round(6)) == {0.1}


def test_batchnorm_is_audited_both_ways_and_a_batch_is_matched(digits):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 10)
    )
    state = copy.deepcopy(model.state_dict())
    out = run(digits, model, num_examples=5, batch=2)
    rows, summary = out["dropout_inversion"], out["dropout_inversion_summary"]
    assert set(rows["batchnorm"]) == {"running", "batch"} and rows["example_id"].n_unique() == 4
    assert rows.group_by("client", "attack", "dropout_p", "batchnorm").len()["len"].unique().to_list() == [2]
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    refused = summary.filter(pl.col("attack") == "analytic")
    assert set(refused["n"]) == {0} and all("first layer" in note for note in refused["note"])
    assert all("piecewise linear" in note for note in summary["note"])


def test_a_linear_model_has_no_place_for_dropout(digits):
    summary = run(digits, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))["dropout_inversion_summary"]
    assert set(summary["dropout"]) == {"none"} and set(summary["dropout_p"]) == {0.0}
    assert all("no hidden layer" in note for note in summary["note"])


def test_undefined_batch_statistics_are_a_remark(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    summary = run(digits, model)["dropout_inversion_summary"]
    assert set(summary["batchnorm"]) == {"running"} and all("undefined" in note for note in summary["note"])


@pytest.mark.parametrize(
    "name, config", [("cnn", {}), ("resnet_gn", {"widths": [8, 16]}), ("vit", {"dim": 16, "depth": 1, "dropout": 0.1})]
)
def test_other_models(digits, name, config):
    model = build(name, config, input_shape=(1, 8, 8), num_outputs=10, seed=0).eval()
    out = run(digits, model, num_examples=2)
    summary = out["dropout_inversion_summary"]
    assert set(summary.filter(pl.col("n") > 0)["attack"]) == {"ig", "dia", "wiig", "dlg"}
    assert out["dropout_inversion"].filter(pl.col("attack") == "dia")["mask_accuracy"].null_count() == 0
    assert not model.training


def test_features_in_place_of_images_and_the_rows_order():
    data = load("sklearn", {"dataset": "wine"})
    model = build("mlp", {"hidden": [16]}, input_shape=data.input_shape, num_outputs=3, seed=0)
    mixed = data.subset(np.random.default_rng(0).permutation(data.example_id))
    first, second = run(data, model), run(mixed, model)
    assert all(first[name].equals(second[name]) for name in first)
    assert first["dropout_inversion"]["ssim"].null_count() == len(first["dropout_inversion"])
    assert len(first["inversion_images"]["image"][0]) == data.input_shape[0]


def test_blocks_bound_the_memory_and_change_nothing_to_speak_of(digits):
    model = mlp().double()
    whole, split = run(digits, model), run(digits, model, memory_mib=1)
    merged = whole["dropout_inversion"].join(split["dropout_inversion"], on=["example_id", "attack", "dropout_p"])
    assert merged.height == whole["dropout_inversion"].height
    np.testing.assert_allclose(merged["mse"].to_numpy(), merged["mse_right"].to_numpy(), rtol=1e-6, atol=1e-20)


def test_what_cannot_be_audited_is_refused_naming_it(digits):
    with pytest.raises(NotApplicable, match="regression"):
        run(load("sklearn", {"dataset": "diabetes"}), mlp())
    ids = digits.part("train").example_id
    y = digits.y.copy()
    y[digits.positions(ids[:1])] = 10
    with pytest.raises(DataError) as error:
        run(dataclasses.replace(digits, y=y), mlp())
    assert error.value.example_ids == (int(ids[0]),)
    with pytest.raises(DataError, match="batch = 2"):
        run(digits.subset(ids[:1]), mlp(), batch=2)
    with pytest.raises(DataError, match="nothing to rebuild"):
        run(dataclasses.replace(digits, x=np.zeros_like(digits.x)), mlp())
    broken = mlp()
    with torch.no_grad():
        broken.head.weight.fill_(torch.nan)
    with pytest.raises(DataError, match="not finite"):
        run(digits, broken)
    with pytest.raises(NotApplicable, match="too few"):
        run(digits, build("mlp", {}, input_shape=(1, 8, 8), num_outputs=2, seed=0))
    with pytest.raises(NotApplicable, match="not one row a logit"):
        run(digits, nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.GLU()))
    with pytest.raises(NotApplicable, match="output layer"):
        run(digits, nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()))
