"""Losses of predictions against the mean responses of bags: bag level, instance level, and between.

    fbar_a = (1/k_a) sum_{i in a} f_i
    L_bag  = (1/n) sum_a k_a l(ybar_a, fbar_a)                      (1/m) sum_a where all bags have k = n/m examples
    L_ins  = (1/n) sum_a sum_{i in a} l(ybar_a, f_i)
    R      = (1/n) sum_a sum_{i in a} |f_i - fbar_a|^2  =  (1/n) sum_a (1/(2 k_a)) sum_{i,j in a} |f_i - f_j|^2
    L_rho  = L_bag + rho R

    squared          l(y, f) = (y - f)^2:  L_ins = L_bag + R exactly, for any model and any sizes
    cross_entropy    ybar_a are class shares, f = softmax(logits), l(y, f) = -sum_c y_c log f_c:  L_ins >= L_bag

A bag of k_a examples has k_a times the weight of one: that is the identity's weight, and that of its variance s^2/k_a.

Source: Javanmard et al., ICLR 2024 (arXiv 2401.11081), sections 2 and 3.
Shapes: predictions (n,) or (n, 1), or logits (n, K), bag after bag; means (m,) or (m, 1), or (m, K); sizes (m,) int64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.errors import InvalidInput

LOSSES = ("squared", "cross_entropy")


def bag_loss(predictions: Tensor, means: Tensor, sizes: Tensor, *, loss: str = "squared") -> Tensor:
    """L_bag, a scalar with gradient: unbiased for linear models, and of large variance.

    Raises:
        InvalidInput: shapes that do not fit, or another ``loss`` than squared and cross_entropy.
    """
    f, y = _checked(predictions, means, sizes, loss)
    weights = sizes.to(f.dtype) / len(f)
    if loss == "squared":
        return (weights * (y - _bag_mean(f, sizes)).square().sum(1)).sum()
    return -(weights * (y * _log_bag_mean(F.log_softmax(f, dim=1), sizes)).sum(1)).sum()


def instance_loss(predictions: Tensor, means: Tensor, sizes: Tensor, *, loss: str = "squared") -> Tensor:
    """L_ins, a scalar with gradient: every prediction against the mean of its bag. Arguments as :func:`bag_loss`."""
    f, y = _checked(predictions, means, sizes, loss)
    own = y.repeat_interleave(sizes, dim=0, output_size=len(f))
    if loss == "squared":
        return (own - f).square().sum() / len(f)
    return -(own * F.log_softmax(f, dim=1)).sum() / len(f)


def interpolating_loss(
    predictions: Tensor, means: Tensor, sizes: Tensor, *, rho: float, loss: str = "squared"
) -> Tensor:
    """L_rho, a scalar with gradient: 0 is the bag loss, 1 the instance loss where it is squared.

    Args:
        rho: >= 0. Others as :func:`bag_loss`.
    """
    if rho < 0:
        raise InvalidInput(f"rho = {rho} is outside its allowed range: >= 0")
    found = bag_loss(predictions, means, sizes, loss=loss)
    if rho == 0:
        return found
    values = predictions.reshape(len(predictions), -1)
    return found + rho * within_bag_variance(values if loss == "squared" else values.softmax(dim=1), sizes)


def within_bag_variance(values: Tensor, sizes: Tensor) -> Tensor:
    """R of values (n, ...), bag after bag: a mean over n, so that rho does not depend on the bag size."""
    values = values.reshape(len(values), -1)
    # An index, whose backward pass sums in one order on CUDA too; that of repeat_interleave does not.
    bag = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes, output_size=len(values))
    around = _bag_mean(values, sizes)[bag]
    return (values - around).square().sum() / len(values)


def _checked(predictions: Tensor, means: Tensor, sizes: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    if loss not in LOSSES:
        raise InvalidInput(f"loss = {loss!r} is none of {', '.join(LOSSES)}")
    f, y = predictions.reshape(len(predictions), -1), means.reshape(len(means), -1)
    if len(y) != len(sizes) or int(sizes.sum()) != len(f) or y.shape[1] != f.shape[1]:
        raise InvalidInput(
            f"predictions {tuple(predictions.shape)}, means {tuple(means.shape)} and {len(sizes)} sizes that sum to "
            f"{int(sizes.sum())} do not fit"
        )
    return f, y


def _bag_mean(values: Tensor, sizes: Tensor) -> Tensor:
    """(m, c) of values (n, c)."""
    if len(sizes) and bool((sizes == sizes[0]).all()):
        return values.reshape(len(sizes), -1, values.shape[1]).mean(1)
    return torch.segment_reduce(values, "mean", lengths=sizes, axis=0)


def _log_bag_mean(log_values: Tensor, sizes: Tensor) -> Tensor:
    """Log of the bag means of values that are given by their logs (n, c), none of which underflows together."""
    top = torch.segment_reduce(log_values.detach(), "max", lengths=sizes, axis=0)
    scaled = (log_values - top.repeat_interleave(sizes, dim=0, output_size=len(log_values))).exp()
    return _bag_mean(scaled, sizes).log() + top
