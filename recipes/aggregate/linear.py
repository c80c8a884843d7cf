"""The linear fit to mean responses of bags, in closed form.

    theta_rho = (A + rho B)^{-1} sum_a k_a xbar_a ybar_a         A = sum_a k_a xbar_a xbar_a',
                                                                 B = sum_a sum_{i in a} (x_i - xbar_a)(x_i - xbar_a)'
    = (X'PX + rho X'(I - P)X)^{-1} X'P y with the averaging projection P, which is never built

rho = 0 is least squares on the m rows sqrt(k) xbar_a, rho = 1 least squares of the bag means on all rows. Where
A + rho B is singular (rho = 0 with m <= d) the fit is the one of minimum norm, and says so.

Source: Javanmard et al., ICLR 2024 (arXiv 2401.11081). Shapes: x (n, d), means (m,), float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from contracts.errors import InvalidInput
from sources.bags import Bags

Array = NDArray[np.float64]
_BLOCK = 65_536


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearFit:
    """Attributes:
    theta: float64 (d,).
    intercept: 0 where none was fitted.
    rank: of A + rho B.
    singular: the rank is below d: of all that fit as well, theta is the one of minimum norm.
    """

    theta: Array
    intercept: float
    rank: int
    singular: bool

    def predict(self, x: Array) -> Array:
        """float64 (n,) of x (n, d)."""
        return np.asarray(x @ self.theta + self.intercept)


@dataclass(frozen=True, eq=False, kw_only=True)
class Moments:
    """Sums over bags: those of two sets of bags add.

    Attributes:
        between, within: A and B, float64 (d, d), about the origin.
        cross: sum_a k_a xbar_a ybar_a (d,).
        total_x: sum of all rows (d,); total_y: sum_a k_a ybar_a; num: n; num_bags: m.
    """

    between: Array
    within: Array
    cross: Array
    total_x: Array
    total_y: float
    num: int
    num_bags: int

    def __sub__(self, other: Moments) -> Moments:
        return Moments(**{name: getattr(self, name) - getattr(other, name) for name in self.__dataclass_fields__})

    def inverse(self, rho: float) -> tuple[Array, int]:
        """(A + rho B)^{-1}, or the pseudo-inverse of one that is singular, and the rank.

        Raises:
            InvalidInput: rho below 0 or not finite.
        """
        if not (np.isfinite(rho) and rho >= 0):
            raise InvalidInput(f"rho = {rho} is outside its allowed range: >= 0")
        values, vectors = np.linalg.eigh(self.between + rho * self.within)
        kept = values > max(values[-1], 0) * max(self.num, len(values)) * np.finfo(np.float64).eps
        return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T, int(kept.sum())

    def centred(self) -> Moments:
        """About the mean of all rows, as a fit beside a constant that is not penalised needs them."""
        return replace(
            self,
            between=self.between - np.outer(self.total_x, self.total_x) / self.num,
            cross=self.cross - self.total_x * (self.total_y / self.num),
        )

    def fit(self, rho: float, *, intercept: bool = False) -> LinearFit:
        """theta_rho; with ``intercept``, beside a constant that is not penalised.

        Raises:
            InvalidInput: rho below 0 or not finite.
        """
        sums = self.centred() if intercept else self
        inverse, rank = sums.inverse(rho)
        theta = inverse @ sums.cross
        constant = float(self.total_y - self.total_x @ theta) / self.num if intercept else 0.0
        return LinearFit(theta=theta, intercept=constant, rank=rank, singular=rank < len(theta))


def moments(x: NDArray[np.float64], means: Array, *, bags: Bags) -> Moments:
    """What a fit needs of features (n, d) and mean responses (m,).

    Raises:
        InvalidInput: shapes that do not fit.
    """
    x, means = np.asarray(x, np.float64), np.asarray(means, np.float64)
    if x.ndim != 2 or len(x) != len(bags.index) or means.shape != (len(bags),):
        raise InvalidInput(f"x {x.shape} and means {means.shape} do not fit {len(bags)} bags of {len(bags.index)}")
    xbar, weight = bags.means(x), bags.sizes.astype(np.float64)
    within = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), _BLOCK):
        apart = x[start : start + _BLOCK] - xbar[bags.index[start : start + _BLOCK]]
        within += apart.T @ apart
    return Moments(
        between=(xbar * weight[:, None]).T @ xbar,
        within=within,
        cross=xbar.T @ (weight * means),
        total_x=weight @ xbar,
        total_y=float(weight @ means),
        num=len(x),
        num_bags=len(bags),
    )


def fit_linear_aggregate(
    x: NDArray[np.float64], means: Array, *, bags: Bags, rho: float, intercept: bool = False
) -> LinearFit:
    """The minimiser of L_rho with squared loss over linear predictions.

    Args:
        x: float64 (n, d).
        means: float64 (m,), mean response of each bag.
        rho: >= 0; weight of the variance of predictions within bags.
        intercept: with a constant that is not penalised (R does not see it).

    Raises:
        InvalidInput: shapes that do not fit, rho out of range.
    """
    return moments(x, means, bags=bags).fit(rho, intercept=intercept)
