"""The gradient of the output layer, out of a forward pass alone.

    z = W h + c:   d loss / d W = delta h^T,  d loss / d c = delta    =>    norm = || delta || sqrt(||h||^2 + 1)

delta (B, K): gradient of the loss at the logits; h (B, d): what the output layer takes in. Exact, and free: the norm of
    h
is one reduction of what the pass has computed anyway. Defined when the logits are what an nn.Linear returns, called
once, with weights that nothing else of the model uses; a frozen weight or bias leaves its term out, as in
scoring.grad_norms.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from scoring.grad_norms.graph import Graph
from tasks.base import respond


class LastLayer:
    """Context manager: while inside, notes what the output layer of ``model`` takes in.

    >>> model = nn.Linear(2, 3)
    >>> x = torch.tensor([[3.0, 4.0]])
    >>> with LastLayer(model, x) as last:
    ...     round(float(last.factor(last.norm(model(x)))) ** 2, 9)
    26.0

    Args:
        model: maps (B, ...) to logits (B, K); in eval mode.
        x: one input, a tensor (1, ...) or named ones, on which the output layer is looked for; None finds none.

    Attributes:
        layer: the output layer, or None when the model has none in the sense above.
    """

    def __init__(self, model: nn.Module, x: Any) -> None:
        self.layer = _output_layer(model, x) if x is not None else None
        self._seen: tuple[Tensor, Tensor] | None = None
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> Self:
        if self.layer is not None:
            self._handle = self.layer.register_forward_hook(self._note)
            self._weight = float(self.layer.weight.requires_grad)
            self._bias = float(self.layer.bias is not None and self.layer.bias.requires_grad)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seen = None
        if self._handle is not None:
            self._handle.remove()

    def norm(self, logits: Tensor) -> Tensor | None:
        """||h|| of every example of the batch that gave ``logits``, (B,) in single precision or more; None without a
        layer."""
        seen, self._seen = self._seen, None
        if seen is None or seen[1] is not logits:
            return None
        h = seen[0].to(torch.promote_types(seen[0].dtype, torch.float32))
        norm: Tensor = torch.linalg.vector_norm(h, dim=1)
        return norm

    def factor(self, norm: Tensor) -> Tensor:
        """sqrt(||h||^2 + 1) from ||h||, float64 (B,)."""
        return (self._weight * norm.double().square() + self._bias).sqrt_()

    def _note(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if args:
            self._seen = args[0], output


def _output_layer(model: nn.Module, x: Any) -> nn.Linear | None:
    """The nn.Linear that returns the logits, if nothing else uses its trainable parameters."""
    calls: list[tuple[nn.Linear, Tensor]] = []
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    handles = [m.register_forward_hook(lambda m, _, output: calls.append((m, output))) for m in linear]
    try:
        with torch.enable_grad():
            logits = respond(model, x)
    finally:
        for handle in handles:
            handle.remove()
    found = [module for module, output in calls if output is logits]
    if len(found) != 1 or sum(module is found[0] for module, _ in calls) != 1 or logits.dim() != 2:
        return None
    own = {id(p): name for name, p in found[0].named_parameters(recurse=False) if p.requires_grad}
    if not own or any(len(uses) != 1 for uses in Graph(logits, own).of_parameter.values()):
        return None
    return found[0]
