"""Influence: how much one training example helps the prediction of one test example.

    infl_ij = E[quality of f on j | i in S] - E[quality of f on j | i not in S]      in [-1, 1]; higher = helps more
            = (C'^T K)_ji / n_in_i - (C'^T (1 - K))_ji / n_out_i

over the models of the reference ensemble. K = keep (M, N) bool: model m trained on i; C' (M, P) in [0, 1]: the quality
(``tasks.base``) of model m on test example j, which no model trained on; of a classifier it is f(x'_j) = y'_j and bool.
The P x N matrix is never held: it is made a block of test examples at a time.

Two cuts pick the pairs worth showing: mem_i >= 0.25 and infl_ij >= 0.15 (the paper's), and, since thousands of pairs of
M noisy models exceed 0.15 by chance, the Benjamini-Hochberg cut on all pairs with mem_i >= 0.25. Its p-values are
exact: were i without influence on j, which n_in of the M models hold i would be a random draw, and the right ones among
    them would be
    H ~ Hypergeometric(M, models right on j, n_in),     p = P[H >= observed],     z = (observed - E H) / sd H.
A quality between 0 and 1 has no such count. There p is Serfling's bound on the mean of a draw without replacement,
which holds for every n_in and M and is never below the exact p-value; R_j is the range of the quality of the M models
on j:
    p = exp(-2 n_in t^2 / (rho R_j^2)),   t = mean quality of the n_in - mean quality of all,   rho = 1 - (n_in - 1) / M
    where n_in <= M / 2, else (1 - n_in / M) (1 + 1 / n_in).
The Wald ratio infl / sqrt(sum q (1 - q) / n) is no substitute: it is infinite for the strongest pairs of few models.
The interval of infl is Newcombe's (``stats.proportions``), as that of mem is, and the analysis takes an example for
memorised when the lower end of its mem is at the cut.

Source: Feldman & Zhang, "What Neural Networks Memorize and Why" (NeurIPS 2020, arXiv 2008.03703), sections 2 and 3 and
    the
authors' code; Benjamini & Hochberg (JRSS B 1995); Fisher's exact test; Serfling (Annals of Statistics 1974) and
Bardenet & Maillard (Bernoulli 2015), the bound. Not influence functions (no gradients, no convexity),
and not about one model: it averages over the recipe's randomness, with half of the pool left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import gammaln

from contracts.errors import InvalidInput
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from recipes.ensemble import ReferenceEnsemble
from scoring.memorization import fit_of, memorization_scores
from scoring.pool import Ints, members, qualities
from sources.example_set import ExampleSet
from stats.proportions import newcombe

Floats = NDArray[np.float64]
Quality = NDArray[np.bool_ | np.float64]
_CELLS = 4_000_000  # entries of one block of the matrix


@dataclass(frozen=True, eq=False)
class InfluenceBlock:
    """Rows of the influence matrix, as counts; ``infl`` is worked out when asked for.

    Attributes:
        rows: the test examples of the block.
        hits: int32 (b, N), models that trained on i and are right on j; float64, the sum of their quality on j, where
            that is not bool.
        right: int64 (b,), models right on j; float64, the sum of the quality of all.
        n_in, n_out: int64 (N,), models that trained on i, and that did not.
        range, square: float64 (b,), greatest minus least quality on j, and the sum of its squares; None where it is
            bool.
    """

    rows: slice
    hits: NDArray[np.int32 | np.float64]
    right: NDArray[np.int64 | np.float64]
    n_in: Ints
    n_out: Ints
    range: Floats | None = None
    square: Floats | None = None

    @property
    def infl(self) -> Floats:
        """float64 (b, N); NaN where no model is on one of the sides."""
        with np.errstate(divide="ignore", invalid="ignore"):  # an empty side is 0 / 0: NaN
            out: Floats = self.hits / self.n_in
            out -= (self.right[:, None] - self.hits) / self.n_out
        if self.range is not None:  # sums of fractions leave a rounding error where the side is empty
            out[:, (self.n_in == 0) | (self.n_out == 0)] = np.nan
            np.clip(out, -1.0, 1.0, out=out)
        return out

    def interval(self, test: Ints, train: Ints) -> tuple[Floats, Floats]:
        """Newcombe's 95% interval of pairs, two float64 (R,), from their rows in the block and training examples, int64
        (R,) each."""
        hits, n_in, n_out = self.hits[test, train], self.n_in[train], self.n_out[train]
        with np.errstate(divide="ignore", invalid="ignore"):
            inside, outside = hits / n_in, (self.right[test] - hits) / n_out
        return newcombe(np.clip(inside, 0.0, 1.0), n_in, np.clip(outside, 0.0, 1.0), n_out)


@dataclass(frozen=True, eq=False)
class InfluencePairs:
    """Pairs that pass both cuts, strongest first, then by position.

    Attributes:
        train, test: int64 (R,), columns of ``keep`` and of ``correct``.
        infl, low, high, z, p_value, q_value: float64 (R,); low and high are the 95% interval of infl, q_value is the
            smallest false-discovery rate at which the pair is kept.
        num_memorised: training examples with mem >= min_mem and models on both sides.
        num_tested: pairs of these with any test example: the family of the false-discovery rate.
        num_over: pairs of the family with infl >= min_infl, before the false-discovery cut.
    """

    train: Ints
    test: Ints
    infl: Floats
    low: Floats
    high: Floats
    z: Floats
    p_value: Floats
    q_value: Floats
    num_memorised: int
    num_tested: int
    num_over: int


def influence_matrix(
    keep: NDArray[np.bool_], correct: Quality, *, block: int | None = None
) -> Iterator[InfluenceBlock]:
    """The influence matrix, a block of test examples at a time.

    Args:
        keep: (M, N) bool, model m trained on training example i.
        correct: (M, P) bool, model m is right on test example j; or float64 in [0, 1], its quality there.
        block: test examples a block; by default what keeps a block at four million pairs. Changes no value of bool:
            counts are whole numbers, which single precision holds exactly up to 2^24 models.

    Raises:
        InvalidInput: neither bool nor float64 in [0, 1], shapes that do not fit, block < 1.

    >>> next(influence_matrix(np.array([[True], [False]]), np.array([[True], [False]]))).infl.tolist()
    [[1.0]]
    """
    soft = correct.dtype == np.float64
    if keep.dtype != np.bool_ or keep.ndim != 2 or correct.ndim != 2 or not (soft or correct.dtype == np.bool_):
        raise InvalidInput(
            f"keep is {keep.dtype} {keep.shape}, correct {correct.dtype} {correct.shape}; bool is needed, or float64 "
            "of correct"
        )
    if soft and not ((correct >= 0) & (correct <= 1)).all():  # NaN included
        raise InvalidInput("correct holds values outside [0, 1]")
    if len(keep) != len(correct):
        raise InvalidInput(f"keep speaks of {len(keep)} models and correct of {len(correct)}")
    step = max(1, _CELLS // max(keep.shape[1], 1)) if block is None else block
    if step < 1:
        raise InvalidInput(f"block = {block} must be >= 1")
    return _blocks(keep, correct, step)


def _blocks(keep: NDArray[np.bool_], correct: Quality, step: int) -> Iterator[InfluenceBlock]:
    inside: NDArray[Any] = keep.astype(np.float32 if correct.dtype == np.bool_ else np.float64)
    n_in = keep.sum(0, dtype=np.int64)
    n_out = len(keep) - n_in
    for start in range(0, correct.shape[1], step):
        rows = slice(start, min(start + step, correct.shape[1]))
        if correct.dtype != np.bool_:
            quality: Floats = np.asarray(correct[:, rows], np.float64)
            yield InfluenceBlock(
                rows=rows,
                hits=quality.T @ inside,
                right=quality.sum(0),
                n_in=n_in,
                n_out=n_out,
                range=np.ptp(quality, axis=0) if len(quality) else np.zeros(quality.shape[1]),
                square=np.square(quality).sum(0),
            )
            continue
        hits = correct[:, rows].T.astype(np.float32) @ inside
        right = correct[:, rows].sum(0, dtype=np.int64)
        yield InfluenceBlock(rows=rows, hits=hits.astype(np.int32), right=right, n_in=n_in, n_out=n_out)


def influence_directions(keep: NDArray[np.bool_], correct: Quality, *, count: int = 1) -> tuple[Floats, Floats]:
    """The first right singular vectors of the influence matrix: directions in which training examples act together on
    the predictions of others. The examples at the far end of one are a coherent subpopulation (Georgiev et al., ICLR
    2025, who forget such sets).

    The matrix is C'^T A, A_mi = K_mi / n_in_i - (1 - K_mi) / n_out_i, of rank M - 1 at most. With A^T = Q R its right
    singular vectors are Q w, w those of C'^T R^T: nothing of size P x N is made.

    Args:
        keep: (M, N) bool; an example that no model, or every model, trained on has influence 0.
        correct: (M, P) bool or float64 in [0, 1], see :func:`influence_matrix`.
        count: how many, at most min(M - 1, N, P).

    Returns:
        Singular values (count,), descending, and vectors (N, count) of length 1, each turned so that the side on which
        most of its length lies is positive; a direction of singular value 0 is all zeros.

    Raises:
        InvalidInput: as :func:`influence_matrix`, or count out of range.
    """
    influence_matrix(keep, correct)  # checks both
    models, num = keep.shape
    most = min(models - 1, num, correct.shape[1])
    if not 1 <= count <= most:
        raise InvalidInput(f"count = {count} directions of an influence matrix of rank {most} at most")
    n_in = keep.sum(0)
    both = (n_in > 0) & (n_in < models)
    inside = np.where(both, keep / np.maximum(n_in, 1), 0.0)
    effect_MN = inside - np.where(both, ~keep / np.maximum(models - n_in, 1), 0.0)
    q_NM, r = np.linalg.qr(effect_MN.T)
    quality = np.asarray(correct, np.float64)
    _, size, w = np.linalg.svd((quality - quality.mean(0)).T @ r.T, full_matrices=False)
    size, vectors = size[:count], (q_NM @ w[:count].T).astype(np.float64)
    below = np.where(vectors < 0, np.square(vectors), 0.0).sum(0) > 0.5
    vectors = np.where(below, -vectors, vectors)
    vectors[:, size <= 1e-12 * max(float(size[0]), 1e-300)] = 0.0
    return size, vectors


def high_influence_pairs(
    keep: NDArray[np.bool_],
    correct: Quality,
    mem: Floats,
    *,
    min_mem: float = 0.25,
    min_infl: float = 0.15,
    fdr: float = 0.05,
    block: int | None = None,
    progress: Progress = silent,
) -> InfluencePairs:
    """Pairs with mem >= ``min_mem``, infl >= ``min_infl`` and q <= ``fdr``.

    Two passes over the matrix: the first counts how often each p-value occurs, which gives the cut, the second keeps
    the pairs. Memory is that of a block and of what is kept.

    Args:
        keep: (M, N) bool.
        correct: (M, P) bool, or float64 in [0, 1], on test examples that no model trained on.
        mem: (N,) memorization, or the lower end of its interval; NaN = not known, left out.
        min_mem, min_infl: the paper's cuts.
        fdr: largest false-discovery rate, in (0, 1].
        block: test examples a block.
        progress: called with (blocks done, in all, "influence").

    Raises:
        InvalidInput: see :func:`influence_matrix`; mem of another length; fdr out of range.
    """
    if mem.shape != keep.shape[1:] or not 0 < fdr <= 1:
        raise InvalidInput(f"mem has shape {mem.shape} for keep {keep.shape}, fdr = {fdr} must be in (0, 1]")
    n_in = keep.sum(0, dtype=np.int64)
    family = np.flatnonzero((np.nan_to_num(mem, nan=-np.inf) >= min_mem) & (n_in > 0) & (n_in < len(keep)))
    family = family[np.argsort(n_in[family], kind="stable")]  # equal n_in side by side: see upper_tail
    keep, n_in, num_test = keep[:, family], n_in[family], correct.shape[1]
    tested = len(family) * num_test

    values, counts, over = np.empty(0), np.empty(0, np.int64), 0
    for part in influence_matrix(keep, correct, block=block):
        p = p_values(part, len(keep))
        over += int((part.infl >= min_infl).sum())
        values, counts = _merged(values, counts, p[p <= fdr])
        progress(part.rows.stop, 2 * num_test, "influence")
    q_values = _false_discovery_rates(values, counts, tested)
    largest = values[q_values <= fdr].max(initial=-1.0)

    whole: list[tuple[Ints, Ints]] = []
    real: list[tuple[Floats, ...]] = []
    for part in influence_matrix(keep, correct, block=block):
        p, helps = p_values(part, len(keep)), part.infl
        test, train = at = np.nonzero((p <= largest) & (helps >= min_infl))
        z = _standardised(part, test, train, len(keep))
        whole.append((family[train], test + part.rows.start))
        real.append((helps[at], *part.interval(test, train), z, p[at]))
        progress(num_test + part.rows.stop, 2 * num_test, "influence")
    train, test = (np.concatenate(column) for column in zip(*whole, strict=True)) if whole else (family[:0],) * 2
    infl, low, high, z, p = (
        (np.concatenate(column) for column in zip(*real, strict=True)) if real else (np.empty(0),) * 5
    )
    order = np.lexsort((test, train, -infl))
    q = q_values[np.searchsorted(values, p)] if len(p) else p
    infl, low, high, z, p, q = (column[order] for column in (infl, low, high, z, p, q))
    return InfluencePairs(train[order], test[order], infl, low, high, z, p, q, len(family), tested, over)


def p_values(part: InfluenceBlock, num_models: int) -> Floats:
    """One-sided p-values of a block, float64 (b, N): exact for counts, Serfling's bound for sums of qualities."""
    if part.range is None:
        return upper_tail(part.hits, part.right, part.n_in, num_models)  # type: ignore[arg-type]
    return serfling_tail(part.hits, part.right, part.n_in, num_models, spread=part.range)


