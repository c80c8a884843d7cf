"""Images as shares of full brightness, whatever they are stored as."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError
from sources.example_set import ExampleSet


def full_brightness(data: ExampleSet) -> float:
    """The stored value that is full brightness: of uint8 where the input scale says so (digits: 16), else 255; 1 of
    floats."""
    if data.x.dtype != np.uint8:
        return 1.0
    plain = not np.any(data.center) and data.scale.size == 1
    return float(np.round(1 / data.scale.item())) if plain else 255.0


def pixels(data: ExampleSet, rows: slice) -> NDArray[np.float32]:
    """(B, C, H, W) float32 in [0, 1], fresh memory.

    Raises:
        DataError: values outside; names the examples.
    """
    white = full_brightness(data)
    values = np.asarray(data.x[rows], np.float32) / np.float32(white)
    outside = ((values < 0) | (values > 1)).any((1, 2, 3))
    if outside.any():
        raise DataError(
            f"{data.name}: images with values from 0 to {white:g} are needed",
            example_ids=data.example_id[rows][outside],
        )
    return values
