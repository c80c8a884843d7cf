"""ROAR: counterfactuals for a model whose weights may each be off by delta_max.

    min_x' max_{|d_j| <= delta_max} BCE(sigma((w + d) . x~'), 1) + lambda ||x' - x||_p
    the inner maximum is a linear program over a box: d = -delta_max sign(x~'), so f_worst = w . x~' - delta_max
    ||x~'||_1

The loss is convex in x'; Adam, all queries and all lambdas in step. lambda is the largest with which as many validation
queries as with any are valid in the worst case. The box knows nothing of deletions: it is a baseline that pays for
shifts no deletion can cause.

Source: Upadhyay, Joshi & Lakkaraju, NeurIPS 2021 (arXiv 2102.13620).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from contracts.params import Config, param
from explain.counterfactuals.logistic import LogisticModel, with_one
from explain.counterfactuals.nearest import Actions, Counterfactuals, check_norm


@dataclass(frozen=True, kw_only=True, slots=True)
class RoarConfig(Config):
    """Of the baseline."""

    delta_max: float = param(0.1, ge=0, le=100, doc="largest error of each weight, the intercept included")
    lambdas: tuple[float, ...] = param((0.003, 0.01, 0.03, 0.1, 0.3, 1.0), gt=0, le=1e6, doc="lambdas tried")
    lr: float = param(0.2, gt=0, le=10, doc="Adam's step, falling as 1 / sqrt(iteration)")
    iterations: int = param(1000, ge=1, le=1_000_000, doc="of Adam")


def worst_shifted_logit(weights: np.ndarray, x: np.ndarray, *, delta_max: float) -> np.ndarray:
    """min over the box of (w + d) . x~: (..., d) -> (...)."""
    points = with_one(x)
    return points @ weights - delta_max * np.abs(points).sum(axis=-1)


def roar(
    model: LogisticModel,
    x: np.ndarray,
    *,
    validation: np.ndarray,
    norm: int = 2,
    config: RoarConfig | None = None,
    actions: Actions | None = None,
) -> Counterfactuals:
    """ROAR counterfactuals of Q queries.

    Args:
        model: fitted.
        x: (Q, d) queries.
        validation: (V, d) other rejected inputs, on which lambda is chosen; V = 0 takes the smallest lambda.
        norm: 1 or 2.
        config: the defaults when None.
        actions: immutable features do not move; whole numbers are not supported by this baseline and move freely.

    Returns:
        ``found`` where the model as it is accepts the point: worst-case validity is the aim, not the condition.
    """
    check_norm(norm)
    config = RoarConfig() if config is None else config
    free = np.ones(x.shape[1], bool) if actions is None else actions.free
    lambdas = np.sort(np.array(config.lambdas))
    tried = _descend(model, np.asarray(validation, np.float64), lambdas, free, norm, config)
    valid = worst_shifted_logit(model.weights, tried, delta_max=config.delta_max) >= 0  # (L, V)
    share = valid.mean(axis=1) if valid.size else np.zeros(len(lambdas))
    best = int(np.flatnonzero(share == share.max())[-1]) if share.any() else 0
    x_cf = _descend(model, np.asarray(x, np.float64), lambdas[best : best + 1], free, norm, config)[0]
    found = model.logits(x_cf) >= 0
    return Counterfactuals(np.where(found[:, None], x_cf, x), found, np.ones(len(x), np.int64))


def _descend(
    model: LogisticModel, x: np.ndarray, lambdas: np.ndarray, free: np.ndarray, norm: int, config: RoarConfig
) -> np.ndarray:
    """Adam from x: (L, Q, d) for L lambdas."""
    point = np.repeat(x[None], len(lambdas), axis=0)
    first, second = np.zeros_like(point), np.zeros_like(point)
    for t in range(1, config.iterations + 1):
        f = worst_shifted_logit(model.weights, point, delta_max=config.delta_max)
        slope = model.weights[:-1] - config.delta_max * np.sign(point)
        delta = point - x
        size = np.linalg.norm(delta, axis=2, keepdims=True)
        pull = np.sign(delta) if norm == 1 else delta / np.maximum(size, 1e-12)
        gradient = (-expit(-f)[:, :, None] * slope + lambdas[:, None, None] * pull) * free
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        scaled = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        point = point - config.lr / np.sqrt(t) * scaled
    return point
