"""IU against Newton's step and a dense inverse; FF against a naive loop."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import unlearning.fisher_forgetting as fisher_file
from contracts.errors import Diverged, NotApplicable
from palimpsest.testing.worlds import numbers, texts
from recipes.models import builder
from recipes.predict import read
from unlearning.descent import inputs_of
from unlearning.edits import finished
from unlearning.fisher_forgetting import (
    FisherForgettingConfig,
    fisher_forgetting,
    fisher_of_outputs,
    head_of,
    noise_variance,
)
from unlearning.gradients import gradient_rows, summed_gradient
from unlearning.influence_unlearning import (
    InfluenceUnlearningConfig,
    influence_unlearning,
    inverse_fisher_product,
)


def tensors(data):
    order = np.argsort(data.example_id)
    return torch.from_numpy(data.inputs(order)), torch.from_numpy(data.y[order])


def vector(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def put(model: nn.Module, values: torch.Tensor) -> nn.Module:
    with torch.no_grad():
        for p, piece in zip(model.parameters(), values.split([p.numel() for p in model.parameters()]), strict=True):
            p.copy_(piece.reshape(p.shape))
    return model


@pytest.fixture(scope="module")
def noisy(world):
    """The two sets with every third label another, so that no plane separates the classes."""
    return {
        name: dataclasses.replace(data, y=np.where(data.example_id % 3 == 0, (data.y + 1) % 4, data.y))
        for name, data in world.sets.items()
    }


@pytest.fixture(scope="module")
def logistic(world, noisy):
    """A linear model in float64 at the minimum of the full loss, found by Newton's method."""
    build = builder("mlp", {"hidden": ()}, input_shape=world.retain.input_shape, num_outputs=4)
    model = build(0).double().eval()
    x = torch.cat([tensors(d)[0] for d in noisy.values()]).double()
    y = torch.cat([tensors(d)[1] for d in noisy.values()])
    for _ in range(30):
        gradient, hessian = derivatives(model, x, y)
        put(model, vector(model) - torch.linalg.lstsq(hessian, gradient[:, None], driver="gelsd").solution[:, 0])
    gradient, _ = derivatives(model, x, y)
    assert gradient.abs().max() < 1e-9
    return model


def derivatives(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    def loss(values):
        weight, bias = values[: 4 * x.shape[1]].reshape(4, -1), values[4 * x.shape[1] :]
        return F.cross_entropy(x @ weight.T + bias, y)

    at = vector(model)
    return torch.func.grad(loss)(at), torch.func.jacrev(torch.func.grad(loss))(at)


def test_with_the_dense_hessian_it_is_one_newton_step_on_what_is_kept(noisy, logistic):
    config = InfluenceUnlearningConfig(alpha=1.0, curvature="hessian", damping=1e-3)
    got = influence_unlearning(logistic, **noisy, config=config, seed=0)
    x, y = tensors(noisy["retain"])
    gradient, hessian = derivatives(logistic, x.double(), y)
    damped = hessian + 1e-3 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    expected = vector(logistic) - torch.linalg.solve(damped, gradient)
    torch.testing.assert_close(vector(got), expected, rtol=1e-6, atol=1e-8)
    assert (vector(got) - vector(logistic)).abs().max() > 1e-2
    # ... and it is nearer to the minimum without them
    after, _ = derivatives(got, x.double(), y)
    assert after.norm() < 0.5 * gradient.norm()


def test_away_from_the_minimum_the_direction_is_the_difference_of_the_two_gradients(world):
    # v = grad L(D) - grad L(D_r): leaving either term out gives another step
    x, y = (torch.cat(p) for p in zip(tensors(world.retain), tensors(world.forget), strict=True))
    model = copy.deepcopy(world.model).double()
    params = dict(model.named_parameters())

    def gradient(x, y):
        loss = F.cross_entropy(model(x.double()), y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(params.values()))])

    v = gradient(x, y) - gradient(*tensors(world.retain))
    config = InfluenceUnlearningConfig(alpha=0.5, damping=0.1, examples=10_000)
    got = influence_unlearning(model, **world.sets, config=config, seed=0)
    kept = inputs_of(model, world.retain)
    rows = gradient_rows(model, kept, range(len(kept)), units=None)
    fisher = rows.mT @ rows / len(rows)
    damped = fisher + 0.1 * fisher.diagonal().mean() * torch.eye(len(fisher), dtype=torch.float64)
    expected = vector(model) + 0.5 * torch.linalg.solve(damped, v)
    torch.testing.assert_close(vector(got), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("num", "size"), [(1, 5), (7, 4), (30, 80)])
