"""Differentiable Siamese augmentation: one kind of change, drawn at random for a batch, differentiable in the images.

    color    brightness x + (u - 0.5), then saturation m + 2 u (x - m) with m the mean over channels, then contrast
             m + (u + 0.5)(x - m) with m the mean of the image                                       u ~ U[0, 1)
    crop     shifted by up to 1/8 of each side, zeros outside
    cutout   a square of half the side, centred anywhere, set to zero
    flip     left to right, with probability 1/2
    scale    each axis by a factor from 1/1.2 to 1.2, bilinear, zeros outside
    rotate   by up to 15 degrees, bilinear, zeros outside

The numbers of a change are drawn from the seed alone, one set an image or one for the batch (``siamese``): the same
seed makes the same change, in a first pass and when the gradient is taken later. Every change is linear or affine in x.

Source: Zhao & Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021, arXiv 2102.08259); the
constants are those of its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.errors import ConfigError
from recipes.rng import generator

STRATEGIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
_CROP, _CUTOUT, _SCALE, _ROTATE = 0.125, 0.5, 1.2, 15.0
_BRIGHTNESS, _SATURATION, _CONTRAST = 1.0, 2.0, 0.5


@dataclass(frozen=True, slots=True)
class Augment:
    """What :func:`augment` draws from.

    Attributes:
        strategies: kinds of change, of ``STRATEGIES``; none leaves images as they are.
        siamese: the same numbers for every image of a batch.

    Raises:
        ConfigError: an unknown kind; lists the known.
    """

    strategies: tuple[str, ...] = STRATEGIES
    siamese: bool = False

    def __post_init__(self) -> None:
        if unknown := [s for s in self.strategies if s not in STRATEGIES]:
            raise ConfigError(f"augmentation {', '.join(unknown)} is not one of {', '.join(STRATEGIES)}")

    def __call__(self, x: Tensor, seed: int) -> Tensor:
        """``x`` (B, C, H, W) -> the same shape; a function of ``x`` and ``seed``."""
        if not self.strategies or not len(x):
            return x
        g = generator(seed)
        kind = self.strategies[int(torch.randint(len(self.strategies), (), generator=g))]
        draw = _Draws(g, len(x), siamese=self.siamese, like=x)
        return _CHANGES[kind](x, draw)


NONE = Augment(())


class _Draws:
    """Numbers of one change, drawn on the CPU in float32: the same whatever the images' device and dtype."""

    def __init__(self, g: torch.Generator, num: int, *, siamese: bool, like: Tensor) -> None:
        self.g, self.num, self.siamese, self.like = g, num, siamese, like

    def uniform(self) -> Tensor:
        """(B,) in [0, 1)."""
        drawn = torch.rand(1 if self.siamese else self.num, generator=self.g)
        return drawn.expand(self.num).to(self.like.device, self.like.dtype)

    def whole(self, low: int, high: int) -> Tensor:
        """(B,) whole numbers, low <= n < high."""
        drawn = torch.randint(low, high, (1 if self.siamese else self.num,), generator=self.g)
        return drawn.expand(self.num).to(self.like.device)


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _color(x: Tensor, draw: _Draws) -> Tensor:
    x = x + _each(draw.uniform() - 0.5) * _BRIGHTNESS
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * _each(draw.uniform()) * _SATURATION if x.shape[1] > 1 else x
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * _each(draw.uniform() + _CONTRAST)


def _crop(x: Tensor, draw: _Draws) -> Tensor:
    height, width = x.shape[2:]
    down, right = int(height * _CROP + 0.5), int(width * _CROP + 0.5)
    rows = _line(height, x) + draw.whole(-down, down + 1)[:, None] + down
    columns = _line(width, x) + draw.whole(-right, right + 1)[:, None] + right
    padded = F.pad(x, (right, right, down, down))
    number = torch.arange(len(x), device=x.device)
    return padded.permute(0, 2, 3, 1)[number[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(x: Tensor, draw: _Draws) -> Tensor:
    kept = torch.zeros(len(x), *x.shape[2:], dtype=torch.bool, device=x.device)
    for axis, length in enumerate(x.shape[2:]):
        size = int(length * _CUTOUT + 0.5)
        first = draw.whole(0, length + (1 - size % 2)) - size // 2
        at = _line(length, x)
        outside = (at < first[:, None]) | (at >= first[:, None] + size)
        kept = kept | (outside[:, :, None] if axis == 0 else outside[:, None, :])
    return x * kept[:, None].to(x.dtype)


def _flip(x: Tensor, draw: _Draws) -> Tensor:
    return torch.where(_each(draw.uniform() < 0.5), x.flip(3), x)


def _scale(x: Tensor, draw: _Draws) -> Tensor:
    low = 1 / _SCALE
    across, along = (draw.uniform() * (_SCALE - low) + low for _ in range(2))
    zero = torch.zeros_like(across)
    return _affine(x, [[across, zero], [zero, along]])


def _rotate(x: Tensor, draw: _Draws) -> Tensor:
    angle = (draw.uniform() - 0.5) * 2 * _ROTATE / 180 * math.pi
    return _affine(x, [[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])


def _affine(x: Tensor, matrix: Sequence[Sequence[Tensor]]) -> Tensor:
    """Each image read at the places that its (2, 2) matrix says, about its centre."""
    linear = torch.stack([torch.stack(list(row), -1) for row in matrix], -2)
    where = F.affine_grid(F.pad(linear, (0, 1)), list(x.shape), align_corners=True)
    return F.grid_sample(x, where, align_corners=True)


def _line(length: int, like: Tensor) -> Tensor:
    return torch.arange(length, device=like.device)[None]


_CHANGES: dict[str, Callable[[Tensor, _Draws], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
