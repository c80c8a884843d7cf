"""The recipe ``causal_lm``: a causal language model from a fresh initialisation, on the tokens that count.

    theta_0 = build(seed);     minimise  mean over sequences of  -(1/|C|) sum_{t in C} log p(x_t | x_<t)

AdamW, linear warm-up, cosine to 0 (the defaults: the settings of TinyTOFU, on which FLAT is measured). Deterministic:
(build, data in its order, config, seed, device, thread count) give the same bits, also when the run was killed and
resumed from a checkpoint, and when it stops early and is taken up later.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from contracts.methods import RecipeSpec, recipe
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from recipes.fitting import make_optimizer, trainable
from recipes.keeping import Keeping
from recipes.language.fitting import TokenTrainingConfig, fit_tokens
from recipes.models import Build
from recipes.schedule import epochs_to_train, num_epochs
from sources.example_set import ExampleSet


@recipe(
    RecipeSpec(
        name="causal_lm",
        doc="Trains a causal language model from a fresh initialisation on the tokens that count.",
        source="Loshchilov & Hutter, ICLR 2017 (cosine schedule), ICLR 2019 (AdamW)",
        config=TokenTrainingConfig,
        wants=("losses", "tokens"),
        early=True,
        counts_steps=True,
    )
)
def causal_lm(
    build: Build,
    data: ExampleSet,
    *,
    config: TokenTrainingConfig,
    seed: int,
    device: str = "cpu",
    stop_after: int | None = None,
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    checkpoint_name: str = "causal_lm",
    checkpoint_every: int = 10,
    progress: Progress = silent,
) -> nn.Module:
    """Train a fresh model on every row of ``data``.

    Args:
        build: seed -> freshly initialised model, sequences (B, T) -> logits (B, T, V).
        data: token sequences, in the order they have here.
        config: optimiser and schedule.
        seed: of initialisation, batch order and dropout; in [0, 2**63).
        device: "cpu" or "cuda".
        stop_after: epochs after which the full schedule is left (0 gives the initialisation); None trains to its end.
        checkpoints: where the run is kept, every ``checkpoint_every`` epochs and at its end. A checkpoint of another
            configuration, initialisation or data is not used.
        checkpoint_name: its name there.
        progress: told (epochs done, epochs, "training").

    Returns:
        The model in eval mode on ``device``.

    Raises:
        NotApplicable: the examples are no token sequences.
        DataError: no examples, or a sequence without a counted token.
        ConfigError: ``stop_after`` beyond the schedule, ``checkpoint_every`` below 1.
        Diverged: the loss is no longer finite (names the epoch).
        IntegrityError: the stored checkpoint is damaged.
    """
    keeping = Keeping(store=checkpoints, name=checkpoint_name, every=checkpoint_every)
    model = build(seed).to(device)
    last = epochs_to_train(num_epochs(max(len(data), 1), config), stop_after)
    optimizer = make_optimizer(trainable(model), config)
    start, after_epoch = keeping.taken_up(
        model, optimizer, data, config=config, seed=seed, last=last, progress=progress
    )

    fit_tokens(
        model,
        data,
        np.arange(len(data)),
        config=config,
        seed=seed,
        stop_after=last,
        optimizer=optimizer,
        start=start,
        after_epoch=after_epoch,
    )
    return model
