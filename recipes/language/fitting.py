"""The training loop of language models: minibatches of token sequences, the task's mean loss, any trainable parameters.

    theta_{t+1} = optimiser(theta_t, grad mean_{b in batch_t} loss_b, lr(t))        loss_b: mean NLL of the counted
                                                                                    tokens of b

Every sequence weighs the same, whatever its length. Order, rates and their resumption are those of
``recipes.schedule``: a function of (configuration, seed, epoch). A batch is padded to its own longest sequence, and
indexed once.

The loop itself is ``recipes.fitting.descend``; ``fit`` beside it moves tensors of one shape, all on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from contracts.errors import ConfigError, DataError
from contracts.params import param
from recipes.fitting import descend
from recipes.inputs import Inputs, model_dtype
from recipes.schedule import SupervisedConfig
from sources.example_set import ExampleSet
from tasks.base import require


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTrainingConfig(SupervisedConfig):
    """Optimiser and schedule, with the settings that small transformers are commonly trained with."""

    optimizer: str = param("adamw", choices=("sgd", "adamw"), doc="adamw: betas 0.9, 0.999, eps 1e-8")
    lr: float = param(2e-3, gt=0, le=100, doc="peak learning rate")
    weight_decay: float = param(0.01, ge=0, le=1, doc="decoupled, of AdamW")
    batch: int = param(64, ge=1, le=1_000_000, unit="sequences", doc="the last, shorter batch of an epoch is kept")
    epochs: int = param(14, ge=1, le=100_000, doc="of the full schedule")
    warmup_epochs: int = param(1, ge=0, le=100_000, unit="epochs", doc="linear warm-up; fewer than epochs")
    grad_clip: float | None = param(1.0, gt=0, le=1e6, doc="largest L2 norm of the whole gradient")

    def check(self) -> None:
        SupervisedConfig.check(self)
        if self.label_smoothing:
            raise ConfigError(
                f"{type(self).__name__}.label_smoothing = {self.label_smoothing} is for classification only"
            )


def fit_tokens(
    model: nn.Module,
    data: ExampleSet,
    rows: np.ndarray,
    *,
    config: TokenTrainingConfig,
    seed: int,
    stop_after: int,
    optimizer: torch.optim.Optimizer | None = None,
    start: int = 0,
    after_epoch: Callable[[int], None] = lambda done: None,
) -> None:
    """Train ``model`` in place on the positions ``rows`` of ``data``, epochs ``start`` to ``stop_after`` (excluded).

    Args:
        model: sequences (B, T) -> logits (B, T, V); only parameters that require a gradient move.
        rows: int64 (n,), n >= 1; the order of an epoch permutes it.
        optimizer: with its state, when a run is resumed; a fresh one otherwise.
        after_epoch: called with the number of epochs done, after each.

    Raises:
        NotApplicable: the examples are no token sequences.
        DataError: no rows, tokens outside the vocabulary, or a sequence in which nothing counts.
        Diverged: the loss or a parameter is not finite; names the epoch.
    """
    require(data, "training on tokens", "losses", "tokens")
    if not len(rows):
        raise DataError(f"{data.name}: there is no example to train on")
    data.check_targets()
    device = next(model.parameters()).device
    inputs = Inputs(data, dtype=model_dtype(model), device=device)
    descend(
        model,
        torch.from_numpy(rows).to(device),
        lambda at: data.task.losses(model, inputs.batch(at)).mean(),
        config=config,
        seed=seed,
        stop_after=stop_after,
        optimizer=optimizer,
        start=start,
        after_epoch=after_epoch,
    )
