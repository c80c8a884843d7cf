"""Models as a user would bring them, for ``module:callable``."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.recsys_models import MatrixFactorization, MFConfig


def linear(input_shape, num_outputs, *, scale=1.0):
    model = nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), num_outputs))
    with torch.no_grad():
        model[1].weight.mul_(scale)
    return model


def wrong_outputs(input_shape, num_outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), num_outputs + 1))


def not_a_module(input_shape, num_outputs):
    return {"shape": input_shape}


def frozen(input_shape, num_outputs):
    return linear(input_shape, num_outputs).requires_grad_(False)


def batchnorm(input_shape, num_outputs):
    width = prod(input_shape)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(width), nn.Linear(width, num_outputs))


class Odd(nn.Module):
    """Partly frozen, one parameter unused, one tied, one a scalar, and (when counting) a buffer that every training
    step changes."""

    def __init__(self, input_shape, num_outputs, *, counting=False):
        super().__init__()
        width = prod(input_shape)
        self.fixed = nn.Linear(width, width)
        self.fixed.requires_grad_(False)
        self.tied = nn.Linear(width, width)
        self.again = nn.Linear(width, width)
        self.again.weight = self.tied.weight
        self.gain = nn.Parameter(torch.ones(()))
        self.unused = nn.Parameter(torch.ones(3))
        self.out = nn.Linear(width, num_outputs)
        self.counting = counting
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.counting:
            self.seen += x.abs().sum()
        x = torch.tanh(self.fixed(x.flatten(1)))
        return self.gain * self.out(torch.tanh(self.again(torch.tanh(self.tied(x)))))


class Noisy(nn.Module):
    """Draws random numbers by a function, not by a module: no list of types would find it."""

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.out = nn.Linear(prod(input_shape), num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.dropout(x.flatten(1), 0.3, self.training))


class Branching(nn.Module):
    """Data-dependent control flow, which vmap cannot follow."""

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.out = nn.Linear(prod(input_shape), num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.out(x.flatten(1))
        return logits if float(logits.detach().sum()) > 0 else 2 * logits


def ranker(input_shape, num_outputs, *, dim):
    return MatrixFactorization(MFConfig(dim=dim), input_shape=input_shape, num_outputs=num_outputs)


class Mean(nn.Module):
    """A graph network of one's own, without a library: a node is its numbers and the mean of what it is told."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(2 * width, num_outputs)

    def forward(self, x: Tensor, edge_index: Tensor, nodes: Tensor) -> Tensor:
        source, target = edge_index
        told = torch.zeros_like(x).index_add(0, target, x[source])
        many = torch.zeros(len(x)).index_add(0, target, torch.ones(len(source))).clamp(min=1)
        return self.head(torch.cat([x, told / many[:, None]], dim=1))[nodes]


def mean_graph(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return Mean(input_shape[0], num_outputs)
