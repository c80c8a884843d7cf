"""The temperature of a language model, taken out before single tokens are compared: a verdict must not depend on it.

    beta* = argmin_{beta > 0}  mean_t -log softmax(beta z_t)[x_t]       over tokens x_t of the population points
            where the mean NLL is the mean entropy of softmax(beta z_t), as the derivative is E_beta[z] - z_x
    read    log p, mean and standard deviation of log p, of softmax(beta* z)      (``tasks.signals.token_statistics``)

Logits divided by a temperature, z' = z / tau, have beta*' = tau beta*, so beta*' z' = beta* z: whatever the
temperature, and whatever is added to all logits of a position, the same readings follow and with them the same Min-K%,
Min-K%++ and zlib ratio of every text. The objective is convex, so there is one such beta. Population points are
non-members of every model: it is their calibration that is restored, not that of what was learnt by heart.

Of single tokens there is no map to the values that reference models give, as there is of readings (``scale``): a
quantile map of log p is none of all words at once, so it undoes no temperature, which moves log p of every position by
another amount. What is undone here are temperatures. A map that bends the logits is not; where the population's quality
suffers by it, the kept quality shows it.

A model that tells the population's tokens no better than a uniform choice at any beta, or all of them without fail, has
no scale and is left as it is. Source: temperature scaling, Guo et al., ICML 2017 (arXiv 1706.04599), section 4.2.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from contracts.errors import InvalidInput
from tasks.signals import token_statistics

_STEP, _STEPS = math.log(4.0), 10  # the root is looked for within 4^-10 to 4^10 of one over the logits' spread
_ROWS = 32  # tokens whose logits are held in double precision at a time


def inverse_temperature(logits: NDArray[np.floating], tokens: NDArray[np.integer]) -> float:
    """beta*, by which a model's logits are multiplied; > 0, and 1.0 of a model that has no scale.

    Args:
        logits: (P, V) of the positions before P tokens that no model was trained on, finite.
        tokens: (P,) in [0, V).

    Raises:
        InvalidInput: other shapes, no token, or logits that are not finite.

    >>> z = np.random.default_rng(0).normal(size=(200, 9)) + 2 * np.eye(9)[np.arange(200) % 9]
    >>> found = [inverse_temperature(factor * z, np.arange(200) % 9) * factor for factor in (1.0, 0.05, 30.0)]
    >>> bool(np.allclose(found, found[0], rtol=1e-8))
    True
    """
    if logits.ndim != 2 or tokens.shape != logits.shape[:1] or not len(tokens):
        raise InvalidInput(f"a temperature is read off (P, V) logits of P >= 1 tokens, not {logits.shape}")
    if not np.isfinite(logits).all():
        raise InvalidInput("logits on the population points are not finite: they have no temperature")
    spread = float(np.mean(logits.std(axis=1, dtype=np.float64)))
    if spread == 0:
        return 1.0

    def excess(log_beta: float) -> float:
        """Mean NLL less mean entropy at beta: its sign is that of the objective's derivative."""
        beta, total = math.exp(log_beta), 0.0
        for start in range(0, len(tokens), _ROWS):
            some = slice(start, start + _ROWS)
            told = token_statistics(beta * logits[some].astype(np.float64), tokens[some])
            total += float((told[:, 1] - told[:, 0]).sum())
        return total

    middle = -math.log(spread)
    low = high = middle
    for _ in range(_STEPS):
        if excess(low) < 0:
            break
        low -= _STEP
    else:
        return 1.0
    for _ in range(_STEPS):
        if excess(high) > 0:
            break
        high += _STEP
    else:
        return 1.0
    return math.exp(float(brentq(excess, low, high, xtol=1e-10)))
