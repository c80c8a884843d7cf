"""Examples as a model takes them, a tensor or named ones: how many there are, some of them, and what a model answers.

Every tensor has the batch as its first axis. Inputs that examples share (the edges of a graph) are not for here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from contracts.errors import NotApplicable
from tasks.base import respond


def num_of(x: Any) -> int:
    """B."""
    return num_of(next(iter(x.values()))) if isinstance(x, dict) else len(x)


def rows_of(x: Any, rows: slice | Tensor) -> Any:
    """The examples ``rows``, of a tensor (B, ...) or of each of a dict of them."""
    return {name: rows_of(values, rows) for name, values in x.items()} if isinstance(x, dict) else x[rows]


def batch_of_one(example: Any) -> Any:
    """One example without its batch axis as a batch."""
    return {name: batch_of_one(v) for name, v in example.items()} if isinstance(example, dict) else example[None]


def split(x: Any, y: Any, step: int) -> Iterator[tuple[Any, Any]]:
    """Inputs and targets, ``step`` examples at a time."""
    for start in range(0, num_of(x), step):
        rows = slice(start, start + step)
        yield rows_of(x, rows), rows_of(y, rows)


def answer(model: nn.Module, x: Any) -> Tensor:
    """What the model says of the examples: a tensor, or the field ``logits`` of what it returns.

    Raises:
        NotApplicable: neither, or not one row an example.
    """
    found = respond(model, x)
    logits = found if isinstance(found, Tensor) else getattr(found, "logits", None)
    num = num_of(x)
    if not isinstance(logits, Tensor) or logits.dim() < 2 or len(logits) != num:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(found).__name__
        raise NotApplicable(f"the model gives {shape} for {num} examples; outputs of shape ({num}, ...) are needed")
    return logits


def alone(model: nn.Module, x: Any) -> Tensor:
    """As :func:`answer`, one example at a time."""
    return torch.cat([answer(model, rows_of(x, slice(b, b + 1))) for b in range(num_of(x))])
