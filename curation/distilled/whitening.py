"""The scale on which images are distilled: standardised a channel, and whitened (ZCA) where that is asked for.

    standardised   (x - m_c) / s_c                      of the images that are distilled
    ZCA            z = (u - mean) U diag(1 / sqrt(v + eps)) U',    v, U the eigenpairs of the covariance of the pixels u

ZCA is symmetric, so that a whitened image still looks like one; the inverse brings distilled images back to the scale
on which people look at them. It costs the square of the number of pixels and is not needed for large images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from contracts.errors import DataError, NotApplicable

MOST_PIXELS = 4096


@dataclass(frozen=True, eq=False)
class Scale:
    """A change of units of images, and its inverse.

    Attributes:
        shift, spread: (C, 1, 1), of each channel.
        mean: (P,) of the standardised pixels; whiten, color: (P, P), inverse to each other. None without ZCA.
    """

    shift: Tensor
    spread: Tensor
    mean: Tensor | None = None
    whiten: Tensor | None = None
    color: Tensor | None = None

    @classmethod
    def fit(cls, x: Tensor, *, zca: bool = False, eps: float = 0.1) -> Self:
        """Of images (N, C, H, W).

        Args:
            eps: added to the variances that ZCA divides by.

        Raises:
            NotApplicable: ZCA of more than ``MOST_PIXELS`` values an image.
            DataError: no image.
        """
        if not len(x):
            raise DataError("there is no training image to fit a scale to")
        shift, spread = x.mean((0, 2, 3))[:, None, None], x.std((0, 2, 3), correction=0)[:, None, None]
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        if not zca:
            return cls(shift, spread)
        if x[0].numel() > MOST_PIXELS:
            raise NotApplicable(
                f"ZCA of images of {x[0].numel():,} values takes memory by the square of that; up to {MOST_PIXELS:,} "
                "are whitened. Large images do not need it: set zca: false"
            )
        pixels = ((x - shift) / spread).flatten(1).double()
        mean = pixels.mean(0)
        values, vectors = torch.linalg.eigh((pixels - mean).T @ (pixels - mean) / len(pixels))
        root = (values.clamp(min=0) + eps).sqrt()
        whiten, color = (vectors / root) @ vectors.T, (vectors * root) @ vectors.T
        return cls(shift, spread, mean.to(x.dtype), whiten.to(x.dtype), color.to(x.dtype))

    def to(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images in these units."""
        x = (x - self.shift) / self.spread
        if self.mean is None or self.whiten is None:
            return x
        return ((x.flatten(1) - self.mean) @ self.whiten).view_as(x)

    def standardised(self, z: Tensor) -> Tensor:
        """Images in these units without the whitening, which is undone."""
        if self.mean is None or self.color is None:
            return z
        return (z.flatten(1) @ self.color + self.mean).view_as(z)
