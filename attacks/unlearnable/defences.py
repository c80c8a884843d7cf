"""What somebody does with protected images who trains on them nevertheless; none knows the filters.

    before a batch is seen (p are pixels in [0, 1], drawn anew for every batch):
    grayscale   the mean over channels                                    noise    p + N(0, sigma^2), clipped
    blur        a fresh random 3 x 3 filter of parameter p_b for the batch, divided by the image's maximum
    cutout      a square of half the side set to 0                        mixup    lam p + (1 - lam) p', both targets
    rsk_ff      random sharpening and a frequency filter, on training and on test images:
                valid correlation with [[0, -n1, 0], [-n2, c, -n3], [0, -n4, 0]], c ~ N(2.5, .1), n_i ~ N((c - 1)/4,
                .1), clipped; the orthonormal 2-D DCT, of which the lowest 30% of rows and columns stay; clipped; a
                border of zeros where the correlation had none

    against an adversary (the model is frozen while the adversary climbs):
    pgd         p + delta, |delta| <= eps, projected ascent on the cross-entropy, step 1.5 eps / steps, uniform start
    dat         for every class of the batch one transposed convolution (1, 1, f), shared by channels: 10 ascent steps
                of 0.1 on its weight and bias, kept in [-5, 5]; its outputs rescaled to [0, 1] image by image

Sources: Sadasivan et al., CUDA (CVPR 2023, arXiv 2303.04278), section 5 (blur, dat and the augmentations); Madry et al.
(ICLR 2018, pgd); Zhang et al., mixup (ICLR 2018); DeVries & Taylor, cutout (2017); Kim et al., "Mitigating
Convolution-based Unlearnable Data with Random Sharpening Kernels" (AdvML-Frontiers, NeurIPS 2024; rsk_ff).
Shapes: p (B, C, H, W) float32 in [0, 1], y (B,) int64; random numbers from the generator that is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

Model = Callable[[Tensor], Tensor]
KEPT, SHARPNESS = 0.30, (2.5, 0.1)
_LEAST = 1e-12


@dataclass(frozen=True)
class Defence:
    """Attributes:
    name: as in the tables.
    cost: (model of pixels, p, y, generator) -> the batch's loss, a scalar with gradient.
    see: (p, generator) -> what the model is shown of test images.
    """

    name: str
    cost: Callable[[Model, Tensor, Tensor, torch.Generator], Tensor]
    see: Callable[[Tensor, torch.Generator], Tensor] = lambda p, rng: p


def augmented(name: str, change: Callable[[Tensor, torch.Generator], Tensor], *, test: bool = False) -> Defence:
    """A defence that changes every batch before it is seen; ``test``: and the test images."""

    def cost(model: Model, p: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        return F.cross_entropy(model(change(p, rng)), y)

    return Defence(name, cost, change) if test else Defence(name, cost)


def grayscale(p: Tensor, rng: torch.Generator) -> Tensor:
    """Every channel the mean of all."""
    return p.mean(1, keepdim=True).expand_as(p)


def blur(strength: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    """A random filter as the protection's own, another one for every batch and none of the class."""

    def change(p: Tensor, rng: torch.Generator) -> Tensor:
        weight = torch.rand(9, generator=rng) * strength
        weight[torch.randint(9, (), generator=rng)] = 1
        kernel = weight.view(1, 1, 3, 3).to(p).expand(p.shape[1], 1, 3, 3)
        out = F.conv2d(p, kernel, padding=1, groups=p.shape[1])
        return out / out.amax((1, 2, 3), keepdim=True).clamp_min(_LEAST)

    return change


