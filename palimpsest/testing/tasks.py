"""What a task does: one loss and four numbers an example, whatever its neighbours in a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from contracts.errors import DataError
from contracts.registry import Method
from palimpsest.testing.conform import claim
from palimpsest.testing.world import World
from recipes.inputs import Inputs, model_dtype
from recipes.predict import eval_mode, read
from tasks.base import READING


def readings(world: World, method: Method[Any]) -> None:
    """Finite float64 (N, 4), quality in 0..1, the same twice, alone and in a batch."""
    data, model = world.examples, world.needs["model"]
    whole, again, alone = (read(model, data, batch=batch).values for batch in (64, 64, 1))
    claim(whole.shape == (len(data), len(READING)), f"readings {whole.shape}, not ({len(data)}, {len(READING)})")
    claim(np.array_equal(whole, again), "a reading is not the same twice: what is drawn is to be seeded by the example")
    scale = np.maximum(np.abs(whole).max(0), 1e-12)
    apart = (np.abs(whole - alone) / scale).max(0)
    worst = READING[int(apart.argmax())]
    claim(apart.max() < 1e-3, f"{worst} of an example depends on its neighbours in the batch ({apart.max():.2g})")
    quality = read(model, data).quality
    claim((quality >= 0).all() and (quality <= 1).all(), "quality leaves 0..1")
    claim(read(model, data).signal.std() > 0, "one signal for everybody")


def losses(world: World, method: Method[Any]) -> None:
    """(B,) with a gradient, the same alone and in a batch, and lower after training."""
    data, model, task = world.train, world.needs["model"], world.examples.task
    inputs = Inputs(data, dtype=model_dtype(model))
    with eval_mode(model):
        found = task.losses(model, inputs.slice(0, len(data)))
        claim(tuple(found.shape) == (len(data),), f"losses {tuple(found.shape)}, not ({len(data)},)")
        gradients = torch.autograd.grad(found.sum(), [p for p in model.parameters()], allow_unused=True)
        claim(any(g is not None and bool(g.abs().max() > 0) for g in gradients), "the loss has no gradient")
        alone = torch.cat([task.losses(model, inputs.slice(b, b + 1)) for b in range(len(data))])
        claim(torch.allclose(found, alone, rtol=1e-3, atol=1e-5), "the loss of an example depends on its neighbours")
    fresh = world.trainer.build(0)
    before, after = (float(read(m, data).loss.mean()) for m in (fresh, model))
    claim(after < before, f"training raised the mean loss of the training examples from {before:.3g} to {after:.3g}")


def data_side(world: World, method: Method[Any]) -> None:
    """Targets are checked, strata and constants are of the whole, and a constant answer has a quality in 0..1."""
    data, task = world.examples, world.examples.task
    task.check(data)
    strata = task.strata(data.x, data.y, data.example_id)
    claim(strata.shape == (len(data),) and strata.dtype.kind == "i", f"strata {strata.dtype} {strata.shape}")
    few = data.subset(data.example_id[: len(data) // 2])
    for name, value in data.constants.items():
        claim(np.array_equal(value, few.constants[name]), f"constant {name} is another for a part of the data")
    claim(0 <= task.constant_quality(data) <= 1, "constant_quality leaves 0..1")
    claim(len(task.target_digest(data.y)) == len(data), "target_digest has not one entry an example")
    if world.spoil is None:
        return
    victim = int(data.example_id[3])
    for end in ("below", "above"):
        try:
            task.check_targets(world.spoil(data, victim, end))
        except DataError as error:
            claim(victim in getattr(error, "example_ids", ()), f"check_targets does not name example {victim}: {error}")
        else:
            raise AssertionError(f"check_targets takes a target {end} its range")
