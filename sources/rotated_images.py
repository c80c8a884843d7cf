"""Images turned by a known angle, which is the number to predict: regression whose truth is exact.

    theta_i ~ U(-theta_max, theta_max) degrees, one an image;   x_i <- x_i turned by theta_i about its centre,
    counter-clockwise as it is seen, bilinear, 0 where the turned image has no pixel;   y_i = theta_i

The images are those of IDX files (``sources.idx``), of one class or of all; which, and their angles, follow from their
ids and the seed. It is no augmentation: every image is there once, at one angle.

Source: the task of a rotation to predict is that of Gidaris, Singh, Komodakis (ICLR 2018), with angles in place of four
quarters.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.digests import derive_seed
from contracts.errors import DataError
from contracts.methods import SourceSpec, source
from contracts.params import param
from sources.assemble import assemble
from sources.example_set import ExampleSet
from sources.files import ImageConfig
from sources.idx import IdxConfig, idx
from sources.rows import blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class RotatedImagesConfig(ImageConfig):
    label: int | None = param(None, ge=0, lt=2**31, doc="class whose images are turned; all when null")
    most_degrees: float = param(60.0, gt=0, le=180, unit="degrees", doc="largest angle to either side")
    num_train: int | None = param(
        None, ge=1, le=10_000_000, unit="images", doc="training images, drawn by the seed; all when null"
    )
    num_test: int | None = param(None, ge=1, le=10_000_000, unit="images", doc="likewise of the test split")


def rotated(images: np.ndarray, degrees: NDArray[np.float64]) -> np.ndarray:
    """Images turned counter-clockwise as they are seen (row 0 on top), of the same type and size; uint8 is rounded.

    Args:
        images: (N, C, H, W).
        degrees: (N,).

    >>> rotated(np.array([[[[1, 2], [3, 4]]]], np.uint8), np.array([90.0]))[0, 0].tolist()
    [[2, 4], [1, 3]]
    """
    num, _, height, width = images.shape
    angle = np.deg2rad(degrees)[:, None, None]
    down, right = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    # Where each pixel of the result comes from: turned back.
    row = np.sin(angle) * right + np.cos(angle) * down + (height - 1) / 2
    column = np.cos(angle) * right - np.sin(angle) * down + (width - 1) / 2
    # An edge of zeros serves everything that lies outside.
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    row, column = np.clip(row + 1, 0, height + 1), np.clip(column + 1, 0, width + 1)
    top, left = (np.minimum(np.floor(at), size).astype(np.int64) for at, size in ((row, height), (column, width)))
    low, far = (row - top)[:, None], (column - left)[:, None]
    which = np.arange(num)[:, None, None]
    # Advanced indexes around the slice of channels put the channels last.
    corners = [np.moveaxis(padded[which, :, top + i, left + j], -1, 1) for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))]
    shares = ((1 - low) * (1 - far), (1 - low) * far, low * (1 - far), low * far)
    turned = sum(share * corner for share, corner in zip(shares, corners, strict=True))
    if images.dtype.kind in "iu":
        turned = np.rint(turned)
    return np.asarray(turned, dtype=images.dtype)


@source(
    SourceSpec(
        name="rotated_images",
        doc="IDX images, each turned by a known angle, which is the number to predict (degrees).",
        source="after Gidaris, Singh, Komodakis, ICLR 2018",
        config=RotatedImagesConfig,
    )
)
def rotated_images(*, config: RotatedImagesConfig, seed: int) -> ExampleSet:
    """Images of one class (or all) at angles drawn uniformly.

    Raises:
        UnsafeFile: as ``idx``.
        DataError: as ``idx``; or fewer images than are asked for.
    """
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(ImageConfig)}
    base = idx(config=IdxConfig(**shared), seed=seed)
    chosen = np.concatenate(
        [
            _drawn(base, config.label, split, size, seed=derive_seed("rotated images", split, seed))
            for split, size in (("train", config.num_train), ("test", config.num_test))
        ]
    )
    kept = base.subset(np.sort(chosen))
    degrees = np.random.default_rng(derive_seed("angles", seed)).uniform(
        -config.most_degrees, config.most_degrees, len(kept)
    )
    x = np.empty(kept.x.shape, kept.x.dtype)
    for rows in blocks(kept.x):
        x[rows] = rotated(np.asarray(kept.x[rows]), degrees[rows])
    return assemble(
        x,
        degrees,
        name=config.name or "rotated_images",
        task="regression",
        class_names=(),
        seed=seed,
        test_fraction=config.test_fraction,
        split=kept.split,
        origin=kept.origin,
        standardise=config.standardise,
        provenance={
            **base.provenance,
            "source": "rotated_images",
            "notes": [*base.provenance.get("notes", []), f"turned by up to {config.most_degrees:g} degrees"],
        },
    )


def _drawn(base: ExampleSet, label: int | None, split: str, size: int | None, *, seed: int) -> NDArray[np.int64]:
    """Ids of the images of a split that are turned.

    Raises:
        DataError: there are fewer.
    """
    there = (base.split == split) & ((base.y == label) if label is not None else True)
    ids = np.sort(base.example_id[there])
    if size is None:
        return ids
    if size > len(ids):
        of = "" if label is None else f" of class {label}"
        raise DataError(f"{base.name} has {len(ids)} {split} images{of}; {size} are asked for")
    return np.random.default_rng(seed).permutation(ids)[:size]
