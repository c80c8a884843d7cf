"""Homotopy warping: cross-entropy on the pixels that no change of shape explains, only a change of topology.

    warp(a -> b)  flip pixels of a that differ from b and are simple, in order of their distance from a pixel that does
                  not differ, until none is left that may be flipped; what still differs is critical
    loss = Dice + 0.1 mean over critical pixels of CE          critical: of warp(p -> g) or of warp(g -> p), p > 1/2

A pixel is simple where flipping it changes neither the number of 8-connected components of the mask nor that of its
holes (4-connected): Yokoi's number of its eight neighbours is 1. Pixels of one of four interleaved grids are no
neighbours of one another, so all simple ones of a grid are flipped at once, which equals one after another. Beyond the
image is background.

Of published code, whose "target" is channel 0 of the one-hot label, the background: the foreground is meant, and taken
here. Critical pixels are looked for in the last 30% of a run; before, the loss is Dice + 0.1 CE.

Source: Hu, "Structure-Aware Image Segmentation with Homotopy Warping" (NeurIPS 2022, arXiv 2112.07812); simple pixels:
Yokoi, Toriwaki & Fukumura (1975). Shapes: ``losses.base``; all foreground classes are one mask.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.segmentation.losses.base import MaskLoss, distances, foreground, labels_of, mask_loss
from recipes.segmentation.losses.overlap import cross_entropy, dice

WEIGHT = 0.1
_AROUND = ((1, 2), (0, 2), (0, 1), (0, 0), (1, 0), (2, 0), (2, 1), (2, 2))  # from the right, counter-clockwise


@cache
def _simple_codes() -> Tensor:
    """bool (256,): whether a pixel with these eight neighbours is simple; bit k is the neighbour ``_AROUND[k]``."""
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    empty = 1 - bits
    number = sum(empty[:, k] - empty[:, k] * empty[:, k + 1] * empty[:, (k + 2) % 8] for k in (0, 2, 4, 6))
    return torch.as_tensor(number == 1)


def simple(masks: Tensor) -> Tensor:
    """bool (N, H, W): which pixels of masks bool (N, H, W) may be flipped without a change of topology."""
    height, width = masks.shape[1:]
    padded = F.pad(masks.to(torch.int64), (1, 1, 1, 1))
    code = torch.zeros(masks.shape, dtype=torch.int64, device=masks.device)
    for k, (down, right) in enumerate(_AROUND):
        code |= padded[:, down : down + height, right : right + width] << k
    return _simple_codes().to(masks.device)[code]


def warped(masks: Tensor, targets: Tensor) -> Tensor:
    """Masks moved as far towards targets as their topology lets them, bool (N, H, W) both.

    >>> ring = torch.tensor([[[1, 1, 1], [1, 0, 1], [1, 1, 1]]]).bool()
    >>> bool(warped(ring, torch.ones_like(ring))[0, 1, 1])
    False
    """
    found, different = masks.clone(), masks ^ targets
    rank = distances(different).to(masks.device).ceil()
    height, width = masks.shape[1:]
    down, right = torch.arange(height) % 2, torch.arange(width) % 2
    grids = [(down[:, None] == i) & (right == j) for i in (0, 1) for j in (0, 1)]
    grids = [grid.to(masks.device) for grid in grids]
    for level in [*range(1, int(rank.max()) + 1)] if rank.numel() else []:
        reached, moved = rank <= level, True
        while moved:
            moved = False
            for grid in grids:
                flip = (found ^ targets) & reached & grid & simple(found)
                if bool(flip.any()):
                    found, moved = found ^ flip, True
    return found


def critical(predicted: Tensor, targets: Tensor) -> Tensor:
    """bool (N, H, W): pixels that differ in topology, of masks bool (N, H, W)."""
    return (warped(predicted, targets) ^ targets) | (warped(targets, predicted) ^ predicted)


@mask_loss
class Warping(MaskLoss):
    """Dice, and cross-entropy on critical pixels."""

    name, doc = "warping", "Dice + 0.1 cross-entropy, at the end on the pixels that change topology"
    ends_otherwise = True

    def __call__(self, logits: Tensor, targets: Tensor, maps: Tensor | None, *, late: bool) -> Tensor:
        p = logits.softmax(1)
        overlap = dice(p, targets)
        if not late:
            return overlap + WEIGHT * cross_entropy(logits, targets)
        chosen = critical(foreground(p.detach()) > 0.5, labels_of(targets) > 0)
        pixels = -(targets * F.log_softmax(logits, 1)).sum(1)
        return overlap + WEIGHT * (pixels * chosen).sum() / chosen.sum().clamp_min(1)
