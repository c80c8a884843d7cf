"""Experts: networks trained on all real examples, and where they were after every epoch.

    trajectory    theta_0, theta_1, ..., theta_T      (T + 1, D) float32, copies

Three kinds, each a setting of the same fields:
    plain SGD (MTT)           optimizer sgd, momentum 0
    flat (FTD)                the same with ``sam_rho`` > 0: GSAM
    strong and smooth (AST)   momentum, weight decay, the rate times ``decay`` after epoch T // 2 + 1; ``clip_loss``
                              scales the loss of the first ten epochs down; ``penalty`` draws the slope in the images
                              towards 1

Stronger experts move faster than a student on a few images can follow; clipping the loss keeps their steps short. With
the authors' norm and weight the penalty did not shorten them on small images (``reproductions/smooth_experts``).

Sources: Cazenavette et al. (CVPR 2022); Du et al. (CVPR 2023); Guo et al. (ICLR 2024); Shen et al. (arXiv 2310.10541).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from curation.distilled.augment import STRATEGIES, Augment
from curation.distilled.descent import Descent
from curation.distilled.flat import FlatNetwork, one_hot
from curation.distilled.schedules import clip_scale


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertConfig(Config):
    """How experts are trained. The defaults are those of plain trajectory matching."""

    num: int = param(100, ge=1, le=10_000, doc="experts")
    epochs: int = param(100, ge=1, le=10_000, doc="epochs of each; a checkpoint after every one")
    optimizer: str = param("sgd", choices=("sgd", "adam"), doc="adam: betas 0.9, 0.999, eps 1e-8")
    lr: float = param(0.01, gt=0, le=100, doc="learning rate")
    momentum: float = param(0.0, ge=0, lt=1, doc="sgd only; 0.9 for strong experts")
    weight_decay: float = param(0.0, ge=0, le=1, doc="added to the gradient; 1e-3 for strong experts")
    batch: int = param(256, ge=1, le=1_000_000, unit="examples", doc="the last, shorter batch of an epoch is kept")
    decay: float = param(1.0, gt=0, le=1, doc="factor of the rate after epoch T // 2 + 1; 0.6 for strong experts")
    clip_loss: bool = param(False, doc="the loss of the first ten epochs counts 0.5, 0.55, ..., 0.95 (AST)")
    penalty: float = param(0.0, ge=0, le=1000, doc="weight of the gradient penalty; AST: 2")
    penalty_norm: str = param(
        "per_pixel", choices=("per_pixel", "per_sample"), doc="per_pixel as in AST's code, per_sample as in WGAN-GP"
    )
    sam_rho: float = param(0.0, ge=0, le=10, doc="how far GSAM climbs; 0: no GSAM; FTD: 0.01")
    sam_alpha: float = param(0.3, ge=0, le=10, doc="share of the orthogonal part that GSAM takes off; 0 is SAM")
    sam_adaptive: bool = param(True, doc="the climb is scaled by the parameters")
    augment: tuple[str, ...] = param(STRATEGIES, choices=STRATEGIES, doc="kinds of augmentation; none for []")
    together: int = param(10, ge=1, le=1000, doc="experts trained and kept at a time; those kept are not trained again")

    def check(self) -> None:
        if self.optimizer == "adam" and self.momentum:
            raise ConfigError("ExpertConfig.momentum goes with optimizer = 'sgd'")

    @property
    def variant(self) -> str:
        """Short words for the kind of expert."""
        parts = [self.optimizer, *(["momentum"] if self.momentum else []), *(["gsam"] if self.sam_rho else [])]
        return "+".join([*parts, *(["clip"] if self.clip_loss else []), *(["penalty"] if self.penalty else [])])

    def descent(self) -> Descent:
        """The training that these fields say."""
        late = self.epochs // 2 + 1
        return Descent(
            epochs=self.epochs,
            batch=self.batch,
            rate=lambda epoch: self.lr * (self.decay if epoch > late else 1.0),
            momentum=lambda epoch: self.momentum,
            loss_scale=clip_scale if self.clip_loss else lambda epoch: 1.0,
            weight_decay=self.weight_decay,
            adam=self.optimizer == "adam",
            penalty=self.penalty,
            penalty_norm=self.penalty_norm,  # type: ignore[arg-type]
            sam_rho=self.sam_rho,
            sam_alpha=self.sam_alpha,
            sam_adaptive=self.sam_adaptive,
            augment=Augment(self.augment),
        )


@dataclass(frozen=True, eq=False)
class ExpertBuffer:
    """Trajectories of E experts of one architecture.

    Attributes:
        trajectories: E of (T + 1, D) float32, in memory or mapped from a file.
        variant: what kind they are.

    Raises:
        DataError: unequal shapes, values that are not finite, or an expert that stands still, as one does whose
            checkpoints share the memory of the live weights.
    """

    trajectories: Sequence[NDArray[np.float32]]
    variant: str = ""

    def __post_init__(self) -> None:
        shapes = {t.shape for t in self.trajectories}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2 or next(iter(shapes))[0] < 2:
            raise DataError(f"trajectories of shapes {sorted(shapes)}; all have to be (T + 1, D) with T >= 1")
        for number, trajectory in enumerate(self.trajectories):
            steps = np.array([float(np.square(b - a, dtype=np.float64).sum()) for a, b in _pairs(trajectory)])
            if not np.isfinite(steps).all():
                raise DataError(f"expert {number} has parameters that are not finite")
            if not steps.all():
                raise DataError(
                    f"expert {number} does not move in epoch {int(np.flatnonzero(steps == 0)[0]) + 1}: its checkpoints "
                    "are not distinct, as when they share the memory of the live weights"
                )

    def __len__(self) -> int:
        return len(self.trajectories)

    @property
    def epochs(self) -> int:
        """T."""
        return int(self.trajectories[0].shape[0]) - 1

    def checkpoints(self, number: int, like: FlatNetwork, *, first: int, num: int) -> Tensor:
        """(num, D): those of an expert from epoch ``first`` on, on the network's device, copied."""
        rows = np.array(self.trajectories[number][first : first + num])
        return torch.from_numpy(rows).to(like.device, like.dtype)

    def final(self, number: int, like: FlatNetwork) -> Tensor:
        """The trained expert (D,)."""
        return self.checkpoints(number, like, first=self.epochs, num=1)[0]


