"""Skeleton Recall: how much of a tube around the label's skeleton is predicted.

    K    = dilate(dilate(skeletonize(g))) * g          dilation by a cross of five pixels
    SRL  = - mean over b, c of (sum p_c K_c + 1e-5) / (sum K_c + 1e-5)         c: foreground; -1 where p = 1 on K
    loss = CE + SRL

Only the label is thinned, once and on the CPU, so the loss costs no more than Dice. It asks for recall alone: without
the cross-entropy the mask that is everywhere is best.

Source: Kirchhoff et al., "Skeleton Recall Loss" (ECCV 2024, arXiv 2404.03010). Shapes: ``losses.base``; its map is K,
bool (N, K - 1, H, W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.segmentation.losses.base import MaskLoss, mask_loss, skeletons
from recipes.segmentation.losses.overlap import SMOOTH, cross_entropy


def tube(masks: Tensor, *, rounds: int = 2) -> Tensor:
    """K of masks (N, H, W), bool on the CPU.

    Args:
        rounds: dilations of the skeleton.
    """
    wide = skeletons(masks)[:, None].float()
    for _ in range(rounds):
        wide = torch.maximum(F.max_pool2d(wide, (3, 1), 1, (1, 0)), F.max_pool2d(wide, (1, 3), 1, (0, 1)))
    return (wide[:, 0] > 0) & masks.cpu()


def skeleton_recall(probabilities: Tensor, tubes: Tensor) -> Tensor:
    """SRL, a scalar in [-1, 0], of foreground channels (B, C, H, W) and their K.

    >>> skeleton_recall(torch.ones(1, 1, 2, 2), torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])).item()
    -1.0
    """
    found = (probabilities * tubes).sum((2, 3))
    return -((found + SMOOTH) / (tubes.sum((2, 3)) + SMOOTH)).mean()


@mask_loss
class SkeletonRecall(MaskLoss):
    """Cross-entropy and Skeleton Recall."""

    name, doc = "skeleton_recall", "cross-entropy + recall of the label's skeleton"

    def maps(self, labels: Tensor, num_classes: int) -> Tensor:
        return torch.stack([tube(labels == k) for k in range(1, num_classes)], 1)

    def __call__(self, logits: Tensor, targets: Tensor, maps: Tensor | None, *, late: bool) -> Tensor:
        assert maps is not None
        p = logits.softmax(1)
        return cross_entropy(logits, targets) + skeleton_recall(p[:, 1:], maps.to(p.dtype))