def test_woodbury_is_the_inverse_and_the_published_recursion_is_not(num, size):
    draws = torch.Generator().manual_seed(num)
    rows = torch.randn(num, size, generator=draws, dtype=torch.float64)
    v = torch.randn(size, generator=draws, dtype=torch.float64)
    matrix = 0.3 * torch.eye(size, dtype=torch.float64) + rows.mT @ rows / num
    expected = torch.linalg.solve(matrix, v)
    torch.testing.assert_close(inverse_fisher_product(rows, v, damping=0.3), expected, rtol=1e-9, atol=1e-11)
    # the true rank-one recursion (Sherman-Morrison) gives the same
    inverse = torch.eye(size, dtype=torch.float64) / 0.3
    for g in rows:
        carried = inverse @ g
        inverse = inverse - torch.outer(carried, carried) / (num + g @ carried)
    torch.testing.assert_close(inverse @ v, expected, rtol=1e-9, atol=1e-11)
    k, o = v.clone(), rows[0].clone()
    for g in rows[1:]:
        k, o = k - (k @ g) / (num + o @ g) * o, o - (o @ g) / (num + o @ g) * o
    assert (k - expected).abs().max() > 1e-2


def test_each_gradient_is_that_of_its_example_and_they_sum_up(world):
    inputs = inputs_of(world.model, world.forget)
    rows = gradient_rows(world.model, inputs, range(len(inputs)), units=None)
    x, y = tensors(world.forget)
    for i in (0, 5, len(inputs) - 1):
        loss = F.cross_entropy(world.model(x[i : i + 1]), y[i : i + 1])
        g = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(world.model.parameters()))])
        torch.testing.assert_close(rows[i], g, rtol=1e-5, atol=1e-7)
    total = torch.cat([g.flatten() for g in summed_gradient(world.model, inputs, units=None).values()])
    torch.testing.assert_close(rows.double().sum(0), total, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in world.model.parameters())


def test_gradients_one_by_one_of_texts_are_those_of_the_task():
    world = texts()
    model, data = world.needs["model"], world.train.by_id().take(np.arange(5))
    inputs = inputs_of(model, data)
    rows = gradient_rows(model, inputs, [3, 1], units=None)
    losses = data.task.losses(model, inputs.slice(0, 5))
    for row, i in zip(rows, (3, 1), strict=True):
        found = torch.autograd.grad(losses[i], list(model.parameters()), retain_graph=True, allow_unused=True)
        pairs = zip(found, model.parameters(), strict=True)
        expected = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)


def test_under_a_mask_it_is_the_step_of_the_free_weights(noisy, logistic):
    # cutting the whole step would be another: the free weights would make up for a move that does not happen
    mask = {"head.weight": torch.arange(24).reshape(4, 6) % 2 == 0, "head.bias": torch.ones(4, dtype=torch.bool)}
    free = torch.cat([mask[n].flatten() for n, _ in logistic.named_parameters()])
    config = InfluenceUnlearningConfig(alpha=1.0, curvature="hessian")
    got = influence_unlearning(logistic, **noisy, config=config, seed=0, mask=mask)
    x, y = tensors(noisy["retain"])
    gradient, hessian = derivatives(logistic, x.double(), y)
    cut = hessian[free][:, free]
    cut = cut + 1e-3 * cut.diagonal().mean() * torch.eye(len(cut), dtype=torch.float64)
    expected = vector(logistic)
    expected[free] -= torch.linalg.solve(cut, gradient[free])
    torch.testing.assert_close(vector(got), expected, rtol=1e-6, atol=1e-8)


def test_curvature_of_numbers_is_that_of_their_likelihood():
    # Of a linear model the Hessian of the squared error is known: 2/n sum x x'. The second moment of its gradients is
    # 4/n sum r^2 x x', smaller by 2 r^2: a step by it would be that much too long.
    world = numbers()
    train = world.train.by_id()
    build = builder("mlp", {"hidden": ()}, input_shape=train.input_shape, num_outputs=1)
    x, y = np.c_[train.inputs(slice(None)).astype(np.float64), np.ones(len(train))], train.y
    solution = np.linalg.lstsq(x, y, rcond=None)[0]
    model = build(0).double().eval()
    put(model, torch.from_numpy(solution))
    retain, forget = train.take(np.arange(10, len(train))), train.take(np.arange(10))
    without = np.linalg.lstsq(x[10:], y[10:], rcond=None)[0]
    config = InfluenceUnlearningConfig(alpha=1.0, damping=1e-6)
    got = vector(influence_unlearning(model, retain=retain, forget=forget, config=config, seed=0)).numpy()
    exact = np.linalg.norm(without - solution)
    assert np.linalg.norm(got - without) < 0.8 * exact
    assert 0.5 < np.linalg.norm(got - solution) / exact < 2
    hessian = dataclasses.replace(config, curvature="hessian")
    newton = vector(influence_unlearning(model, retain=retain, forget=forget, config=hessian, seed=0)).numpy()
    assert np.linalg.norm(newton - without) < 1e-3 * exact


