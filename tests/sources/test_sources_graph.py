"""Graphs: subsets keep the graph, induced subgraphs against a naive loop, digests that do not depend on any order,
refusals.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import DataError
from sources.identity import Content
from sources.payloads.base import Affine
from sources.payloads.graph import Graph

IDENTITY = Affine(np.zeros((), np.float32), np.ones((), np.float32))


@st.composite
def graphs(draw):
    num = draw(st.integers(2, 9))
    pairs = draw(st.lists(st.tuples(st.integers(0, num - 1), st.integers(0, num - 1)), max_size=20, unique=True))
    edges = np.array(pairs, np.int64).reshape(-1, 2).T
    features = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(num, 2)).astype(np.float32)
    ids = np.array(draw(st.lists(st.integers(0, 10_000), min_size=num, max_size=num, unique=True)), np.int64)
    return Graph(features, edges, ids, directed=draw(st.booleans()))


def _named(graph: Graph) -> set[tuple[int, int]]:
    """Its edges, by the ids of nodes."""
    return {tuple(graph.node_id[list(e)].tolist()) for e in graph.edges.T.tolist()}


@given(graph=graphs(), data=st.data())
def test_subsets_keep_the_graph_and_say_which_nodes_are_members(graph, data):
    rows = np.array(data.draw(st.lists(st.sampled_from(range(len(graph))), unique=True)), np.int64)
    part = graph.take(rows)
    assert len(part) == len(rows) and part.nodes.tolist() == rows.tolist()
    assert part.features is graph.features and part.edges is graph.edges
    if not len(rows):
        return
    again = np.array(data.draw(st.lists(st.sampled_from(range(len(rows))), unique=True)), np.int64)
    assert part.take(again).nodes.tolist() == rows[again].tolist()
    got = part.inputs(again, IDENTITY)
    np.testing.assert_array_equal(got["x"], graph.features)
    assert got["nodes"].tolist() == rows[again].tolist()
    got["x"][:] = 0
    assert graph.features.any()
    assert part.row_bytes(slice(0, len(part))) == [graph.row_bytes(slice(int(r), int(r) + 1))[0] for r in rows]
    assert part.numbers.shape == (len(rows), 2)
    assert dict(part.shared) == dict(graph.shared)


@given(graph=graphs(), data=st.data())
def test_members_among_others_see_both_and_nobody_else(graph, data):
    rows = np.array(data.draw(st.lists(st.sampled_from(range(len(graph))), unique=True)), np.int64)
    more = np.array(data.draw(st.lists(st.sampled_from(range(len(graph))), unique=True)), np.int64)
    found = graph.take(rows).among(graph.take(more))
    found.check()
    both = set(graph.node_id[rows].tolist()) | set(graph.node_id[more].tolist())
    assert found.node_id[found.nodes].tolist() == graph.node_id[rows].tolist()
    assert set(found.node_id.tolist()) == both
    assert _named(found) == {edge for edge in _named(graph) if set(edge) <= both}
    np.testing.assert_array_equal(np.asarray(found.numbers), graph.features[rows])
    alone = graph.take(rows).among(None)
    assert set(alone.node_id.tolist()) == set(graph.node_id[rows].tolist())
    assert dict(alone.shared) == dict(graph.take(rows).induced().shared)


@given(graph=graphs(), data=st.data())
def test_what_a_graph_is_without_is_in_it_no_more(graph, data):
    """Members, and nodes that are none; against sets of ids."""
    rows = np.array(data.draw(st.lists(st.sampled_from(range(len(graph))), unique=True)), np.int64)
    part = graph.take(rows)
    gone = np.array(data.draw(st.lists(st.sampled_from(range(len(rows))), unique=True)) if len(rows) else [], np.int64)
    left = part.without(gone)
    left.check()
    out = set(graph.node_id[rows[gone]].tolist())
    assert left.node_id[left.nodes].tolist() == np.delete(graph.node_id[rows], gone).tolist()
    assert set(left.node_id.tolist()) == set(graph.node_id.tolist()) - out
    assert _named(left) == {edge for edge in _named(graph) if not set(edge) & out}

    pairs = data.draw(st.lists(st.tuples(*[st.sampled_from(graph.node_id.tolist())] * 2), max_size=4))
    cut = part.without_edges(np.array(pairs, np.int64).reshape(-1, 2))
    named = {frozenset(pair) for pair in pairs}
    assert _named(cut) == {edge for edge in _named(graph) if frozenset(edge) not in named}
    assert cut.nodes.tolist() == part.nodes.tolist()
    for first, second in pairs:
        assert not cut.has_edge(first, second)
        assert part.has_edge(first, second) == any(set(edge) == {first, second} for edge in _named(graph))


@given(graph=graphs(), data=st.data(), hops=st.integers(0, 3))
def test_a_neighbourhood_is_what_a_search_finds_among_the_members(graph, data, hops):
    rows = np.array(data.draw(st.lists(st.sampled_from(range(len(graph))), unique=True)), np.int64)
    start = data.draw(st.sampled_from(graph.node_id.tolist()))
    seen = {start}
    for _ in range(hops):
        seen |= {b for a, b in _named(graph) if a in seen} | {a for a, b in _named(graph) if b in seen}
    found = graph.take(rows).neighbourhood(start, hops)
    assert found.tolist() == sorted(seen & set(graph.node_id[rows].tolist()))
    with pytest.raises(DataError, match="no node 10001"):
        graph.neighbourhood(10_001, hops)


def test_two_graphs_have_nothing_in_common():
    features, edges = np.ones((3, 2), np.float32), np.array([[0], [1]])
    first, second = (Graph(features.copy(), edges, np.arange(3) + k) for k in (0, 1))
    with pytest.raises(DataError, match="different graphs"):
        first.among(second)
    assert first.among(dataclasses.replace(first, features=features.copy())).edges.shape == (2, 1)


@given(graph=graphs(), data=st.data())
def test_the_induced_subgraph_holds_the_members_and_the_edges_among_them(graph, data):
    rows = np.array(data.draw(st.lists(st.sampled_from(range(len(graph))), unique=True)), np.int64)
    alone = graph.take(rows).induced()
    alone.check()
    kept = set(graph.node_id[rows].tolist())
    assert alone.node_id.tolist() == graph.node_id[rows].tolist()
    np.testing.assert_array_equal(alone.features, graph.features[rows])
    assert _named(alone) == {(a, b) for a, b in _named(graph) if a in kept and b in kept}
    assert alone.directed == graph.directed and len(alone) == len(rows)
    assert dict(graph.only(rows).shared) == dict(alone.shared)


@given(graph=graphs(), data=st.data())
def test_digests_are_the_same_however_nodes_and_edges_are_ordered(graph, data):
    order = np.array(data.draw(st.permutations(range(len(graph)))), np.int64)
    place = np.argsort(order)
    edges = place[graph.edges][:, data.draw(st.permutations(range(graph.edges.shape[1])))]
    if not graph.directed and data.draw(st.booleans()):
        edges = edges[::-1]
    other = Graph(graph.features[order], np.ascontiguousarray(edges), graph.node_id[order], directed=graph.directed)
    assert dict(other.shared) == dict(graph.shared)
    names = dict(zip(graph.node_id.tolist(), Content(graph).hashes().tolist(), strict=True))
    assert dict(zip(other.node_id.tolist(), Content(other).hashes().tolist(), strict=True)) == names


def test_what_changes_a_graph_changes_its_digest():
    x, edges, ids = np.eye(4, dtype=np.float32), np.array([[0, 1, 2], [1, 2, 3]]), np.arange(4)
    base = Graph(x, edges, ids, directed=True)
    edges_of = [
        Graph(x, edges[:, :2], ids, directed=True),
        Graph(x, edges[::-1].copy(), ids, directed=True),
        Graph(x, edges, ids),
        Graph(x, edges, ids + 1, directed=True),
    ]
    assert len({base.edges_sha256, *(g.edges_sha256 for g in edges_of)}) == 5
    moved = Graph(x + np.float32(1) * (np.arange(4) == 3)[:, None], edges, ids, directed=True)
    assert moved.edges_sha256 == base.edges_sha256
    part = np.array([0, 1])  # node 3 is no member, and its numbers count nevertheless
    assert dict(moved.take(part).shared) != dict(base.take(part).shared)


def test_edges_that_count_in_both_directions_stand_there_twice_and_loops_once():
    graph = Graph(np.zeros((3, 1), np.float32), np.array([[0, 1, 2], [1, 1, 0]]), np.arange(3))
    assert sorted(map(tuple, graph.edge_index.T.tolist())) == [(0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]
    directed = Graph(graph.features, graph.edges, graph.node_id, directed=True)
    np.testing.assert_array_equal(directed.edge_index, graph.edges)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features": np.zeros((3, 2))}, "features are float64"),
        ({"features": np.zeros((3, 0), np.float32)}, r"D >= 1"),
        ({"edges": np.zeros((3, 2), np.int64)}, r"edges are int64 \(3, 2\)"),
        (
            {"edges": np.array([[0, 2], [1, 3]])},
            r"1 edges lead to no node, the first is edge 1, \[2, 3\]; nodes are 0\.\.2",
        ),
        ({"edges": np.array([[-1], [1]])}, "lead to no node"),
        ({"node_id": np.arange(4)}, "node_id is int64"),
        ({"node_id": np.array([1, 1, 2])}, "used more than once"),
        ({"members": np.array([3])}, r"int64 in 0\.\.2"),
    ],
)
def test_what_is_no_graph_is_refused(change, says):
    good = {"features": np.zeros((3, 2), np.float32), "edges": np.array([[0], [1]]), "node_id": np.arange(3)}
    Graph(**good).check()
    with pytest.raises(DataError, match=says):
        Graph(**(good | change)).check()
