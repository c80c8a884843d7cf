"""The long-tailed mixture: tau against simulation and closed forms, and data with the promised neighbourhoods."""

from __future__ import annotations

import math

import numpy as np
import pytest

from contracts.errors import ConfigError, InvalidInput
from sources.loading import load
from sources.long_tail import (
    LongTailMixture,
    LongTailMixtureConfig,
    draw_long_tail,
    frequency_prior_tau,
    price_of_not_memorising,
    zipf_prior,
)


@pytest.mark.parametrize(("num", "expected"), [(1000, 0.570), (5000, 0.518)])
def test_tau_1_of_the_zipf_prior(num: int, expected: float) -> None:
    """The published kind of example: N = n; powers of 1 - alpha underflow at 5,000 unless taken in logarithms."""
    tau = frequency_prior_tau(zipf_prior(num), num_samples=num, ell=1, draws=1000)
    assert num * tau == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize("ell", [0, 1, 2, 5])
def test_tau_against_simulation(ell: int) -> None:
    prior, num = zipf_prior(60), 80
    seen, mass = 0, 0.0
    for seed in range(1500):
        mixture = LongTailMixture.draw(prior, num_classes=2, seed=seed)
        counts = np.bincount(mixture.sample(num, seed=seed + 10**6), minlength=60)
        seen += int((counts == ell).sum())
        mass += mixture.frequency[counts == ell].sum()
    assert frequency_prior_tau(prior, num_samples=num, ell=ell, draws=3000, seed=1) == pytest.approx(
        mass / seen, rel=0.03
    )


def test_a_uniform_prior_has_no_tail() -> None:
    """All frequencies 1/N: tau is 1/N whatever was seen, and with N << n nothing is seen once."""
    prior = np.ones(20)
    for ell in (0, 1, 50):
        assert frequency_prior_tau(prior, num_samples=1000, ell=ell) == pytest.approx(1 / 20, rel=1e-12)
    expected_singletons = 1000 * (1 / 20) * (1 - 1 / 20) ** 999 * 20
    assert expected_singletons * (1 / 20) < 1e-18


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("missed", [(1,), (1, 2, 3), (2, 5)])
def test_the_price_of_what_is_mislabelled_against_simulation(seed: int, missed: tuple[int, ...]) -> None:
    """An algorithm that answers wrongly what it saw so often; N is not n, and the prior not Zipf's."""
    prior, num = zipf_prior(90, exponent=0.7), 60
    cost, mislabelled = 0.0, dict.fromkeys(missed, 0)
    for draw in range(1500):
        mixture = LongTailMixture.draw(prior, num_classes=2, seed=10**6 * seed + draw)
        counts = np.bincount(mixture.sample(num, seed=10**8 + 10**6 * seed + draw), minlength=90)
        cost += mixture.frequency[np.isin(counts, missed)].sum()
        mislabelled = {ell: n + int((counts == ell).sum()) for ell, n in mislabelled.items()}
    found = price_of_not_memorising(prior, mislabelled, num_samples=num, draws=1000, seed=seed)
    assert found == pytest.approx(cost, rel=0.02)
    at_one = price_of_not_memorising(zipf_prior(60), mislabelled, num_samples=num, draws=1000, seed=seed)
    assert abs(at_one / cost - 1) > 0.05, "another prior has another price"