def serfling_tail(
    hits: NDArray[Any], right: NDArray[Any], n_in: Ints, num_models: int, *, spread: NDArray[Any]
) -> Floats:
    """A bound on P[sum of the quality of n_in of the models drawn without replacement >= hits]: float64 (b, N) in (0,
    1].

    Args:
        hits: (b, N), the sums.
        right: (b,), the sums over all models.
        n_in: (N,), in 1..num_models.
        num_models: M.
        spread: (b,), greatest minus least quality over the models; where it is 0 nothing can be told, and the bound is
            1.

    >>> tail = serfling_tail(np.array([[2.0]]), np.array([2.0]), np.array([2]), 4, spread=np.array([1.0]))
    >>> round(float(tail[0, 0]), 3)
    0.264
    """
    n = n_in.astype(np.float64)
    rho = np.where(2 * n_in <= num_models, 1 - (n - 1) / num_models, (1 - n / num_models) * (1 + 1 / n))
    above = np.maximum(hits / n - right[:, None] / num_models, 0.0)
    scale = rho * np.square(spread)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # no spread, or every model: 0 / 0
        bound: Floats = np.exp(-2 * n * np.square(above) / scale)
    return np.where(scale > 0, bound, 1.0)


def upper_tail(hits: NDArray[np.integer[Any]], right: Ints, n_in: Ints, num_models: int) -> Floats:
    """P[H >= hits], H ~ Hypergeometric(num_models, right, n_in): float64 (b, N).

    Args:
        hits: (b, N).
        right: (b,).
        n_in: (N,).
        num_models: M.

    >>> bool(np.isclose(upper_tail(np.array([[2]]), np.array([2]), np.array([2]), 4)[0, 0], 1 / 6))
    True
    """
    p = np.empty(hits.shape)
    totals, row = np.unique(right, return_inverse=True)
    order = np.argsort(n_in, kind="stable")
    in_order = bool((order[1:] > order[:-1]).all())
    for n, first in zip(*np.unique(n_in[order], return_index=True), strict=True):
        # One n in the balanced design; the tail is looked up, not computed a pair.
        stop = int(np.searchsorted(n_in[order], n, side="right"))
        columns = slice(int(first), stop) if in_order else order[first:stop]
        p[:, columns] = np.take(_tails(totals, int(n), num_models), hits[:, columns] + (row * (n + 1))[:, None])
    return p


