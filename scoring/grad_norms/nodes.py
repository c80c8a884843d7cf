"""Exact per-example gradient norms of graph networks: every node on the part of the graph that it can see.

    loss_v depends on what lies within h hops of v, h layers;   g_v = d loss_v / d theta on that part alone

The parts of B nodes, cut out and put side by side, are one graph of copies without edges between them: one forward and
one backward pass over it give the terms of every g_v.

    linear map  y_u = W x_u + c       ||sum_{u in copy v} delta_u x_u^T||^2, ||sum delta_u||^2     u: nodes, in a copy
    any other   p, taken node by node (the biases and attention vectors of a message-passing layer):
                each copy is given its own p_v = p, and g_v is the gradient at it

The norm of a sum of outer products is taken from whichever is smaller, the sum (D, O) or the inner products of its
terms (n, n). Gradients are linear in delta at the logits: delta / ||delta|| goes backward, as in ``per_example``.

How far a model sees is tried, one hop a message-passing layer and then one more (degrees of the border), against plain
gradients on the whole graph for the first nodes. A model for which neither agrees, or with parameters of another kind,
is for :class:`NotByParts` to say so; there is then no way but one backward pass a node.

Cost: the parts of all nodes together, sum_v |part_v|, where a loop pays N |V|. Source of GraNd: Paul et al., NeurIPS
2021; receptive fields: Hamilton et al., GraphSAGE, NeurIPS 2017. Not sampled: every neighbour is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.func import functional_call

from contracts.errors import NotApplicable
from scoring.grad_norms.closed_forms import squared_norm
from scoring.grad_norms.per_example import GradNorms, unit

_PROBES = 4
_NUMBERS = 1 << 24  # of the features of copies, and of the terms of a linear map, at a time
_TOLERANCE = 1e-3


class NotByParts(NotApplicable):
    """A model whose gradients cannot be taken on parts of the graph."""


@dataclass(frozen=True, eq=False)
class Parts:
    """Copies of the parts of a graph that B nodes see, side by side.

    Attributes:
        node: (n,) int64, which node each copy is of; ascending within a part.
        part: (n,) int64, whose part it is in, 0..B-1, ascending.
        edges: int64 (2, e), from and to, positions among the copies.
        asked: (B,) int64, where each of the B nodes lies in its own part.
    """

    node: np.ndarray
    part: np.ndarray
    edges: np.ndarray
    asked: np.ndarray


class Links:
    """Which nodes of a graph tell which: built once for many calls.

    Args:
        edge_index: int64 (2, E), from and to.
        num_nodes: V.
    """

    def __init__(self, edge_index: np.ndarray, num_nodes: int) -> None:
        ones = np.ones(edge_index.shape[1], np.int32)
        self.told = sp.csr_array((ones, (edge_index[1], edge_index[0])), shape=(num_nodes, num_nodes))
        order = np.argsort(edge_index[1], kind="stable")
        self._source = edge_index[0][order]
        self._start = np.concatenate([[0], np.cumsum(np.bincount(edge_index[1], minlength=num_nodes))])

    def sizes(self, nodes: np.ndarray, hops: int) -> np.ndarray:
        """(B,) nodes within ``hops`` of each."""
        return np.diff(self._reach(nodes, hops).indptr)

    def parts(self, nodes: np.ndarray, hops: int) -> Parts:
        """What lies within ``hops`` of each of the nodes (B,), and every edge among it."""
        reach, num = self._reach(nodes, hops), self.told.shape[0]
        part = np.repeat(np.arange(len(nodes)), np.diff(reach.indptr))
        node = reach.indices.astype(np.int64)
        key = part * num + node  # ascending
        counts = self._start[node + 1] - self._start[node]
        end = np.repeat(np.arange(len(node)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        begin = part[end] * num + self._source[self._start[node[end]] + within]
        place = np.minimum(np.searchsorted(key, begin), len(key) - 1)
        there = key[place] == begin
        edges = np.stack([place[there], end[there]])
        return Parts(node, part, edges, np.searchsorted(key, np.arange(len(nodes)) * num + nodes))

    def _reach(self, nodes: np.ndarray, hops: int) -> sp.csr_array:
        ones = np.ones(len(nodes), np.int32)
        found = sp.csr_array((ones, (np.arange(len(nodes)), nodes)), shape=(len(nodes), self.told.shape[0]))
        for _ in range(hops):
            found = sp.csr_array(found + found @ self.told)
            found.data[:] = 1
        found.sort_indices()
        return found


class NodeGradNorms:
    """Squared gradient norms of nodes, by parts.

    Args:
        model: (x=, edge_index=, nodes=) -> logits (B, K), in eval mode.
        x: (V, D); edge_index: int64 (2, E), the graph that nodes are read on.

    Attributes:
        hops: how far a node is taken to see.
        output_layer: names of the parameters of the linear map that made the logits; empty when something else did.

    Raises:
        NotByParts: a model without message-passing layers of torch-geometric, with parameters of another kind, or one
            whose gradients on parts are not those on the graph.
    """

    def __init__(self, model: nn.Module, x: Tensor, edge_index: Tensor) -> None:
        passing, linear = _kinds()
        self.model, self._x = model, x
        self._edges, self._links = edge_index, Links(edge_index.cpu().numpy(), len(x))
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise NotApplicable("the model has no parameter that requires a gradient")
        self._linear: dict[str, nn.Module] = {}
        self._own: list[str] = []
        layers = 0
        for prefix, module in model.named_modules():
            names = [f"{prefix}.{n}" if prefix else n for n, _ in module.named_parameters(recurse=False)]
            trained = [name for name in names if name in self._parameters]
            if isinstance(module, linear):
                self._linear |= {prefix: module} if trained else {}
            elif isinstance(module, passing):
                layers += 1
                self._own += trained
            elif trained:
                raise NotByParts(f"{trained[0]} is a parameter of a {type(module).__name__}")
        if not layers:
            raise NotByParts(f"{type(model).__name__} has no message-passing layer of torch-geometric")
        self.output_layer: tuple[str, ...] = ()
        self.hops = layers
        self._verified = False

    def __call__(self, nodes: Tensor, y: Any, error: Callable[[Tensor, Any], Tensor]) -> GradNorms:
        """Squared gradient norms of every node (B,) that is asked for.

        Args:
            nodes: int64 (B,); ``y``: (B,) targets, given to ``error``.
            error: (logits (b, K) detached, targets) -> gradient of each example's loss at its logits, same shape.

        Raises:
            NotByParts: see the class; at the first call.
        """
        if not self._verified:
            self._verify(nodes[:_PROBES], y[:_PROBES], error)
        sizes = self._links.sizes(nodes.cpu().numpy(), self.hops)
        ends = np.cumsum(sizes) * self._x.shape[1] // _NUMBERS
        cuts = [0, *(np.flatnonzero(np.diff(ends)) + 1).tolist(), len(nodes)]
        found = [self._some(nodes[a:b], y[a:b], error) for a, b in pairwise(cuts)]
        names = list(found[0].squared)
        squared = {name: torch.cat([one.squared[name] for one in found]) for name in names}
        return GradNorms(torch.cat([one.logits for one in found]), squared, torch.cat([one.total for one in found]))

    def _verify(self, nodes: Tensor, y: Any, error: Callable[[Tensor, Any], Tensor]) -> None:
        plain = self._plain(nodes, y, error)
        layers = self.hops
        for hops in (layers, layers + 1):
            self.hops = hops
            by_parts = self._some(nodes, y, error).total
            if torch.allclose(by_parts, plain, rtol=_TOLERANCE, atol=1e-6 * float(plain.max())):
                self._verified = True
                return
        raise NotByParts(f"{type(self.model).__name__} sees farther than {layers + 1} hops, or is not of linear maps")

    def _plain(self, nodes: Tensor, y: Any, error: Callable[[Tensor, Any], Tensor]) -> Tensor:
        with torch.enable_grad():
            logits = self.model(x=self._x, edge_index=self._edges, nodes=nodes)
        delta = error(logits.detach(), y).to(logits.dtype)
        total = torch.zeros(len(nodes), dtype=torch.float64, device=logits.device)
        for b in range(len(nodes)):  # a few probes
            found = torch.autograd.grad(
                logits[b], list(self._parameters.values()), delta[b], retain_graph=True, allow_unused=True
            )
            total[b] = sum(float(g.double().square().sum()) for g in found if g is not None)
        return total

    def _some(self, nodes: Tensor, y: Any, error: Callable[[Tensor, Any], Tensor]) -> GradNorms:
        parts = self._links.parts(nodes.cpu().numpy(), self.hops)
        device, num = self._x.device, len(nodes)
        node, part, edges, asked = (
            torch.from_numpy(a).to(device) for a in (parts.node, parts.part, parts.edges, parts.asked)
        )
        calls: list[tuple[str, Tensor, Tensor]] = []
        handles = [
            module.register_forward_hook(lambda _, args, out, name=name: calls.append((name, args[0].detach(), out)))
            for name, module in self._linear.items()
        ]
        leaves = {n: self._parameters[n].detach().expand(num, *self._parameters[n].shape).clone() for n in self._own}
        for leaf in leaves.values():
            leaf.requires_grad_()
        try:
            with torch.enable_grad():
                given = {n: _by_node(leaf, part) for n, leaf in leaves.items()}
                inputs = {"x": self._x[node], "edge_index": edges, "nodes": asked}
                logits = functional_call(self.model, given, (), inputs)
        finally:
            for handle in handles:
                handle.remove()
        names = [name for name, _, _ in calls]
        if len(set(names)) < len(names):
            raise NotByParts("a linear map is called more than once")
        self.output_layer = next((self._names(name) for name, _, out in calls if out is logits), ())
        delta, size = unit(error(logits.detach(), y), logits.dtype)
        wanted = [*(out for _, _, out in calls), *leaves.values()]
        gradients = torch.autograd.grad(logits, wanted, delta, allow_unused=True)
        zero = torch.zeros(num, dtype=torch.float64, device=device)
        squared = dict.fromkeys(self._parameters, zero)
        for (name, rows, _), g in zip(calls, gradients, strict=False):
            if g is not None:
                own = part if len(rows) == len(part) else torch.arange(num, device=device)
                squared |= self._of_linear(name, rows, g, own, num)
        for name, g in zip(leaves, gradients[len(calls) :], strict=True):
            if g is not None:
                squared[name] = squared_norm(g)
        squared = {name: value * size.square() for name, value in squared.items()}
        return GradNorms(logits.detach(), squared, torch.stack(list(squared.values())).sum(0))

    def _names(self, module: str) -> tuple[str, ...]:
        both = (f"{module}.weight", f"{module}.bias")
        return tuple(name for name in both if name in self._parameters)

    def _of_linear(self, name: str, rows: Tensor, deltas: Tensor, part: Tensor, num: int) -> Mapping[str, Tensor]:
        found = {}
        if len(rows) != len(part):
            raise NotByParts(f"{name} takes {len(rows)} rows of {len(part)} nodes")
        weight, bias = f"{name}.weight", f"{name}.bias"
        if weight in self._parameters:
            found[weight] = outer_norms(rows, deltas, part, num)
        if bias in self._parameters:
            sums = torch.zeros(num, deltas.shape[1], dtype=deltas.dtype, device=deltas.device)
            found[bias] = squared_norm(sums.index_add_(0, part, deltas))
        return found


def _by_node(leaf: Tensor, part: Tensor) -> Tensor:
    """Each part's own parameter (B, *shape) as one that is taken node by node (n, *shape), a leading 1 left out."""
    rows = leaf[part]
    return rows[:, 0] if rows.dim() > 2 and rows.shape[1] == 1 else rows


