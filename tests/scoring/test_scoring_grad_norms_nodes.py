"""Gradient norms of nodes by parts: against one backward pass a node on the whole graph, and parts against a naive
search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph_data import make_nodes, network, with_edges
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from contracts.errors import NotApplicable
from recipes.graph.training import NodeTrainingConfig, node_classifier
from recipes.inputs import Inputs
from scoring.error_vector import error_vector
from scoring.grad_norms.nodes import Links, NodeGradNorms, NotByParts, outer_norms
from scoring.grand import GrandConfig, grand
from sources.example_set import ExampleSet


@st.composite
def graphs(draw):
    num = draw(st.integers(1, 9))
    ends = st.integers(0, num - 1)
    pairs = draw(st.lists(st.tuples(ends, ends), max_size=20))
    asked = draw(st.lists(ends, min_size=1, max_size=5))
    return num, np.array(pairs, np.int64).reshape(-1, 2).T, np.array(asked, np.int64), draw(st.integers(0, 4))


@given(graph=graphs())
def test_a_part_is_what_lies_within_some_hops_and_every_edge_among_it(graph):
    num, edges, asked, hops = graph
    links = Links(edges, num)
    found, sizes = links.parts(asked, hops), links.sizes(asked, hops)
    for b, start in enumerate(asked.tolist()):
        seen = {start}
        for _ in range(hops):
            seen |= {a for a, told in edges.T.tolist() if told in seen}
        own = found.part == b
        assert found.node[own].tolist() == sorted(seen) and sizes[b] == len(seen)
        assert found.node[found.asked[b]] == start and found.part[found.asked[b]] == b
        among = [(found.node[a], found.node[c]) for a, c in found.edges.T.tolist() if found.part[c] == b]
        assert all(found.part[a] == found.part[c] for a, c in found.edges.T.tolist())
        assert sorted(among) == sorted((a, c) for a, c in edges.T.tolist() if {a, c} <= seen)


@given(seed=st.integers(0, 99), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_norms_of_sums_of_outer_products(seed, sizes):
    rng, num = np.random.default_rng(seed), sum(sizes)
    wide, narrow = (torch.from_numpy(rng.normal(size=(num, dim))) for dim in (7, 3))
    part = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
    expected = [float((narrow[part == b].T @ wide[part == b]).square().sum()) for b in range(len(sizes))]
    np.testing.assert_allclose(outer_norms(wide, narrow, part, len(sizes)), expected, rtol=1e-9)


def naive(model: nn.Module, data: ExampleSet) -> dict[str, np.ndarray]:
    """Squared norms of every parameter, one node at a time on the whole graph, in double precision."""
    inputs = Inputs(data, dtype=torch.float64)
    model = model.double().eval()
    out: dict[str, list[float]] = {name: [] for name, _ in model.named_parameters()}
    for b in range(len(data)):
        loss = data.task.losses(model, inputs.slice(b, b + 1)).sum()
        found = torch.autograd.grad(loss, list(model.parameters()))
        for name, g in zip(out, found, strict=True):
            out[name].append(float(g.square().sum()))
    return {name: np.array(values) for name, values in out.items()}


@pytest.fixture(scope="module")
def data() -> ExampleSet:
    return make_nodes(60)


@pytest.mark.parametrize("rows", ["none", "l1"])
@pytest.mark.parametrize(("name", "hops"), [("gat", 2), ("gcn", 3)])
def test_norms_by_parts_are_those_of_a_loop(data, name, hops, rows):
    """Every parameter, also where a node is linked to nobody; degrees of the border need one hop more."""
    alone = data.x.edges[:, ~(data.x.edges == data.x.members[3]).any(axis=0)]
    data = with_edges(data, alone)
    model = node_classifier(
        network(name, rows=rows), data.part("train"), config=NodeTrainingConfig(epochs=5), seed=0
    ).double()
    batch = Inputs(data, dtype=torch.float64).slice(0, len(data))
    norms = NodeGradNorms(model, batch.inputs["x"], batch.inputs["edge_index"])
    found = norms(batch.inputs["nodes"], batch.targets, error_vector)
    expected = naive(model, data)
    assert norms.hops == hops and set(found.squared) == set(expected)
    for parameter, values in expected.items():
        np.testing.assert_allclose(found.squared[parameter], values, rtol=1e-8, atol=1e-18, err_msg=parameter)
    np.testing.assert_allclose(found.total, sum(expected.values()), rtol=1e-8)
    assert norms.output_layer == ("head.weight", "head.bias")
    assert not any(module._forward_hooks for module in model.modules())


def test_how_the_work_is_cut_changes_nothing(data, monkeypatch):
    model = network()(0).eval()
    batch = Inputs(data, dtype=torch.float32).slice(0, len(data))

    def total() -> Tensor:
        norms = NodeGradNorms(model, batch.inputs["x"], batch.inputs["edge_index"])
        return norms(batch.inputs["nodes"], batch.targets, error_vector).total

    whole = total()
    monkeypatch.setattr("scoring.grad_norms.nodes._NUMBERS", 150)
    torch.testing.assert_close(total(), whole, rtol=1e-5, atol=0)


def test_an_error_too_small_for_single_precision_keeps_its_norm(data):
    model = network()(0).eval()
    batch = Inputs(data, dtype=torch.float32).slice(0, len(data))
    norms = NodeGradNorms(model, batch.inputs["x"], batch.inputs["edge_index"])
    large = norms(batch.inputs["nodes"], batch.targets, error_vector).total
    tiny = norms(batch.inputs["nodes"], batch.targets, lambda z, y: 1e-25 * error_vector(z, y)).total
    assert bool((tiny > 0).all())
    torch.testing.assert_close(tiny * 1e50, large, rtol=1e-6, atol=0)


class Far(nn.Module):
    """What is said of a node depends on the features of all nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.own = network()(0)

    def forward(self, x: Tensor, edge_index: Tensor, nodes: Tensor) -> Tensor:
        return self.own(x=x, edge_index=edge_index, nodes=nodes) * x.std()


