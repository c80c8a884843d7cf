"""Examples in bags, and what is said of the responses of a bag: its mean, exact or with label differential privacy.

    bag a        k_a examples; each example in exactly one bag, fixed once
    ybar_a       (1/k_a) sum_{i in a} clip(y_i)         clip to [center - c, center + c]; the mean is of CLIPPED values
    released     ybar_a + Laplace(b_a),  b_a = 2 c / (k_a eps)
    classes      pbar_a = shares of the classes in the bag; + Laplace(2 / (k_a eps)) on each of them

One response that is replaced moves the mean of its bag by at most 2c/k (the shares by 2/k in L1), and no other bag: the
release is (eps, 0)-label-differentially private under replace-one. The paper prints b = c/(k eps), which its proof
carries for 2 eps only; ``paper_scale`` keeps it for its figures. Several releases of the same responses compose: their
epsilons add (:func:`composed`). The clip, the center and the bags must not be computed from the responses.

Noise in floating point has low bits that depend on the mean (Mironov, CCS 2012): released numbers are rounded to
multiples of the power of two at or below b / 2^20, which takes these bits away. The generator is NumPy's and no
cryptographic one.

Source: Javanmard, Chen, Mirrokni, Badanidiyuru, Fu, "Learning from Aggregate Responses: Instance Level versus Bag Level
Loss Functions" (ICLR 2024, arXiv 2401.11081); Dwork, McSherry, Nissim, Smith (TCC 2006) for the mechanism.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ConfigError, DataError
from sources.example_set import ExampleSet

_GRID_BITS = 20


@dataclass(frozen=True, eq=False)
class Bags:
    """Which bag each example is in.

    Attributes:
        index: int64 (n,), the bag of each row, 0 .. m-1; no bag is empty.

    Raises:
        DataError: there is no row, or a number without a row.
    """

    index: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.index.ndim != 1 or not len(self.index) or self.index.dtype != np.int64:
            raise DataError(f"bags are int64 (n,), n >= 1, not {self.index.dtype} {self.index.shape}")
        if self.index.min() < 0 or not (self.sizes > 0).all():
            raise DataError("bags are numbered 0 .. m-1, each with an example at least")

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Examples in each bag, int64 (m,)."""
        return np.bincount(self.index).astype(np.int64)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Rows bag after bag, int64 (n,), in their own order within each."""
        return np.argsort(self.index, kind="stable").astype(np.int64)

    def means(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Mean of ``values`` (n, ...) in each bag, float64 (m, ...).

        >>> Bags(np.array([0, 1, 0])).means(np.array([1.0, 5.0, 2.0])).tolist()
        [1.5, 5.0]
        """
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        sums = np.add.reduceat(np.asarray(values, np.float64)[self.order], starts, axis=0)
        return np.asarray(sums / self.sizes.reshape(-1, *[1] * (sums.ndim - 1)))


