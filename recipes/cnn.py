"""A small convolutional network: two 3x3 convolutions, each with ReLU and 2x2 max pooling, then one hidden layer.

    (C, H, W) -> (c1, H/2, W/2) -> (c2, H/4, W/4) -> hidden -> K          sizes round down

No normalisation, so per-example gradients and stacked ensembles are well defined. ReLUs are not in place: hooks on
module outputs see true values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from contracts.errors import NotApplicable
from contracts.params import Config, param


@dataclass(frozen=True, kw_only=True, slots=True)
class CNNConfig(Config):
    """Architecture of :class:`CNN`."""

    channels: tuple[int, int] = param((16, 32), ge=1, le=4096, doc="channels of the two convolutions")
    hidden: int = param(64, ge=1, le=65_536, doc="units of the hidden layer")


class CNN(nn.Module):
    """A small convolutional network of images: two convolutions with pooling, one hidden layer.

    Raises:
        NotApplicable: images smaller than 4 x 4.
    """

    version: ClassVar[int] = 1  # raise it when the layers, their names or their initialisation change

    def __init__(self, config: CNNConfig, *, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        depth, height, width = input_shape
        if min(height, width) < 4:
            raise NotApplicable(f"model 'cnn' needs images of at least 4 x 4; these are {height} x {width}")
        first, second = config.channels
        self.conv1 = nn.Conv2d(depth, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.hidden = nn.Linear(second * (height // 4) * (width // 4), config.hidden)
        self.head = nn.Linear(config.hidden, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) -> logits (B, K)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.head(F.relu(self.hidden(x.flatten(1))))
