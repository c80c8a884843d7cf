"""Each method against a naive loop written out by hand, and the promises that all of them make."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged, NotApplicable
from contracts.methods import unlearner
from sources.example_set import ExampleSet
from unlearning.finetune import FinetuneConfig, finetune
from unlearning.gradient_ascent import GradientAscentConfig, gradient_ascent
from unlearning.random_label import RandomLabelConfig, random_label, random_labels
from unlearning.retrain import retrain

GRADIENT = ("finetune", "gradient_ascent", "random_label")


def configured(name: str, **fields: object):
    return unlearner.get(name).spec.config.from_mapping(fields)


def ordered(data: ExampleSet) -> tuple[np.ndarray, np.ndarray]:
    rows = np.argsort(data.example_id)
    return data.inputs(rows), data.y[rows]


def naive_sgd(model: nn.Module, batches, *, lr: float, momentum: float, weight_decay: float) -> nn.Module:
    """Momentum SGD by its definition: v <- mu v + (g + wd theta); theta <- theta - lr v. No optimiser class."""
    model = copy.deepcopy(model)
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for x, y, weights in batches:
        total = torch.zeros(())
        for i in range(len(y)):  # one example at a time
            total = total + weights[i] * F.cross_entropy(model(torch.from_numpy(x[i : i + 1])), torch.tensor([y[i]]))
        grads = torch.autograd.grad(total / len(y), list(model.parameters()))
        with torch.no_grad():
            for p, v, g in zip(model.parameters(), velocity, grads, strict=True):
                v.mul_(momentum).add_(g + weight_decay * p)
                p.sub_(lr * v)
    return model


def orders(name: str, seed: int, sizes: list[int], batch: int) -> list[list[np.ndarray]]:
    """The shuffles that the loop draws, one list of batches for each pass."""
    order = torch.Generator().manual_seed(derive_seed(name, "order", seed))
    drawn = [torch.randperm(n, generator=order).numpy() for n in sizes]
    return [[rows[a : a + batch] for a in range(0, len(rows), batch)] for rows in drawn]


def test_finetune_equals_the_naive_loop(world, flat):
    config = FinetuneConfig(lr=0.05, epochs=2, batch=40, weight_decay=0.01)
    x, y = ordered(world.retain)
    cuts = orders("finetune", 3, [len(y)] * 2, 40)
    batches = [(x[r], y[r], np.ones(len(r))) for epoch in cuts for r in epoch]
    expected = naive_sgd(world.model, batches, lr=0.05, momentum=0.9, weight_decay=0.01)
    got = finetune(world.model, **world.sets, config=config, seed=3)
    torch.testing.assert_close(flat(got), flat(expected), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(flat(got), flat(world.model), atol=1e-3)


def test_gradient_ascent_equals_the_naive_loop_and_climbs(world, flat):
    config = GradientAscentConfig(lr=0.003, epochs=3, batch=10)
    x, y = ordered(world.forget)
    cuts = orders("gradient_ascent", 4, [len(y)] * 3, 10)
    batches = [(x[r], y[r], -np.ones(len(r))) for epoch in cuts for r in epoch]
    expected = naive_sgd(world.model, batches, lr=0.003, momentum=0.9, weight_decay=5e-4)
    got = gradient_ascent(world.model, **world.sets, config=config, seed=4)
    torch.testing.assert_close(flat(got), flat(expected), rtol=1e-5, atol=1e-6)
    before, after = (F.cross_entropy(m(torch.from_numpy(x)), torch.from_numpy(y)) for m in (world.model, got))
    assert after > before


@pytest.mark.parametrize("order", ["sequential", "mixed"])
def test_random_label_equals_the_naive_loop(world, flat, order):
    config = RandomLabelConfig(lr=0.02, epochs=2, batch=50, order=order, alpha=0.5)
    (xf, yf), (xr, yr) = ordered(world.forget), ordered(world.retain)
    rng = np.random.default_rng(derive_seed("random_label", "labels", 5))
    sizes = [len(yf), len(yr)] * 2 if order == "sequential" else [len(yf) + len(yr)] * 2
    cuts = orders("random_label", 5, sizes, 50)
    batches = []
    for epoch in range(2):
        wrong = (yf + rng.integers(1, 4, len(yf))) % 4
        if order == "sequential":
            passes = [(xf, wrong, np.ones(len(yf))), (xr, yr, np.full(len(yr), 0.5))]
        else:
            weights = np.r_[np.ones(len(yf)), np.full(len(yr), 0.5)]
            passes = [(np.concatenate([xf, xr]), np.r_[wrong, yr], weights)]
        for number, (x, y, w) in enumerate(passes):
            batches += [(x[r], y[r], w[r]) for r in cuts[epoch * len(passes) + number]]
    expected = naive_sgd(world.model, batches, lr=0.02, momentum=0.9, weight_decay=5e-4)
    got = random_label(world.model, **world.sets, config=config, seed=5)
    torch.testing.assert_close(flat(got), flat(expected), rtol=1e-5, atol=2e-6)


def test_retrain_is_the_recipe_on_what_is_kept(world, flat):
    spec = unlearner.get("retrain").spec
    got = retrain(world.model, **world.sets, config=spec.config(), seed=7, train=world.train)
    in_order = world.retain.by_id()
    assert torch.equal(flat(got), flat(world.train(in_order, 7)))
    assert spec.exact and not any(unlearner.get(n).spec.exact for n in (*GRADIENT, "none"))


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_random_labels_are_uniform_and_never_the_true_one_when_excluded(num_classes):
    y = np.repeat(np.arange(num_classes), 4000)
    for exclude in (True, False):
        drawn = random_labels(y, num_classes=num_classes, exclude_true=exclude, rng=np.random.default_rng(0))
        table = np.zeros((num_classes, num_classes))
        np.add.at(table, (y, drawn), 1)
        allowed = ~np.eye(num_classes, dtype=bool) if exclude else np.ones((num_classes, num_classes), bool)
        share = 4000 / allowed.sum(1)[0]
        assert (table[~allowed] == 0).all()
        # six standard deviations of a binomial count: no false alarm on any seed
        assert np.abs(table[allowed] - share).max() <= 6 * np.sqrt(share) + 1e-9


def test_random_labels_need_another_class():
    with pytest.raises(NotApplicable, match="2 classes"):
        random_labels(np.zeros(3, int), num_classes=1, exclude_true=True, rng=np.random.default_rng(0))


@pytest.mark.parametrize("name", [*GRADIENT, "none"])
def test_the_given_model_is_untouched_and_the_result_is_its_own(world, flat, name):
    before, modes = flat(world.model), [m.training for m in world.model.modules()]
    got = unlearner.get(name)(world.model, **world.sets, config=configured(name), seed=0)
    assert torch.equal(flat(world.model), before)
    assert [m.training for m in world.model.modules()] == modes
    assert all(p.grad is None for p in world.model.parameters())
    assert not got.training
    shared = {p.data_ptr() for p in world.model.parameters()} & {p.data_ptr() for p in got.parameters()}
    assert not shared


@pytest.mark.parametrize("name", GRADIENT)
def test_same_seed_same_bits_whatever_the_order_of_the_rows(world, flat, name):
    method = unlearner.get(name)
    config = configured(name, lr=0.01, epochs=2, batch=8)
    first = method(world.model, **world.sets, config=config, seed=1)
    mixed = {k: d.subset(np.random.default_rng(9).permutation(d.example_id)) for k, d in world.sets.items()}
    again = method(world.model, **mixed, config=config, seed=1)
    other = method(world.model, **world.sets, config=config, seed=2)
    assert torch.equal(flat(first), flat(again))
    assert not torch.equal(flat(first), flat(other))


def test_the_methods_differ_from_each_other_and_from_doing_nothing(world, flat):
    results = {n: unlearner.get(n)(world.model, **world.sets, config=configured(n, lr=0.01), seed=0) for n in GRADIENT}
    results["none"] = unlearner.get("none")(world.model, **world.sets, config=configured("none"), seed=0)
    results["retrain"] = retrain(world.model, **world.sets, config=configured("retrain"), seed=0, train=world.train)
    assert torch.equal(flat(results["none"]), flat(world.model))
    names = sorted(results)
    for a in names:
        for b in names[names.index(a) + 1 :]:
            assert (flat(results[a]) - flat(results[b])).abs().max() > 1e-4, (a, b)


def test_dropout_noise_comes_from_the_seed_and_leaves_the_global_state(world, flat):
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.drop = copy.deepcopy(world.model), nn.Dropout(0.5)

        def forward(self, x):
            return self.net(self.drop(x))

    model, config = Noisy().eval(), FinetuneConfig(epochs=1, batch=32)
    results = []
    for state in (11, 12):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        results.append(flat(finetune(model, **world.sets, config=config, seed=0)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)
    quiet = flat(finetune(world.model, **world.sets, config=config, seed=0))
    assert not torch.equal(results[0], quiet)


def with_batch_norm(world) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    model.train()
    for _ in range(3):
        model(torch.from_numpy(world.retain.inputs(slice(None))))
    return model.eval()


def test_batch_norm_buffers_follow_the_data_or_stay(world):
    model = with_batch_norm(world)
    before = {k: v.clone() for k, v in model.named_buffers()}
    moved = finetune(model, **world.sets, config=FinetuneConfig(epochs=1), seed=0)
    kept = finetune(model, **world.sets, config=FinetuneConfig(epochs=1, batch_norm="freeze"), seed=0)
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())
    assert all(torch.equal(v, before[k]) for k, v in kept.named_buffers())
    assert not torch.equal(dict(moved.named_buffers())["1.running_mean"], before["1.running_mean"])
    assert not torch.equal(kept[0].weight, model[0].weight)


def test_a_last_batch_of_one_is_not_left_alone_under_batch_norm(world):
    model, odd = with_batch_norm(world), world.retain.subset(world.retain.example_id[:33])
    finetune(model, retain=odd, forget=world.forget, config=FinetuneConfig(epochs=1, batch=32), seed=0)
    single = world.forget.subset(world.forget.example_id[:1])
    with pytest.raises(NotApplicable, match="freeze"):
        gradient_ascent(model, retain=odd, forget=single, config=GradientAscentConfig(), seed=0)
    frozen = GradientAscentConfig(batch_norm="freeze")
    gradient_ascent(model, retain=odd, forget=single, config=frozen, seed=0)


def test_a_run_that_blows_up_says_so(world):
    with pytest.raises(Diverged, match="lr 1"):
        gradient_ascent(world.model, **world.sets, config=GradientAscentConfig(lr=1.0, epochs=400, batch=1), seed=0)


def test_a_collapse_to_one_answer_says_so(world):
    # Everything is pushed to one class: finite throughout, and worthless.
    with pytest.raises(Diverged, match="commonest class"):
        gradient_ascent(world.model, **world.sets, config=GradientAscentConfig(lr=0.3, epochs=30), seed=0)


def test_a_model_that_was_never_useful_is_not_called_collapsed(world):
    blank = copy.deepcopy(world.model)
    for p in blank.parameters():
        nn.init.zeros_(p)
    finetune(blank, **world.sets, config=FinetuneConfig(epochs=0), seed=0)


@pytest.mark.parametrize("name", GRADIENT)
def test_bad_sets_are_refused(world, name):
    method, config = unlearner.get(name), configured(name)
    common = world.retain.example_id[:3]
    overlap = world.retain.subset(common)
    with pytest.raises(DataError) as error:
        method(world.model, retain=world.retain, forget=overlap, config=config, seed=0)
    assert error.value.example_ids == tuple(sorted(common.tolist()))
    bad = dataclasses.replace(world.forget, y=np.full_like(world.forget.y, 4))
    with pytest.raises(DataError, match=r"outside 0\.\.3"):
        method(world.model, retain=world.retain, forget=bad, config=config, seed=0)
    targets = dataclasses.replace(world.forget, task="regression", class_names=(), y=world.forget.y.astype(float))
    with pytest.raises(NotApplicable, match="regression"):
        method(world.model, retain=world.retain, forget=targets, config=config, seed=0)
    with pytest.raises(NotApplicable, match="output has shape"):
        method(nn.Linear(6, 3), retain=world.retain, forget=world.forget, config=config, seed=0)
    with pytest.raises(NotApplicable, match="no trainable"):
        method(copy.deepcopy(world.model).requires_grad_(False), **world.sets, config=config, seed=0)


def test_empty_sets(world, flat):
    nobody = world.forget.subset([])
    same = gradient_ascent(world.model, retain=world.retain, forget=nobody, config=GradientAscentConfig(), seed=0)
    assert torch.equal(flat(same), flat(world.model))
    for order in ("sequential", "mixed"):
        random_label(world.model, retain=world.retain, forget=nobody, config=RandomLabelConfig(order=order), seed=0)
    for name in ("finetune", "random_label", "retrain"):
        extra = {"train": world.train} if name == "retrain" else {}
        with pytest.raises(DataError, match="retain set is empty"):
            unlearner.get(name)(
                world.model, retain=nobody, forget=world.forget, config=configured(name), seed=0, **extra
            )


@pytest.mark.parametrize(
    ("name", "fields", "allowed"),
    [
        ("finetune", {"lr": 0.0}, "> 0 and <= 1"),
        ("gradient_ascent", {"epochs": -1}, ">= 0 and <= 1000"),
        ("random_label", {"alpha": 1.5}, ">= 0 and <= 1"),
        ("random_label", {"order": "both"}, "'sequential', 'mixed'"),
        ("finetune", {"momentum": 1.0}, ">= 0 and < 1"),
    ],
)
def test_ranges_are_named(name, fields, allowed):
    with pytest.raises(ConfigError, match=allowed):
        configured(name, **fields)


def test_progress_counts_every_step(world):
    seen: list[tuple[int, int, str]] = []
    finetune(
        world.model, **world.sets, config=FinetuneConfig(epochs=3, batch=40), seed=0, progress=lambda *a: seen.append(a)
    )
    steps = 3 * -(-world.retain.num_examples // 40)
    assert seen == [(i + 1, steps, "finetune") for i in range(steps)]


def test_frozen_parameters_stay(world):
    model = copy.deepcopy(world.model)
    first = next(model.parameters()).requires_grad_(False)
    got = finetune(model, **world.sets, config=FinetuneConfig(lr=0.1), seed=0)
    assert torch.equal(next(got.parameters()), first)


def test_float64_models_work(world, flat):
    double = copy.deepcopy(world.model).double()
    config = FinetuneConfig(lr=0.01, epochs=1, batch=32)
    a = finetune(double, **world.sets, config=config, seed=0)
    b = finetune(world.model, **world.sets, config=config, seed=0)
    assert next(a.parameters()).dtype == torch.float64
    torch.testing.assert_close(flat(a), flat(b), rtol=1e-4, atol=1e-5)