class Bare(nn.Module):
    """A parameter of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.scale = network()(0), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, edge_index: Tensor, nodes: Tensor) -> Tensor:
        return self.scale * self.own(x=x, edge_index=edge_index, nodes=nodes)


@pytest.mark.parametrize(("make", "says"), [(Far, "sees farther than 3 hops"), (Bare, "parameter of a Bare")])
def test_grand_is_exact_where_parts_do_not_do(data, make, says):
    """Such a model is refused by parts, and scored by one backward pass a node."""
    model = make().eval()
    batch = Inputs(data, dtype=torch.float32).slice(0, len(data))
    with pytest.raises(NotByParts, match=says):
        NodeGradNorms(model, batch.inputs["x"], batch.inputs["edge_index"])(
            batch.inputs["nodes"], batch.targets, error_vector
        )
    found = grand(data, config=GrandConfig(), seed=0, early_models=[model])
    np.testing.assert_allclose(found["grand"], np.sqrt(sum(naive(make(), data).values())), rtol=1e-4)
    assert found["grand_last_layer"].null_count() == len(data)


def test_grand_of_graph_networks_and_of_their_last_layer(data):
    models = [network()(seed).eval() for seed in range(2)]
    found = grand(data, config=GrandConfig(batch=17), seed=0, early_models=models)
    each = [naive(network()(seed), data) for seed in range(2)]
    np.testing.assert_allclose(found["grand"], np.mean([np.sqrt(sum(e.values())) for e in each], axis=0), rtol=1e-4)
    last = [np.sqrt(e["head.weight"] + e["head.bias"]) for e in each]
    np.testing.assert_allclose(found["grand_last_layer"], np.mean(last, axis=0), rtol=1e-4)
    frozen = network()(0).requires_grad_(False).eval()
    with pytest.raises(NotApplicable, match="no parameter that requires a gradient"):
        grand(data, config=GrandConfig(), seed=0, early_models=[frozen])
