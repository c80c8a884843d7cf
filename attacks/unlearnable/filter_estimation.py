"""The filter of a class from a few pairs of an image and its protected form, and images with the filter taken out.

    g_i z_i = x_i * s                g_i > 0 is the unknown divisor of image i, s the (k, k) filter
    s       the unit vector that minimises sum_i min_g |A_i s - g z_i|^2
            = s' [sum_i A_i' (I - z_i z_i' / |z_i|^2) A_i] s          (A_i: the k^2 shifted copies of x_i as columns):
            the eigenvector of the least eigenvalue, scaled so that its largest entry is 1
    x^      the least squares solution of z = A x with a penalty lambda |x|^2, its maximum 1 again: exact for small
            images, by frequencies for large ones; lambda is the variance of rounding to uint8 over that of images

Source: Sadasivan et al., CUDA (CVPR 2023, arXiv 2303.04278), whose threat model is without such pairs; least squares
with unknown scales: definition. Shapes: x, z (B, C, H, W) float32 in [0, 1] -> s (k, k) float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.errors import InvalidInput

_LEAST = 1e-12
_NOISE = 2.5e-5  # (1/255)^2 / 12, over a variance of 0.05
_DENSE = 2500  # pixels, up to which the system is solved as it is


def estimate_filter(x: Tensor, z: Tensor, *, size: int) -> tuple[Tensor, float]:
    """The filter, and what it does not explain: |A s - g z| / |z| over all pairs, 0 for an exact one.

    Raises:
        InvalidInput: no pairs, or pairs of unlike shapes.
    """
    if x.shape != z.shape or x.dim() != 4 or not len(x):
        raise InvalidInput(f"pairs of images (B, C, H, W) are needed, not {tuple(x.shape)} and {tuple(z.shape)}")
    height, width = x.shape[2:]
    padded = F.pad(x.double(), [size // 2] * 4)
    shifts = [padded[..., a : a + height, b : b + width].flatten(1) for a in range(size) for b in range(size)]
    columns, target = torch.stack(shifts, 2), z.double().flatten(1)
    gram = torch.einsum("bpi,bpj->ij", columns, columns)
    along = torch.einsum("bpi,bp->bi", columns, target) / target.norm(dim=1).clamp_min(_LEAST)[:, None]
    least = torch.linalg.eigh(gram - along.T @ along).eigenvectors[:, 0]
    found = least * torch.sign(least[least.abs().argmax()])
    explained = torch.einsum("bpi,i->bp", columns, found)
    share = (explained * target).sum(1) / target.square().sum(1).clamp_min(_LEAST)
    missed = (explained - share[:, None] * target).norm() / (share[:, None] * target).norm().clamp_min(_LEAST)
    return (found / found.max()).view(size, size).float(), float(missed)


def deconvolved(z: Tensor, filters: Tensor, y: Tensor) -> Tensor:
    """Protected images with the filter of their class taken out, rescaled to a maximum of 1.

    Args:
        filters: (K, k, k).
    """
    solve = _exactly if z.shape[2] * z.shape[3] <= _DENSE else _by_frequency
    out = solve(z.double(), filters.double(), y).clamp_min(0).float()
    return out / out.amax((1, 2, 3), keepdim=True).clamp_min(_LEAST)


def _exactly(z: Tensor, filters: Tensor, y: Tensor) -> Tensor:
    """With the zero padding as it was: the matrix of a class is of all pixels against all."""
    height, width = z.shape[2:]
    every = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    out = torch.empty_like(z)
    for k, own in enumerate(filters):
        rows = y == k
        if rows.any():
            matrix = F.conv2d(every, own[None, None], padding=own.shape[-1] // 2).flatten(1).T
            gram = matrix.T @ matrix + _NOISE * torch.eye(len(matrix), dtype=torch.float64)
            seen = z[rows].flatten(2).flatten(0, 1).T
            out[rows] = torch.linalg.solve(gram, matrix.T @ seen).T.reshape(z[rows].shape)
    return out


def _by_frequency(z: Tensor, filters: Tensor, y: Tensor) -> Tensor:
    """As if the plane beyond the image were black: near the border the solution is not exact."""
    size, (height, width) = filters.shape[-1], z.shape[2:]
    plane = (height + size, width + size)
    kernel = torch.zeros(len(filters), *plane, dtype=torch.float64)
    kernel[:, :size, :size] = filters
    # cross-correlation with s is multiplication with conj(S)
    response = torch.fft.rfft2(kernel.roll((-(size // 2), -(size // 2)), (1, 2))).conj()
    inverse = (response.conj() / (response.abs().square() + _NOISE))[y][:, None]
    out: Tensor = torch.fft.irfft2(inverse * torch.fft.rfft2(z, s=plane), s=plane)
    return out[..., :height, :width]