def noise(sigma: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Gaussian noise of standard deviation ``sigma`` (in shares of full brightness)."""
    return lambda p, rng: (p + sigma * torch.randn(p.shape, generator=rng).to(p)).clamp(0, 1)


def cutout(p: Tensor, rng: torch.Generator) -> Tensor:
    """A square of half the shorter side, centred anywhere in each image, set to 0."""
    height, width = p.shape[2:]
    half = max(min(height, width) // 4, 1)
    at = [torch.randint(side, (len(p), 1), generator=rng) for side in (height, width)]
    rows = (torch.arange(height) - at[0]).abs() < half
    columns = (torch.arange(width) - at[1]).abs() < half
    hidden = rows[:, None, :, None] & columns[:, None, None, :]
    return p.masked_fill(hidden.to(p.device), 0)


def mixup() -> Defence:
    """Pairs of images, mixed by a share that is uniform (Beta(1, 1)), with both targets."""

    def cost(model: Model, p: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        share = float(torch.rand((), generator=rng))
        other = torch.randperm(len(p), generator=rng).to(p.device)
        said = model(share * p + (1 - share) * p[other])
        return share * F.cross_entropy(said, y) + (1 - share) * F.cross_entropy(said, y[other])

    return Defence("mixup", cost)


def sharpened_and_filtered(p: Tensor, rng: torch.Generator) -> Tensor:
    """Random sharpening, then the lowest frequencies alone; one kernel an image."""
    num = len(p)
    middle = SHARPNESS[0] + SHARPNESS[1] * torch.randn(num, generator=rng)
    around = (middle[:, None] - 1) / 4 + SHARPNESS[1] * torch.randn(num, 4, generator=rng)
    middle, around = middle.to(p), around.to(p)
    if min(p.shape[2:]) < 3:
        return p
    shifts = [p[..., :-2, 1:-1], p[..., 1:-1, :-2], p[..., 1:-1, 2:], p[..., 2:, 1:-1]]
    sharp = middle[:, None, None, None] * p[..., 1:-1, 1:-1]
    for weight, shifted in zip(around.T, shifts, strict=True):
        sharp = sharp - weight[:, None, None, None] * shifted
    sharp = sharp.clamp(0, 1)
    rows, columns = (_low_pass(side, p.device, p.dtype) for side in sharp.shape[2:])
    return F.pad((rows @ sharp @ columns.T).clamp(0, 1), [1] * 4)


@cache
def _low_pass(side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(side, side): to the orthonormal DCT-II, the lowest 30% of it, and back."""
    at, wave = torch.arange(side, dtype=torch.float64), torch.arange(side, dtype=torch.float64)[:, None]
    basis = torch.cos(math.pi * (at + 0.5) * wave / side) * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    low = basis[: max(1, int(KEPT * side))]
    return (low.T @ low).to(device, dtype)


def pgd(eps: float, steps: int) -> Defence:
    """Adversarial training in the maximum norm.

    Args:
        eps: in shares of full brightness. ``steps``: of the ascent.
    """

    def cost(model: Model, p: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        delta = (torch.rand(p.shape, generator=rng).to(p) * 2 - 1) * eps
        delta = (p + delta).clamp(0, 1) - p
        for _ in range(steps):
            delta.requires_grad_(True)
            (up,) = torch.autograd.grad(F.cross_entropy(model(p + delta), y), delta)
            with torch.no_grad():
                delta = (delta + 1.5 * eps / steps * up.sign()).clamp(-eps, eps)
                delta = (p + delta).clamp(0, 1) - p
        return F.cross_entropy(model((p + delta).detach()), y)

    return Defence("pgd", cost)


def deconvolution(size: int, *, steps: int = 10, rate: float = 0.1) -> Defence:
    """Adversarial training against one transposed convolution a class, started anew for every batch.

    Args:
        size: f, odd.
    """

    def changed(p: Tensor, weight: Tensor, bias: Tensor, at: Tensor) -> Tensor:
        num, channels = p.shape[:2]
        kernels = weight[at].repeat_interleave(channels, 0)[:, None]
        flat = p.reshape(1, num * channels, *p.shape[2:])
        out = F.conv_transpose2d(flat, kernels, padding=size // 2, groups=num * channels).view_as(p)
        out = out + bias[at][:, None, None, None]
        low, high = out.amin((1, 2, 3), keepdim=True), out.amax((1, 2, 3), keepdim=True)
        return (out - low) / (high - low).clamp_min(_LEAST)

    def cost(model: Model, p: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        classes, at = y.unique(return_inverse=True)
        draw = torch.rand(len(classes), size * size + 1, generator=rng).to(p) * 2 - 1
        weight, bias = draw[:, 1:].reshape(-1, size, size) / size, draw[:, 0] / size
        for _ in range(steps):
            weight.requires_grad_(True), bias.requires_grad_(True)
            ups = torch.autograd.grad(F.cross_entropy(model(changed(p, weight, bias, at)), y), (weight, bias))
            with torch.no_grad():
                weight, bias = ((v + rate * up).clamp(-5, 5) for v, up in zip((weight, bias), ups, strict=True))
        return F.cross_entropy(model(changed(p, weight, bias, at).detach()), y)

    return Defence("dat", cost)


PLAIN = Defence("none", lambda model, p, y, rng: F.cross_entropy(model(p), y))


def named(name: str, *, eps: float = 8 / 255, pgd_steps: int = 3) -> Defence:
    """The defence of a table's row.

    Raises:
        KeyError: none of :data:`NAMES`.
    """
    made: dict[str, Callable[[], Defence]] = {
        "none": lambda: PLAIN,
        "grayscale": lambda: augmented("grayscale", grayscale, test=True),
        "blur": lambda: augmented("blur", blur(0.3)),
        "noise": lambda: augmented("noise", noise(0.5)),
        "cutout": lambda: augmented("cutout", cutout),
        "mixup": mixup,
        "rsk_ff": lambda: augmented("rsk_ff", sharpened_and_filtered, test=True),
        "pgd": lambda: pgd(eps, pgd_steps),
        "dat": lambda: deconvolution(5),
    }
    return made[name]()


NAMES = ("none", "grayscale", "blur", "noise", "cutout", "mixup", "rsk_ff", "pgd", "dat")
