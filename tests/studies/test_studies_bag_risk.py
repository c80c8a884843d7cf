"""The risk of fits to bag means: known values, other derivations, simulation; the choice of rho and bag size."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigError, InvalidInput
from contracts.methods import analysis, maker
from contracts.progress import silent
from curation.bags import BagsConfig
from palimpsest.testing.worlds import class_examples, numbers
from recipes.aggregate.linear import fit_linear_aggregate
from sources.bags import Bags, make_bags, release_bag_means
from sources.made import Made
from studies.bag_privacy import BagPrivacyConfig
from studies.bag_risk import (
    asymptotic_risk,
    bag_fit_risk,
    effective_noise,
    optimal_bag_size,
    rho_by_cross_validation,
    rho_by_plug_in,
    simulated_risk,
)
from studies.bag_risk_curve import BagRiskConfig

SETTING = {"sigma2": 0.5, "theta2": 1.0}


@pytest.mark.parametrize(
    ("k", "rho", "risk"), [(5, 0.1, 0.263), (5, 1.0, 0.664), (8, 0.5, 0.663), (5, 0.0, 0.357), (1, 0.3, 0.5 / 11)]
)
def test_known_values(k: int, rho: float, risk: float) -> None:
    assert asymptotic_risk(12, k, rho=rho, **SETTING).risk == pytest.approx(risk, abs=6e-4)


@given(st.floats(1.1, 50), st.floats(1, 20), st.floats(1e-3, 10))
def test_the_root_is_that_of_the_quadratic_and_the_parts_are_risks(psi: float, k: float, rho: float) -> None:
    """mu t/(1+t) + q rho t/(1+rho t) = 1 is (psi - 1) rho t^2 + (mu + q rho - 1 - rho) t - 1 = 0."""
    mu, q = psi / k, psi - psi / k
    a, b = (psi - 1) * rho, mu + q * rho - 1 - rho
    t = (-b + math.sqrt(b * b + 4 * a)) / (2 * a)
    d = mu / (1 + t) ** 2 + q * rho / (1 + rho * t) ** 2
    variance = 0.5 * mu * t / (1 + t) ** 2 / d
    found = asymptotic_risk(psi, k, rho=rho, **SETTING)
    assert found.variance == pytest.approx(variance, rel=1e-6) and found.bias2 >= 0


@given(st.floats(1.1, 50), st.floats(0, 10))
def test_with_bags_of_one_rho_is_irrelevant(psi: float, rho: float) -> None:
    found = asymptotic_risk(psi, 1, rho=rho, **SETTING)
    assert found.bias2 == pytest.approx(0, abs=1e-12) and found.variance == pytest.approx(0.5 / (psi - 1), rel=1e-6)


def test_rho_one_is_least_squares_of_the_bag_means() -> None:
    """There t = 1/(psi - 1): the whole of X'X stands in the inverse."""
    psi, k = 12, 5
    t = 1 / (psi - 1)
    mu, q = psi / k, psi - psi / k
    d = psi / (1 + t) ** 2
    bias2 = q * t / (1 + t) - t / d * mu * q * (1 - t * t) / (1 + t) ** 4
    assert asymptotic_risk(psi, k, rho=1.0, **SETTING).bias2 == pytest.approx(bias2)


