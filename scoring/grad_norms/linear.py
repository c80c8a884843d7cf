"""Squared per-example gradient norms of nn.Linear, on vectors and on tokens.

Vector (B, d_in) -> (B, d_out):    g = delta a^T                    ||g||^2 = ||a||^2 ||delta||^2
Tokens (B, T, d_in) -> (B, T, d_out):  g = sum_t delta_t a_t^T      direct: ||Delta^T A||_F^2          O(T d_in d_out)
                                                                    ghost:  <A A^T, Delta Delta^T>     O(T^2 (d_in +
                                                                            d_out))
Bias: ||sum_t delta_t||^2. The cheaper of the two token forms is taken; they are the same number.

Source: "Deep Learning on a Data Diet" (NeurIPS 2021) for the score; the ghost norm is that of Li et al., "Large
    Language
Models Can Be Strong Differentially Private Learners" (ICLR 2022), eq. 4. Not for weights used outside the layer's call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from scoring.grad_norms.closed_forms import chunks, closed_form, squared_norm


@closed_form(nn.Linear, NonDynamicallyQuantizableLinear)
def linear(module: nn.Module, inputs: Tensor, deltas: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    """``inputs`` (B, ..., d_in), ``deltas`` (B, ..., d_out); everything between batch and features is a token."""
    if inputs.dim() == 2:
        norms = squared_norm(deltas)
        return {name: norms * squared_norm(inputs) if name == "weight" else norms for name in wanted}
    a_BTI, d_BTO = inputs.flatten(1, -2), deltas.flatten(1, -2)
    found = {}
    if "weight" in wanted:
        found["weight"] = token_products(a_BTI, d_BTO)
    if "bias" in wanted:
        found["bias"] = squared_norm(d_BTO.sum(1))
    return found


def token_products(a_BTI: Tensor, d_BTO: Tensor) -> Tensor:
    """||sum_t delta_t a_t^T||^2, float64 (B,)."""
    num, tokens, d_in = a_BTI.shape
    d_out = d_BTO.shape[2]
    ghost = tokens * (d_in + d_out) < d_in * d_out
    parts = []
    for rows in chunks(num, bytes_each=a_BTI.element_size() * (2 * tokens**2 if ghost else d_in * d_out)):
        a, d = a_BTI[rows], d_BTO[rows]
        if ghost:
            parts.append(inner(a @ a.mT, d @ d.mT))
        else:
            parts.append(squared_norm(d.mT @ a))
    return torch.cat(parts)


def inner(gram_a: Tensor, gram_d: Tensor) -> Tensor:
    """<A, D> of every pair of Gram matrices, float64 (B,). The sum is a square; rounding may leave it just below
    zero."""
    product: Tensor = torch.linalg.vecdot(gram_a.flatten(1), gram_d.flatten(1))
    return product.double().clamp_min(0.0)