def _smallest_p(num_models: int, n_in: int, *, soft: bool) -> float:
    """Of an example whose own models are perfect on j, and the others all wrong."""
    if soft:
        whole = np.array([float(n_in)])
        return float(serfling_tail(whole[:, None], whole, np.array([n_in]), num_models, spread=np.ones(1))[0, 0])
    return float(np.exp(-_log_binomial(np.array(num_models), np.array(n_in))))


def _classes(data: ExampleSet, labels: NDArray[Any]) -> pl.Series:
    """The labels of the pairs, or nulls where the task has no classes."""
    return pl.Series(labels if data.class_names else [None] * len(labels), dtype=pl.Int64)


def _tails(totals: Ints, n: int, num_models: int) -> Floats:
    """P[H >= h] for every total and h = 0..n: float64 (T, n + 1)."""
    t, h = totals[:, None], np.arange(n + 1)[None]
    possible = (h <= t) & (n - h <= num_models - t)
    h_ = np.where(possible, h, np.maximum(0, n - (num_models - t)))  # any possible value: the logarithm must exist
    log_share = (
        _log_binomial(t, h_) + _log_binomial(num_models - t, n - h_) - _log_binomial(np.array(num_models), np.array(n))
    )
    share = np.where(possible, np.exp(log_share), 0.0)
    tail: Floats = np.minimum(share[:, ::-1].cumsum(1)[:, ::-1], 1.0)
    return tail


