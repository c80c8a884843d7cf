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
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.supervised import supervised
from sources.example_set import ExampleSet
from sources.loading import load
from studies.pool_laws import UNRELIABLE, PoolLawsConfig, _Noise, _noise, _verdict, pool_laws
from studies.quality_pools import QualityPoolsConfig, quality_pools
from studies.retraining import hold_out
from studies.scaling_laws import Plan, PoolLaw, mixture_error

NUM, NUM_HELD, NUM_TEST = 30_400, 30_000, 2_000
SHARE = NUM_HELD / NUM  # leaves 100 examples of each class, which are the pools
LAWS = [PoolLaw(a=1500.0, b=b, tau=t, d=0.06) for b, t in ((-0.5, 4.0), (-0.4, 6.0), (-0.33, 8.0), (-0.25, 12.0))]
EPOCHS = 40


def planted() -> ExampleSet:
    """Four classes, which are the quarters of the score; feature 0 is the score, feature 1 spreads the examples over
    [0, 1).

    Feature 2 marks the test split, on which every model is right where it would be wrong: who chooses on it chooses the
    worst.
    """
    rng = np.random.default_rng(0)
    score = np.concatenate([rng.permutation(NUM), np.arange(NUM_TEST) * (NUM // NUM_TEST)])
    num = len(score)
    spread = np.concatenate([rng.permutation(NUM) / NUM, rng.permutation(NUM_TEST) / NUM_TEST])
    test = np.arange(num) >= NUM
    return ExampleSet(
        name="planted",
        task="classification",
        x=np.column_stack([score, spread, test]).astype(np.float32),
        y=score * 4 // NUM,
        example_id=rng.permutation(3 * num)[:num].astype(np.int64),
        split=np.where(test, "test", "train").astype("<U5"),
        owner=np.full(num, "", "<U1"),
        content_hash=np.full(num, "", "<U64"),
        class_names=("a", "b", "c", "d"),
        center=np.zeros(3, np.float32),
        scale=np.ones(3, np.float32),
    )


class Wrong(nn.Module):
    """Wrong on the share ``error`` of the training examples, held out or not, and on 1 - ``error`` of the test
    examples."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = nn.Parameter(torch.tensor(error))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wrong = (x[:, 1] < self.error) ^ (x[:, 2] > 0)
        label = (x[:, 0].to(torch.int64) * 4).div(NUM, rounding_mode="floor")
        return nn.functional.one_hot((label + wrong) % 4, 4).float()


def by_law(noise: float = 0.0, rising: int | None = None):
    """A recipe of 40 epochs whose test error is the law of the pools that its examples come from."""

    def train(data: ExampleSet, seed: int, *, effort: float = 1.0, observe=None) -> nn.Module:
        epochs = max(1, round(EPOCHS * effort))
        for _ in range(epochs):
            for start in range(0, len(data), 32):
                rows = np.arange(start, min(start + 32, len(data)))
                observe(rows, torch.zeros(len(rows), 4))
        pools = sorted({int(v) * 4 // NUM for v in data.x[:, 0]})
        n, size = epochs * len(data), 100
        error = float(mixture_error([LAWS[p] for p in pools], n, pool_size=size))
        if pools == [rising]:
            error += 0.02 * max(0, epochs - 4)
        return Wrong(error + noise * np.random.default_rng([seed, epochs, *pools]).normal())

    return train


def run(data, train, *, scores=None, seed=0, progress=silent, **config):
    """The pools."""
    members = data.part("train")
    frame = pl.DataFrame({"example_id": members.example_id, "value": members.x[:, 0].astype(np.float64)})
    settings = QualityPoolsConfig.from_mapping({"stratified": False, "validation": SHARE} | config)
    return quality_pools(
        data, config=settings, seed=seed, progress=progress, scores=scores or (lambda name: frame), train=train
    )


def laws_of(data, pools, *, model=None, seed=0, **config):
    """Laws and plan of stored pools: nothing is trained."""
    return pool_laws(
        data,
        config=PoolLawsConfig.from_mapping(config),
        seed=seed,
        progress=silent,
        tables=pools.__getitem__,
        model=model or Wrong(0.0625),
    )


def of(frame, compat="paper"):
    return frame.filter(pl.col("compat") == compat)


EFFORTS = {"efforts": (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)}  # 1, 2, 4, 8, 16, 32 passes


def test_planted_laws_are_recovered_and_the_plan_is_theirs():
    data = planted()
    pools = run(data, by_law(), seeds=1, **EFFORTS)
    out = laws_of(data, pools, bootstrap=50, budgets=(2, 8, 32, 128))
    laws = of(out["pool_laws"])
    assert laws["pool_id"].to_list() == [f"pool_{p}" for p in (1, 2, 3, 4)]
    for row, law in zip(laws.to_dicts(), LAWS, strict=True):
        assert row["status"] == "fitted" and row["reason"] == "" and row["rmse"] < 2e-4
        assert (row["a"], row["b"], row["tau"], row["d"]) == pytest.approx((law.a, law.b, law.tau, law.d), rel=0.05)
        assert row["b_lo"] <= row["b"] <= row["b_hi"] and row["tau_lo"] <= row["tau"] <= row["tau_hi"]
    assert (pools["pools"]["score_low"] * 4 // NUM).to_list() == (pools["pools"]["score_high"] * 4 // NUM).to_list()
    assert (pools["pools"]["num_examples"] == 100).all() and (pools["pools"]["num_validation"] == NUM_HELD).all()
    check = of(out["plan_check"])
    assert set(check["n_pools"]) == {2, 3, 4} and check["samples_seen"].max() <= 3300
    distance = (check["predicted_error"] - check["measured_error"]).abs()
    assert distance.max() < 2e-3
    np.testing.assert_allclose(check["test_error"], 1 - check["measured_error"], atol=2e-3)
    choice = of(out["curation_choice"])
    assert (
        choice["plan_miss"].to_list() == pytest.approx([distance.mean()] * 4)
        and (choice["model_error"] == 0.9375).all()
    )
    assert (choice["plan_spearman"] > 0.98).all()
    plan = of(out["curation_plan"])
    assert plan["budget"].unique().sort().to_list() == choice["budget"].to_list() == [200, 800, 3200, 12800]
    chosen = 0
    for budget, said in zip(choice["budget"], choice["choice"], strict=True):
        rows = plan.filter(pl.col("budget") == budget).sort("n_pools")
        truth = [float(mixture_error(LAWS[:p], budget, pool_size=100)) for p in (1, 2, 3, 4)]
        np.testing.assert_allclose(rows["predicted_error"], truth, atol=2e-3)
        assert rows["extrapolated"].to_list() == [budget / p > 3200 for p in (1, 2, 3, 4)]
        best = int(np.argmin(truth))
        if np.diff(np.sort(truth))[0] > 5e-3:  # 2 sqrt(2) standard errors of a share of 100,000
            chosen += 1
            assert rows["is_best"].to_list() == [p == best for p in range(4)] and said == rows["pools"][best]
    assert chosen >= 2


def test_what_the_test_split_says_changes_no_pool_law_or_choice():
    """Digits: test labels in another order, and half of the test rows. Shuffled validation images do change the
    laws."""
    digits = load("sklearn", {"dataset": "digits", "test_fraction": 0.4}, seed=1)
    build = builder("mlp", {"hidden": (32,)}, input_shape=digits.input_shape, num_outputs=10)
    recipe = SupervisedConfig(lr=0.1, epochs=20)
    rng, members = np.random.default_rng(2), digits.part("train")
    frame = pl.DataFrame({"example_id": members.example_id, "value": rng.normal(size=len(members))})
    test = np.flatnonzero(digits.split == "test")
    y, kept = digits.y.copy(), np.ones(len(digits), bool)
    y[test], kept[test[::2]] = rng.permutation(y[test]), False
    told: list[set[frozenset[int]]] = []

    def found(data):
        trained: set[frozenset[int]] = set()

        def train(members, seed, *, effort=1.0, observe=None):
            trained.add(frozenset(members.example_id.tolist()))
            plan = dataclasses.replace(recipe, epochs=max(1, round(recipe.epochs * effort)))
            return supervised(build, members, config=plan, seed=seed, observe=observe)

        pools = quality_pools(
            data,
            config=QualityPoolsConfig(num_pools=3, efforts=(0.1, 0.3, 0.9)),
            seed=5,
            scores=lambda name: frame,
            train=train,
            progress=silent,
        )
        told.append(trained)
        return pools | laws_of(data, pools, model=build(0), bootstrap=5)

    ordered = members.subset(np.sort(members.example_id))
    _, _, validation = hold_out(ordered, np.zeros(len(members)), 0.2, seed=5, name="")
    rows, x = digits.positions(validation.example_id), digits.x.copy()
    x[rows] = x[rng.permutation(rows)]
    relabelled, shuffled = dataclasses.replace(digits, y=y), dataclasses.replace(digits, x=x)
    outs = [found(data) for data in (digits, relabelled, digits.subset(digits.example_id[kept]), shuffled)]
    plain, *of_other_tests, of_other_validation = outs
    assert told[0] == told[1] == told[2] and not set().union(*told[0]) & set(validation.example_id.tolist())
    for changed in of_other_tests:
        assert not plain["pool_curves"]["test_error"].equals(changed["pool_curves"]["test_error"])
        for name, table in plain.items():
            if name == "pareto_front":
                table, now = (t.filter(~pl.col("series").str.contains("test split")) for t in (table, changed[name]))
            else:
                table, now = (t.drop("test_error", "model_error", strict=False) for t in (table, changed[name]))
            assert table.equals(now), name
    assert plain["pool_curves"]["test_error"].equals(of_other_validation["pool_curves"]["test_error"])
    assert not plain["pool_laws"].equals(of_other_validation["pool_laws"])


def test_both_forms_are_fitted_from_the_same_curves_and_pictures_say_which():
    data = planted()
    out = laws_of(data, run(data, by_law(), seeds=1, **EFFORTS), bootstrap=0)
    for name in ("curation_choice", "pool_laws", "pool_fit", "curation_plan", "plan_check"):
        assert of(out[name]).height == of(out[name], "official").height > 0
    paper, official = (of(out["pool_laws"], form).sort("pool_id") for form in ("paper", "official"))
    assert (paper["sse"] < official["sse"]).all() and (paper["b"] != official["b"]).all()  # the curves are the paper's
    for picture in analysis.get("pool_laws").spec.pictures:
        compat = dict(picture.where).get("compat")
        assert (
            picture.table == "pareto_front"
            or {"paper": "the paper's", "official": "authors' code"}[compat] in picture.title
        )


def test_the_front_is_the_least_prediction_with_what_was_trained_over_it():
    data = planted()
    pools = run(data, by_law(noise=0.001), seeds=2, **EFFORTS)
    out = laws_of(data, pools, bootstrap=0)
    front, laws = out["pareto_front"], of(out["pool_laws"]).sort("b")
    assert front.select("series", "budget").is_duplicated().sum() == 0
    drawn = front.filter(pl.col("series") == "predicted (paper)")
    kept = [PoolLaw(**row) for row in laws.select("a", "b", "tau", "d").to_dicts()]
    for budget, error in zip(drawn["budget"], drawn["error"], strict=True):
        assert error == pytest.approx(min(float(mixture_error(kept[:p], budget, pool_size=100)) for p in (1, 2, 3, 4)))
    trained = (
        pools["pool_unions"]
        .group_by("n_pools", "samples_seen")
        .agg(pl.col("validation_error").mean(), pl.col("test_error").mean())
    )
    trained = trained.sort("samples_seen")
    for num in (2, 3, 4):
        own = front.filter(pl.col("series") == f"trained, {num} pools").sort("budget")
        np.testing.assert_allclose(own["error"], trained.filter(pl.col("n_pools") == num)["validation_error"])
        tested = front.filter(pl.col("series") == f"trained, {num} pools, test split").sort("budget")
        np.testing.assert_allclose(tested["error"], trained.filter(pl.col("n_pools") == num)["test_error"])
        assert (own["low"] < own["error"]).all() and (own["error"] < own["high"]).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_plan_that_trained_unions_contradict_names_no_choice(seed):
    """Pools that complement each other: unions are far better than any law of single pools knows."""

    def train(data, run_seed, *, effort, observe):
        model = by_law(noise=0.002)(data, run_seed, effort=effort, observe=observe)
        pools = len({int(v) * 4 // NUM for v in data.x[:, 0]})
        return Wrong(float(model.error.detach()) * {1: 1.0, 2: 0.95, 3: 0.85, 4: 0.3}[pools])

    data = planted()
    out = laws_of(data, run(data, train, seed=seed, seeds=3, **EFFORTS), bootstrap=0, budgets=(8, 16, 32))
    choice = of(out["curation_choice"])
    assert set(choice["choice"]) == {UNRELIABLE} and of(out["curation_plan"])["is_best"].null_count() == 12
    assert (
        UNRELIABLE in out["pareto_front"]["series"].to_list()
        and "chosen" not in out["pareto_front"]["series"].to_list()
    )
    assert all("apart" in why or "the law expects" in why for why in choice["why"])


def test_a_choice_needs_its_margin_and_the_nearest_measurement():
    """By hand: three pools, two measured points, standard error 0.01 (0.028 for two of a difference)."""
    plan = Plan(
        order=np.arange(3),
        budgets=np.array([120.0, 900.0, 5000.0]),
        errors=np.array([[0.30, 0.40, 0.50], [0.30, 0.20, 0.25], [0.30, 0.21, 0.11]]),
        num_pools=np.array([1, 2, 3]),
    )
    points = {
        100: {1: (0.3, 0.35), 2: (0.4, 0.33)},
        1000: {1: (0.3, 0.3), 2: (0.2, 0.29), 3: (0.25, 0.26)},
        4000: {1: (0.3, 0.1)},
    }

    def said(q, miss, stderr=0.01):
        """All noise from the seeds: no number of examples would help."""
        return _verdict(plan, q, points, miss=miss, noise=_Noise(stderr**2, 0.0, 200))

    why, reliable, _ = said(0, 0.06)
    assert reliable and "no measurement contradicts" in why  # 0.35 against 0.33 is within 0.028
    assert said(0, 0.06, stderr=0.005) == (
        "at 100 samples the law expects 1 pools to be best; measured, 2 were: error 0.33 against 0.35",
        False,
        None,
    )
    why, reliable, _ = said(0, 0.11)
    assert not reliable and why == "the two least predictions are 0.1 apart, and miss measurements by 0.11"
    why, reliable, _ = said(1, 0.01)  # 0.29 where 0.26 was to be had
    assert not reliable and "at 1000 samples the law expects 2 pools to be best; measured, 3 were" in why
    assert not said(2, 0.01)[1]  # one pool alone at 4000 compares nothing: 1000 is nearest
    assert said(2, 0.01, stderr=0.02)[1] and said(2, None) == ("by the law alone: no union was trained", True, None)
    assert said(0, 0.06, stderr=0.04) == (
        "the two least predictions are 0.1 apart; 200 validation examples tell 0.11, the seeds differ by more: more "
        "seeds would",
        False,
        None,
    )


def test_a_validation_part_too_small_for_the_margin_says_how_large_it_must_be():
    """0.1 apart, 2 sqrt(2) sqrt(0.01^2 + 0.25 / m): 0.13 for m = 125, and 0.1 for m = 0.25 / (0.1^2 / 8 - 0.01^2) =
    217.4."""
    plan = Plan(order=np.arange(2), budgets=np.array([120.0]), errors=np.array([[0.3, 0.4]]), num_pools=np.array([1]))
    told = {m: _verdict(plan, 0, {}, miss=0.01, noise=_Noise(0.01**2, 0.25 / m, m)) for m in (125, 217, 218)}
    assert told[125] == (
        "the two least predictions are 0.1 apart; 125 validation examples tell 0.13, about 218 would",
        False,
        218,
    )
    assert (told[217][1:], told[218][1:]) == ((False, 218), (True, None))
    unions = pl.DataFrame({"n_pools": [2, 2], "point": [1, 1], "seed": [0, 1], "validation_error": [0.1, 0.3]})
    noise = _noise(unions, 300)
    assert noise[:2] == pytest.approx((0.02 / 2, (0.09 + 0.21) / 2 / 300)) and noise.num_validation == 300
    assert _noise(unions.head(1), 300)[:2] == (0.0, pytest.approx(0.09 / 300))


def test_a_law_that_does_not_describe_a_curve_is_a_poor_fit():
    def step(data, seed, *, effort, observe):
        """No power law: nothing is learned for eight passes, then everything; the other pools as planted."""
        model = by_law(noise=0.001)(data, seed, effort=effort, observe=observe)
        if {int(v) * 4 // NUM for v in data.x[:, 0]} == {3}:
            return Wrong((0.7 if effort * EPOCHS <= 8 else 0.07) + 0.001 * (seed % 3))
        return model

    data = planted()
    laws = of(laws_of(data, run(data, step, seeds=3, **EFFORTS), bootstrap=0)["pool_laws"])
    status = dict(zip(laws["pool_id"], laws["status"], strict=True))
    assert status["pool_4"] == "poor fit"
    reason = laws.filter(pl.col("pool_id") == "pool_4")["reason"][0]
    assert "standard errors of a point" in reason
    endless = run(data, by_law(), seeds=1, unions=False, **EFFORTS)
    straight = endless["pool_curves"].with_columns(
        validation_error=0.9 * (pl.col("samples_seen") / 100) ** -0.2
    )  # no half-life at all
    laws = of(laws_of(data, {**endless, "pool_curves": straight}, bootstrap=0)["pool_laws"])
    assert (laws["status"] == "poor fit").all() and laws["reason"].str.contains("tau is at the end of its range").all()


def test_curves_say_what_was_seen():
    data = planted()
    pools = run(data, by_law(noise=0.003), seeds=3, unions=False, **EFFORTS)
    out = laws_of(data, pools, bootstrap=0)
    curves = pools["pool_curves"]
    assert curves.height == 4 * 3 * 6 and (curves["samples_seen"] == curves["epoch"] * 100).all()
    assert curves["epoch"].unique().sort().to_list() == [1, 2, 4, 8, 16, 32]
    drawn = of(out["pool_fit"]).filter(pl.col("series") == "pool_2 measured").sort("samples_seen")
    mean = (
        curves.group_by("pool_id", "samples_seen")
        .agg(pl.col("validation_error").mean())
        .sort("pool_id", "samples_seen")
    )
    np.testing.assert_allclose(
        drawn["error"], mean.filter(pl.col("pool_id") == "pool_2")["validation_error"], rtol=1e-12
    )
    for form in ("paper", "official"):
        for row in of(out["pool_laws"], form).to_dicts():
            law = PoolLaw(compat=form, **{k: row[k] for k in ("a", "b", "tau", "d")})
            own = mean.filter(pl.col("pool_id") == row["pool_id"])
            residuals = own["validation_error"].to_numpy() - law.error(own["samples_seen"].to_numpy(), pool_size=100)
            assert row["sse"] == pytest.approx(residuals @ residuals)
    assert pools["pool_unions"].height == out["plan_check"].height == 0
    choice = of(out["curation_choice"])
    assert choice["plan_miss"].null_count() == choice["plan_spearman"].null_count() == 6
    assert choice["why"].str.contains("law alone").all() and UNRELIABLE not in choice["choice"].to_list()
    assert out["pool_laws"]["b_lo"].null_count() == 8


def test_a_rising_pool_is_refused_and_left_out_of_the_plan():
    data = planted()
    out = laws_of(data, run(data, by_law(noise=0.002, rising=1), seeds=3, **EFFORTS), bootstrap=10)
    refused = of(out["pool_laws"]).filter(pl.col("status") == "refused")
    assert refused["pool_id"].to_list() == ["pool_2"] and "cannot rise" in refused["reason"][0]
    assert refused.select("a", "b", "tau", "d", "sse").null_count().sum_horizontal()[0] == 5
    assert set(out["curation_plan"]["n_pools"]) == {1, 2, 3}
    assert not out["curation_plan"]["pools"].str.contains("pool_2").any()
    assert not out["pool_fit"]["series"].str.contains("pool_2 law").any()


def test_nothing_can_be_planned_when_every_pool_is_refused():
    def train(data, seed, *, effort, observe):
        for _ in range(round(EPOCHS * effort)):
            observe(np.arange(len(data)), None)
        return Wrong(0.1 + 0.3 * effort + 1e-4 * (seed % 7))

    data = planted()
    pools = run(data, train, **EFFORTS)
    out = laws_of(data, pools)
    assert (out["pool_laws"]["status"] == "refused").all() and pools["pool_curves"].height == 48
    assert out["curation_plan"].height == out["plan_check"].height == out["curation_choice"].height == 0


def test_the_best_fraction_and_the_other_end():
    out = run(planted(), by_law(), fraction=0.5, num_pools=2, best="highest", unions=False, **EFFORTS)
    assert (out["pools"]["score_low"] * 4 // NUM).to_list() == [3, 2]
    assert (out["pools"]["score_high"] * 4 // NUM).to_list() == [3, 2]


@pytest.mark.parametrize("stratified", [False, True])
def test_pools_are_those_of_the_curator(stratified):
    data = planted()
    data = dataclasses.replace(data, y=np.arange(len(data)) % 2)
    members = data.part("train")
    values = np.round(members.x[:, 0].astype(np.float64) * 60 / NUM)  # ties
    values[::9] = np.nan
    values[members.y == 1] += 40.0  # unstratified, the lowest pool is of one class mostly
    frame = pl.DataFrame({"example_id": members.example_id, "value": values})
    settings = {"num_pools": 3, "fraction": 0.7, "best": "highest", "stratified": stratified}
    seen: list[set[int]] = []

    def train(pool, seed, *, effort, observe):
        ids = set(pool.example_id.tolist())
        if ids not in seen:
            seen.append(ids)
        return by_law()(pool, seed, effort=effort, observe=observe)

    run(data, train, scores=lambda name: frame, unions=False, **settings, **EFFORTS)
    known = ~np.isnan(values)
    scored = members.subset(members.example_id[known])
    scored = scored.subset(np.sort(scored.example_id))
    left, _, _ = hold_out(scored, np.zeros(len(scored)), SHARE, seed=0, name="")
    frame = frame.filter(pl.col("example_id").is_in(left.example_id))
    method = curator.get("quality_pools")
    roles = method(data, config=method.spec.config.from_mapping(settings), seed=0, scores=lambda name: frame)
    assert len(seen) == 3
    for p, ids in enumerate(seen):
        assert set(roles.filter(pl.col("role") == f"pool_{p + 1}")["example_id"]) == ids
    classes = [np.bincount(data.y[data.positions(np.array(sorted(ids)))], minlength=2) for ids in seen]
    assert (len({tuple(c) for c in classes}) == 1) == stratified


def test_efforts_that_come_to_one_length_are_one_point():
    out = run(planted(), by_law(), efforts=(0.001, 0.025, 0.1, 0.4, 0.401), unions=False, seeds=2)
    assert out["pool_curves"]["epoch"].unique().sort().to_list() == [1, 4, 16]
    with pytest.raises(ConfigError, match="2 lengths of training"):
        run(planted(), by_law(), efforts=(0.001, 0.002, 0.4))


def test_what_is_refused():
    data = planted()
    for config, what in (
        ({"efforts": (0.1, 0.2)}, "at least 3"),
        ({"efforts": (0.1, 0.3, 0.2)}, "increasing"),
    ):
        with pytest.raises(ConfigError, match=what):
            QualityPoolsConfig.from_mapping(config)
    with pytest.raises(ConfigError, match="budgets"):
        PoolLawsConfig(budgets=())
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
        pools = quality_pools(
            data,
            config=QualityPoolsConfig(num_pools=2, seeds=1),
            seed=3,
            scores=lambda name: frame,
            train=train,
            progress=lambda *a: told.append(a),
        )
        outs.append(pools | laws_of(data, pools, model=build(0), seed=3, bootstrap=5))
    assert torch.equal(state, torch.get_rng_state())
    assert all(outs[0][name].equals(outs[1][name]) for name in outs[0])
    declared = {t.name for a in ("quality_pools", "pool_laws") for t in analysis.get(a).spec.tables}
    assert declared == set(outs[0])
    assert told[0][0] == 1 and all(done <= total for done, total, _ in told)
