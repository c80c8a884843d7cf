"""One secret random filter a class, and what it makes of images.

    s_c    (k, k): entries iid U(0, p_b), then one entry, its row and column uniform, set to 1
    z      x * s_y: cross-correlation, the same filter for every channel, zero padding k // 2, no bias
    out    clip(z / max z, 0, 1), the maximum over channels and pixels; an image of zeros stays one

The sum over the k^2 shifts of the padded image is taken over blocks of images that fit into the cache: no filter is
repeated in memory, and no convolution is planned for every class.

Source: Sadasivan, Soltanolkotabi, Feizi, "CUDA: Convolution-based Unlearnable Datasets" (CVPR 2023, arXiv 2303.04278),
section 3 and algorithm 1.
Shapes: x (B, C, H, W) float32 in [0, 1], y (B,) int64 -> out (B, C, H, W) float32 in [0, 1], scale (B,) float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.errors import InvalidInput

_BLOCK = 2**18  # numbers of a block of images: a megabyte, so that image, sum and product stay in the cache
_LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class ClassFilters:
    """Attributes:
    weights: (K, k, k) float32, k odd.
    """

    weights: Tensor

    @classmethod
    def drawn(cls, num_classes: int, *, size: int, blur: float, rng: np.random.Generator) -> Self:
        """The filters of K classes, class after class from one stream: the first K of more classes are the same.

        Args:
            size: k, odd. ``blur``: p_b, >= 0; at 0 a filter only shifts the image.

        Raises:
            InvalidInput: no class, an even or negative size, or a negative blur.
        """
        if num_classes < 1 or size < 1 or size % 2 == 0 or blur < 0:
            raise InvalidInput(f"{num_classes} filters of size {size} and blur {blur}: >= 1, odd, >= 0")
        drawn = np.empty((num_classes, size, size), np.float32)
        for one in drawn:
            one[:] = rng.uniform(0, blur, (size, size))
            one[rng.integers(size), rng.integers(size)] = 1
        return cls(torch.from_numpy(drawn))

    def universal(self) -> Self:
        """The first filter for every class: the control that changes images as much and says nothing of the class."""
        return type(self)(self.weights[:1].expand_as(self.weights))

    def permuted(self) -> Self:
        """Every class with the filter of the next one."""
        return type(self)(self.weights.roll(-1, 0))

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The filtered images and what each was divided by; see the module.

        Raises:
            InvalidInput: no images, or a class without a filter.
        """
        if x.dim() != 4 or y.shape != x.shape[:1]:
            raise InvalidInput(f"class filters take images (B, C, H, W) and (B,) classes, not {x.shape} and {y.shape}")
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(self.weights):
            raise InvalidInput(f"classes {int(y.min())} to {int(y.max())}; there are filters of {len(self.weights)}")
        size = self.weights.shape[-1]
        weights = self.weights.to(x.device)[y]
        out = torch.empty_like(x)
        step = max(1, _BLOCK // max(x[0].numel(), 1)) if len(x) else 1
        for rows in (slice(start, start + step) for start in range(0, len(x), step)):
            padded, summed, (height, width) = F.pad(x[rows], [size // 2] * 4), out[rows].zero_(), x.shape[2:]
            for a in range(size):
                for b in range(size):
                    own = weights[rows, a, b, None, None, None]
                    summed.addcmul_(padded[..., a : a + height, b : b + width], own)
        scale = out.amax((1, 2, 3)) if len(x) else x.new_empty(0)
        out.div_(scale.clamp_min(_LEAST)[:, None, None, None]).clamp_(0, 1)
        return out, scale
