"""Linear CKA: how alike two layers describe the same examples, whatever rotates or scales their features.

    CKA(X, Y) = || Y_c' X_c ||_F^2 / ( || X_c' X_c ||_F || Y_c' Y_c ||_F )         X_c: X with its column means taken
    off

1 for Y = a X Q with orthogonal Q and a != 0, symmetric, in [0, 1]. Through the products over examples where these are
smaller:
|| Y_c' X_c ||_F^2 = <X_c X_c', Y_c Y_c'>. Not invariant to invertible linear maps, and biased upwards with fewer
examples than features.

Source: Kornblith et al., "Similarity of Neural Network Representations Revisited" (ICML 2019, arXiv 1905.00414),
section 3.
Shapes: X (N, D), Y (N, E), the same N examples in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contracts.errors import InvalidInput
from recipes.inputs import Inputs, model_device, model_dtype
from recipes.predict import eval_mode
from sources.example_set import ExampleSet

Float = NDArray[np.float64]


def linear_cka(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> float:
    """Linear CKA of features (N, ...) and (N, ...), flattened; in [0, 1], NaN where either is constant over the
    examples.

    Raises:
        InvalidInput: other numbers of examples, fewer than 2, or values that are not finite.

    >>> x = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
    >>> round(linear_cka(x, -2.0 * x[:, ::-1]), 12)
    1.0
    """
    a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (x, y))
    if len(a) != len(b) or len(a) < 2:
        raise InvalidInput(f"features of {len(a)} and {len(b)} examples: the same examples are needed, two at least")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InvalidInput("features must be finite")
    a, b = a - a.mean(0), b - b.mean(0)
    if not (a.any() and b.any()):
        return float("nan")
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)  # scale drops out, and so do overflow and underflow
    if max(a.shape[1], b.shape[1]) > len(a):
        k, m = a @ a.T, b @ b.T
        shared, norms = float((k * m).sum()), float(np.linalg.norm(k) * np.linalg.norm(m))
    else:
        shared = float(np.square(b.T @ a).sum())
        norms = float(np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    return float(np.clip(shared / norms, 0.0, 1.0))


def layer_outputs(model: nn.Module, data: ExampleSet, *, batch: int = 1024) -> dict[str, NDArray[np.float32]]:
    """What every layer with parameters of its own gives on ``data``, in eval mode: name -> (N, D), in the order of the
    model.

    A layer that is called more than once a pass is taken at its last call; one without a tensor for an answer is left
    out.
    """
    own = {n: m for n, m in model.named_modules() if n and next(m.parameters(recurse=False), None) is not None}
    inputs = Inputs(data, dtype=model_dtype(model), device=model_device(model), preload_bytes=0)
    parts: dict[str, list[NDArray[np.float32]]] = {}
    seen: dict[str, torch.Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                seen[name] = output

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in own.items()]
    try:
        with eval_mode(model), torch.no_grad():
            for start in range(0, len(inputs), batch):
                block = inputs.block(start, min(start + batch, len(inputs)))
                model(block)
                for name, output in seen.items():
                    if output.shape[:1] == block.shape[:1]:
                        parts.setdefault(name, []).append(output.flatten(1).to(torch.float32).cpu().numpy())
    finally:
        for handle in handles:
            handle.remove()
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def cka_of_layers(first: nn.Module, second: nn.Module, data: ExampleSet) -> dict[str, float]:
    """Linear CKA of every layer of two models of one architecture, on the same examples."""
    a, b = layer_outputs(first, data), layer_outputs(second, data)
    names: Sequence[str] = [name for name in a if name in b]
    return {name: linear_cka(a[name], b[name]) for name in names}
