"""A U-Net of images: one of K classes for every pixel.

    (C, H, W) -> c_1 at full size, c_2 at half, ... c_L at 1 / 2^(L-1); then up again, and K logits a pixel
    block   (conv 3 x 3 -> InstanceNorm -> ReLU), ``convs`` times
    down    max pooling 2 x 2
    up      transposed conv 2 x 2, stride 2, beside the block's output of the same size on the way down

Images whose sides are no multiple of 2^(L-1) are padded with zeros at the right and at the bottom, and the logits of
the padding are cut off. The normalisation is one group a channel, ``GroupNorm(c, c)`` with weight and bias, which is
InstanceNorm without running statistics: no example sees another. ReLUs are not in place.

``outputs`` gives the logits of the ``deep`` coarser levels besides (deep supervision of nnU-Net, Isensee et al., Nature
Methods 2021), enlarged to full size; ``forward`` never reads them. Not nnU-Net itself: no strided convolutions, and
blocks of one width a level.

Source: Ronneberger, Fischer & Brox (MICCAI 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.errors import ConfigError, NotApplicable
from contracts.params import Config, param


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig(Config):
    """Architecture of :class:`UNet`."""

    channels: tuple[int, ...] = param((8, 16, 32), ge=1, le=2048, doc="of each level, full size first")
    convs: int = param(2, ge=1, le=8, doc="convolutions of each block")
    deep: int = param(0, ge=0, le=8, doc="coarser levels that answer too while they are trained; fewer than levels")

    def check(self) -> None:
        if len(self.channels) < 2 or len(self.channels) > 9:
            raise ConfigError(f"UNetConfig.channels = {self.channels}: a U-Net has 2 to 9 levels")
        if self.deep >= len(self.channels):
            raise ConfigError(f"UNetConfig.deep = {self.deep} must be below the {len(self.channels)} levels")


class _Block(nn.Module):
    def __init__(self, before: int, after: int, convs: int) -> None:
        super().__init__()
        sizes = (before, *[after] * convs)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.GroupNorm(after, after) for _ in range(convs))

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x


class UNet(nn.Module):
    """The U-Net of the file.

    Raises:
        NotApplicable: images of fewer than 2^L pixels a side; the last normalisation would see one pixel, which is its
            own mean.
    """

    version: ClassVar[int] = 1  # raise it when the layers, their names or their initialisation change

    def __init__(self, config: UNetConfig, *, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        least = 2 ** len(config.channels)
        if min(height, width) < least:
            raise NotApplicable(
                f"model 'unet' of {len(config.channels)} levels needs images of at least {least} x {least}; these are "
                f"{height} x {width}"
            )
        sizes = config.channels
        self.down = nn.ModuleList(_Block(a, b, config.convs) for a, b in pairwise((channels, *sizes)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(sizes))
        self.joined = nn.ModuleList(_Block(2 * a, a, config.convs) for a in sizes[:-1])
        self.head = nn.Conv2d(sizes[0], num_outputs, 1)
        self.deep = nn.ModuleList(nn.Conv2d(sizes[level], num_outputs, 1) for level in range(1, config.deep + 1))
        self._multiple = 2 ** (len(sizes) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) -> logits (B, K, H, W)."""
        logits: Tensor = self.head(self._levels(x)[0])
        return logits[..., : x.shape[2], : x.shape[3]]

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Logits (B, K, H, W) of the full size, then of each coarser level, enlarged by repetition."""
        height, width = x.shape[2:]
        levels = self._levels(x)
        coarse = [
            F.interpolate(head(levels[level]), scale_factor=2.0**level, mode="nearest")
            for level, head in enumerate(self.deep, start=1)
        ]
        return [z[..., :height, :width] for z in (self.head(levels[0]), *coarse)]

    def _levels(self, x: Tensor) -> list[Tensor]:
        """The features of each level on the way up, full size first."""
        below, right = (-side % self._multiple for side in x.shape[2:])
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        skips = []
        for number, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if number else x)
            skips.append(x)
        found = [x]
        for level in range(len(skips) - 2, -1, -1):
            x = self.joined[level](torch.cat([self.up[level](x), skips[level]], 1))
            found.append(x)
        return found[::-1]