def test_influence_refuses_and_stays_where_nothing_is_forgotten(world, flat):
    nobody = world.forget.subset([])
    same = influence_unlearning(
        world.model, retain=world.retain, forget=nobody, config=InfluenceUnlearningConfig(), seed=0
    )
    assert torch.equal(flat(same), flat(world.model))
    wide = builder("mlp", {"hidden": (600,)}, input_shape=(6,), num_outputs=4)(0)
    with pytest.raises(NotApplicable, match="at most 4096"):
        influence_unlearning(wide, **world.sets, config=InfluenceUnlearningConfig(curvature="hessian"), seed=0)
    flat_model = copy.deepcopy(world.model)
    with torch.no_grad():
        for p in flat_model.parameters():
            p.zero_()
        flat_model.head.bias.copy_(torch.tensor([1e4, 0, 0, 0]))
    one = world.retain.subset(world.retain.example_id[world.retain.y == 0])
    with pytest.raises(Diverged, match="curvature"):
        influence_unlearning(flat_model, retain=one, forget=world.forget, config=InfluenceUnlearningConfig(), seed=0)
    ruined = put(copy.deepcopy(world.model), torch.zeros_like(vector(world.model)))
    with pytest.raises(Diverged, match="influence at alpha 9"):
        finished(ruined, world.model, retain=world.retain, seed=0, run="influence at alpha 9")


def test_the_examples_of_the_curvature_come_from_the_seed(world, flat):
    config = InfluenceUnlearningConfig(alpha=0.01, examples=20, damping=1.0)
    runs = [influence_unlearning(world.model, **world.sets, config=config, seed=s) for s in (0, 0, 1)]
    assert torch.equal(flat(runs[0]), flat(runs[1])) and not torch.equal(flat(runs[0]), flat(runs[2]))


# ---- Fisher forgetting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "numbers"), [(1, 1 << 22), (7, 1 << 22), (7, 1), (1, 700)])
def test_the_fisher_information_is_its_definition(world, monkeypatch, batch, numbers):
    monkeypatch.setattr("unlearning.fisher_forgetting._NUMBERS", numbers)  # how it is cut up
    inputs = inputs_of(world.model, world.retain)
    x, _ = tensors(world.retain)
    rows = torch.arange(20)
    found = fisher_of_outputs(world.model, inputs, rows, batch=batch)
    groups = [rows[a : a + batch] for a in range(0, 20, batch)]
    total = {n: torch.zeros_like(p) for n, p in world.model.named_parameters()}
    for group in groups:
        logits = world.model(x[group])
        p_y = logits.softmax(1).mean(0)
        for y in range(4):
            loss = F.cross_entropy(logits, torch.full((len(group),), y))
            gradients = torch.autograd.grad(loss, list(world.model.parameters()), retain_graph=True)
            for name, g in zip(total, gradients, strict=True):
                total[name] += p_y[y].detach() * g.square() / len(groups)
    for name, value in total.items():
        torch.testing.assert_close(found[name].float(), value, rtol=1e-4, atol=1e-8)


