"""What one training run does at which step, as a function of (configuration, seed, epoch) and of nothing else.

    S = ceil(n / B) steps an epoch (the last batch may be short),  T = S * epochs, or `steps`,  t = 0 .. T-1
        one fewer when the last batch has fewer than `smallest` examples: these then join the batch before it
    W = T * warmup_epochs / epochs
    lr(t) = lr * min((t + 1) / W, 1)                                     t < W
    cosine:    lr * (1 + cos(pi (t - W) / (T - W))) / 2                  t >= W
    multistep: lr * gamma ** #{milestones m: T * m / epochs <= t}        t >= W
    polynomial: lr * (1 - (t - W) / (T - W)) ** 0.9                      t >= W    (nnU-Net)
    constant:  lr                                                        t >= W

A run of `steps` cuts its last epoch short, and its schedule is that of `epochs` stretched over the steps: sets of
unequal size then get the same rates step by step.

`smallest` is 2 for a network with batch statistics (BatchNorm), which one example alone does not have, and 1 for every
other: their last batch is left as it is (`recipes.fitting.smallest_batch`).

The order of an epoch comes from a generator seeded by (seed, epoch): a run that resumes at an epoch, and a model that
is trained among others, see exactly the batches of the straight run.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from contracts.digests import derive_seed
from contracts.errors import ConfigError
from contracts.params import Config, param
from recipes.rng import generator

_SCHEDULES = ("cosine", "constant", "multistep", "polynomial")
_POWER = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisedConfig(Config):
    """Loss, optimiser and schedule of the supervised recipe. Dropout belongs to the model."""

    optimizer: str = param("sgd", choices=("sgd", "adamw"), doc="adamw: betas 0.9, 0.999, eps 1e-8")
    lr: float = param(0.1, gt=0, le=100, doc="peak learning rate")
    momentum: float = param(0.9, ge=0, lt=1, doc="sgd only")
    nesterov: bool = param(False, doc="sgd only; needs momentum > 0")
    weight_decay: float = param(0.0, ge=0, le=1, doc="sgd: added to the gradient; adamw: decoupled")
    batch: int = param(
        64,
        ge=1,
        le=1_000_000,
        unit="examples",
        doc="the last, shorter batch of an epoch is kept (a single example joins the others for BatchNorm)",
    )
    epochs: int = param(80, ge=1, le=100_000, doc="of the full schedule")
    steps: int | None = param(
        None,
        ge=1,
        le=1_000_000_000,
        doc="length in optimiser steps in place of epochs, which then only divide the schedule",
    )
    schedule: str = param("cosine", choices=_SCHEDULES, doc="learning rate, set every step")
    milestones: tuple[int, ...] = param((), ge=1, le=100_000, unit="epochs", doc="multistep only, increasing")
    gamma: float = param(0.2, gt=0, lt=1, doc="multistep only: factor at each milestone")
    warmup_epochs: int = param(0, ge=0, le=100_000, unit="epochs", doc="linear warm-up; fewer than epochs")
    label_smoothing: float = param(0.0, ge=0, lt=1, doc="classification only")
    grad_clip: float | None = param(None, gt=0, le=1e6, doc="largest L2 norm of a model's whole gradient")

    def check(self) -> None:
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ConfigError("SupervisedConfig.nesterov needs optimizer = 'sgd' and momentum > 0")
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(f"SupervisedConfig.warmup_epochs = {self.warmup_epochs} must be < epochs = {self.epochs}")
        increasing = all(a < b for a, b in pairwise(self.milestones))
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ConfigError("SupervisedConfig.milestones go with schedule = 'multistep', and it needs them")
        if self.milestones and not (increasing and self.milestones[-1] < self.epochs):
            raise ConfigError(
                f"SupervisedConfig.milestones = {self.milestones} must increase and stay below epochs = {self.epochs}"
            )


def num_steps(num_examples: int, config: SupervisedConfig, *, smallest: int = 1) -> int:
    """Steps an epoch: ceil(n / B), one fewer when a last batch of fewer than ``smallest`` examples joins the one before
    it.

    >>> [num_steps(n, SupervisedConfig(batch=8), smallest=2) for n in (1, 8, 9, 10, 17)]
    [1, 1, 1, 2, 2]
    """
    steps = -(-num_examples // config.batch)
    return steps - 1 if steps > 1 and num_examples - (steps - 1) * config.batch < smallest else steps


def num_epochs(num_examples: int, config: SupervisedConfig, *, smallest: int = 1) -> int:
    """Epochs of the whole run, the last of which ``config.steps`` may cut short; ``smallest`` as in
    :func:`num_steps`."""
    if config.steps is None:
        return config.epochs
    return -(-config.steps // num_steps(num_examples, config, smallest=smallest))


def batches_of(num_examples: int, config: SupervisedConfig, *, smallest: int = 1) -> list[slice]:
    """The batches of an epoch, as slices of its order; ``smallest`` as in :func:`num_steps`.

    >>> batches_of(17, SupervisedConfig(batch=8), smallest=2)
    [slice(0, 8, None), slice(8, 17, None)]
    """
    ends = [step * config.batch for step in range(num_steps(num_examples, config, smallest=smallest))] + [num_examples]
    return [slice(first, end) for first, end in pairwise(ends)]


def learning_rates(config: SupervisedConfig, *, steps: int, epoch: int) -> np.ndarray:
    """Learning rate of each step of ``epoch`` (from 0): float64 (steps,), fewer in an epoch that is cut short."""
    total = config.steps or config.epochs * steps
    step = np.arange(epoch * steps, min((epoch + 1) * steps, total))
    warm = total * config.warmup_epochs / config.epochs
    if config.schedule == "cosine":
        factor = 0.5 * (1 + np.cos(np.pi * np.maximum(step - warm, 0) / (total - warm)))
    elif config.schedule == "polynomial":
        factor = (1 - np.maximum(step - warm, 0) / (total - warm)) ** _POWER
    else:
        passed = np.searchsorted(total * np.array(config.milestones, np.int64), step * config.epochs, side="right")
        factor = np.array([config.gamma**k for k in range(len(config.milestones) + 1)])[passed]
    if warm:
        factor = np.where(step < warm, np.minimum((step + 1) / warm, 1), factor)
    return config.lr * factor


def epoch_order(num_examples: int, *, seed: int, epoch: int) -> Tensor:
    """The permutation of an epoch: int64 (n,) on the CPU."""
    return torch.randperm(num_examples, generator=generator(derive_seed("order", seed, epoch)))


def epochs_to_train(epochs: int, stop_after: int | None) -> int:
    """Epochs to train: all ``epochs`` of the run, or up to the early checkpoint.

    Raises:
        ConfigError: ``stop_after`` outside 0 .. epochs.
    """
    if stop_after is None:
        return epochs
    if not 0 <= stop_after <= epochs:
        raise ConfigError(f"stop_after = {stop_after} is outside its allowed range: >= 0 and <= {epochs} epochs")
    return stop_after
