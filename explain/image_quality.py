"""How like two images are: PSNR and SSIM of values in [0, 1].

    PSNR  10 log10( 1 / mean (x - r)^2 )                       dB; at most 150
    SSIM  mean over windows and channels of
          (2 mu_x mu_r + C1)(2 cov + C2) / ((mu_x^2 + mu_r^2 + C1)(var_x + var_r + C2)),  C1 = .01^2, C2 = .03^2
          Gaussian window 11 x 11, sigma 1.5, whole windows only; images smaller than 11: the largest odd window that
          fits

Shapes: (N, *shape) twice -> float64 (N,). Values outside [0, 1] are taken as they are. PSNR of a wrong image of the
same class is often 10 to 20 dB: a number is to be read beside the picture.

Source: Wang, Bovik, Sheikh, Simoncelli (IEEE TIP 2004), equation 13, population (not sample) moments.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.errors import InvalidInput

MAX_PSNR = 150.0
_WINDOW, _SIGMA, _C1, _C2 = 11, 1.5, 0.01**2, 0.03**2


def psnr(x: Tensor, other: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, dB, float64 (N,); higher = more alike; at most 150.

    >>> psnr(torch.zeros(1, 4), torch.full((1, 4), 0.1)).round(decimals=4).tolist()
    [20.0]
    """
    _same(x, other)
    error = (x.double() - other.double()).square().flatten(1).mean(1)
    return (-10 * torch.log10(error.clamp_min(1e-300))).clamp_max(MAX_PSNR)


def ssim(x: Tensor, other: Tensor) -> Tensor:
    """Structural similarity, float64 (N,) in [-1, 1]; higher = more alike.

    Raises:
        InvalidInput: no images (N, C, H, W), or of unequal shapes.
    """
    _same(x, other)
    if x.dim() != 4:
        raise InvalidInput(f"SSIM is of images (N, C, H, W), not {tuple(x.shape)}")
    first, second = x.double(), other.double()
    size = min(_WINDOW, *x.shape[-2:])
    size -= 1 - size % 2
    rows, columns = (_windows(side, size, x.device) for side in x.shape[-2:])

    def local_mean(values: Tensor) -> Tensor:  # the window is a product of two lines, and a line's means are a product
        return rows @ values @ columns.T

    mean1, mean2 = local_mean(first), local_mean(second)
    var1, var2 = local_mean(first * first) - mean1**2, local_mean(second * second) - mean2**2
    cov = local_mean(first * second) - mean1 * mean2
    top = (2 * mean1 * mean2 + _C1) * (2 * cov + _C2)
    value = top / ((mean1**2 + mean2**2 + _C1) * (var1 + var2 + _C2))
    return value.flatten(1).mean(1).clamp(-1, 1)


def _windows(side: int, size: int, device: torch.device) -> Tensor:
    """(side - size + 1, side) float64: in each row one whole Gaussian window, which sums to 1."""
    at = torch.arange(size, dtype=torch.float64, device=device) - size // 2
    line = torch.exp(-(at**2) / (2 * _SIGMA**2))
    return torch.stack([F.pad(line / line.sum(), (k, side - size - k)) for k in range(side - size + 1)])


def _same(x: Tensor, other: Tensor) -> None:
    if x.shape != other.shape or x.dim() < 2:
        raise InvalidInput(f"images {tuple(x.shape)} and {tuple(other.shape)} must match")
