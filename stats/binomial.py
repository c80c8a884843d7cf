"""Exact binomial intervals.

Clopper and Pearson, Biometrika 1934, in Beta quantiles, k successes in n trials:

    lower = BetaInv(alpha / 2; k, n - k + 1),  0 for k = 0        upper = BetaInv(1 - alpha / 2; k + 1, n - k),  1 for k
                                               = n

Coverage is at least 1 - alpha for every true rate and every n. Not the shortest interval, and only for independent
trials: examples of one model are taken as such given the model; several models pooled are not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from contracts.errors import InvalidInput

Float = NDArray[np.float64]


def lower_bound(k: ArrayLike, n: ArrayLike, *, alpha: float) -> Float:
    """One-sided lower bound of a rate at level 1 - ``alpha``.

    Raises:
        InvalidInput: not 0 <= k <= n with n >= 1, or alpha outside (0, 1).
    """
    k, n = _checked(k, n, alpha)
    return np.where(k == 0, 0.0, beta.ppf(alpha, np.maximum(k, 1), n - k + 1))


def upper_bound(k: ArrayLike, n: ArrayLike, *, alpha: float) -> Float:
    """One-sided upper bound of a rate at level 1 - ``alpha``; raises as :func:`lower_bound`."""
    k, n = _checked(k, n, alpha)
    return np.where(k == n, 1.0, beta.ppf(1 - alpha, k + 1, np.maximum(n - k, 1)))


def clopper_pearson(k: ArrayLike, n: ArrayLike, *, alpha: float = 0.05) -> tuple[Float, Float]:
    """Two-sided interval (low, high) of a rate at level 1 - ``alpha``, element by element.

    Counts may be fractional: effective counts of trials that are not quite independent.

    >>> round(float(clopper_pearson(0, 1000)[1]), 6)
    0.003682
    """
    return lower_bound(k, n, alpha=alpha / 2), upper_bound(k, n, alpha=alpha / 2)


def _checked(k: ArrayLike, n: ArrayLike, alpha: float) -> tuple[Float, Float]:
    k, n = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if not ((k >= 0) & (k <= n) & (n >= 1)).all():
        raise InvalidInput(f"counts k = {k} of n = {n}: needs 0 <= k <= n and n >= 1")
    if not 0 < alpha < 1:
        raise InvalidInput(f"alpha = {alpha} is outside its allowed range: > 0 and < 1")
    return k, n