def train_experts(
    network: FlatNetwork,
    x: Tensor,
    y: Tensor,
    *,
    num_classes: int,
    config: ExpertConfig,
    seed: int,
    store: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    progress: Progress = silent,
) -> ExpertBuffer:
    """Train ``config.num`` experts.

    Args:
        x: (N, *shape); y: (N,) int64, classes.
        seed: expert e is a function of (seed, e), whatever is trained beside it.
        store: where ``config.together`` experts at a time are kept; those that are there are not trained again. What is
            there has to be of this very data and configuration.
        progress: told (experts' epochs done, in all, "epochs of experts").

    Raises:
        Diverged: an expert's parameter is not finite.
    """
    found: list[NDArray[np.float32]] = []
    total = config.num * config.epochs
    for first in range(0, config.num, config.together):
        numbers = range(first, min(first + config.together, config.num))
        name = f"experts-{first}"
        kept = store.load(name)
        if kept is None:
            tell = _Told(progress, first * config.epochs, len(numbers), total)
            trained = _train(network, x, one_hot(y, num_classes, network.dtype), numbers, config, seed, tell)
            store.save(name, trained, {"experts": len(numbers)})
            kept = store.load(name) or (trained, {})  # from the store they are mapped, and take no memory
        found += [kept[0][f"expert-{number}"] for number in numbers]
        progress((first + len(numbers)) * config.epochs, total, "epochs of experts")
    return ExpertBuffer(found, config.variant)


def _train(
    network: FlatNetwork,
    x: Tensor,
    targets: Tensor,
    numbers: range,
    config: ExpertConfig,
    seed: int,
    tell: Callable[[int], None],
) -> dict[str, NDArray[np.float32]]:
    seeds = [derive_seed("expert", seed, number) for number in numbers]
    thetas = torch.stack([network.initial(own) for own in seeds])
    out = np.empty((len(seeds), config.epochs + 1, network.num_parameters), np.float32)
    out[:, 0] = thetas.cpu().numpy()

    def after_epoch(done: int, now: Tensor) -> None:
        out[:, done] = now.cpu().numpy()
        tell(done)

    config.descent().run(network, thetas, x, targets, seeds=seeds, after_epoch=after_epoch)
    return {f"expert-{number}": np.ascontiguousarray(out[i]) for i, number in enumerate(numbers)}


def _pairs(trajectory: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    return itertools.pairwise(trajectory)


class _Told(NamedTuple):
    """Progress of the experts that are trained at a time."""

    progress: Progress
    before: int
    num: int
    total: int

    def __call__(self, done: int, /) -> None:
        self.progress(self.before + done * self.num, self.total, "epochs of experts")
