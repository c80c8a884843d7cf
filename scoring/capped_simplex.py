"""Projection onto the capped simplex: the weights of a relaxed choice of m things.

    S = {w in [0, 1]^N : sum w = m};   Proj_S(a) = clip(a - mu, 0, 1),   mu such that the entries sum to m

sum clip(a - mu, 0, 1) falls from N to 0 as mu goes from min(a) - 1 to max(a), so mu is found by bisection; the last
digits come from the linear equation that holds on the piece the bisection ended in. float64 throughout.

Source: the optimality conditions of min ||w - a||^2 over S; the bisection of Zhang et al., "Challenging Forgets" (ECCV
    2024,
arXiv 2403.07362), there in single precision with a tolerance of 1e-5. Not the probability simplex: entries are capped
at 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contracts.errors import InvalidInput

_HALVINGS = 100  # of an interval of float64 numbers: what remains is rounding


def project_capped_simplex(a: ArrayLike, m: float) -> NDArray[np.float64]:
    """The point of {w in [0, 1]^N, sum w = m} nearest to ``a``.

    Args:
        a: (N,) finite numbers.
        m: in [0, N]; need not be whole.

    Returns:
        float64 (N,), entries in [0, 1] that sum to ``m`` up to rounding. Equal entries of ``a`` stay equal.

    Raises:
        InvalidInput: NaN or infinite entries, not a vector, or ``m`` outside [0, N].

    >>> project_capped_simplex([3.0, 0.5, 0.3], 2).round(6).tolist()
    [1.0, 0.6, 0.4]
    """
    a = np.asarray(a, dtype=np.float64)
    if a.ndim != 1 or not np.isfinite(a).all():
        raise InvalidInput(
            f"a has shape {a.shape} and {int((~np.isfinite(a)).sum())} entries that are not finite; (N,) finite is "
            "needed"
        )
    if not 0 <= m <= len(a):
        raise InvalidInput(f"m = {m} is outside its allowed range: >= 0 and <= {len(a)}, the number of entries")
    if m in (0, len(a)):
        return np.full(len(a), float(m > 0))
    low, high = float(a.min()) - 1.0, float(a.max())
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if np.clip(a - middle, 0.0, 1.0).sum() > m:
            low = middle
        else:
            high = middle
    mu = 0.5 * (low + high)
    free = (a > mu) & (a < mu + 1.0)
    if free.any():
        mu = float((a[free] - mu).sum() + (a >= mu + 1.0).sum() - m) / int(free.sum()) + mu
    projected: NDArray[np.float64] = np.clip(a - mu, 0.0, 1.0)
    return projected
