"""Projected gradients against plain autograd, the kernel against exact leave-one-out, and influence on planted harm."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from contracts.errors import DataError, InvalidInput, NotApplicable
from palimpsest.testing.worlds import class_examples, classes, images, numbers, texts
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.training import Trainer
from scoring.projected_gradients import output_of, projected_gradients
from scoring.trak import TrakConfig, TrakPairsConfig, attributed, attributions, dot_products, kernel_products, trak
from sources.example_set import ExampleSet
from sources.planted import plant_label_noise


def net(data: ExampleSet, name: str = "mlp", *, seed: int = 0, **config: object) -> nn.Module:
    given = {"hidden": (6,), **config} if name == "mlp" else config
    build = builder(name, given, input_shape=data.input_shape, num_outputs=max(data.num_classes, 1))
    return build(seed).double().eval()


def by_autograd(model: nn.Module, data: ExampleSet) -> tuple[np.ndarray, np.ndarray]:
    """f and its gradient at every parameter, one example after another."""
    said, rows = [], []
    for i in range(len(data)):
        x = torch.from_numpy(data.inputs(np.array([i]))).double()
        logits = model(x)[0]
        if data.class_names:
            p = logits.softmax(0)[int(data.y[i])]
            value = (p / (1 - p)).log()
        else:
            value = logits[0]
        found = torch.autograd.grad(value, list(model.parameters()))
        said.append(float(value.detach()))
        rows.append(torch.cat([g.flatten() for g in found]).numpy())
    return np.array(said), np.stack(rows)


@pytest.mark.parametrize("make", [classes, numbers, images])
def test_without_projection_they_are_the_gradients_of_the_output(make) -> None:
    data = make().train.take(np.arange(9))
    model = net(data, "cnn" if make is images else "mlp")
    value, gradient = by_autograd(model, data)
    found = projected_gradients(model, data, projection="random", dim=10**6, seed=0, batch=4)
    assert np.allclose(found.output, value, atol=1e-5) and found.phi.dtype == np.float32
    assert np.allclose(found.phi, gradient, atol=2e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("make", [classes, numbers, images])
def test_logra_of_full_rank_has_their_inner_products(make) -> None:
    data = make().train.take(np.arange(9))
    model = net(data, "cnn" if make is images else "mlp")
    _, gradient = by_autograd(model, data)
    found = projected_gradients(model, data, projection="logra", dim=10**8, seed=0, batch=4).phi.astype(np.float64)
    want = gradient @ gradient.T
    assert np.abs(found @ found.T - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("projection", ["random", "logra"])
def test_a_projection_keeps_inner_products_on_average_and_is_of_the_seed(projection: str) -> None:
    data = classes().train.take(np.arange(20))
    model = net(data, hidden=(40,))
    _, gradient = by_autograd(model, data)
    want = gradient @ gradient.T
    drawn = []
    for seed in range(60):
        phi = projected_gradients(model, data, projection=projection, dim=50, seed=seed).phi.astype(np.float64)
        assert phi.shape[1] <= 50
        drawn.append(phi @ phi.T)
    assert np.abs(np.mean(drawn, axis=0) - want).max() < 0.25 * np.abs(want).max()
    again = projected_gradients(model, data, projection=projection, dim=50, seed=3, batch=7).phi
    assert np.allclose(again, projected_gradients(model, data, projection=projection, dim=50, seed=3).phi, atol=1e-6)


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.a(self.a(x).tanh()))

    data = classes().train.take(np.arange(5))
    torch.manual_seed(0)
    model = Twice().double().eval()
    _, gradient = by_autograd(model, data)
    phi = projected_gradients(model, data, projection="logra", dim=10**6, seed=0).phi
    assert np.allclose(phi @ phi.T, gradient @ gradient.T, rtol=1e-4)


def test_the_margin_is_log_odds_also_where_single_precision_has_none() -> None:
    data = classes().train.take(np.arange(1))
    f = output_of(data)(torch.tensor([[80.0, 0.0, -5.0], [0.0, 80.0, 0.0]]), torch.tensor([0, 0]))
    assert torch.allclose(f, torch.tensor([80.0 - np.log1p(np.exp(-5.0)), -80.0]).float())


def ridge_problem(lam: float = 3.0) -> tuple[ExampleSet, ExampleSet, nn.Module, float]:
    """Examples, unseen ones, the exact ridge solution as a model, and the kernel's ridge in its own unit."""
    data = numbers().train.by_id()
    data = dataclasses.replace(data, y=data.y - 40)
    train, unseen = data.take(np.arange(60)), data.take(np.arange(60, 80))
    x = np.asarray(train.x, np.float64)
    model = nn.Linear(5, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(np.linalg.solve(x.T @ x + lam * np.eye(5), x.T @ train.y)[None]))
    return train, unseen, model.eval(), lam * 5 / np.trace(x.T @ x)


@pytest.mark.parametrize("projection", ["random", "logra"])
def test_for_ridge_regression_it_is_exact_leave_one_out_times_one_minus_leverage(projection: str) -> None:
    lam = 3.0
    train, unseen, model, ridge = ridge_problem(lam)
    config = TrakConfig(projection=projection, dim=64, ridge=ridge, models=1)
    tau = attributed([model], train, unseen, config=config, seed=0).astype(np.float64)
    x, z = np.asarray(train.x, np.float64), np.asarray(unseen.x, np.float64)
    weights = model.weight.detach().numpy()[0]
    leverage = np.einsum("nd,de,ne->n", x, np.linalg.inv(x.T @ x + lam * np.eye(5)), x)
    for i in range(0, 60, 7):
        rest = np.delete(np.arange(60), i)
        without = np.linalg.solve(x[rest].T @ x[rest] + lam * np.eye(5), x[rest].T @ train.y[rest])
        moved = z @ weights - z @ without  # what training with i adds to the prediction
        own = tau[:, i] / (2 * (unseen.y - z @ weights)) / (1 - leverage[i])
        assert np.allclose(own, moved, rtol=1e-3, atol=1e-5 * np.abs(moved).max())


