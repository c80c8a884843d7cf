"""SGD and AdamW on parameters with a leading model axis, each model with its own learning rate and step count.

    SGD:    g += wd p;  v = mu v + g;  p -= lr_m (g + mu v if nesterov else v)
    AdamW:  p *= 1 - lr_m wd;  m, v as usual;  p -= lr_m / (1 - b1^t_m) * m / (sqrt(v) / sqrt(1 - b2^t_m) + eps)

Elementwise and therefore separate for every model: the same numbers as torch.optim on one model at a time, up to
rounding. Gradient clipping takes the norm of each model's own gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recipes.schedule import SupervisedConfig

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


class StackedOptimizer:
    """State for ``params``, each (M, ...). A step concerns the first A models only: the others have no batch left."""

    def __init__(self, params: list[Tensor], config: SupervisedConfig) -> None:
        self.params, self.config = params, config
        self.first = [torch.zeros_like(p) for p in params]
        self.second = [torch.zeros_like(p) for p in params] if config.optimizer == "adamw" else []
        self.count = params[0].new_zeros(params[0].shape[0], dtype=torch.float64)

    @torch.no_grad()
    def step(self, grads: list[Tensor | None], lr: Tensor) -> None:
        """Update the first A models in place.

        Args:
            grads: (A, ...) a parameter, overwritten; None for a parameter that the loss does not reach, which stays.
            lr: (A,) learning rates in the parameters' dtype.
        """
        live = len(lr)
        self.count[:live] += 1
        if self.config.grad_clip is not None:
            _clip(grads, self.config.grad_clip)
        for i, (param, grad) in enumerate(zip(self.params, grads, strict=True)):
            if grad is None:
                continue
            param, first, rate = param[:live], self.first[i][:live], _column(lr, param)
            if self.config.optimizer == "sgd":
                self._sgd(param, grad, first, rate)
            else:
                self._adamw(param, grad, first, self.second[i][:live], rate)

    def _sgd(self, param: Tensor, grad: Tensor, velocity: Tensor, rate: Tensor) -> None:
        mu, decay = self.config.momentum, self.config.weight_decay
        if decay:
            grad.add_(param, alpha=decay)
        if mu:
            velocity.mul_(mu).add_(grad)
            grad = grad.add_(velocity, alpha=mu) if self.config.nesterov else velocity
        param.addcmul_(grad, rate, value=-1)

    def _adamw(self, param: Tensor, grad: Tensor, first: Tensor, second: Tensor, rate: Tensor) -> None:
        done = _column(self.count[: len(param)], param)
        if self.config.weight_decay:
            param.mul_(1 - rate * self.config.weight_decay)
        first.lerp_(grad, 1 - _BETA1)
        second.mul_(_BETA2).addcmul_(grad, grad, value=1 - _BETA2)
        size = (rate / (1 - _BETA1**done)).to(param.dtype)
        root = (1 - _BETA2**done).sqrt().to(param.dtype)
        param.addcdiv_(first * size, (second.sqrt() / root).add_(_EPS), value=-1)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """(A,) -> (A, 1, ..., 1) with as many axes as ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _clip(grads: list[Tensor | None], limit: float) -> None:
    """Scale each model's gradient to an L2 norm of at most ``limit``, as torch.nn.utils.clip_grad_norm_ does for one."""
    present = [g for g in grads if g is not None]
    norm = sum(g.flatten(1).square().sum(1) for g in present).sqrt()  # type: ignore[union-attr]
    factor = (limit / (norm + 1e-6)).clamp_(max=1)
    for grad in present:
        grad.mul_(_column(factor, grad))
