"""Region-wise loss: every pixel costs what its distance from the boundary of the label's regions says.

    z_c(i) = - D_c(i) / max D_c    inside the region of class c, D_c: distance to the nearest pixel outside it
    z_c(i) = 1                     outside
    loss   = mean over b, c, i of p_c z_c                       least where p is the label

The rectified map, whose values outside are all alike, which keeps the loss convex near the label (an unrectified one
moves p far from a boundary first). Not a topology loss: it stands here as a comparator that reads a map.

Source: Valverde & Tohka, "Region-wise Loss for Biomedical Image Segmentation" (Pattern Recognition 2023, arXiv
2108.01405). Shapes: ``losses.base``; its map is z, (N, K, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor

from recipes.segmentation.losses.base import MaskLoss, distances, mask_loss

_BLOCK = 64  # labels measured at a time


def region_map(masks: Tensor) -> Tensor:
    """z of one class, (N, H, W) float32, of its region bool (N, H, W); 1 everywhere where the region is empty."""
    inside = distances(masks)
    most = inside.amax((1, 2), keepdim=True).clamp_min(1.0)  # the least distance inside a region is 1
    return torch.where(masks.cpu(), -inside / most, 1.0)


@mask_loss
class RegionWise(MaskLoss):
    """Probabilities against rectified distance maps."""

    name, doc = "region_wise", "probabilities times rectified distance maps"

    def maps(self, labels: Tensor, num_classes: int) -> Tensor:
        parts = labels.split(_BLOCK)
        return torch.cat([torch.stack([region_map(some == k) for k in range(num_classes)], 1) for some in parts])

    def __call__(self, logits: Tensor, targets: Tensor, maps: Tensor | None, *, late: bool) -> Tensor:
        assert maps is not None
        p = logits.softmax(1)
        return (p * maps.to(p.dtype)).mean()
