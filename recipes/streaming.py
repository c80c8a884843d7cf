"""Passing examples through models batch by batch, and averaging over models without keeping every value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contracts.errors import DataError, InvalidInput, NotApplicable
from recipes.inputs import Inputs, model_device, model_dtype, tensors
from sources.example_set import ExampleSet
from tasks.base import answers, require


def check(name: str, data: ExampleSet, models: Sequence[nn.Module], *, wants: Sequence[str] = ("classes",)) -> None:
    """Refuse what the score called ``name`` is not defined for, before any work.

    Raises:
        NotApplicable: a task that does not give the views in ``wants``.
        InvalidInput: no models.
    """
    require(data, name, *wants)
    if not models:
        raise InvalidInput(f"{name} needs at least one early model; early_models is empty")


def batches(data: ExampleSet, model: nn.Module, *, batch: int) -> Iterator[tuple[slice, Any, Tensor]]:
    """(rows, inputs, labels) in order, the last one partial, on the model's device and in its precision; inputs are a
    tensor, or named ones."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    for start in range(0, len(data), batch):
        rows = slice(start, min(start + batch, len(data)))
        y = torch.from_numpy(np.ascontiguousarray(data.y[rows])).to(like.device)
        # No name here for the inputs: who deletes theirs gives the memory back before the next batch is read. Two
        # batches alive at a time make the allocator hand pages back and fault them in again, up to a quarter of a pass
        # of an MLP.
        yield rows, tensors(data.inputs(rows), dtype=like.dtype, device=like.device), y


def check_outputs(name: str, data: ExampleSet, model: nn.Module) -> None:
    """Ask the model for one example, and refuse an answer that its task cannot use and targets that are none of the
    task's.

    Raises:
        NotApplicable: it does not give class logits (1, K) where the task has such, else no one loss an example.
        DataError: labels outside [0, K), or targets that are none of the task's; names the examples.
    """
    if not data.task.gives("outputs", "classes"):
        data.check_targets()
    if not len(data):
        return
    batch = Inputs(data.take(np.arange(1)), dtype=model_dtype(model), device=model_device(model)).slice(0, 1)
    if not data.task.gives("outputs", "classes"):
        with torch.no_grad():
            losses = data.task.losses(model, batch)
        if losses.shape != (1,):
            raise NotApplicable(
                f"{name}: the model's answer to one example has {losses.numel()} losses of a {data.task} task; one is "
                "needed"
            )
        return
    with torch.inference_mode():
        logits = answers(model, batch)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 1:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise NotApplicable(f"{name}: the model gives {shape} for one example; logits (1, K) are needed")
    outside = (data.y < 0) | (data.y >= logits.shape[1])
    if outside.any():
        raise DataError(
            f"{name}: labels outside 0..{logits.shape[1] - 1}, the model's outputs",
            example_ids=data.example_id[outside],
        )


def check_finite(name: str, what: str, data: ExampleSet, rows: slice, values: Tensor) -> None:
    """Refuse NaN and Inf in ``values`` (B, ...).

    Raises:
        DataError: names the examples.
    """
    # A sum is finite only where all of it is, and a tenth of the work; it may overflow where nothing is wrong.
    if bool(values.sum().isfinite()):
        return
    broken = ~values.flatten(1).isfinite().all(dim=1).cpu().numpy()
    if broken.any():
        raise DataError(f"{name}: NaN or infinite {what}", example_ids=data.example_id[rows][broken])


def tabulate(num: int, rows: Callable[[slice], Mapping[str, object]], *, block: int = 65_536) -> pl.DataFrame:
    """A frame of ``num`` rows made ``block`` at a time, NaN as null: the columns exist once, not also as arrays.

    >>> tabulate(3, lambda part: {"twice": np.arange(3.0)[part] * 2}, block=2)["twice"].to_list()
    [0.0, 2.0, 4.0]
    """
    starts = range(0, max(num, 1), block)
    return pl.concat([pl.DataFrame(rows(slice(s, min(s + block, num))), nan_to_null=True) for s in starts])


def in_order_of(frame: pl.DataFrame, data: ExampleSet) -> pl.DataFrame:
    """The rows of ``frame``, one an example by ascending id, in the order of ``data``."""
    ids = data.example_id
    return frame if (ids[1:] > ids[:-1]).all() else frame[np.argsort(np.argsort(ids))]


class Moments:
    """Mean, spread and standard error of (N,) values over R models, one model at a time (Welford)."""

    def __init__(self, num_examples: int) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(num_examples)
        self._m2: NDArray[np.float64] = np.zeros(num_examples)

    def add(self, values: NDArray[np.float64]) -> None:
        self.count += 1
        before = values - self.mean
        self.mean += before / self.count
        self._m2 += before * (values - self.mean)

    @property
    def std(self) -> pl.Series:
        """Sample standard deviation (R - 1); null for a single model, which says nothing about the spread."""
        if self.count < 2:
            return pl.repeat(None, len(self.mean), dtype=pl.Float64, eager=True)
        return pl.Series(np.sqrt(self._m2 / (self.count - 1)))

    @property
    def stderr(self) -> pl.Series:
        """Standard error of the mean, std / sqrt(R); null for a single model."""
        return self.std / float(np.sqrt(self.count))
