"""The optimiser of the attacks: signed Adam on many independent inversions at once, each with its own clock.

    x  <- clip(x - lr_r Adam(sign(grad_x)), box)         sign for x ONLY, where asked for
    m  <- clip(m - lr_r Adam(grad_m), [0, 1])            raw gradients: with signs every entry would jump by lr for ever

    plateau      lr_r x 0.1 once the loss has not fallen by a relative 1e-4 for ``patience`` steps (ReduceLROnPlateau)
    milestones   lr x 0.1 at 3/8, 5/8 and 7/8 of the steps (Geiping et al.)
    end          ``steps`` steps, loss < ``tolerance``, or ``stop_patience`` steps without improvement; the best iterate
                 is kept

R inversions share a graph but nothing else: learning rate, patience and end are each one's own, and those that have
ended are dropped from the graph. Moments, counts and bias correction are torch.optim.Adam's (betas 0.9, 0.999, eps
1e-8).

Source: Scheliga et al. (AAAI 2023, arXiv 2208.06163), algorithm 1 and the official settings; Geiping et al. (NeurIPS
    2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.gradient_inversion.objective import Objective
from contracts.errors import ConfigError
from contracts.params import Config, param
from contracts.progress import Progress, silent

Box = tuple[Tensor, Tensor]
_BETAS, _EPS = (0.9, 0.999), 1e-8
_FALL, _THRESHOLD = 0.1, 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class InversionConfig(Config):
    """How an inversion is optimised; the defaults are DIA's."""

    steps: int = param(20_000, ge=1, le=1_000_000, doc="most steps of an inversion")
    lr: float = param(0.1, gt=0, le=10, doc="Adam's first learning rate")
    signed: bool = param(True, doc="step along the sign of the input's gradient; masks always use the raw gradient")
    schedule: str = param("plateau", choices=("plateau", "milestones"), doc="when the learning rate falls")
    patience: int = param(800, ge=1, le=1_000_000, doc="plateau: steps without a fall of the loss before lr x 0.1")
    stop_patience: int = param(4000, ge=1, le=1_000_000, doc="steps without improvement that end an inversion")
    tolerance: float = param(1e-5, ge=0, le=1, doc="loss that ends an inversion")
    tv: float = param(1e-5, ge=0, le=10, doc="weight of the total variation; images only")
    mask_weight: float = param(1e-4, ge=0, le=10, doc="weight of |dropped share of a mask - p|")
    mask_init: str = param("bernoulli", choices=("bernoulli", "ones", "uniform"), doc="masks at the start")
    polish_steps: int = param(
        0, ge=0, le=1_000_000, doc="steps on x alone with the masks rounded, after the joint ones"
    )
    restarts: int = param(1, ge=1, le=1000, doc="starts of each inversion; the one with the lowest loss is kept")

    def check(self) -> None:
        if self.restarts > 1 and self.steps < 2:
            raise ConfigError("InversionConfig.restarts > 1 needs at least 2 steps")


@dataclass(frozen=True, eq=False)
class Inverted:
    """R reconstructions.

    Attributes:
        x: (R, B, *shape), the iterate with the lowest loss.
        masks: optimised or used masks, one (R, *site shape) a dropout call; () when dropout was off.
        targets: labels (R, B) or probabilities (R, B, K) used or found.
        loss: (R,), total loss of that iterate.
        distance: (R,), its distance alone (cosine: in [0, 2]).
        iterations: int64 (R,), steps taken until the end.
    """

    x: Tensor
    masks: tuple[Tensor, ...]
    targets: Tensor
    loss: Tensor
    distance: Tensor
    iterations: Tensor


