"""A stored score on the training split: joined by id, what it leaves out as NaN, foreign ids refused."""

from __future__ import annotations

import numpy as np
import polars as pl

from contracts.errors import DataError


def score_values(frame: pl.DataFrame, train: np.ndarray, *, score: str, data_name: str) -> np.ndarray:
    """Values in the order of ``train``, NaN where the score has none: float64 (N_train,).

    Args:
        frame: (example_id, value) of the score, rows in any order; null and NaN count as no value.
        train: (N_train,) int64, ascending.
        score, data_name: for the messages.

    Raises:
        DataError: ids twice, or ids that are no training examples (a score of other data).
    """
    ids = frame.get_column("example_id").to_numpy()
    doubled = np.unique(ids, return_counts=True)
    if (doubled[1] > 1).any():
        raise DataError(f"score {score!r} has examples twice", example_ids=doubled[0][doubled[1] > 1])
    other = ids[~np.isin(ids, train)]
    if len(other):
        raise DataError(
            f"score {score!r} is about examples that are not in the training split of {data_name}", example_ids=other
        )
    values = np.full(len(train), np.nan)
    values[np.searchsorted(train, ids)] = frame.get_column("value").cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return values