def test_the_price_of_nothing_and_refused_prices() -> None:
    assert price_of_not_memorising(zipf_prior(9), {}, num_samples=5) == 0.0
    for wrong in ({0: 1.0}, {1: -1.0}, {2: math.nan}, {1: math.inf}, {6: 1.0}):
        with pytest.raises(InvalidInput):
            price_of_not_memorising(zipf_prior(9), wrong, num_samples=5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_source_gives_the_mixture(seed: int) -> None:
    size = {"num_train": 300, "num_test": 200, "num_subpopulations": 150, "num_classes": 4, "dim": 16}
    data = load("long_tail_mixture", {**size, "process_seed": seed}, seed=seed)
    mixture, where, x = draw_long_tail(LongTailMixtureConfig(**size, process_seed=seed))
    assert (data.split == "train").sum() == 300 and (data.split == "test").sum() == 200
    assert np.array_equal(data.y, mixture.label[where[data.example_id]]) and np.array_equal(data.x, x[data.example_id])
    inside = data.part("train")
    np.testing.assert_allclose(inside.inputs(slice(None)).std(axis=0), 1, rtol=1e-4)
    other = load("long_tail_mixture", {**size, "process_seed": seed}, seed=seed + 1)
    assert np.array_equal(other.x, data.x) and not np.array_equal(other.split, data.split)
    assert not np.array_equal(load("long_tail_mixture", {**size, "process_seed": seed + 1}, seed=seed).x, data.x)
    # Rarity is what it says: the share of test samples whose subpopulation was never trained on, against tau_0.
    prior, count = zipf_prior(150), np.bincount(where[inside.example_id], minlength=150)
    tau = frequency_prior_tau(prior, num_samples=300, ell=0, draws=500)
    assert mixture.frequency[count == 0].sum() == pytest.approx(tau * (count == 0).sum(), rel=0.5)
    unseen = (count[where[data.part("test").example_id]] == 0).mean()
    assert unseen == pytest.approx(mixture.frequency[count == 0].sum(), abs=4 * math.sqrt(0.25 / 200))


def test_the_source_has_no_tail_without_an_exponent_and_keeps_its_ranges() -> None:
    flat, _, _ = draw_long_tail(LongTailMixtureConfig(num_train=50, num_test=50, num_subpopulations=20, exponent=0))
    assert np.array_equal(flat.frequency, np.full(20, flat.frequency[0]))
    for bad in ({"num_subpopulations": 1}, {"exponent": -1.0}, {"num_classes": 1}, {"num_test": 0}):
        with pytest.raises(ConfigError):
            load("long_tail_mixture", bad)


def test_the_domain_and_its_samples() -> None:
    prior = zipf_prior(500)
    mixture = LongTailMixture.draw(prior, num_classes=7, seed=3)
    assert mixture.frequency.sum() == pytest.approx(1) and set(np.unique(mixture.label)) == set(range(7))
    ratios = mixture.frequency[:, None] / mixture.frequency[None]
    assert np.isin(np.round(np.log(ratios[0]), 9), np.round(np.log(prior[:, None] / prior[None]).ravel(), 9)).all()
    sample = mixture.sample(200_000, seed=4)
    share = np.bincount(sample, minlength=500) / len(sample)
    sd = np.sqrt(mixture.frequency * (1 - mixture.frequency) / len(sample))
    assert (np.abs(share - mixture.frequency) < 6 * sd).all()
    assert np.array_equal(sample, mixture.sample(200_000, seed=4))


def test_neighbours_share_their_subpopulation() -> None:
    mixture = LongTailMixture.draw(zipf_prior(100), num_classes=5, seed=0)
    where = mixture.sample(400, seed=1)
    x = mixture.vectors(where, seed=2)
    assert x.dtype == np.float32 and x.shape == (400, 64)
    distance = np.square(x[:, None].astype(float) - x[None]).sum(2)
    np.fill_diagonal(distance, np.inf)
    twice = np.bincount(where, minlength=100)[where] > 1
    assert (where[distance.argmin(1)] == where)[twice].all()
    spread = (x - np.stack([x[where == s].mean(0) for s in where]))[np.bincount(where, minlength=100)[where] > 20]
    assert spread.std() == pytest.approx(0.3 / math.sqrt(64), rel=0.1)


def test_refusals() -> None:
    for prior in (np.array([0.5, 0.0]), np.array([]), np.array([1.0, np.nan]), np.ones((2, 2))):
        with pytest.raises(InvalidInput, match="prior"):
            LongTailMixture.draw(prior, num_classes=2, seed=0)
    with pytest.raises(InvalidInput, match="num_classes"):
        LongTailMixture.draw(zipf_prior(3), num_classes=1, seed=0)
    for bad in ({"num_samples": 0, "ell": 0}, {"num_samples": 5, "ell": 6}, {"num_samples": 5, "ell": 1, "draws": 0}):
        with pytest.raises(InvalidInput):
            frequency_prior_tau(zipf_prior(9), **bad)
    with pytest.raises(InvalidInput, match="two subpopulations"):
        frequency_prior_tau(np.ones(1), num_samples=3, ell=1)