def _log_binomial(n: Ints, k: Ints) -> Floats:
    found: Floats = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return found


def _standardised(part: InfluenceBlock, test: Ints, train: Ints, num_models: int) -> Floats:
    """z of pairs, from their rows in the block and training examples."""
    hits, n_in = part.hits[test, train], part.n_in[train]
    share = part.right[test] / num_models
    variance = share * (1.0 - share) if part.square is None else part.square[test] / num_models - np.square(share)
    sd = np.sqrt(n_in * variance * (num_models - n_in) / (num_models - 1))
    z: Floats = (hits - n_in * share) / sd  # infl > 0 is impossible with sd = 0
    return z


def _merged(values: Floats, counts: Ints, more: Floats) -> tuple[Floats, Ints]:
    """Distinct values, ascending, and how often each occurred, after adding ``more``."""
    new, occurs = np.unique(more, return_counts=True)
    merged, slot = np.unique(np.concatenate([values, new]), return_inverse=True)
    return merged, np.bincount(slot, np.concatenate([counts, occurs]), minlength=len(merged)).astype(np.int64)


def _false_discovery_rates(values: Floats, counts: Ints, tested: int) -> Floats:
    """Benjamini-Hochberg: q of each distinct p-value, ascending; exact for q at or below the p-values' upper end."""
    if not len(values):
        return np.empty(0)
    rate: Floats = np.minimum(values * tested / counts.cumsum(), 1.0)
    return np.minimum.accumulate(rate[::-1])[::-1]


