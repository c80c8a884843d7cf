"""Nodes of one graph: each node has a vector of numbers; all share one list of edges.

    features (V, D) float32   of every node of the graph
    edges    (2, E) int64     from and to, positions in ``features``; once each, also where they count both ways
    members  (N,)   int64     the nodes that are the examples of this set; the others are there as their neighbours

    inputs   {"x": float32 (V, D), "edge_index": int64 (2, E'), "nodes": int64 (B,)}: all of it, and which are asked

``take`` keeps the graph and says which nodes are members: a node is read on the full graph. ``only`` (``induced``)
gives the subgraph of some of them and nothing else, which is what a model is trained on that must not see the others
(Olatunji et al. 2021); ``among`` the subgraph that two sets of members induce. A node's content hash covers its own
numbers; the edges and all nodes have a SHA-256 each, a part of the data digest, told by the ids of nodes and not by
their positions.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError
from sources.payloads.arrays import Arrays, part_of
from sources.payloads.base import Affine, Fault, Part, Payload, Selection, positions
from sources.rows import Rows, gather, select


@dataclass(frozen=True, eq=False)
class Graph(Payload):
    """N nodes of a graph of V.

    Attributes:
        features, edges: see the module.
        node_id: int64 (V,), unique: the example id of every node.
        directed: whether an edge counts from its first node to its second only.
        members: int64 (N,); None for all V in their order.
    """

    kind: ClassVar[str] = "graph"
    features: NDArray[np.float32] | Rows
    edges: NDArray[np.int64]
    node_id: NDArray[np.int64]
    directed: bool = False
    members: NDArray[np.int64] | None = None

    def __repr__(self) -> str:
        return f"Graph({len(self)} of {len(self.features)} nodes, {self.edges.shape[1]} edges)"

    @property
    def nodes(self) -> NDArray[np.int64]:
        """(N,) the position of each example among the V nodes."""
        return np.arange(len(self.features), dtype=np.int64) if self.members is None else self.members

    @property
    def shape(self) -> tuple[int, ...]:
        num = len(self.features) if self.members is None else len(self.members)
        return (num, *self.features.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.features.dtype

    @property
    def nbytes(self) -> int:
        return int(self.features.nbytes + self.edges.nbytes + self.node_id.nbytes)

    @property
    def numbers(self) -> NDArray[Any] | Rows:
        """(N, D), of the members alone."""
        return self.features if self.members is None else select(self.features, self.members)

    @cached_property
    def shared(self) -> Mapping[str, str]:  # type: ignore[override]
        return {"edges": self.edges_sha256, "nodes": self._nodes_sha256()}

    @cached_property
    def edges_sha256(self) -> str:
        """SHA-256 of the edges, each as the ids of its two nodes, sorted; the same however nodes and edges are
        ordered.
        """
        ends = self.node_id[self.edges]
        ends = ends if self.directed else np.sort(ends, axis=0)
        ends = ends[:, np.lexsort((ends[1], ends[0]))]
        kind = b"directed" if self.directed else b"undirected"
        return hashlib.sha256(kind + np.ascontiguousarray(ends.T, "<i8").tobytes()).hexdigest()

    def _nodes_sha256(self) -> str:
        """SHA-256 of id and numbers of every node, members or not, in the order of their ids."""
        state = hashlib.sha256()
        order = np.argsort(self.node_id, kind="stable")
        ordered = Arrays(select(self.features, order))
        for rows in ordered.blocks():
            ids = self.node_id[order[rows]].astype("<i8")
            state.update(b"".join(i.tobytes() + row for i, row in zip(ids, ordered.row_bytes(rows), strict=True)))
        return state.hexdigest()

    def take(self, rows: NDArray[Any]) -> Graph:
        return dataclasses.replace(self, members=self.nodes[positions(rows, len(self))])

    def induced(self, rows: NDArray[Any] | None = None) -> Graph:
        """The subgraph of these members (all of them when None): their numbers and the edges among them; nothing of
        other nodes.
        """
        chosen = self.nodes if rows is None else self.nodes[positions(rows, len(self))]
        place = np.full(len(self.features), -1, np.int64)
        place[chosen] = np.arange(len(chosen))
        edges = place[self.edges]
        return Graph(
            select(self.features, chosen),
            np.ascontiguousarray(edges[:, (edges >= 0).all(axis=0)]),
            self.node_id[chosen],
            directed=self.directed,
        )

    def only(self, rows: NDArray[Any]) -> Graph:
        return self.induced(rows)

    def without(self, rows: NDArray[Any]) -> Graph:
        """The graph without these members and their edges; nodes that are no members stay."""
        at = positions(rows, len(self))
        left = np.setdiff1d(np.arange(len(self.features)), self.nodes[at])
        return self._cut(left, np.delete(self.nodes, at))

    def without_edges(self, pairs: NDArray[np.int64]) -> Graph:
        """The graph without the edges between these pairs of nodes, (n, 2) ids; pairs without an edge change nothing.
        Of a directed graph, both directions."""
        ends = np.sort(self.node_id[self.edges], axis=0)
        gone = {tuple(pair) for pair in np.sort(pairs, axis=1).tolist()}
        kept = np.array([tuple(end) not in gone for end in ends.T.tolist()], bool)
        return dataclasses.replace(self, edges=np.ascontiguousarray(self.edges[:, kept]))

    def has_edge(self, first: int, second: int) -> bool:
        """Whether an edge joins the nodes of these ids, in either direction."""
        ends = np.sort(self.node_id[self.edges], axis=0)
        return bool((ends == np.sort([first, second])[:, None]).all(axis=0).any())

    def neighbourhood(self, node: int, hops: int) -> NDArray[np.int64]:
        """Ids of the members within ``hops`` edges of the node of that id, itself among them, ascending; edges lead
        both ways here.

        Raises:
            DataError: there is no such node.
        """
        near = self.node_id == node
        if not near.any():
            raise DataError(f"there is no node {node} in the graph")
        for _ in range(hops):
            a, b = self.edges
            more = near.copy()
            more[b[near[a]]] = True
            more[a[near[b]]] = True
            near = more
        return np.sort(self.node_id[self.nodes[near[self.nodes]]])

    def among(self, other: Payload | None) -> Graph:
        """These members in the subgraph that they and the members of ``other`` induce, a part of the same graph.

        Raises:
            DataError: another graph.
        """
        together = self.nodes
        if other is not None:
            if not isinstance(other, Graph) or not (
                self.features is other.features or np.array_equal(self.node_id, other.node_id)
            ):
                raise DataError("two sets of nodes are parts of different graphs")
            together = np.union1d(self.nodes, other.nodes)
        return self._cut(together, self.nodes)

    def _cut(self, left: NDArray[np.int64], members: NDArray[np.int64]) -> Graph:
        """The subgraph of the nodes ``left``, with these of them for members."""
        alone = dataclasses.replace(self, members=left).induced()
        place = np.full(len(self.features), -1, np.int64)
        place[left] = np.arange(len(left))
        return dataclasses.replace(alone, members=place[members])

    @cached_property
    def edge_index(self) -> NDArray[np.int64]:
        """(2, E') from and to; edges that count in both directions stand there twice, loops once."""
        if self.directed:
            return self.edges
        back = self.edges[::-1, self.edges[0] != self.edges[1]]
        return np.concatenate([self.edges, back], axis=1)

    def inputs(self, rows: Selection, affine: Affine) -> dict[str, NDArray[Any]]:
        features = gather(self.features, slice(None)).astype(np.float32, copy=True)
        nodes = self.nodes[positions(rows, len(self))]
        return {"x": affine(features), "edge_index": self.edge_index.copy(), "nodes": nodes}

    def blocks(self) -> Iterator[slice]:
        return Arrays(self.numbers).blocks()

    def row_bytes(self, rows: slice) -> list[bytes]:
        """The node's own numbers, as of an array."""
        return Arrays(gather(self.features, self.nodes[rows])).row_bytes(slice(None))

    def check(self) -> None:
        num = len(self.features)
        if self.features.dtype != np.float32 or self.features.ndim != 2 or 0 in self.features.shape[1:]:
            raise DataError(
                f"graph: features are {self.features.dtype} {tuple(self.features.shape)}, not float32 (V, D), D >= 1"
            )
        if self.edges.dtype != np.int64 or self.edges.ndim != 2 or len(self.edges) != 2:
            raise DataError(f"graph: edges are {self.edges.dtype} {self.edges.shape}, not int64 (2, E)")
        bad = ((self.edges < 0) | (self.edges >= num)).any(axis=0)
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"graph: {int(bad.sum())} edges lead to no node, the first is edge {at}, {self.edges[:, at].tolist()}; "
                f"nodes are 0..{num - 1}"
            )
        if self.node_id.dtype != np.int64 or self.node_id.shape != (num,):
            raise DataError(f"graph: node_id is {self.node_id.dtype} {self.node_id.shape}, not int64 ({num},)")
        if len(np.unique(self.node_id)) != num:
            raise DataError("graph: a node_id is used more than once")
        nodes = self.nodes
        if nodes.dtype != np.int64 or (len(nodes) and not 0 <= nodes.min() <= nodes.max() < num):
            raise DataError(f"graph: members are {nodes.dtype}, and positions of nodes are int64 in 0..{num - 1}")

    def faults(self, affine: Affine, *, labelled: bool = True) -> Iterator[Fault]:
        return Arrays(self.numbers).faults(affine)

    @property
    def settings(self) -> dict[str, Any]:
        return {"directed": self.directed}

    def parts(self) -> dict[str, Part]:
        """Of the members and the edges among them alone."""
        alone = self if self.members is None else self.induced()
        arrays = {"features": alone.features, "edges": alone.edges, "node_id": alone.node_id}
        return {name: part_of(values) for name, values in arrays.items()}

    @classmethod
    def from_parts(cls, arrays: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> Self:
        return cls(arrays["features"], arrays["edges"], arrays["node_id"], directed=bool(settings["directed"]))
