"""Boundary expanding cuts its extra class off again; boundary shrinking steps on pixels."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from contracts.digests import derive_seed
from contracts.errors import NotApplicable
from palimpsest.testing.worlds import images
from recipes.as_saved import as_saved
from recipes.models import builder
from recipes.predict import predict_logits
from unlearning.boundary_expand import BoundaryExpandConfig, boundary_expand, output_layer
from unlearning.boundary_shrink import BoundaryShrinkConfig, boundary_shrink, nearest_labels, value_range
from unlearning.gradient_ascent import GradientAscentConfig, gradient_ascent


@pytest.fixture(scope="module")
def pictures():
    world = images()
    train = world.train.by_id()
    return world.needs["model"], train.take(np.arange(10, len(train))), train.take(np.arange(10))


def test_before_any_step_the_first_logits_are_those_of_the_model(world):
    got = boundary_expand(world.model, **world.sets, config=BoundaryExpandConfig(epochs=0), seed=0)
    assert np.array_equal(predict_logits(got, world.test), predict_logits(world.model, world.test))
    assert got.head.weight.shape == world.model.head.weight.shape


def test_the_result_is_a_plain_model_that_reloads(world):
    config = BoundaryExpandConfig(lr=0.02, epochs=4, batch=8)
    got = boundary_expand(world.model, **world.sets, config=config, seed=0)
    build = builder("mlp", {"hidden": (16,)}, input_shape=(6,), num_outputs=4)
    assert type(got.head) is nn.Linear
    fresh, _, _ = as_saved(got, build, world.test, what="boundary_expand")
    assert np.array_equal(predict_logits(fresh, world.test), predict_logits(got, world.test))


def widened(world, *, lr: float, steps: int) -> nn.Module:
    """Plain descent of the cross-entropy to a fifth class, written out; the new row as the seed 0 draws it."""
    draws = torch.Generator().manual_seed(derive_seed("boundary_expand", "row", 0))
    row = (2 * torch.rand(16, generator=draws) - 1) / 4  # 1 / sqrt(16)
    wide, head = copy.deepcopy(world.model), nn.Linear(16, 5)
    with torch.no_grad():
        head.weight.copy_(torch.cat([world.model.head.weight, row[None]]))
        head.bias.copy_(torch.cat([world.model.head.bias, torch.zeros(1)]))
    wide.head = head
    x = torch.from_numpy(world.forget.inputs(np.argsort(world.forget.example_id)))
    for _ in range(steps):
        gradients = torch.autograd.grad(F.cross_entropy(wide(x), torch.full((len(x),), 4)), list(wide.parameters()))
        with torch.no_grad():
            for p, g in zip(wide.parameters(), gradients, strict=True):
                p.sub_(lr * g)
    return wide


def test_expanding_equals_a_naive_loop_on_a_wider_network(world):
    config = BoundaryExpandConfig(lr=0.02, epochs=3, batch=400, momentum=0.0, weight_decay=0.0)
    got = boundary_expand(world.model, **world.sets, config=config, seed=0)
    wide = widened(world, lr=0.02, steps=3)
    torch.testing.assert_close(got.head.weight, wide.head.weight[:4], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.hidden[0].weight, wide.hidden[0].weight, rtol=1e-4, atol=1e-6)
    other = boundary_expand(world.model, **world.sets, config=config, seed=1)
    assert not torch.equal(got.head.weight, other.head.weight)  # another new row


def test_a_model_that_calls_everything_the_extra_class_is_no_collapse(world):
    config = BoundaryExpandConfig(lr=0.1, epochs=12, batch=400, momentum=0.0, weight_decay=0.0)
    said = widened(world, lr=0.1, steps=12)(torch.from_numpy(world.retain.inputs(slice(None)))).argmax(1)
    assert (said == 4).float().mean() > 0.9  # judged with its fifth logit the model would be worthless
    got = boundary_expand(world.model, **world.sets, config=config, seed=0)
    assert (predict_logits(got, world.retain).argmax(1) == world.retain.y).mean() > 0.6


def test_expanding_needs_a_linear_output_layer(world):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(world.model)

        def forward(self, x):
            return 2 * self.net(x)

    with pytest.raises(NotApplicable, match="one linear layer"):
        boundary_expand(Scaled().eval(), **world.sets, config=BoundaryExpandConfig(), seed=0)
    assert output_layer(world.model, world.forget) == "head"
    assert all(not m._forward_hooks for m in world.model.modules())


@pytest.mark.parametrize("step", [0.1, 0.4])
def test_nearest_labels_are_one_step_on_the_stored_pixels(pictures, step):
    model, retain, forget = pictures
    within = value_range(retain, forget)
    assert (float(within.low), float(within.high), within.whole) == (0.0, 255.0, True)
    found = nearest_labels(model, forget, within=within, step=step)
    center, scale = (torch.from_numpy(np.asarray(v)) for v in (forget.center, forget.scale))
    for i in range(len(forget)):  # by_id already
        pixels = torch.from_numpy(np.asarray(forget.x[i : i + 1], np.float32)).requires_grad_()
        loss = F.cross_entropy(model((pixels - center) * scale), torch.from_numpy(forget.y[i : i + 1]))
        (gradient,) = torch.autograd.grad(loss, pixels)
        stepped = (pixels + 255 * step * gradient.sign()).clamp(0, 255).round()
        assert found[i] == int(model((stepped - center) * scale).argmax())
    still = nearest_labels(model, forget, within=within, step=0.0)
    assert np.array_equal(still, predict_logits(model, forget).argmax(1))


def test_the_step_goes_up_on_the_pixels_where_the_model_sees_them_mirrored(pictures):
    # 255 - v at scale -1/64 around 155 is v at scale 1/64 around 100: the model sees the same, and so does the attack
    model, retain, forget = pictures
    mirrored = {"center": np.full((1, 1, 1), 155, np.float32), "scale": np.full((1, 1, 1), -1 / 64, np.float32)}
    flipped = dataclasses.replace(forget, x=255 - forget.x, **mirrored)
    assert np.array_equal(flipped.inputs(slice(None)), forget.inputs(slice(None)))
    labels = [nearest_labels(model, data, within=value_range(retain), step=0.4) for data in (forget, flipped)]
    near = predict_logits(model, forget).argmax(1)
    assert (labels[0] != near).any()  # the step does cross boundaries
    assert (labels[0] == labels[1]).mean() >= 0.9  # halves are rounded to even, which is not symmetric


def test_a_stepped_byte_is_a_byte(pictures):
    class OfFractions(nn.Module):
        """Class 1 where a stored value is no whole number."""

        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(1e-6))

        def forward(self, x):
            stored = 64 * x + 100
            seen = torch.sin(torch.pi * stored).square().flatten(1).mean(1) + self.slope * x.flatten(1).mean(1)
            return torch.stack([torch.full_like(seen, 0.1), seen, torch.full_like(seen, -1.0)], dim=1)

    _, retain, forget = pictures  # 0.1 of 255 is 25.5
    labels = nearest_labels(OfFractions().double(), forget, within=value_range(retain), step=0.1)
    assert (labels == 0).all()
    numbers = dataclasses.replace(value_range(retain), whole=False)
    assert (nearest_labels(OfFractions().double(), forget, within=numbers, step=0.1) == 1).any()


def test_the_range_of_numbers_is_that_of_the_data(world):
    within = value_range(world.retain, world.forget)
    x = np.concatenate([world.retain.x, world.forget.x])
    assert not within.whole
    np.testing.assert_array_equal(within.low, x.min(0))
    np.testing.assert_array_equal(within.high, x.max(0))


def test_shrinking_moves_what_is_forgotten_to_the_nearest_class(world):
    config = BoundaryShrinkConfig(lr=0.005, epochs=20, batch=24, step=0.25)
    within = value_range(world.retain, world.forget)
    labels = nearest_labels(world.model, world.forget, within=within, step=0.25)
    order = np.argsort(world.forget.example_id)
    crossed = labels != world.forget.y[order]
    assert crossed.mean() > 0.2
    got = boundary_shrink(world.model, **world.sets, config=config, seed=0)
    said, before = (predict_logits(m, world.forget)[order].argmax(1) for m in (got, world.model))
    assert (said == labels).mean() > (before == labels).mean()
    # ... and is not ascent, nor does it touch what has not crossed more than it must
    up = gradient_ascent(world.model, **world.sets, config=GradientAscentConfig(lr=1e-3, epochs=5), seed=0)
    assert not torch.equal(got.head.weight, up.head.weight)


def test_shrinking_teaches_the_clean_example(world):
    # one step of plain SGD on the clean x with the label of the moved one; the mutant trains on the moved x
    config = BoundaryShrinkConfig(lr=0.1, epochs=1, batch=400, momentum=0.0, weight_decay=0.0)
    labels = nearest_labels(world.model, world.forget, within=value_range(world.retain, world.forget), step=0.1)
    twin = copy.deepcopy(world.model)
    x = torch.from_numpy(world.forget.inputs(np.argsort(world.forget.example_id)))
    gradients = torch.autograd.grad(F.cross_entropy(twin(x), torch.from_numpy(labels)), list(twin.parameters()))
    got = boundary_shrink(world.model, **world.sets, config=config, seed=0)
    for p, q, g in zip(got.parameters(), twin.parameters(), gradients, strict=True):
        torch.testing.assert_close(p, q - 0.1 * g, rtol=1e-5, atol=1e-7)
