"""Squared per-example gradient norms of nn.Embedding.

grad W[v] = sum of delta_t over the tokens t of the example that are v: tokens of the same id add up first, then
||g||^2 = sum_v ||sum_{t: id_t = v} delta_t||^2 = sum_{t, u: id_t = id_u} <delta_t, delta_u>.

The row of ``padding_idx`` gets no gradient. Not for ``max_norm`` or ``scale_grad_by_freq``, whose gradient depends on
the rest of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scoring.grad_norms.closed_forms import closed_form, squared_norm


@closed_form(nn.Embedding, when=lambda module: module.max_norm is None and not module.scale_grad_by_freq)
def embedding(module: nn.Embedding, inputs: Tensor, deltas: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    """``inputs`` token ids (B, ...), ``deltas`` (B, ..., d)."""
    ids_BT, d_BTD = inputs.reshape(len(inputs), -1), deltas.reshape(len(inputs), -1, deltas.shape[-1])
    padding = -1 if module.padding_idx is None else module.padding_idx
    return {"weight": token_norms(ids_BT, d_BTD, module.num_embeddings, padding=padding)}


def token_norms(ids_BT: Tensor, d_BTD: Tensor, num_rows: int, *, padding: int = -1) -> Tensor:
    """||sum_t onehot(id_t) d_t^T||^2, float64 (B,), of a weight with ``num_rows`` rows, of which ``padding`` gets no
    gradient."""
    num, tokens, width = d_BTD.shape
    example = torch.arange(num, device=ids_BT.device).repeat_interleave(tokens)
    cell, slot = torch.unique(example * num_rows + ids_BT.flatten(), return_inverse=True)
    summed = d_BTD.new_zeros(len(cell), width).index_add_(0, slot, d_BTD.flatten(0, 1))
    squared = squared_norm(summed)
    if padding >= 0:
        squared = squared.masked_fill(cell % num_rows == padding, 0.0)
    owner = torch.div(cell, num_rows, rounding_mode="floor")
    return squared.new_zeros(num).index_add_(0, owner, squared)
