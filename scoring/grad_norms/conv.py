"""Squared per-example gradient norms of nn.Conv2d: groups, stride, dilation, every padding mode, padding="same"; and of
nn.ConvTranspose2d.

grad W[o, c, i, j] = sum_t delta[o, t] * a[c, s t + d (i, j)]        t runs over the T = H x W output positions

With U (C k_h k_w, T) the unfolded input and Delta (O, T), group by group, three ways to the same number:
    ghost    <U^T U, Delta^T Delta>          O(T^2 (C k_h k_w + O)): late layers, where T is small
    grouped  ||grad W||_F^2, all examples' grad W by one convolution whose groups are the examples: narrow layers on a
             CPU
    direct   ||Delta U^T||_F^2               O(O C k_h k_w T): the rest
Bias: ||sum_t Delta_t||^2.

``torch.nn.functional.unfold`` writes C k_h k_w T numbers and costs more than the product itself on a CPU. Here only the
columns are unfolded (k_w copies); with rows sorted by their phase modulo the stride, kernel row i is then a contiguous
window of the same buffer, so each of the k_h products reads a view.

A transposed convolution y[o, s t + d (i, j) - p] += W[c, o, i, j] x[c, t] has

grad W[c, o, i, j] = sum_t x[c, t] * delta[o, s t + d (i, j) - p]

the gradient of the convolution that takes delta, padded by p, to x: the same three ways with the two exchanged.

Source: "Deep Learning on a Data Diet" (NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from scoring.grad_norms.closed_forms import chunks, closed_form, squared_norm
from scoring.grad_norms.linear import inner

_NARROW = 1 << 14  # numbers in the weight; measured: beyond, the grouped convolution loses to the products


class _Geometry(NamedTuple):
    """What the weight's gradient depends on of a layer."""

    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]


