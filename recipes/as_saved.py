"""What is audited is what can be saved: a method's result, written down, loaded into a fresh network of the plan, then
read.

    arrays of the result -> fresh = build(0), arrays loaded -> outputs of fresh = outputs of the result, bit for bit

A wrapper around the old model, a table of answers, a hook, a patched forward: what does not survive this lives beside
the weights. It can hide a model that was never changed, and it is not what would be deployed from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from contracts.errors import Diverged, InvalidInput, NotTheModel
from recipes.checkpoints import load_arrays, to_arrays
from recipes.inputs import Inputs, model_device, model_dtype
from recipes.predict import eval_mode, not_finite
from sources.example_set import ExampleSet
from tasks.base import READING, OutputTask, Reading, answers

_BATCH = 1024  # examples at a time, as ``recipes.predict`` reads them


def as_saved(
    result: object, build: Callable[[int], nn.Module], data: ExampleSet, *, what: str, outputs: bool = False
) -> tuple[nn.Module, Reading, np.ndarray | None]:
    """A fresh model with the result's arrays, in eval mode, and its readings of ``data``.

    Args:
        result: what a method gave back.
        build: seed -> fresh model of the plan's architecture.
        data: the examples on which both must agree; at least those that the method knew.
        what: names the method in messages.
        outputs: give the outputs behind the readings too, of a task that gives whole outputs.

    Returns:
        The model on the result's device, readings (N, 4), and (N, K) float32 outputs or None.

    Raises:
        NotTheModel: not a network, other arrays than the plan's architecture has, or outputs that change.
        Diverged: weights or outputs are not finite.
    """
    fresh = reloaded(result, build, what=what)
    assert isinstance(result, nn.Module)  # as ``reloaded`` has found
    return fresh, *refuse_unlike(result, fresh, data, what=what, outputs=outputs)


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


def refuse_unlike(
    result: nn.Module, fresh: nn.Module, data: ExampleSet, *, what: str, outputs: bool = False
) -> tuple[Reading, np.ndarray | None]:
    """The readings of ``fresh`` on ``data``, and its outputs if asked for, when ``result`` answers the same, bit for
    bit.

    Batch by batch: memory is bounded by the batch, unless outputs are kept. Answers are compared where they are one
    vector an example, else readings are.

    Raises:
        NotTheModel: outputs that change.
        Diverged: outputs are not finite.
    """
    task = data.task
    inputs = Inputs(data, dtype=model_dtype(fresh), device=model_device(fresh), preload_bytes=0)
    values, kept = np.empty((len(data), len(READING))), []
    changed, broken = np.zeros(len(data), bool), np.zeros(len(data), bool)
    vectors = isinstance(task, OutputTask) and _vectors(result, fresh, inputs)
    with eval_mode(result), eval_mode(fresh), torch.no_grad(), np.errstate(all="ignore"):
        for start in range(0, len(data), _BATCH):
            rows = slice(start, min(start + _BATCH, len(data)))
            batch = inputs.slice(rows.start, rows.stop)
            said = None
            if vectors:
                before, after = (answers(model, batch) for model in (result, fresh))
                if all(torch.is_tensor(a) and a.ndim == 2 for a in (before, after)):
                    said = tuple(a.to(torch.float32).cpu().numpy() for a in (before, after))
            if said is None:
                said = tuple(task.read(model, batch).values for model in (result, fresh))
                values[rows] = said[1]
            else:
                values[rows] = task.reading_of(said[1], batch.targets.cpu().numpy(), batch.constants).values  # type: ignore[attr-defined]
                kept += [said[1]] if outputs else []
            if said[0].shape != said[1].shape:
                raise NotTheModel(_changed(what, "their shape"))
            own, theirs = (a.reshape(len(a), -1) for a in said)
            changed[rows] = (own != theirs).any(axis=1)
            broken[rows] = ~(np.isfinite(own) & np.isfinite(theirs)).all(axis=1)
    if broken.any():
        raise Diverged(f"{what}: {not_finite(broken, data)}")
    if changed.any():
        raise NotTheModel(_changed(what, f"{int(changed.sum())} of {len(data)} examples"))
    return Reading(values), np.concatenate(kept) if kept else None


def _vectors(result: nn.Module, fresh: nn.Module, inputs: Inputs) -> bool:
    """Whether both answer one vector an example, seen on one: answers of a language model to many texts at once, a
    number a word and token, would fill the memory for nothing."""
    if not len(inputs):
        return False
    with eval_mode(result), eval_mode(fresh), torch.no_grad():
        both = [answers(model, inputs.slice(0, 1)) for model in (result, fresh)]
    return all(torch.is_tensor(a) and a.ndim == 2 for a in both)


def _changed(what: str, on: str) -> str:
    return (
        f"what {what} gave back answers otherwise than its weights do: saved and loaded into a fresh model, outputs "
        f"change on {on}"
    )
