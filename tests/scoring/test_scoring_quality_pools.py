"""Pools by score, their curves, laws and plan: against a recipe whose error is a planted law, and on real digits."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from contracts.errors import ConfigError, DataError, InvalidInput, NotApplicable
from contracts.methods import analysis, curator
from contracts.progress import silent
from recipes import SupervisedConfig, builder, supervised
from scoring.quality_pools import QualityPoolsConfig, cut, quality_pools
from scoring.scaling_laws import PoolLaw, mixture_error
from sources import load
from sources.example_set import ExampleSet

NUM, NUM_TEST = 400, 20_000
LAWS = [PoolLaw(a=1500.0, b=b, tau=t, d=0.06) for b, t in ((-0.5, 4.0), (-0.4, 6.0), (-0.33, 8.0), (-0.25, 12.0))]
EPOCHS = 40


def planted() -> ExampleSet:
    """Two classes; feature 0 is the score, feature 1 spreads the test examples evenly over [0, 1)."""
    rng = np.random.default_rng(0)
    train = np.column_stack([rng.permutation(NUM), np.zeros(NUM)])
    test = np.column_stack([np.zeros(NUM_TEST), np.arange(NUM_TEST) / NUM_TEST])
    x = np.concatenate([train, test]).astype(np.float32)
    num = len(x)
    return ExampleSet(
        name="planted", task="classification", x=x, y=np.zeros(num, np.int64),
        example_id=rng.permutation(3 * num)[:num].astype(np.int64),
        split=np.where(np.arange(num) < NUM, "train", "test").astype("<U5"), owner=np.full(num, "", "<U1"),
        content_hash=np.full(num, "", "<U64"), class_names=("a", "b"), center=np.zeros(2, np.float32),
        scale=np.ones(2, np.float32),
    )  # fmt: skip


class Wrong(nn.Module):
    """Wrong on the share ``error`` of the test examples."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = nn.Parameter(torch.tensor(error))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wrong = (x[:, 1] < self.error).float()
        return torch.stack([1 - wrong, wrong], dim=1)


