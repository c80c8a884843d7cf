"""AUC and TPR over shadow runs that judge the same examples: mean over runs, errors clustered both by run and by
example.

    A = mean_t AUC_t,   AUC_t of positives against negatives of run t
    h[t, j]   DeLong's placement of example j in run t:  (V10 - AUC_t) / n+_t  where positive,  (V01 - AUC_t) / n-_t
              where negative
    var A = 1/R^2 [ R/(R-1) sum_t (AUC_t - A)^2  +  N/(N-1) sum_j (sum_t h[t, j])^2  -  sum_{t, j} h[t, j]^2 ]

The runs are not independent trials: they judge the same examples, and what chance makes of an example's normals helps
or hurts in all of them. Simulated coverage of 95% (LiRA and RMIA on 8 to 60 runs x 20 to 400 examples, nothing to find
and AUCs up to 0.84): AUC 0.94 to 0.98, TPR 0.97 and more; a bootstrap over runs alone as little as 0.56 and 0.68. At an
AUC of 0.99 0.93.

Sources: DeLong et al., Biometrics 1988; Cameron, Gelbach and Miller, J. Bus. Econ. Stat. 2011, eq. 2.11 (two-way
    clustering);
interval on the logit scale as in ``stats.auc_interval``, with the t quantile of min(R, N) - 1 degrees of freedom.

Shapes: scores (R, N), NaN where not judged; positive (R, N) bool, read where a score is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from contracts.errors import InvalidInput
from stats import clopper_pearson, placements

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class OverRuns:
    """AUC of every run (R,), the placements h (R, N) it is made of, 0 where an example is not judged, and ``pairs``:
    the fewest disjoint pairs of a positive and a negative that a run judges.
    """

    auc: Float
    placement: Float
    pairs: int

    def __sub__(self, other: OverRuns) -> OverRuns:
        """Paired difference on the same runs and examples."""
        return OverRuns(
            auc=self.auc - other.auc,
            placement=self.placement - other.placement,
            pairs=min(self.pairs, other.pairs),
        )

    @property
    def value(self) -> float:
        return float(self.auc.mean())

    @property
    def stderr(self) -> float:
        """Clustered by run and by example; not below what either alone would say."""
        num_runs, num_examples = self.placement.shape
        runs = num_runs / (num_runs - 1) * float(np.square(self.auc - self.auc.mean()).sum())
        examples = num_examples / (num_examples - 1) * float(np.square(self.placement.sum(axis=0)).sum())
        cells = float(np.square(self.placement).sum())
        return float(np.sqrt(max(runs + examples - cells, runs, examples)) / num_runs)

    @property
    def quantile_freedom(self) -> int:
        return int(min(self.placement.shape)) - 1

    def interval(self, alpha: float) -> tuple[float, float]:
        """Of an AUC, on the logit scale. Without any spread (every run separates perfectly) the data says nothing about
        its own error; the bounds are then those of a single run (``stats.auc_interval``), as if all were copies of it.
        """
        value, stderr = self.value, self.stderr
        if stderr == 0 or not 0 < value < 1:
            slack = 1 - (alpha / 2) ** (1 / self.pairs)
            return max(0.0, value - slack), min(1.0, value + slack)
        reach = self._reach(alpha) * stderr / (value * (1 - value))
        centre = np.log(value / (1 - value))
        low, high = (float(1 / (1 + np.exp(-(centre + side * reach)))) for side in (-1, 1))
        return low, high

    def difference_interval(self, alpha: float) -> tuple[float, float]:
        """Of a paired difference of two AUCs."""
        reach = self._reach(alpha) * self.stderr
        return max(-1.0, self.value - reach), min(1.0, self.value + reach)

    def grown_p_value(self) -> float:
        """One-sided, of "the difference is not above 0"; 1 when nothing changed at all."""
        if self.stderr == 0:
            return 0.0 if self.value > 0 else 1.0
        return float(student_t.sf(self.value / self.stderr, self.quantile_freedom))

    def _reach(self, alpha: float) -> float:
        return float(student_t.ppf(1 - alpha / 2, self.quantile_freedom))


def auc_over_runs(scores: Float, positive: Bool) -> OverRuns:
    """See the module; ties count half.

    Raises:
        InvalidInput: fewer than two runs or examples, or a run without a judged positive or negative.
    """
    if scores.ndim != 2 or scores.shape != positive.shape or min(scores.shape) < 2:
        raise InvalidInput(f"scores {scores.shape} and truth {positive.shape}: needs (R, N) with two runs and examples")
    areas, placement = np.empty(len(scores)), np.zeros(scores.shape)
    pairs = scores.shape[1]
    for t, (row, truth) in enumerate(zip(scores, positive, strict=True)):
        judged = ~np.isnan(row)
        pos, neg = np.flatnonzero(judged & truth), np.flatnonzero(judged & ~truth)
        if not len(pos) or not len(neg):
            raise InvalidInput(f"run {t} judges {len(pos)} positive and {len(neg)} negative examples; both are needed")
        v10, v01 = placements(row[pos], row[neg])
        areas[t] = v10.mean()
        placement[t, pos] = (v10 - areas[t]) / len(pos)
        placement[t, neg] = (v01 - areas[t]) / len(neg)
        pairs = min(pairs, len(pos), len(neg))
    return OverRuns(auc=areas, placement=placement, pairs=pairs)


def mean_over_runs(values: Float, judged: Bool, *, alpha: float) -> tuple[float, float, float]:
    """(value, low, high): mean over runs of the mean of ``values`` over each run's judged examples, clustered as an AUC
    is.

    Args:
        values: (R, N) in [-1, 1], for instance differences of being right, paired by run and example.
        judged: (R, N) bool.

    Raises:
        InvalidInput: fewer than two runs or examples, or a run that judges nobody.
    """
    if values.ndim != 2 or values.shape != judged.shape or min(values.shape) < 2 or not judged.any(axis=1).all():
        raise InvalidInput(
            f"values {values.shape} and judged {judged.shape}: needs (R, N), two of each, somebody judged in every run"
        )
    size = judged.sum(axis=1, keepdims=True)
    means = np.where(judged, values, 0.0).sum(axis=1, keepdims=True) / size
    found = OverRuns(auc=means[:, 0], placement=np.where(judged, (values - means) / size, 0.0), pairs=1)
    return (found.value, *found.difference_interval(alpha))


def tpr_over_runs(
    scores: Float, positive: Bool, *, cap: float, alpha: float, seed: int, repeats: int = 200
) -> tuple[float, float, float]:
    """(value, low, high): mean over runs of the TPR at an empirical FPR of at most ``cap``; NaN when a run cannot carry
    it.

    The interval resamples runs and examples, each with replacement (Owen, Ann. Appl. Stat. 2007, the pigeonhole
    bootstrap): conservative. A draw in which a run cannot carry the cap leaves that run out. Where every run finds all,
    or none, the bound is not tighter than that of Clopper and Pearson for the positives of a single run.

    Args:
        scores, positive: (R, N), see the module.
        cap: in (0, 1).
        repeats: draws; each costs R x N counts, and no sorting.
    """
    num_runs, num_examples = scores.shape
    value = float(_tprs(scores, positive, cap, np.ones((num_examples, 1), np.int32)).mean())
    if np.isnan(value):
        return value, value, value
    rng = np.random.default_rng(seed)
    times_run, times_example = np.empty((repeats, num_runs)), np.empty((num_examples, repeats), np.int32)
    for draw in range(repeats):
        times_run[draw] = np.bincount(rng.integers(num_runs, size=num_runs), minlength=num_runs)
        times_example[:, draw] = np.bincount(rng.integers(num_examples, size=num_examples), minlength=num_examples)
    drawn = _tprs(scores, positive, cap, times_example)
    times_run[np.isnan(drawn)] = 0.0
    with np.errstate(invalid="ignore"):
        means = (times_run * np.nan_to_num(drawn)).sum(axis=1) / times_run.sum(axis=1)
    low, high = (float(bound) for bound in np.nanquantile(means, [alpha / 2, 1 - alpha / 2]))
    if value in (0.0, 1.0):
        fewest = int((~np.isnan(scores) & positive).sum(axis=1).min())
        at_least, at_most = clopper_pearson(round(value * fewest), fewest, alpha=alpha)
        low, high = min(low, float(at_least)), max(high, float(at_most))
    return value, low, high


def _tprs(scores: Float, positive: Bool, cap: float, times: NDArray[np.int32]) -> Float:
    """(D, R) share of positives above all but floor(cap * n-) negatives, every example counted ``times`` (N, D) times;
    NaN where that is none, or a class is empty.
    """
    judged = ~np.isnan(scores)
    num_pos, num_neg = ((judged & of).astype(np.float64) @ times for of in (positive, ~positive))
    passing = np.floor(cap * num_neg * (1 + 1e-12))
    known = (passing >= 1) & (passing < num_neg) & (num_pos > 0)
    found, every_draw = np.zeros(known.shape), np.arange(times.shape[1])
    for t, row in enumerate(scores):
        if not known[t].any():
            continue
        groups = np.flatnonzero(judged[t] & positive[t]), np.flatnonzero(judged[t] & ~positive[t])
        pos, neg = (of[np.argsort(-row[of])] for of in groups)
        last = _first_beyond(times, neg, np.where(known[t], passing[t], 0.0))
        above = np.searchsorted(-row[pos], -row[neg], side="left")[last]  # positives strictly above that negative
        counted = np.cumsum(times[pos[: above.max()]], axis=0)
        found[t] = np.concatenate([np.zeros((1, len(every_draw))), counted])[above, every_draw]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(known, found / num_pos, np.nan)).T


def _first_beyond(times: NDArray[np.int32], neg: NDArray[np.int64], passing: Float) -> NDArray[np.int64]:
    """(D,) place in ``neg``, highest score first, of the first negative that may not pass: more than ``passing`` up to
    it."""
    reach = min(len(neg), int(2 * passing.max()) + 50)  # far enough for nearly all draws
    counted = np.cumsum(times[neg[:reach]], axis=0)
    if (counted[-1] <= passing).any():
        counted = np.cumsum(times[neg], axis=0)
    return np.asarray(np.minimum((counted <= passing).sum(axis=0), len(neg) - 1))
