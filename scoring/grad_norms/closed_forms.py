"""The registry of closed forms: one function a layer type, beside its formula.

@closed_form(nn.Linear)
def linear(module, inputs, deltas, wanted) -> dict[str, Tensor]:
    ...

A closed form gets what went into the layer (``inputs``, batch first), the gradient of each example's own loss at the
layer's output (``deltas``, same batch) and the names of the layer's own parameters that are asked for; it returns their
squared per-example gradient norms, float64 of shape (B,). It never mixes examples and never needs the weight's values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from contracts.errors import NameTaken

ClosedForm = Callable[[Any, Tensor, Tensor, frozenset[str]], dict[str, Tensor]]
_FORMS: dict[type[nn.Module], tuple[ClosedForm, Callable[[nn.Module], bool]]] = {}
_CHUNK_BYTES = 4 << 20  # working set of one chunk: stays in the cache, and bounds memory for wide layers


def closed_form(
    *types: type[nn.Module], when: Callable[[nn.Module], bool] = lambda module: True
) -> Callable[[ClosedForm], ClosedForm]:
    """Decorator: register a closed form for layer types, where ``when(module)`` holds.

    Subclasses are not included: they may override ``forward``.
    """

    def register(function: ClosedForm) -> ClosedForm:
        for kind in types:
            if kind in _FORMS:
                raise NameTaken(f"{kind.__name__} already has the closed form {_FORMS[kind][0].__qualname__}")
            _FORMS[kind] = function, when
        return function

    return register


def form_of(module: nn.Module) -> ClosedForm | None:
    """The closed form of a layer, or None: unknown type, excluded by ``when``, or ``forward`` put on the instance."""
    form, when = _FORMS.get(type(module), (None, None))
    return form if when is not None and when(module) and "forward" not in vars(module) else None


def squared_norm(rows: Tensor) -> Tensor:
    """Squared L2 norm of every row (B, ...) -> float64 (B,). The norm is rounded once, before it is squared."""
    norm: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return norm.double().square()


def chunks(num_examples: int, *, bytes_each: int) -> Iterator[slice]:
    """Slices of the batch whose working set stays within the cache budget; at least one example each."""
    step = max(1, _CHUNK_BYTES // max(bytes_each, 1))
    for start in range(0, num_examples, step):
        yield slice(start, min(start + step, num_examples))
