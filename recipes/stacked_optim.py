"""torch.optim on parameters with a leading model axis, each model with its own learning rate and number of steps.

SGD and AdamW are elementwise, so one optimiser serves all models. Models with equally many steps an epoch share their
learning rates for good: they form one parameter group, a slice of every stacked parameter. A group whose models have
no batch left in an epoch has no gradient and is skipped by torch.optim: no momentum, no weight decay, no step counted.
Gradient clipping takes the norm of each model's own gradient.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recipes.fitting import make_optimizer
from recipes.schedule import SupervisedConfig


class StackedOptimizer:
    """Updates ``params``, each (M, ...), in place.

    Args:
        steps: (M,) steps an epoch of each model, falling.
    """

    def __init__(self, params: list[Tensor], steps: np.ndarray, config: SupervisedConfig) -> None:
        self.clip = config.grad_clip
        starts = np.flatnonzero(np.diff(steps, prepend=-1)).tolist()
        self.slices = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(steps)], strict=True)]
        self.groups = [[p[part].detach() for p in params] for part in self.slices]
        self.optimizer = make_optimizer([{"params": group} for group in self.groups], config)

    @torch.no_grad()
    def step(self, grads: list[Tensor | None], rates: list[float]) -> None:
        """Update the first groups, as many as there are ``rates``.

        Args:
            grads: (A, ...) a parameter, scaled in place when clipped; None for one that the loss does not reach.
            rates: learning rate of each group that has a batch.
        """
        if self.clip is not None:
            _clip(grads, self.clip)
        for number, (group, part) in enumerate(zip(self.groups, self.slices, strict=True)):
            live = number < len(rates)
            for param, grad in zip(group, grads, strict=True):
                # The fused kernels walk memory as it lies: a gradient with other strides would be read wrongly.
                param.grad = grad[part].contiguous() if live and grad is not None else None
            if live:
                self.optimizer.param_groups[number]["lr"] = rates[number]
        self.optimizer.step()


def _clip(grads: list[Tensor | None], limit: float) -> None:
    """Scale each model's gradient to an L2 norm of at most ``limit``, as torch.nn.utils.clip_grad_norm_ does for
    one."""
    present = [g for g in grads if g is not None]
    norm = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in present]).square().sum(0).sqrt()
    factor = (limit / (norm + 1e-6)).clamp_(max=1)
    for grad in present:
        grad.mul_(factor.view(-1, *[1] * (grad.ndim - 1)))
