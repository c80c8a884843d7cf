"""Multi-layer perceptron on flattened inputs.

    h_0 = flatten(x)                 (B, D)
    h_l = act(W_l h_{l-1} + b_l)     (B, H_l),  l = 1 .. L
    z   = W_out h_L + b_out          (B, K)

The stacked trainer (recipes.stacked) knows this structure and trains many of them with one batched product a layer.
Not a convolutional model: neighbouring pixels mean nothing to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.params import Config, param

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "silu": F.silu,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPConfig(Config):
    """Architecture of :class:`MLP`."""

    hidden: tuple[int, ...] = param((128,), ge=1, le=65_536, doc="units of each hidden layer; () is a linear model")
    activation: str = param("relu", choices=tuple(ACTIVATIONS), doc="after every hidden layer")
    dropout: float = param(0.0, ge=0, lt=1, doc="after every hidden layer; 0 lets ensembles train stacked")


class MLP(nn.Module):
    """A multilayer perceptron of vectors, or of images flattened.

    ``hidden`` holds the hidden layers, ``head`` the output layer.
    """

    version: ClassVar[int] = 1  # raise it when the layers, their names or their initialisation change

    def __init__(self, config: MLPConfig, *, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        self.activation, self.p = config.activation, config.dropout
        sizes = [prod(input_shape), *config.hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(sizes[-1], num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, *input_shape) -> logits (B, K)."""
        act, x = ACTIVATIONS[self.activation], x.flatten(1)
        for layer in self.hidden:
            x = self.dropout(act(layer(x)))
        return self.head(x)
