"""What deletions do to the logit of an input: influence functions, one Newton step, and the worst k deletions.

    g_i = (sigma(f(x_i)) - y_i) x~_i,   h_i = p_i (1 - p_i) x~_i x~_i',   H = (1/n) sum_i h_i + R + damping I
    first     w_S = w + (1/n) H^-1 sum_{i in S} g_i                      removal ADDS: the gradient that S cancelled is
              missing
    newton    w_S = w + [sum_{i not in S} h_i + n R]^-1 sum_{i in S} g_i     the curvature of S is missing too
    retrain   w_S = the minimiser without S
    a_i(x) = g_i' H^-1 x~ / n:   removal of i moves the logit of x by a_i, to first order
    F_k(x) = f(x) + sum of the k most NEGATIVE a_i(x), fewer if fewer are negative

F_k is the worst logit over all deletions of at most k examples of the linearised model, exactly: the sum separates, so
the worst set is a partial sort. As a minimum of functions linear in x it is concave. First order underestimates shifts
when S is large or the regulariser weak; damping > 0 (the published code adds 0.01 I) shrinks them further, so it is not
on the safe side.

Source: Koh & Liang, ICML 2017 (arXiv 1703.04730); Krishna et al., "Towards Bridging the Gaps between the Right to
Explanation and the Right to be Forgotten", ICML 2023 (arXiv 2302.04288), rebuilt from its abstract and code.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from scipy.special import expit

from contracts.errors import InvalidInput
from explain.counterfactuals.logistic import LogisticModel, curvature, retrain, with_one

Influence = Literal["first", "newton", "retrain"]
INFLUENCES: tuple[Influence, ...] = get_args(Influence)


def gradients(model: LogisticModel) -> np.ndarray:
    """g_i of every training example, (n, D)."""
    return (expit(model.x @ model.weights) - model.y)[:, None] * model.x


def hessian(model: LogisticModel, *, damping: float = 0.0) -> np.ndarray:
    """H of the mean loss with the model's own regulariser, (D, D)."""
    p, n = expit(model.x @ model.weights), len(model.y)
    own = curvature(model.x, (p * (1 - p))[None])[0] / n
    return own + np.diag(model.penalty) / n + damping * np.eye(len(own))


def influence_matrix(model: LogisticModel, x: np.ndarray, *, damping: float = 0.0) -> np.ndarray:
    """a_i(x) for Q inputs (Q, d): float64 (Q, n), in logits; negative = the removal pushes towards rejection."""
    solved = np.linalg.solve(hessian(model, damping=damping), with_one(x).T)
    return (gradients(model) @ solved / len(model.y)).T


def most_negative(values: np.ndarray, k: int) -> np.ndarray:
    """The k most negative entries of each row as a mask, bool (Q, n); fewer where fewer are negative, ties to the left.

    Raises:
        InvalidInput: not 0 <= k < n: an example must be left.
    """
    if not 0 <= k < values.shape[1]:
        raise InvalidInput(f"k = {k} is outside its allowed range: >= 0 and < {values.shape[1]}, the training examples")
    chosen = np.zeros(values.shape, bool)
    first = np.argsort(values, axis=1, kind="stable")[:, :k]
    np.put_along_axis(chosen, first, np.take_along_axis(values, first, axis=1) < 0, axis=1)
    return chosen


def worst_logit(model: LogisticModel, x: np.ndarray, *, k: int, damping: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """F_k of Q inputs and the deletions that attain it.

    Args:
        x: (Q, d).
        k: deletions allowed, 0 <= k < n.
        damping: added to the diagonal of H, >= 0.

    Returns:
        (Q,) float64 logits and (Q, n) bool deletions.
    """
    a = influence_matrix(model, x, damping=damping)
    removed = most_negative(a, k)
    return model.logits(x) + (a * removed).sum(axis=1), removed


def leave_out(
    model: LogisticModel,
    removed: np.ndarray,
    *,
    influence: Influence = "first",
    damping: float = 0.0,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Weights without each of B deletions, by one of the three ways.

    Args:
        removed: (B, n) bool.
        influence: "first", "newton" or "retrain".
        damping: added to the diagonal of H; not for "retrain".
        weights: (B, D) of local surrogates, one a deletion, to which the training examples are put; the model's own
            when None.

    Returns:
        (B, D) float64.

    Raises:
        InvalidInput: another way, or retraining surrogates, which were not trained on the training examples.
    """
    if influence not in INFLUENCES:
        raise InvalidInput(f"influence = {influence!r} is not one of {', '.join(INFLUENCES)}")
    if influence == "retrain":
        if weights is not None:
            raise InvalidInput("influence = 'retrain' is for the model itself, not for local surrogates of another")
        return retrain(model, removed)
    if weights is None and influence == "first":
        missing = removed.astype(np.float64) @ gradients(model)
        return model.weights + np.linalg.solve(hessian(model, damping=damping), missing.T).T / len(model.y)
    start = np.tile(model.weights, (len(removed), 1)) if weights is None else weights
    p = expit(start @ model.x.T)
    missing = (removed * (p - model.y)) @ model.x
    own = summed_hessian(model, p, removed if influence == "newton" else np.zeros_like(removed), damping=damping)
    return start + np.linalg.solve(own, missing[:, :, None])[:, :, 0]


def newton_step(model: LogisticModel, weights: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """One Newton step on what each deletion leaves, from weights (B, D): (B, D)."""
    p = expit(weights @ model.x.T)
    gradient = (~removed * (p - model.y)) @ model.x + model.penalty * weights
    return weights - np.linalg.solve(summed_hessian(model, p, removed), gradient[:, :, None])[:, :, 0]


def influence_at(
    model: LogisticModel, weights: np.ndarray, removed: np.ndarray, points: np.ndarray, *, damping: float = 0.0
) -> np.ndarray:
    """a_i of the model as it is after each of B deletions; for an example already removed, minus the effect of its
    return.

    Args:
        weights: (B, D).
        removed: (B, n) bool.
        points: (B or 1, Q, D), a one last.
        damping: added to the diagonal of H.

    Returns:
        (B, Q, n) float64, in logits.
    """
    p = expit(weights @ model.x.T)
    points = np.broadcast_to(points, (len(weights), *points.shape[1:])).transpose(0, 2, 1)
    solved = np.linalg.solve(summed_hessian(model, p, removed, damping=damping), points)
    return (model.x @ solved).transpose(0, 2, 1) * (p - model.y)[:, None]


def summed_hessian(model: LogisticModel, p: np.ndarray, removed: np.ndarray, *, damping: float = 0.0) -> np.ndarray:
    """sum_{i not in S} h_i + n R + n damping I at predictions p (B, n), for B deletions: (B, D, D)."""
    return curvature(model.x, ~removed * p * (1 - p)) + np.diag(model.penalty + damping * len(model.y))
