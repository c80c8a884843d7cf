"""Squared per-example gradient norms of nn.Embedding.

grad W[v] = sum of delta_t over the tokens t of the example that are v: tokens of the same id add up first, then
||g||^2 = sum_v ||sum_{t: id_t = v} delta_t||^2 = sum_{t, u: id_t = id_u} <delta_t, delta_u>.

The row of ``padding_idx`` gets no gradient. Not for ``max_norm`` or ``scale_grad_by_freq``, whose gradient depends on the
rest of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scoring.grad_norms.closed_forms import closed_form, squared_norm


@closed_form(nn.Embedding, when=lambda module: module.max_norm is None and not module.scale_grad_by_freq)
def embedding(module: nn.Embedding, inputs: Tensor, deltas: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    """``inputs`` token ids (B, ...), ``deltas`` (B, ..., d)."""
    ids_BT, d_BTD = inputs.reshape(len(inputs), -1), deltas.reshape(len(inputs), -1, deltas.shape[-1])
    num, tokens, width = d_BTD.shape
    example = torch.arange(num, device=ids_BT.device).repeat_interleave(tokens)
    cell, slot = torch.unique(example * module.num_embeddings + ids_BT.flatten(), return_inverse=True)
    summed = d_BTD.new_zeros(len(cell), width).index_add_(0, slot, d_BTD.flatten(0, 1))
    squared = squared_norm(summed)
    if module.padding_idx is not None:
        squared = squared.masked_fill(cell % module.num_embeddings == module.padding_idx, 0.0)
    owner = torch.div(cell, module.num_embeddings, rounding_mode="floor")
    return {"weight": squared.new_zeros(num).index_add_(0, owner, squared)}
