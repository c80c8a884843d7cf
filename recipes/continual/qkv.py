"""Training nothing of a transformer but how it attends: the query, key and value projections of its self-attention.

Known are a fused projection (``qkv``, timm and ``recipes.vit``; ``in_proj_weight``, torch.nn.MultiheadAttention) and
three of them
(``query``, ``key``, ``value``, transformers; ``q_proj``, ``k_proj``, ``v_proj``). The biases of the projections stay
fixed: matrices alone.

Source: Smith et al., "A Closer Look at Rehearsal-Free Continual Learning" (CVPRW 2023, arXiv 2203.17269), section 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from contracts.errors import NotApplicable

_PROJECTIONS = ("qkv", "query", "key", "value", "q_proj", "k_proj", "v_proj")


def qkv_names(model: nn.Module) -> list[str]:
    """The projection matrices, in the order of ``model.named_parameters()``.

    Raises:
        NotApplicable: the model has none.
    """
    names = [
        name
        for name, _ in model.named_parameters()
        if name.endswith(".in_proj_weight")
        or (name.endswith(".weight") and name.removesuffix(".weight").rpartition(".")[2] in _PROJECTIONS)
    ]
    if not names:
        raise NotApplicable("the model has no query, key and value projections: train = 'qkv' is for transformers")
    return names


@contextmanager
def trainable_qkv(model: nn.Module, *, head: str) -> Iterator[None]:
    """Inside, only the projections and the layer called ``head`` require gradients; afterwards all that did before
    do."""
    wanted = set(qkv_names(model))
    before = [(p, p.requires_grad) for p in model.parameters()]
    for name, p in model.named_parameters():
        p.requires_grad_(p.requires_grad and (name in wanted or name.startswith(f"{head}.")))
    try:
        yield
    finally:
        for p, required in before:
            p.requires_grad_(required)
