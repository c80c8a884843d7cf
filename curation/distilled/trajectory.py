"""Matching trajectories: the outer loop that moves synthetic images, their labels and a step size.

    for it = 0, 1, ...:
        an expert in turn;  a start epoch t of the schedule;  w_0 = theta_t, perturbed or not
        L and its gradient after N steps of a student        (``matching``)
        unless L > threshold:  SGD with momentum on the images (rate lr_img), the labels (lr_y), the step size (lr_lr)
        the step size stays >= 1e-4

    perturbation  of every convolution W: W + a W * E / |E|_F, E ~ N(0, 1); zero weights stay zero       (AST)
    balancing     the student's loss times ``balanced_scale(t)``                                         (AST)

Everything drawn in iteration it comes from (seed, it): a run that is resumed at it has the same bits. DATM is the
default; AST is perturb = 1, balance, momentum 0.9, hard labels, no threshold, intermediate = equal and start =
representative.
``lr_img`` is large because the loss is relative to how far the expert moved: SGD with that rate is the method, Adam is
not.

Sources: Guo et al. (ICLR 2024, arXiv 2310.05773); Shen et al. (arXiv 2310.10541).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from contracts.digests import derive_seed
from contracts.errors import ConfigError, Diverged
from contracts.params import Config, param
from contracts.progress import Progress, silent
from curation.distilled.augment import STRATEGIES, Augment
from curation.distilled.experts import ExpertBuffer
from curation.distilled.flat import FlatNetwork
from curation.distilled.initial import STARTS
from curation.distilled.matching import MODES, Inner, batches, match, targets
from curation.distilled.schedules import DifficultySchedule, balanced_scale, intermediate_targets
from recipes.rng import generator

LEAST_RATE = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchConfig(Config):
    """The matcher's settings; the defaults are DATM's for ten CIFAR-10 images a class, without its ZCA."""

    iterations: int = param(10_000, ge=1, le=10_000_000, doc="outer iterations")
    steps: int = param(80, ge=1, le=10_000, doc="N: steps of a student")
    expert_epochs: int = param(2, ge=1, le=1000, doc="M: epochs of the expert that a student's steps are to cover")
    t_min: int = param(0, ge=0, le=10_000, doc="first start epoch")
    t_max: int = param(20, ge=1, le=10_000, doc="the epoch after the last start epoch")
    t_cur: int | None = param(None, ge=1, le=10_000, doc="where t_max starts to widen from; none: it stands")
    it_end: int = param(1000, ge=1, le=10_000_000, doc="iterations after which t_max is reached")
    batch: int = param(1_000_000, ge=1, le=1_000_000, unit="images", doc="synthetic images of a student's step")
    lr_img: float = param(100.0, ge=0, le=1e7, doc="rate of the images")
    lr_y: float = param(2.0, ge=0, le=1e7, doc="rate of the labels' logits")
    lr_lr: float = param(1e-5, ge=0, le=1, doc="rate of the step size")
    momentum_img: float = param(0.5, ge=0, lt=1, doc="of the images, and of the step size")
    momentum_y: float = param(0.9, ge=0, lt=1, doc="of the labels")
    lr_start: float = param(0.01, ge=LEAST_RATE, le=100, doc="the students' step size to start with")
    threshold: float | None = param(1.0, gt=0, le=1e6, doc="a larger loss is skipped; none: every one counts (AST)")
    labels: str = param("soft", choices=("soft", "hard"), doc="soft: free logits; hard: the class")
    start: str = param("correct", choices=STARTS, doc="which real images are started from")
    grad_mode: str = param("adjoint", choices=MODES, doc="how the gradient is taken; tesla is not exact")
    augment: tuple[str, ...] = param(STRATEGIES, choices=STRATEGIES, doc="augmentation within a student's steps")
    siamese: bool = param(False, doc="one change for all images of a step, not one an image")
    momentum: float = param(0.0, ge=0, lt=1, doc="m: of a student's steps; AST: 0.9")
    perturb: float = param(0.0, ge=0, le=1000, doc="a: of the start weights of convolutions; AST: 1")
    balance: bool = param(False, doc="students' losses are balanced by the start epoch (AST)")
    intermediate: str = param("none", choices=("none", "equal", "adaptive"), doc="checkpoints matched on the way (AST)")

    def check(self) -> None:
        self.schedule()
        intermediate_targets(self.steps, self.expert_epochs, self.intermediate)  # type: ignore[arg-type]

    def schedule(self) -> DifficultySchedule:
        """The range of start epochs."""
        return DifficultySchedule(t_min=self.t_min, t_max=self.t_max, t_cur=self.t_cur, it_end=self.it_end)


@dataclass(frozen=True, eq=False, kw_only=True)
class Distilled:
    """A synthetic set as it stands, with what the next iteration needs.

    Attributes:
        images: (n, *shape). labels: (n, K) logits, or probabilities where labels are hard.
        rate: the students' step size.
        speeds: momentum of images, labels, rate.
        log: one entry an iteration: what :data:`LOG` names.
    """

    images: Tensor
    labels: Tensor
    rate: float
    speeds: tuple[Tensor, Tensor, float]
    log: tuple[tuple[float, ...], ...] = field(default=())

    @classmethod
    def start(cls, images: Tensor, labels: Tensor, rate: float) -> Self:
        """Nothing has moved yet."""
        return cls(
            images=images.clone(),
            labels=labels.clone(),
            rate=rate,
            speeds=(torch.zeros_like(images), torch.zeros_like(labels), 0.0),
        )

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return len(self.log)

    def arrays(self) -> dict[str, np.ndarray]:
        """As named arrays, for a store."""
        named = {"images": self.images, "labels": self.labels, "speed_x": self.speeds[0], "speed_y": self.speeds[1]}
        return {name: value.cpu().numpy() for name, value in named.items()} | {
            "rates": np.array([self.rate, self.speeds[2]]),
            "log": np.array(self.log, np.float64).reshape(-1, len(LOG)),
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Any], *, device: torch.device) -> Self:
        """The inverse of :meth:`arrays`."""
        tensors = {
            n: torch.from_numpy(np.array(arrays[n])).to(device) for n in ("images", "labels", "speed_x", "speed_y")
        }
        rate, speed = np.asarray(arrays["rates"]).tolist()
        return cls(
            images=tensors["images"],
            labels=tensors["labels"],
            rate=rate,
            speeds=(tensors["speed_x"], tensors["speed_y"], speed),
            log=tuple(tuple(row) for row in np.asarray(arrays["log"]).tolist()),
        )


LOG = ("expert", "start_epoch", "upper_bound", "match_loss", "skipped", "syn_lr", "floored")


@dataclass(frozen=True, kw_only=True)
class TrajectoryMatcher:
    """Moves a synthetic set towards the experts' trajectories.

    Attributes:
        network: the students' architecture, the experts' own.
        experts: what is matched.

    Raises:
        ConfigError: start epochs from which the experts do not go on for M epochs.
    """

    network: FlatNetwork
    experts: ExpertBuffer
    config: MatchConfig

    def __post_init__(self) -> None:
        last = self.config.t_max - 1 + self.config.expert_epochs
        if last > self.experts.epochs:
            raise ConfigError(
                f"a start at epoch t_max - 1 = {self.config.t_max - 1} is matched after {self.config.expert_epochs} "
                f"more epochs, and the experts end after {self.experts.epochs}: t_max has to be <= "
                f"{self.experts.epochs - self.config.expert_epochs + 1}"
            )

    def run(
        self,
        state: Distilled,
        *,
        seed: int,
        stop_after: int | None = None,
        after: Callable[[Distilled], None] = lambda state: None,
        progress: Progress = silent,
    ) -> Distilled:
        """The set after all iterations.

        Args:
            state: where to go on from: :meth:`Distilled.start`, or what an earlier run gave.
            stop_after: iterations after which the run is left; None: all.
            after: called with the state after every iteration.
            progress: told (iterations done, in all, "iterations of distillation").

        Raises:
            DataError: the expert did not move (``matching.targets``).
            Diverged: a loss is not finite and no threshold skips it, or the images are not.
        """
        total = self.config.iterations
        for iteration in range(state.iteration, total if stop_after is None else min(stop_after, total)):
            state = self.step(state, iteration, seed=seed)
            after(state)
            progress(iteration + 1, total, "iterations of distillation")
        return state

    def inner(self, state: Distilled, iteration: int, *, seed: int) -> tuple[Inner, tuple[int, int, int]]:
        """The student's run of an iteration, and its expert, start epoch and the upper end of the range."""
        config, turn, number = self.config, *divmod(iteration, len(self.experts))
        order = torch.randperm(len(self.experts), generator=generator(derive_seed("turn", seed, turn)))
        expert, root = int(order[number]), derive_seed("iteration", seed, iteration)
        schedule = config.schedule()
        epoch = schedule.draw(iteration, derive_seed("epoch", root))
        passed = self.experts.checkpoints(expert, self.network, first=epoch, num=config.expert_epochs + 1)
        start = passed[0]
        if config.perturb:
            start = perturbed(self.network, start, scale=config.perturb, seed=derive_seed("perturb", root))
        on_the_way = intermediate_targets(config.steps, config.expert_epochs, config.intermediate)  # type: ignore[arg-type]
        goals = targets(start, passed, epoch=epoch, steps=config.steps, on_the_way=on_the_way)
        drawn = batches(len(state.images), config.batch, config.steps, derive_seed("order", root))
        inner = Inner(
            network=self.network,
            start=start,
            targets=goals,
            batches=[batch.to(self.network.device) for batch in drawn],
            seeds=[derive_seed("augment", root, step) for step in range(config.steps)],
            augment=Augment(config.augment, siamese=config.siamese),
            momentum=config.momentum,
            loss_scale=balanced_scale(epoch, config.t_max) if config.balance else 1.0,
            soft=config.labels == "soft",
        )
        return inner, (expert, epoch, schedule.upper(iteration))

    def step(self, state: Distilled, iteration: int, *, seed: int) -> Distilled:
        """The state after one iteration."""
        config = self.config
        inner, told = self.inner(state, iteration, seed=seed)
        found = match(inner, state.images, state.labels, state.rate, mode=config.grad_mode)  # type: ignore[arg-type]
        if not math.isfinite(found.loss) and config.threshold is None:
            raise Diverged(
                f"the matching loss of iteration {iteration + 1} is not finite. Lower lr_img (= {config.lr_img:g}) or "
                f"lr_start, or set a threshold"
            )
        skipped = not (config.threshold is None or found.loss <= config.threshold)
        floored = any(target.floored for target in inner.targets)
        speed_x, speed_y, speed = state.speeds
        images, labels, rate = state.images, state.labels, state.rate
        if not skipped:
            speed_x = config.momentum_img * speed_x + found.images
            speed_y = config.momentum_y * speed_y + found.labels
            speed = config.momentum_img * speed + found.rate
            images, labels = images - config.lr_img * speed_x, labels - config.lr_y * speed_y
            rate = max(rate - config.lr_lr * speed, LEAST_RATE)
            if not (bool(torch.isfinite(images).all() & torch.isfinite(labels).all()) and math.isfinite(rate)):
                raise Diverged(
                    f"images, labels or the step size are not finite after iteration {iteration + 1}. Lower lr_img "
                    f"(= {config.lr_img:g}), lr_y or lr_lr"
                )
        return dataclasses.replace(
            state,
            images=images,
            labels=labels,
            rate=rate,
            speeds=(speed_x, speed_y, speed),
            log=(*state.log, (*told, found.loss, skipped, rate, floored)),
        )


def perturbed(network: FlatNetwork, theta: Tensor, *, scale: float, seed: int) -> Tensor:
    """Every weight of a convolution W of ``theta`` (D,) as W + scale W * E / |E|_F, E standard normal; the rest as it
    is. Fresh memory."""
    theta, g = theta.clone(), generator(seed)
    for weight in network.named(theta).values():
        if weight.ndim == 4:
            noise = torch.randn(weight.shape, generator=g).to(weight.device, weight.dtype)
            weight += scale * weight * (noise / noise.norm())
    return theta
