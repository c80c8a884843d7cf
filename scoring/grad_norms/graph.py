"""Reading an autograd graph: who consumes a parameter or an output, with which shapes.

Nothing here runs the graph. Only for graphs of one forward pass in which the batch is the first axis of what is asked.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

Use = tuple[Node, int]  # a consuming node, and the position of what it consumes among its inputs
_ADDED = ("AddBackward0", "ExpandBackward0")


def shape_of(edge: GradientEdge) -> tuple[int, ...]:
    return tuple(edge.node._input_metadata[edge.output_nr].shape)  # type: ignore[attr-defined]


class Graph:
    """The graph of one forward pass.

    Attributes:
        of_parameter: name -> the nodes that consume the parameter, for all names given.
        of_node: node -> the nodes that consume its output.
    """

    def __init__(self, output: Tensor, names: Mapping[int, str]) -> None:
        self.of_parameter: dict[str, list[Use]] = {name: [] for name in names.values()}
        self.of_node: dict[Node, list[Use]] = {}
        start = output.grad_fn
        if start is None or not names:
            return
        seen, stack = {start}, [start]
        while stack:
            node = stack.pop()
            for position, (child, _) in enumerate(node.next_functions):
                if child is None:
                    continue
                if child.name() == "torch::autograd::AccumulateGrad":
                    name = names.get(id(child.variable))  # type: ignore[attr-defined]
                    if name is not None:
                        self.of_parameter[name].append((node, position))
                    continue
                self.of_node.setdefault(child, []).append((node, position))
                if child not in seen:
                    seen.add(child)
                    stack.append(child)


def unbroadcast(d: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Gradient of each example (B, *shape) from the gradient of what the parameter was broadcast to (B, ...)."""
    missing = d.dim() - len(shape)
    if missing > 1:
        d = d.sum(tuple(range(1, missing)))
    if missing:
        shape = torch.Size((1, *shape))
    axes = tuple(axis for axis in range(1, len(shape)) if shape[axis] == 1 and d.shape[axis] != 1)
    return d.sum(axes, keepdim=True) if axes else d


def only_broadcast(shape: torch.Size | tuple[int, ...], uses: list[Use], num_examples: int) -> bool:
    """Whether something of this shape is only added or expanded over a batch that is the first axis and that it does
    not extend along, so that its gradient for one example is the sum of what arrives at that example's copies."""
    for node, _ in uses:
        if node.name() not in _ADDED:
            return False
        made = shape_of(GradientEdge(node, 0))
        along = shape[0] if len(shape) == len(made) else 1
        if made[:1] != (num_examples,) or along != 1:
            return False
    return bool(uses)


def scale_of(use: Use) -> float:
    """The factor with which a sum takes what it consumes: torch.add(x, p, alpha=...)."""
    node, position = use
    return float(getattr(node, "_saved_alpha", 1)) if position == 1 else 1.0