def test_simulation_agrees_and_bag_fits_have_their_exact_risk() -> None:
    rhos = (0.0, 0.1, 1.0)
    found = simulated_risk(num=600, dim=50, sizes=(3, 5), rhos=rhos, repeats=60, seed=1, **SETTING)
    for (k, rho), (risk, error) in found.items():
        if rho:
            theory = asymptotic_risk(12, k, rho=rho, **SETTING)
            assert abs(risk.risk / theory.risk - 1) < 0.06 and abs(risk.bias2 - theory.bias2) < 0.06 * theory.bias2
        else:
            assert abs(risk.risk - bag_fit_risk(600 // k, 50, sigma2=0.5)) < 5 * error and risk.bias2 < 1e-20


def test_the_fit_of_minimum_norm_has_the_risk_of_the_formula() -> None:
    found = simulated_risk(num=400, dim=100, sizes=(10,), rhos=(0.0,), repeats=60, seed=2, **SETTING)
    theory = asymptotic_risk(4, 10, rho=0.0, **SETTING)  # 40 bags of 100 features
    assert theory.bias2 == pytest.approx(0.6) and theory.variance == pytest.approx(0.5 * 4 / 6)
    risk, _ = found[10, 0.0]
    assert abs(risk.bias2 / theory.bias2 - 1) < 0.05 and abs(risk.variance / theory.variance - 1) < 0.1
    assert asymptotic_risk(4, 4, rho=0.0, **SETTING).risk == math.inf


def test_whole_fits_to_drawn_responses_have_the_risk_too() -> None:
    """Nothing but the definition: responses, bags, noise under epsilon, the closed form, the distance to theta."""
    rng, k, eps, clip = np.random.default_rng(3), 4, 4.0, 4.7
    errors = []
    for draw in range(60):
        x, theta = rng.normal(size=(480, 40)), np.full(40, 40**-0.5)
        y = x @ theta + math.sqrt(0.5) * rng.normal(size=480)
        bags = make_bags(np.arange(480), k, seed=draw)
        said = release_bag_means(y, bags, epsilon=eps, clip=clip, rng=rng)
        off = fit_linear_aggregate(x, said.means[:, 0], bags=bags, rho=0.3).theta - theta
        errors.append(float(off @ off))
    noise = effective_noise(0.5, k, epsilon=eps, clip=clip)
    theory = asymptotic_risk(12, k, rho=0.3, sigma2=noise, theta2=1.0).risk
    assert abs(np.mean(errors) / theory - 1) < 0.08
    assert noise == pytest.approx(0.5 + k * 2 * (2 * clip / (k * eps)) ** 2), (
        "k times the variance of Laplace(2c/k eps)"
    )


def test_the_best_bag_size_falls_with_epsilon_and_jumps_to_one() -> None:
    clip = math.sqrt(3.1 * math.log(1200))
    known = {0.1: [10, 10, 5, 1, 1], 0.3: [10, 10, 3, 1, 1], 1.0: [10, 5, 2, 1, 1]}
    for rho, best in known.items():
        found = [
            optimal_bag_size(12, range(1, 11), rho=rho, epsilon=eps, clip=clip, **SETTING)[0]
            for eps in (1, 2, 5, 10, 20)
        ]
        assert found == best
    for eps in (0.1, 1, 10):
        assert optimal_bag_size(12, range(1, 20), rho=0.0, epsilon=eps, clip=clip, **SETTING)[0] == 1
    assert optimal_bag_size(12, [3, 2], rho=0.1, **SETTING)[0] == 2
    with pytest.raises(InvalidInput, match="no bag size"):
        optimal_bag_size(3, [4, 5], rho=0.0, **SETTING)
    for wrong in ({"psi": 1.0}, {"k": 0.5}, {"rho": -1.0}, {"sigma2": math.nan}):
        with pytest.raises(InvalidInput, match="outside its allowed range"):
            asymptotic_risk(**{"psi": 12.0, "k": 5, "rho": 0.1, **SETTING, **wrong})


def drawn(seed: int, *, num: int = 1200, dim: int = 60, k: int = 5) -> tuple[np.ndarray, np.ndarray, Bags, np.ndarray]:
    """Features of any covariance and place; the chosen rho may depend on neither."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(dim, dim))
    z = rng.normal(size=(num, dim))
    theta = rng.normal(size=dim)
    y = z @ theta / np.linalg.norm(theta) + math.sqrt(0.5) * rng.normal(size=num)
    bags = make_bags(np.arange(num), k, seed=seed)
    return z @ mix, bags.means(y), bags, z


def test_a_release_tells_noise_signal_and_a_good_rho() -> None:
    grid = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
    risks = [asymptotic_risk(20, 5, rho=rho, **SETTING).risk for rho in grid]
    noise, size, validated = [], [], []
    for seed in range(8):
        x, means, bags, z = drawn(seed)
        plug = rho_by_plug_in(x, means, bags=bags, grid=grid)
        assert plug is not None and risks[grid.index(plug.rho)] <= 1.1 * min(risks)
        own = rho_by_plug_in(z, means, bags=bags, grid=grid)
        assert own is not None and own.sigma2 == pytest.approx(plug.sigma2) and own.theta2 == pytest.approx(plug.theta2)
        moved = rho_by_plug_in(z + 100, means + 7, bags=bags, grid=grid, intercept=True)
        assert moved is not None and moved.theta2 == pytest.approx(own.theta2, abs=0.1)
        noise.append(plug.sigma2)
        size.append(plug.theta2)
        chosen, losses = rho_by_cross_validation(x, means, bags=bags, seed=seed, grid=grid, repeats=2)
        assert losses.shape == (6,)
        validated.append(risks[grid.index(chosen)] / min(risks))
    assert np.mean(validated) < 1.15
    assert np.mean(noise) == pytest.approx(0.5, abs=0.04) and np.mean(size) == pytest.approx(1.0, abs=0.1)


def test_without_enough_bags_there_is_no_estimate_and_no_folds() -> None:
    x, means, bags, _ = drawn(0, num=100, dim=30)
    assert rho_by_plug_in(x, means, bags=bags) is None
    for wrong in ({"folds": 1}, {"folds": 21}, {"repeats": 0}):
        with pytest.raises(InvalidInput, match="outside its allowed range"):
            rho_by_cross_validation(x, means, bags=bags, seed=0, **wrong)


def test_held_out_bags_are_scored_by_fits_that_did_not_see_them() -> None:
    x, means, bags, _ = drawn(1, num=200, dim=4)
    _, losses = rho_by_cross_validation(x, means, bags=bags, seed=3, grid=(0.2,), folds=4, intercept=True)
    fold = np.random.default_rng(3).permutation(40) % 4
    total = 0.0
    for f in range(4):
        rows = np.flatnonzero(fold[bags.index] != f)
        _, index = np.unique(bags.index[rows], return_inverse=True)
        fit = fit_linear_aggregate(x[rows], means[fold != f], bags=Bags(index), rho=0.2, intercept=True)
        total += 5 * float(np.square(means[fold == f] - fit.predict(bags.means(x)[fold == f])).sum())
    assert losses[0] == pytest.approx(total / 200)


# ---- the analyses --------------------------------------------------------------------------------------------------


def test_the_curve_of_gaussian_data_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    num, dim = 1500, 30
    x = rng.normal(size=(num, dim)).astype(np.float32)
    y = x @ np.full(dim, 3 / dim**0.5) + 2 * rng.normal(size=num) + 50
    base = class_examples(num, dim)
    data = dataclasses.replace(base, name="gaussian", task="regression", x=x, y=y, class_names=()).validate()
    config = BagRiskConfig(
        bag_sizes=(1, 4, 8), rhos=(0.0, 0.1, 1.0), epsilons=(3.0,), clip=14.0, center=50.0, repeats=30
    )
    out = analysis.get("bag_risk_curve")(data, config=config, seed=0, progress=silent)
    curve = out["bag_risk_curve"]
    assert curve.height == 3 * 3 * 2 * 3
    wide = curve.pivot("source", index=["k", "rho", "release"], values="risk")
    assert ((wide["monte_carlo"] / wide["theory"] - 1).abs() < 0.15).all()
    biased = wide.filter((pl.col("k") > 1) & (pl.col("rho") == 1) & (pl.col("release") == "exact"))
    assert ((biased["measured"] / biased["theory"] - 1).abs() < 0.2).all(), "bias to the mean, of these examples"
    exact = wide.filter((pl.col("k") == 1) & (pl.col("release") == "exact"))
    assert exact["measured"].to_numpy() == pytest.approx(np.zeros(3), abs=1e-12), "bags of one are the responses"
    noisy = wide.filter((pl.col("release") == "epsilon 3") & (pl.col("rho") == 0.1))
    assert (noisy["measured"] > 0.5 * (noisy["theory"] - exact["theory"][0])).all()
    best = curve.filter("best")
    assert best.height == 3 * 2 * 3 and (best["risk"] <= best["risk"]).all()
    choice = out["bag_rho"].filter((pl.col("k") == 4) & (pl.col("release") == "exact"))
    assert choice["sigma2"][0] == pytest.approx(4, rel=0.25) and choice["theta2"][0] == pytest.approx(9, rel=0.2)
    with pytest.raises(ConfigError, match="fewer than two bags"):
        analysis.get("bag_risk_curve")(data, config=BagRiskConfig(bag_sizes=(800,)), seed=0, progress=silent)
    with pytest.raises(ConfigError, match="needs clip"):
        BagRiskConfig(epsilons=(1.0,))


def made_sets() -> dict[str, Made]:
    def bags(**config: object) -> Made:
        settings = BagsConfig.from_mapping({"bag_size": 5, "clip": 20.0, "center": 40.0, **config})
        return maker.get("bags")(numbers().train, config=settings, seed=1, progress=silent, secret=bytes(16))

    return {
        "once": bags(epsilon=1.5),
        "thrice": bags(epsilon=0.5, releases=3),
        "printed": bags(epsilon=1.0, paper_scale=True),
        "exact": bags(),
        "copies": Made(
            examples=numbers().train.by_id(),
            drawn_from=pl.DataFrame({"made_id": numbers().train.by_id().example_id}).with_columns(example_id="made_id"),
        ),
    }


def test_epsilons_of_all_releases_add_up() -> None:
    sets = made_sets()
    out = analysis.get("bag_privacy")(
        numbers().examples,
        config=BagPrivacyConfig(datasets=("once", "thrice", "printed", "exact", "copies")),
        seed=0,
        progress=silent,
        made=sets.__getitem__,
    )["bag_privacy"]
    assert out["epsilon"].to_list() == [1.5, 1.5, 2.0, None, None]
    assert out["epsilon_sum"].to_list() == [1.5, 3.0, 5.0, None, None]
    assert out["releases"].to_list() == [1, 3, 1, 1, 0] and set(out["num_labels"]) == {90}
    assert (
        "3 times, epsilon 1.5 together; with all before it, 2 in number, the epsilon of a label is 3."
        in out["sentence"][1]
    )
    assert "without a bound" in out["sentence"][3] and "responses as they are" in out["sentence"][4]


def test_releases_of_other_examples_do_not_add() -> None:
    train = numbers().train.by_id()
    sets = {}
    for name, part in (("first", train.take(np.arange(45))), ("second", train.take(np.arange(45, 90)))):
        config = BagsConfig(epsilon=1.0, clip=20.0, center=40.0)
        sets[name] = maker.get("bags")(part, config=config, seed=1, progress=silent, secret=bytes(16))
    out = analysis.get("bag_privacy")(
        numbers().examples, config=BagPrivacyConfig(datasets=("first", "second")), seed=0, made=sets.__getitem__
    )["bag_privacy"]
    assert out["epsilon_sum"].to_list() == [1.0, 1.0]
    with pytest.raises(ConfigError, match="each once"):
        BagPrivacyConfig(datasets=("first", "first"))
