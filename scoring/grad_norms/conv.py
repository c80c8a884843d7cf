"""Squared per-example gradient norms of nn.Conv2d: groups, stride, dilation, every padding mode, padding="same".

grad W[o, c, i, j] = sum_t delta[o, t] * a[c, s t + d (i, j)]        t runs over the H x W output positions

With U (C k_h k_w, T) the unfolded input and Delta (O, T), group by group:
    direct: ||Delta U^T||_F^2                       O(O C k_h k_w T)
    ghost:  <U^T U, Delta^T Delta>                  O(T^2 (C k_h k_w + O))
Bias: ||sum_t Delta_t||^2. The cheaper form is taken; early layers have large T (direct), late ones small T (ghost).

``torch.nn.functional.unfold`` writes C k_h k_w T numbers and costs more than the product itself on a CPU. Here only the
columns are unfolded (k_w copies); with rows sorted by their phase modulo the stride, kernel row i is then a contiguous
window of the same buffer, so each of the k_h products reads a view.

Source: "Deep Learning on a Data Diet" (NeurIPS 2021). Not for transposed convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoring.grad_norms.closed_forms import chunks, closed_form, squared_norm
from scoring.grad_norms.linear import inner


@closed_form(nn.Conv2d)
def conv2d(module: nn.Conv2d, inputs: Tensor, deltas: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    """``inputs`` (B, C, H_in, W_in), ``deltas`` (B, O, H, W)."""
    found = {}
    if "weight" in wanted:
        found["weight"] = _weight(module, inputs, deltas)
    if "bias" in wanted:
        found["bias"] = squared_norm(deltas.flatten(2).sum(2))
    return found


def _weight(module: nn.Conv2d, a_BCHW: Tensor, d_BOHW: Tensor) -> Tensor:
    groups = module.groups
    channels, outputs = module.in_channels // groups, module.out_channels // groups
    positions = d_BOHW.shape[2] * d_BOHW.shape[3]
    taps = channels * module.kernel_size[0] * module.kernel_size[1]
    ghost = positions * (taps + outputs) < taps * outputs
    unfolded = module.in_channels * module.kernel_size[1] * a_BCHW.shape[2] * d_BOHW.shape[3]
    working = groups * (2 * positions**2 if ghost else outputs * channels * module.kernel_size[1])
    d_BOT = d_BOHW.flatten(2)
    parts = []
    for rows in chunks(len(a_BCHW), bytes_each=a_BCHW.element_size() * (unfolded + working)):
        num = rows.stop - rows.start
        d = d_BOT[rows].reshape(num * groups, outputs, positions)
        kernel_rows = _kernel_rows(module, a_BCHW[rows], d_BOHW.shape[2], d_BOHW.shape[3])
        if ghost:
            gram = torch.zeros(num * groups, positions, positions, dtype=d.dtype, device=d.device)
            for u in kernel_rows:
                gram.baddbmm_(u.mT, u)
            squared = inner(gram, d.mT @ d)
        else:
            squared = sum((squared_norm(d @ u.mT) for u in kernel_rows), start=d.new_zeros((), dtype=torch.float64))
        parts.append(squared.view(num, groups).sum(1))
    return torch.cat(parts)


def _kernel_rows(module: nn.Conv2d, a_BCHW: Tensor, height: int, width: int) -> Iterator[Tensor]:
    """For each kernel row i the (B G, C/G k_w, T) slice of the unfolded input, as a view of one buffer."""
    (k_h, k_w), (s_h, s_w), (d_h, d_w) = module.kernel_size, module.stride, module.dilation
    padded = _pad(module, a_BCHW)
    num, channels, rows, _ = padded.shape
    depth = -(-rows // s_h)  # rows of one phase
    if k_w == s_h == s_w == 1:
        columns = padded[..., :width].reshape(num, channels, 1, 1, rows, width)
    else:
        columns = padded.new_empty(num, channels, k_w, s_h, depth, width)
        for j in range(k_w):
            taken = padded[..., j * d_w : j * d_w + s_w * (width - 1) + 1 : s_w]
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
