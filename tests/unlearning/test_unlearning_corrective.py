"""Corrective unlearning against naive loops, closed forms, and the promises of each method."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged, InvalidInput
from contracts.methods import unlearner
from palimpsest.testing.worlds import WORLDS
from recipes.models import builder
from recipes.predict import predict_logits
from recipes.rng import local_rng
from sources.example_set import ExampleSet
from unlearning.corrective.bad_teacher import BadTeacherConfig, bad_teacher, distance_to_targets
from unlearning.corrective.cf_k import LastLayersConfig, cf_k
from unlearning.corrective.eu_k import eu_k
from unlearning.corrective.importance import Importance, parameter_importance
from unlearning.corrective.layers import cut_before_last, order_of_use, reinitialise
from unlearning.corrective.rates import bench_rate
from unlearning.corrective.scrub import ScrubConfig, scrub, scrub_losses
from unlearning.corrective.selective_synaptic_dampening import (
    SelectiveSynapticDampeningConfig,
    dampening,
    selective_synaptic_dampening,
)
from unlearning.corrective.teachers import answers_of
from unlearning.descent import inputs_of

SHAPE, CLASSES = (6,), 4
build = builder("mlp", {"hidden": (16,)}, input_shape=SHAPE, num_outputs=CLASSES)


def rows_of(data: ExampleSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels in the order of the ids."""
    order = np.argsort(data.example_id)
    return torch.from_numpy(data.inputs(order)), torch.from_numpy(data.y[order])


def sgd_steps(model: nn.Module, losses: list[Any], rates: list[float], config: Any, names: tuple[str, ...] = ()) -> Any:
    """Momentum SGD by its definition on losses of the model, one a step; of the named parameters, or all."""
    model = copy.deepcopy(model)
    trained = [p for n, p in model.named_parameters() if not names or n in names]
    velocity = [torch.zeros_like(p) for p in trained]
    for loss, rate in zip(losses, rates, strict=True):
        grads = torch.autograd.grad(loss(model), trained)
        with torch.no_grad():
            for p, v, g in zip(trained, velocity, grads, strict=True):
                v.mul_(config.momentum).add_(g + config.weight_decay * p)
                p.sub_(config.lr * rate * v)
    return model


def orders(name: str, seed: int, sizes: list[int], batch: int) -> list[torch.Tensor]:
    """Batches that the loop draws for passes over sets of these sizes, one after another."""
    order = torch.Generator().manual_seed(derive_seed(name, "order", seed))
    return [rows for n in sizes for rows in torch.randperm(n, generator=order).split(batch)]


# ---- the last k layers ---------------------------------------------------------------------------------------------


