"""What a model sees in an example: its penultimate activations, the input of its last linear layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contracts.errors import DataError, NotApplicable
from recipes.inputs import Inputs, model_device, model_dtype
from recipes.predict import eval_mode
from sources.example_set import ExampleSet
from tasks.base import respond


def last_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the output layer: the last ``nn.Linear`` in order of registration.

    Raises:
        NotApplicable: the model has none.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not found:
        raise NotApplicable(f"{type(model).__name__} has no linear output layer, so no penultimate activations")
    return found[-1]


def over_features(num_features: int, num_classes: int) -> nn.Module:
    """A model whose penultimate activations are its inputs: features that were stored with a model's outputs, as they
    are."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(num_features, num_classes)).requires_grad_(False).eval()
    for value in model.parameters():
        nn.init.zeros_(value)
    return model


@contextmanager
def embedder(model: nn.Module) -> Iterator[Callable[[Any], Tensor]]:
    """Inside the block: inputs of B examples -> their penultimate activations (B, d), with gradient, in the mode that
    the model is in. The output layer has no part in them. Nothing is left in the model afterwards.

    Raises:
        NotApplicable: the model has no linear output layer, or (as it is called) calls it other than once on (B, d).
    """
    _, head = last_linear(model)
    seen: list[Tensor] = []

    def embed(inputs: Any) -> Tensor:
        seen.clear()
        said = respond(model, inputs)
        if len(seen) != 1 or seen[0].shape != (len(said), head.in_features):
            raise NotApplicable(f"{type(model).__name__} does not call its output layer once on (B, d)")
        return seen.pop()

    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield embed
    finally:
        handle.remove()


def embeddings(model: nn.Module, data: ExampleSet, *, batch: int = 1024) -> np.ndarray:
    """Penultimate activations of every row of ``data``, in its order; eval mode, no gradient.

    Args:
        model: on any device; every submodule's train/eval state is as before after the call.
        data: N examples.
        batch: examples at a time; changes memory and speed only.

    Returns:
        float32 (N, d).

    Raises:
        NotApplicable: the model has no linear output layer, or calls it other than once on (B, d).
        DataError: activations that are not finite, naming the examples.
    """
    inputs = Inputs(data, dtype=model_dtype(model), device=model_device(model), preload_bytes=0)
    _, head = last_linear(model)
    out = np.empty((len(data), head.in_features), np.float32)
    with eval_mode(model), torch.no_grad(), embedder(model) as embed:
        for start in range(0, len(data), batch):
            rows = slice(start, min(start + batch, len(data)))
            out[rows] = embed(inputs.block(rows.start, rows.stop)).to(torch.float32).cpu().numpy()
    broken = ~np.isfinite(out).all(axis=1)
    if broken.any():
        raise DataError(
            f"the model's activations on {int(broken.sum())} examples are not finite",
            example_ids=data.example_id[broken],
        )
    return out
