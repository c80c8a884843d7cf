"""Scaling laws of quality pools: the error of training on a pool, or on a union of pools, for n samples seen.

One pool of N examples, n samples seen, K = ceil(n / N) passes, n_k = min((k+1) N, n):

    y(n) = (a n_0 / 1e5)^b * prod_{k=1}^{K-1} (n_k / n_{k-1})^(b delta^k) + d,      delta = (1/2)^(1/tau)

b < 0: utility of the pool, the smaller the better.  tau > 0: passes after which the utility of a sample has halved.
a > 0 and d >= 0: shared by all pools of one data set; otherwise the b of two pools could not be compared.
P pools of N examples sampled uniformly are one pool of P N examples with tau'_i = P tau_i and, in pass k, the exponent
(1/P) sum_i b_i (1/2)^(k / tau'_i). So the best union for a budget follows from trainings on single pools alone.

Competing form, "effective data": y(n) = (a n_eff / 1e5)^b + d,  n_eff = sum_k (new samples in pass k) delta^k; in a
mixture delta^k is the pools' mean, and pass k multiplies by (growth of n_eff)^(sum_i b_i delta_i^k / sum_i delta_i^k).

Source: Goyal, Maini, Lipton, Raghunathan, Kolter, "Scaling Laws for Data Filtering: Data Curation cannot be Compute
Agnostic" (CVPR 2024, arXiv 2404.07177). The authors' code adds d before the product over passes, which shrinks d too
(``compat="official"``). The law falls for ever: it is no model of overfitting, nor of a learning rate that decays
within a run (one run a budget, or a constant rate). Laws are fitted in studies.scaling_fit.

What the half-life is worth, measured against a law without it fitted to the same points
(reproductions/scaling_laws.py): beyond 32 passes over pools of Fashion-MNIST by EL2N it halves the error of the
prediction; from 8 passes, on digits, and for unions of pools of 10,000 images with changed labels it gains nothing or
loses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contracts.errors import InvalidInput, NotApplicable

Objective = Literal["effective_utility", "effective_data"]
Compat = Literal["paper", "official"]
Array = NDArray[np.float64]

NORMALISER = 1e5  # beside a, inside the power
MAX_PASSES = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolLaw:
    """The law of one pool.

    Attributes:
        a: normaliser, > 0; shared by the pools of a data set.
        b: utility, < 0; more negative = better.
        tau: half-life of the utility in passes, > 0; ``math.inf`` = repeating costs nothing.
        d: irreducible error, >= 0; shared.
        objective: "effective_utility" or "effective_data".
        compat: "paper", or "official" (d inside the product over passes; no difference for effective_data).

    Raises:
        InvalidInput: a value outside its range.

    >>> law = PoolLaw(a=0.022, b=-0.131, tau=3.0, d=0.1)
    >>> round(float(law.error(128_000_000, pool_size=12_800_000)), 4)
    0.8469
    """

    a: float
    b: float
    tau: float
    d: float
    objective: Objective = "effective_utility"
    compat: Compat = "paper"

    def __post_init__(self) -> None:
        for name, ok, allowed in (
            ("a", 0 < self.a < math.inf, "> 0"),
            ("b", -math.inf < self.b < 0, "< 0"),
            ("tau", self.tau > 0, "> 0"),
            ("d", 0 <= self.d < math.inf, ">= 0"),
        ):
            if not ok:
                raise InvalidInput(f"PoolLaw.{name} = {getattr(self, name)!r} is outside its allowed range: {allowed}")
        check_form(self.objective, self.compat)

    def error(self, n: ArrayLike, *, pool_size: float) -> Array:
        """Predicted error after ``n`` samples seen of a pool of ``pool_size`` examples; see :func:`mixture_error`."""
        return mixture_error((self,), n, pool_size=pool_size)


@dataclass(frozen=True, eq=False)
class Plan:
    """Which union of pools to train on, a budget at a time.

    Attributes:
        order: int64 (P,), positions of the laws from the best pool (most negative b) to the worst.
        budgets: float64 (Q,), samples seen.
        errors: float64 (Q, P), predicted error of the union of the first 1 .. P pools of ``order``.
        num_pools: int64 (Q,), the number of pools with the least predicted error; the smallest such number.
    """

    order: NDArray[np.int64]
    budgets: Array
    errors: Array
    num_pools: NDArray[np.int64]


def mixture_error(
    laws: Sequence[PoolLaw], n: ArrayLike, *, pool_size: float, weights: Sequence[float] | None = None
) -> Array:
    """Predicted error of training on the union of pools, sampled uniformly.

    Args:
        laws: P >= 1 laws with one a, d and form.
        n: samples seen of the union, > 0; any shape. May end within a pass.
        pool_size: examples of each pool, all alike; the union has P times as many.
        weights: sampling weights of the pools. The paper covers equal ones only.

    Returns:
        float64, the shape of ``n``; not clipped: above 1 when the law is asked far below the data it was fitted on.

    Raises:
        InvalidInput: no laws, laws that do not share a, d and form, n or pool_size not positive, over 10^6 passes.
        NotApplicable: weights that are not equal.
    """
    a, d, objective, compat = _shared(laws)
    num = len(laws)
    if weights is not None and (len(weights) != num or len(set(weights)) > 1):
        raise NotApplicable(f"the law covers {num} pools sampled uniformly; weights {tuple(weights)} are not equal")
    seen_n = np.asarray(n, np.float64)
    new_JK, seen_JK = passes(seen_n.ravel(), num * pool_size)
    b_P1 = np.array([[law.b] for law in laws])
    halvings_PK = np.arange(new_JK.shape[1]) / np.array([[num * law.tau] for law in laws])
    delta_PK = 0.5**halvings_PK
    if objective == "effective_utility":
        exponent_K, size_JK = (b_P1 * delta_PK).mean(0), seen_JK
    else:
        share_PK = 0.5 ** (halvings_PK - halvings_PK.min(0))  # delta up to a factor a pass, which cannot vanish
        exponent_K = (b_P1 * share_PK).sum(0) / share_PK.sum(0)
        size_JK = (new_JK * delta_PK.mean(0)).cumsum(1)
    first_J = (a * size_JK[:, 0] / NORMALISER) ** exponent_K[0]
    decay_J = np.exp(np.diff(np.log(size_JK), axis=1) @ exponent_K[1:])
    if compat == "official" and objective == "effective_utility":
        error_J = (first_J + d) * decay_J
    else:
        error_J = first_J * decay_J + d
    return np.asarray(error_J.reshape(seen_n.shape))


def best_pool(laws: Sequence[PoolLaw], budgets: ArrayLike, *, pool_size: float) -> Plan:
    """The number of pools, best first, whose union has the least predicted error, for each budget.

    Args:
        laws: P >= 1 laws with one a, d and form.
        budgets: (Q,) samples seen, > 0.
        pool_size: examples of each pool.

    Raises:
        InvalidInput: as :func:`mixture_error`.

    >>> laws = [PoolLaw(a=0.022, b=b, tau=t, d=0.1) for b, t in ((-0.18, 3), (-0.155, 3.5), (-0.14, 4.5), (-0.125, 5))]
    >>> best_pool(laws, [32e6, 64e6, 128e6, 640e6, 6.4e9], pool_size=12.8e6).num_pools.tolist()
    [2, 2, 3, 4, 4]
    """
    budgets_Q = np.atleast_1d(np.asarray(budgets, np.float64))
    _shared(laws)
    order = np.argsort([law.b for law in laws], kind="stable")
    errors = np.stack(
        [
            mixture_error([laws[i] for i in order[:num]], budgets_Q, pool_size=pool_size)
            for num in range(1, len(laws) + 1)
        ],
        axis=1,
    )
    return Plan(order.astype(np.int64), budgets_Q, errors, errors.argmin(1) + 1)


def passes(n_J: Array, pool_size: float) -> tuple[Array, Array]:
    """New samples in each pass and samples seen at its end, both (J, K), K = passes of the largest n.

    A pass that is not reached has no new samples. n < N is one pass.

    Raises:
        InvalidInput: values that are not positive and finite, or over 10^6 passes.
    """
    if not 0 < pool_size < math.inf:
        raise InvalidInput(f"pool_size = {pool_size!r} is outside its allowed range: > 0")
    if not n_J.size or not (np.isfinite(n_J) & (n_J > 0)).all():
        raise InvalidInput(f"samples seen n = {n_J[:5].tolist()} must be positive and finite, and at least one")
    num = math.ceil(n_J.max() / pool_size)
    if num > MAX_PASSES:
        raise InvalidInput(f"n = {n_J.max():g} is {num} passes over {pool_size:g} examples; at most {MAX_PASSES}")
    start_K = np.arange(num) * pool_size
    new_JK = np.clip(n_J[:, None] - start_K, 0.0, pool_size)
    return new_JK, np.minimum(start_K + pool_size, n_J[:, None])


def check_form(objective: str, compat: str) -> None:
    """Raise :class:`InvalidInput` unless both name a form of the law."""
    for name, value, allowed in (("objective", objective, Objective), ("compat", compat, Compat)):
        if value not in get_args(allowed):
            raise InvalidInput(f"{name} = {value!r} is not one of {', '.join(get_args(allowed))}")


def _shared(laws: Sequence[PoolLaw]) -> tuple[float, float, Objective, Compat]:
    kinds = {(law.a, law.d, law.objective, law.compat) for law in laws}
    if len(kinds) != 1:
        raise InvalidInput(
            f"{len(laws)} laws with {len(kinds)} different (a, d, objective, compat): pools are comparable only when "
            "all share one"
        )
    return next(iter(kinds))