def outer_norms(rows: Tensor, deltas: Tensor, part: Tensor, num: int) -> Tensor:
    """||sum_{u in part b} delta_u x_u^T||^2 of every part, float64 (num,).

    Args:
        rows: x (n, D); deltas: (n, O).
        part: int64 (n,) ascending, 0..num-1, no part empty.
    """
    counts = torch.bincount(part, minlength=num)
    starts = counts.cumsum(0) - counts
    order = counts.argsort(stable=True)
    out = torch.zeros(num, dtype=torch.float64, device=rows.device)
    width, first = rows.shape[1] + deltas.shape[1], 0
    while first < num:  # parts of like size together, as many as memory allows
        sizes = counts[order[first:]]
        cost = torch.arange(1, len(sizes) + 1, device=sizes.device) * sizes * width
        step = max(1, int((cost <= _NUMBERS).sum()))
        some = order[first : first + step]
        longest = int(counts[some[-1]])
        place = torch.arange(longest, device=rows.device)
        there = place < counts[some][:, None]
        at = torch.where(there, starts[some][:, None] + place, 0)
        x, d = rows[at] * there[..., None], deltas[at] * there[..., None]
        out[some] = _squares(x, d)
        first += step
    return out


def _squares(x: Tensor, d: Tensor) -> Tensor:
    """||d_b^T x_b||^2 of (B, n, D) and (B, n, O), float64 (B,)."""
    num, n = x.shape[:2]
    big = x.shape[2] * d.shape[2]
    if n * (x.shape[2] + d.shape[2]) < big:
        inner = (x @ x.mT).double() * (d @ d.mT).double()
        return inner.sum((1, 2)).clamp(min=0)
    step = max(1, _NUMBERS // big)
    return torch.cat([squared_norm(d[s : s + step].mT @ x[s : s + step]) for s in range(0, num, step)])


def _kinds() -> tuple[type[nn.Module], tuple[type[nn.Module], ...]]:
    """Message-passing layers and linear maps.

    Raises:
        NotByParts: without torch-geometric there are none.
    """
    import sys

    if "torch_geometric" not in sys.modules:  # a model of its layers has imported it
        raise NotByParts("torch-geometric is not in use")
    from torch_geometric.nn import Linear, MessagePassing

    return MessagePassing, (nn.Linear, Linear)
