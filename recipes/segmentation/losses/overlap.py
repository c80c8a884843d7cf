"""Cross-entropy, Dice, and their sum, the baseline without topology.

    CE      = - mean over pixels of sum_c g_c log p_c                                       nats
    Dice    = - mean over b, c of (2 sum p g + 1e-5) / (sum p + sum g + 1e-5)               -1 where p = g
    ce_dice = CE + Dice                                                                     nnU-Net's

All K channels count, the background too. The logarithm is that of log-softmax: p + 1e-15, as published code has it, has
no gradient where a pixel is surely wrong.

Source: Milletari, Navab & Ahmadi, V-Net (3DV 2016); Isensee et al., nnU-Net (Nature Methods 2021). Shapes:
``losses.base``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from recipes.segmentation.losses.base import MaskLoss, mask_loss

SMOOTH = 1e-5


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """CE, a scalar, of logits and class shares (B, K, H, W)."""
    return -(targets * F.log_softmax(logits, 1)).sum(1).mean()


def dice(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Dice, a scalar in [-1, 0], of (B, K, H, W)."""
    both = (probabilities * targets).sum((2, 3))
    either = probabilities.sum((2, 3)) + targets.sum((2, 3))
    return -((2 * both + SMOOTH) / (either + SMOOTH)).mean()


@mask_loss
class CrossEntropy(MaskLoss):
    """Mean cross-entropy of a pixel: the loss of the task."""

    name, doc = "ce", "cross-entropy"

    def __call__(self, logits: Tensor, targets: Tensor, maps: Tensor | None, *, late: bool) -> Tensor:
        return cross_entropy(logits, targets)


@mask_loss
class CEDice(MaskLoss):
    """Cross-entropy and Dice."""

    name, doc = "ce_dice", "cross-entropy + Dice"

    def __call__(self, logits: Tensor, targets: Tensor, maps: Tensor | None, *, late: bool) -> Tensor:
        return cross_entropy(logits, targets) + dice(logits.softmax(1), targets)
