"""Examples as people look at them: pictures where they are pictures, else rows of their features."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

import numpy as np
import polars as pl

from assets.stage import labels_of
from contracts.methods import Picture
from reports import Examples
from reports.plots import TRUTH_AND_PREDICTION, is_picture, outlined
from sources.example_set import ExampleSet
from sources.rows import Rows

MOST, SHEET = 8, 64  # examples of a group, and on a sheet of them


def examples_of(data: ExampleSet, frame: pl.DataFrame, column: str, heading: str) -> Examples:
    """Examples chosen by a score as pictures where they are pictures, else as rows of their features."""
    ids = frame["example_id"].to_numpy()
    rows = data.positions(ids)
    pictures = is_picture(data.input_shape)
    images = data.inputs(rows) if pictures else None  # the scale of the model's input, whatever the raw values' is
    if images is not None and data.task.gives("pixels"):
        images = outlined(images, data.targets(rows) > 0)
    labels = labels_of(data.subset(ids))
    # What has no label of its own (a text) is told by where it lies.
    said = labels[labels.columns[1]].to_list() if labels.width > 1 else [""] * len(ids)
    if labels.width == 1 and data.origin is not None:
        said = data.origin[rows].tolist()
    # A number that is no target of its own is told with its name: the share of an image that is foreground.
    measured = labels.width > 1 and labels.columns[1] not in ("label_name", "target")
    features = None
    if not pictures and isinstance(data.x, (np.ndarray, Rows)) and data.x.ndim == 2:
        values = np.asarray(data.x[rows])
        names = data.feature_names or tuple(f"x{i}" for i in range(values.shape[1]))
        features = pl.DataFrame({n: values[:, i] for i, n in enumerate(names[:8])})
    return Examples(
        heading=heading,
        example_id=ids,
        value=frame[column].to_numpy().astype(np.float64),
        label=[f"{labels.columns[1]} {v:.2f}" if measured else str(v) for v in said],
        images=images,
        rows=features,
    )


def examples_in(data: ExampleSet, picture: Picture, frame: pl.DataFrame) -> list[Examples]:
    """The examples that a picture shows, one group a value of ``series``: highest ``y`` first, or the images in ``y``
    by id.

    The originals, where there are any, are the first group: what is beside them is compared with them. Names that end
    in numbers are in the order of these. All groups get equal shares of a sheet, at least one example; of more groups
    than a sheet has places, those with the best examples are kept.
    """
    rows = frame.filter(*[pl.col(c) == v for c, v in picture.where]).drop_nulls([picture.x, picture.y])
    images, masks = picture.kind == "images", picture.kind == "outlines"
    first = (picture.value or picture.x) if masks else picture.y
    rows = rows.sort(picture.x) if images else rows.sort([first, picture.x], descending=[True, False])
    parts = rows.partition_by(picture.series, as_dict=True) if picture.series else {(picture.title,): rows}
    shown = list(parts.items())[:SHEET]
    share = min(MOST, SHEET // max(len(shown), 1))
    beside = pl.col(picture.value) if picture.value else pl.lit(None)
    value = beside if images or masks else pl.col(picture.y)
    out = []
    for (name,), part in sorted(shown, key=lambda part: (part[0][0] != "original", _in_order(part[0][0]))):
        best = part.unique(picture.x, keep="first", maintain_order=True).head(share)
        chosen = best.select(pl.col(picture.x).alias("example_id"), value.cast(pl.Float64).alias("y"))
        heading = f"{picture.series.replace('_', ' ')} {name}" if picture.series else picture.title
        found = examples_of(data, chosen, "y", heading)
        if images and is_picture(data.input_shape):
            drawn = np.stack([np.reshape(v, data.input_shape) for v in best[picture.y]])
            found = dataclasses.replace(found, images=_in_range(drawn, data, chosen["example_id"].to_numpy()))
        if masks and is_picture(data.input_shape):
            at, shape = data.positions(chosen["example_id"].to_numpy()), data.input_shape[1:]
            predicted = np.stack([_of_runs(runs, shape) for runs in best[picture.y]])
            drawn = outlined(data.inputs(at), data.targets(at) > 0, predicted)
            found = dataclasses.replace(found, images=drawn, heading=f"{found.heading}: {TRUTH_AND_PREDICTION}")
        out.append(found)
    return out


def _of_runs(runs: Iterable[float], shape: tuple[int, ...]) -> np.ndarray:
    """The mask (H, W) of which these are the lengths of runs, the first of background."""
    lengths = np.asarray(list(runs), np.int64)
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(shape)


def _in_order(name: object) -> object:
    """What a name is sorted by: the digits in a text are numbers, so that c_10 follows c_9."""
    if not isinstance(name, str):
        return name
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]


def _in_range(drawn: np.ndarray, data: ExampleSet, ids: np.ndarray) -> np.ndarray:
    """Images with the values their originals take: what lies outside is black or white."""
    originals = data.inputs(data.positions(ids))
    over = tuple(range(1, originals.ndim))
    clipped: np.ndarray = np.clip(drawn, originals.min(over, keepdims=True), originals.max(over, keepdims=True))
    return clipped
