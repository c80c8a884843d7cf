"""Normal distributions fitted to reference models' log-odds, one an example and audited model. Shared by LiRA and U-LiRA.

For target t and example n, over the group G of reference models without t itself (n_G = |G|):

    centre   mu = median_G phi
    scale    per_example  sqrt(sum_G (phi - mean_G phi)^2 / n_G)                                  as numpy.std
             pooled       sqrt(sum_n sum_G (phi - mean_G phi)^2 / sum_n (n_G - 1))                one for all examples
             fixed        numpy.std of all the group's values at once, spread between examples included: what the
                          LiRA code calls fix_variance=True (tensorflow/privacy, research/mi_lira_2021)

Examples with n_G < 2 are undefined (NaN) and take no part in the pool. 1e-30 is added to every scale, as that code does.
Source: Carlini et al., IEEE S&P 2022, section VI. Shapes: values, member (M, N); index (T,); results (T, N) or (1, N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attacks.membership.leave_one_out import group_statistics

Float = NDArray[np.float64]
Variance = Literal["pooled", "per_example", "fixed"]

_BLOCK = 2048  # examples at a time: M x _BLOCK float64 stays near the cache
_TINY = 1e-30


@dataclass(frozen=True, eq=False, kw_only=True)
class Fit:
    """centre (T, N) or (1, N); scale (T, N), (T, 1), (1, N) or (1, 1); both NaN where undefined; size: models in the group."""

    centre: Float
    scale: Float
    size: NDArray[np.int64]

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
    centre, size = np.empty((rows, num)), np.empty((rows, num), dtype=np.int64)
    squares = np.empty((rows, num if variance == "per_example" else 1))
    pooled, freedom = np.zeros((rows, 1)), np.zeros((rows, 1))
    for start in range(0, num, _BLOCK):
        at = slice(start, start + _BLOCK)
        group = group_statistics(values[:, at], member[:, at], index)
        size[:, at] = group.size
        undefined = group.size < 2
        centre[:, at] = group.median
        if undefined.any():
            centre[:, at][undefined] = np.nan
        if variance == "per_example":
            squares[:, at] = group.sum_squares
        else:
            pooled[:, 0] += np.where(undefined, 0.0, group.sum_squares).sum(axis=1)
            freedom[:, 0] += np.where(undefined, 0, group.size - 1).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        if variance == "per_example":
            scale = np.sqrt(squares / size)
        elif variance == "pooled":
            scale = np.sqrt(pooled / freedom)
        else:
            scale = _fixed_scale(values, member, index)[:rows]
    return Fit(centre=centre, scale=scale + _TINY, size=size)


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
