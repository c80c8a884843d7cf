"""Adjusted p-values when many hypotheses are tested at once (every forgotten example, every attack, every cap).

    Holm (Scand. J. Statist. 1979)   adj_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))    keeps P[any false alarm] <=
                                     alpha
    Benjamini-Hochberg (1995)        adj_(i) = min_{j >= i} min(1, m p_(j) / j)          keeps the false share of alarms
                                     <= alpha

Holm holds under any dependence; Benjamini-Hochberg needs independence or positive dependence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control

from contracts.errors import InvalidInput

Float = NDArray[np.float64]


def holm(p_values: ArrayLike) -> Float:
    """Holm's adjusted p-values, in the order given; reject where <= alpha.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = _checked(p_values)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.minimum(1.0, (len(p) - np.arange(len(p))) * p[order]))
    adjusted = np.empty(len(p))
    adjusted[order] = stepped
    return adjusted


def benjamini_hochberg(p_values: ArrayLike) -> Float:
    """Benjamini and Hochberg's adjusted p-values, in the order given; reject where <= the false-discovery rate."""
    p = _checked(p_values)
    return np.asarray(false_discovery_control(p, method="bh")) if len(p) else p


def _checked(p_values: ArrayLike) -> Float:
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InvalidInput("p-values must be a vector of numbers in [0, 1]")
    return p
