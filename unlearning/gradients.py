"""Gradients of the task's loss at a trained model, in eval mode: of a whole set, summed, and of each example.

    summed     sum_i grad_theta l(theta; x_i, y_i)         one backward pass a batch, added up in float64
    of rows    grad_theta l(theta; x_i, y_i), each         (n, d); d: weights that require a gradient, one after another

A model is asked as ``descent.start`` has made it ready, so that a number to predict is in the units in which it is
descended. Where examples are arrays and the loss is one of the model's answer, the gradients of many examples are taken
at once; else (texts, nodes, interactions) one example after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from contracts.errors import Diverged
from recipes.continual.fisher import per_example_gradients
from recipes.fitting import Units
from recipes.inputs import Inputs
from recipes.predict import eval_mode
from tasks.base import OutputTask
from unlearning.descent import in_units, trainable

_BATCH = 512  # examples a backward pass; changes rounding and memory only
_BLOCK = 64  # examples whose single gradients are asked for together


def summed_gradient(student: nn.Module, inputs: Inputs, *, units: Units | None) -> dict[str, Tensor]:
    """The gradient of the sum of all losses, float64, by name of parameter; zeros for no examples.

    Args:
        student: on the device of ``inputs``; its mode is as before after the call.
        units: as ``descent.start`` has given them.

    Raises:
        Diverged: a gradient is not finite.
    """
    own = trainable(student)
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in own.items()}
    with eval_mode(student), torch.enable_grad():
        for start in range(0, len(inputs), _BATCH):
            batch = in_units(inputs.slice(start, min(start + _BATCH, len(inputs))), units)
            loss = inputs.data.task.losses(student, batch).sum()
            for name, g in zip(own, torch.autograd.grad(loss, list(own.values()), allow_unused=True), strict=True):
                if g is not None:
                    total[name] += g
    for name, g in total.items():
        if not bool(torch.isfinite(g).all()):
            raise Diverged(f"the gradient of {name} at the model before unlearning is not finite")
    return total


def gradient_rows(student: nn.Module, inputs: Inputs, rows: Sequence[int], *, units: Units | None) -> Tensor:
    """The gradient of each example's own loss, (n, d) in the model's dtype, in the order of ``rows``.

    Args:
        rows: positions in ``inputs``.
        student, units: as of :func:`summed_gradient`.

    Raises:
        Diverged: a gradient is not finite.
    """
    own = trainable(student)
    size = sum(p.numel() for p in own.values())
    found = torch.empty(len(rows), size, dtype=next(iter(own.values())).dtype, device=inputs.device)
    places = torch.as_tensor(rows, dtype=torch.int64, device=inputs.device)
    filled = 0
    with eval_mode(student):
        for piece in places.split(_BLOCK):
            for gradients in _each(student, own, inputs, piece, units):
                flat = torch.cat([gradients[name].flatten(1) for name in own], dim=1)
                found[filled : filled + len(flat)] = flat
                filled += len(flat)
    if not bool(torch.isfinite(found).all()):
        raise Diverged("a gradient of an example at the model before unlearning is not finite")
    return found


def _each(
    student: nn.Module, own: dict[str, nn.Parameter], inputs: Inputs, rows: Tensor, units: Units | None
) -> Iterator[dict[str, Tensor]]:
    """name -> gradients (b, *shape) of the examples of a block."""
    task = inputs.data.task
    batch = in_units(inputs.batch(rows), units)
    arrays = isinstance(batch.inputs, Tensor) and isinstance(batch.targets, Tensor)
    if isinstance(task, OutputTask) and arrays and not getattr(inputs.data.x, "shared", None):
        yield from per_example_gradients(
            student,
            [(batch.inputs, batch.targets)],
            loss_of=lambda outputs, target: task.losses_of(outputs, target).sum(),
            names=list(own),
        )
        return
    for row in rows.split(1):
        with torch.enable_grad():
            loss = task.losses(student, in_units(inputs.batch(row), units)).sum()
            gradients = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
        yield {
            name: torch.zeros_like(p)[None] if g is None else g[None]
            for (name, p), g in zip(own.items(), gradients, strict=True)
        }
