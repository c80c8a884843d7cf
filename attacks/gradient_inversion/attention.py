"""Attention in plain operations: it has a second derivative, and its dropout goes through a callable.

    A = softmax(Q K^T * scale + mask),   out = drop(A, p) V        mask of the dropout: (B, heads, n, n)

The fused kernels behind ``scaled_dot_product_attention`` have no double backward, and draw their dropout inside. These
take the arguments of the functions they stand in for.

Source: Vaswani et al., NeurIPS 2017; torch.nn.functional's documented signatures. Not covered, and refused:
    bias_k/bias_v,
add_zero_attn, static keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.errors import NotApplicable

Drop = Callable[[Tensor, float], Tensor]


def scaled_dot_product_attention(
    drop: Drop,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """(..., n, d), (..., m, d), (..., m, e) -> (..., n, e)."""
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    return _weights(drop, query, key, attn_mask, dropout_p, is_causal, scale) @ value


def _weights(
    drop: Drop,
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None = None,
) -> Tensor:
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal and attn_mask is None:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return drop(torch.softmax(scores, dim=-1), dropout_p)


def multi_head_attention(
    drop: Drop,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(n, B, d), (m, B, d), (m, B, d) -> (n, B, d), and the attention weights when they are asked for."""
    if bias_k is not None or bias_v is not None or add_zero_attn or static_k is not None or static_v is not None:
        raise NotApplicable("multi-head attention with bias_k, bias_v, add_zero_attn or static keys is not covered")
    if query.dim() != 3:
        raise NotApplicable("multi-head attention without a batch dimension is not covered")
    projections: list[Tensor | None] = [q_proj_weight, k_proj_weight, v_proj_weight]
    if not use_separate_proj_weight:
        assert in_proj_weight is not None
        projections = list(in_proj_weight.chunk(3))
    biases: list[Tensor | None] = [None] * 3 if in_proj_bias is None else list(in_proj_bias.chunk(3))
    heads = []
    for source, weight, bias in zip((query, key, value), projections, biases, strict=True):
        assert weight is not None
        part = F.linear(source, weight, bias)  # (n, B, d)
        heads.append(part.reshape(len(part), part.shape[1], num_heads, -1).permute(1, 2, 0, 3))  # (B, heads, n, d)
    q, k, v = heads
    weights = _weights(drop, q, k, _merged(attn_mask, key_padding_mask, q, is_causal), dropout_p, False)
    mixed = (weights @ v).permute(2, 0, 1, 3).flatten(2)
    out = F.linear(mixed, out_proj_weight, out_proj_bias)
    if not need_weights:
        return out, None
    return out, weights.mean(1) if average_attn_weights else weights


def _merged(attn_mask: Tensor | None, padding: Tensor | None, query: Tensor, is_causal: bool) -> Tensor | None:
    """Both masks as one to be added, broadcast to (B, heads, n, m). True means "not allowed" in both."""
    batch, num_heads, length, _ = query.shape
    total: Tensor | None = None
    if is_causal and attn_mask is None:
        raise NotApplicable("is_causal without attn_mask is not covered")
    if attn_mask is not None:
        total = _added(attn_mask, query)
        if total.dim() == 3:
            total = total.reshape(batch, num_heads, length, -1)
    if padding is not None:
        pad = _added(padding, query)[:, None, None, :]
        total = pad if total is None else total + pad
    return total


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -math.inf)