def test_the_average_over_models_is_of_kernels_and_of_slopes_apart() -> None:
    train, unseen = classes().train.by_id(), classes().examples.part("test").by_id()
    models = [net(train, seed=seed) for seed in (0, 1)]
    config = TrakConfig(dim=10**4, ridge=0.5)
    products, slopes = [], []
    for model in models:
        (value, own), (_, other) = by_autograd(model, train), by_autograd(model, unseen)
        k = own.T @ own
        k += 0.5 * np.trace(k) / len(k) * np.eye(len(k))
        products.append(other @ np.linalg.solve(k, own.T))
        slopes.append(1 - 1 / (1 + np.exp(-value)))
    want = np.mean(products, axis=0) * np.mean(slopes, axis=0)
    found = attributed(models, train, unseen, config=config, seed=0)
    assert np.abs(found - want).max() < 1e-3 * np.abs(want).max()
    plain = dot_products(models[:1], train, unseen, config=config, seed=0)
    assert np.allclose(
        plain, by_autograd(models[0], unseen)[1] @ own_of(models[0], train) * slopes[0], rtol=1e-3, atol=1e-4
    )


def own_of(model: nn.Module, data: ExampleSet) -> np.ndarray:
    return by_autograd(model, data)[1].T


def test_the_kernel_is_solved_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    phi, other = (rng.normal(size=(n, 8)).astype(np.float32) for n in (50, 6))
    whole = kernel_products(phi, other, ridge=0.1)
    monkeypatch.setattr("scoring.trak._BLOCK", 7)
    assert np.allclose(kernel_products(phi, other, ridge=0.1), whole, rtol=1e-5)
    k = phi.T.astype(float) @ phi
    k += 0.1 * np.trace(k) / 8 * np.eye(8)
    assert np.allclose(whole, other @ np.linalg.inv(k) @ phi.T, rtol=1e-4, atol=1e-6)


def trained(data: ExampleSet, **config: object):
    build = builder("mlp", {"hidden": (16,)}, input_shape=data.input_shape, num_outputs=data.num_classes)
    trainer = Trainer(recipe="supervised", build=build, config=SupervisedConfig(lr=0.05, epochs=20, batch=32))

    def train_many(sets, seeds, *, data):
        return trainer.many(data, members=[data.positions(ids) for ids in sets], seeds=list(seeds))

    return train_many


@pytest.mark.parametrize("projection", ["random", "logra"])
def test_wrong_labels_have_low_influence_and_helpers_share_the_label(projection: str) -> None:
    clean = class_examples(900)
    data, flipped = plant_label_noise(clean, fraction=0.1, seed=3)
    train, test = data.part("train").by_id(), clean.part("test").by_id()
    config = TrakConfig(projection=projection, dim=200, models=3)
    tau = attributions(train, test, train_many=trained(train), config=config, seed=0)
    wrong = np.isin(train.example_id, flipped)
    assert roc_auc_score(wrong, -tau.mean(0)) > 0.9
    best = train.y[np.argsort(-tau, axis=1)[:, :5]]
    assert (best == test.y[:, None]).mean() > 0.8


def test_the_strongest_pairs_are_stored() -> None:
    data = class_examples(150)
    config = TrakPairsConfig(dim=50, models=2, targets=10, top=3)
    frame = trak(data, config=config, seed=1, train_many=trained(data))["trak_pairs"]
    assert frame.height == 10 * 2 * 3 and frame["target_id"].n_unique() == 10
    train = data.part("train").by_id()
    targets = data.subset(np.unique(frame["target_id"].to_numpy()))
    assert set(targets.split) == {"test"}
    tau = attributions(train, targets, train_many=trained(data), config=config, seed=1)
    for j, target in enumerate(targets.example_id):
        own = frame.filter(pl.col("target_id") == target).sort("kind", "rank")
        ascending = train.example_id[np.argsort(tau[j])]
        assert own.filter(pl.col("kind") == "harms")["train_id"].to_list() == ascending[:3].tolist()
        assert own.filter(pl.col("kind") == "helps")["train_id"].to_list() == ascending[::-1][:3].tolist()


def test_what_cannot_be_attributed_is_refused() -> None:
    data = classes().train
    model = net(data)
    for wrong in ({"projection": "pca"}, {"dim": 0}, {"batch": 0}):
        with pytest.raises(InvalidInput):
            projected_gradients(model, data, **{"projection": "random", "dim": 8, "seed": 0, **wrong})
    with pytest.raises(InvalidInput, match="at least one model"):
        attributed([], data, data, config=TrakConfig(), seed=0)
    with pytest.raises(NotApplicable, match="margin or a prediction"):
        output_of(texts().train)
    with pytest.raises(NotApplicable, match="no parameter that requires"):
        projected_gradients(net(data).requires_grad_(False), data, projection="random", dim=8, seed=0)
    bare = nn.Sequential(nn.Flatten(), nn.LayerNorm(5))
    with pytest.raises(NotApplicable, match="no trainable linear map"):
        projected_gradients(bare, data, projection="logra", dim=8, seed=0)
    grouped = nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(NotApplicable, match="in groups"):
        projected_gradients(grouped, images().train, projection="logra", dim=8, seed=0)
    broken = net(data)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="NaN or infinite outputs"):
        projected_gradients(broken, data, projection="random", dim=8, seed=0)
