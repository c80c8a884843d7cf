"""The model inputs of an example set on one device: kept whole when they fit a stated bound, else read batch by batch.

Both ways give the same values: what ``ExampleSet.inputs`` gives, cast to the model's dtype.
"""

from __future__ import annotations

import copy
from math import prod

import torch
from torch import Tensor

from sources.example_set import ExampleSet

PRELOAD_BYTES = 2**30


class Inputs:
    """``gather(rows)`` and ``block(start, stop)`` of float inputs (B, *shape), and all targets.

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
        self.data, self.dtype = data, torch.int64 if data.task == "ranking" else dtype
        self.device = torch.device(device)
        size = data.num_examples * prod(data.input_shape) * self.dtype.itemsize
        self._all = self._read(slice(0, data.num_examples)) if size <= preload_bytes else None
        targets = torch.from_numpy(data.y.copy())
        if data.task == "regression":
            targets = targets.to(dtype)[:, None]
        self.targets = targets.to(self.device)

    def __len__(self) -> int:
        return self.data.num_examples

    def gather(self, rows: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Inputs of ``rows`` (int64 on the device), in that order; in ``out`` when that saves fresh memory."""
        if self._all is not None:
            return torch.index_select(self._all, 0, rows, out=out)
        return self._read(rows.cpu().numpy())

    def block(self, start: int, stop: int) -> Tensor:
        """Inputs of the rows ``start`` to ``stop`` (excluded)."""
        return self._read(slice(start, stop)) if self._all is None else self._all[start:stop]

    def with_targets(self, targets: Tensor) -> Inputs:
        """The same inputs with other targets, nothing copied."""
        other = copy.copy(self)
        other.targets = targets
        return other

    def _read(self, rows: object) -> Tensor:
        return torch.from_numpy(self.data.inputs(rows)).to(device=self.device, dtype=self.dtype)  # type: ignore[arg-type]


def model_device(model: torch.nn.Module) -> torch.device:
    """Where the parameters are; the CPU when there are none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def model_dtype(model: torch.nn.Module) -> torch.dtype:
    """The dtype of the first floating-point parameter; inputs are cast to it."""
    return next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
