"""Centerline-boundary Dice: clDice whose pixels weigh by how far they lie from the boundary.

    of a mask v with skeleton s:  D = distance to the outside, r = D on s, R = max(r, 1), D capped at R
    Q_v  = v D / R               the mask, heavy in its middle
    Q_sv = v r / R               radius of the skeleton
    Q_s  = s I,  I = (1 + 1e-7) / (r / R + 1e-7)    the skeleton, heavy where it is thin; 0 outside s
    TP   = (sum Q_s(p) Q_v(g) + 1) / (sum w(Q_sv(p), Q_sv(g)) Q_s(p) + 1)       w(a, b) = b where b > 0, else a
    TS   = (sum Q_s(g) Q_v(p) + 1) / (sum w(Q_sv(g), Q_sv(p)) Q_s(g) + 1)
    loss = 0.5 CE + 0.25 Dice - 0.25 * 2 TP TS / (TP + TS)                      alpha = beta = 1

v(p) is the mask p > 1/2 times p, and its skeleton and distances are taken of the mask, without gradient: the gradient
goes through p as a factor. All foreground classes are one mask, as in the published code. The prediction is thinned
anew every step, which is what makes this loss slow.

Source: Shi et al., "Centerline Boundary Dice Loss for Vascular Segmentation" (MICCAI 2024, arXiv 2407.01517). Shapes:
``losses.base``; its maps are Q_v, Q_sv and Q_s of the label, (N, 3, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor

from recipes.segmentation.losses.base import MaskLoss, distances, foreground, mask_loss, skeletons
from recipes.segmentation.losses.overlap import cross_entropy, dice

_TINY = 1e-7
_BLOCK = 64  # labels measured at a time


def weights(masks: Tensor) -> Tensor:
    """D / R, r / R and I of masks bool (N, H, W), each 0 where it has no place: (N, 3, H, W) float32 on the CPU."""
    skeleton, distance = skeletons(masks), distances(masks)
    radius = distance * skeleton
    largest = radius.amax((1, 2), keepdim=True).clamp_min(1.0)
    relative = radius / largest
    inverse = torch.where(skeleton, (1 + _TINY) / (relative + _TINY), 0.0)
    return torch.stack([torch.minimum(distance, largest) / largest, relative, inverse], 1)


def cbdice(probability: Tensor, label: Tensor) -> Tensor:
    """2 TP TS / (TP + TS), a scalar over the batch, of foreground probabilities (B, H, W) and the label's maps.

    Args:
        label: (B, 3, H, W), Q_v, Q_sv and Q_s of the label.
    """
    own = weights(probability.detach() > 0.5).to(probability)
    mask_p, radius_p, line_p = (own * probability[:, None]).unbind(1)
    mask_g, radius_g, line_g = label.unbind(1)
    precision = _share(line_p, mask_g, radius_p, radius_g)
    sensitivity = _share(line_g, mask_p, radius_g, radius_p)
    return 2 * precision * sensitivity / (precision + sensitivity)


def _share(line: Tensor, mask: Tensor, radius: Tensor, other: Tensor) -> Tensor:
    """How much of a weighted skeleton lies in the other mask."""
    heavy = torch.where(other > 0, other, radius)
    return ((line * mask).sum() + 1) / ((heavy * line).sum() + 1)


@mask_loss
class CbDice(MaskLoss):
    """Cross-entropy, Dice and centerline-boundary Dice."""

    name, doc = "cbdice", "0.5 cross-entropy + 0.25 Dice + 0.25 centerline-boundary Dice"

    def maps(self, labels: Tensor, num_classes: int) -> Tensor:
        return torch.cat([weights(some > 0) for some in labels.split(_BLOCK)])

    def __call__(self, logits: Tensor, targets: Tensor, maps: Tensor | None, *, late: bool) -> Tensor:
        assert maps is not None
        p = logits.softmax(1)
        centre = cbdice(foreground(p), maps.to(p.dtype))
        return 0.5 * cross_entropy(logits, targets) + 0.25 * dice(p, targets) - 0.25 * centre
