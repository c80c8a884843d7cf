"""The training loop of a segmentation model: ``recipes.fitting.descend`` with a loss of masks.

    theta_{t+1} = optimiser(theta_t, grad L(f(theta_t, colour(x_b)), g_b, maps_b, late_t), lr(t)),    late_t: t >= 0.7 T

What a loss computes of a label (a skeleton) is computed once a run and kept beside the targets. With ``deep`` coarser
answers

    L = (L(out_0) + sum_{i >= 1} w_i L(out_i)) / n,    w_i = 2^-i / sum_{j < n} 2^-j,    n = deep + 1

Source: deep supervision as in Valverde, Koga et al., "TopoMortar" (BMVC 2025, arXiv 2503.03365).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.errors import ConfigError, NotApplicable
from contracts.params import param
from contracts.progress import Progress
from recipes.fitting import Observe, check_trainable, descend, make_optimizer, smallest_batch, trainable
from recipes.inputs import Inputs
from recipes.keeping import Keeping
from recipes.schedule import SupervisedConfig, epochs_to_train, num_epochs, num_steps
from recipes.segmentation.losses import LOSSES
from recipes.segmentation.losses.base import labels_of
from recipes.segmentation.randhue import rand_hue
from sources.example_set import ExampleSet
from tasks.base import require

LATE = 0.7  # share of the run after which a loss begins its last part


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationConfig(SupervisedConfig):
    """Loss and colours beside optimiser and schedule."""

    loss: str = param("ce_dice", choices=tuple(LOSSES), doc="; ".join(f"{n}: {m.doc}" for n, m in LOSSES.items()))
    rand_hue: float = param(0.0, ge=0, le=1, doc="share of pictures shown in one random colour; RGB only")

    def check(self) -> None:
        SupervisedConfig.check(self)
        if self.label_smoothing:
            raise ConfigError(f"SegmentationConfig.label_smoothing = {self.label_smoothing}: losses of masks have none")


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """What is learnt of each example, in the order of the data.

    Attributes:
        labels: int64 (N, H, W), or None beside ``soft``.
        soft: float (N, K, H, W), shares of classes.
        maps: of the loss, (N, A, H, W), or None.
    """

    labels: Tensor | None
    soft: Tensor | None
    maps: Tensor | None

    @classmethod
    def of(cls, config: SegmentationConfig, num_classes: int, *, labels: Tensor, soft: Tensor | None = None) -> Learnt:
        """With the maps of the configured loss, on the device of the labels.

        Args:
            labels: int64 (N, H, W).
            soft: (N, K, H, W) in their place.
        """
        hard = labels if soft is None else labels_of(soft)
        maps = LOSSES[config.loss].maps(hard, num_classes)
        return cls(
            labels=labels if soft is None else None, soft=soft, maps=None if maps is None else maps.to(labels.device)
        )

    def targets(self, rows: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
        """(B, K, H, W)."""
        if self.soft is not None:
            return self.soft[rows].to(dtype)
        assert self.labels is not None
        return F.one_hot(self.labels[rows], num_classes).movedim(-1, 1).to(dtype)


def check_segmentation(model: nn.Module, inputs: Inputs, config: SegmentationConfig) -> None:
    """Refuse what cannot be trained, before work starts.

    Raises:
        NotApplicable: examples without masks, or colours at random of pictures that are not RGB.
        Others: as ``recipes.fitting.check_trainable``.
    """
    require(inputs.data, "segmentation", "features", "pixels")
    check_trainable(model, inputs)
    if config.rand_hue and inputs.data.input_shape[0] != 3:
        raise NotApplicable(
            f"rand_hue = {config.rand_hue:g} is for RGB; pictures of {inputs.data.name} have shape "
            f"{inputs.data.input_shape}"
        )


def train(
    model: nn.Module,
    data: ExampleSet,
    inputs: Inputs,
    learnt: Learnt,
    *,
    config: SegmentationConfig,
    seed: int,
    stop_after: int | None,
    keeping: Keeping,
    observe: Observe | None,
    progress: Progress,
    what: str = "training",
) -> None:
    """Train ``model`` in place on every row of ``data``; arguments as of ``recipes.supervised``.

    Raises:
        ConfigError, Diverged, IntegrityError: as ``supervised``.
    """
    smallest, num = smallest_batch(model), len(data)
    last = epochs_to_train(num_epochs(num, config, smallest=smallest), stop_after)
    optimizer = make_optimizer(trainable(model), config)
    start, after_epoch = keeping.taken_up(
        model,
        optimizer,
        data,
        config=config,
        seed=seed,
        last=last,
        progress=progress,
        what=what,
        anew=observe is not None,
    )
    steps = num_steps(num, config, smallest=smallest)
    descend(
        model,
        torch.from_numpy(np.arange(num)).to(inputs.device),
        cost_of(
            model,
            inputs,
            learnt,
            config=config,
            done=start * steps,
            steps=config.steps or config.epochs * steps,
            observe=observe,
        ),
        config=config,
        seed=seed,
        stop_after=last,
        optimizer=optimizer,
        start=start,
        after_epoch=after_epoch,
    )


def cost_of(
    model: nn.Module,
    inputs: Inputs,
    learnt: Learnt,
    *,
    config: SegmentationConfig,
    done: int,
    steps: int,
    observe: Observe | None = None,
) -> Callable[[Tensor], Tensor]:
    """Positions (b,) -> loss of the batch, called once a step.

    Colours are drawn from PyTorch's global generator, which ``descend`` seeds anew every epoch, as dropout does.

    Args:
        done: steps that were taken before the first call.
        steps: of the whole run.
    """
    loss, num_classes = LOSSES[config.loss], inputs.data.num_classes
    taken = done

    def cost(rows: Tensor) -> Tensor:
        nonlocal taken
        x = inputs.gather(rows)
        if config.rand_hue:
            x = rand_hue(x, torch.rand(len(x), 4).to(x), probability=config.rand_hue)
        outputs = model.outputs(x) if len(getattr(model, "deep", ())) else [model(x)]
        targets = learnt.targets(rows, num_classes, outputs[0].dtype)
        maps = None if learnt.maps is None else learnt.maps[rows]
        late = taken >= LATE * steps
        taken += 1
        if observe is not None:
            observe(rows, outputs[0].detach())
        weights = deep_weights(len(outputs))
        return sum(  # type: ignore[return-value]
            weight * loss(z, targets, maps, late=late) for weight, z in zip(weights, outputs, strict=True)
        )

    return cost


def deep_weights(num: int) -> list[float]:
    """Weight of the loss of each answer, the full size first.

    >>> deep_weights(1), deep_weights(2)
    ([1.0], [0.5, 0.16666666666666666])
    """
    whole = sum(2.0**-j for j in range(num))
    return [(1.0 if i == 0 else 2.0**-i / whole) / num for i in range(num)]
