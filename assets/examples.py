"""Examples as people look at them: pictures where they are pictures, else rows of their features."""

from __future__ import annotations

import numpy as np
import polars as pl

from assets.stage import labels_of
from contracts.methods import Picture
from reports import Examples
from reports.plots import is_picture
from sources import ExampleSet

MOST = 8


def examples_of(data: ExampleSet, frame: pl.DataFrame, column: str, heading: str) -> Examples:
    """Examples chosen by a score as pictures where they are pictures, else as rows of their features."""
    ids = frame["example_id"].to_numpy()
    rows = data.positions(ids)
    pictures = is_picture(data.input_shape)
    labels = labels_of(data.subset(ids))
    values = np.asarray(data.x[rows])
    features = None
    if not pictures and values.ndim == 2:
        names = data.feature_names or tuple(f"x{i}" for i in range(values.shape[1]))
        features = pl.DataFrame({n: values[:, i] for i, n in enumerate(names[:8])})
    return Examples(
        heading=heading,
        example_id=ids,
        value=frame[column].to_numpy().astype(np.float64),
        label=[str(v) for v in labels[labels.columns[1]]],
        images=data.inputs(rows) if pictures else None,  # the scale of the model's input, whatever the raw values' is
        rows=features,
    )


def examples_in(data: ExampleSet, picture: Picture, frame: pl.DataFrame) -> list[Examples]:
    """The examples that a picture of kind "examples" shows: one group a value of ``series``, highest ``y`` first."""
    rows = frame.filter(*[pl.col(c) == v for c, v in picture.where]).drop_nulls([picture.x, picture.y])
    rows = rows.sort([picture.y, picture.x], descending=[True, False])
    parts = rows.partition_by(picture.series, as_dict=True) if picture.series else {(picture.title,): rows}
    out = []
    for (name,), part in sorted(parts.items()):
        best = part.unique(picture.x, keep="first", maintain_order=True).head(MOST)
        chosen = best.select(pl.col(picture.x).alias("example_id"), pl.col(picture.y).cast(pl.Float64).alias("y"))
        heading = f"{picture.series.replace('_', ' ')} {name}" if picture.series else picture.title
        out.append(examples_of(data, chosen, "y", heading))
    return out
