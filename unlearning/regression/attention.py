"""Attention transfer: how far two networks of one architecture look at different places of the same example.

    a(A)   = q / |q|_2 of each example,   q = mean over channels of A^2, flattened
             A (B, C, H, W) -> (B, H W);  A (B, T, H) -> (B, H), the mean running over dim 1 likewise;  A (B, H) -> A^2
    AT     = sum over layers k of the mean over elements of (a(A_k^S) - a(A_k^B))^2          (B,) here, one an example

A_k are the outputs of the network's activation functions, in the order in which they are computed: those with an axis
of places (the convolutional blocks); where there is none, as in a perceptron, the hidden vectors, whose channel mean
would be one number and say nothing. They are seen as PyTorch computes them, so a network that calls
``torch.nn.functional.relu`` is seen as well as one built of modules, and none has to return them.

Source: Zagoruyko and Komodakis (ICLR 2017), as used by Tarun et al., "Deep Regression Unlearning" (ICML 2023): the mean
of squares, not their sum, which the norm cancels. Invariant to the scale of an example's activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from contracts.errors import NotApplicable

_ACTIVATIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        *(F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.leaky_relu, F.prelu, F.rrelu, F.elu),
        *(F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.hardswish, F.hardtanh, F.softsign),
        *(F.tanh, torch.tanh, Tensor.tanh, F.sigmoid, torch.sigmoid, Tensor.sigmoid),
    }
)


class _Watch(TorchFunctionMode):
    """Keeps what activation functions return while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ACTIVATIONS:
            self.seen.append(result)
        return result


def with_activations(model: nn.Module, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Outputs of a network on ``inputs`` (B, ...), and its activations A_k (see the head of this file), with gradient.

    Raises:
        NotApplicable: it has no activation function, or one that PyTorch's functions do not show.
    """
    with _Watch() as watch:
        outputs = model(inputs)
    maps = [seen for seen in watch.seen if seen.ndim > 2 and len(seen) == len(inputs)]
    found = maps or [seen for seen in watch.seen if seen.ndim == 2 and len(seen) == len(inputs)]
    if not found:
        raise NotApplicable(f"a {type(model).__name__} shows no activations whose attention could be transferred")
    return outputs, found


def attention(activations: Tensor) -> Tensor:
    """(B, P) unit vectors, or 0 where an example has no activation at all.

    >>> attention(torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]]]])).tolist()
    [[0.0, 1.0]]
    """
    squares = activations.square()
    places = squares.mean(1) if activations.ndim > 2 else squares
    return F.normalize(places.flatten(1), dim=1)


def attention_transfer(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """(B,) AT of each example; its mean over the examples is the published term, summed over the layers.

    Args:
        student, teacher: activations A_k of two networks of one architecture on the same examples.

    Raises:
        NotApplicable: their layers differ in number or shape.
    """
    shapes = [[tuple(a.shape) for a in own] for own in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise NotApplicable(f"activations of other shapes: {shapes[0]} and {shapes[1]}; one architecture is needed")
    return torch.stack(
        [(attention(s) - attention(t)).square().mean(1) for s, t in zip(student, teacher, strict=True)]
    ).sum(0)
