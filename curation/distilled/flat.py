"""A network as a function of one vector: f(x; theta), theta (D,) all its parameters laid end to end.

    theta = [p_1.flatten(), p_2.flatten(), ...]        in the order of ``named_parameters()``

Distances between networks, steps of gradient descent and gradients of gradients are then operations on vectors. Every
vector that is given out is a copy: on the CPU ``p.detach()`` shares the memory of the live weights, so that a
trajectory of such views would stand still. A network with buffers (the running statistics of BatchNorm) or with
random layers (dropout) is no function of its parameters alone, and is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from contracts.errors import NotApplicable

_RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU)


class FlatNetwork:
    """An architecture as a function of a parameter vector.

    Attributes:
        num_parameters: D.
        shapes: of each parameter, by name.
    """

    def __init__(self, build: Callable[[int], nn.Module], *, dtype: torch.dtype = torch.float32, device: str = "cpu"):
        """
        Args:
            build: seed -> fresh model.

        Raises:
            NotApplicable: a network with buffers, or with layers that draw random numbers.
        """
        self.build, self.dtype, self.device = build, dtype, torch.device(device)
        self._module = copy.deepcopy(build(0)).train().to(self.device, dtype)
        if names := [name for name, _ in self._module.named_buffers()]:
            raise NotApplicable(
                f"distillation matches parameters; this network also has buffers ({', '.join(names[:3])}), which no "
                "vector of parameters holds: use a network without BatchNorm, such as convnet"
            )
        for name, module in self._module.named_modules():
            if isinstance(module, _RANDOM) and getattr(module, "p", 1.0) > 0:
                raise NotApplicable(f"distillation needs a network without random layers; {name!r} is one")
        self.shapes = {name: p.shape for name, p in self._module.named_parameters()}
        self._sizes = [shape.numel() for shape in self.shapes.values()]
        self.num_parameters = sum(self._sizes)

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """``theta`` (D,), ``x`` (B, *shape) -> logits (B, K); differentiable in both, any number of times."""
        logits: Tensor = functional_call(self._module, self.named(theta), (x,))
        return logits

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of the vector as parameters."""
        parts = theta.split(self._sizes)
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}

    def vector(self, model: nn.Module) -> Tensor:
        """The parameters of a model of this architecture, copied: (D,)."""
        return torch.cat([p.detach().to(self.device, self.dtype).flatten() for p in model.parameters()])

    def initial(self, seed: int) -> Tensor:
        """A fresh network's parameters (D,)."""
        return self.vector(self.build(seed))

    def module(self, theta: Tensor) -> nn.Module:
        """A model of its own with these parameters, in eval mode."""
        model = copy.deepcopy(self._module)
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), self.named(theta).values(), strict=True):
                parameter.copy_(value)
        return model.eval()

    @torch.no_grad()
    def logits(self, theta: Tensor, x: Tensor, *, batch: int = 1024) -> Tensor:
        """(N, K), in blocks of ``batch`` examples."""
        return torch.cat([self(theta, block) for block in x.split(batch)])

    def accuracy(self, theta: Tensor, x: Tensor, y: Tensor) -> float:
        """Share of ``x`` (N, *shape) that is given its class ``y`` (N,), in [0, 1]."""
        return float((self.logits(theta, x).argmax(1) == y).double().mean())


def soft_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """mean_i of - sum_c targets_ic log softmax(logits_i)_c: ``targets`` (B, K) are probabilities, not logits."""
    return F.cross_entropy(logits, targets)


def one_hot(y: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Hard labels as probabilities (N, K)."""
    return F.one_hot(y, num_classes).to(dtype)
