"""The supervised recipe: one model, minibatch SGD or AdamW on the mean loss, from a fresh initialisation.

    theta_0 = build(seed);  for t = 0 .. T-1:  theta_{t+1} = optimiser(theta_t, grad mean_{b in batch_t} loss_b, lr(t))

Deterministic: (build, data in its order, config, seed, device, thread count) give the same bits, also when the run was
killed and resumed from a checkpoint, and also when it stops early (``stop_after``) and is taken up later.
No augmentation: the audits of this project compare what a model says of an example with and without it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from contracts.methods import RecipeSpec, recipe
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from recipes.fitting import (
    Observe,
    check_trainable,
    fit,
    make_optimizer,
    smallest_batch,
    standardise,
    trainable,
)
from recipes.inputs import Inputs, model_dtype
from recipes.keeping import Keeping
from recipes.models import Build
from recipes.schedule import SupervisedConfig, epochs_to_train, num_epochs
from recipes.stacked import StackedTrainer
from sources.example_set import ExampleSet


def _stacked(
    build: Build,
    data: ExampleSet,
    *,
    config: SupervisedConfig,
    device: str,
    members: Sequence[np.ndarray],
    seeds: Sequence[int],
    epochs: Sequence[int | None],
    inputs: Inputs | None = None,
    progress: Progress = silent,
) -> list[list[nn.Module]]:
    trainer = StackedTrainer(build=build, config=config, device=device)
    return trainer.snapshots(data, members=members, seeds=seeds, epochs=epochs, inputs=inputs, progress=progress)


@recipe(
    RecipeSpec(
        name="supervised",
        doc="Minibatch training on the mean loss: cross-entropy for classification, squared error for regression.",
        source="Robbins & Monro 1951; Loshchilov & Hutter, ICLR 2017 (cosine schedule), ICLR 2019 (AdamW)",
        config=SupervisedConfig,
        wants=("losses", "features"),
        early=True,
        observable=True,
        counts_steps=True,
        stacked=_stacked,
    )
)
def supervised(
    build: Build,
    data: ExampleSet,
    *,
    config: SupervisedConfig,
    seed: int,
    device: str = "cpu",
    stop_after: int | None = None,
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    checkpoint_name: str = "supervised",
    checkpoint_every: int = 10,
    observe: Observe | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Train a fresh model on every row of ``data``.

    Args:
        build: seed -> freshly initialised model.
        data: the training examples, in the order they have here (the caller passes ``data.part("train")`` or a subset).
        config: loss, optimiser, schedule.
        seed: of initialisation, batch order and dropout; in [0, 2**63).
        device: "cpu" or "cuda".
        stop_after: epochs after which the full schedule is left (0 gives the initialisation); None trains to its end.
        checkpoints: where the run is kept, every ``checkpoint_every`` epochs and at its end. A checkpoint of another
            configuration, initialisation or data is not used.
        checkpoint_name: its name there.
        observe: called with every mini-batch before its step: positions in ``data`` (b,), int64, and the outputs (b, K)
            that its loss is taken of, detached (for regression in units of the standardised targets, see
            ``recipes.fitting.standardise``). It only reads; the model is the same with or without it. A run that is
            observed starts at its first epoch, whatever was stored: every epoch is told.
        progress: called with (epochs done, epochs, "training").

    Returns:
        The model in eval mode on ``device``. For regression its outputs are in the target's units.

    Raises:
        NotApplicable: examples that are no vectors or images; interactions take recipe ``bpr``.
        DataError: no examples.
        ConfigError: the model's outputs do not fit the labels; ``stop_after`` beyond the schedule.
        Diverged: the loss is no longer finite (names the epoch).
        IntegrityError: the stored checkpoint is damaged.
    """
    keeping = Keeping(store=checkpoints, name=checkpoint_name, every=checkpoint_every)
    model = build(seed).to(device)
    inputs = Inputs(data, dtype=model_dtype(model), device=device)
    check_trainable(model, inputs)
    last = epochs_to_train(num_epochs(len(data), config, smallest=smallest_batch(model)), stop_after)
    optimizer = make_optimizer(trainable(model), config)
    start, after_epoch = keeping.taken_up(
        model, optimizer, data, config=config, seed=seed, last=last, progress=progress, anew=observe is not None
    )

    rows = np.arange(len(data))
    scaled, fold = standardise(model, inputs, rows)
    fit(
        model,
        scaled,
        rows,
        config=config,
        seed=seed,
        stop_after=last,
        optimizer=optimizer,
        start=start,
        after_epoch=after_epoch,
        observe=observe,
    )
    fold(model)
    return model