@closed_form(nn.Conv2d)
def conv2d(module: nn.Conv2d, inputs: Tensor, deltas: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    """``inputs`` (B, C, H_in, W_in), ``deltas`` (B, O, H, W)."""
    found = {}
    if "weight" in wanted:
        of = _Geometry(
            module.in_channels,
            module.out_channels,
            module.groups,
            module.kernel_size,
            module.stride,
            module.dilation,
        )
        found["weight"] = _weight(of, _pad(module, inputs), deltas)
    if "bias" in wanted:
        found["bias"] = squared_norm(deltas.flatten(2).sum(2))
    return found


@closed_form(nn.ConvTranspose2d)
def conv_transpose2d(
    module: nn.ConvTranspose2d, inputs: Tensor, deltas: Tensor, wanted: frozenset[str]
) -> dict[str, Tensor]:
    """``inputs`` (B, C, H_in, W_in), ``deltas`` (B, O, H, W)."""
    found = {}
    if "weight" in wanted:
        of = _Geometry(
            module.out_channels,
            module.in_channels,
            module.groups,
            module.kernel_size,
            module.stride,
            module.dilation,
        )
        down, right = (int(p) for p in module.padding)
        padded = F.pad(deltas, (right, right, down, down)) if down or right else deltas
        reach = [
            s * (size - 1) + d * (k - 1) + 1
            for s, d, k, size in zip(of.stride, of.dilation, of.kernel_size, inputs.shape[2:], strict=True)
        ]
        # What output_padding adds at the end is of no tap.
        found["weight"] = _weight(of, padded[:, :, : reach[0], : reach[1]], inputs)
    if "bias" in wanted:
        found["bias"] = squared_norm(deltas.flatten(2).sum(2))
    return found


def _weight(module: _Geometry, padded: Tensor, d_BOHW: Tensor) -> Tensor:
    channels, outputs = module.in_channels // module.groups, module.out_channels // module.groups
    positions = d_BOHW.shape[2] * d_BOHW.shape[3]
    taps = channels * module.kernel_size[0] * module.kernel_size[1]
    if positions * (taps + outputs) < taps * outputs:
        form, working = _ghost, 2 * module.groups * positions**2
    elif module.out_channels * taps <= _NARROW and padded.device.type == "cpu":
        form, working = _grouped, module.out_channels * taps
    else:
        form, working = _direct, module.out_channels * channels * module.kernel_size[1]
    if form is not _grouped:
        working += module.in_channels * module.kernel_size[1] * padded.shape[2] * d_BOHW.shape[3]
    slices = chunks(len(padded), bytes_each=padded.element_size() * working)
    return torch.cat([form(module, padded[rows], d_BOHW[rows]) for rows in slices])


def _grouped(module: _Geometry, padded_BCHW: Tensor, d_BOHW: Tensor) -> Tensor:
    num, _, height, width = padded_BCHW.shape
    gradients = conv2d_weight(
        padded_BCHW.reshape(1, -1, height, width),
        (num * module.out_channels, module.in_channels // module.groups, *module.kernel_size),
        d_BOHW.reshape(1, -1, *d_BOHW.shape[2:]),
        stride=module.stride,
        dilation=module.dilation,
        groups=num * module.groups,
    )
    return squared_norm(gradients.view(num, -1))


def _direct(module: _Geometry, padded_BCHW: Tensor, d_BOHW: Tensor) -> Tensor:
    d_XOT = _by_group(module, d_BOHW)
    squared = torch.stack([squared_norm(d_XOT @ u.mT) for u in _kernel_rows(module, padded_BCHW, d_BOHW.shape)])
    return squared.view(-1, len(d_BOHW), module.groups).sum((0, 2))


def _ghost(module: _Geometry, padded_BCHW: Tensor, d_BOHW: Tensor) -> Tensor:
    d_XOT = _by_group(module, d_BOHW)
    gram = d_XOT.new_zeros(len(d_XOT), d_XOT.shape[2], d_XOT.shape[2])
    for u in _kernel_rows(module, padded_BCHW, d_BOHW.shape):
        gram.baddbmm_(u.mT, u)
    return inner(gram, d_XOT.mT @ d_XOT).view(-1, module.groups).sum(1)


def _by_group(module: _Geometry, d_BOHW: Tensor) -> Tensor:
    """(B, O, H, W) -> (B G, O/G, T)."""
    return d_BOHW.reshape(len(d_BOHW) * module.groups, module.out_channels // module.groups, -1)


def _kernel_rows(module: _Geometry, padded_BCHW: Tensor, out_shape: torch.Size) -> Iterator[Tensor]:
    """For each kernel row i its part (B G, C/G k_w, T) of the unfolded input, as a view of one buffer."""
    (k_h, k_w), (s_h, s_w), (d_h, d_w) = module.kernel_size, module.stride, module.dilation
    num, channels, rows, _ = padded_BCHW.shape
    height, width = out_shape[2:]
    depth = -(-rows // s_h)  # rows of one phase
    columns = padded_BCHW.new_empty(num, channels, k_w, s_h, depth, width)
    for j in range(k_w):
        taken = padded_BCHW[..., j * d_w : j * d_w + s_w * (width - 1) + 1 : s_w]
        for phase in range(min(s_h, rows)):
            part = taken[:, :, phase::s_h]
            columns[:, :, j, phase, : part.shape[2]] = part
    flat = columns.view(num * module.groups, channels // module.groups * k_w, s_h, depth * width)
    for i in range(k_h):
        start = (i * d_h) // s_h * width
        yield flat[:, :, (i * d_h) % s_h, start : start + height * width]


def _pad(module: nn.Conv2d, a_BCHW: Tensor) -> Tensor:
    """The input as the kernel sees it. "same" puts the odd column or row at the end, as torch does."""
    sides: list[int] = []
    for axis in (1, 0):  # F.pad starts with the last axis
        if module.padding == "same":
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            sides += [total // 2, total - total // 2]
        elif module.padding == "valid":
            sides += [0, 0]
        else:
            sides += [int(module.padding[axis])] * 2
    if not any(sides):
        return a_BCHW
    return F.pad(a_BCHW, sides, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
