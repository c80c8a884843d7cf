"""Logits of a model on an example set, in eval mode, batch by batch: memory is bounded by the batch, not by N."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import numpy as np
import torch
from torch import nn

from contracts.errors import DataError
from recipes.inputs import Inputs, model_device, model_dtype
from sources.example_set import ExampleSet
from sources.payloads.tokens import NOT_COUNTED
from tasks.base import READING, OutputTask, Reading, require, respond

M = TypeVar("M", bound=nn.Module)
_AT_ONCE, _PIXELS = 1024, 2**18  # examples of a batch; pixels, where an answer is one a pixel


def examples_at_once(data: ExampleSet) -> int:
    """Examples read at a time when nobody says: fewer where a model holds whole maps of each.

    >>> from sources.brick_walls import brick_walls, BrickWallsConfig
    >>> walls = brick_walls(config=BrickWallsConfig(size=64, num_train=2, num_test=2, num_other=0), seed=0)
    >>> examples_at_once(walls)
    64
    """
    if not data.task.gives("pixels"):
        return _AT_ONCE
    return max(1, min(_AT_ONCE, _PIXELS // math.prod(data.input_shape[1:])))


def predict_logits(model: nn.Module, data: ExampleSet, *, batch: int | None = None) -> np.ndarray:
    """Model outputs for every row of ``data``, in its order.

    Args:
        model: on any device; its train/eval state (of every submodule) is as before after the call.
        data: N examples.
        batch: examples at a time, :func:`examples_at_once` when None; changes memory and speed only.

    Returns:
        float32 (N, K): logits, or (N, 1) predictions for regression, or (N, K, H, W) of pixels. Readers convert to
        float64.

    Raises:
        DataError: outputs that are not finite, naming the examples.
    """
    inputs = Inputs(data, dtype=model_dtype(model), device=model_device(model), preload_bytes=0)
    return logits_of(model, inputs, batch=batch)


def logits_of(model: nn.Module, inputs: Inputs, *, batch: int | None = None) -> np.ndarray:
    """As :func:`predict_logits`, on inputs that may already be in memory."""
    parts = [outputs for _, outputs in outputs_of(model, inputs, batch=batch)]
    logits = np.concatenate(parts) if parts else np.empty((0, *inputs.data.task.output_shape(inputs.data)), np.float32)
    _refuse_broken(~np.isfinite(logits).all(axis=tuple(range(1, logits.ndim))), inputs.data)
    return logits


def outputs_of(model: nn.Module, inputs: Inputs, *, batch: int | None) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, outputs float32 (B, K)) in order, in eval mode; whether they are finite is for the caller to see."""
    # Not inference_mode: a module that caches a tensor on its first call must stay trainable.
    step = batch or examples_at_once(inputs.data)
    with eval_mode(model), torch.no_grad():
        for start in range(0, len(inputs), step):
            rows = slice(start, min(start + step, len(inputs)))
            said: torch.Tensor = respond(model, inputs.block(rows.start, rows.stop))
            yield rows, said.to(torch.float32).cpu().numpy()


def read(model: nn.Module, data: ExampleSet, *, batch: int | None = None) -> Reading:
    """The task's four numbers of every row of ``data``, in its order: (N, 4).

    Args:
        model: on any device; its train/eval state is as before after the call.
        batch: examples at a time, :func:`examples_at_once` when None; changes memory and speed only.

    Raises:
        DataError: a reading that is not finite, naming the examples.
    """
    inputs = Inputs(data, dtype=model_dtype(model), device=model_device(model), preload_bytes=0)
    return reading_of(model, inputs, batch=batch)


def read_with_outputs(model: nn.Module, data: ExampleSet, *, outputs: bool) -> tuple[Reading, np.ndarray | None]:
    """:func:`read`, and the outputs (N, K) behind it when they are asked for, in one pass.

    Raises:
        DataError: as :func:`read`.
    """
    if not outputs:
        return read(model, data), None
    said = predict_logits(model, data)
    return reading_of_outputs(data, said), said


def reading_of_outputs(data: ExampleSet, outputs: np.ndarray) -> Reading:
    """The four numbers of known outputs (..., N, K) on every row of ``data``, of an ``OutputTask``."""
    return cast(OutputTask, data.task).reading_of(outputs, data.targets(slice(None)), data.constants)


