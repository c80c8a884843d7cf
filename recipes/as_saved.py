"""What is audited is what can be saved: a method's result, written down, loaded into a fresh network of the plan, then read.

    arrays of the result -> fresh = build(0), arrays loaded -> outputs of fresh = outputs of the result, bit for bit

A wrapper around the old model, a table of answers, a hook, a patched forward: what does not survive this lives beside the
weights. It can hide a model that was never changed, and it is not what would be deployed from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from contracts.errors import DataError, Diverged, InvalidInput, NotTheModel
from recipes.checkpoints import load_arrays, to_arrays
from recipes.inputs import model_device
from recipes.predict import predict_logits
from sources.example_set import ExampleSet


def as_saved(
    result: object, build: Callable[[int], nn.Module], data: ExampleSet, *, what: str
) -> tuple[nn.Module, np.ndarray]:
    """A fresh model with the result's arrays, in eval mode, and its outputs on ``data``.

    Args:
        result: what a method gave back.
        build: seed -> fresh model of the plan's architecture.
        data: the examples on which both must agree; at least those that the method knew.
        what: names the method in messages.

    Returns:
        The model on the result's device, and (N, K) float32 outputs.

    Raises:
        NotTheModel: not a network, other arrays than the plan's architecture has, or outputs that change.
        Diverged: weights or outputs are not finite.
    """
    fresh = reloaded(result, build, what=what)
    assert isinstance(result, nn.Module)  # as ``reloaded`` has found
    return fresh, refuse_unlike(result, fresh, data, what=what)


def reloaded(result: object, build: Callable[[int], nn.Module], *, what: str) -> nn.Module:
    """A fresh model with the result's arrays, on its device, both in eval mode.

    Raises:
        NotTheModel: not a network, or other arrays than the plan's architecture has.
        Diverged: weights are not finite.
    """
    if not isinstance(result, nn.Module):
        raise NotTheModel(f"{what} gave back a {type(result).__name__}, not a model")
    result.eval()
    fresh = build(0).to(model_device(result))
    arrays = to_arrays(result)
    if not all(np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f"):
        raise Diverged(f"{what} gave back weights that are not finite")
    try:
        load_arrays(fresh, arrays)
    except InvalidInput as error:
        raise NotTheModel(f"what {what} gave back has another structure than the plan's model: {error}") from error
    return fresh.eval()


def refuse_unlike(result: nn.Module, fresh: nn.Module, data: ExampleSet, *, what: str) -> np.ndarray:
    """The outputs (N, K) float32 of ``fresh`` on ``data``, when ``result`` gives the same, bit for bit.

    Raises:
        NotTheModel: outputs that change.
        Diverged: outputs are not finite.
    """
    try:
        before, after = predict_logits(result, data), predict_logits(fresh, data)
    except DataError as error:
        raise Diverged(f"{what}: {error}") from error
    if before.shape != after.shape or not np.array_equal(before, after):
        changed = (
            "their shape"
            if before.shape != after.shape
            else f"{int((before != after).any(axis=1).sum())} of {len(after)} examples"
        )
        raise NotTheModel(
            f"what {what} gave back answers otherwise than its weights do: saved and loaded into a fresh model, outputs change on {changed}"
        )
    return after
