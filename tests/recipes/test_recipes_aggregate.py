"""Losses of bags by their definition, the closed form by brute force, and a recipe that sees bag means alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigError, InvalidInput, NotApplicable
from palimpsest.testing.worlds import class_examples, numbers
from recipes.aggregate.aggregate import AggregateConfig, aggregate, released
from recipes.aggregate.linear import fit_linear_aggregate, moments
from recipes.aggregate.losses import bag_loss, instance_loss, interpolating_loss, within_bag_variance
from recipes.checkpoints import arrays_digest, to_arrays
from recipes.models import builder
from recipes.predict import predict_logits
from sources.bags import Bags, make_bags
from sources.example_set import ExampleSet

SIZES = torch.tensor([3, 1, 4])


def drawn(seed: int, *, width: int = 1, sizes: torch.Tensor = SIZES) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    f = torch.from_numpy(rng.normal(size=(int(sizes.sum()), width)))
    return f, torch.from_numpy(
        rng.dirichlet(np.ones(width), len(sizes)) if width > 1 else rng.normal(size=(len(sizes), 1))
    )


def by_loops(f: torch.Tensor, y: torch.Tensor, sizes: torch.Tensor) -> tuple[float, float, float]:
    """L_bag, L_ins and R of the module's head, squared loss, R by pairs."""
    n, bag, instance, pairs = len(f), 0.0, 0.0, 0.0
    for part, mean in zip(torch.split(f[:, 0], sizes.tolist()), y[:, 0], strict=True):
        k = len(part)
        bag += k * float((mean - part.mean()) ** 2) / n
        instance += sum(float((mean - p) ** 2) for p in part) / n
        pairs += sum(float((p - q) ** 2) for p in part for q in part) / (2 * k * n)
    return bag, instance, pairs


@given(st.integers(0, 100))
def test_the_losses_are_those_of_loops_and_their_difference_is_the_variance(seed: int) -> None:
    f, y = drawn(seed)
    bag, instance, pairs = by_loops(f, y, SIZES)
    assert float(bag_loss(f, y, SIZES)) == pytest.approx(bag, abs=1e-12)
    assert float(instance_loss(f, y, SIZES)) == pytest.approx(instance, abs=1e-12)
    assert float(within_bag_variance(f, SIZES)) == pytest.approx(pairs, abs=1e-12)
    assert abs(float(instance_loss(f, y, SIZES) - bag_loss(f, y, SIZES) - within_bag_variance(f, SIZES))) < 1e-12
    assert float(interpolating_loss(f, y, SIZES, rho=1.0) - instance_loss(f, y, SIZES)) == pytest.approx(0, abs=1e-12)


def test_equal_and_unequal_sizes_take_the_same_values() -> None:
    """The reshaped tensor [b, k] and the segments."""
    f, y = drawn(1, sizes=torch.tensor([4, 4]))
    more, mean = drawn(2, sizes=torch.tensor([1]))
    for loss in (bag_loss, instance_loss):
        alone = [8 * loss(f, y, torch.tensor([4, 4])), loss(more, mean, torch.tensor([1]))]
        both = loss(torch.cat([f, more]), torch.cat([y, mean]), torch.tensor([4, 4, 1]))
        assert float(sum(alone) / 9 - both) == pytest.approx(0, abs=1e-14)
    block = f.reshape(2, 4)
    assert float(bag_loss(f, y, torch.tensor([4, 4]))) == pytest.approx(
        float((y[:, 0] - block.mean(1)).square().mean())
    )


def test_bags_of_one_make_all_losses_one_and_order_within_bags_none() -> None:
    ones = torch.ones(8, dtype=torch.int64)
    f, y = drawn(3, sizes=ones)
    values = [bag_loss(f, y, ones), instance_loss(f, y, ones), interpolating_loss(f, y, ones, rho=3.0)]
    assert float(max(values) - min(values)) == 0 and float(within_bag_variance(f, ones)) == 0
    f, y = drawn(4)
    mixed = torch.cat([part.flip(0) for part in torch.split(f, SIZES.tolist())])
    for rho in (0.0, 0.5):
        change = interpolating_loss(mixed, y, SIZES, rho=rho) - interpolating_loss(f, y, SIZES, rho=rho)
        assert float(change) == pytest.approx(0, abs=1e-14)


