"""Models stopped early in training, one a seed: what EL2N and GraNd read (Paul et al. 2021).

Each is the full recipe (schedule included) left after some epochs, from its own initialisation and batch order. A
recipe that is not declared ``early`` has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from contracts.methods import RecipeSpec
from contracts.params import Config
from contracts.progress import Progress, silent
from contracts.registry import Method
from recipes.models import Build
from recipes.training import Trainer
from sources.example_set import ExampleSet


def early_models(
    build: Build,
    data: ExampleSet,
    *,
    recipe: str | Method[RecipeSpec],
    config: Config,
    seeds: Sequence[int],
    epoch: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[nn.Module]:
    """R models on all rows of ``data``, in eval mode; equal to the recipe with ``seed=s, stop_after=epoch`` for each s.

    Args:
        recipe: the recipe under audit, or its name.
        config: the recipe's configuration.
        seeds: R seeds.
        epoch: epochs trained, 0 .. config.epochs. 0 gives initialisations, which tell nothing of an example.

    Raises:
        NotApplicable: the recipe cannot stop early.
        Others: as ``Trainer.snapshots``.
    """
    found = early_snapshots(
        build, data, recipe=recipe, config=config, seeds=seeds, epochs=[epoch], device=device, progress=progress
    )
    return found[epoch]


def early_snapshots(
    build: Build,
    data: ExampleSet,
    *,
    recipe: str | Method[RecipeSpec],
    config: Config,
    seeds: Sequence[int],
    epochs: Sequence[int],
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[int, list[nn.Module]]:
    """Epoch -> :func:`early_models` stopped there, the same bits; at the cost of the latest epoch alone for a recipe
    with a stacked path.

    All of them are in memory at once.
    """
    trainer = Trainer(recipe=recipe, build=build, config=config, device=device)
    everything = [np.arange(len(data))] * len(seeds)
    found = trainer.snapshots(data, members=everything, seeds=list(seeds), epochs=epochs, progress=progress)
    return dict(zip(epochs, found, strict=True))
