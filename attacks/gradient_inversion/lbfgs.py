"""Limited-memory BFGS on R independent problems at once, without line search.

    d_k = -H_k g_k by the two-loop recursion over the last ``history`` pairs (s, y) with s.y > 1e-10
    H_0 = (s.y / y.y) I of the newest pair;   step = lr, of the first iteration min(1, 1 / ||g||_1) lr

Every row of ``z`` (R, d) is a problem of its own, with its own pairs; the rows share the evaluations. The iterates are
those of torch.optim.LBFGS (line_search_fn=None, one iteration a step) on each row. Without line search it may diverge:
the caller keeps the best iterate.

Source: Nocedal & Wright, "Numerical Optimization", algorithm 7.4; the settings of DLG (Zhu et al., NeurIPS 2019).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from contracts.progress import Progress, silent

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
_CURVATURE = 1e-10


def lbfgs(
    evaluate: Evaluate,
    start: Tensor,
    *,
    steps: int,
    lr: float = 1.0,
    history: int = 100,
    tolerance: float = 0.0,
    progress: Progress = silent,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise row by row.

    Args:
        evaluate: z (R, d) -> losses (R,), gradients (R, d).
        start: (R, d), untouched.
        steps: iterations, at least 1.
        tolerance: a row whose loss is not above it, or not finite any more, stays where it is; it ends when all rows
            do.

    Returns:
        Best z (R, d), its loss (R,), and int64 iterations (R,).
    """
    z = start.clone()
    loss, slope = evaluate(z)
    best, best_loss = z.clone(), loss.clone()
    taken = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    going = loss.isfinite() & (loss > tolerance)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y (R, d), rho (R,), 0 where this row has no such pair
    scale = torch.ones_like(loss)
    size = torch.minimum(torch.ones_like(loss), 1 / slope.abs().sum(1)) * lr
    for step in range(steps):
        if not bool(going.any()):
            break
        move = size[:, None] * _direction(slope, pairs, scale)
        move = torch.where(going[:, None], move, 0.0)
        z = z + move
        loss, new = evaluate(z)
        change = new - slope
        curve = (change * move).sum(1)
        good = going & (curve > _CURVATURE) & curve.isfinite()
        pairs.append((move, change.nan_to_num(), torch.where(good, 1 / curve, 0.0)))
        pairs = pairs[-history:]
        scale = torch.where(good, curve / change.square().sum(1), scale)
        slope, size = new, torch.full_like(size, lr)
        taken += going
        better = going & (loss < best_loss)
        best, best_loss = torch.where(better[:, None], z, best), torch.where(better, loss, best_loss)
        going = going & loss.isfinite() & slope.isfinite().all(1) & (loss > tolerance)
        if step % 20 == 0:
            progress(step, steps, "L-BFGS")
    return best, best_loss, taken


def _direction(slope: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]], scale: Tensor) -> Tensor:
    """-H g for every row."""
    q, weights = -slope, []
    for s, y, rho in reversed(pairs):
        weight = rho * (s * q).sum(1)
        weights.append(weight)
        q = q - weight[:, None] * y
    q = scale[:, None] * q
    for (s, y, rho), weight in zip(pairs, reversed(weights), strict=True):
        q = q + (weight - rho * (y * q).sum(1))[:, None] * s
    return q
