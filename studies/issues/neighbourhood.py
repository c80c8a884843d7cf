"""The nearest other examples of every example, in what they hold or in what the audited model sees.

    data    d of ``explain.payloads``: standardised columns, or images up to small shifts
    model   sqrt(2 - 2 cos) of penultimate activations

Shapes: N examples -> position int64 (N, k), distance float64 (N, k), nearest first, equals by position; k < N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from explain.embeddings import embeddings
from explain.neighbours import Floats, Ints, nearest, unit_vectors
from explain.payloads import PayloadSpace
from sources.example_set import ExampleSet

SPACES = ("data", "model")
_BLOCK = 16_384  # rows whose candidates are compared at a time


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Attributes:
    position: int64 (N, k), rows of the nearest others. ``distance``: float64 (N, k) to them.
    vectors: float32 (N, d) of unit length, which order the neighbours.
    """

    position: Ints
    distance: Floats
    vectors: np.ndarray


def neighbourhood(data: ExampleSet, encoder: nn.Module, *, k: int, space: str, index: str = "exact") -> Neighbourhood:
    """Of every row of ``data``, in its order.

    Args:
        space: "data" or "model". ``index``: "exact" or "hnsw".

    Raises:
        DataError: values, or activations, that are not finite.
    """
    if space == "model":
        vectors = unit_vectors(embeddings(encoder, data))
        found = nearest(vectors, k=k, method=index)
        return Neighbourhood(found.position, np.sqrt(np.maximum(2 - 2 * found.similarity, 0)), vectors)
    own = PayloadSpace(data.x, data.example_id)
    vectors = own.vectors(np.arange(len(data)))
    candidates = nearest(vectors, k=max(own.candidates, k), method=index).position
    k = min(k, candidates.shape[1])
    position, distance = np.empty((len(data), k), np.int64), np.empty((len(data), k))
    for start in range(0, len(data), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(data)))
        apart = own.distances(rows, candidates[rows])
        order = np.lexsort((candidates[rows], apart), axis=1)[:, :k]
        position[rows] = np.take_along_axis(candidates[rows], order, 1)
        distance[rows] = np.take_along_axis(apart, order, 1)
    return Neighbourhood(position, distance, vectors)