@given(st.integers(0, 100))
def test_cross_entropy_is_of_the_mean_of_probabilities(seed: int) -> None:
    f, y = drawn(seed, width=3)
    f = f * 30  # far from the middle, where a softmax underflows
    bag = instance = 0.0
    for part, shares in zip(torch.split(f, SIZES.tolist()), y, strict=True):
        p = part.double().softmax(1)
        bag -= len(part) * float((shares * p.mean(0).log()).sum()) / len(f)
        instance -= float((shares * part.log_softmax(1)).sum()) / len(f)
    assert float(bag_loss(f, y, SIZES, loss="cross_entropy")) == pytest.approx(bag, rel=1e-9)
    assert float(instance_loss(f, y, SIZES, loss="cross_entropy")) == pytest.approx(instance, rel=1e-9)
    assert instance >= bag - 1e-12, "Jensen"
    f.requires_grad_()
    bag_loss(f * 100, y, SIZES, loss="cross_entropy").backward()
    assert torch.isfinite(f.grad).all()


def test_gradients_are_those_of_differences() -> None:
    f, y = drawn(5)
    g, shares = drawn(6, width=3)
    assert torch.autograd.gradcheck(lambda v: interpolating_loss(v, y, SIZES, rho=0.3), (f.requires_grad_(),))
    assert torch.autograd.gradcheck(
        lambda v: interpolating_loss(v, shares, SIZES, rho=0.3, loss="cross_entropy"), (g.requires_grad_(),)
    )


def test_what_does_not_fit_is_refused() -> None:
    f, y = drawn(0)
    for call in (
        lambda: bag_loss(f, y[:2], SIZES),
        lambda: bag_loss(f, y, SIZES, loss="hinge"),
        lambda: interpolating_loss(f, y, SIZES, rho=-1.0),
        lambda: fit_linear_aggregate(np.ones((3, 2)), np.ones(2), bags=Bags(np.zeros(3, np.int64)), rho=0.0),
        lambda: fit_linear_aggregate(np.ones((3, 2)), np.ones(1), bags=Bags(np.zeros(3, np.int64)), rho=-0.1),
    ):
        with pytest.raises(InvalidInput):
            call()


# ---- the closed form -----------------------------------------------------------------------------------------------


def problem(seed: int, num: int = 61, dim: int = 5, size: int = 4) -> tuple[np.ndarray, np.ndarray, Bags]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, dim)) * rng.uniform(0.5, 2, dim)
    return x, x @ rng.normal(size=dim) + rng.normal(size=num), make_bags(np.arange(num), size, seed=seed)


@pytest.mark.parametrize("rho", [0.0, 0.2, 1.0])
def test_the_closed_form_is_that_of_the_projection(rho: float) -> None:
    x, y, bags = problem(0)
    p = (bags.index[:, None] == bags.index[None]) / bags.sizes[bags.index][:, None]
    inner = x.T @ p @ x + rho * x.T @ (np.eye(len(y)) - p) @ x
    found = fit_linear_aggregate(x, bags.means(y), bags=bags, rho=rho)
    assert np.allclose(found.theta, np.linalg.solve(inner, x.T @ p @ y), atol=1e-10) and not found.singular
    if rho == 1:
        assert np.allclose(found.theta, np.linalg.lstsq(x, p @ y)[0]), "least squares of the bag means on all rows"


