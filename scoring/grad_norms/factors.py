"""Weights that are used several times, or outside their own layer's call: the gradient as a sum of outer products.

Every use of a weight W (V, d) by an embedding or a linear map gives one example the gradient

    embedding   sum_t onehot(id_t) e_t^T                   linear map   sum_s delta_s a_s^T
    shift by b (V,)   sum_s delta_s                        scaling by w (V,)   sum_s delta_s * a_s

with what arrives at its output (e, delta) and what went in (ids, a). Uses of a kind are uses over more positions; of
both, as of a language model whose output weights are its embedding's,

    ||g||^2 = ||sum_t onehot(id_t) e_t^T||^2 + ||sum_s delta_s a_s^T||^2 + 2 sum_{s,t} delta_s[id_t] <a_s, e_t>

so that no gradient (V, d) of any example is ever held. What went in is read off the autograd graph, before it is run.
Positions lie example by example (B, T) in a batch, or (T, B) within nn.MultiheadAttention: the plan tries both.

Source: the ghost norm of Li et al., "Large Language Models Can Be Strong Differentially Private Learners" (ICLR 2022),
    for
one use; the sum over uses and the cross term follow from writing out the square.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from scoring.grad_norms.closed_forms import chunks, squared_norm
from scoring.grad_norms.embedding import token_norms
from scoring.grad_norms.graph import Graph, Use, only_broadcast, scale_of, shape_of, unbroadcast
from scoring.grad_norms.linear import token_products

_TURNS = ("TBackward0", "TransposeBackward0", "PermuteBackward0")


class Factor(NamedTuple):
    """One use of a parameter.

    Attributes:
        kind: "embedding", "linear", "turned" (the weight is d_in x d_out, as of a Conv1D of GPT-2), "shift" or "scale".
        edges: where the gradient of what the use has made arrives; an embedding of positions that all examples share
            has one an addition, a use of any other kind one.
        scales: of each edge.
        given: ids or activations that went in; None for a shift.
        shared: the ids are not of one example but of all: positions.
        padding: row of an embedding that gets no gradient; -1 for none.
    """

    kind: str
    edges: tuple[GradientEdge, ...]
    scales: tuple[float, ...]
    given: Tensor | None
    shared: bool = False
    padding: int = -1


def factors_of(
    graph: Graph, uses: Sequence[Use], num_examples: int, *, shape: tuple[int, ...], shared: Sequence[bool] = ()
) -> list[Factor] | None:
    """The uses of one parameter as factors; None when one of them is none of these, or kinds meet that do not add up.

    Args:
        shape: of the parameter.
        shared: what the plan has found of each; a batch of as many examples as there are positions looks like both.
    """
    found: list[Factor | None] = []
    for node, position in uses:
        if node.name() in _TURNS and len(shape) == 2:
            found += [_product(n, at, kind="linear") for n, at in graph.of_node.get(node, [])]
        elif node.name() == "EmbeddingBackward0":
            known = shared[len(found)] if shared else None
            found.append(_embedding(graph, node, num_examples, shared=known))
        elif node.name() == "AddBackward0" and len(shape) == 1 and scale_of((node, position)) == 1.0:
            made = shape_of(GradientEdge(node, 0))
            found.append(Factor("shift", (GradientEdge(node, 0),), (1.0,), None) if made[-1:] == shape else None)
        elif node.name() == "MulBackward0" and len(shape) == 1:
            found.append(_scaling(node, position, shape))
        else:
            found.append(_product(node, position, kind="turned"))
    sound = [factor for factor in found if factor is not None]
    kinds = {factor.kind for factor in sound}
    alike = len(kinds) == 1 or kinds == {"embedding", "linear"}
    return sound if alike and len(sound) == len(found) else None


def _product(node: Node, position: int, *, kind: str) -> Factor | None:
    edge = (GradientEdge(node, 0),)
    if node.name() == "MmBackward0" and position == 1:
        return _if_saved(kind, edge, node, "_saved_self")
    if node.name() != "AddmmBackward0" or _saved(node, "_saved_alpha") != 1 or _saved(node, "_saved_beta") != 1:
        return None
    if position == 2:
        return _if_saved(kind, edge, node, "_saved_mat1")
    return Factor("shift", edge, (1.0,), None) if position == 0 and kind == "turned" else None


def _scaling(node: Node, position: int, shape: tuple[int, ...]) -> Factor | None:
    made = shape_of(GradientEdge(node, 0))
    factor = _if_saved("scale", (GradientEdge(node, 0),), node, "_saved_self" if position else "_saved_other")
    if factor is None or factor.given is None or made[-1:] != shape or tuple(factor.given.shape) != made:
        return None
    return factor


def _if_saved(kind: str, edges: tuple[GradientEdge, ...], node: Node, name: str) -> Factor | None:
    given = _saved(node, name)
    return Factor(kind, edges, (1.0,), given.detach()) if isinstance(given, Tensor) else None


def _saved(node: Node, name: str) -> Any:
    """What the node keeps for its backward pass; None when it does not, or a checkpoint makes it anew."""
    try:
        return getattr(node, name, None)
    except RuntimeError:
        return None


def _embedding(graph: Graph, node: Node, num_examples: int, *, shared: bool | None) -> Factor | None:
    ids = _saved(node, "_saved_indices")
    padding = _saved(node, "_saved_padding_idx")
    if not isinstance(ids, Tensor) or _saved(node, "_saved_scale_grad_by_freq"):
        return None
    padding = int(padding) if padding is not None and padding < 2**63 else -1  # -1 is kept as an unsigned number
    if shared is None:
        shared = not ids.dim() or len(ids) != num_examples
    if not shared:
        return Factor("embedding", (GradientEdge(node, 0),), (1.0,), ids, padding=padding)
    made, uses = shape_of(GradientEdge(node, 0)), graph.of_node.get(node, [])
    if not only_broadcast(made, uses, num_examples):
        return None
    edges = tuple(GradientEdge(n, 0) for n, _ in uses)
    return Factor("embedding", edges, tuple(scale_of(use) for use in uses), ids, shared=True, padding=padding)


def squared_factors(
    factors: Sequence[Factor], deltas: Sequence[Sequence[Tensor | None]], num: int, rows: int, *, second: bool
) -> Tensor:
    """Squared norms float64 (B,) of one parameter's gradients.

    Args:
        factors, deltas: its uses, and what arrives at the edges of each; None where nothing does.
        num: B.
        rows: V, rows of the weight (of its transpose, "turned").
        second: positions lie (T, B).
    """
    ids, e, a, delta, padding = [], [], [], [], -1
    for factor, arrived in zip(factors, deltas, strict=True):
        whole = _summed(factor, arrived)
        if whole is None:
            continue
        if factor.kind == "embedding":
            assert factor.given is not None
            flat = factor.given.reshape(1, -1).expand(num, -1) if factor.shared else factor.given.reshape(num, -1)
            ids.append(flat)
            e.append(whole.reshape(num, flat.shape[1], -1))
            padding = factor.padding
            continue
        if factor.kind == "scale":
            assert factor.given is not None
            delta.append(_by_example(whole * factor.given.to(whole.dtype), num, second=second))
            continue
        delta.append(_by_example(whole, num, second=second))
        if factor.given is not None:
            a.append(_by_example(factor.given.to(whole.dtype), num, second=second))
    squared = torch.zeros(num, dtype=torch.float64, device=(e or delta)[0].device) if e or delta else torch.zeros(num)
    if delta and not a:
        return squared + squared_norm(torch.cat(delta, 1).sum(1))
    if e:
        squared = squared + token_norms(torch.cat(ids, 1), torch.cat(e, 1), rows, padding=padding)
    if delta:
        squared = squared + token_products(torch.cat(a, 1), torch.cat(delta, 1))
    if e and delta:
        squared = squared + 2 * _cross(
            torch.cat(ids, 1), torch.cat(e, 1), torch.cat(a, 1), torch.cat(delta, 1), padding
        )
    return squared.clamp_min(0.0)


def _summed(factor: Factor, arrived: Sequence[Tensor | None]) -> Tensor | None:
    known = [(d, scale) for d, scale in zip(arrived, factor.scales, strict=True) if d is not None]
    if not known:
        return None
    if not factor.shared or factor.given is None:
        return known[0][0]
    width = known[0][0].shape[-1]
    parts = [unbroadcast(d, (*factor.given.shape, width)) * scale for d, scale in known]
    return torch.stack(parts).sum(0)


def _by_example(rows: Tensor, num: int, *, second: bool) -> Tensor:
    """(R, ...) -> (B, R / B, ...)."""
    if second:
        return rows.reshape(-1, num, rows.shape[-1]).transpose(0, 1)
    return rows.reshape(num, -1, rows.shape[-1])


def _cross(ids: Tensor, e: Tensor, a: Tensor, delta: Tensor, padding: int) -> Tensor:
    """sum_{s,t} delta_s[id_t] <a_s, e_t>, float64 (B,)."""
    parts = []
    for some in chunks(len(ids), bytes_each=2 * a.element_size() * a.shape[1] * ids.shape[1]):
        picked = torch.gather(delta[some], 2, ids[some][:, None].expand(-1, delta.shape[1], -1))
        picked = picked.masked_fill(ids[some][:, None] == padding, 0.0)
        parts.append(torch.linalg.vecdot(picked.flatten(1), (a[some] @ e[some].mT).flatten(1)).double())
    return torch.cat(parts)
