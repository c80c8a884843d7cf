"""Squared per-example gradient norms of any parameters, without closed forms: torch.func.vmap over grad.

Slow (memory is chunk x number of parameters) and general: tied weights, reused modules, unknown layers. Where an
operation has no batching rule, the examples of the batch are differentiated one after another: the same numbers.

Source: "Deep Learning on a Data Diet" (NeurIPS 2021); ``torch.func`` for the transform.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from scoring.grad_norms.examples import answer, batch_of_one, num_of, rows_of

_MAX_NUMBERS = 1 << 25  # gradients held at a time: 128 MiB in float32


def vmap_squared_norms(model: nn.Module, names: Sequence[str], x: Any, deltas: Tensor) -> dict[str, Tensor]:
    """Squared norms of d(logits_b . deltas_b) / d(parameter) for every example b.

    Args:
        model: in eval mode; takes ``x``.
        names: names in ``model.named_parameters()``; a tied weight counts once, with all its uses.
        x: inputs (B, ...), or a dict of them.
        deltas: (B, ...) gradient of each example's loss at the model's answer, held constant.

    Returns:
        name -> float64 (B,).
    """
    known = dict(model.named_parameters())
    parameters = {name: known[name].detach() for name in names}

    def contracted(values: dict[str, Tensor], example: Any, delta: Tensor) -> Tensor:
        one = batch_of_one(example)
        found = functional_call(model, values, *(((), one) if isinstance(one, dict) else ((one,),)))
        logits: Tensor = found if isinstance(found, Tensor) else found.logits
        return (logits[0] * delta).sum()

    num = num_of(x)
    chunk = max(1, min(num, _MAX_NUMBERS // max(1, sum(p.numel() for p in parameters.values()))))
    per_example = vmap(grad(contracted), in_dims=(None, 0, 0), chunk_size=chunk)
    try:
        with torch.no_grad(), warnings.catch_warnings():  # the parameters that are not asked for need no outer graph
            warnings.filterwarnings("ignore", "There is a performance drop")  # slow is what this path is for
            gradients = per_example(parameters, x, deltas)
    except RuntimeError:  # no batching rule (recurrent kernels, data-dependent control flow)
        return loop_squared_norms(model, names, x, deltas)
    return {name: _squared(g) for name, g in gradients.items()}


def loop_squared_norms(model: nn.Module, names: Sequence[str], x: Any, deltas: Tensor) -> dict[str, Tensor]:
    """As :func:`vmap_squared_norms`, one example at a time by plain autograd. Used where vmap cannot, and to verify."""
    known = dict(model.named_parameters())
    parameters = [known[name] for name in names]
    squared = torch.zeros(len(names), len(deltas), dtype=torch.float64, device=deltas.device)
    for b in range(len(deltas)):
        with torch.enable_grad():
            logits = answer(model, rows_of(x, slice(b, b + 1)))
        gradients = torch.autograd.grad(logits, parameters, deltas[b : b + 1], allow_unused=True)
        for row, g in zip(squared, gradients, strict=True):
            if g is not None:
                row[b] = _squared(g.to_dense()[None])[0]
    return dict(zip(names, squared, strict=True))


def _squared(gradients: Tensor) -> Tensor:
    """As ``squared_norm``, in float64 throughout: the slow path has no reason to round."""
    norm: Tensor = torch.linalg.vector_norm(gradients.flatten(1), dim=1, dtype=torch.float64)
    return norm.square()