# ---- the analysis ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class InfluenceConfig(Config):
    """Which pairs are kept."""

    min_mem: float = param(
        0.25, ge=-1, le=1, doc="smallest lower end of the interval of the training example's memorization"
    )
    min_infl: float = param(0.15, gt=0, le=1, doc="smallest influence")
    fdr: float = param(0.05, gt=0, le=1, doc="largest false-discovery rate (Benjamini-Hochberg)")
    max_pairs: int = param(100_000, ge=1, le=100_000_000, doc="strongest pairs stored; all are counted")


def _id(name: str, doc: str) -> Column:
    return Column(name=name, dtype="int64", low=0, doc=doc)


def _label(name: str, doc: str) -> Column:
    return Column(name=name, dtype="int64", low=0, nullable=True, doc=f"{doc}; null where examples have no class")


_PAIRS = TableSpec(
    schema="scores",
    name="influence_pairs",
    version=3,
    key=("train_id", "test_id"),
    doc="Training examples and the unseen examples whose prediction hinges on them, after both cuts.",
    columns=(
        _id("train_id", "the training example"),
        _id("test_id", "the example of the population, in no model"),
        Column(
            name="infl",
            dtype="float64",
            low=-1,
            high=1,
            direction="higher = helps more",
            doc="quality (accuracy) on test_id of models with train_id, minus that of models without",
        ),
        Column(
            name="infl_low", dtype="float64", low=-1, high=1, doc="lower end of the 95% interval of infl (Newcombe)"
        ),
        Column(name="infl_high", dtype="float64", low=-1, high=1, doc="upper end"),
        Column(
            name="mem",
            dtype="float64",
            low=-1,
            high=1,
            direction="higher = more memorised",
            doc="memorization of train_id",
        ),
        Column(
            name="z",
            dtype="float64",
            doc="standardised count of right models (sum of their quality) with train_id, were there no influence",
        ),
        Column(
            name="p_value",
            dtype="float64",
            low=0,
            high=1,
            doc="one-sided p-value: exact (hypergeometric), or its bound where quality lies between 0 and 1 (Serfling)",
        ),
        Column(
            name="q_value",
            dtype="float64",
            low=0,
            high=1,
            doc="smallest false-discovery rate at which the pair is kept",
        ),
        _label("label", "class of train_id"),
        _label("test_label", "class of test_id"),
    ),
)
_SUMMARY = TableSpec(
    schema="scores",
    name="influence_summary",
    key=("num_models",),
    doc="What was tested for influence, and with what power.",
    columns=(
        Column(name="num_models", dtype="int64", low=2, doc="models of the ensemble"),
        Column(name="num_train", dtype="int64", low=0, doc="training examples in the pool"),
        Column(
            name="num_memorised",
            dtype="int64",
            low=0,
            doc="of these, with the lower end of mem's interval at or above the cut",
        ),
        Column(name="num_test", dtype="int64", low=0, doc="examples in no model"),
        Column(name="num_tested", dtype="int64", low=0, doc="pairs tested"),
        Column(
            name="num_over",
            dtype="int64",
            low=0,
            doc="pairs with infl at or above its cut, before the false-discovery cut",
        ),
        Column(name="num_pairs", dtype="int64", low=0, doc="pairs after it"),
        Column(
            name="smallest_p",
            dtype="float64",
            low=0,
            high=1,
            doc="smallest p-value that so many models can give; above fdr / num_tested no pair can be found alone",
        ),
        Column(
            name="acc_in",
            dtype="float64",
            low=0,
            high=1,
            doc="quality (accuracy) of the models on their own members; nothing is published below 0.98",
        ),
        Column(
            name="acc_test",
            dtype="float64",
            low=0,
            high=1,
            nullable=True,
            doc="quality (accuracy) of the models on the population; null without one",
        ),
    ),
)


