"""Several methods measured in the same runs: which of them can be told apart, and which cannot.

    d_t = v_at - v_bt          of every pair a, b over the runs t that both have; runs are independent of each other
    p                          paired t test of "mean d = 0", num - 1 degrees of freedom
    p_holm                     Holm's correction over all pairs: P[any false difference] <= alpha
    low, high                  mean d +- t quantile at alpha / (2 pairs): all intervals hold together (Bonferroni)
    letters                    a, b, ... such that two methods share a letter if and only if they are not told apart

Told apart is p_holm <= alpha. Holm's steps reject some more pairs than the intervals, which are those of its first
step: an interval that leaves out 0 is always told apart, one that holds 0 not always "the same".

Values have a resolution (a share of n answers moves in steps): a variance of d below that of rounding to ``step``,
step^2 / 12, is taken as that, so that three runs that happen to agree are no proof. A pair with fewer than two common
runs says nothing: p = 1 and no interval.

Why not the ranks of Friedman and Nemenyi: with R runs their smallest p-value for two methods is that of R coin flips,
0.25 for three; the price of the t test is that the mean of d is normal.

Source: Holm (Scand. J. Statist. 1979); Piepho, "An Algorithm for a Letter-Based Representation of All-Pairwise
Comparisons" (J. Comput. Graph. Stat. 2004), insert and absorb. Shapes: R runs, K methods, P = K (K - 1) / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from contracts.errors import InvalidInput
from stats.multiple import holm

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AllPairs:
    """All pairs of K methods, (0, 1), (0, 2), ..., (K - 2, K - 1).

    Attributes:
        first, second: int64 (P,), columns of the values.
        num: int64 (P,), runs that both have.
        difference: (P,) mean of first - second; NaN without a common run.
        low, high: (P,) simultaneous bounds at 1 - alpha; NaN with fewer than two common runs.
        p_value, p_holm: (P,).
        apart: bool (P,), p_holm <= alpha.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    num: NDArray[np.int64]
    difference: Float
    low: Float
    high: Float
    p_value: Float
    p_holm: Float
    apart: NDArray[np.bool_]

    def letters(self, order: Sequence[int]) -> list[str]:
        """Of each of the K methods in the order of the columns, the groups that it is in.

        Args:
            order: columns, best first: the best method is in group a.
        """
        different = {(int(i), int(j)) for i, j in zip(self.first[self.apart], self.second[self.apart], strict=True)}
        return letters(order, different)


def all_pairs(values: ArrayLike, *, alpha: float = 0.05, step: float = 0.0) -> AllPairs:
    """Compare all pairs of methods over the same runs; see the module.

    Args:
        values: (R, K), NaN where a method has no value in a run.
        alpha: family-wise, over all pairs.
        step: resolution of the values, in their unit.

    Raises:
        InvalidInput: not a matrix, infinite values, alpha outside (0, 1), step < 0.

    >>> found = all_pairs([[1.0, 5.0], [1.1, 5.2], [0.9, 5.1]])
    >>> round(float(found.difference[0]), 2), bool(found.apart[0])
    (-4.1, True)
    """
    v_RK = np.asarray(values, dtype=np.float64)
    if v_RK.ndim != 2 or np.isinf(v_RK).any() or not 0 < alpha < 1 or step < 0:
        raise InvalidInput(
            f"values {v_RK.shape}, alpha {alpha}, step {step}: needs (runs, methods) without infinities, alpha in "
            "(0, 1), step >= 0"
        )
    first, second = np.triu_indices(v_RK.shape[1], k=1)
    d_RP = v_RK[:, first] - v_RK[:, second]
    known = ~np.isnan(d_RP)
    num = known.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(known, d_RP, 0.0).sum(0) / num
        variance = np.where(known, np.square(d_RP - mean), 0.0).sum(0) / (num - 1)
        error = np.sqrt(np.maximum(variance, step**2 / 12) / num)
        ratio = np.where(mean == 0, 0.0, np.abs(mean) / error)
        freedom = np.maximum(num - 1, 1)
        reach = student.isf(alpha / (2 * max(len(first), 1)), freedom) * error
        p = np.where(num < 2, 1.0, 2 * student.sf(ratio, freedom))
    low, high = (np.where(num < 2, np.nan, mean + side * reach) for side in (-1, 1))
    p_holm = holm(p)
    return AllPairs(first, second, num, mean, low, high, p, p_holm, p_holm <= alpha)


def letters(order: Sequence[int], different: set[tuple[int, int]]) -> list[str]:
    """The compact letter display: who shares a letter is not told apart, and the other way round.

    Args:
        order: 0 .. K - 1, best first.
        different: pairs that are told apart, either way round.

    Returns:
        For method 0 .. K - 1 its letters, "a" the group of the best; after "z" come "a1", "b1", ..., groups then
        separated by nothing more than their order.

    >>> letters([0, 1, 2], {(0, 2)})
    ['a', 'ab', 'b']
    """
    groups: list[frozenset[int]] = [frozenset(order)] if order else []
    for i, j in sorted(different):
        split = [part for g in groups for part in ((g - {i}, g - {j}) if {i, j} <= g else (g,))]
        groups = [g for g in dict.fromkeys(split) if g and not any(g < other for other in split)]
    place = {method: at for at, method in enumerate(order)}
    groups.sort(key=lambda g: sorted(place[method] for method in g))
    names = [chr(97 + at % 26) + (str(at // 26) if at >= 26 else "") for at in range(len(groups))]
    return ["".join(n for n, g in zip(names, groups, strict=True) if method in g) for method in range(len(order))]
