"""Stochastic gradient descent of several networks at once, on flat vectors: what trains experts and students alike.

    thetas (E, D): network e has its own initialisation, order of the examples and augmentation, by its own seed
    loss_e    c(epoch) mean_i CE(q_i, f(A(x_i); theta_e)) + lambda P_e
    P         mean over images and pixels of (|d sum_k f_k / dx|_channels - 1)^2        (norm = per_pixel, AST's code)
              mean over images of (|d sum_k f_k / dx| - 1)^2                            (norm = per_sample, WGAN-GP)
              on images that are not augmented
    sgd       b = m b + g + d theta;  theta -= r b            adam   with d added to the gradient
    GSAM      g at theta; g' at theta + rho g / |g| (adaptive: rho theta^2 g / ||theta| g|); the step is along
              g' - alpha (part of g that is orthogonal to g')

On CUDA the networks are one, under ``torch.func.vmap``; on the CPU one after the other, which is as fast
(``benchmarks/distillation``). Both give the same numbers but for rounding.

GSAM: Zhuang et al. (ICLR 2022), in FTD: Du et al. (CVPR 2023, arXiv 2211.11004).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, vmap

from contracts.digests import derive_seed
from contracts.errors import Diverged
from curation.distilled.augment import NONE, Augment
from curation.distilled.flat import FlatNetwork, soft_loss
from recipes.rng import generator

PenaltyNorm = Literal["per_pixel", "per_sample"]
Path = Literal["auto", "loop", "vmap"]


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How to train; functions of the epoch, from 0, are constant within it.

    Attributes:
        rate, momentum, loss_scale: of an epoch.
        weight_decay: added to the gradient.
        penalty: lambda. sam_rho: rho, 0 for none. sam_alpha: alpha; 0 is SAM.
        path: see the head of this file; "auto" goes by the device.
    """

    epochs: int
    batch: int
    rate: Callable[[int], float]
    momentum: Callable[[int], float] = lambda epoch: 0.0
    loss_scale: Callable[[int], float] = lambda epoch: 1.0
    weight_decay: float = 0.0
    adam: bool = False
    penalty: float = 0.0
    penalty_norm: PenaltyNorm = "per_pixel"
    sam_rho: float = 0.0
    sam_alpha: float = 0.0
    sam_adaptive: bool = True
    augment: Augment = NONE
    path: Path = "auto"

    def run(
        self,
        network: FlatNetwork,
        thetas: Tensor,
        x: Tensor,
        targets: Tensor,
        *,
        seeds: Sequence[int],
        after_epoch: Callable[[int, Tensor], None] = lambda done, thetas: None,
    ) -> Tensor:
        """The trained networks (E, D), fresh memory.

        Args:
            thetas: (E, D), as they start. x: (N, *shape). targets: (N, K) probabilities. seeds: E.
            after_epoch: called with the epochs done and a copy of the networks as they are then.

        Raises:
            Diverged: a parameter is not finite; names network and epoch.
        """
        thetas, first, second = thetas.clone(), torch.zeros_like(thetas), torch.zeros_like(thetas)
        steps = 0
        for epoch in range(self.epochs):
            orders = torch.stack(
                [torch.randperm(len(x), generator=generator(derive_seed("order", seed, epoch))) for seed in seeds]
            ).to(x.device)
            for number, rows in enumerate(orders.split(self.batch, dim=1)):
                given = x[rows]
                changed = given
                if self.augment.strategies:
                    changed = torch.stack(
                        [
                            self.augment(own, derive_seed("augment", seed, epoch, number))
                            for own, seed in zip(given, seeds, strict=True)
                        ]
                    )
                gradient = self._direction(network, thetas, changed, targets[rows], given, epoch)
                gradient = gradient + self.weight_decay * thetas if self.weight_decay else gradient
                steps += 1
                if self.adam:
                    first = 0.9 * first + 0.1 * gradient
                    second = 0.999 * second + 0.001 * gradient.square()
                    scale = (second / (1 - 0.999**steps)).sqrt() + 1e-8
                    thetas = thetas - self.rate(epoch) * (first / (1 - 0.9**steps)) / scale
                else:
                    momentum = self.momentum(epoch)
                    first = momentum * first + gradient if momentum else gradient
                    thetas = thetas - self.rate(epoch) * first
            finite = torch.isfinite(thetas).all(1)
            if not bool(finite.all()):
                broken = int((~finite).nonzero()[0])
                raise Diverged(
                    f"network {broken} diverged in epoch {epoch + 1} of {self.epochs}: a parameter is not finite. "
                    f"Lower the learning rate (= {self.rate(epoch):g})"
                )
            after_epoch(epoch + 1, thetas.clone())
        return thetas

    def _direction(
        self, network: FlatNetwork, thetas: Tensor, x: Tensor, targets: Tensor, given: Tensor, epoch: int
    ) -> Tensor:
        """(E, D): the gradient, or GSAM's direction."""
        at = partial(self._gradients, network, x=x, targets=targets, given=given, scale=self.loss_scale(epoch))
        gradient = at(thetas)
        if not self.sam_rho:
            return gradient
        weight = thetas.abs() if self.sam_adaptive else torch.ones_like(thetas)
        length = (weight * gradient).norm(dim=1, keepdim=True) + 1e-12
        higher = at(thetas + self.sam_rho * weight.square() * gradient / length)
        along = higher / (higher.norm(dim=1, keepdim=True) + 1e-12)
        across = gradient - (gradient * along).sum(1, keepdim=True) * along
        return higher - self.sam_alpha * across

    def _gradients(
        self, network: FlatNetwork, thetas: Tensor, *, x: Tensor, targets: Tensor, given: Tensor, scale: float
    ) -> Tensor:
        """(E, D): each network's gradient of the loss of its own batch."""

        def loss(theta: Tensor, images: Tensor, wanted: Tensor, plain: Tensor) -> Tensor:
            value = scale * soft_loss(network(theta, images), wanted)
            if self.penalty:
                value = value + self.penalty * gradient_penalty(network, theta, plain, norm=self.penalty_norm)
            return value

        if self.path == "vmap" or (self.path == "auto" and thetas.device.type == "cuda"):
            return vmap(grad(loss))(thetas, x, targets, given)
        found = []
        for theta, *batch in zip(thetas, x, targets, given, strict=True):
            theta = theta.detach().requires_grad_()
            found += torch.autograd.grad(loss(theta, *batch), theta)
        return torch.stack(found)


def gradient_penalty(network: FlatNetwork, theta: Tensor, x: Tensor, *, norm: PenaltyNorm = "per_pixel") -> Tensor:
    """P of the images ``x`` (B, C, H, W): a scalar >= 0, differentiable in ``theta``."""
    slope = grad(lambda images: network(theta, images).sum())(x)
    over = (1,) if norm == "per_pixel" else tuple(range(1, x.ndim))
    return (torch.linalg.vector_norm(slope, dim=over) - 1).square().mean()
