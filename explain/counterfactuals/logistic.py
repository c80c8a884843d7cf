"""A logistic model that remembers its training examples, and its exact retraining without any of them, many sets at a
time.

    J(w) = sum_i softplus(-s_i f_w(x_i)) + ||w_1..d||^2 / (2 C),   f_w(x) = w . x~,  x~ = (x, 1),  s_i = 2 y_i - 1
    x~ (n, D), w (D,), D = d + 1; the intercept w_D is not penalised

scikit-learn's LogisticRegression(C): in the mean loss of n examples the regulariser is R = I / (C n), zero on the
intercept. C stays as it is after a deletion, so the sum of losses loses the terms of the set S and nothing else
changes. J is strictly convex, so "retraining without S" is one point, found here by Newton steps to machine precision
for B sets at once: real retraining, no approximation. The inputs keep the scale they had: a scaler refitted after the
deletion would be another change of f.

Whole-batch and float64: memory is n D + B n + B D^2. Not for a data set that does not fit in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from contracts.errors import DataError, Diverged, InvalidInput

_BLOCK = 2**22  # float64 numbers of outer products, or of (sets x examples), held at a time
_MAX_STEPS = 100
_MAX_HALVINGS = 30


@dataclass(frozen=True, eq=False)
class LogisticModel:
    """A fitted model with what it was fitted on; rows ordered by example id.

    Attributes:
        weights: (D,) float64, the intercept last.
        x: (n, D) float64, a column of ones last.
        y: (n,) float64, 1 = the favourable class.
        example_id: (n,) int64, ascending.
        c: inverse strength of the regulariser, as in scikit-learn.
    """

    weights: np.ndarray
    x: np.ndarray
    y: np.ndarray
    example_id: np.ndarray
    c: float

    @property
    def penalty(self) -> np.ndarray:
        """(D,) float64: the diagonal of n R, 1 / C, zero on the intercept."""
        return np.append(np.full(self.x.shape[1] - 1, 1.0 / self.c), 0.0)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """f of (Q, d) inputs, float64 (Q,). f >= 0 is the favourable decision."""
        return with_one(x) @ self.weights

    def removed(self, ids: np.ndarray) -> np.ndarray:
        """A deletion as a row of a mask, bool (n,).

        Raises:
            DataError: an id that is not among the training examples.
        """
        ids = np.asarray(ids, np.int64)
        unknown = ids[~np.isin(ids, self.example_id)]
        if len(unknown):
            raise DataError("a deletion names examples that the model was not trained on", example_ids=unknown)
        return np.isin(self.example_id, ids)


def with_one(x: np.ndarray) -> np.ndarray:
    """(..., d) -> (..., d + 1) float64, a one last."""
    x = np.asarray(x, np.float64)
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1)


def fit_logistic(x: np.ndarray, y: np.ndarray, example_id: np.ndarray, *, c: float) -> LogisticModel:
    """Fit to convergence.

    Args:
        x: (n, d) inputs on the scale in which distances are to be measured.
        y: (n,) 1 = favourable, 0 = not.
        example_id: (n,) unique ids; the result does not depend on the order of the rows.
        c: inverse regularisation, > 0. Larger = weaker, and first-order influence is worth less.

    Raises:
        InvalidInput: shapes or c out of range.
        DataError: ids used twice, labels other than 0 and 1, values that are not finite, or one class only.
    """
    x, y, example_id = np.asarray(x, np.float64), np.asarray(y), np.asarray(example_id, np.int64)
    if x.ndim != 2 or y.shape != x.shape[:1] or example_id.shape != y.shape or not x.shape[1]:
        raise InvalidInput(f"x {x.shape}, y {y.shape}, example_id {example_id.shape}: needs (n, d), (n,), (n,), d >= 1")
    if not c > 0:
        raise InvalidInput(f"c = {c} is outside its allowed range: > 0")
    order = np.argsort(example_id, kind="stable")
    x, y, example_id = x[order], y[order], example_id[order]
    doubled = example_id[1:][example_id[1:] == example_id[:-1]]
    if len(doubled):
        raise DataError("ids are used twice", example_ids=doubled)
    if not np.isin(y, (0, 1)).all():
        raise DataError("labels other than 0 and 1", example_ids=example_id[~np.isin(y, (0, 1))])
    broken = ~np.isfinite(x).all(axis=1)
    if broken.any():
        raise DataError("inputs are not finite", example_ids=example_id[broken])
    blank = LogisticModel(np.zeros(x.shape[1] + 1), with_one(x), y.astype(np.float64), example_id, float(c))
    weights = retrain(blank, np.zeros((1, len(y)), bool))[0]
    return LogisticModel(weights, blank.x, blank.y, example_id, float(c))


def retrain(model: LogisticModel, removed: np.ndarray) -> np.ndarray:
    """The model really trained without each of B sets.

    Args:
        model: gives the examples, C and a starting point, which does not change the result beyond rounding.
        removed: (B, n) bool, True = deleted.

    Returns:
        (B, D) float64: minimisers of J without the deleted terms; gradient below 1e-9 of n.

    Raises:
        InvalidInput: a mask of another shape.
        DataError: a deletion that leaves one class only (the intercept has no minimum).
        Diverged: Newton's method did not converge.
    """
    removed = np.asarray(removed)
    if removed.dtype != bool or removed.ndim != 2 or removed.shape[1] != len(model.y):
        raise InvalidInput(f"removed {removed.dtype} {removed.shape}: needs a mask, bool (B, {len(model.y)})")
    size = max(1, _BLOCK // max(len(model.y), model.x.shape[1] ** 2))
    parts = [_newton(model, ~removed[i : i + size]) for i in range(0, len(removed), size)]
    return np.concatenate(parts) if parts else np.empty((0, model.x.shape[1]))


def curvature(x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """sum_i h_bi x_i x_i' for B weightings, (B, D, D), with at most a block of outer products in memory."""
    d = x.shape[1]
    total = np.zeros((len(h), d * d))
    size = max(1, _BLOCK // (d * d))
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        total += h[:, start : start + size] @ (rows[:, :, None] * rows[:, None, :]).reshape(len(rows), d * d)
    return total.reshape(len(h), d, d)


def _newton(model: LogisticModel, keep: np.ndarray) -> np.ndarray:
    positive = (keep & (model.y == 1)).sum(axis=1)
    if ((positive == 0) | (positive == keep.sum(axis=1))).any():
        raise DataError("the training examples left are of one class only, to which no logistic model can be fitted")
    x, keep = model.x, keep.astype(np.float64)
    w = np.tile(model.weights, (len(keep), 1))
    value = _objective(model, keep, w)
    for _ in range(_MAX_STEPS):
        p = expit(w @ x.T)
        gradient = (keep * (p - model.y)) @ x + model.penalty * w
        if np.abs(gradient).max() <= 1e-9 * len(model.y):
            return w
        hessian = curvature(x, keep * p * (1 - p)) + np.diag(model.penalty)
        # Far from the minimum, where p is 0 or 1 everywhere, the intercept has no curvature: a floor keeps the step
        # finite.
        hessian += 1e-10 * np.eye(x.shape[1])
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        slope, size = (step * gradient).sum(axis=1), np.ones(len(w))
        for _ in range(_MAX_HALVINGS):
            trial = _objective(model, keep, w - size[:, None] * step)
            worse = trial > value - 1e-4 * size * slope + 1e-12 * np.abs(value)
            if not worse.any():
                break
            size[worse] /= 2
        w, value = w - size[:, None] * step, trial
    raise Diverged(f"Newton's method did not fit the logistic model in {_MAX_STEPS} steps (C = {model.c:g})")


def _objective(model: LogisticModel, keep: np.ndarray, w: np.ndarray) -> np.ndarray:
    losses = np.logaddexp(0.0, (1 - 2 * model.y) * (w @ model.x.T))
    return (keep * losses).sum(axis=1) + 0.5 * (w**2 @ model.penalty)
