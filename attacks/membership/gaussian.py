"""Normal distributions fitted to reference models' log-odds, one an example and audited model. Shared by LiRA and
U-LiRA.

For target t and example n, over the group G of reference models without t itself (n_G = |G|):

    centre   mu = median_G phi
    scale    per_example  sqrt(sum_G (phi - mean_G phi)^2 / n_G)                                  as numpy.std
             pooled       sqrt(sum_n sum_G (phi - mean_G phi)^2 / sum_n (n_G - 1))                one for all examples
             fixed        numpy.std of all the group's values at once, spread between examples included: what the
                          LiRA code calls fix_variance=True (tensorflow/privacy, research/mi_lira_2021)

Examples with n_G < 2 are undefined (NaN) and take no part in the pool. 1e-30 is added to every scale, as that code
does.
Source: Carlini et al., IEEE S&P 2022, section VI. Shapes: values, member (M, N); index (T,); results (T, N) or (1, N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attacks.membership.leave_one_out import POOLED_CANCELLED, Group

Float = NDArray[np.float64]
Variance = Literal["pooled", "per_example", "fixed"]

BLOCK = 2048  # examples at a time: M x BLOCK float64 stays near the cache
_TINY = 1e-30
_NOBODY = np.array([-1])


@dataclass(frozen=True, eq=False, kw_only=True)
class Fit:
    """centre (T, N) or (1, N); scale (T, N), (T, 1), (1, N) or (1, 1); both NaN where undefined."""

    centre: Float
    scale: Float

    def part(self, at: slice) -> Fit:
        """Of these examples."""
        return Fit(centre=self.centre[:, at], scale=self.scale if self.scale.shape[1] == 1 else self.scale[:, at])

    def z(self, phi: Float) -> Float:
        """(phi - centre) / scale."""
        z = phi - self.centre
        z /= self.scale
        return z

    def log_density(self, phi: Float) -> Float:
        """log N(phi; centre, scale^2) in nats, without the constant -log(2 pi) / 2."""
        z = self.z(phi)
        np.multiply(z, z, out=z)
        z *= -0.5
        z -= np.log(self.scale)
        return z


def fit(values: Float, member: NDArray[np.bool_], index: NDArray[np.int64], *, variance: Variance) -> Fit:
    """Fit every target's normals without its own row of ``values`` (``index`` -1: all rows take part)."""
    num = values.shape[1]
    rows = len(index) if (index >= 0).any() else 1
    centre = np.empty((rows, num))
    each = np.empty((rows, num if variance == "per_example" else 1))
    total, held, freedom = 0.0, np.zeros(rows), np.zeros(rows)
    for start in range(0, num, BLOCK):
        at = slice(start, start + BLOCK)
        group = Group(values[:, at], member[:, at], index)
        centre[:, at] = group.median
        if group.smallest < 2:
            centre[:, at][group.size < 2] = np.nan
        if variance == "per_example":
            with np.errstate(invalid="ignore", divide="ignore"):
                each[:, at] = np.sqrt(group.sum_squares / group.size)
        elif variance == "pooled":
            in_block = group.pooled()
            total, held, freedom = total + in_block[0], held + in_block[1], freedom + in_block[2]
    if variance == "pooled":
        squares = total - held
        for t in np.flatnonzero(squares < POOLED_CANCELLED * total):  # one model holds nearly all: anew without it
            others = np.arange(len(values)) != index[t]
            squares[t] = sum(
                Group(values[others, start : start + BLOCK], member[others, start : start + BLOCK], _NOBODY).pooled()[0]
                for start in range(0, num, BLOCK)
            )
        with np.errstate(invalid="ignore", divide="ignore"):
            each = np.sqrt(squares / freedom)[:, None]
    elif variance == "fixed":
        each = _fixed_scale(values, member, index)[:rows]
    return Fit(centre=centre, scale=each + _TINY)


def _fixed_scale(values: Float, member: NDArray[np.bool_], index: NDArray[np.int64]) -> Float:
    """numpy.std of all the group's values, (T, 1), each target's own row left out."""
    count = member.sum(axis=1)
    middle = np.where(member, values, 0.0).sum() / max(
        count.sum(), 1
    )  # near the mean, so that the squares do not cancel
    centred = np.where(member, values - middle, 0.0)
    row = np.where(index >= 0, index, 0)
    own = (index >= 0).astype(np.float64)
    n = count.sum() - own * count[row]
    first = centred.sum() - own * centred.sum(axis=1)[row]
    squares = np.square(centred).sum(axis=1)
    second = squares.sum() - own * squares[row]
    return np.asarray(np.sqrt(second / n - np.square(first / n))[:, None])