def by_law(noise: float = 0.0, rising: int | None = None):
    """A recipe of 40 epochs whose test error is the law of the pools that its examples come from."""

    def train(data: ExampleSet, seed: int, *, effort: float = 1.0, observe=None) -> nn.Module:
        epochs = max(1, round(EPOCHS * effort))
        for _ in range(epochs):
            for start in range(0, len(data), 32):
                rows = np.arange(start, min(start + 32, len(data)))
                observe(rows, torch.zeros(len(rows), 2))
        pools = sorted({int(v) * 4 // NUM for v in data.x[:, 0]})
        n, size = epochs * len(data), NUM // 4
        error = float(mixture_error([LAWS[p] for p in pools], n, pool_size=size))
        if pools == [rising]:
            error += 0.02 * max(0, epochs - 4)
        return Wrong(error + noise * np.random.default_rng([seed, epochs, *pools]).normal())

    return train


def run(data, train, *, scores=None, seed=0, progress=silent, **config):
    settings = QualityPoolsConfig.from_mapping(config)
    members = data.part("train")
    frame = pl.DataFrame({"example_id": members.example_id, "value": members.x[:, 0].astype(np.float64)})
    return quality_pools(
        data, config=settings, seed=seed, progress=progress, scores=scores or (lambda name: frame), train=train,
        model=Wrong(0.0625),
    )  # fmt: skip


EFFORTS = {"efforts": (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)}  # 1, 2, 4, 8, 16, 32 passes


def test_planted_laws_are_recovered_and_the_plan_is_theirs():
    out = run(planted(), by_law(), seeds=1, bootstrap=50, budgets=(2, 8, 32, 128), **EFFORTS)
    laws = out["pool_laws"]
    assert laws["pool_id"].to_list() == [f"pool_{p}" for p in (1, 2, 3, 4)] and (laws["num_examples"] == 100).all()
    for row, law in zip(laws.to_dicts(), LAWS, strict=True):
        assert row["status"] == "fitted" and row["reason"] == "" and row["rmse"] < 2e-4  # 1 in 20,000 test examples
        assert (row["a"], row["b"], row["tau"], row["d"]) == pytest.approx((law.a, law.b, law.tau, law.d), rel=0.05)
        assert row["b_lo"] <= row["b"] <= row["b_hi"] and row["tau_lo"] <= row["tau"] <= row["tau_hi"]
    assert laws["score_low"].to_list() == [0.0, 100.0, 200.0, 300.0] and laws["score_high"][3] == 399.0
    plan = out["curation_plan"]
    assert plan["budget"].unique().sort().to_list() == [200, 800, 3200, 12800] and (plan["model_error"] == 0.0625).all()
    for budget, rows in plan.group_by("budget"):
        truth = [float(mixture_error(LAWS[:p], budget[0], pool_size=100)) for p in (1, 2, 3, 4)]
        rows = rows.sort("n_pools")
        np.testing.assert_allclose(rows["predicted_error"], truth, atol=2e-3)
        assert rows["is_best"].to_list() == [p == int(np.argmin(rows["predicted_error"])) for p in range(4)]
        assert rows["extrapolated"].to_list() == [budget[0] / p > 3200 for p in (1, 2, 3, 4)]
    check = out["plan_check"]
    assert set(check["n_pools"]) == {2, 3, 4} and check["samples_seen"].max() <= 3300
    assert (check["predicted_error"] - check["measured_error"]).abs().max() < 2e-3
    assert plan["plan_miss"][0] == pytest.approx((check["predicted_error"] - check["measured_error"]).abs().mean())


def test_curves_say_what_was_seen():
    out = run(planted(), by_law(noise=0.003), seeds=3, verify=False, bootstrap=0, **EFFORTS)
    curves = out["pool_curves"]
    assert curves.height == 4 * 3 * 6 and (curves["samples_seen"] == curves["epoch"] * 100).all()
    assert curves["epoch"].unique().sort().to_list() == [1, 2, 4, 8, 16, 32]
    drawn = out["pool_fit"].filter(pl.col("series") == "pool_2 measured").sort("samples_seen")
    mean = curves.filter(pl.col("pool_id") == "pool_2").group_by("samples_seen").agg(pl.col("error").mean())
    np.testing.assert_allclose(drawn["error"], mean.sort("samples_seen")["error"], rtol=1e-12)
    residuals = (
        curves.filter(pl.col("seed") == 0).group_by("pool_id").agg((pl.col("residual") ** 2).sum()).sort("pool_id")
    )
    np.testing.assert_allclose(residuals["residual"], out["pool_laws"]["sse"], rtol=1e-9)
    assert out["plan_check"].height == 0 and out["curation_plan"]["plan_miss"].null_count() == 24
    assert out["pool_laws"]["b_lo"].null_count() == 4


def test_a_rising_pool_is_refused_and_left_out_of_the_plan():
    out = run(planted(), by_law(noise=0.002, rising=1), seeds=3, verify=True, bootstrap=10, **EFFORTS)
    refused = out["pool_laws"].filter(pl.col("status") == "refused")
    assert refused["pool_id"].to_list() == ["pool_2"] and "cannot rise" in refused["reason"][0]
    assert refused.select("a", "b", "tau", "d", "sse").null_count().sum_horizontal()[0] == 5
    assert set(out["curation_plan"]["n_pools"]) == {1, 2, 3}
    assert not out["curation_plan"]["pools"].str.contains("pool_2").any()
    assert out["pool_curves"].filter(pl.col("pool_id") == "pool_2")["residual"].null_count() == 18
    assert not out["pool_fit"]["series"].str.contains("pool_2 law").any()


def test_nothing_can_be_planned_when_every_pool_is_refused():
    def train(data, seed, *, effort, observe):
        for _ in range(round(EPOCHS * effort)):
            observe(np.arange(len(data)), None)
        return Wrong(0.1 + 0.3 * effort + 1e-4 * (seed % 7))

    out = run(planted(), train, **EFFORTS)
    assert (out["pool_laws"]["status"] == "refused").all()
    assert out["curation_plan"].height == out["plan_check"].height == 0 and out["pool_curves"].height == 48


def test_the_best_fraction_and_the_other_end():
    data = planted()
    out = run(data, by_law(), fraction=0.5, num_pools=2, best="highest", verify=False, bootstrap=0, **EFFORTS)
    assert out["pool_laws"]["score_low"].to_list() == [300.0, 200.0]
    assert out["pool_laws"]["score_high"].to_list() == [399.0, 299.0]


def test_pools_are_those_of_the_curator():
    data = planted()
    members = data.part("train")
    values = np.round(members.x[:, 0].astype(np.float64) / 7)  # ties
    values[::9] = np.nan
    frame = pl.DataFrame({"example_id": members.example_id, "value": values})
    settings = {"num_pools": 3, "fraction": 0.7, "best": "highest"}
    seen: dict[int, set[int]] = {}

    def train(pool, seed, *, effort, observe):
        seen.setdefault(len(seen), set(pool.example_id.tolist())) if set(
            pool.example_id.tolist()
        ) not in seen.values() else None
        return by_law()(pool, seed, effort=effort, observe=observe)

    run(data, train, scores=lambda name: frame, verify=False, bootstrap=0, **settings, **EFFORTS)
    method = curator.get("quality_pools")
    roles = method(data, config=method.spec.config.from_mapping(settings), seed=0, scores=lambda name: frame)
    for p, ids in seen.items():
        assert set(roles.filter(pl.col("role") == f"pool_{p + 1}")["example_id"]) == ids


def test_efforts_that_come_to_one_length_are_one_point():
    out = run(planted(), by_law(), efforts=(0.001, 0.025, 0.1, 0.4, 0.401), verify=False, bootstrap=0, seeds=2)
    assert out["pool_curves"]["epoch"].unique().sort().to_list() == [1, 4, 16]
    with pytest.raises(ConfigError, match="2 lengths of training"):
        run(planted(), by_law(), efforts=(0.001, 0.002, 0.4))


def test_cut_is_equal_ordered_and_breaks_ties_by_position():
    values = np.array([2.0, 1.0, 1.0, 0.0, 2.0, 0.5, 9.0])
    assert [p.tolist() for p in cut(values, num_pools=3, fraction=1.0, best="lowest")] == [[3, 5], [1, 2], [0, 4]]
    assert [p.tolist() for p in cut(values, num_pools=2, fraction=0.6, best="highest")] == [[6, 0], [4, 1]]
    with pytest.raises(DataError, match="cannot be cut"):
        cut(values, num_pools=8, fraction=1.0, best="lowest")


def test_what_is_refused():
    data = planted()
    for config, what in (
        ({"efforts": (0.1, 0.2)}, "at least 3"),
        ({"efforts": (0.1, 0.3, 0.2)}, "increasing"),
        ({"budgets": ()}, "budgets"),
    ):
        with pytest.raises(ConfigError, match=what):
            QualityPoolsConfig.from_mapping(config)
    with pytest.raises(NotApplicable, match="test split"):
        run(data.part("train"), by_law())
    with pytest.raises(InvalidInput, match="no mini-batch"):
        run(data, lambda members, seed, *, effort, observe: Wrong(0.1))
    nothing = pl.DataFrame({"example_id": data.part("train").example_id[:3], "value": [None, None, None]})
    with pytest.raises(DataError, match="no value"):
        run(data, by_law(), scores=lambda name: nothing)


def test_on_digits_by_a_real_recipe_the_same_bits_for_any_order_of_rows():
    digits = load("sklearn", {"dataset": "digits", "test_fraction": 0.5}, seed=0)
    build = builder("mlp", {"hidden": (32,)}, input_shape=digits.input_shape, num_outputs=10)
    recipe = SupervisedConfig(lr=0.1, epochs=30)

    def train(data, seed, *, effort=1.0, observe=None):
        plan = dataclasses.replace(recipe, epochs=max(1, round(recipe.epochs * effort)))
        return supervised(build, data, config=plan, seed=seed, observe=observe)

    members = digits.part("train")
    values = np.random.default_rng(1).normal(size=len(members))
    frame = pl.DataFrame({"example_id": members.example_id, "value": values})
    told = []
    state = torch.get_rng_state()
    outs = []
    for data in (digits, digits.subset(np.random.default_rng(5).permutation(digits.example_id))):
        outs.append(
            quality_pools(
                data, config=QualityPoolsConfig(num_pools=2, seeds=1), seed=3, scores=lambda name: frame, train=train,
                model=build(0), progress=lambda *a: told.append(a),
            )
        )  # fmt: skip
    assert torch.equal(state, torch.get_rng_state())
    assert all(outs[0][name].equals(outs[1][name]) for name in outs[0])
    assert {t.name for t in analysis.get("quality_pools").spec.tables} == set(outs[0])
    assert told[0][0] == 1 and all(done <= total for done, total, _ in told)
