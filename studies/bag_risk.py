"""What a linear fit to bag means risks: the formula in the proportional limit, the best bag size, the best rho.

For x ~ N(0, I_d), y = x'theta + N(0, s^2), n = psi d examples in m = n/k bags, mu = psi/k, q = psi - mu, rho > 0:

    t > 0 solves   mu t/(1+t) + q rho t/(1 + rho t) = 1                       (left side increasing: bisection)
    D      = mu/(1+t)^2 + q rho/(1 + rho t)^2
    V      = s_eff^2 [mu t/(1+t)^2] / D
    Bias^2 = |theta|^2 rho [ q t/(1 + rho t) - (t/D) mu q (1 - rho t^2) / ((1+t)^2 (1 + rho t)^2) ]
    risk   = E (x'theta_hat - x'theta)^2 = V + Bias^2

    rho = 0, psi > k   Bias = 0, V = s_eff^2 k/(psi - k), which is not the limit rho -> 0 for psi < k
    rho = 0, psi < k   the fit of minimum norm (Hastie et al. 2022, gamma = k/psi):
                       Bias^2 = |theta|^2 (1 - psi/k), V = s_eff^2 psi/(k - psi)
    with label differential privacy   s_eff^2 = s^2 + 2 k b^2 = s^2 + 8 c^2/(k eps^2),  b = 2c/(k eps)

rho is chosen from the release alone: by the formula with s^2 and |theta|^2 estimated from the bag fit (m > d), or by
cross-validation over bags, in which held-out bags are scored by the bag loss, as no response of its own is known. The
fit is equivariant, so that features of covariance Sigma have |theta|^2 = theta' Sigma theta.

Source: Javanmard et al., ICLR 2024 (arXiv 2401.11081), Theorem 1 and section 4; Hastie, Montanari, Rosset, Tibshirani,
Annals of Statistics 2022 (minimum norm). An intercept is a rank-one exception to the theory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.errors import InvalidInput
from recipes.aggregate.linear import Moments, moments
from sources.bags import Bags

Array = NDArray[np.float64]
RHO_GRID = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True, slots=True)
class Risk:
    """Excess risk and its parts, in squares of the response's unit; infinite where the bag fit has as many bags as
    features."""

    bias2: float
    variance: float

    @property
    def risk(self) -> float:
        return self.bias2 + self.variance


def asymptotic_risk(psi: float, k: float, *, rho: float, sigma2: float, theta2: float) -> Risk:
    """Excess risk of theta_rho in the limit n, d -> infinity, n/d = psi.

    Args:
        psi: > 1.
        k: bag size, 1 <= k.
        rho: >= 0.
        sigma2: s_eff^2, noise of a response with k times the variance of the noise on a bag mean: ``effective_noise``.
        theta2: |theta|^2.

    Raises:
        InvalidInput: out of range.

    >>> round(asymptotic_risk(12, 5, rho=0.1, sigma2=0.5, theta2=1).risk, 3)
    0.263
    """
    for name, value, holds in (
        ("psi", psi, psi > 1),
        ("k", k, k >= 1),
        ("rho", rho, rho >= 0),
        ("sigma2", sigma2, sigma2 >= 0),
        ("theta2", theta2, theta2 >= 0),
    ):
        if not (math.isfinite(value) and holds):
            raise InvalidInput(f"{name} = {value} is outside its allowed range: psi > 1, k >= 1, others >= 0")
    if rho == 0:
        if psi == k:
            return Risk(0.0, math.inf if sigma2 else 0.0)
        return Risk(0.0, sigma2 * k / (psi - k)) if psi > k else Risk(theta2 * (1 - psi / k), sigma2 * psi / (k - psi))
    mu, q = psi / k, psi - psi / k
    t = _root(mu, q, rho)
    between, within = (1 + t) ** 2, (1 + rho * t) ** 2
    slope = mu / between + q * rho / within
    bias = rho * (q * t / (1 + rho * t) - t / slope * mu * q * (1 - rho * t**2) / (between * within))
    return Risk(theta2 * max(bias, 0.0), sigma2 * mu * t / between / slope)


def _root(mu: float, q: float, rho: float) -> float:
    def excess(t: float) -> float:
        return mu * t / (1 + t) + q * rho * t / (1 + rho * t) - 1

    low, high = 0.0, 1.0
    while excess(high) < 0:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return (low + high) / 2


def effective_noise(sigma2: float, k: float, *, epsilon: float | None = None, clip: float = 0.0) -> float:
    """s_eff^2 = s^2 + 8 c^2 / (k eps^2); s^2 without noise."""
    return sigma2 if epsilon is None else sigma2 + 8 * clip**2 / (k * epsilon**2)


def optimal_bag_size(
    psi: float,
    sizes: Sequence[int],
    *,
    rho: float,
    sigma2: float,
    theta2: float,
    epsilon: float | None = None,
    clip: float = 0.0,
) -> tuple[int, list[Risk]]:
    """The bag size of least risk, the smallest of equals, and the curve.

    Args:
        sizes: k to choose among, ascending; for rho = 0 those with fewer bags than features are not chosen.
        epsilon, clip: of the release; None: exact means.

    Raises:
        InvalidInput: no size that can be chosen; otherwise as :func:`asymptotic_risk`.
    """
    curve = [
        asymptotic_risk(psi, k, rho=rho, sigma2=effective_noise(sigma2, k, epsilon=epsilon, clip=clip), theta2=theta2)
        for k in sizes
    ]
    allowed = [(risk.risk, k) for risk, k in zip(curve, sizes, strict=True) if rho > 0 or psi > k]
    if not allowed:
        raise InvalidInput(f"no bag size among {list(sizes)} leaves more bags than features at rho = 0 (psi = {psi:g})")
    return min(allowed)[1], curve


@dataclass(frozen=True, kw_only=True, slots=True)
class PlugIn:
    """Estimated from a release: s_eff^2 and |theta|^2 (in units of the covariance of the features), and the best rho
    by the formula."""

    sigma2: float
    theta2: float
    rho: float


def rho_by_plug_in(
    x: NDArray[np.float64], means: Array, *, bags: Bags, grid: Sequence[float] = RHO_GRID, intercept: bool = False
) -> PlugIn | None:
    """rho of least asymptotic risk for what the bag fit estimates; None where there are no more bags than features.

        s_eff^2    = sum_a k_a (ybar_a - xbar_a'theta_0)^2 / (m - d)
        |theta|^2  = theta_0' Sigma theta_0 - s_eff^2 tr(Sigma A^{-1}),  cut at 0;  Sigma = X'X/n of all features

    Raises:
        InvalidInput: shapes that do not fit.
    """
    x = np.asarray(x, np.float64)
    if intercept:
        x, means = x - x.mean(0), means - (bags.sizes @ means) / bags.sizes.sum()
    sums, free = moments(x, means, bags=bags), len(bags) - x.shape[1] - intercept
    fit = sums.fit(0.0)
    if free <= 0 or fit.singular:
        return None
    residual = means - bags.means(x) @ fit.theta
    noise = float(bags.sizes @ residual**2) / free
    covariance = (sums.between + sums.within) / sums.num
    spread = float(np.trace(np.linalg.solve(sums.between, covariance)))
    size = max(float(fit.theta @ covariance @ fit.theta) - noise * spread, 0.0)
    psi, k = sums.num / x.shape[1], sums.num / len(bags)
    risks = [asymptotic_risk(psi, k, rho=rho, sigma2=noise, theta2=size).risk for rho in grid]
    return PlugIn(sigma2=noise, theta2=size, rho=grid[int(np.argmin(risks))])


def rho_by_cross_validation(
    x: NDArray[np.float64],
    means: Array,
    *,
    bags: Bags,
    seed: int,
    grid: Sequence[float] = RHO_GRID,
    folds: int = 5,
    repeats: int = 1,
    intercept: bool = False,
) -> tuple[float, Array]:
    """rho of the least bag loss of held-out bags; the first of equals.

    Args:
        x: float64 (n, d); means: float64 (m,).
        folds: whole bags in each, 2 .. m.
        repeats: times that the folds are drawn, >= 1; the losses are averaged.
        seed: of the folds.

    Returns:
        rho, and the mean bag loss of each of ``grid``.

    Raises:
        InvalidInput: fewer bags than folds, or shapes that do not fit.
    """
    if not 2 <= folds <= len(bags):
        raise InvalidInput(f"folds = {folds} is outside its allowed range: >= 2 and <= {len(bags)} bags")
    x = np.asarray(x, np.float64)
    if repeats < 1:
        raise InvalidInput(f"repeats = {repeats} is outside its allowed range: >= 1")
    rng, xbar, every = np.random.default_rng(seed), bags.means(x), moments(x, means, bags=bags)
    losses = np.zeros(len(grid))
    for _ in range(repeats):
        fold = rng.permutation(len(bags)) % folds
        for held in (fold == f for f in range(folds)):
            rest: Moments = every - _of(x, means, bags, held)
            for g, rho in enumerate(grid):
                apart = means[held] - rest.fit(rho, intercept=intercept).predict(xbar[held])
                losses[g] += float(bags.sizes[held] @ apart**2)
    return grid[int(np.argmin(losses))], losses / (repeats * bags.sizes.sum())


def _of(x: Array, means: Array, bags: Bags, chosen: NDArray[np.bool_]) -> Moments:
    """The sums over the chosen bags."""
    number = np.cumsum(chosen) - 1
    rows = chosen[bags.index]
    return moments(x[rows], means[chosen], bags=Bags(number[bags.index[rows]]))


def simulated_risk(
    *,
    num: int,
    dim: int,
    sizes: Sequence[int],
    rhos: Sequence[float],
    sigma2: float,
    theta2: float,
    repeats: int,
    seed: int,
) -> dict[tuple[int, float], tuple[Risk, float]]:
    """Monte Carlo of the same risk on the generator: (k, rho) -> (its parts, the standard error of the risk).

    Over fresh features and bags; of the noise in the responses, given the features, the expectation is taken exactly:

        bias^2 = |(A + rho B)^{-1} rho B theta|^2,  V = s_eff^2 tr[(A + rho B)^{-1} A (A + rho B)^{-1}]

    Args:
        num: n; a bag size that does not divide it gets one larger bag.
        repeats: >= 2 fresh draws of features and bags; all sizes and rhos share them.
    """
    rng = np.random.default_rng(seed)
    found: dict[tuple[int, float], list[tuple[float, float]]] = {(k, rho): [] for k in sizes for rho in rhos}
    theta = np.full(dim, math.sqrt(theta2 / dim))
    for _ in range(repeats):
        x = rng.normal(size=(num, dim))
        for k in sizes:
            bags = Bags(np.minimum(np.arange(num) // k, max(num // k, 1) - 1))  # the rows are exchangeable
            sums = moments(x, bags.means(x @ theta), bags=bags)
            for rho in rhos:
                inverse, _ = sums.inverse(rho)
                off = inverse @ sums.cross - theta
                found[k, rho].append((float(off @ off), sigma2 * float(np.sum(inverse @ sums.between * inverse))))
    out = {}
    for key, rows in found.items():
        parts = np.array(rows)
        error = float(parts.sum(1).std(ddof=1)) / math.sqrt(repeats)
        out[key] = (Risk(float(parts[:, 0].mean()), float(parts[:, 1].mean())), error)
    return out


def bag_fit_risk(num_bags: int, dim: int, *, sigma2: float) -> float:
    """Excess risk of rho = 0 at finite sizes, exactly: s_eff^2 d / (m - d - 1), for m > d + 1; else infinite."""
    return sigma2 * dim / (num_bags - dim - 1) if num_bags > dim + 1 else math.inf
