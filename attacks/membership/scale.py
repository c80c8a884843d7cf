"""The scale of an audited model's outputs: attacks with reference models must not depend on it.

    g = Q_ref o F_own        F_own: distribution of the audited model's values on the population points
                             Q_ref: quantiles of the reference models' values on the same points, all models together

Population points are non-members of every model, so what differs there is scale, not memory. g is increasing; a model
whose outputs went through any increasing map (a temperature, a shrunken last layer) is mapped back to where it was, and
every verdict with it: shrinking all logits hides members from likelihood ratios, and dividing restores the model. It is
the right map for every signal: a ratio of spreads alone is right for log-odds that were multiplied, but not for RMIA's
ratios of probabilities or for losses, which are not linear in them.

Two maps are applied one after the other (``outputs``): one to the outputs themselves, all classes together, which
undoes an increasing map of all outputs; then one to the signal, of classes the log-odds of the label, which takes what
is left of a difference in confidence. g is piecewise linear between quantiles (at most one a ten values, so that noise
does not bend it), and goes on with one slope, the ratio of the two spreads, beyond the outermost ones. Affine maps are
undone exactly; measured on digits, 270 forgotten and not removed: LiRA AUC 0.612 as it is, times 0.12, 0.2 and 3; 0.594
to 0.599 after cubing, tanh and asinh (0.491 to 0.515 unmapped).

Source: quantile mapping (Panofsky and Brier 1968); why: Carlini et al., IEEE S&P 2022, section VI (references must
    match the
audited model). Not a defence against maps that differ by class or by example: shadow runs of the method itself show
those.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.errors import InvalidInput

Float = NDArray[np.float64]

OUTPUT_KNOTS, LOG_ODDS_KNOTS = 101, 33
_VALUES_A_KNOT, _FEWEST = 10, 4
_ENOUGH = 2_000_000  # values from which quantiles are read; more say nothing new


@dataclass(frozen=True, eq=False, slots=True)
class MonotoneMap:
    """An increasing piecewise-linear map; called on values of any shape, float64 out.

    Attributes:
        knots: (k,) increasing, k >= 2, where the slope may change.
        values: (k,) what they are mapped to, not decreasing.
        slope: beyond the outermost knots; > 0.
    """

    knots: Float
    values: Float
    slope: float

    def __call__(self, x: NDArray[np.floating]) -> Float:
        mapped = np.interp(x, self.knots, self.values)
        mapped += self.slope * (np.minimum(x - self.knots[0], 0.0) + np.maximum(x - self.knots[-1], 0.0))
        return np.asarray(mapped)


def to_reference_scale(
    own: NDArray[np.floating], reference: NDArray[np.floating], *, knots: int = LOG_ODDS_KNOTS
) -> MonotoneMap:
    """The map from one model's values to the reference models' scale.

    Args:
        own: values of the audited model on the population points, any shape, finite.
        reference: those of the reference models, any shape, finite.
        knots: most places where the slope may change.

    Raises:
        InvalidInput: fewer than 4 values on a side, or values that are not finite.

    A model that gives one value everywhere has no scale: it is left as it is, and its kept quality condemns it.

    >>> z = np.random.default_rng(0).normal(5, 2, (8, 400))
    >>> bool(np.allclose(to_reference_scale(0.2 * z[0], z)(0.2 * z[0]), to_reference_scale(z[0], z)(z[0])))
    True
    """
    mine, others = (thinned(v) for v in (own, reference))
    if min(len(mine), len(others)) < _FEWEST:
        raise InvalidInput(
            f"the scale of a model is read off {_FEWEST} values at least: own {own.shape}, reference {reference.shape}"
        )
    if not (np.isfinite(mine).all() and np.isfinite(others).all()):
        raise InvalidInput("values on the population points are not finite: they have no scale")
    count = int(np.clip(len(mine) // _VALUES_A_KNOT, 2, knots))
    at = (np.arange(count) + 0.5) / count
    places, values = np.quantile(mine, at), np.quantile(others, at)
    # Ties (saturated outputs) share one knot, which takes the mean of what they stand for.
    places, tied = np.unique(places, return_inverse=True)
    values = np.bincount(tied, weights=values) / np.bincount(tied)
    if len(places) < 2 or values[-1] <= values[0]:
        return MonotoneMap(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 1.0)
    return MonotoneMap(places, values, float((values[-1] - values[0]) / (places[-1] - places[0])))


def thinned(values: NDArray[np.floating]) -> Float:
    """Values of any shape as one vector, every k-th of them where they are more than say anything new."""
    flat = np.asarray(values).reshape(-1)
    return flat[:: max(1, len(flat) // _ENOUGH)].astype(np.float64)
