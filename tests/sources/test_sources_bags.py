"""Bags cover every example once; what is released of their responses is what the mechanism promises, and no more."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import kstest

from attacks.dp_audit import eps_lower_bound, log_ratio_audit
from contracts.errors import ConfigError, DataError, InvalidInput
from sources.bags import Bags, composed, make_bags, natural_bags, on_simplex, release_bag_means, release_shares

C = 2.0


@given(num=st.integers(1, 80), size=st.integers(1, 20), seed=st.integers(0, 5))
def test_bags_at_random_are_disjoint_and_take_what_is_left_over(num: int, size: int, seed: int) -> None:
    ids = np.random.default_rng(seed).permutation(5 * num)[:num]
    bags = make_bags(ids, size, seed=seed)
    sizes = sorted(bags.sizes.tolist())
    assert sum(sizes) == num and len(bags) == max(num // size, 1)
    assert sizes[:-1] == [size] * (len(bags) - 1), "all but one have the size asked for"
    assert sizes[-1] == (size + num % size if num >= size else num)
    mixed = np.random.default_rng(seed + 1).permutation(num)
    again = make_bags(ids[mixed], size, seed=seed)
    assert (again.index == bags.index[mixed]).all(), "the order of the rows does not decide"


def test_bags_are_drawn_from_all_examples_and_differ_by_seed() -> None:
    ids = np.arange(1000)
    first, second = make_bags(ids, 10, seed=0), make_bags(ids, 10, seed=1)
    assert (first.index == make_bags(ids, 10, seed=0).index).all() and (first.index == second.index).mean() < 0.05
    centres = first.means(ids.astype(float))
    assert abs(centres.std() - 288.7 / math.sqrt(10)) < 20, "a bag is a random sample, no run of ids"


def test_natural_bags_keep_their_sizes_and_large_groups_are_cut_evenly() -> None:
    values = np.array(["b"] * 7 + ["a"] * 3 + ["c"])
    ids = np.arange(11)[::-1].copy()
    bags = natural_bags(values, ids)
    assert bags.sizes.tolist() == [3, 7, 1] and len({*bags.index[:7].tolist()}) == 1
    cut = natural_bags(values, ids, largest=3, seed=4)
    assert sorted(cut.sizes.tolist()) == [1, 2, 2, 3, 3]
    for number in range(len(cut)):
        assert len({*values[cut.index == number].tolist()}) == 1, "no bag crosses a group"
    mixed = np.random.default_rng(0).permutation(11)
    assert (natural_bags(values[mixed], ids[mixed], largest=3, seed=4).index == cut.index[mixed]).all()


def test_means_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    bags, values = Bags(np.array([2, 0, 1, 2, 2, 1], np.int64)), rng.normal(size=(6, 3))
    wanted = [np.mean([values[i] for i in range(6) if bags.index[i] == a], axis=0) for a in range(3)]
    assert np.allclose(bags.means(values), wanted) and bags.means(values[:, 0]).shape == (3,)


@pytest.mark.parametrize("index", [np.array([0, 2]), np.array([-1, 0]), np.array([], np.int64), np.zeros(3, np.int32)])
def test_numbers_that_are_no_bags_are_refused(index: np.ndarray) -> None:
    with pytest.raises(DataError, match="bags are"):
        Bags(index)
    with pytest.raises(ConfigError, match="outside their allowed range"):
        make_bags(np.arange(3), 0, seed=0)


def test_the_mean_is_of_clipped_values() -> None:
    """Neither the clipped mean of unclipped values nor a sum."""
    y, bags = np.array([10.0, -1.0, 0.0, 3.0]), Bags(np.array([0, 0, 0, 0], np.int64))
    assert release_bag_means(y, bags, clip=C).means.tolist() == [[(2.0 - 1.0 + 0.0 + 2.0) / 4]]
    assert release_bag_means(y, bags, clip=C, center=5.0).means.tolist() == [[(7 + 3 + 3 + 3) / 4]]
    assert release_bag_means(y, bags).means.tolist() == [[3.0]] and release_bag_means(y, bags).scale.tolist() == [0.0]


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8), st.floats(-1e6, 1e6), st.floats(0.1, 100))
def test_one_response_moves_its_mean_by_no_more_than_the_sensitivity(
    rest: list[float], other: float, clip: float
) -> None:
    bags = Bags(np.zeros(len(rest), np.int64))
    first = release_bag_means(np.array(rest), bags, clip=clip).means[0, 0]
    second = release_bag_means(np.array([other, *rest[1:]]), bags, clip=clip).means[0, 0]
    assert abs(first - second) <= 2 * clip / len(rest) * (1 + 1e-9)


def test_the_noise_is_laplace_of_the_scale_that_it_states() -> None:
    sizes = np.repeat([2, 5], 20_000)
    bags = Bags(np.repeat(np.arange(len(sizes)), sizes))
    said = release_bag_means(np.zeros(len(bags.index)), bags, epsilon=0.7, clip=C, rng=np.random.default_rng(3))
    assert np.allclose(said.scale, 2 * C / (sizes * 0.7)) and said.epsilon == 0.7
    for size in (2, 5):
        noise = said.means[sizes == size, 0] / (2 * C / (size * 0.7))
        assert kstest(noise, "laplace").pvalue > 0.001
    grid = 2.0 ** (math.floor(math.log2(said.scale[0])) - 20)
    assert (said.means[0, 0] / grid).is_integer(), "the low bits are gone"


def audited(paper_scale: bool, *, epsilon: float = 1.0, k: int = 4, draws: int = 100_000) -> tuple[float, float]:
    """(log-ratio, Clopper-Pearson bound) of releases of one bag in which one label is c or -c."""
    rng, said, exact = np.random.default_rng(5), [], []
    bags = Bags(np.repeat(np.arange(draws), k))
    for own in (C, -C):
        y = np.tile([own, 0.3, -1.0, 9.0], draws)
        exact.append((own + 0.3 - 1.0 + C) / k)
        said.append(release_bag_means(y, bags, epsilon=epsilon, clip=C, paper_scale=paper_scale, rng=rng).means[:, 0])
    above = [int((values > exact[0]).sum()) for values in said]
    return log_ratio_audit(*said, thresholds=exact), eps_lower_bound(above[0], draws, above[1], draws, alpha=0.01)


def test_an_audit_confirms_epsilon_and_refutes_the_printed_scale() -> None:
    """The factor of two: the printed noise is shown, with confidence, to protect for less than it says."""
    (ratio, bound), (paper_ratio, paper_bound) = audited(False), audited(True)
    assert ratio <= 1.05 and bound <= 1.0
    assert paper_ratio > 1.5 and 1.8 < paper_bound <= 2.0


def test_a_mechanism_that_clips_the_mean_is_caught_by_the_same_audit() -> None:
    """Averaging unclipped responses: the bag of a response of 50 gives it away."""
    rng, k, draws = np.random.default_rng(1), 4, 50_000
    said = [np.clip(own / k, -C, C) + rng.laplace(scale=2 * C / k, size=draws) for own in (50.0, -50.0)]
    assert log_ratio_audit(*said, thresholds=[-C, C]) > 3


def test_classes_are_released_as_shares_with_the_sensitivity_of_two_of_them() -> None:
    labels, bags = np.array([0, 1, 1, 2, 2, 2]), Bags(np.array([0, 0, 0, 1, 1, 1], np.int64))
    exact = release_shares(labels, bags, num_classes=3)
    assert np.allclose(exact.means, [[1 / 3, 2 / 3, 0], [0, 0, 1]])
    moved = release_shares(np.array([2, 1, 1, 2, 2, 2]), bags, num_classes=3)
    assert np.isclose(np.abs(exact.means - moved.means).sum(), 2 / 3)
    noisy = release_shares(labels, bags, num_classes=3, epsilon=2.0, rng=np.random.default_rng(0))
    assert np.allclose(noisy.scale, 2 / (3 * 2.0)) and (noisy.means != exact.means).all()
    with pytest.raises(DataError, match="labels must be"):
        release_shares(labels, bags, num_classes=2)


@given(st.integers(0, 200))
def test_the_simplex_is_met_at_its_nearest_point(seed: int) -> None:
    v = np.random.default_rng(seed).normal(size=(1, 4)) * 2
    found = on_simplex(v)[0]
    start = {"type": "eq", "fun": lambda p: p.sum() - 1}
    best = minimize(lambda p: np.square(p - v[0]).sum(), np.full(4, 0.25), bounds=[(0, 1)] * 4, constraints=start)
    assert found.min() >= 0 and abs(found.sum() - 1) < 1e-12
    assert np.square(found - v[0]).sum() <= best.fun + 1e-9


def test_epsilons_add_and_an_exact_release_has_none() -> None:
    assert composed([1.0, 1.0, 0.5]) == 2.5 and composed([1.0, None]) == math.inf


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"epsilon": 1.0}, "needs clip"),
        ({"epsilon": 1.0, "clip": 1.0}, "needs rng"),
        ({"epsilon": 0.0, "clip": 1.0}, "epsilon = 0.0"),
        ({"clip": -1.0}, "clip = -1.0"),
    ],
)
def test_a_release_without_what_it_takes_is_refused(given_: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        release_bag_means(np.ones(3), make_bags(np.arange(3), 3, seed=0), **given_)
    with pytest.raises(DataError, match="finite numbers"):
        release_bag_means(np.array([1.0, np.nan, 0.0]), make_bags(np.arange(3), 3, seed=0))
    with pytest.raises(InvalidInput, match="each takes some"):
        log_ratio_audit(np.ones(3), np.ones(0), thresholds=[0.0])
