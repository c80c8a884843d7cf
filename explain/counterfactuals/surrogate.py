"""Local linear stand-ins of a model that is not linear, one a query, by which robust counterfactuals can be found for
it.

    z = x + sqrt(v) e, e ~ N(0, I);  v = 0.1, 0.15, 0.2, ... until both decisions occur
    (w, b) = logistic regression on (z, sigma(f(z))), kernel weights exp(-||x - z||^2 / width^2), C = 1e4, intercept not
    penalised

Published: labels are the hard decisions f(z) >= 0 and the kernel's width is 1 (``labels``, ``kernel_width``). In d = 30
    dimensions and v = 1
such a kernel weighs a draw e^-30 and the nearest one carries all; the width here is sqrt(d v), the distance of a
typical draw, and the weights are scaled to sum to the number of draws. The fit runs on e for the sake of conditioning;
the regulariser is that of w. g_i and H of the surrogate on the TRAINING examples (``rocerf(..., surrogates=)``) say
which of them pull the local boundary which way. The surrogate was not trained on them, so this is a heuristic and no
linearisation of retraining: check with real retraining.

Source: Ribeiro, Singh & Guestrin, KDD 2016 (LIME, arXiv 1602.04938), as used by the published ROCERF code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from contracts.errors import DataError
from contracts.params import Config, param

Decide = Callable[[np.ndarray], np.ndarray]  # (R, d) float64 -> logits (R,), >= 0 accepted
DAMPING = 0.01  # of the surrogate's Hessian on the training examples, as published
_STEPS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class SurrogateConfig(Config):
    """Of the local models."""

    draws: int = param(10_000, ge=10, le=1_000_000, doc="perturbations of a query")
    variance: float = param(0.1, gt=0, le=100, doc="of the first draws")
    growth: float = param(0.05, gt=0, le=100, doc="added to the variance until both decisions occur")
    max_variance: float = param(10.0, gt=0, le=1e4, doc="beyond it there is no surrogate")
    kernel_width: float | None = param(
        None, gt=0, le=1e6, doc="of the kernel; null: sqrt(d v), the typical distance of a draw"
    )
    labels: str = param(
        "soft", choices=("soft", "hard"), doc="what the draws are labelled with: sigma(f), or whether f >= 0"
    )
    c: float = param(1e4, gt=0, le=1e12, doc="inverse regularisation")


def local_surrogates(
    decide: Decide, x: np.ndarray, *, seed: int, config: SurrogateConfig | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A linear model around each query.

    Args:
        decide: the model's logits.
        x: (Q, d) queries.
        seed: of the perturbations, which are the same for every query.
        config: the defaults when None.

    Returns:
        (Q, D) float64 weights, the intercept last, and (Q,) float64 variances at which both decisions occurred.
        NaN where none did up to ``max_variance``.

    Raises:
        DataError: the model's logits are not finite.
    """
    config = SurrogateConfig() if config is None else config
    x = np.asarray(x, np.float64)
    noise = np.random.default_rng(seed).standard_normal((config.draws, x.shape[1]))
    weights, variance = np.full((len(x), x.shape[1] + 1), np.nan), np.full(len(x), np.nan)
    steps = np.arange(config.variance, config.max_variance + 1e-9, config.growth)
    for q in range(len(x)):  # a query is a data set of its own, thousands of draws
        for v in steps:
            logits = decide(x[q] + np.sqrt(v) * noise)
            if not np.isfinite(logits).all():
                raise DataError("the model's logits around a query are not finite")
            label = logits >= 0
            if label.any() and not label.all():
                target = expit(logits) if config.labels == "soft" else label.astype(np.float64)
                weights[q], variance[q] = _fit(x[q], noise, v, target, config), v
                break
    return weights, variance


def _fit(x: np.ndarray, noise: np.ndarray, variance: float, label: np.ndarray, config: SurrogateConfig) -> np.ndarray:
    """Weighted logistic regression in the coordinates of the noise, carried back to those of x."""
    width2 = noise.shape[1] * variance if config.kernel_width is None else config.kernel_width**2
    log_kernel = -variance * (noise**2).sum(axis=1) / width2
    kernel = np.exp(log_kernel - log_kernel.max())
    kernel *= len(kernel) / kernel.sum()
    design = np.column_stack([noise, np.ones(len(noise))])
    penalty = np.append(np.full(noise.shape[1], 1.0 / (config.c * variance)), 0.0)
    w = np.zeros(design.shape[1])

    def objective(w: np.ndarray) -> float:
        f = design @ w
        return float(kernel @ (np.logaddexp(0.0, f) - label * f) + 0.5 * penalty @ w**2)

    value = objective(w)
    for _ in range(_STEPS):
        p = expit(design @ w)
        gradient = design.T @ (kernel * (p - label)) + penalty * w
        curvature = (design * (kernel * p * (1 - p))[:, None]).T @ design + np.diag(penalty + 1e-10)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while objective(w - size * step) > value - 1e-4 * size * (step @ gradient) and size > 1e-6:
            size /= 2
        w = w - size * step
        if value - objective(w) <= 1e-9 * max(value, 1e-12):
            break
        value = objective(w)
    slope = w[:-1] / np.sqrt(variance)
    return np.append(slope, w[-1] - slope @ x)
