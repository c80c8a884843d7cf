"""Wachter's counterfactual: the plain one, without a thought for deletions. Closed form, and a solver for any
differentiable model.

    closed form, linear model, p = 2    x' = x + (margin - f) v / ||v||^2      p = 1: the same move along the largest
                                        |v_j| alone
    solver   min_x' ReLU(aim - f(x'))^2 + lambda ||x' - x||_p,   Adam, lr 0.5, from x
             lambda starts at 2.5; success: lambda * 2; the first failure after a success: bisection; failure first:
             lambda / 2 1/10 of the iterations a lambda at most; a lambda stops when the loss changes by less than 1e-5
             (relative) success = the point where it stops is valid, f >= target; of all valid points visited the
             nearest is kept

A linear model's minimiser lies at f = aim - lambda / (2 ||v||), along v: with the published aim = target it is never
valid, and what is kept is a point of Adam's overshoot, up to 1.2 times as far as needed. With aim = target + gap the
largest lambda that succeeds puts it at f = target: the closed form. The step falls as 1 / sqrt(iteration) within a
lambda, or Adam at 0.5 would circle.

Source: Wachter, Mittelstadt & Russell 2017 (arXiv 1711.00399); lambda schedule of the published ROCERF code (SCFE).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from contracts.errors import DataError
from contracts.params import Config, param
from explain.counterfactuals.logistic import LogisticModel
from explain.counterfactuals.nearest import Actions, Counterfactuals, check_norm, nearest_valid
from explain.counterfactuals.rocerf import MARGIN

Gradient = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8
_PATIENCE = 10  # iterations in a row; a single small change is often the turning point of an oscillation


@dataclass(frozen=True, kw_only=True, slots=True)
class SolverConfig(Config):
    """Of the gradient solver."""

    lr: float = param(0.5, gt=0, le=10, doc="Adam's step")
    gap: float = param(0.1, gt=0, le=100, unit="logits", doc="the loss aims this far beyond what counts as valid")
    start: float = param(2.5, gt=0, le=1e6, doc="first lambda")
    factor: float = param(2.0, gt=1, le=100, doc="by which lambda grows or falls before it is bracketed")
    iterations: int = param(100_000, ge=10, le=10_000_000, doc="in all, of each query")
    per_lambda: float = param(0.1, gt=0, le=1, doc="share of them for one lambda at most")
    tolerance: float = param(1e-5, gt=0, lt=1, doc="relative change of the loss that ends a lambda")
    bracket: float = param(1e-2, gt=0, lt=1, doc="relative width of the bracket of lambda that ends the search")


def wachter_counterfactual(
    model: LogisticModel, x: np.ndarray, *, norm: int = 2, margin: float = MARGIN, actions: Actions | None = None
) -> Counterfactuals:
    """The nearest accepted point of a logistic model, in closed form.

    Args:
        model: fitted.
        x: (Q, d) queries.
        norm: 1 or 2.
        margin: smallest logit that counts as accepted, > 0.
        actions: what may change; anything when None.

    Returns:
        One counterfactual a query; a query that is accepted already is its own.
    """
    cuts = np.tile(model.weights, (len(x), 1, 1))
    x_cf, found = nearest_valid(cuts, x, margin=margin, norm=norm, actions=actions)
    return Counterfactuals(x_cf, found, np.ones(len(x), np.int64))


def solve(
    logits_and_gradient: Gradient,
    x: np.ndarray,
    *,
    target: float = 0.0,
    norm: int = 2,
    config: SolverConfig | None = None,
    actions: Actions | None = None,
) -> Counterfactuals:
    """Counterfactuals of any differentiable model by the penalised objective, all queries in step.

    Args:
        logits_and_gradient: (points (R, d), rows (R,) the queries they belong to) -> f (R,), df/dx (R, d).
        x: (Q, d) queries.
        target: a point is valid where f >= target.
        norm: 1 or 2.
        config: of the solver; the defaults when None.
        actions: immutable features get no gradient; whole numbers are not supported here (use the closed form).

    Returns:
        ``found`` is False where no valid point was visited.

    Raises:
        DataError: the model gives a logit or gradient that is not finite.
    """
    check_norm(norm)
    config = SolverConfig() if config is None else config
    x = np.asarray(x, np.float64)
    free = np.ones(x.shape[1], bool) if actions is None else actions.free
    num = len(x)
    best, best_cost = x.copy(), np.full(num, np.inf)
    lam, low, high = np.full(num, config.start), np.zeros(num), np.full(num, np.inf)  # low succeeded, high failed
    left = np.full(num, config.iterations)
    while True:
        live = np.flatnonzero((left > 0) & ~(high - low <= config.bracket * low) & (lam > 1e-12) & (lam < 1e12))
        if not len(live):
            break
        most = min(max(1, int(config.per_lambda * config.iterations)), int(left[live].min()))
        found, used = _descend(
            logits_and_gradient, x, live, lam[live], best, best_cost, free, most, target, norm, config
        )
        left[live] -= used
        low[live[found]], high[live[~found]] = lam[live[found]], lam[live[~found]]
        bracketed = (low > 0) & np.isfinite(high)
        middle = np.where(np.isfinite(high), (low + high) / 2, low * config.factor)
        lam = np.where(bracketed, middle, np.where(low > 0, low * config.factor, high / config.factor))
    return Counterfactuals(best, np.isfinite(best_cost), np.ones(num, np.int64))


def _descend(
    model: Gradient,
    x: np.ndarray,
    live: np.ndarray,
    lam: np.ndarray,
    best: np.ndarray,
    best_cost: np.ndarray,
    free: np.ndarray,
    most: int,
    target: float,
    norm: int,
    config: SolverConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Adam at one lambda a query; ``best`` and ``best_cost`` are updated. Whether the last point is valid, iterations
    used."""
    found, used = np.zeros(len(live), bool), np.zeros(len(live), np.int64)
    at = np.arange(len(live))  # of ``live``, those still moving
    point, first, second = x[live].copy(), np.zeros((len(live), x.shape[1])), np.zeros((len(live), x.shape[1]))
    before, calm = np.full(len(live), np.inf), np.zeros(len(live), np.int64)
    for t in range(1, most + 1):
        rows = live[at]
        f, slope = model(point[at], rows)
        if not (np.isfinite(f).all() and np.isfinite(slope).all()):
            raise DataError("the model's logits or gradients at a counterfactual are not finite")
        delta = point[at] - x[rows]
        size = np.linalg.norm(delta, ord=norm, axis=1)
        valid = f >= target
        nearer = valid & (size < best_cost[rows])
        best[rows[nearer]], best_cost[rows[nearer]] = point[at[nearer]], size[nearer]
        found[at] = valid
        used[at] = t
        short = np.maximum(target + config.gap - f, 0.0)
        loss = short**2 + lam[at] * size
        calm[at] = np.where(
            np.abs(before[at] - loss) <= config.tolerance * np.maximum(np.abs(loss), 1e-12), calm[at] + 1, 0
        )
        moving, before[at] = calm[at] < _PATIENCE, loss
        pull = np.sign(delta) if norm == 1 else delta / np.maximum(size, 1e-12)[:, None]
        gradient = (-2 * short[:, None] * slope + lam[at, None] * pull) * free
        first[at] = _BETA1 * first[at] + (1 - _BETA1) * gradient
        second[at] = _BETA2 * second[at] + (1 - _BETA2) * gradient**2
        scaled = (first[at] / (1 - _BETA1**t)) / (np.sqrt(second[at] / (1 - _BETA2**t)) + _EPS)
        point[at] -= config.lr / np.sqrt(t) * scaled
        at = at[moving]
        if not len(at):
            break
    return found, used


def linear(model: LogisticModel) -> Gradient:
    """A logistic model as :func:`solve` wants it."""

    def call(points: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return model.logits(points), np.broadcast_to(model.weights[:-1], points.shape)

    return call
