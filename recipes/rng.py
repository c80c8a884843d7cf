"""Random numbers that leave no trace: every draw comes from a generator seeded by the caller.

Where PyTorch only knows its global generator (layer initialisation, dropout), the global state is saved, seeded
and put back, so that a caller's own random numbers are the same whether or not a model was built or trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(seed: int) -> torch.Generator:
    """A CPU generator of its own. ``seed`` is a whole number in [0, 2**63)."""
    return torch.Generator().manual_seed(seed)


@contextmanager
def local_rng(seed: int, *, device: torch.device | str = "cpu") -> Iterator[None]:
    """Inside the block PyTorch's global generators (CPU, and ``device`` if CUDA) start from ``seed``; after it they
    are exactly as before. ``torch.manual_seed`` is avoided: it would also reseed every other CUDA device."""
    device = torch.device(device)
    cuda = [] if device.type != "cuda" else [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(devices=cuda, enabled=True):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