def reading_of(model: nn.Module, inputs: Inputs, *, batch: int | None = None) -> Reading:
    """As :func:`read`, on inputs that may already be in memory."""
    data, values = inputs.data, np.empty((len(inputs), len(READING)))
    step = batch or examples_at_once(data)
    # Outputs that are not finite are refused below, by their readings.
    with eval_mode(model), torch.no_grad(), np.errstate(all="ignore"):
        for start in range(0, len(inputs), step):
            stop = min(start + step, len(inputs))
            values[start:stop] = data.task.read(model, inputs.slice(start, stop)).values
    return finite_reading(values, data)


def read_tokens(model: nn.Module, data: ExampleSet, *, factor: float = 1.0, batch: int = 64) -> np.ndarray:
    """What a model says of every token of every row of ``data``: (N, T, 3) float32, T the longest text's, NaN where a
    token does not count; see ``tasks.base.Task.read_tokens``.

    Args:
        model: on any device; its train/eval state is as before after the call.
        factor: by which all logits are multiplied.
        batch: texts at a time; changes memory and speed only.

    Raises:
        NotApplicable: the examples are no sequences of tokens.
        DataError: a counted token of which something is not finite, naming the examples.
    """
    require(data, "what reads single tokens", "tokens")
    inputs = Inputs(data, dtype=model_dtype(model), device=model_device(model), preload_bytes=0)
    values = np.full((len(data), data.x.shape[1], 3), np.nan, np.float32)
    broken = np.zeros(len(data), bool)
    with eval_mode(model), torch.no_grad(), np.errstate(all="ignore"):
        for start in range(0, len(data), batch):
            some = inputs.slice(start, min(start + batch, len(data)))
            said = data.task.read_tokens(model, some, factor=factor)
            rows = slice(start, start + len(said))
            values[rows, : said.shape[1]] = said
            counts = (data.targets(rows) != NOT_COUNTED) & (np.arange(said.shape[1]) > 0)
            broken[rows] = (~np.isfinite(said).all(axis=-1) & counts).any(axis=1)
    _refuse_broken(broken, data)
    return values


def token_logits(
    model: nn.Module, data: ExampleSet, *, most: int = 2**25, batch: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """The logits (P, V) float32 behind the counted tokens (P,) int64 of ``data``: all, or every k-th of them, so that
    these are at most ``most`` numbers (one token at least).

    Args:
        model: on any device; its train/eval state is as before after the call.
        batch: texts at a time; changes memory and speed only.

    Raises:
        NotApplicable: the examples are no sequences of tokens.
        DataError: there is no counted token.
    """
    require(data, "what reads single tokens", "tokens")
    inputs = Inputs(data, dtype=model_dtype(model), device=model_device(model), preload_bytes=0)
    total = int((data.targets(slice(None))[:, 1:] != NOT_COUNTED).sum()) if len(data) else 0
    if not total:
        raise DataError(f"{data.name}: no token is counted")
    logits, tokens, seen, apart = [], [], 0, 1
    with eval_mode(model), torch.no_grad(), np.errstate(all="ignore"):
        for start in range(0, len(data), batch):
            some = inputs.slice(start, min(start + batch, len(data)))
            for said, own, _ in data.task.token_logits(model, some):
                apart = max(1, math.ceil(total * said.shape[1] / most))
                at = np.flatnonzero((seen + np.arange(len(own))) % apart == 0)
                logits.append(said[at])
                tokens.append(own[at])
                seen += len(own)
    return np.concatenate(logits), np.concatenate(tokens)


def finite_reading(values: np.ndarray, data: ExampleSet) -> Reading:
    """The reading (N, 4) of every row of ``data``.

    Raises:
        DataError: a value that is not finite, naming the examples.
    """
    _refuse_broken(~np.isfinite(values).all(axis=1), data)
    return Reading(values)


def not_finite(broken: np.ndarray, data: ExampleSet) -> DataError:
    """The error about outputs on the examples in a mask (N,)."""
    return DataError(
        f"the model's outputs on {int(broken.sum())} of {len(data)} examples are not finite",
        example_ids=data.example_id[broken],
    )


def _refuse_broken(broken: np.ndarray, data: ExampleSet) -> None:
    if broken.any():
        raise not_finite(broken, data)


@contextmanager
def eval_mode(model: M) -> Iterator[M]:
    """The model, in eval mode inside; afterwards every submodule is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
