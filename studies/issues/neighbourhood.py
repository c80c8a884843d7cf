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


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Attributes:
    position: int64 (N, k), rows of the nearest others. ``distance``: float64 (N, k) to them.
    """

    position: Ints
    distance: Floats


def neighbourhood(
    data: ExampleSet,
    encoder: nn.Module,
    *,
    k: int,
    space: str,
    index: str = "exact",
    payloads: PayloadSpace | None = None,
) -> Neighbourhood:
    """Of every row of ``data``, in its order.

    Args:
        space: "data" or "model". ``index``: "exact" or "hnsw".
        payloads: the space of ``data``, where it is there already.

    Raises:
        DataError: values, or activations, that are not finite.
    """
    if space == "model":
        found = nearest(unit_vectors(embeddings(encoder, data)), k=k, method=index)
        return Neighbourhood(found.position, np.sqrt(np.maximum(2 - 2 * found.similarity, 0)))
    own = PayloadSpace(data.x, data.example_id) if payloads is None else payloads
    candidates, apart = own.others(index, least=k)
    k = min(k, apart.shape[1])
    order = np.lexsort((candidates.position, apart), axis=1)[:, :k]
    return Neighbourhood(np.take_along_axis(candidates.position, order, 1), np.take_along_axis(apart, order, 1))
