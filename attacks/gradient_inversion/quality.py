"""How close a reconstruction is: MSE, PSNR, SSIM, and which reconstruction belongs to which victim of a batch.

    MSE   mean (x - r)^2                                       in the scale of the model's inputs
    PSNR, SSIM                       of values as shares of the box: ``explain.image_quality``

Shapes: R batches (R, B, *shape) -> (R, B). A batch has no order, so victims and reconstructions are paired at minimum
    total
MSE (Hungarian). PSNR of a wrong image of the same class is often 10 to 20 dB: a number is to be read beside the
picture.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.gradient_inversion.engine import Box
from contracts.errors import InvalidInput
from explain import image_quality


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
    return image_quality.psnr(_shares(x, box), _shares(reconstruction, box)).reshape(x.shape[:2])


def ssim(x: Tensor, reconstruction: Tensor, *, box: Box) -> Tensor | None:
    """Structural similarity, float64 (R, B) in [-1, 1]; None for what is no image (R, B, C, H, W)."""
    _same(x, reconstruction)
    if x.dim() != 5:
        return None
    return image_quality.ssim(_shares(x, box), _shares(reconstruction, box)).reshape(x.shape[:2])


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


def _shares(values: Tensor, box: Box) -> Tensor:
    """(R * B, *shape), values as shares of the box."""
    low, high = box[0].double(), box[1].double()
    return ((values.double() - low) / (high - low)).flatten(0, 1)


def _same(x: Tensor, reconstruction: Tensor) -> None:
    if x.shape != reconstruction.shape or x.dim() < 3:
        raise InvalidInput(f"victims {tuple(x.shape)} and reconstructions {tuple(reconstruction.shape)} must match")