@analysis(
    AnalysisSpec(
        name="influence",
        wants=("reading",),
        doc="Influence: which memorised training examples decide the prediction of which unseen example.",
        source="Feldman & Zhang, NeurIPS 2020 (arXiv 2008.03703); Benjamini & Hochberg, JRSS B 1995",
        config=InfluenceConfig,
        version=3,
        needs=("ensemble",),
        tables=(_PAIRS, _SUMMARY),
        pictures=(
            Picture(
                table="influence_pairs",
                kind="examples",
                x="train_id",
                y="infl",
                series="test_id",
                title="Training examples on which the prediction of an unseen example hinges",
            ),
        ),
    )
)
def influence(
    data: ExampleSet, *, config: InfluenceConfig, seed: int, ensemble: ReferenceEnsemble, progress: Progress = silent
) -> dict[str, pl.DataFrame]:
    """High-influence pairs of the training examples in the pool and the population, which is in no model.

    Args:
        data: both splits.
        config: the cuts.
        seed: not used.
        ensemble: M models on halves of the pool.
        progress: called with how far the passes over the matrix are.

    Returns:
        ``influence_pairs``, strongest first, and ``influence_summary``, one row.

    Raises:
        NotApplicable: an ensemble that does not fit its training sets (the gate of ``memorization``).
        DataError: ids used twice; no training example in the pool; targets other than the ensemble's or none of the
            task's; NaN or infinite readings. Names the examples.
    """
    train = data.part("train")
    train = train.by_id()
    _, columns = members("influence", train, ensemble)
    population = np.flatnonzero(~ensemble.pool)
    population = population[np.argsort(ensemble.example_id[population])]
    own = memorization_scores(ensemble.keep[:, columns], qualities(ensemble, columns))
    correct = qualities(ensemble, population)
    fit = fit_of("influence", own)
    pairs = high_influence_pairs(
        ensemble.keep[:, columns],
        correct,
        own.low,
        min_mem=config.min_mem,
        min_infl=config.min_infl,
        fdr=config.fdr,
        progress=progress,
    )
    i, j = columns[pairs.train[: config.max_pairs]], population[pairs.test[: config.max_pairs]]
    stored = slice(0, config.max_pairs)
    num_models, n_in = len(ensemble.keep), len(ensemble.keep) // 2
    return {
        "influence_pairs": pl.DataFrame(
            {
                "train_id": ensemble.example_id[i],
                "test_id": ensemble.example_id[j],
                "infl": pairs.infl[stored],
                "infl_low": pairs.low[stored],
                "infl_high": pairs.high[stored],
                "mem": own.mem[pairs.train[stored]],
                "z": pairs.z[stored],
                "p_value": pairs.p_value[stored],
                "q_value": pairs.q_value[stored],
                "label": _classes(data, ensemble.labels[i]),
                "test_label": _classes(data, ensemble.labels[j]),
            }
        ),
        "influence_summary": pl.DataFrame(
            {
                "num_models": [num_models],
                "num_train": [len(columns)],
                "num_memorised": [pairs.num_memorised],
                "num_test": [len(population)],
                "num_tested": [pairs.num_tested],
                "num_over": [pairs.num_over],
                "num_pairs": [len(pairs.train)],
                "smallest_p": [_smallest_p(num_models, n_in, soft=correct.dtype != np.bool_)],
                "acc_in": [fit],
                "acc_test": [float(correct.mean()) if correct.size else None],
            },
            schema_overrides={"acc_test": pl.Float64},
        ),
    }
