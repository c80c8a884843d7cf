"""The training loop of language models: minibatches of token sequences, the task's mean loss, any trainable parameters.

    theta_{t+1} = optimiser(theta_t, grad mean_{b in batch_t} loss_b, lr(t))        loss_b: mean NLL of the counted
                                                                                    tokens of b

Every sequence weighs the same, whatever its length. Order, rates and their resumption are those of
``recipes.schedule``: a function of (configuration, seed, epoch). A batch is padded to its own longest sequence, and
    indexed once.

Not ``recipes.fitting.fit``: that one moves tensors of one shape, and keeps them all on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError
from contracts.params import param
from recipes.fitting import check_finite, deterministic, make_optimizer, trainable
from recipes.inputs import Inputs, model_dtype
from recipes.rng import local_rng
from recipes.schedule import SupervisedConfig, batches_of, epoch_order, learning_rates, num_epochs
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
    optimizer = make_optimizer(trainable(model), config) if optimizer is None else optimizer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    batches = batches_of(len(rows), config)
    inputs = Inputs(data, dtype=model_dtype(model), device=device)
    model.train()
    for epoch in range(start, stop_after):
        order = torch.from_numpy(rows)[epoch_order(len(rows), seed=seed, epoch=epoch)]
        total = torch.zeros((), device=device)
        with local_rng(derive_seed("noise", seed, epoch), device=device), deterministic(device):
            # An epoch that config.steps cuts short has fewer rates than batches.
            rates = learning_rates(config, steps=len(batches), epoch=epoch).tolist()
            for lr, part in zip(rates, batches, strict=False):
                loss = data.task.losses(model, inputs.batch(order[part])).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if config.grad_clip is not None:
                    nn.utils.clip_grad_norm_(parameters, config.grad_clip)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                total += loss.detach()
        epochs = num_epochs(len(rows), config)
        check_finite([total, *(p.detach() for p in parameters)], epoch=epoch, epochs=epochs, config=config)
        after_epoch(epoch + 1)
    optimizer.zero_grad(set_to_none=True)
    model.eval()
