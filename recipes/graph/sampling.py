"""Neighbour sampling: of a node's surroundings so many as a step can hold (Hamilton et al., NeurIPS 2017).

    hop k    of every node met so far and not yet looked at: at most s_k of its in-edges, drawn without replacement
    result   the nodes met, the asked ones first, and the drawn edges among them, numbered anew

A layer-k network's answer at the asked nodes then costs prod s_k nodes instead of the graph. With s_k at least the
largest in-degree nothing is left out within k hops, so that the answer is that of the whole graph. A network that adds
a loop to each node does so here as well. Drawn neighbours stand for all as they are, without weights: attention and
means over them are estimates, sums would be too small.

Source: Hamilton, Ying and Leskovec, "Inductive representation learning on large graphs" (GraphSAGE, NeurIPS 2017,
arXiv 1706.02216), section 3.1. Not GraphSAINT or clusters: every asked node has neighbours of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class InEdges:
    """The edges of a graph by the node that they lead to.

    Attributes:
        starts: (V + 1,) where each node's edges begin in ``sources``.
        sources: (E,) where they come from.
    """

    starts: Ints
    sources: Ints

    @classmethod
    def of(cls, edge_index: Ints, num_nodes: int) -> Self:
        """Of edges (2, E), from and to, in any order."""
        order = np.lexsort((edge_index[0], edge_index[1]))
        counts = np.bincount(edge_index[1], minlength=num_nodes)
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), edge_index[0][order])

    def sample(self, nodes: Ints, sizes: Sequence[int], rng: np.random.Generator) -> tuple[Ints, Ints]:
        """The surroundings of some nodes.

        Args:
            nodes: (B,) distinct.
            sizes: s_1, s_2, ...: in-edges drawn of a node, hop by hop; >= 1.
            rng: drawn from for every edge looked at.

        Returns:
            (W,) the nodes met, ``nodes`` first and the others ascending; int64 (2, e) the drawn edges, from and to, as
            positions in them.

        >>> edges = InEdges.of(np.array([[1, 2, 3], [0, 0, 1]]), 4)
        >>> [part.tolist() for part in edges.sample(np.array([0]), [2, 2], np.random.default_rng(0))]
        [[0, 1, 2, 3], [[1, 2, 3], [0, 0, 1]]]
        """
        known = np.zeros(len(self.starts) - 1, bool)
        known[nodes] = True
        frontier, drawn = nodes, []
        for size in sizes:
            drawn.append(self._drawn(frontier, size, rng))
            met = np.unique(drawn[-1][0])
            frontier = met[~known[met]]
            known[frontier] = True
        asked = np.zeros(len(known), bool)
        asked[nodes] = True
        every = np.concatenate([nodes, np.flatnonzero(known & ~asked)])
        place = np.empty(len(known), np.int64)
        place[every] = np.arange(len(every))
        return every, place[np.concatenate(drawn, axis=1)]

    def _drawn(self, nodes: Ints, size: int, rng: np.random.Generator) -> Ints:
        """(2, e): at most ``size`` in-edges of each of these nodes, every set of so many equally likely."""
        counts = self.starts[nodes + 1] - self.starts[nodes]
        ends = np.cumsum(counts)
        to = np.repeat(np.arange(len(nodes)), counts)
        at = np.arange(len(to)) - np.repeat(ends - counts, counts) + np.repeat(self.starts[nodes], counts)
        order = np.lexsort((rng.random(len(to)), to))
        kept = np.sort(order[np.arange(len(to)) - np.repeat(ends - counts, counts) < size])
        return np.stack([self.sources[at[kept]], nodes[to[kept]]])


def batches(num: int, size: int, rng: np.random.Generator) -> Iterator[Ints]:
    """The numbers 0 .. num - 1 in a random order, so many at a time; the last are fewer."""
    order = rng.permutation(num)
    return (order[start : start + size] for start in range(0, num, size))