class Crooked(nn.Module):
    """Layers registered in another order than they are used, one with a parameter of its own beside its children."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(6))
        self.head = nn.Linear(8, 4)
        self.first = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.late = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x + self.shift)[:, None]
        return self.head(self.late(self.attention(h, h, h, need_weights=False)[0][:, 0]))


def test_layers_are_counted_by_use_and_not_by_registration(world):
    used = order_of_use(Crooked(), world.retain)
    layers = [n for n in used if n in ("", "head", "first.0", "first.1", "attention", "attention.out_proj")]
    assert layers == ["", "first.0", "first.1", "attention", "attention.out_proj", "head"]
    one = cut_before_last(Crooked(), world.retain, k=1)
    assert one.layers == ("head",) and "late" in one.frozen and "first.3" in one.frozen and "" in one.frozen
    three = cut_before_last(Crooked(), world.retain, k=3)
    assert three.layers == ("attention", "attention.out_proj", "head")
    assert "first.1" in three.frozen and not {"late", "attention", "head"} & set(three.frozen)
    assert cut_before_last(Crooked(), world.retain, k=-1).frozen == ()
    with pytest.raises(ConfigError, match=r"1\.\.6 or -1: the model's layers are , first\.0"):
        cut_before_last(Crooked(), world.retain, k=7)


@pytest.mark.parametrize("method", [cf_k, eu_k])
def test_frozen_layers_are_equal_to_the_bit_and_in_eval_mode(world, method):
    with local_rng(0):
        model = Crooked().eval()
    with torch.no_grad():
        model.first[1].running_mean.fill_(0.3)
    more = {} if method is cf_k else {"build": lambda seed: Crooked()}
    config = LastLayersConfig(k=3, epochs=2, batch=32)
    with local_rng(1):
        got = method(model, **world.sets, config=config, seed=0, **more)
    before, after = model.state_dict(), got.state_dict()
    moved = {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"attention", "attention.out_proj", "head"}
    assert all(p.requires_grad for p in got.parameters()) and all(p.grad is None for p in model.parameters())
    everything = method(model, **world.sets, config=LastLayersConfig(k=-1, epochs=1), seed=0, **more).state_dict()
    assert not torch.equal(everything["first.1.running_mean"], before["first.1.running_mean"])


def test_a_frozen_layer_shared_with_one_that_trains_trains_with_it(world):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.head = nn.Linear(6, 6), nn.Linear(6, 6)
            self.head.weight = self.inside.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.inside(x))

    with local_rng(0):
        model = Tied().eval()
    got = cf_k(model, **world.sets, config=LastLayersConfig(k=1, epochs=1), seed=0)
    assert got.head.weight is got.inside.weight and not torch.equal(got.head.weight, model.head.weight)
    assert torch.equal(got.inside.bias, model.inside.bias)


@pytest.mark.parametrize("rate", [0.0, 0.9])
def test_dropout_before_the_last_layers_is_off(world, flat, rate):
    def made(p: float) -> nn.Module:
        with local_rng(0):
            return nn.Sequential(nn.Linear(6, 16), nn.Dropout(p), nn.Linear(16, 4)).eval()

    config = LastLayersConfig(k=1, epochs=2, batch=32)
    with_it, without = (cf_k(made(p), **world.sets, config=config, seed=0) for p in (rate, 0.0))
    assert torch.equal(flat(with_it), flat(without))
    every = LastLayersConfig(k=2, epochs=2, batch=32)
    noisy, quiet = (cf_k(made(p), **world.sets, config=every, seed=0) for p in (rate, 0.0))
    assert torch.equal(flat(noisy), flat(quiet)) == (rate == 0.0)


def test_only_the_asked_layers_are_drawn_anew(world):
    model, fresh = build(1), build(2)
    reinitialise(model, fresh, ("head",))
    assert torch.equal(model.head.weight, fresh.head.weight) and torch.equal(
        model.hidden[0].weight, build(1).hidden[0].weight
    )
    with pytest.raises(ConfigError, match="'head'"):
        reinitialise(model, nn.Linear(2, 2), ("head",))


# ---- EU-k, CF-k ----------------------------------------------------------------------------------------------------


def test_the_rate_warms_up_for_a_hundredth_and_falls_to_a_fifth():
    found = [bench_rate(t, 1000) for t in range(1000)]
    warm = [(t + 1) / 11 for t in range(10)]
    assert found == pytest.approx(warm + [1 - t / 1250 for t in range(990)])
    assert bench_rate(0, 1) == 1.0 and min(bench_rate(t, 7) for t in range(7)) > 0.2


@pytest.mark.parametrize("k", [1, -1])
def test_cf_k_equals_the_naive_loop(world, flat, k):
    config = LastLayersConfig(k=k, lr=0.05, epochs=2, batch=40, weight_decay=0.01)
    x, y = rows_of(world.retain)
    batches = orders("cf_k", 3, [len(y)] * 2, 40)
    losses = [lambda m, r=r: F.cross_entropy(m(x[r]), y[r]) for r in batches]
    rates = [1 - t / (1.25 * len(batches)) for t in range(len(batches))]
    names = ("head.weight", "head.bias") if k == 1 else ()
    expected = sgd_steps(world.model, losses, rates, config, names)
    got = cf_k(world.model, **world.sets, config=config, seed=3)
    torch.testing.assert_close(flat(got), flat(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, -1])
def test_eu_k_equals_the_naive_loop_from_fresh_layers(world, flat, k):
    config = LastLayersConfig(k=k, lr=0.05, epochs=3, batch=50)
    x, y = rows_of(world.retain)
    start, fresh = copy.deepcopy(world.model), build(derive_seed("eu_k", "fresh", 5) % 2**31)
    start.head.load_state_dict(fresh.head.state_dict())
    if k == -1:
        start.load_state_dict(fresh.state_dict())
    batches = orders("eu_k", 5, [len(y)] * 3, 50)
    losses = [lambda m, r=r: F.cross_entropy(m(x[r]), y[r]) for r in batches]
    rates = [1 - t / (1.25 * len(batches)) for t in range(len(batches))]
    expected = sgd_steps(start, losses, rates, config, ("head.weight", "head.bias") if k == 1 else ())
    got = eu_k(world.model, **world.sets, config=config, seed=5, build=build)
    torch.testing.assert_close(flat(got), flat(expected), rtol=1e-5, atol=1e-6)
    # Started where it was trained, it would be CF-k: the same loop, another model.
    assert not torch.allclose(flat(got), flat(sgd_steps(world.model, losses, rates, config)), atol=1e-3)


def test_cf_without_a_step_changes_nothing_and_eu_without_one_is_fresh(world, flat):
    none = LastLayersConfig(k=-1, epochs=0)
    assert torch.equal(flat(cf_k(world.model, **world.sets, config=none, seed=0)), flat(world.model))
    fresh = build(derive_seed("eu_k", "fresh", 0) % 2**31)
    assert torch.equal(flat(eu_k(world.model, **world.sets, config=none, seed=0, build=build)), flat(fresh))


def test_a_number_is_predicted_from_a_fresh_output_layer_in_its_own_units():
    there = WORLDS["numbers"]()
    train = there.train
    retain, forget = train.subset(train.example_id[8:]), train.subset(train.example_id[:8])
    model = there.needs["model"]
    config = LastLayersConfig(k=1, epochs=0)
    got = eu_k(model, retain=retain, forget=forget, config=config, seed=1, build=there.trainer.build)
    fresh = there.trainer.build(derive_seed("eu_k", "fresh", 1) % 2**31)
    scale, shift = float(retain.y.std()), float(retain.y.mean())
    torch.testing.assert_close(got.head.weight, fresh.head.weight * scale)
    torch.testing.assert_close(got.head.bias, fresh.head.bias * scale + shift)


# ---- SCRUB and bad teacher -----------------------------------------------------------------------------------------


def test_the_losses_of_scrub_are_their_definition():
    rng = torch.Generator().manual_seed(0)
    z, t, y = torch.randn(5, 3, generator=rng), torch.randn(5, 3, generator=rng), torch.tensor([0, 1, 2, 0, 1])
    p, q = (torch.softmax(v / 4, dim=1) for v in (t, z))
    expected = -torch.log_softmax(z, 1)[torch.arange(5), y] + 0.7 * 16 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(scrub_losses(z, t, y, alpha=0.7, temperature=4.0), expected)


def test_scrub_equals_the_naive_loop(world, flat):
    config = ScrubConfig(lr=0.01, epochs=3, batch=40, alpha=0.5, msteps=5)
    (xf, yf), (xr, yr) = rows_of(world.forget), rows_of(world.retain)
    nf, nr = len(yf), len(yr)
    frozen = copy.deepcopy(world.model)

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor, sign: float) -> torch.Tensor:
        with torch.no_grad():
            p = torch.softmax(frozen(x) / 4, dim=1)
        kl = (p * (p.log() - torch.log_softmax(model(x) / 4, dim=1))).sum() / len(y)
        return sign * (F.cross_entropy(model(x), y) + 0.5 * 16 * kl)

    # 1 step up and 4 down an epoch: the second begins after 5 steps, which are enough.
    batches = orders("scrub", 2, [nf, nr, nr, nr], 40)
    assert nf <= 40 and -(-nr // 40) == 4
    losses = [lambda m: loss(m, xf[batches[0]], yf[batches[0]], -1.0)]
    losses += [lambda m, r=r: loss(m, xr[r], yr[r], 1.0) for r in batches[1:]]
    rates = [1 - t / (1.25 * len(batches)) for t in range(len(batches))]
    expected = sgd_steps(world.model, losses, rates, config)
    got = scrub(world.model, **world.sets, config=config, seed=2)
    torch.testing.assert_close(flat(got), flat(expected), rtol=1e-5, atol=2e-6)


def test_scrub_without_its_terms_is_cf(world, flat):
    # One batch an epoch: the order does not matter, and each method draws its own.
    plain = {"lr": 0.02, "epochs": 4, "batch": 4096}
    bare = scrub(world.model, **world.sets, config=ScrubConfig(**plain, alpha=0.0, msteps=0), seed=0)
    cf = cf_k(world.model, **world.sets, config=LastLayersConfig(**plain, k=-1), seed=0)
    torch.testing.assert_close(flat(bare), flat(cf), rtol=1e-4, atol=2e-6)
    for change in ({"alpha": 100.0, "msteps": 0}, {"alpha": 0.0, "msteps": 1}):
        other = scrub(world.model, **world.sets, config=ScrubConfig(**plain, **change), seed=0)
        assert (flat(other) - flat(cf)).abs().max() > 1e-4, change


def test_scrub_counts_its_progress_to_the_end(world):
    seen: list[tuple[int, int, str]] = []
    config = ScrubConfig(epochs=3, batch=40, msteps=5)
    scrub(world.model, **world.sets, config=config, seed=0, progress=lambda *a: seen.append(a))
    assert [done for done, _, _ in seen] == list(range(1, 14)) and seen[-1][:2] == (13, 13)


def test_bad_teacher_equals_the_naive_loop(world, flat):
    config = BadTeacherConfig(lr=0.05, epochs=2, batch=64)
    (xf, _), (xr, _) = rows_of(world.forget), rows_of(world.retain)
    x = torch.cat([xr, xf])
    ignorant = build(derive_seed("bad_teacher", "fresh", 7) % 2**31).eval()
    with torch.no_grad():
        targets = torch.cat([torch.softmax(world.model(xr), 1), torch.softmax(ignorant(xf), 1)])
    batches = orders("bad_teacher", 7, [len(x)] * 2, 64)
    losses = [
        lambda m, r=r: (targets[r] * (targets[r].log() - torch.log_softmax(m(x[r]), 1))).sum() / len(r) for r in batches
    ]
    rates = [1 - t / (1.25 * len(batches)) for t in range(len(batches))]
    expected = sgd_steps(world.model, losses, rates, config)
    got = bad_teacher(world.model, **world.sets, config=config, seed=7, build=build)
    torch.testing.assert_close(flat(got), flat(expected), rtol=1e-5, atol=2e-6)
    before, after = (m(xf).softmax(1).max(1).values.mean() for m in (world.model, got))
    assert after < before


def test_bad_teacher_with_nothing_to_forget_has_no_loss_and_no_gradient(world, flat):
    x, _ = rows_of(world.retain)
    student = copy.deepcopy(world.model)
    targets = torch.softmax(world.model(x), 1).detach()
    losses = distance_to_targets(student(x), targets)
    grads = torch.autograd.grad(losses.mean(), list(student.parameters()))
    assert losses.abs().max() < 1e-6 and max(float(g.abs().max()) for g in grads) < 1e-7
    config = BadTeacherConfig(lr=0.5, epochs=5, weight_decay=0.0)
    sets = {"retain": world.retain, "forget": world.forget.subset([])}
    got = bad_teacher(world.model, **sets, config=config, seed=0, build=build)
    torch.testing.assert_close(flat(got), flat(world.model), rtol=0, atol=1e-5)


def test_targets_see_no_label(world, flat):
    blind = {name: _relabelled(data) for name, data in world.sets.items()}
    config = BadTeacherConfig(lr=0.01, epochs=1)
    first, second = (
        bad_teacher(world.model, **sets, config=config, seed=0, build=build) for sets in (world.sets, blind)
    )
    assert torch.equal(flat(first), flat(second))


def _relabelled(data: ExampleSet) -> ExampleSet:
    return dataclasses.replace(data, y=(data.y + 1) % CLASSES)


def test_a_teacher_is_asked_once_and_left_in_its_mode(world):
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model = copy.deepcopy(world.model).train()
    handle = model.register_forward_pre_hook(count)
    found = answers_of(model, inputs_of(model, world.retain))
    assert calls == 1 and model.training
    handle.remove()
    np.testing.assert_allclose(found, predict_logits(world.model, world.retain.by_id()), rtol=0, atol=1e-6)
    doubled = copy.deepcopy(world.model).double()
    assert answers_of(doubled, inputs_of(doubled, world.retain)).dtype == np.float64
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    with pytest.raises(Diverged, match="the trained model"):
        answers_of(model, inputs_of(model, world.retain))


# ---- importances and dampening -------------------------------------------------------------------------------------


def test_importance_is_the_mean_of_squared_gradients_of_batch_means(world):
    found = parameter_importance(world.model, world.retain, batch=50, seed=4)
    x, y = rows_of(world.retain)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(derive_seed("importance", 4)))
    sums = [torch.zeros_like(p) for p in world.model.parameters()]
    pieces = order.split(50)
    for rows in pieces:
        one_by_one = [
            torch.autograd.grad(
                F.cross_entropy(world.model(x[i : i + 1]), y[i : i + 1]), list(world.model.parameters())
            )
            for i in rows.tolist()
        ]
        for total, grads in zip(sums, zip(*one_by_one, strict=True), strict=True):
            total += torch.stack(grads).mean(0) ** 2 / len(pieces)
    assert (found.batch, found.num_batches) == (50, 3)
    for (name, _), expected in zip(world.model.named_parameters(), sums, strict=True):
        torch.testing.assert_close(found.values[name], expected, rtol=1e-4, atol=1e-9)
    # The mean is taken before the square: single examples say something else.
    single = parameter_importance(world.model, world.retain, batch=1, seed=4)
    assert float(single.values["head.bias"].sum() / found.values["head.bias"].sum()) > 3


def test_importance_leaves_the_model_alone_and_takes_several_sets(world, flat):
    model = copy.deepcopy(world.model).train()
    both = parameter_importance(model, world.retain, world.forget, batch=30, seed=0)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert torch.equal(flat(model), flat(world.model)) and both.num_batches == math.ceil(160 / 30)
    mixed = world.retain.subset(np.random.default_rng(1).permutation(world.retain.example_id))
    again = parameter_importance(model, mixed, world.forget, batch=30, seed=0)
    assert all(torch.equal(both.values[n], again.values[n]) for n in both.values)
    with pytest.raises(DataError, match="no example"):
        parameter_importance(model, world.forget.subset([]), batch=30, seed=0)
    with pytest.raises(InvalidInput, match="batch"):
        parameter_importance(model, world.forget, batch=0, seed=0)
    broken = copy.deepcopy(model)
    nn.init.constant_(broken.head.weight, float("nan"))
    with pytest.raises(Diverged, match="gradient"):
        parameter_importance(broken, world.forget, batch=30, seed=0)


def importances(forget: list[float], other: list[float], batch: int = 8) -> tuple[Importance, Importance]:
    return tuple(Importance({"w": torch.tensor(v)}, batch, 1) for v in (forget, other))  # type: ignore[return-value]


def test_dampening_by_hand():
    f, d = importances([4.0, 4.0, 1.0, 0.0, 2.0, 8.0], [1.0, 2.0, 1.0, 0.0, 0.0, 1.0])
    found = dampening(f, d, alpha=2.0, lambda_=1.0)["w"]
    # 4 > 2: 1/4; 4 = 2 * 2 is not more; 1 < 2; 0/0 is not selected; unused elsewhere: gone; 8: 1/8
    assert found.tolist() == [0.25, 1.0, 1.0, 1.0, 0.0, 0.125]
    assert dampening(f, d, alpha=2.0, lambda_=6.0)["w"].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0, 0.75]
    assert dampening(f, d, alpha=math.inf, lambda_=1.0)["w"].tolist() == [1.0] * 6
    assert dampening(f, d, alpha=1e12, lambda_=0.0)["w"].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0, 1.0]


def test_dampening_never_grows_nor_flips_on_any_importances():
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        f, d = (10 ** (8 * torch.rand(200, generator=rng) - 4) * (torch.rand(200, generator=rng) > 0.2) for _ in "fd")
        alpha, lambda_ = (float(10 ** (8 * torch.rand(1, generator=rng) - 4)) for _ in "al")
        factor = dampening(*(Importance({"w": v}, 4, 1) for v in (f, d)), alpha=alpha, lambda_=lambda_)["w"]
        assert bool(((factor >= 0) & (factor <= 1)).all()) and bool((factor[f <= alpha * d] == 1).all())


@pytest.mark.parametrize(("alpha", "lambda_"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -0.1), (math.nan, 1.0)])
def test_dampening_refuses_what_cannot_be_compared(alpha, lambda_):
    f, d = importances([1.0], [1.0])
    with pytest.raises(InvalidInput):
        dampening(f, d, alpha=alpha, lambda_=lambda_)
    with pytest.raises(InvalidInput, match="batches of 8 and 4"):
        dampening(f, importances([1.0], [1.0], batch=4)[1], alpha=1.0, lambda_=1.0)


def test_ssd_is_its_definition_and_only_shrinks(world, flat):
    config = SelectiveSynapticDampeningConfig(alpha=1.0, lambda_=0.5, batch=64)
    got = selective_synaptic_dampening(world.model, **world.sets, config=config, seed=3)
    f, d = (parameter_importance(world.model, part, batch=64, seed=3) for part in (world.forget, world.retain))
    touched = 0
    for (name, before), after in zip(world.model.named_parameters(), got.parameters(), strict=True):
        used, other = f.values[name].numpy(), d.values[name].numpy()
        expected = before.detach().numpy().copy()
        for j in np.ndindex(*used.shape):
            if used[j] > 1.0 * other[j]:
                expected[j] *= min(0.5 * other[j] / used[j], 1.0)
                touched += 1
        np.testing.assert_allclose(after.detach().numpy(), expected, rtol=1e-6)
        assert bool((after.abs() <= before.abs()).all()) and bool((after * before >= 0).all())
    assert touched > 10
    # The other reference is all of the data.
    whole = SelectiveSynapticDampeningConfig(alpha=1.0, lambda_=0.5, batch=64, reference="all")
    assert not torch.equal(
        flat(selective_synaptic_dampening(world.model, **world.sets, config=whole, seed=3)), flat(got)
    )


def test_ssd_that_selects_nothing_changes_nothing(world, flat):
    huge = SelectiveSynapticDampeningConfig(alpha=1e12)
    assert torch.equal(
        flat(selective_synaptic_dampening(world.model, **world.sets, config=huge, seed=0)), flat(world.model)
    )
    nobody = world.retain.subset([])
    everyone = SelectiveSynapticDampeningConfig(alpha=1.0, lambda_=0.1, reference="all", batch=32)
    got = selective_synaptic_dampening(world.model, retain=nobody, forget=world.retain, config=everyone, seed=0)
    assert torch.equal(flat(got), flat(world.model))
    less = SelectiveSynapticDampeningConfig(alpha=0.5, lambda_=0.1, reference="all", batch=32)
    assert not torch.equal(
        flat(selective_synaptic_dampening(world.model, retain=nobody, forget=world.retain, config=less, seed=0)),
        flat(world.model),
    )
    without = selective_synaptic_dampening(world.model, retain=world.retain, forget=nobody, config=less, seed=0)
    assert torch.equal(flat(without), flat(world.model))
    with pytest.raises(DataError, match="retain set is empty"):
        selective_synaptic_dampening(world.model, retain=nobody, forget=world.retain, config=huge, seed=0)


def test_ssd_of_a_number_that_selects_nothing_keeps_every_bit(flat):
    there = WORLDS["numbers"]()
    train = there.train
    retain, forget = train.subset(train.example_id[8:]), train.subset(train.example_id[:8])
    model, config = there.needs["model"], SelectiveSynapticDampeningConfig(alpha=1e12)
    got = selective_synaptic_dampening(model, retain=retain, forget=forget, config=config, seed=0)
    assert torch.equal(flat(got), flat(model))


@pytest.mark.parametrize("name", ["cf_k", "eu_k", "scrub", "bad_teacher", "selective_synaptic_dampening"])
def test_same_seed_same_bits_whatever_the_order_of_the_rows(world, flat, name):
    method = unlearner.get(name)
    fields = {"alpha": 0.5, "batch": 40} if name.startswith("selective") else {"epochs": 2, "batch": 40}
    config = method.spec.config.from_mapping(fields)
    more = {"build": build} if "build" in method.spec.needs else {}
    mixed = {k: d.subset(np.random.default_rng(9).permutation(d.example_id)) for k, d in world.sets.items()}
    first, again = (method(world.model, **sets, config=config, seed=1, **more) for sets in (world.sets, mixed))
    other = method(world.model, **world.sets, config=config, seed=2, **more)
    assert torch.equal(flat(first), flat(again)) and not torch.equal(flat(first), flat(other))
    assert not first.training and not torch.equal(flat(first), flat(world.model))


def test_no_layer_at_all_is_refused():
    with pytest.raises(ConfigError, match="k = 0"):
        LastLayersConfig(k=0)