def make_bags(ids: NDArray[np.int64], size: int, *, seed: int) -> Bags:
    """Disjoint bags at random.

    What is left over of n = m k + r examples joins the last bag, which then has k + r of them; fewer than k examples
    are one bag.

    Args:
        ids: int64 (n,), distinct; which bag an example is in depends on the ids and the seed, not on the order.
        size: k, >= 1.
        seed: >= 0; it may be public: bags do not depend on responses.

    Raises:
        ConfigError: ``size`` below 1.
        DataError: no example.
    """
    if size < 1:
        raise ConfigError(f"bags of {size} examples are outside their allowed range: >= 1")
    num, rng = len(ids), np.random.default_rng(seed)
    ranks = np.empty(num, np.int64)
    ranks[np.argsort(ids, kind="stable")] = rng.permutation(num)
    return Bags(np.minimum(ranks // size, max(num // size, 1) - 1))


def natural_bags(values: NDArray[Any], ids: NDArray[np.int64], *, largest: int | None = None, seed: int = 0) -> Bags:
    """Bags of the examples with the same value in a column, in the order of the values; their sizes are their own.

    Args:
        values: (n,) int64 or text.
        ids: int64 (n,), distinct.
        largest: a group of more than this is cut at random into as few parts as it takes, of sizes that differ by one.
        seed: of the cuts.

    Raises:
        ConfigError: ``largest`` below 1.
        DataError: no example.
    """
    if largest is not None and largest < 1:
        raise ConfigError(f"bags of at most {largest} examples are outside their allowed range: >= 1")
    _, group = np.unique(values, return_inverse=True)
    group = group.astype(np.int64)
    if largest is None or not len(group):
        return Bags(group)
    order = np.lexsort((np.random.default_rng(seed).permutation(len(ids))[np.argsort(np.argsort(ids))], group))
    sizes = np.bincount(group)
    place = np.empty(len(group), np.int64)
    place[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    parts = -(-sizes // largest)
    return Bags((np.cumsum(parts) - parts)[group] + place % parts[group])


def bags_of(data: ExampleSet, *, size: int, column: str, asked: str, largest: int | None = None, seed: int) -> Bags:
    """The bags of examples: of the values of a column, or, where that is "", of ``size`` at random.

    Args:
        asked: the field of a configuration that names the column.
        largest, seed: as of :func:`natural_bags` and :func:`make_bags`.

    Raises:
        ConfigError: no such column; else as these.
    """
    if not column:
        return make_bags(data.example_id, size, seed=seed)
    return natural_bags(data.column(column, asked=asked), data.example_id, largest=largest, seed=seed)


@dataclass(frozen=True, eq=False, kw_only=True)
class Release:
    """What is said of the responses.

    Attributes:
        means: float64 (m, c), the released mean of each bag (c = 1), or its shares of c classes, with their noise.
        scale: float64 (m,), Laplace scale of each bag; 0 without noise.
        epsilon: of this release; None without noise.
    """

    means: NDArray[np.float64]
    scale: NDArray[np.float64]
    epsilon: float | None

    def __post_init__(self) -> None:
        self.means.flags.writeable = False


def release_bag_means(
    y: NDArray[np.float64],
    bags: Bags,
    *,
    epsilon: float | None = None,
    clip: float | None = None,
    center: float = 0.0,
    paper_scale: bool = False,
    rng: np.random.Generator | None = None,
) -> Release:
    """The mean response of each bag.

    Args:
        y: float64 (n,), finite.
        epsilon: of label differential privacy, > 0; None releases the exact means (of clipped values).
        clip: c > 0; responses are clipped to [center - c, center + c] before they are averaged. Noise needs it. The
            paper takes C sqrt(log n) with C^2 > 2 (||theta||^2 + s^2), known beforehand.
        center: a public number.
        paper_scale: b = c / (k eps) as printed, which protects for 2 eps.
        rng: of the noise; secret where the release is public.

    Raises:
        ConfigError: epsilon or clip out of range, or epsilon without clip or rng.
        DataError: other responses.
    """
    y = np.asarray(y, np.float64)
    if y.shape != bags.index.shape or not np.isfinite(y).all():
        raise DataError(f"responses {y.shape} must be finite numbers, one for each of {bags.index.shape} examples")
    if clip is not None:
        if not (math.isfinite(clip) and clip > 0):
            raise ConfigError(f"clip = {clip} is outside its allowed range: > 0")
        y = np.clip(y, center - clip, center + clip)
    elif epsilon is not None:
        raise ConfigError(f"epsilon = {epsilon} needs clip: the mean of responses without bound has no sensitivity")
    spread = 0.0 if clip is None else clip * (1 if paper_scale else 2)
    return _released(bags.means(y)[:, None], bags, spread, epsilon, rng)


def release_shares(
    labels: NDArray[np.int64],
    bags: Bags,
    *,
    num_classes: int,
    epsilon: float | None = None,
    paper_scale: bool = False,
    rng: np.random.Generator | None = None,
) -> Release:
    """The shares of the classes in each bag; with noise they may be negative and need not sum to 1 (``on_simplex``).

    Args, Raises: as :func:`release_bag_means`; a share moves by 1/k at most and two of them do, 2/k in L1.
    """
    if labels.shape != bags.index.shape or (len(labels) and not 0 <= labels.min() <= labels.max() < num_classes):
        raise DataError(f"labels must be one of 0 .. {num_classes - 1} for each of {bags.index.shape} examples")
    cells = np.bincount(bags.index * num_classes + labels, minlength=len(bags) * num_classes)
    shares = cells.reshape(len(bags), num_classes) / bags.sizes[:, None]
    return _released(shares, bags, 1.0 if paper_scale else 2.0, epsilon, rng)


def release_of(
    data: ExampleSet,
    bags: Bags,
    *,
    epsilon: float | None,
    clip: float | None,
    center: float,
    paper_scale: bool = False,
    rng: np.random.Generator,
) -> Release:
    """The responses of examples as their task has them: shares of classes, which take no clip, or mean numbers.

    Args, Raises: as :func:`release_bag_means`.
    """
    noise: dict[str, Any] = {"epsilon": epsilon, "paper_scale": paper_scale, "rng": rng}
    if data.task.gives("classes"):
        return release_shares(data.y, bags, num_classes=data.num_classes, **noise)
    return release_bag_means(data.y, bags, clip=clip, center=center, **noise)


def _released(
    means: NDArray[np.float64],
    bags: Bags,
    spread: float,
    epsilon: float | None,
    rng: np.random.Generator | None,
) -> Release:
    if epsilon is None:
        return Release(means=means, scale=np.zeros(len(bags)), epsilon=None)
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"epsilon = {epsilon} is outside its allowed range: > 0")
    if rng is None:
        raise ConfigError(f"epsilon = {epsilon} needs rng, the generator of the noise")
    scale = spread / (bags.sizes * epsilon)
    grid = np.exp2(np.floor(np.log2(scale)) - _GRID_BITS)[:, None]
    noisy = np.round((means + rng.laplace(size=means.shape) * scale[:, None]) / grid) * grid
    return Release(means=noisy, scale=scale, epsilon=epsilon)


def composed(epsilons: Iterable[float | None]) -> float:
    """What several releases of the same responses spend together: the sum (Dwork et al. 2006); infinite when one of
    them had no noise.

    >>> composed([1.0, 0.5]), composed([1.0, None]), composed([])
    (1.5, inf, 0)
    """
    return sum(math.inf if epsilon is None else epsilon for epsilon in epsilons)


def on_simplex(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest shares that are none below 0 and sum to 1, row by row (m, K): post-processing, free of privacy cost.

    Source: Duchi et al., ICML 2008.
    """
    ordered = -np.sort(-shares, axis=1)
    excess = (np.cumsum(ordered, axis=1) - 1) / np.arange(1, shares.shape[1] + 1)
    last = (ordered > excess).sum(axis=1) - 1
    return np.maximum(shares - excess[np.arange(len(shares)), last][:, None], 0)
