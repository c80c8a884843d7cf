"""Connected components of a graph that is told edge by edge, and of the points that are alike at a threshold.

Not a search for neighbours (``explain.neighbours``), and no judgement on which threshold means what.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from contracts.errors import InvalidInput
from explain.neighbours import Ints, Neighbours, nearest, whole_rows

_EDGES = 250_000  # pairs held before they are joined
_LIST = 4  # neighbours asked for; an example with more at the threshold is compared with everything


class Groups:
    """Connected components; memory is bounded by the points, not by the edges.

    >>> groups = Groups(4)
    >>> groups.join(np.array([3]), np.array([1]))
    >>> groups.settled().tolist()
    [0, 1, 2, 1]
    """

    def __init__(self, num: int) -> None:
        self._group = np.arange(num)
        self._edges: list[Ints] = []

    def join(self, a: Ints, b: Ints) -> None:
        """Points a (E,) and b (E,) are alike, pair by pair."""
        edges = np.stack([self._group[a], self._group[b]])
        edges = edges[:, edges[0] != edges[1]]
        if edges.size:
            self._edges.append(edges)
        if sum(e.shape[1] for e in self._edges) > _EDGES:
            self.settled()

    def settled(self) -> Ints:
        """The smallest position in each point's component, int64 (N,)."""
        if not self._edges:
            return self._group
        edges, self._edges = np.concatenate(self._edges, axis=1), []
        names, code = np.unique(edges, return_inverse=True)
        left, right = code.reshape(2, -1)
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(len(names), len(names)))
        component = connected_components(graph, directed=False)[1]
        _, first = np.unique(component, return_index=True)  # names ascend: the first of a component is its smallest
        renamed = np.arange(len(self._group))
        renamed[names] = names[first][component]
        self._group = renamed[self._group]
        return self._group


def components_at(points: NDArray[np.float32], *, threshold: float, method: str = "exact") -> tuple[Ints, Neighbours]:
    """Connected components of the graph of points at least ``threshold`` alike.

    Args:
        points: (N, d) float32, unit length.
        threshold: smallest similarity, in (0, 1].
        method: how the nearest neighbours are found; a point with a full list of them at the threshold is compared with
            every point either way, so with "exact" the components are those of the whole graph.

    Returns:
        (N,) int64, the smallest position in each point's component, and the neighbours found on the way (k <= 4).

    Raises:
        InvalidInput: a threshold out of range.

    >>> components_at(np.array([[1, 0], [0, 1], [1, 0]], np.float32), threshold=0.9)[0].tolist()
    [0, 1, 0]
    """
    if not 0 < threshold <= 1:
        raise InvalidInput(f"threshold = {threshold} is outside (0, 1]")
    found = nearest(points, k=_LIST, method=method)
    groups = Groups(len(points))
    if not found.position.size:
        return groups.settled(), found
    row, column = np.nonzero(found.similarity >= threshold)
    groups.join(row, found.position[row, column])
    for row, column in _crowded(points, found, threshold):
        groups.join(row, column)
        if not groups.settled().any():
            break  # all in the group of point 0
    return groups.settled(), found


def _crowded(points: NDArray[np.float32], found: Neighbours, threshold: float) -> Iterator[tuple[Ints, Ints]]:
    """Every edge of the points whose list of neighbours was too short to hold all of theirs."""
    if found.position.shape[1] >= len(points) - 1:
        return
    for rows, similarity in whole_rows(points, points, np.flatnonzero(found.similarity[:, -1] >= threshold)):
        row, column = np.nonzero(similarity >= threshold)
        yield rows[row], column
