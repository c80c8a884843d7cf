"""The convolutional network of the papers on data set distillation: blocks of convolution, normalisation, ReLU and
2 x 2 average pooling, then one linear layer.

    (C, H, W) -> (width, H/2, W/2) -> ... -> (width, H/2^depth, W/2^depth) -> K         sizes round down

The normalisation is one group a channel, ``GroupNorm(width, width)`` with weight and bias: the "InstanceNorm" of the
published code. It has no running statistics, so training and evaluation are one function of the parameters, which all
lie in ``parameters()``. ReLUs are not in place: a gradient may be taken of a gradient.

Source: Gidaris & Komodakis (CVPR 2018) as used by Zhao, Mopuri & Bilen (ICLR 2021) and everyone after them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from contracts.errors import NotApplicable
from contracts.params import Config, param


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvNetConfig(Config):
    """Architecture of :class:`ConvNet`."""

    width: int = param(128, ge=1, le=4096, doc="channels of every block")
    depth: int = param(3, ge=1, le=8, doc="blocks; each halves the image: 3 for 32 x 32, 4 for 64 x 64, 2 for 8 x 8")


class ConvNet(nn.Module):
    """The convolutional network of images on which data sets are distilled.

    Raises:
        NotApplicable: images of fewer than 2^depth pixels a side; the last normalisation would see one pixel, which is
            its own mean.
    """

    version: ClassVar[int] = 1  # raise it when the layers, their names or their initialisation change

    def __init__(self, config: ConvNetConfig, *, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        least = 2**config.depth
        if min(height, width) < least:
            raise NotApplicable(
                f"model 'convnet' of depth {config.depth} needs images of at least {least} x {least}; these are "
                f"{height} x {width}"
            )
        sizes = [channels] + [config.width] * config.depth
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(sizes))
        self.norms = nn.ModuleList(nn.GroupNorm(config.width, config.width) for _ in range(config.depth))
        self.head = nn.Linear(config.width * (height // least) * (width // least), num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) -> logits (B, K)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.avg_pool2d(F.relu(norm(conv(x))), 2)
        logits: Tensor = self.head(x.flatten(1))
        return logits
