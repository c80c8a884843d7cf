"""Residual network with GroupNorm in place of BatchNorm (He et al., CVPR 2016; Wu & He, ECCV 2018).

    stem 3x3 -> GN -> ReLU, then one stage a width; the first block of every later stage halves height and width
    block: y = ReLU(GN(conv3x3(ReLU(GN(conv3x3(x))))) + shortcut(x)),  shortcut = identity or GN(conv1x1)
    mean over positions -> K

Widths default to (16, 32, 64), the CIFAR layout. GroupNorm because BatchNorm mixes the examples of a batch:
per-example gradients, stacked ensembles and membership statistics are then undefined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from contracts.errors import ConfigError
from contracts.params import Config, param


@dataclass(frozen=True, kw_only=True, slots=True)
class ResNetConfig(Config):
    """Architecture of :class:`ResNetGN`."""

    widths: tuple[int, ...] = param((16, 32, 64), ge=1, le=4096, doc="channels of each stage")
    blocks: int = param(1, ge=1, le=100, doc="residual blocks a stage")
    groups: int = param(8, ge=1, le=4096, doc="groups of every GroupNorm; must divide every width")

    def check(self) -> None:
        wrong = [w for w in self.widths if w % self.groups]
        if not self.widths or wrong:
            raise ConfigError(f"ResNetConfig.groups = {self.groups} must divide every width; widths = {self.widths}")


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, after)
        self.shortcut = nn.Identity()
        if stride != 1 or before != after:
            conv = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.GroupNorm(groups, after))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNetGN(nn.Module):
    """A residual network of images, with group in place of batch normalisation."""

    version: ClassVar[int] = 1  # raise it when the layers, their names or their initialisation change

    def __init__(self, config: ResNetConfig, *, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], config.widths[0], 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(config.groups, config.widths[0])
        blocks, before = [], config.widths[0]
        for stage, width in enumerate(config.widths):
            for number in range(config.blocks):
                blocks.append(_Block(before, width, 2 if stage and not number else 1, config.groups))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) -> logits (B, K)."""
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))
