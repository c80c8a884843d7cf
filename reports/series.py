"""Numbers made small before they reach a page: binned histograms and thinned ROC curves.

A page about ten million examples must weigh what a page about a thousand weighs, so nothing here grows with N:
a histogram holds its bin edges and counts (at most ``MAX_BINS``), a curve at most ``MAX_POINTS`` corners.

Not statistics: intervals are computed where the figures are (attacks, scoring) and only drawn here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contracts.errors import InvalidInput

MAX_BINS = 60
MAX_POINTS = 400
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """Counts of values in equal bins, with quantiles of the unbinned values.

    Attributes:
        edges: (B + 1,) float64, increasing, finite; unit of the values.
        counts: (B,) int64; their sum is the number of finite values.
        quantiles: ((q, value), ...) of the finite values, q in [0, 1]; empty when there is none.
        missing: how many values were NaN or infinite; they are in no bin.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    quantiles: tuple[tuple[float, float], ...] = ()
    missing: int = 0

    def __post_init__(self) -> None:
        if self.edges.ndim != 1 or self.counts.shape != (max(self.edges.size - 1, 0),):
            raise InvalidInput(
                f"histogram: {self.edges.size} edges need {self.edges.size - 1} counts, got {self.counts.size}"
            )
        if self.counts.size > MAX_BINS:
            raise InvalidInput(f"histogram: {self.counts.size} bins; at most {MAX_BINS} fit on a page")

    @classmethod
    def of(cls, values: ArrayLike, *, bins: int = 40, quantiles: Sequence[float] = QUANTILES) -> Self:
        """Bin ``values`` (N,): equal bins from the least to the greatest finite value.

        Args:
            values: numbers; NaN and infinite ones are counted as missing.
            bins: number of bins, in [1, MAX_BINS]. Whole numbers that fit get one bin each, so that no bin is
                empty for lack of an integer in it.
            quantiles: which quantiles to keep, each in [0, 1] (linear interpolation).

        Raises:
            InvalidInput: ``bins`` outside its range, or ``values`` not one-dimensional.

        >>> Histogram.of([0.0, 1.0, 1.0, float("nan")], bins=2).counts.tolist()
        [1, 2]
        """
        if not 1 <= bins <= MAX_BINS:
            raise InvalidInput(f"bins = {bins} is outside its allowed range: >= 1 and <= {MAX_BINS}")
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1:
            raise InvalidInput(f"histogram: values have shape {array.shape}; one dimension is needed")
        finite = array[np.isfinite(array)]
        missing = int(array.size - finite.size)
        if not finite.size:
            return cls(edges=np.zeros(1), counts=np.zeros(0, np.int64), missing=missing)
        low, high = float(finite.min()), float(finite.max())
        if low == high:
            pad = max(abs(low), 1.0) * 0.5
            edges = np.array([low - pad, high + pad])
        elif high - low < bins and np.array_equal(finite, np.rint(finite)):
            edges = np.arange(low - 0.5, high + 1.0)
        else:
            edges = np.linspace(low, high, bins + 1)
        counts = np.histogram(finite, bins=edges)[0].astype(np.int64)
        marks = tuple((float(q), float(v)) for q, v in zip(quantiles, np.quantile(finite, quantiles), strict=True))
        return cls(edges=edges, counts=counts, quantiles=marks, missing=missing)

    def facts(self) -> dict[str, Any]:
        """JSON's own types, for the report's data file."""
        return {
            "edges": self.edges.tolist(),
            "counts": self.counts.tolist(),
            "quantiles": [list(q) for q in self.quantiles],
            "missing": self.missing,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """A ROC curve: the corners (fpr, tpr) from (0, 0) to (1, 1), both nondecreasing, and the counts behind them.

    Attributes:
        fpr, tpr: (P,) float64 in [0, 1].
        n_pos, n_neg: members and non-members tested, >= 1; 1 / n_neg is the smallest rate the curve can speak about.
    """

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    n_pos: int
    n_neg: int

    def __post_init__(self) -> None:
        fpr, tpr = self.fpr, self.tpr
        if fpr.ndim != 1 or fpr.shape != tpr.shape or fpr.size < 2:
            raise InvalidInput(f"curve: fpr {fpr.shape} and tpr {tpr.shape} must be one-dimensional, equal, at least 2")
        rates = np.concatenate([fpr, tpr])
        if not (np.isfinite(rates).all() and rates.min() >= 0 and rates.max() <= 1):
            raise InvalidInput("curve: rates must be finite and within [0, 1]")
        if (np.diff(fpr) < 0).any() or (np.diff(tpr) < 0).any():
            raise InvalidInput("curve: fpr and tpr must not decrease")
        if self.n_pos < 1 or self.n_neg < 1:
            raise InvalidInput(f"curve: n_pos = {self.n_pos}, n_neg = {self.n_neg}; both must be >= 1")

    @classmethod
    def of(cls, fpr: ArrayLike, tpr: ArrayLike, *, n_pos: int, n_neg: int) -> Self:
        """Keep at most ``MAX_POINTS`` of the corners: half of them evenly in log10(fpr), half evenly in fpr.

        Every kept point is a point of the curve; nothing is interpolated. Within one kept rate the corner with
        the largest tpr is kept, which is the curve's value at that rate.
        """
        f, t = np.asarray(fpr, dtype=np.float64), np.asarray(tpr, dtype=np.float64)
        whole = cls(fpr=f, tpr=t, n_pos=n_pos, n_neg=n_neg)
        if f.size <= MAX_POINTS:
            return whole
        half = MAX_POINTS // 2 - 2
        grid = np.concatenate([np.geomspace(1.0 / n_neg, 1.0, half), np.linspace(0.0, 1.0, half)])
        last_at_most = np.searchsorted(f, grid, side="right") - 1
        kept = np.unique(np.concatenate([[0], last_at_most[last_at_most >= 0], [f.size - 1]]))
        return cls(fpr=f[kept], tpr=t[kept], n_pos=n_pos, n_neg=n_neg)

    def facts(self) -> dict[str, Any]:
        """JSON's own types, for the report's data file."""
        return {"fpr": self.fpr.tolist(), "tpr": self.tpr.tolist(), "n_pos": self.n_pos, "n_neg": self.n_neg}
