"""The model inputs of an example set on one device: kept whole when they fit a stated bound, else read batch by batch.

Both ways give the same values: what ``ExampleSet.inputs`` gives, cast to the model's dtype. Examples that are no arrays
of one shape (texts, nodes, pairs) are always read batch by batch, their targets too; their inputs may be named tensors.
"""

from __future__ import annotations

import copy
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sources.example_set import ExampleSet
from sources.payloads.base import Payload
from tasks.base import Batch

PRELOAD_BYTES = 2**30


class Inputs:
    """``gather(rows)`` and ``block(start, stop)`` of inputs (B, *shape) or of named ones, and all targets; ``batch``
    has both.

    Args:
        data: the examples; rows are positions in it.
        dtype: of the model's parameters.
        device: where batches are wanted.
        preload_bytes: the inputs are read once and kept when they take no more than this, 1 GiB by default.
    """

    def __init__(
        self,
        data: ExampleSet,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        preload_bytes: int = PRELOAD_BYTES,
    ) -> None:
        # User indexes name rows: no float holds all of them.
        self.data, self.dtype = data, torch.int64 if data.x.dtype == np.int64 else dtype
        self.device = torch.device(device)
        self._all: Any = None
        self.targets: Any = None
        if not isinstance(data.x, Payload):
            size = data.num_examples * prod(data.input_shape) * self.dtype.itemsize
            self._all = self._read(slice(0, data.num_examples)) if size <= preload_bytes else None
            self.targets = data.task.target_tensor(data.targets(slice(None)), dtype).to(self.device)

    def __len__(self) -> int:
        return self.data.num_examples

    def gather(self, rows: Tensor, *, out: Tensor | None = None) -> Any:
        """Inputs of ``rows`` (int64 on the device), in that order; in ``out`` when that saves fresh memory."""
        if self._all is not None:
            return torch.index_select(self._all, 0, rows, out=out)
        return self._read(rows.cpu().numpy())

    def block(self, start: int, stop: int) -> Any:
        """Inputs of the rows ``start`` to ``stop`` (excluded)."""
        return self._read(slice(start, stop)) if self._all is None else self._all[start:stop]

    def batch(self, rows: Tensor) -> Batch:
        """The examples ``rows`` (int64 on the device) as a model and its task see them."""
        return self._batch(self.gather(rows), rows, rows.cpu().numpy())

    def slice(self, start: int, stop: int) -> Batch:
        """As :meth:`batch`, the rows ``start`` to ``stop`` (excluded)."""
        return self._batch(self.block(start, stop), slice(start, stop), slice(start, stop))

    def _batch(self, inputs: Any, rows: Tensor | slice, at: np.ndarray | slice) -> Batch:
        if self.targets is None:
            targets = self.data.task.target_tensor(self.data.targets(at), self.dtype).to(self.device)
        else:
            targets = self.targets[rows]
        return Batch(inputs, targets, torch.from_numpy(self.data.example_id[at]), self.data.constants)

    def with_targets(self, targets: Tensor) -> Inputs:
        """The same inputs with other targets, nothing copied."""
        other = copy.copy(self)
        other.targets = targets
        return other

    def _read(self, rows: Any) -> Any:
        return tensors(self.data.inputs(rows), dtype=self.dtype, device=self.device)


def tensors(values: Any, *, dtype: torch.dtype, device: torch.device | str) -> Any:
    """Inputs as arrays, or named ones, as tensors on a device: numbers in this precision, positions as they are."""
    if isinstance(values, dict):
        return {name: tensors(array, dtype=dtype, device=device) for name, array in values.items()}
    found = torch.from_numpy(values)
    return found.to(device, dtype=dtype if found.is_floating_point() else found.dtype)


def model_device(model: torch.nn.Module) -> torch.device:
    """Where the parameters are; the CPU when there are none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def model_dtype(model: torch.nn.Module) -> torch.dtype:
    """The dtype of the first floating-point parameter; inputs are cast to it."""
    return next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
