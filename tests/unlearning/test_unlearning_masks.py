"""Masks hold what they hold, saliency is the gradient, and SalUn is random labels under a mask."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from contracts.errors import ConfigError, Diverged, InvalidInput, NotApplicable, UnknownName
from contracts.methods import unlearner
from contracts.params import references
from contracts.progress import silent
from palimpsest.testing.worlds import numbers
from tasks.base import named
from unlearning.descent import descend
from unlearning.finetune import FinetuneConfig, finetune_plan
from unlearning.masked import descend_masked, takes_mask, unlearn_masked
from unlearning.masks import Held, both, check_mask, density, part_of, top
from unlearning.random_label import RandomLabelConfig, random_label
from unlearning.saliency import saliency_mask, weight_saliency
from unlearning.saliency_masked import SaliencyMaskedConfig, saliency_masked
from unlearning.salun import SalUnConfig, salun, soft_threshold
from unlearning.stacked import descend_many

MASKED = [
    m.spec.name
    for m in unlearner
    if takes_mask(m.spec) and not m.spec.needs and named("classification").gives(*m.spec.wants)
]
ROUGH = {"momentum": 0.9, "weight_decay": 0.1, "epochs": 3, "batch": 16}


def half_mask(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.rand(p.shape, generator=draws) < 0.5 for name, p in model.named_parameters()}


def moved_outside(result: nn.Module, model: nn.Module, mask) -> int:
    own = dict(result.named_parameters())
    return sum(int((own[n] != p)[~mask[n]].sum()) for n, p in model.named_parameters() if n in mask)


def moved_inside(result: nn.Module, model: nn.Module, mask) -> int:
    own = dict(result.named_parameters())
    return sum(int((own[n] != p)[mask[n]].sum()) for n, p in model.named_parameters() if n in mask)


def masked(plan_of, model: nn.Module, sets, config, mask) -> nn.Module:
    return descend_masked(plan_of(model, **sets, config=config, seed=0), model, mask, progress=silent)


def fields_of(name: str) -> dict[str, object]:
    known = {f.name for f in dataclasses.fields(unlearner.get(name).spec.config)}
    return {key: value for key, value in {**ROUGH, "lr": 0.01, "alpha": 1e-3}.items() if key in known}


@pytest.mark.parametrize("name", MASKED)
def test_what_a_mask_holds_is_as_it_was_to_the_bit(world, name):
    method, mask = unlearner.get(name), half_mask(world.model)
    config = method.spec.config.from_mapping(fields_of(name))
    got = unlearn_masked(method, world.model, **world.sets, config=config, seed=0, mask=mask, progress=silent)
    assert moved_outside(got, world.model, mask) == 0
    assert moved_inside(got, world.model, mask) > 0


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_of_everything_is_no_mask(world, flat, name):
    method = unlearner.get(name)
    config = method.spec.config.from_mapping(fields_of(name))
    whole = {n: torch.ones_like(p, dtype=torch.bool) for n, p in world.model.named_parameters()}
    alone = method(world.model, **world.sets, config=config, seed=3)
    under = unlearn_masked(method, world.model, **world.sets, config=config, seed=3, mask=whole, progress=silent)
    assert torch.equal(flat(alone), flat(under))


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_that_does_not_fit_is_refused(world, name):
    method = unlearner.get(name)
    config = method.spec.config.from_mapping(fields_of(name))
    first = next(n for n, _ in world.model.named_parameters())
    for wrong in ({"nobody": torch.ones(1, dtype=torch.bool)}, {first: torch.ones(2, dtype=torch.bool)}):
        with pytest.raises(InvalidInput, match="mask: "):
            unlearn_masked(method, world.model, **world.sets, config=config, seed=0, mask=wrong, progress=silent)


def test_what_is_held_is_held_after_every_step_and_not_only_at_the_end(world):
    # let go until the end, the held weights would have drawn the free ones elsewhere
    mask = half_mask(world.model)
    config = FinetuneConfig(lr=0.05, epochs=6, batch=400, momentum=0.9, weight_decay=0.1)
    got = masked(finetune_plan, world.model, world.sets, config, mask)
    twin, order = copy.deepcopy(world.model), np.argsort(world.retain.example_id)
    x, y = torch.from_numpy(world.retain.inputs(order)), torch.from_numpy(world.retain.y[order])
    velocity = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for _ in range(6):
        gradients = torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters()))
        with torch.no_grad():
            for (name, p), g in zip(twin.named_parameters(), gradients, strict=True):
                velocity[name].mul_(0.9).add_((g + 0.1 * p) * mask[name])
                p.sub_(0.05 * velocity[name])
    for p, q in zip(got.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_zeroing_gradients_alone_would_not_hold_a_weight(world):
    # the mutant that the published code had: weight decay moves weights whose gradient is zero
    mask, mutant = half_mask(world.model), copy.deepcopy(world.model)
    for name, p in mutant.named_parameters():
        p.register_hook(lambda g, name=name: g * mask[name])
    optimizer = torch.optim.SGD(mutant.parameters(), lr=0.05, weight_decay=0.1)
    F.cross_entropy(
        mutant(torch.from_numpy(world.retain.inputs(slice(None)))), torch.from_numpy(world.retain.y)
    ).backward()
    optimizer.step()
    assert moved_outside(mutant, world.model, mask) > 0


def test_numbers_to_predict_are_held_to_the_bit_though_their_units_change():
    world = numbers()
    model, train = world.needs["model"], world.train.by_id()
    mask = half_mask(model)
    sets = {"retain": train.take(np.arange(70)), "forget": train.take(np.arange(70, 90))}
    got = masked(finetune_plan, model, sets, FinetuneConfig(lr=0.01), mask)
    assert moved_outside(got, model, mask) == 0
    assert moved_inside(got, model, mask) > 0


def test_held_takes_a_leading_axis_of_models():
    origin = {"w": torch.arange(4.0)}
    held = Held.of(origin, {"w": torch.tensor([True, False, True, False])})
    many = {"w": torch.full((2, 4), 9.0)}
    held.restore(many)
    assert many["w"].tolist() == [[9.0, 1.0, 9.0, 3.0]] * 2


def test_held_weights_come_back_from_nan():
    held = Held.of({"w": torch.ones(2)}, {"w": torch.tensor([False, True])})
    broken = {"w": torch.full((2,), torch.nan)}
    held.restore(broken)
    assert broken["w"][0] == 1 and torch.isnan(broken["w"][1])


# ---- ranking -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_top_takes_exactly_as_many_as_asked_whatever_the_ties(count):
    scores = {"a": torch.zeros(4, 3), "b": torch.tensor([5.0, 0, 5, 0, 0, 0, 0, 1])}
    chosen = top(scores, count)
    assert sum(int(m.sum()) for m in chosen.values()) == count
    flat, picked = (torch.cat([d[n].flatten() for n in scores]) for d in (scores, chosen))
    if 0 < count < 20:
        assert flat[picked].min() >= flat[~picked].max()
    # the threshold with >= that the paper writes takes all twelve and more
    assert int((flat >= flat.median()).sum()) == 20


def test_top_within_and_its_refusals():
    scores = {"a": torch.tensor([3.0, 2.0, 1.0])}
    within = {"a": torch.tensor([False, True, True])}
    assert top(scores, 1, within=within)["a"].tolist() == [False, True, False]
    for wrong in (-1, 3):
        with pytest.raises(InvalidInput, match="<= 2 weights"):
            top(scores, wrong, within=within)
    with pytest.raises(Diverged, match="not a number"):
        top({"a": torch.tensor([torch.nan])}, 1)


def test_a_share_is_of_the_decimal_number():
    for percent in range(1, 101):
        assert part_of(percent / 100, 100) == percent
    assert part_of(0.5, 7) == 3


def test_two_masks_together():
    a, b = {"x": torch.tensor([True, False]), "y": torch.tensor([True])}, {"x": torch.tensor([True, True])}
    assert both(a, b)["x"].tolist() == [True, False] and both(a, b)["y"].tolist() == [True]
    assert both(None, b) is b and both(a, None) is a and both(None, None) is None
    check_mask(nn.Linear(1, 1), None)


# ---- saliency ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [512, 7])
def test_saliency_is_the_gradient_of_the_summed_loss(world, monkeypatch, batch):
    monkeypatch.setattr("unlearning.gradients._BATCH", batch)  # signed sums over batches, sizes at the end alone
    twin = copy.deepcopy(world.model)
    order = np.argsort(world.forget.example_id)
    x, y = torch.from_numpy(world.forget.inputs(order)), torch.from_numpy(world.forget.y[order])
    F.cross_entropy(twin(x), y, reduction="sum").backward()
    found = weight_saliency(world.model, world.forget, retain=world.retain)
    assert list(found) == [name for name, _ in world.model.named_parameters()]
    for name, p in twin.named_parameters():
        torch.testing.assert_close(found[name], p.grad.abs().double(), rtol=1e-5, atol=1e-7)


def test_saliency_sums_signed_gradients_and_not_their_sizes(world):
    # sum of |g_i| is another ranking: the mutant would pass every test of shape and density
    found = torch.cat([s.flatten() for s in weight_saliency(world.model, world.forget, retain=world.retain).values()])
    sizes = torch.zeros_like(found)
    for x, y in zip(world.forget.inputs(slice(None)), world.forget.y, strict=True):
        twin = copy.deepcopy(world.model)
        F.cross_entropy(twin(torch.from_numpy(x[None])), torch.tensor([y])).backward()
        sizes += torch.cat([p.grad.flatten() for p in twin.parameters()]).abs()
    assert (found <= sizes + 1e-6).all() and (found < 0.9 * sizes).any()


@pytest.mark.parametrize("fraction", [0.1, 0.37, 0.5, 0.9])
def test_the_density_is_exact_and_the_most_salient_are_in(world, fraction):
    size = sum(p.numel() for p in world.model.parameters())
    mask = saliency_mask(world.model, world.forget, retain=world.retain, fraction=fraction)
    assert density(mask) == part_of(fraction, size) / size
    scores = weight_saliency(world.model, world.forget, retain=world.retain)
    flat, chosen = (torch.cat([d[n].flatten() for n in scores]) for d in (scores, mask))
    assert flat[chosen].min() >= flat[~chosen].max()


def test_a_fraction_out_of_range_is_refused_and_all_of_it_is_no_mask(world):
    assert saliency_mask(world.model, world.forget, retain=world.retain, fraction=1.0) is None
    with pytest.raises(InvalidInput, match="fraction"):
        saliency_mask(world.model, world.forget, retain=world.retain, fraction=0.0)


# ---- SalUn -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("order", ["sequential", "mixed"])
@pytest.mark.parametrize("exclude", [True, False])
def test_with_every_weight_salun_is_random_labels(world, flat, kind, order, exclude):
    common = {**ROUGH, "lr": 0.01, "order": order, "exclude_true_label": exclude, "alpha": 0.7}
    config = SalUnConfig(mask_fraction=1.0, mask_kind=kind, **common)
    got = salun(world.model, **world.sets, config=config, seed=2)
    plain = random_label(world.model, **world.sets, config=RandomLabelConfig(**common), seed=2)
    assert torch.equal(flat(got), flat(plain))
    half = salun(world.model, **world.sets, config=dataclasses.replace(config, mask_fraction=0.5), seed=2)
    assert not torch.equal(flat(half), flat(plain))


def test_salun_moves_the_salient_weights_and_no_other(world):
    config = SalUnConfig(lr=0.02, mask_fraction=0.3, **ROUGH)
    mask = saliency_mask(world.model, world.forget, retain=world.retain, fraction=0.3)
    got = salun(world.model, **world.sets, config=config, seed=0)
    assert moved_outside(got, world.model, mask) == 0
    assert moved_inside(got, world.model, mask) > 0.9 * sum(int(m.sum()) for m in mask.values())


def test_soft_threshold_is_its_definition():
    draws = torch.Generator().manual_seed(0)
    start = {"a": torch.randn(3, 4, generator=draws), "b": torch.randn(8, generator=draws)}
    now = {name: p + 0.1 * torch.randn(p.shape, generator=draws) for name, p in start.items()}
    for done, total, fraction in [(1, 4, 0.5), (2, 4, 0.5), (4, 4, 0.5), (1, 2, 0.2), (1, 4, 1.0)]:
        found = {name: p.clone() for name, p in now.items()}
        soft_threshold(start, fraction=fraction)(found, done, total)
        rank = int((1 - fraction) * 20 * (1 - done / total))
        every = sorted(float((now[n] - start[n]).flatten()[i].abs()) for n in now for i in range(now[n].numel()))
        tau = every[rank - 1] if rank else 0.0
        back = 0
        for name, p in now.items():
            delta = p - start[name]
            expected = start[name] + torch.sign(delta) * (delta.abs() - tau).clamp(min=0)
            torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-7)
            back += int((found[name] == start[name]).sum())
        assert back == rank  # to the bit


def test_soft_threshold_of_stacked_models_is_that_of_each():
    draws = torch.Generator().manual_seed(1)
    start = {"a": torch.randn(3, 4, generator=draws), "b": torch.randn(5, generator=draws)}
    many = {name: p + torch.randn(2, *p.shape, generator=draws) for name, p in start.items()}
    project = soft_threshold(start, fraction=0.3)
    alone = [{name: p[m].clone() for name, p in many.items()} for m in range(2)]
    for one in alone:
        project(one, 1, 3)
    project(many, 1, 3)
    assert all(torch.equal(many[name][m], alone[m][name]) for m in range(2) for name in start)


def test_the_soft_share_that_is_put_back_fades_out(world):
    def share(epochs: int, momentum: float) -> float:
        config = SalUnConfig(lr=0.01, mask_kind="soft", epochs=epochs, momentum=momentum, batch=400, order="mixed")
        got = salun(world.model, **world.sets, config=config, seed=0)
        own = dict(got.named_parameters())
        pairs = [(own[n] == p).float().flatten() for n, p in world.model.named_parameters()]
        return float(torch.cat(pairs).mean())

    assert share(1, 0.0) < 0.3  # one step of one: none is put back but dead units


def test_salun_refuses_what_it_is_not_defined_for(world):
    with pytest.raises(ConfigError, match="> 0 and <= 1"):
        SalUnConfig(mask_fraction=0.0)
    with pytest.raises(ConfigError, match="'hard', 'soft'"):
        SalUnConfig(mask_kind="other")


# ---- around others -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["finetune", "gradient_ascent", "influence_unlearning"])
def test_the_mask_around_another_unlearner(world, flat, name):
    fields = fields_of(name)
    plain = unlearner.get(name)(
        world.model, **world.sets, config=unlearner.get(name).spec.config.from_mapping(fields), seed=1
    )
    chosen = {"unlearner": {"name": name, "config": fields}}
    whole = SaliencyMaskedConfig.from_mapping({**chosen, "mask_fraction": 1.0})
    assert torch.equal(flat(saliency_masked(world.model, **world.sets, config=whole, seed=1)), flat(plain))
    part = SaliencyMaskedConfig.from_mapping({**chosen, "mask_fraction": 0.4})
    mask = saliency_mask(world.model, world.forget, retain=world.retain, fraction=0.4)
    got = saliency_masked(world.model, **world.sets, config=part, seed=1)
    assert moved_outside(got, world.model, mask) == 0 and moved_inside(got, world.model, mask) > 0


def test_salun_is_the_mask_around_random_labels(world, flat):
    fields = {**ROUGH, "lr": 0.01}
    config = SaliencyMaskedConfig.from_mapping({"unlearner": {"name": "random_label", "config": fields}})
    around = saliency_masked(world.model, **world.sets, config=config, seed=4)
    own = salun(world.model, **world.sets, config=SalUnConfig(**fields), seed=4)
    assert torch.equal(flat(around), flat(own))


def test_what_the_mask_cannot_be_put_around(world):
    config = SaliencyMaskedConfig.from_mapping({"unlearner": "retrain"})
    with pytest.raises(NotApplicable, match="takes no mask"):
        saliency_masked(world.model, **world.sets, config=config, seed=0)
    with pytest.raises(UnknownName):
        saliency_masked(
            world.model, **world.sets, config=SaliencyMaskedConfig.from_mapping({"unlearner": "nobody"}), seed=0
        )
    with pytest.raises(ConfigError, match=r"unlearner: .*lr"):
        SaliencyMaskedConfig.from_mapping({"unlearner": {"name": "finetune", "config": {"lr": 0.0}}})
    assert [(r.kind, r.name) for r in references(config)] == [("unlearner", "retrain")]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("salun", {"mask_fraction": 0.3}),
        ("salun", {"mask_kind": "soft", "order": "mixed"}),
        ("l1_sparse", {"gamma": 1e-3, "prune_to": 0.5, "epochs": 4}),
        ("boundary_shrink", {}),
    ],
)
def test_many_at_once_are_each_as_alone(world, flat, name, fields):
    # what shadow runs do: the projections work on views of stacked weights
    spec, model = unlearner.get(name).spec, copy.deepcopy(world.model).double()
    config = spec.config.from_mapping({**ROUGH, "lr": 0.01, **fields})
    plans = [spec.plan(model, **world.sets, config=config, seed=s) for s in range(3)]
    many = descend_many(plans, progress=silent, path="mlp")
    for seed, found in enumerate(many):
        alone = descend(spec.plan(model, **world.sets, config=config, seed=seed), progress=silent)
        torch.testing.assert_close(flat(found), flat(alone), rtol=1e-7, atol=1e-9)
        assert torch.equal(flat(found) == flat(model), flat(alone) == flat(model))  # the same weights are held
        assert torch.equal(flat(found) == 0, flat(alone) == 0)  # and pruned
