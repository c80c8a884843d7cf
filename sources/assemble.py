"""What every source does last: ids, split, owners, content hashes and the affine of the inputs, into an ExampleSet.

Ids that the data does not bring come from content, label, owner and given split: ``sources.identity``.

center and scale, fitted on the training split in float64, in bounded blocks (Chan et al. 1979, pairwise update):
uint8 images 0 and 1/white, or per channel when asked; user indexes 0 and 1; float images per channel; features per
column, where 0/1 columns stay as they are and constant columns get scale 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from contracts.errors import DataError
from sources.example_set import ExampleSet
from sources.identity import Content
from sources.payloads.arrays import payload_of
from sources.payloads.base import Payload
from sources.payloads.masks import labels_of
from sources.rows import Rows, blocks
from sources.splits import stratified_split
from tasks.base import Task, named


def assemble(
    x: np.ndarray | Rows | Payload,
    y: np.ndarray | Rows,
    *,
    name: str,
    task: str | Task,
    class_names: Sequence[str],
    seed: int,
    test_fraction: float,
    example_id: np.ndarray | None = None,
    split: np.ndarray | None = None,
    owner: np.ndarray | None = None,
    origin: np.ndarray | None = None,
    content: Content | None = None,
    white: int = 255,
    standardise: bool = False,
    keep_columns: Sequence[int] = (),
    feature_names: Sequence[str] = (),
    columns: Mapping[str, np.ndarray] | None = None,
    provenance: Mapping[str, Any],
) -> ExampleSet:
    """An ExampleSet of raw values and encoded labels. It is validated by ``sources.load``, not here.

    Args:
        x: (N, C, H, W) uint8 or float32, or (N, D) float32; for ranking int64 (N, 1) user indexes.
        y: (N,) int64 class indexes or float64 targets; for ranking int64 item indexes.
        seed, test_fraction: of the stratified split that is made when ``split`` is None.
        example_id: made from the content, label, owner and split when None.
        owner: "" when None.
        origin: (N,) str, where each lies in its source, for people.
        content: what the examples are, where ``x`` says it in terms of the other rows (one-hot columns, indexes of
            users).
        provenance: may say under "split" how the given one was made.
        white: raw value of a uint8 image that becomes 1.0.
        standardise: give uint8 images mean 0 and standard deviation 1 a channel; ``white`` then says nothing.
        columns: what is kept beside the examples; a made id is of them too.
        keep_columns: features that are not standardised (one-hot columns).

    Raises:
        DataError: duplicate ids (the split is a function of them), or no example can be spared for testing.
    """
    content = content or Content(x)
    columns = dict(columns or {})
    made = () if example_id is not None else (columns[name] for name in sorted(columns))
    ids = made_ids(content, y, class_names, owner, split, *made) if example_id is None else check_ids(example_id)
    how = "the data's own"
    if split is None:
        of = named(task) if isinstance(task, str) else task
        split = stratified_split(of.strata(x, y, ids), ids, test_fraction=test_fraction, seed=seed)
        by = " by user" if of.gives("interactions") else ""
        how = f"stratified{by}, test_fraction {test_fraction:g}, seed {seed}"
    center, scale = _affine(_numbers(x, split == "train"), None if standardise else white, keep_columns)
    return ExampleSet(
        name=name,
        task=task,
        x=x,
        y=y,
        example_id=ids,
        split=split.astype("<U5"),
        owner=np.full(len(y), "", "<U1") if owner is None else owner.astype(str),
        content_hash=content.hashes(),
        class_names=tuple(class_names),
        center=center,
        scale=scale,
        feature_names=tuple(feature_names),
        provenance={"split": how, **provenance},
        origin=origin,
        columns=columns,
    )


def made_ids(
    content: Content,
    y: np.ndarray | Rows,
    class_names: Sequence[str],
    owner: np.ndarray | None,
    split: np.ndarray | None,
    *columns: np.ndarray,
) -> np.ndarray:
    """(N,) int64 ids of examples that bring none, from content, label, owner, given split and the columns that are kept
    beside them, in the order of their names; other arguments as of ``assemble``.

    Raises:
        DataError: as ``Content.ids``.
    """
    given = (column for column in (owner, split) if column is not None)
    return content.ids(labels_of(y, class_names), *given, *columns)


def check_ids(values: np.ndarray) -> np.ndarray:
    """Whole, unique ids >= 0 as int64; floats that are whole are read as such.

    Raises:
        DataError: naming the ids that are not.
    """
    if values.dtype.kind not in "iuf" and values.ndim == 1 and len(values):
        raise DataError(
            f"example ids must be whole numbers, not {values.dtype} such as {str(values[0])!r}; without them ids are "
            "made, and data.examples keeps where each example lies (origin)"
        )
    if values.dtype.kind == "f" and values.ndim == 1:
        odd = ~(np.abs(values) < 2**53) | (values != np.rint(values))
        if odd.any():
            raise DataError(f"example ids must be whole numbers, not {float(values[odd][0])!r}")
        values = values.astype(np.int64)
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise DataError(f"example ids must be a column of whole numbers, not {values.dtype} {values.shape}")
    if len(values) and (values.min() < 0 or values.max() > np.iinfo(np.int64).max):
        raise DataError(f"example ids must lie in 0..2**63-1, found {values.min()}..{values.max()}")
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) != len(values):
        doubled = distinct[counts > 1]
        raise DataError(f"{len(doubled)} example ids are used more than once", example_ids=doubled)
    return values.astype(np.int64)


def to_float32(values: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """float32 copy of a numeric array, in bounded blocks. What overflows becomes Inf and is refused on validation."""
    out = np.empty(values.shape, np.float32) if out is None else out
    with np.errstate(over="ignore"):
        for rows in blocks(values):
            out[rows] = values[rows]
    return out


def _numbers(x: np.ndarray | Rows | Payload, chosen: np.ndarray) -> np.ndarray | Rows | None:
    """What center and scale are fitted to of these rows; None where there is nothing to standardise."""
    return payload_of(payload_of(x).take(np.flatnonzero(chosen))).numbers


def _affine(train: np.ndarray | Rows | None, white: int | None, keep: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    if train is None:  # nothing to standardise
        return np.zeros((), np.float32), np.ones((), np.float32)
    shape = train.shape[1:]
    if train.dtype == np.int64:
        return np.zeros(shape, np.float32), np.ones(shape, np.float32)
    if train.dtype == np.uint8 and white is not None:
        one = (1,) * len(shape)
        return np.zeros(one, np.float32), np.full(one, 1 / white, np.float32)
    mean, std = _moments(train)
    # A spread below float32's resolution at that level is rounding, not signal; scaling by it would make noise of it.
    flat = ~(std > np.finfo(np.float32).eps * np.maximum(np.abs(mean), np.finfo(np.float32).tiny))
    std[flat] = 1.0
    mean[list(keep)], std[list(keep)] = 0.0, 1.0
    if len(shape) > 1:
        mean, std = mean[:, None, None], std[:, None, None]
    return mean.astype(np.float32), (1.0 / std).astype(np.float32)


def _moments(train: np.ndarray | Rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature or channel (axis 1), in one pass.

    Columns that hold NaN or Inf get 0 and 1 here; validation then names the examples.
    """
    count, mean, m2 = 0, np.zeros(train.shape[1]), np.zeros(train.shape[1])
    with np.errstate(invalid="ignore", over="ignore"):
        for rows in blocks(train):
            block = np.asarray(train[rows], np.float64)
            block = block.reshape(len(block), train.shape[1], math.prod(train.shape[2:]))
            num, block_mean = len(block) * block.shape[2], block.mean(axis=(0, 2))
            total, delta = count + num, block_mean - mean
            m2 += np.square(block - block_mean[:, None]).sum(axis=(0, 2)) + np.square(delta) * (count * num / total)
            mean += delta * (num / total)
            count = total
    known = np.isfinite(m2)
    return np.where(known, mean, 0.0), np.sqrt(np.where(known, m2, 1.0) / max(count, 1))
