"""Reading an autograd graph: who consumes a parameter, with which shapes.

Nothing here runs the graph. Only for graphs of one forward pass in which the batch is the first axis of what is asked.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

Use = tuple[Node, int]  # a consuming node, and the position of the parameter among its inputs


def shape_of(edge: GradientEdge) -> tuple[int, ...]:
    return tuple(edge.node._input_metadata[edge.output_nr].shape)  # type: ignore[attr-defined]


def uses_of(logits: Tensor, names: Mapping[int, str]) -> dict[str, list[Use]]:
    """For every named parameter the graph nodes that consume it, each with the position among the node's inputs."""
    found: dict[str, list[Use]] = {name: [] for name in names.values()}
    start = logits.grad_fn
    if start is None or not names:
        return found
    seen, stack = {start}, [start]
    while stack:
        node = stack.pop()
        for position, (child, _) in enumerate(node.next_functions):
            if child is None:
                continue
            if child.name() == "torch::autograd::AccumulateGrad":
                name = names.get(id(child.variable))  # type: ignore[attr-defined]
                if name is not None:
                    found[name].append((node, position))
            elif child not in seen:
                seen.add(child)
                stack.append(child)
    return found


def unbroadcast(d: Tensor, shape: torch.Size) -> Tensor:
    """Gradient of each example (B, *shape) from the gradient of what the parameter was broadcast to (B, ...)."""
    missing = d.dim() - len(shape)
    if missing > 1:
        d = d.sum(tuple(range(1, missing)))
    if missing:
        shape = torch.Size((1, *shape))
    axes = tuple(axis for axis in range(1, len(shape)) if shape[axis] == 1 and d.shape[axis] != 1)
    return d.sum(axes, keepdim=True) if axes else d


def only_broadcast(parameter: Tensor, uses: list[Use], num_examples: int) -> bool:
    """Whether a parameter is only added or expanded over a batch that is the first axis and that it does not extend
    along, so that its gradient for one example is the sum of what arrives at that example's copies."""
    for node, _ in uses:
        if node.name() not in ("AddBackward0", "ExpandBackward0"):
            return False
        made = shape_of(GradientEdge(node, 0))
        along = parameter.shape[0] if parameter.dim() == len(made) else 1
        if made[:1] != (num_examples,) or along != 1:
            return False
    return bool(uses)
