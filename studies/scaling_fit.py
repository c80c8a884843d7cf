"""Fit the scaling laws of quality pools to learning curves: full grid, then refinement, then a bootstrap.

    min over a, d (shared) and b_i, tau_i (each pool)   sum_i sum_j (y(n_ij; a, b_i, tau_i, d) - error_ij)^2

With x(tau) = log(a n_0 / 1e5) + sum_k delta^k log(n_k / n_{k-1}) (or log of n_eff) the law is exp(b x) + d: the passes
depend on tau alone, the points on (b, tau) alone, and the sum of squares is a quadratic in d. So

1. every (a, d, b, tau) of the grid is evaluated, a and d shared, in one array pass a pool and a value of a;
2. from the 10 best (a, d) at once, Levenberg-Marquardt in all 2 + 2P variables (log a, d, log -b_i, log tau_i). A
   Nelder-Mead search over (log a, d) with the pools solved at each point ended in the same minima to 6 digits and took
   over 20 times as long; the tests hold a Nelder-Mead search in all variables against the result;
3. residuals of the fit, scaled by the degrees of freedom, give the noise of simulated curves, which are fitted again,
   a and d included: the 5% and 95% quantiles are the interval. A small |b| leaves tau open; the interval shows it.

Axes: P pools, R restarts or replicates, J points of a curve, K passes, T grid points, M = 2 + 2P variables. Source: see
studies.scaling_laws, section 4 and the authors' code, whose grid is shuffled and left after 100,000 points; here every
point is visited.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from contracts.errors import InvalidInput
from studies.scaling_laws import NORMALISER, Array, Compat, Objective, PoolLaw, check_form, passes

STARTS = 10
_STEPS = 100
_LOG_A, _LOG_B, _LOG_TAU = (-40.0, 60.0), (math.log(1e-6), math.log(50.0)), (math.log(0.02), math.log(1e4))
_LN2 = math.log(2.0)
_RISE = 2.0  # standard errors by which a curve may end above its minimum


@dataclass(frozen=True, eq=False)
class PoolCurve:
    """Errors measured on one pool, one training a point and seed.

    Attributes:
        pool_id: name of the pool.
        pool_size: its examples, N.
        samples_seen: float64 (J,), n of each point, increasing, J >= 3.
        errors: float64 (S, J) in [0, 1], a row a seed.
        stderr: standard error of the mean error at a point; when NaN, the spread between seeds, pooled over points,
            which one seed does not have; then a rise cannot be told from noise and is not judged.
    """

    pool_id: str
    pool_size: float
    samples_seen: Array
    errors: Array
    stderr: float = math.nan

    def __post_init__(self) -> None:
        n, errors = np.asarray(self.samples_seen, np.float64), np.atleast_2d(np.asarray(self.errors, np.float64))
        if n.ndim != 1 or len(n) < 3 or errors.shape[1:] != n.shape or not len(errors):
            raise InvalidInput(
                f"pool {self.pool_id}: samples_seen {n.shape} and errors {errors.shape}; (J,) and (S, J), J >= 3, are "
                "needed"
            )
        if not (np.isfinite(n).all() and n[0] > 0 and (np.diff(n) > 0).all()):
            raise InvalidInput(f"pool {self.pool_id}: samples_seen {n.tolist()} must be positive and increasing")
        if not ((errors >= 0) & (errors <= 1)).all():
            raise InvalidInput(f"pool {self.pool_id}: errors must lie in [0, 1]")
        object.__setattr__(self, "samples_seen", n)
        object.__setattr__(self, "errors", errors)
        if math.isnan(self.stderr) and len(errors) > 1:
            pooled = math.sqrt(float(errors.var(0, ddof=1).mean()) / len(errors))
            object.__setattr__(self, "stderr", pooled)

    @property
    def mean(self) -> Array:
        """float64 (J,), mean error over seeds."""
        return np.asarray(self.errors.mean(0))

    @property
    def rise(self) -> float:
        """By how many standard errors of the difference the last point lies above the minimum; NaN when not known."""
        above = float(self.mean[-1] - self.mean.min())
        if math.isnan(self.stderr):
            return math.nan
        return (
            above / (math.sqrt(2.0) * self.stderr)
            if above > 0 and self.stderr > 0
            else (math.inf if above > 0 else 0.0)
        )


@dataclass(frozen=True, eq=False)
class Grid:
    """Values tried: a > 0 and d >= 0 (shared), b < 0, tau > 0. A single a, d or tau is held in the refinement."""

    a: Sequence[float]
    d: Sequence[float]
    b: Sequence[float] = field(default_factory=lambda: np.linspace(-0.005, -0.5, 100).tolist())
    tau: Sequence[float] = field(default_factory=lambda: np.linspace(1.0, 10.0, 100).tolist())

    def __post_init__(self) -> None:
        for name, sign, allowed in (("a", 1, "> 0"), ("b", -1, "< 0"), ("tau", 1, "> 0")):
            values = np.asarray(getattr(self, name), np.float64)
            if not values.size or not (np.isfinite(values) & (sign * values > 0)).all():
                raise InvalidInput(f"Grid.{name} must be finite numbers {allowed}, and at least one")
        if not len(self.d) or not all(0 <= v < math.inf for v in self.d):
            raise InvalidInput("Grid.d must be finite numbers >= 0, and at least one")


OFFICIAL_GRID = Grid(a=(0.01, 0.015, 0.018, 0.02, 0.022, 0.025, 0.03), d=np.linspace(0.02, 0.15, 10).tolist())


@dataclass(frozen=True, eq=False)
class PoolFit:
    """The fitted law of one pool.

    Attributes:
        pool_id: name of the pool.
        law: its law.
        sse: sum of squared residuals of its points.
        residuals: (J,) measured minus fitted.
        on_bound: those of a, b, tau, d that the refinement left at the end of their range (d = 0 apart, which means
            that no error is irreducible): the curves do not determine them.
        b_lo, b_hi, tau_lo, tau_hi: bootstrap 90% interval; NaN without a bootstrap or without degrees of freedom.
    """

    pool_id: str
    law: PoolLaw
    sse: float
    residuals: Array
    on_bound: tuple[str, ...] = ()
    b_lo: float = math.nan
    b_hi: float = math.nan
    tau_lo: float = math.nan
    tau_hi: float = math.nan


@dataclass(frozen=True, eq=False)
class PoolFits:
    """``fits`` in the order of the curves; ``refused``: pool_id -> why its curve cannot be described by the law."""

    fits: tuple[PoolFit, ...]
    refused: dict[str, str]

    @property
    def laws(self) -> tuple[PoolLaw, ...]:
        return tuple(f.law for f in self.fits)


def scale_free_grid(curves: Sequence[PoolCurve]) -> Grid:
    """A grid for curves of any size: a such that log(a n / 1e5) is 0 to 10 at the fewest samples seen, d up to the
    least error, b from -0.005 to -2, tau from 0.25 to 250 passes.
    """
    fewest = min(c.samples_seen[0] for c in curves)
    least = min(float(c.mean.min()) for c in curves)
    return Grid(
        a=(np.exp(np.arange(0.0, 10.1, 0.5)) * NORMALISER / fewest).tolist(),
        d=np.linspace(0.0, 0.95 * least, 12).tolist() if least > 0 else [0.0],
        b=(-np.geomspace(0.005, 2.0, 60)).tolist(),
        tau=np.geomspace(0.25, 250.0, 40).tolist(),
    )


def fit_pool_laws(
    curves: Sequence[PoolCurve],
    *,
    objective: Objective = "effective_utility",
    compat: Compat = "paper",
    grid: Grid | None = None,
    refine: bool = True,
    bootstrap: int = 200,
    seed: int = 0,
) -> PoolFits:
    """Laws of several pools with one a and one d.

    Args:
        curves: P >= 1 curves with different pool ids.
        objective: the form of the law.
        compat: "official" fits the form of the authors' code.
        grid: values tried; :func:`scale_free_grid` of the curves when None. Values of d that are not below every mean
            error are left out.
        refine: leave the grid; without it the result is its best point.
        bootstrap: simulated curves for the intervals; 0 for none.
        seed: of the bootstrap.

    Returns:
        Fits and refusals. A pool whose last point lies more than 2 standard errors above its minimum is refused: the
        law cannot rise. Refused pools have no influence on a and d; when all are refused there is no fit.

    Raises:
        InvalidInput: no curves, a pool id used twice, an unknown form, or no d of the grid below the least error.
    """
    check_form(objective, compat)
    names = [c.pool_id for c in curves]
    if not names or len(set(names)) < len(names):
        raise InvalidInput(f"pools {', '.join(names) or '(none)'}: one curve a pool, and at least one, is needed")
    if bootstrap < 0:
        raise InvalidInput(f"bootstrap = {bootstrap} must be >= 0")
    refused = {
        c.pool_id: f"its last error is {c.rise:.1f} standard errors above its least: the law cannot rise"
        for c in curves
        if c.rise > _RISE
    }
    kept = [c for c in curves if c.pool_id not in refused]
    if not kept:
        return PoolFits((), refused)
    grid = scale_free_grid(kept) if grid is None else grid
    problem = _Problem(kept, objective=objective, compat=compat)
    moves = [len(grid.a) > 1, len(grid.d) > 1, *[True] * len(kept), *[len(grid.tau) > 1] * len(kept)]
    free = np.array(moves) & ([refine] * 2 + [True] * 2 * len(kept))
    theta_RM, sse_R = problem.scan(grid)
    if refine:
        theta_RM, sse_R = problem.refine(theta_RM, free, problem.y_P1J)
    found_M = theta_RM[sse_R.argmin()]
    spread_P4 = problem.bootstrap(found_M, free, num=bootstrap, seed=seed)
    log_a, d, u_P, v_P = problem.split(found_M[None])
    fits = []
    for p, curve in enumerate(kept):
        law = PoolLaw(
            a=float(np.exp(log_a[0])),
            d=float(d[0]),
            b=float(-np.exp(u_P[p, 0])),
            tau=float(np.exp(v_P[p, 0])),
            objective=objective,
            compat=compat,
        )
        residuals = curve.mean - law.error(curve.samples_seen, pool_size=curve.pool_size)
        at_end = problem.on_bound(float(log_a[0]), float(d[0]), float(u_P[p, 0]), float(v_P[p, 0]))
        sse = float(residuals @ residuals)
        fits.append(PoolFit(curve.pool_id, law, sse, residuals, at_end, *spread_P4[p].tolist()))
    return PoolFits(tuple(fits), refused)


class _Problem:
    """The curves padded to common J and K; padding has weight 0."""

    def __init__(self, curves: Sequence[PoolCurve], *, objective: Objective, compat: Compat) -> None:
        num, points = len(curves), max(len(c.samples_seen) for c in curves)
        split = [passes(c.samples_seen, c.pool_size) for c in curves]
        depth = max(new.shape[1] for new, _ in split)
        self.utility, self.official = objective == "effective_utility", compat == "official"
        self.official &= self.utility
        self.y_P1J, self.w_P1J = np.zeros((num, 1, points)), np.zeros((num, 1, points))
        self.log_n0_P1J = np.zeros((num, 1, points))
        # What delta^k multiplies: log(n_k / n_{k-1}) for k >= 1, or the new samples of pass k.
        self.step_PKJ = np.zeros((num, depth, points))
        for p, (curve, (new_JK, seen_JK)) in enumerate(zip(curves, split, strict=True)):
            j, k = new_JK.shape
            self.y_P1J[p, 0, :j], self.w_P1J[p, 0, :j] = curve.mean, 1.0
            self.log_n0_P1J[p, 0, :j] = np.log(seen_JK[:, 0])
            if self.utility:
                self.step_PKJ[p, 1:k, :j] = np.diff(np.log(seen_JK), axis=1).T
            else:
                self.step_PKJ[p, :k, :j] = new_JK.T
                self.step_PKJ[p, 0, j:] = 1.0  # padding: a logarithm that exists
        self.k_K = np.arange(depth)
        self.least = min(float(c.mean.min()) for c in curves)

    def passes_at(self, v_PR: Array) -> tuple[Array, Array, Array]:
        """x without log(a / 1e5), its derivative in v = log tau, and the part of x from repetitions; each (P, R, J)."""
        halvings_PRK = self.k_K * np.exp(-v_PR)[..., None]
        delta_PRK = np.exp(-_LN2 * halvings_PRK)
        total_PRJ = delta_PRK @ self.step_PKJ
        slope_PRJ = (delta_PRK * (_LN2 * halvings_PRK)) @ self.step_PKJ  # d delta^k / d log tau = delta^k k ln2 / tau
        if self.utility:
            return self.log_n0_P1J + total_PRJ, slope_PRJ, total_PRJ
        return np.log(total_PRJ), slope_PRJ / total_PRJ, total_PRJ

    def split(self, theta_RM: Array) -> tuple[Array, Array, Array, Array]:
        """log a (R,), d (R,), u = log -b (P, R), v = log tau (P, R)."""
        num = len(self.y_P1J)
        return theta_RM[:, 0], theta_RM[:, 1], theta_RM[:, 2 : 2 + num].T, theta_RM[:, 2 + num :].T

    def scan(self, grid: Grid) -> tuple[Array, Array]:
        """The 10 best (a, d) of the grid, each with every pool's best (b, tau): (R, M) and sums of squares (R,)."""
        a, b, tau = (np.asarray(v, np.float64) for v in (grid.a, grid.b, grid.tau))
        d = np.asarray([v for v in grid.d if v < self.least], np.float64)
        if not d.size:
            if self.least > 0 or 0.0 not in grid.d:
                raise InvalidInput(
                    f"no d of the grid ({min(grid.d):g} to {max(grid.d):g}) is below the least error {self.least:g}"
                )
            d = np.zeros(1)  # a pool without any error: d = 0 is its limit
        num = len(self.y_P1J)
        x_PTJ, _, repeated_PTJ = self.passes_at(np.broadcast_to(np.log(tau), (num, len(tau))))
        sse_PAD, index_PAD = np.empty((num, len(a), len(d))), np.empty((num, len(a), len(d)), np.int64)
        for p in range(num):
            keep = self.w_P1J[p, 0] > 0
            y_J, points = self.y_P1J[p, 0, keep], int(keep.sum())
            scale = np.exp(b[:, None, None] * repeated_PTJ[p][:, keep]) if self.official else None
            power_base = np.exp(b[:, None, None] * x_PTJ[p][:, keep])
            for i, log_a in enumerate(np.log(a / NORMALISER)):
                miss = (power_base * np.exp(b * log_a)[:, None, None] - y_J).reshape(-1, points)
                # sum_j (miss + d scale)^2 as a quadratic in d
                square = np.einsum("tj,tj->t", miss, miss)
                if scale is None:
                    cross, weight = miss.sum(1), np.full(len(miss), float(points))
                else:
                    flat = scale.reshape(-1, points)
                    cross, weight = np.einsum("tj,tj->t", miss, flat), np.einsum("tj,tj->t", flat, flat)
                sse_DT = square + d[:, None] * (2.0 * cross + d[:, None] * weight)
                index_PAD[p, i] = sse_DT.argmin(1)
                sse_PAD[p, i] = np.take_along_axis(sse_DT, index_PAD[p, i][:, None], 1)[:, 0]
        cells = np.argsort(sse_PAD.sum(0).ravel(), kind="stable")[:STARTS]
        of_a, of_d = np.divmod(cells, len(d))
        of_b, of_tau = np.divmod(index_PAD.reshape(num, -1)[:, cells], len(tau))
        theta_RM = np.column_stack([np.log(a)[of_a], d[of_d], np.log(-b[of_b]).T, np.log(tau[of_tau]).T])
        return theta_RM, sse_PAD.sum(0).ravel()[cells]

    def model(self, theta_RM: Array) -> tuple[Array, Array]:
        """Errors by the law (P, R, J), and their derivatives in the M variables (R, P, J, M)."""
        log_a_R, d_R, u_PR, v_PR = self.split(theta_RM)
        num = len(u_PR)
        x_PRJ, slope_PRJ, repeated_PRJ = self.passes_at(v_PR)
        x_PRJ = x_PRJ + (log_a_R - math.log(NORMALISER))[:, None]
        b_PR1 = -np.exp(u_PR)[..., None]
        power_PRJ = np.exp(np.minimum(b_PR1 * x_PRJ, 50.0))
        scale_PRJ = np.exp(b_PR1 * repeated_PRJ) if self.official else np.ones_like(power_PRJ)
        extra_PRJ = d_R[:, None] * scale_PRJ if self.official else np.zeros_like(power_PRJ)
        slopes = np.zeros((num, *power_PRJ.shape[1:], theta_RM.shape[1]))
        slopes[..., 0] = b_PR1 * power_PRJ
        slopes[..., 1] = scale_PRJ
        pool = np.arange(num)
        slopes[pool, :, :, 2 + pool] = b_PR1 * (power_PRJ * x_PRJ + extra_PRJ * repeated_PRJ)
        slopes[pool, :, :, 2 + num + pool] = b_PR1 * slope_PRJ * (power_PRJ + extra_PRJ)
        return power_PRJ + d_R[:, None] * scale_PRJ, (self.w_P1J[..., None] * slopes).transpose(1, 0, 2, 3)

    def on_bound(self, log_a: float, d: float, u: float, v: float) -> tuple[str, ...]:
        """Names of the variables at the end of the range that :meth:`refine` searches; see ``PoolFit``."""
        ends = (("a", log_a, _LOG_A), ("b", u, _LOG_B), ("tau", v, _LOG_TAU), ("d", d, (-1.0, self._most or math.inf)))
        return tuple(name for name, x, (low, high) in ends if min(x - low, high - x) <= 1e-9 * max(1.0, abs(x)))

    @property
    def _most(self) -> float:
        return self.least * (1 - 1e-6)  # of d: below every mean error

    def refine(self, theta_RM: Array, free: NDArray[np.bool_], y_PRJ: Array) -> tuple[Array, Array]:
        """Least squares from every row of ``theta_RM`` at once (Levenberg-Marquardt within bounds).

        Args:
            free: (M,), which variables move.
            y_PRJ: the curves that each row is fitted to; R may be 1.

        Returns:
            (R, M) and sums of squares (R,), never above those of the start.
        """
        num = len(self.y_P1J)
        low, high = np.array([_LOG_A, (0.0, self._most), *[_LOG_B] * num, *[_LOG_TAU] * num]).T
        limit = np.array([2.0, 0.2, *[1.0] * num, *[2.0] * num])  # of one step: the law is far from linear

        def at(theta_RM: Array) -> tuple[Array, Array, Array]:
            value_PRJ, slopes_RPJM = self.model(theta_RM)
            miss_RPJ = (self.w_P1J * (value_PRJ - y_PRJ)).transpose(1, 0, 2)
            rows = len(theta_RM)
            jacobian = slopes_RPJM.reshape(rows, -1, theta_RM.shape[1])
            return miss_RPJ.reshape(rows, -1), jacobian, np.einsum("rpj,rpj->r", miss_RPJ, miss_RPJ)

        theta_RM = theta_RM.clip(low, high)
        miss, jacobian, cost_R = at(theta_RM)
        damping_R = np.full(len(theta_RM), 1e-3)
        diagonal = np.arange(theta_RM.shape[1])
        for _ in range(_STEPS):
            transposed = jacobian.transpose(0, 2, 1)
            slope_RM, normal = (transposed @ miss[..., None])[..., 0], transposed @ jacobian
            held = ~free | ((theta_RM <= low) & (slope_RM > 0)) | ((theta_RM >= high) & (slope_RM < 0))
            normal = np.where(held[:, :, None] | held[:, None, :], 0.0, normal)
            normal[:, diagonal, diagonal] *= 1.0 + damping_R[:, None]
            normal[:, diagonal, diagonal] += np.where(held, 1.0, 1e-15)
            step = np.linalg.solve(normal, np.where(held, 0.0, -slope_RM)[..., None])[..., 0]
            tried_RM = (theta_RM + step.clip(-limit, limit)).clip(low, high)
            tried = at(tried_RM)
            better = tried[2] < cost_R
            settled = np.where(better, cost_R - tried[2] <= 1e-11 * cost_R, damping_R > 1e6)
            theta_RM = np.where(better[:, None], tried_RM, theta_RM)
            miss = np.where(better[:, None], tried[0], miss)
            jacobian = np.where(better[:, None, None], tried[1], jacobian)
            cost_R = np.where(better, tried[2], cost_R)
            damping_R = np.where(better, damping_R * 0.2, damping_R * 5.0).clip(1e-14, 1e9)
            if settled.all():
                break
        return theta_RM, cost_R

    def bootstrap(self, found_M: Array, free: NDArray[np.bool_], *, num: int, seed: int) -> Array:
        """(P, 4): 5% and 95% quantiles of b, then of tau, over refitted simulated curves; NaN where there can be
        none."""
        fitted_P1J, _ = self.model(found_M[None])
        freedom = int(self.w_P1J.sum()) - int(free.sum())
        if num == 0 or freedom < 1:
            return np.full((len(fitted_P1J), 4), math.nan)
        miss_P1J = self.w_P1J * (fitted_P1J - self.y_P1J)
        sigma = math.sqrt(float((miss_P1J * miss_P1J).sum()) / freedom)
        shape = (len(fitted_P1J), num, fitted_P1J.shape[2])
        noise_PRJ = np.random.default_rng(seed).normal(scale=sigma, size=shape)
        again_RM, _ = self.refine(np.repeat(found_M[None], num, 0), free, fitted_P1J + noise_PRJ)
        _, _, u_PR, v_PR = self.split(again_RM)
        return np.stack(
            [np.quantile(v, q, axis=1) for v in (-np.exp(u_PR), np.exp(v_PR)) for q in (0.05, 0.95)], axis=1
        )
