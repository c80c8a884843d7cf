"""SCRUB: away from the trained model on what is to be forgotten, near to it on the rest, turn by turn (Kurmanji et al.,
NeurIPS 2023).

    L(x, y) = CE(f(x; theta), y) + alpha * T^2 * KL( softmax(f0(x) / T) || softmax(f(x; theta) / T) )
    an epoch  one pass over S_f that maximises L, while fewer than ``msteps`` steps have been taken at its start;
              then one over D \\ S_f that minimises it

f0 is the trained model, frozen, in eval mode; its logits are computed once. KL is summed over classes and averaged over
the batch. The corrective unlearning bench (Goel et al., TMLR 2024) sets T = 4, msteps = 100, learning rate 0.0025 with
a 1% warm-up and linear decay, 1,000 steps of 512, and searches alpha in {0.001, 0.01, 0.05, 0.1, 0.5, 1, 5, 10}. Both
terms are maximised on S_f there; Kurmanji et al. maximise KL alone. With alpha = 0 and msteps = 0 it is CF-k with
k = -1 at the same learning rate.

It is no bounded objective: msteps and the learning rate are what keeps the model alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from recipes.inputs import Inputs
from sources.example_set import ExampleSet
from unlearning.corrective.rates import bench_rate
from unlearning.corrective.teachers import answers_of
from unlearning.descent import Descent, DescentConfig, Pass, check_sets, descend, inputs_of, sizes_of


@dataclass(frozen=True, kw_only=True, slots=True)
class ScrubConfig(DescentConfig):
    lr: float = param(0.0025, gt=0, le=1, doc="peak learning rate; 1% warm-up, then down in a line to a fifth of it")
    epochs: int = param(10, ge=0, le=1000, doc="passes over the retained examples")
    batch: int = param(512, ge=1, le=65_536, unit="examples", doc="examples a step; a last single one joins the others")
    alpha: float = param(
        0.1,
        ge=0,
        le=1e6,
        search=(0.001, 10.0),
        doc="weight of the distance to the trained model; searched in 0.001 to 10",
    )
    temperature: float = param(4.0, gt=0, le=1000, doc="T, of both sides of the distance")
    msteps: int = param(
        100, ge=0, le=1_000_000_000, unit="steps", doc="an epoch that begins with fewer done maximises on forget first"
    )


def scrub_losses(logits: Tensor, teacher: Tensor, labels: Tensor, *, alpha: float, temperature: float) -> Tensor:
    """L of each example.

    Args:
        logits, teacher: (B, K) of the student, with gradient, and of the trained model.
        labels: (B,) int64.

    Returns:
        (B,) nats; >= the cross-entropy.

    >>> z = torch.tensor([[0.0, 1.0]])
    >>> same = scrub_losses(z, z, torch.tensor([0]), alpha=3.0, temperature=4.0)
    >>> bool(torch.isclose(same, F.cross_entropy(z, torch.tensor([0]))).all())
    True
    """
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")
    own, aim = (F.log_softmax(z / temperature, dim=1) for z in (logits, teacher))
    distance = F.kl_div(own, aim, reduction="none", log_target=True).sum(dim=1)
    return cross_entropy + alpha * temperature**2 * distance


@dataclass(frozen=True)
class _Losses:
    """L from outputs (B, K) and targets (B, 2, K): the label, one-hot, and the logits of the trained model."""

    alpha: float
    temperature: float

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        labels, teacher = targets[:, 0].argmax(dim=1), targets[:, 1]
        return scrub_losses(outputs, teacher, labels, alpha=self.alpha, temperature=self.temperature)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """p - onehot(y) + alpha T (softmax(z / T) - softmax(z0 / T)), (B, K) of outputs z."""
        own, aim = (torch.softmax(z / self.temperature, dim=1) for z in (outputs, targets[:, 1]))
        found = torch.softmax(outputs, dim=1).sub_(targets[:, 0])
        return found.add_(own.sub_(aim), alpha=self.alpha * self.temperature)


@dataclass(frozen=True)
class _Rate:
    """Of all steps, which an epoch without its first pass has fewer of."""

    steps: int

    def __call__(self, step: int, _: int) -> float:
        return bench_rate(step, self.steps)


def scrub_plan(model: nn.Module, *, retain: ExampleSet, forget: ExampleSet, config: ScrubConfig, seed: int) -> Descent:
    """What :func:`scrub` does, and raises before any work but one look of the trained model at all examples."""
    check_sets(model, retain=retain, forget=forget, trains_on_retain=True, wants=("outputs", "classes"))
    losses = _Losses(config.alpha, config.temperature)
    gone, kept = inputs_of(model, forget, beside=retain), inputs_of(model, retain)
    up, down = (
        Pass.over(part, targets=_targets(model, part), weight=weight, of_outputs=losses)
        for part, weight in ((gone, -1.0), (kept, 1.0))
    )
    epochs = _epochs(up, down, config)
    return Descent(
        model=model,
        passes=epochs.__getitem__,
        retain=retain,
        config=config,
        seed=seed,
        name="scrub",
        rate=_Rate(sum(_steps(one, config) for epoch in epochs for one in epoch)),
    )


def _targets(model: nn.Module, part: Inputs) -> np.ndarray:
    """(n, 2, K) of the model's dtype; see :class:`_Losses`."""
    teacher = answers_of(model, part)
    labels = np.zeros_like(teacher)
    labels[np.arange(len(part)), part.data.y] = 1
    return np.stack([labels, teacher], axis=1)


@unlearner(
    UnlearnerSpec(
        name="scrub",
        wants=("outputs", "classes"),
        doc="Climbs loss and distance to the trained model on the forgotten examples, descends both on the others.",
        source="Kurmanji et al., NeurIPS 2023 (arXiv 2302.09880); settings of Goel et al., TMLR 2024 "
        "(arXiv 2402.14015)",
        config=ScrubConfig,
        plan=scrub_plan,
    )
)
def scrub(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: ScrubConfig,
    seed: int,
    progress: Progress = silent,
) -> nn.Module:
    """Alternate between ``forget``, upwards, and ``retain``, downwards, on a copy of ``model``.

    Args:
        model: trained classifier; not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove; with none it distils and fine-tunes.
        config: see :class:`ScrubConfig`.
        seed: batch order and dropout.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        DataError, NotApplicable: see ``check_sets``.
        Diverged: the run left the finite numbers or collapsed.
    """
    return descend(scrub_plan(model, retain=retain, forget=forget, config=config, seed=seed), progress=progress)


def _epochs(up: Pass, down: Pass, config: ScrubConfig) -> list[Sequence[Pass]]:
    """The passes of every epoch."""
    found: list[Sequence[Pass]] = []
    done = 0
    for _ in range(config.epochs):
        epoch = [up, down] if done < config.msteps and len(up) else [down]
        found.append(epoch)
        done += sum(_steps(one, config) for one in epoch)
    return found


def _steps(one: Pass, config: ScrubConfig) -> int:
    return len(sizes_of(len(one), config.batch))
