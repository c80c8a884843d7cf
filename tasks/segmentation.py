"""Segmentation: one of K classes for every pixel of an image.

    p_ij            softmax of the K logits at pixel (i, j), of its class y_ij; P = H W pixels
    loss            -(1/P) sum log p_ij                                  mean pixel cross-entropy, nats
    signal          (1/P) sum [log p_ij - log(1 - p_ij)]                 mean pixel log-odds
    log_likelihood  (1/P) sum log p_ij             a mean: pixels are far from independent, their totals saturate RMIA
    quality         mean of |both| / |either| over the classes 1..K-1 that prediction or mask holds; 1 where none is

The quality of two classes is the intersection over union (IoU) of the foreground, 1 for two empty masks; class 0 is the
background and does not count, as it is most of most images. The mean of the log-odds is to an image what the
logit-scaled confidence of Carlini et al. (IEEE S&P 2022) is to one label: it has no floor where members crowd, as the
loss has at 0. Over 128 pixel-wise models on random halves its mean absolute skewness an image is 0.14, that of the loss
0.32. From logits, in float64 and in log space (``tasks.signals``).

Shapes: B images (C, H, W), targets int64 (B, H, W), answers (B, K, H, W). Strata of splits: ten bins by the share of
pixels that are not background.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError
from contracts.methods import EVERY_TASK, TaskSpec, task
from tasks.base import Constants, Examples, OutputTask, Reading, named
from tasks.classification import check_names
from tasks.pixels import mask_digests, pixel_counts
from tasks.signals import log_odds, loss_from_log_odds

if TYPE_CHECKING:
    from torch import Tensor


@task(
    TaskSpec(
        name="segmentation",
        doc="One of K classes for every pixel of an image.",
        source="Carlini et al., IEEE S&P 2022 (signal of one label), averaged over pixels",
        gives=(*EVERY_TASK, "features", "pixels"),
        quality="intersection over union",
        loss="mean pixel cross-entropy (nats)",
    )
)
class Segmentation(OutputTask):
    """See the file."""

    def losses_of(self, outputs: Any, targets: Any) -> Tensor:
        """Mean pixel cross-entropy (B,) of logits (B, K, H, W) and masks (B, H, W)."""
        from torch.nn import functional as F

        pixels: Tensor = F.cross_entropy(outputs, targets, reduction="none")
        return pixels.mean(dim=(1, 2))

    def reading_of(self, outputs: NDArray[Any], targets: NDArray[Any], constants: Constants) -> Reading:
        """From logits (..., N, K, H, W) and masks (N, H, W)."""
        lead, num, classes = outputs.shape[:-4], len(targets), outputs.shape[-3]
        if outputs.shape[-2:] != targets.shape[1:]:
            raise DataError(f"answers are {outputs.shape[-2:]} pixels, masks {targets.shape[1:]}")
        found = np.empty((*lead, num, 3))
        for model in np.ndindex(lead):
            for at, mask in enumerate(targets):
                logits, labels = outputs[(*model, at)].reshape(classes, -1), mask.reshape(-1)
                phi = log_odds(np.ascontiguousarray(logits.T), labels)
                found[(*model, at)] = loss_from_log_odds(phi).mean(), phi.mean(), iou(logits.argmax(0), labels, classes)
        loss, phi, quality = np.moveaxis(found, -1, 0)
        return Reading.of(loss=loss, signal=phi, log_likelihood=-loss, quality=quality)

    def check(self, data: Examples) -> None:
        """Masks of at least two classes of different names, every one of them with a pixel in training."""
        check_names(data, "class", self.name)
        if data.y.ndim != 3:
            raise DataError(f"{data.name}: y has shape {tuple(data.y.shape)}; segmentation needs masks (N, H, W)")
        num = len(data.class_names)
        counts = pixel_counts(data.y, num)
        if counts[:, num].any():
            bad = counts[:, num] > 0
            raise data.refusal(f"{int(bad.sum())} masks hold values outside 0..{num - 1}", bad)
        empty = np.flatnonzero(counts[data.split == "train", :num].sum(0) == 0)
        if len(empty):
            names = ", ".join(f"{data.class_names[k]!r} (index {k})" for k in empty[:10])
            raise data.refusal(
                f"{len(empty)} of {num} classes have no pixel in a training example: {names}",
                counts[:, empty].sum(axis=1) > 0,
            )

    def check_targets(self, data: Examples) -> None:
        """Raises: DataError: masks with values that are no class; names the examples."""
        bad = pixel_counts(data.y, len(data.class_names))[:, -1] > 0
        if bad.any():
            raise data.refusal(f"masks hold values outside 0..{len(data.class_names) - 1}", bad)

    def output_shape(self, data: Examples) -> tuple[int, ...]:
        """(K, H, W)."""
        return (self.num_outputs(data), *data.y.shape[1:])

    def describe(self, data: Examples) -> str:
        return f"{len(data.class_names)} classes a pixel"

    def constant_quality(self, data: Examples) -> float:
        """Of one class everywhere, whichever is best: of a foreground class its share of the image, divided by the
        number of foreground classes that then are in mask or answer; of the background 1 for an empty mask, else 0."""
        counts = pixel_counts(data.y, len(data.class_names))[:, :-1]
        there = counts[:, 1:] > 0
        share = counts[:, 1:] / counts.sum(1, keepdims=True)
        quality = share / (there.sum(1, keepdims=True) + ~there)
        return float(max((~there.any(1)).mean(), *quality.mean(0)))

    def strata(self, x: Any, y: NDArray[Any], example_id: NDArray[np.int64]) -> NDArray[np.int64]:
        """At most ten bins of as many images by the share of pixels that are not background; ties by id."""
        return named("regression").strata(x, _foreground(y), example_id)

    def target_digest(self, y: NDArray[Any]) -> list[Any]:
        """SHA-256 of every mask."""
        return list(mask_digests(y).tolist())

    def shown(self, data: Examples) -> dict[str, NDArray[Any]]:
        return {"foreground": _foreground(data.y)}


def iou(predicted: NDArray[Any], mask: NDArray[Any], num_classes: int) -> float:
    """Mean intersection over union of the classes 1..K-1 that either holds; 1 where neither holds any.

    >>> iou(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]), 3)
    0.5
    """
    pairs = np.bincount(predicted.reshape(-1) * num_classes + mask.reshape(-1), minlength=num_classes**2)
    table = pairs.reshape(num_classes, num_classes)
    both = table.diagonal()[1:]
    either = (table.sum(0) + table.sum(1) - table.diagonal())[1:]
    there = either > 0
    return float((both[there] / either[there]).mean()) if there.any() else 1.0


def _foreground(y: Any) -> NDArray[np.float64]:
    """(N,) share of pixels that are not class 0."""
    counts = pixel_counts(y, 1)
    share: NDArray[np.float64] = counts[:, 1] / counts.sum(1)
    return share