class Tied(nn.Module):
    """One weight as a linear map and outside of it; another map called twice; a third on a sequence of vectors."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.first, self.mid, self.head = kind, nn.Linear(width, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.mid.bias.requires_grad_(kind != "frozen")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x.flatten(1)))
        if self.kind == "tied":
            h = torch.tanh(self.mid(h)) @ self.mid.weight
        elif self.kind == "twice":
            h = self.mid(torch.tanh(self.mid(h)))
        elif self.kind == "sequence":
            h = torch.tanh(self.mid(h[:, None] * torch.arange(1.0, 4.0)[:, None])).mean(1)
        elif self.kind == "frozen":
            h = self.mid(h)
        return self.head(h)


@pytest.mark.parametrize("kind", ["plain", "tied", "twice", "sequence", "frozen"])
def test_the_fisher_information_of_linear_maps_is_that_of_gradients(world, monkeypatch, kind):
    """In closed form where that holds, and where it does not by the gradients, to rounding; never a wrong one."""
    x, _ = tensors(world.retain)
    model, rows = Tied(kind, x[0].numel()), torch.arange(30)
    inputs = inputs_of(model, world.retain)
    asked, real = [], fisher_file._of_gradients
    monkeypatch.setattr(fisher_file, "_of_gradients", lambda m, own, *a: asked.append(own) or real(m, own, *a))
    found = fisher_of_outputs(model, inputs, rows)
    mid = {"mid.weight", "mid.bias"}  # of what is not called at all there are only zeros
    expected = {"plain": mid, "tied": {"mid.weight"}, "twice": mid, "sequence": mid, "frozen": {"mid.weight"}}[kind]
    assert {name for own in asked[1:] for name in own} == expected
    monkeypatch.setattr(fisher_file, "_of_linear_maps", lambda *_: {})
    for name, value in fisher_of_outputs(model, inputs, rows).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-12)


def test_squares_of_mean_gradients_are_not_the_information(world):
    inputs, rows = inputs_of(world.model, world.retain), torch.arange(64)
    sizes = [
        sum(float(v.sum()) for v in fisher_of_outputs(world.model, inputs, rows, batch=b).values()) for b in (1, 32)
    ]
    assert sizes[1] > 4 * sizes[0]


def test_the_variance_of_each_kind_of_weight():
    f = torch.tensor([[1e-9, 1.0, 4.0], [4.0, 4.0, 4.0]])
    capped = [min(1 / (v + 1e-8), 1e3) for v in (1e-9, 1.0, 4.0)]
    found = noise_variance(f, alpha=2.0, head=False)
    torch.testing.assert_close(found[0], torch.full((3,), 2 * sum(capped) / 3, dtype=torch.float64))
    head = noise_variance(f, alpha=2.0, head=True)
    torch.testing.assert_close(head[0], torch.full((3,), 20 * (1e2 + 1 + 0.25) / 3, dtype=torch.float64))
    bias = noise_variance(torch.tensor([4.0]), alpha=2.0, head=False)
    torch.testing.assert_close(bias, torch.tensor([20 * 0.25], dtype=torch.float64))
    kernel = torch.rand(2, 3, 5, 5) + 1
    assert noise_variance(kernel, alpha=1.0, head=False).shape == kernel.shape  # mean over the input channels alone


def test_the_row_of_a_forgotten_class_is_drawn_anew_and_no_other(world):
    whole = [world.retain, world.forget]
    ids = np.concatenate([d.example_id[d.y == 2] for d in whole])
    everything = dataclasses.replace(
        world.retain,
        **{
            k: np.concatenate([np.asarray(getattr(d, k)) for d in whole])
            for k in ("x", "y", "example_id", "split", "owner", "content_hash")
        },
    )
    forget = everything.subset(ids)
    retain = everything.subset(np.setdiff1d(everything.example_id, ids))
    config = FisherForgettingConfig(alpha=0.0)
    rows = []
    for seed in range(20):
        got = fisher_forgetting(world.model, retain=retain, forget=forget, config=config, seed=seed)
        kept = [0, 1, 3]
        assert torch.equal(got.head.weight[kept], world.model.head.weight[kept])
        assert torch.equal(got.hidden[0].weight, world.model.hidden[0].weight)
        rows.append(torch.cat([got.head.weight[2], got.head.bias[2:3]]))
    drawn = torch.cat(rows).detach()
    # chi-square of 20 * 17 draws of variance 1e-4: six standard deviations
    assert abs(float(drawn.square().mean()) / 1e-4 - 1) < 6 * (2 / len(drawn)) ** 0.5
    off = fisher_forgetting(
        world.model, retain=retain, forget=forget, config=dataclasses.replace(config, class_rule=False), seed=0
    )
    assert torch.equal(off.head.weight, world.model.head.weight)
    assert head_of(world.model, 4) == {"head.weight", "head.bias"}


def test_without_noise_a_random_share_leaves_the_model_as_it_is(world, flat):
    same = fisher_forgetting(world.model, **world.sets, config=FisherForgettingConfig(alpha=0.0), seed=0)
    assert torch.equal(flat(same), flat(world.model))


def test_the_noise_has_the_variance_that_the_information_says(world):
    inputs = inputs_of(world.model, world.retain)
    fisher = fisher_of_outputs(world.model, inputs, torch.arange(len(inputs)))
    config = FisherForgettingConfig(alpha=1e-6)
    squares = torch.zeros_like(world.model.hidden[0].weight, dtype=torch.float64)
    for seed in range(30):
        got = fisher_forgetting(world.model, **world.sets, config=config, seed=seed)
        squares += (got.hidden[0].weight.detach() - world.model.hidden[0].weight.detach()).double().square() / 30
    expected = noise_variance(fisher["hidden.0.weight"], alpha=1e-6, head=False)
    ratio = (squares / expected).mean()
    assert abs(float(ratio) - 1) < 6 * (2 / (30 * squares.numel())) ** 0.5 + 1e-3
    assert read(got, world.test).quality.mean() > 0.5
