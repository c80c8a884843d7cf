"""Squared per-example gradient norms of the affine parameters of normalisation layers.

With x_hat the normalised input:    weight: ||sum_pos delta * x_hat||^2      bias: ||sum_pos delta||^2
where pos runs over every axis between the batch and the affine axes (LayerNorm, RMSNorm) or after the channel
(GroupNorm, InstanceNorm, BatchNorm). BatchNorm uses its running statistics: with batch statistics an example has no
gradient of its own. InstanceNorm uses those of each example, or its running ones where it keeps them.

Source: "Deep Learning on a Data Diet" (NeurIPS 2021). Not for BatchNorm in training mode, which the caller refuses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoring.grad_norms.closed_forms import closed_form, squared_norm


@closed_form(nn.LayerNorm, nn.RMSNorm)
def layer_norm(
    module: nn.LayerNorm | nn.RMSNorm, inputs: Tensor, deltas: Tensor, wanted: frozenset[str]
) -> dict[str, Tensor]:
    """``inputs`` and ``deltas`` (B, ..., *normalized_shape)."""
    positions = tuple(range(1, inputs.dim() - len(module.normalized_shape)))
    shape = list(module.normalized_shape)
    found = {}
    if "weight" in wanted:
        if isinstance(module, nn.LayerNorm):
            ones, zeros = inputs.new_ones(shape), inputs.new_zeros(shape)  # the kernel without them is twice as slow
            normalised = F.layer_norm(inputs, shape, ones, zeros, eps=module.eps)
        else:  # the default epsilon is that of the dtype the layer ran in
            eps = torch.finfo(module.weight.dtype).eps if module.eps is None else module.eps
            normalised = F.rms_norm(inputs, shape, eps=eps)
        found["weight"] = _over(positions, deltas * normalised)
    if "bias" in wanted:
        found["bias"] = _over(positions, deltas)
    return found


@closed_form(nn.GroupNorm)
def group_norm(module: nn.GroupNorm, inputs: Tensor, deltas: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    """``inputs`` and ``deltas`` (B, C, ...)."""
    ones, zeros = inputs.new_ones(module.num_channels), inputs.new_zeros(module.num_channels)  # quicker with them
    return _channels(lambda: F.group_norm(inputs, module.num_groups, ones, zeros, eps=module.eps), deltas, wanted)


@closed_form(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm(
    module: nn.InstanceNorm2d, inputs: Tensor, deltas: Tensor, wanted: frozenset[str]
) -> dict[str, Tensor]:
    """``inputs`` and ``deltas`` (B, C, ...)."""
    own = module.training or module.running_mean is None or module.running_var is None
    mean, var = (None, None) if own else (s.to(inputs.dtype) for s in (module.running_mean, module.running_var))  # type: ignore[union-attr]
    return _channels(lambda: F.instance_norm(inputs, mean, var, use_input_stats=own, eps=module.eps), deltas, wanted)


@closed_form(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(module: nn.BatchNorm2d, inputs: Tensor, deltas: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    """``inputs`` and ``deltas`` (B, C, ...); ``module`` in eval mode, with running statistics."""
    mean, var = (statistic.to(inputs.dtype) for statistic in (module.running_mean, module.running_var))  # type: ignore[union-attr]
    return _channels(lambda: F.batch_norm(inputs, mean, var, eps=module.eps), deltas, wanted)


def _channels(normalised: Callable[[], Tensor], deltas: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    positions = tuple(range(2, deltas.dim()))
    found = {}
    if "weight" in wanted:
        found["weight"] = _over(positions, deltas * normalised())
    if "bias" in wanted:
        found["bias"] = _over(positions, deltas)
    return found


def _over(positions: tuple[int, ...], terms: Tensor) -> Tensor:
    return squared_norm(torch.sum(terms, dim=positions) if positions else terms)
