"""How many of PyTorch's threads a step of training takes.

A step of a small network lasts less than a millisecond, and its threads wait for one another after every operation. On
a quiet machine a second thread gains little; where another program wants its core, every wait lasts until that is done.
On two cores, time with one thread over time with two, quiet and beside one busy process:

    MLP 64-128-10, 64 examples            0.99    0.26         MLP 784-512-10, 256 examples     1.8     0.55
    MLP 784-128-10, 128 examples          1.35    0.30         16 MLPs 64-64-10 at once         1.65    0.40

Sizes decide, never a clock: the same seed gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

WORTH = 100_000_000  # multiplications in a step, below which it takes one thread


@contextmanager
def threads_for(model: nn.Module, *, examples: int, models: int = 1) -> Iterator[None]:
    """One thread for the block where its steps are small; afterwards as many as before.

    Args:
        model: what is trained. A step of matrices alone takes three multiplications a weight and example forwards and
            backwards; of other networks (convolutions, attention) the size is not told by their weights, and nothing
            is changed.
        examples: of a step. ``models``: networks like this one in it.
    """
    before = torch.get_num_threads()
    if before > 1 and _multiplications(model) * examples * models < WORTH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _multiplications(model: nn.Module) -> float:
    """Of one example, forwards and backwards; infinite where the weights do not tell."""
    size = 0
    for module in model.modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if own and not isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm | nn.BatchNorm1d):
            return float("inf")
        size += own if isinstance(module, nn.Linear) else 0
    return 3.0 * size
