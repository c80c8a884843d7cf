"""Models stopped early in training, one a seed: what EL2N and GraNd read (card 26, step 1).

Each is the full recipe (schedule included) left after some epochs, from its own initialisation and batch order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from contracts.errors import NotApplicable
from contracts.progress import Progress, silent
from recipes.models import Build
from recipes.schedule import SupervisedConfig
from recipes.stacked import Path, StackedTrainer
from sources.example_set import ExampleSet


def early_models(
    build: Build,
    data: ExampleSet,
    *,
    config: SupervisedConfig,
    seeds: Sequence[int],
    epoch: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[nn.Module]:
    """R models on all rows of ``data``, in eval mode; equal to ``supervised(..., seed=s, stop_after=epoch)`` for each s.

    Args:
        seeds: R seeds.
        epoch: epochs trained, 0 .. config.epochs. 0 gives initialisations, which tell nothing of an example.

    Raises:
        As ``StackedTrainer.snapshots``.
    """
    return early_snapshots(
        build, data, config=config, seeds=seeds, epochs=[epoch], device=device, progress=progress
    )[epoch]  # fmt: skip


def early_snapshots(
    build: Build,
    data: ExampleSet,
    *,
    config: SupervisedConfig,
    seeds: Sequence[int],
    epochs: Sequence[int],
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[int, list[nn.Module]]:
    """Epoch -> :func:`early_models` stopped there, the same bits, at the cost of the latest epoch alone.

    All of them are in memory at once.
    """

    def train(path: Path) -> list[list[nn.Module]]:
        trainer = StackedTrainer(build=build, config=config, device=device, path=path)
        everything = [np.arange(len(data))] * len(seeds)
        return trainer.snapshots(data, members=everything, seeds=list(seeds), epochs=epochs, progress=progress)

    try:
        found = train("auto")
    except NotApplicable:  # BatchNorm, which no stack takes: one model after another
        found = train("loop")
    return dict(zip(epochs, found, strict=True))
