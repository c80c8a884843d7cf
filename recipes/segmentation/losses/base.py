"""What a loss of segmentation is: a scalar of logits and targets, and maps that it computes of every label once.

    loss(logits (B, K, H, W), targets (B, K, H, W), maps (B, A, H, W) or None, late) -> scalar with gradient
    maps(labels (N, H, W), K) -> (N, A, H, W)         once a training run: a batch reads its rows

Targets are shares of classes at every pixel: one-hot masks, or the soft maps of another model. Maps are of the
likeliest class. Class 0 is the background, every other is foreground. ``late`` says that the run is in its last part,
in which losses that look for critical points of a prediction begin to do so: earlier ones have nothing but critical
points.

Probabilities p = softmax(logits) with at least two channels: a topology loss of thresholded masks has no gradient, and
of logits no meaning.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from contracts.errors import NameTaken

_KNOWN: dict[str, MaskLoss] = {}


class MaskLoss:
    """A loss by its name.

    Attributes:
        name: in configurations.
        doc: one line for people.
        ends_otherwise: its last part is another loss than its first.
    """

    name: ClassVar[str]
    doc: ClassVar[str]
    ends_otherwise: ClassVar[bool] = False

    def maps(self, labels: Tensor, num_classes: int) -> Tensor | None:
        """What it computes of each label, (N, A, H, W) bool or float32; None where it needs nothing.

        Args:
            labels: int64 (N, H, W) in 0..K-1.
            num_classes: K.
        """
        return None

    def __call__(self, logits: Tensor, targets: Tensor, maps: Tensor | None, *, late: bool) -> Tensor:
        """A scalar with gradient."""
        raise NotImplementedError


def mask_loss(kind: type[MaskLoss]) -> type[MaskLoss]:
    """Decorator: register a loss under its name.

    Raises:
        NameTaken: the name is another's.
    """
    if kind.name in _KNOWN:
        raise NameTaken(f"loss {kind.name} is already that of {type(_KNOWN[kind.name]).__module__}")
    _KNOWN[kind.name] = kind()
    return kind


def known() -> dict[str, MaskLoss]:
    """The registered losses by name."""
    return dict(sorted(_KNOWN.items()))


def foreground(probabilities: Tensor) -> Tensor:
    """(B, H, W) probability that a pixel is not background, of (B, K, H, W)."""
    return probabilities[:, 1:].sum(1)


def labels_of(targets: Tensor) -> Tensor:
    """(B, H, W) int64, the likeliest class at every pixel; the smallest of equals."""
    return targets.argmax(1)


def skeletons(masks: Tensor) -> Tensor:
    """The skeleton of each mask, bool (N, H, W) on the CPU: ``skimage.morphology.skeletonize`` (Zhang & Suen, CACM
    1984).

    All masks are thinned as one tall image with an empty row between them: the method looks one pixel far.

    >>> skeletons(torch.ones(1, 3, 7, dtype=torch.bool))[0].sum().item() < 7
    True
    """
    from skimage.morphology import skeletonize

    num, height, width = masks.shape
    if not num:
        return torch.zeros(0, height, width, dtype=torch.bool)
    tall = torch.zeros(num, height + 1, width, dtype=torch.bool)
    tall[:, :height] = masks.cpu()
    thin = torch.from_numpy(skeletonize(tall.reshape(-1, width).numpy()))
    return thin.reshape(num, height + 1, width)[:, :height].contiguous()


def distances(masks: Tensor) -> Tensor:
    """(N, H, W) float32 on the CPU: pixels from each pixel of a mask to the nearest outside it, 0 outside.

    A mask without an outside has the image's diagonal everywhere: beyond the image nothing is known.
    """
    from scipy.ndimage import distance_transform_edt

    num, height, width = masks.shape
    most = float(height**2 + width**2) ** 0.5
    inside = masks.cpu().numpy()
    if not num or inside.all():
        return torch.full(masks.shape, most)
    # One transform of the stack, whose masks lie farther from each other than any two pixels of an image.
    found = distance_transform_edt(inside, sampling=(2 * most, 1.0, 1.0))
    return torch.from_numpy(found).clamp_max_(most).float()