@pytest.mark.parametrize("rho", [0.0, 0.1, 1.0])
def test_descent_on_the_loss_ends_at_the_closed_form(rho: float) -> None:
    x, y, bags = problem(1)
    theta = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    rows, sizes, means = torch.from_numpy(x[bags.order]), torch.from_numpy(bags.sizes), torch.from_numpy(bags.means(y))
    optimizer = torch.optim.LBFGS([theta], max_iter=500, tolerance_grad=1e-13, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = interpolating_loss(rows @ theta, means, sizes, rho=rho)
        loss.backward()
        return loss

    optimizer.step(closure)
    closed = fit_linear_aggregate(x, bags.means(y), bags=bags, rho=rho).theta
    assert np.abs(theta.detach().numpy() - closed).max() < 1e-5


def test_with_fewer_bags_than_features_the_fit_has_the_least_norm_and_says_so() -> None:
    x, y, bags = problem(2, num=20, dim=12)
    found = fit_linear_aggregate(x, bags.means(y), bags=bags, rho=0.0)
    weight = np.sqrt(bags.sizes)[:, None]
    least = np.linalg.pinv(weight * bags.means(x)) @ (weight[:, 0] * bags.means(y))
    assert np.allclose(found.theta, least, atol=1e-8) and found.singular and found.rank == 5
    assert not fit_linear_aggregate(x, bags.means(y), bags=bags, rho=0.01).singular


def test_an_intercept_is_a_column_of_ones_that_no_penalty_sees() -> None:
    x, y, bags = problem(3)
    y = y + 40
    with_ones = np.column_stack([x + 3, np.ones(len(x))])
    full = fit_linear_aggregate(with_ones, bags.means(y), bags=bags, rho=0.3)
    own = fit_linear_aggregate(x + 3, bags.means(y), bags=bags, rho=0.3, intercept=True)
    assert np.allclose(own.theta, full.theta[:-1]) and own.intercept == pytest.approx(full.theta[-1])
    assert np.allclose(own.predict(x), x @ own.theta + own.intercept)


def test_moments_of_two_sets_of_bags_add() -> None:
    x, y, bags = problem(4)
    few = bags.index < 6
    rest = moments(x[~few], bags.means(y)[6:], bags=Bags(bags.index[~few] - 6))
    whole = moments(x, bags.means(y), bags=bags)
    left = whole - moments(x[few], bags.means(y)[:6], bags=Bags(bags.index[few]))
    assert np.allclose(left.fit(0.2, intercept=True).theta, rest.fit(0.2, intercept=True).theta)
    assert (left.num, left.num_bags) == (rest.num, rest.num_bags)


# ---- the recipe ----------------------------------------------------------------------------------------------------


def linear_build(data: ExampleSet):
    make = builder("mlp", {"hidden": []}, input_shape=data.input_shape, num_outputs=max(data.num_classes, 1))
    return lambda seed: make(seed).double()


def digest(data: ExampleSet, config: AggregateConfig, seed: int = 0, **more: object) -> str:
    return arrays_digest(to_arrays(aggregate(linear_build(data), data, config=config, seed=seed, **more)))


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_a_linear_net_on_all_bags_ends_at_the_closed_form(rho: float) -> None:
    data = numbers().train
    config = AggregateConfig(bag_size=4, rho=rho, lr=0.1, batch=100, epochs=1500, schedule="constant")
    model = aggregate(linear_build(data), data, config=config, seed=0)
    bags, said = released(data, config)
    x = np.asarray(data.x, np.float64)
    closed = fit_linear_aggregate(x, said.means[:, 0], bags=bags, rho=rho, intercept=True)
    assert np.abs(predict_logits(model, data)[:, 0] - closed.predict(x)).max() < 1e-4 * data.y.std()


@pytest.mark.parametrize("config", [{}, {"loss": "bag"}, {"loss": "instance"}, {"column": "group"}])
def test_the_model_is_a_function_of_the_bag_means_alone(config: dict[str, str]) -> None:
    """Responses exchanged within bags change no bit; in another bag they do."""
    data = numbers().train
    data = dataclasses.replace(data, columns={"group": data.example_id % 7})
    settings = AggregateConfig(bag_size=5, epochs=3, batch=4, **config)
    bags, _ = released(data, settings)
    y = data.y
    rows = np.flatnonzero(bags.index == 0)
    y = np.round(y * 8) / 8  # sums are exact
    exact = dataclasses.replace(data, y=y)
    changed = y.copy()
    changed[rows[0]] += 1024
    changed[rows[-1]] -= 1024
    assert digest(exact, settings) == digest(dataclasses.replace(data, y=changed), settings)
    changed[rows[0]] += 1
    assert digest(exact, settings) != digest(dataclasses.replace(data, y=changed), settings)


def test_all_seeds_share_one_release_and_another_release_is_another() -> None:
    data = numbers().train
    config = AggregateConfig(bag_size=5, epsilon=2.0, clip=20.0, center=40.0)
    (first, a), (second, b) = released(data, config), released(data, config)
    assert (first.index == second.index).all() and (a.means == b.means).all() and (a.scale > 0).all()
    other, c = released(data, dataclasses.replace(config, release=1))
    assert (other.index != first.index).any() and not np.isin(c.means, a.means).any()
    with pytest.raises(ConfigError, match="needs clip"):
        released(data, dataclasses.replace(config, clip=None))
    with pytest.raises(ConfigError, match="no column of numbers"):
        released(data, dataclasses.replace(config, column="absent"))


def test_the_weight_of_a_batch_keeps_the_whole_objective_unbiased() -> None:
    """Bags of sizes 1 and 11 in batches of one: the mean over batches of their losses is that of all bags at once."""
    data = numbers().train.take(np.arange(12))
    data = dataclasses.replace(data, columns={"group": np.array([0] + [1] * 11)})
    config = AggregateConfig(column="group", loss="bag", lr=1e-6, batch=1, epochs=1, schedule="constant", momentum=0.0)
    grads = []
    for batch in (1, 2):
        start = to_arrays(linear_build(data)(0))["head.weight"]
        settings = dataclasses.replace(config, batch=batch)
        moved = to_arrays(aggregate(linear_build(data), data, config=settings, seed=0))["head.weight"]
        _, said = released(data, config)
        grads.append((moved / np.repeat(said.means[:, 0], [1, 11]).std() - start) / -1e-6)
    assert np.allclose(grads[0] / 2, grads[1], rtol=1e-4, atol=1e-5), "two small steps of one bag are one of both"


def test_class_shares_train_a_classifier() -> None:
    data = class_examples(600)
    train, test = data.part("train"), data.part("test")
    build = builder("mlp", {"hidden": (16,)}, input_shape=data.input_shape, num_outputs=3)
    for loss, least in (("bag", 0.75), ("interpolating", 0.75), ("instance", 0.6)):
        config = AggregateConfig(bag_size=4, loss=loss, lr=0.05, epochs=60, batch=16)
        model = aggregate(build, train, config=config, seed=0)
        assert (predict_logits(model, test).argmax(1) == test.y).mean() > least, loss
    noisy = dataclasses.replace(config, epsilon=4.0)
    assert np.isfinite(predict_logits(aggregate(build, train, config=noisy, seed=0), test)).all()


def test_a_run_is_resumed_observed_and_left_early_with_the_same_bits(store) -> None:
    data, config = numbers().train, AggregateConfig(bag_size=5, epochs=4, batch=3)
    whole = digest(data, config)
    assert digest(data, config, stop_after=2, checkpoints=store, checkpoint_every=1) != whole
    assert store.saves and digest(data, config, checkpoints=store, checkpoint_every=1) == whole
    seen: list[int] = []
    assert digest(data, config, observe=lambda rows, outputs: seen.extend(rows.tolist())) == whole
    assert sorted(seen) == sorted([*range(len(data))] * 4), "every example once an epoch, in its bag"
    few = dataclasses.replace(config, steps=3)
    assert digest(data, few) != whole


def test_masks_are_not_averaged() -> None:
    data = dataclasses.replace(numbers().train, task="segmentation", y=np.zeros((90, 5), np.uint8))
    with pytest.raises(NotApplicable, match="averages classes or numbers"):
        released(data, AggregateConfig())
    with pytest.raises(ConfigError, match="no labels"):
        AggregateConfig(label_smoothing=0.1)