def minimise(
    objective: Objective,
    x: Tensor,
    targets: Tensor,
    *,
    config: InversionConfig,
    box: Box,
    free: Sequence[Tensor] = (),
    given: Sequence[Tensor] | None = None,
    soft: bool = False,
    steps: int | None = None,
    progress: Progress = silent,
    what: str = "inversion",
) -> Inverted:
    """Minimise ``objective`` over ``x``, over ``free`` masks, and over label logits when ``soft``.

    Args:
        x: (R, B, *shape), the start.
        targets: int64 labels (R, B); logits (R, B, K) of label probabilities, the start, when ``soft``.
        box: (low, high), each broadcast against ``x``; every iterate lies within.
        free: masks to be optimised, their start; kept in [0, 1].
        given: masks used as they are; not together with ``free``. Without either, dropout is off.
        steps: in place of ``config.steps``.

    Raises:
        ConfigError: both ``free`` and ``given``.
    """
    if free and given is not None:
        raise ConfigError("masks are either optimised or given, not both")
    steps = config.steps if steps is None else steps
    end = 1 + len(free)
    leaves = [x.clamp(*box), *free, *([targets] if soft else [])]
    run = _Run([leaf.detach().clone() for leaf in leaves], config, steps)
    held = None if given is None else [m.detach() for m in given]
    labels = targets
    for step in range(steps + 1):
        live = [leaf.requires_grad_() for leaf in run.leaves]
        masks = held if held is not None else live[1:end] or None
        total, distance = objective(live[0], masks, torch.softmax(live[-1], dim=-1) if soft else labels)
        slopes = list(torch.autograd.grad(total.sum(), live))
        run.leaves = [leaf.detach() for leaf in live]
        run.record(total.detach(), distance.detach(), step)
        if step == steps or bool(run.ended.all()):
            break
        if config.signed:
            slopes[0] = slopes[0].sign()
        run.advance(slopes, step)
        run.leaves[0] = run.leaves[0].clamp(*box)
        run.leaves[1:end] = [m.clamp_(0, 1) for m in run.leaves[1:end]]
        going = (~run.ended).nonzero()[:, 0]
        if 2 * len(going) <= len(run.ended):
            run.select(going)
            objective = objective.rows(going)
            labels = labels[going]
            held = None if held is None else [m[going] for m in held]
        if step % 50 == 0:
            progress(step, steps, what)
    progress(steps, steps, what)
    best = run.best
    return Inverted(
        x=best[0],
        masks=tuple(best[1:end]) if given is None else tuple(given),
        targets=torch.softmax(best[-1], dim=-1) if soft else targets,
        loss=run.best_loss,
        distance=run.best_distance,
        iterations=run.taken,
    )


class _Run:
    """Adam's state and the clocks of the inversions still going (first dimension n), and the best of all R so far."""

    def __init__(self, leaves: list[Tensor], config: InversionConfig, steps: int) -> None:
        num, like = len(leaves[0]), leaves[0]
        self.config, self.steps, self.leaves = config, steps, leaves
        self.first = [torch.zeros_like(leaf) for leaf in leaves]
        self.second = [torch.zeros_like(leaf) for leaf in leaves]
        self.index = torch.arange(num, device=like.device)
        self.lr = like.new_full((num,), config.lr, dtype=torch.float64)
        self.plateau, self.bad = torch.full_like(self.lr, torch.inf), torch.zeros_like(self.index)
        self.since, self.ended = torch.zeros_like(self.index), torch.zeros_like(self.index, dtype=torch.bool)
        self.best = [leaf.clone() for leaf in leaves]
        self.best_loss = like.new_full((num,), torch.inf)
        self.best_distance = like.new_full((num,), torch.nan)
        self.taken = torch.zeros_like(self.index)

    def record(self, total: Tensor, distance: Tensor, step: int) -> None:
        """Keep what is better, move the clocks, mark what has ended. A loss that is not a number is never better."""
        going = ~self.ended
        better = going & (total < self.best_loss[self.index])
        rows, at = self.index[better], better.nonzero()[:, 0]
        self.best_loss[rows], self.best_distance[rows] = total[at], distance[at]
        for best, leaf in zip(self.best, self.leaves, strict=True):
            best[rows] = leaf[at]
        self.taken[self.index[going]] = step
        self.since = torch.where(better, 0, self.since + 1)
        self.ended = self.ended | (self.best_loss[self.index] < self.config.tolerance)
        self.ended = self.ended | (self.since >= self.config.stop_patience) | ~total.isfinite()
        if self.config.schedule == "plateau":
            loss = total.double()
            fell = loss < self.plateau * (1 - _THRESHOLD)
            self.plateau = torch.where(fell, loss, self.plateau)
            self.bad = torch.where(fell, 0, self.bad + 1)
            late = self.bad > self.config.patience
            self.lr, self.bad = torch.where(late, self.lr * _FALL, self.lr), torch.where(late, 0, self.bad)
        elif step in {self.steps * part // 8 for part in (3, 5, 7)} - {0}:
            self.lr = self.lr * _FALL

    def advance(self, slopes: Sequence[Tensor], step: int) -> None:
        """One step of Adam on every leaf, each inversion with its own learning rate."""
        beta1, beta2 = _BETAS
        one, two = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
        for number, slope in enumerate(slopes):
            first, second, leaf = self.first[number], self.second[number], self.leaves[number]
            first.mul_(beta1).add_(slope, alpha=1 - beta1)
            second.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
            rate = (self.lr / one).to(leaf.dtype).reshape(-1, *[1] * (leaf.dim() - 1))
            leaf.sub_(rate * first / (second.sqrt() / two**0.5 + _EPS))

    def select(self, rows: Tensor) -> None:
        """Go on with these inversions only."""
        self.leaves, self.first, self.second = (
            [t[rows] for t in group] for group in (self.leaves, self.first, self.second)
        )
        for name in ("index", "lr", "plateau", "bad", "since", "ended"):
            setattr(self, name, getattr(self, name)[rows])
