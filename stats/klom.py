"""KLoM, the KL divergence of margins: does a removal method give models that answer as retrained ones do?

    klom(x) = KL( law of m(x) over unlearned models || law of m(x) over models retrained without the forget set )

m is the margin of example x, the logit of its class less the log-sum-exp of the others (``tasks``: the signal of a
classifier; other tasks have a signal of their own). A run is one model; the two sides are samples over runs.

    binned   as published and as in the authors' benchmark: margins cut to +-100, 20 equal bins from the least to the
             greatest of both sides together, shares of the second side below 1e-5 raised to that where the first has
             any. There the greatest value of all falls out of the last bin; here it lies in it.
    normal   of two normals: 1/2 [ log(t^2 / s^2) + (s^2 + d^2) / t^2 - 1 ], d the difference of the means, s^2 and t^2
             the variances, each moderated towards the median t^2 of all examples as if by four runs more (Smyth 2004):
             with few runs a variance is sometimes tiny by chance, and the ratio then has no mean

Bias for few runs. Neither estimator is 0 for two samples of one law: with five runs a side the binned one is of the
size of log(1 / 1e-5), since hardly any bin holds both. So a figure means something only beside its floor, which has the
same number of runs:
    a, b     random halves of the runs, many times
    half     mean over halvings of klom(unlearned a || retrained b)
    floor    mean over halvings of klom(retrained a || retrained b)        excess = half - floor
A method that is retraining has excess 0 in the mean, whatever the bias. Whether an excess is chance: run t of both
sides has one seed, so if the method were retraining the two models of a run could be swapped. The p-value counts the
swaps of single runs with a mean divergence at least that observed, all 2^R of them while these are few (Fisher; Phipson
and Smyth 2010); R runs cannot give one below 2^-R.

Source: Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching" (ICLR 2025, arXiv 2410.23232),
appendix E.1, which takes 100 runs and reports the 95th percentile over examples; Smyth (Stat. Appl. Genet. Mol. Biol.
2004) for moderated variances. It compares laws over runs: it is no statement about the one model that was published.
Shapes: R runs, N examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.errors import InvalidInput

Float = NDArray[np.float64]
Divergence = Callable[[Float, Float], Float]
BINS, EPS, CLIP = 20, 1e-5, 100.0
FEWEST_RUNS = 4  # a half has two
_PRIOR_RUNS = 4.0
_TINY = 1e-12  # variance of margins that never move


def binned_kl(first: Float, second: Float) -> Float:
    """KL(first || second) of each column by the published binning; see the module.

    Args:
        first: (R, N) finite margins; ``second``: (R', N).

    Returns:
        (N,) float64, nats, >= 0; at most log(1 / 1e-5) = 11.5.

    Raises:
        InvalidInput: shapes that do not fit, no run, or values that are not finite.

    >>> binned_kl(np.zeros((3, 1)), np.zeros((3, 1))).tolist()
    [0.0]
    """
    p, q = (np.clip(side, -CLIP, CLIP) for side in _checked(first, second, fewest=1))
    low = np.minimum(p.min(0), q.min(0))
    width = np.maximum(p.max(0), q.max(0)) - low
    scale = np.divide(BINS, width, out=np.zeros_like(width), where=width > 0)
    shares_p, shares_q = (_shares(np.minimum((side - low) * scale, BINS - 1).astype(np.int64)) for side in (p, q))
    shares_q = np.where(shares_p > 0, np.maximum(shares_q, EPS), shares_q)
    shares_q /= shares_q.sum(0)
    ratio = np.divide(shares_p, shares_q, out=np.ones_like(shares_p), where=shares_p > 0)
    found: Float = np.maximum((shares_p * np.log(ratio)).sum(0), 0.0)
    return found


def _shares(bins: NDArray[np.int64]) -> Float:
    """(bins, N) shares of each column's values in each bin."""
    runs, num = bins.shape
    flat = (bins * num + np.arange(num)).ravel()
    shares: Float = np.bincount(flat, minlength=BINS * num).reshape(BINS, num) / runs
    return shares


def normal_kl(first: Float, second: Float) -> Float:
    """KL(first || second) of each column, both sides normal with moderated variances; see the module.

    Args:
        first: (R, N) finite margins, R >= 2; ``second``: (R', N).

    Returns:
        (N,) float64, nats, >= 0, unbounded.

    Raises:
        InvalidInput: as :func:`binned_kl`, or fewer than two runs on a side.
    """
    p, q = _checked(first, second, fewest=2)
    prior = max(float(np.median(q.var(0, ddof=1))) if q.shape[1] else 0.0, _TINY)
    s2, t2 = (((len(v) - 1) * v.var(0, ddof=1) + _PRIOR_RUNS * prior) / (len(v) - 1 + _PRIOR_RUNS) for v in (p, q))
    apart = np.square(p.mean(0) - q.mean(0))
    found: Float = 0.5 * (np.log(t2 / s2) + (s2 + apart) / t2 - 1.0)
    return np.maximum(found, 0.0)


@dataclass(frozen=True, eq=False)
class Klom:
    """What R runs of a method and of retraining say of N examples by one estimator.

    Attributes:
        value: (N,), on all runs of both sides.
        half: (N,), of unlearned half a against retrained half b, mean over halvings; NaN below ``FEWEST_RUNS``.
        floor: (N,), of retrained half a against retrained half b, the same halvings; NaN likewise.
        p_value: that an exact method had a mean ``value`` as large, one-sided, by swaps of runs.
    """

    value: Float
    half: Float
    floor: Float
    p_value: float

    @property
    def excess(self) -> Float:
        """(N,) ``half`` above ``floor``: 0 in the mean for an exact method."""
        return self.half - self.floor


def klom(
    unlearned: Float,
    retrained: Float,
    *,
    estimator: Divergence = binned_kl,
    seed: int,
    halvings: int = 20,
    swaps: int = 199,
) -> Klom:
    """KLoM with its floor and its p-value; see the module.

    Args:
        unlearned: (R, N) margins; row t is of the same seed as row t of ``retrained``.
        estimator: :func:`binned_kl`, or :func:`normal_kl` for fewer than some 20 runs.
        seed: of the halvings and the swaps.

    Raises:
        InvalidInput: not two matrices of one shape with two runs at least, or values that are not finite.
    """
    ours, theirs = _checked(unlearned, retrained, fewest=2)
    if ours.shape != theirs.shape:
        raise InvalidInput(f"margins {ours.shape} and {theirs.shape}: runs are paired, so both sides have as many")
    rng = np.random.default_rng(seed)
    runs, num = ours.shape
    value = estimator(ours, theirs)
    p_value = _swapped(ours, theirs, float(value.mean()), estimator, rng, swaps) if num else 1.0
    half, floor = np.full((2, num), np.nan)
    if runs >= FEWEST_RUNS:
        half, floor = np.zeros((2, num))
        for _ in range(halvings):
            order = rng.permutation(runs)
            a, b = order[: runs // 2], order[runs // 2 : 2 * (runs // 2)]
            half += estimator(ours[a], theirs[b]) / halvings
            floor += estimator(theirs[a], theirs[b]) / halvings
    return Klom(value=value, half=half, floor=floor, p_value=p_value)


def _swapped(
    ours: Float, theirs: Float, observed: float, estimator: Divergence, rng: np.random.Generator, swaps: int
) -> float:
    """Share of swaps of single runs, the one that swaps nothing among them, with a mean divergence at least as large:
    all 2^R while these are no more than asked for, else random ones."""
    runs = len(ours)
    every = 2**runs <= swaps + 1
    chosen = (np.arange(2**runs)[:, None] >> np.arange(runs)) & 1 if every else rng.integers(0, 2, (swaps, runs))
    at_least = 0 if every else 1
    for swap in chosen.astype(bool)[:, :, None]:
        found = float(estimator(np.where(swap, theirs, ours), np.where(swap, ours, theirs)).mean())
        at_least += found >= observed * (1 - 1e-12)  # the same numbers in another order are summed otherwise
    return at_least / (len(chosen) + (0 if every else 1))


def _checked(first: Float, second: Float, *, fewest: int) -> tuple[Float, Float]:
    p, q = (np.asarray(side, dtype=np.float64) for side in (first, second))
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1] or min(len(p), len(q)) < fewest:
        raise InvalidInput(
            f"margins {p.shape} and {q.shape}: needs (runs, examples) of the same examples, {fewest} runs at least"
        )
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        raise InvalidInput("margins must be finite")
    return p, q
