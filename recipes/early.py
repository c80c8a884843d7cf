"""Models stopped early in training, one a seed: what EL2N and GraNd read (card 26, step 1).

Each is the full recipe (schedule included) left after ``epoch`` epochs, from its own initialisation and batch order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from contracts.progress import Progress, silent
from recipes.models import Build
from recipes.schedule import SupervisedConfig
from recipes.stacked import StackedTrainer
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
        As ``StackedTrainer.train``.
    """
    trainer = StackedTrainer(build=build, config=config, device=device)
    everything = [np.arange(len(data))] * len(seeds)
    return trainer.train(data, members=everything, seeds=list(seeds), stop_after=epoch, progress=progress)
