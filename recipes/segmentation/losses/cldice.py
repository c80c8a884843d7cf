"""clDice: overlap of each mask with the other's soft skeleton.

    erode(x)  = min over a 3 x 1 and a 1 x 3 min-pool;   dilate(x) = 3 x 3 max-pool;   open = dilate(erode)
    skel(x)   : s = relu(x - open(x));  k times: x = erode(x), d = relu(x - open(x)), s = s + relu(d - s d)
    TP = (sum skel(p) g + 1) / (sum skel(p) + 1),   TS = (sum skel(g) p + 1) / (sum skel(g) + 1)      over the batch
    clDice = 1 - 2 TP TS / (TP + TS)                               mean over the foreground classes
    loss   = 0.5 Dice + 0.5 clDice

k = 3 suits lines of up to about 7 pixels half-width; a smaller k leaves thick cores without a skeleton. Alone, clDice
stays at 0 or collapses: it goes with Dice, on probabilities of two channels at least (one channel, cut by ``[:, 1:]``,
is none).

Source: Shit et al., "clDice" (CVPR 2021, arXiv 2003.07311). Shapes: ``losses.base``; its map is skel(g),
(N, K - 1, H, W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.segmentation.losses.base import MaskLoss, mask_loss
from recipes.segmentation.losses.overlap import dice

ITERATIONS = 3
_BLOCK = 64  # labels thinned at a time


def erode(x: Tensor) -> Tensor:
    """(..., H, W) of (B, C, H, W): the least of a cross of five."""
    return torch.minimum(-F.max_pool2d(-x, (3, 1), 1, (1, 0)), -F.max_pool2d(-x, (1, 3), 1, (0, 1)))


def dilate(x: Tensor) -> Tensor:
    """(B, C, H, W): the greatest of a square of nine."""
    return F.max_pool2d(x, 3, 1, 1)


def soft_skeleton(x: Tensor, *, iterations: int = ITERATIONS) -> Tensor:
    """skel(x) of (B, C, H, W) in [0, 1], differentiable.

    Args:
        iterations: k >= 0, pixels of half-width that are thinned away.
    """
    worn = erode(x)
    found = F.relu(x - dilate(worn))
    for _ in range(iterations):
        x, worn = worn, erode(worn)
        more = F.relu(x - dilate(worn))
        found = found + F.relu(more - found * more)
    return found


def cldice(probabilities: Tensor, targets: Tensor, skeleton: Tensor) -> Tensor:
    """clDice of foreground channels, a scalar in [0, 1]; 0 where p = g.

    Args:
        probabilities, targets: (B, C, H, W), the background left out.
        skeleton: skel(targets).
    """
    over, own = (0, 2, 3), soft_skeleton(probabilities)
    precision = ((own * targets).sum(over) + 1) / (own.sum(over) + 1)
    sensitivity = ((skeleton * probabilities).sum(over) + 1) / (skeleton.sum(over) + 1)
    return (1 - 2 * precision * sensitivity / (precision + sensitivity)).mean()


@mask_loss
class ClDice(MaskLoss):
    """Half Dice, half clDice."""

    name, doc = "cldice", "0.5 Dice + 0.5 clDice (soft skeletons)"

    def maps(self, labels: Tensor, num_classes: int) -> Tensor:
        parts = []
        for some in labels.split(_BLOCK):
            one = F.one_hot(some, num_classes).movedim(-1, 1)[:, 1:].float()
            parts.append(soft_skeleton(one))
        return torch.cat(parts)

    def __call__(self, logits: Tensor, targets: Tensor, maps: Tensor | None, *, late: bool) -> Tensor:
        assert maps is not None
        p = logits.softmax(1)
        return 0.5 * dice(p, targets) + 0.5 * cldice(p[:, 1:], targets[:, 1:], maps.to(p.dtype))
