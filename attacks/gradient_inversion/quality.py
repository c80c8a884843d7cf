"""How close a reconstruction is: MSE, PSNR, SSIM, and which reconstruction belongs to which victim of a batch.

    MSE   mean (x - r)^2                                       in the scale of the model's inputs
    PSNR  10 log10( 1 / mean ((x - r) / (high - low))^2 )      dB, of values as shares of the box; at most 150
    SSIM  mean over windows and channels of
          (2 mu_x mu_r + C1)(2 cov + C2) / ((mu_x^2 + mu_r^2 + C1)(var_x + var_r + C2)),  C1 = .01^2, C2 = .03^2
          Gaussian window 11 x 11, sigma 1.5, whole windows only; images smaller than 11: the largest odd window that
          fits

Shapes: R batches (R, B, *shape) -> (R, B). A batch has no order, so victims and reconstructions are paired at minimum
    total
MSE (Hungarian). PSNR of a wrong image of the same class is often 10 to 20 dB: a number is to be read beside the
picture.

Source: Wang, Bovik, Sheikh, Simoncelli (IEEE TIP 2004), equation 13, population (not sample) moments.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.gradient_inversion.engine import Box
from contracts.errors import InvalidInput

MAX_PSNR = 150.0
_WINDOW, _SIGMA, _C1, _C2 = 11, 1.5, 0.01**2, 0.03**2


def mse(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared difference of each example: (R, B, *shape) twice -> float64 (R, B)."""
    _same(x, reconstruction)
    return (x.double() - reconstruction.double()).square().flatten(2).mean(2)


def psnr(x: Tensor, reconstruction: Tensor, *, box: Box) -> Tensor:
    """Peak signal-to-noise ratio, dB, float64 (R, B); higher = more is seen; at most 150.

    >>> zeros = torch.zeros(1, 1, 4)
    >>> psnr(zeros, zeros + 0.1, box=(torch.zeros(1), torch.ones(1))).round(decimals=4).tolist()
    [[20.0]]
    """
    _same(x, reconstruction)
    error = mse(_share(x, box), _share(reconstruction, box))
    return (-10 * torch.log10(error.clamp_min(1e-300))).clamp_max(MAX_PSNR)


def ssim(x: Tensor, reconstruction: Tensor, *, box: Box) -> Tensor | None:
    """Structural similarity, float64 (R, B) in [-1, 1]; None for what is no image (R, B, C, H, W)."""
    _same(x, reconstruction)
    if x.dim() != 5:
        return None
    first, second = _share(x, box).flatten(0, 1), _share(reconstruction, box).flatten(0, 1)
    size = min(_WINDOW, *x.shape[-2:])
    size -= 1 - size % 2
    at = torch.arange(size, dtype=torch.float64, device=x.device) - size // 2
    line = torch.exp(-(at**2) / (2 * _SIGMA**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(x.shape[2], 1, size, size)

    def local_mean(values: Tensor) -> Tensor:
        return F.conv2d(values, window, groups=values.shape[1])

    mean1, mean2 = local_mean(first), local_mean(second)
    var1, var2 = local_mean(first * first) - mean1**2, local_mean(second * second) - mean2**2
    cov = local_mean(first * second) - mean1 * mean2
    top = (2 * mean1 * mean2 + _C1) * (2 * cov + _C2)
    value = top / ((mean1**2 + mean2**2 + _C1) * (var1 + var2 + _C2))
    return value.flatten(1).mean(1).clamp(-1, 1).reshape(x.shape[:2])


def matched(x: Tensor, reconstruction: Tensor) -> Tensor:
    """For every victim of a batch, which reconstruction is its: int64 (R, B), a permutation a row, least total MSE."""
    _same(x, reconstruction)
    if x.shape[1] == 1:
        return torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
    cost = torch.cdist(x.double().flatten(2), reconstruction.double().flatten(2)).square()
    rows = [torch.from_numpy(linear_sum_assignment(c.nan_to_num(nan=1e300).cpu().numpy())[1]) for c in cost]
    return torch.stack(rows).to(x.device)


def in_order(values: Tensor, order: Tensor) -> Tensor:
    """``values`` (R, B, ...) rearranged by :func:`matched`'s answer."""
    return values[torch.arange(len(values), device=values.device)[:, None], order]


def _share(values: Tensor, box: Box) -> Tensor:
    low, high = box[0].double(), box[1].double()
    return (values.double() - low) / (high - low)


def _same(x: Tensor, reconstruction: Tensor) -> None:
    if x.shape != reconstruction.shape or x.dim() < 3:
        raise InvalidInput(f"victims {tuple(x.shape)} and reconstructions {tuple(reconstruction.shape)} must match")
