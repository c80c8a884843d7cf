"""Scores + truth -> ROC, and a report in which every figure has its interval.

Scores are LARGER = MORE LIKELY MEMBER. The report's figures, one row a false-positive cap a:

    tpr     largest true-positive rate of a threshold whose empirical FPR is <= a; null when a * n_neg < 1
    reliable   a * n_neg >= 10: below that the cap rests on fewer than ten non-members
    tpr, fpr intervals   Clopper-Pearson       auc interval   DeLong
    balanced_acc   max over thresholds of (TPR + TNR) / 2 on the same examples: optimistic by construction
    balanced_acc_heldout   each half judged at the threshold chosen on the other half; its interval joins the
        Clopper-Pearson bounds of TPR and TNR by the square-root rule of Zou and Donner (Stat. Med. 2008)

Thresholds are distinct score values, ties together. Undefined (NaN) scores are left out and not counted in n_pos,
n_neg.
Shapes: scores (N,) float, is_member (N,) bool. Examples of ONE model; several models that judge the same examples are
dependent trials, for which there is :func:`report_over_targets`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from attacks.membership.calibration import Trials, at_best
from attacks.membership.curve import allowed, counts, defined
from attacks.membership.over_runs import auc_over_runs, tpr_over_runs
from contracts.errors import InvalidInput
from stats import auc, auc_interval, clopper_pearson

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

FPR_CAPS = (1e-3, 1e-2, 5e-2)
RELIABLE = 10  # non-members above the threshold that a reliable cap allows


def roc(scores: Float, is_member: Bool) -> tuple[Float, Float]:
    """(fpr, tpr) at every distinct score, from (0, 0) to (1, 1), both ascending.

    Raises:
        InvalidInput: shapes differ, or members or non-members are missing.

    >>> [v.tolist() for v in roc(np.array([2.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False]))]
    [[0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0]]
    """
    scores, is_member = defined(scores, is_member)
    tp, fp, _ = counts(scores, is_member)
    return fp / fp[-1], tp / tp[-1]


def tpr_at_fpr(scores: Float, is_member: Bool, cap: float) -> float:
    """Largest TPR with empirical FPR <= cap; NaN when cap * n_neg < 1."""
    scores, is_member = defined(scores, is_member)
    tp, fp, _ = counts(scores, is_member)
    if allowed(cap, int(fp[-1])) < 1:
        return float("nan")
    return float(tp[_last_within(fp, cap)] / tp[-1])


def attack_report(
    scores: Float, is_member: Bool, *, alpha: float = 0.05, fpr_caps: Sequence[float] = FPR_CAPS, seed: int = 0
) -> pl.DataFrame:
    """The columns n_pos ... reliable of ``contracts.schema.ATTACK_REPORTS``, one row a cap.

    Args:
        scores: (N,), larger = more likely a member; NaN is left out.
        is_member: (N,) truth.
        alpha: 1 - level of every interval.
        fpr_caps: largest tolerated false-positive rates, in (0, 1).
        seed: splits the halves for the held-out balanced accuracy.

    Raises:
        InvalidInput: shapes differ, members or non-members are missing, or a cap lies outside (0, 1).
    """
    if not fpr_caps or not all(0 < cap < 1 for cap in fpr_caps):
        raise InvalidInput(f"fpr_caps = {tuple(fpr_caps)}: at least one, each > 0 and < 1")
    scores, is_member = defined(scores, is_member)
    tp, fp, _ = counts(scores, is_member)
    n_pos, n_neg = int(tp[-1]), int(fp[-1])
    area = auc_interval(scores[is_member], scores[~is_member], alpha=alpha)
    heldout = _heldout_balanced_accuracy(scores, is_member, alpha, seed)
    common = {
        "n_pos": n_pos,
        "n_neg": n_neg,
        "auc": area.value,
        "auc_lo": area.low,
        "auc_hi": area.high,
        "balanced_acc": float((0.5 + (tp / n_pos - fp / n_neg) / 2).max()),
        "balanced_acc_heldout": heldout[0],
        "balanced_acc_heldout_lo": heldout[1],
        "balanced_acc_heldout_hi": heldout[2],
    }
    rows = [common | _at_cap(tp, fp, cap, alpha) for cap in fpr_caps]
    return pl.DataFrame(rows, schema=_SCHEMA)


def report_over_targets(
    scores: Float, is_member: Bool, *, alpha: float = 0.05, fpr_caps: Sequence[float] = FPR_CAPS, seed: int = 0
) -> pl.DataFrame:
    """Means over audited models that judge the SAME examples, with intervals that know it: ``over_runs``.

    Args:
        scores, is_member: (T, N); NaN scores are left out.
        alpha: 1 - level of the intervals.
        fpr_caps: largest tolerated false-positive rates, in (0, 1).
        seed: of the bootstrap behind the intervals of the TPR.

    Returns:
        One row a figure: figure ("auc" or "tpr@<cap>"), value, low, high, num_targets. A TPR is null when a target
        cannot carry its cap; a single target has no interval (null): it has :func:`attack_report`.

    Raises:
        InvalidInput: not (T, N), or a target without members or non-members.
    """
    if scores.ndim != 2 or scores.shape != is_member.shape:
        raise InvalidInput(f"scores {scores.shape} and is_member {is_member.shape} must both be (targets, examples)")
    names = ("auc", *(f"tpr@{cap:g}" for cap in fpr_caps))
    figures: list[tuple[float, float | None, float | None]]
    if len(scores) == 1:
        own, member = defined(scores[0], is_member[0])
        values = [auc(own[member], own[~member]), *(tpr_at_fpr(own, member, cap) for cap in fpr_caps)]
        figures = [(value, None, None) for value in values]
    else:
        area = auc_over_runs(scores, is_member)
        figures = [(area.value, *area.interval(alpha))]
        figures += [tpr_over_runs(scores, is_member, cap=cap, alpha=alpha, seed=seed) for cap in fpr_caps]
    rows = [(name, *figure, len(scores)) for name, figure in zip(names, figures, strict=True)]
    schema = {"figure": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "num_targets": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col(pl.Float64).fill_nan(None))


_SCHEMA = {
    "n_pos": pl.Int64,
    "n_neg": pl.Int64,
    "auc": pl.Float64,
    "auc_lo": pl.Float64,
    "auc_hi": pl.Float64,
    "balanced_acc": pl.Float64,
    "balanced_acc_heldout": pl.Float64,
    "balanced_acc_heldout_lo": pl.Float64,
    "balanced_acc_heldout_hi": pl.Float64,
    "fpr_cap": pl.Float64,
    "tpr": pl.Float64,
    "tpr_lo": pl.Float64,
    "tpr_hi": pl.Float64,
    "fpr": pl.Float64,
    "fpr_lo": pl.Float64,
    "fpr_hi": pl.Float64,
    "reliable": pl.Boolean,
}


def _last_within(fp: NDArray[np.int64], cap: float) -> int:
    return int(np.searchsorted(fp, allowed(cap, int(fp[-1])), side="right") - 1)


def _at_cap(tp: NDArray[np.int64], fp: NDArray[np.int64], cap: float, alpha: float) -> dict[str, float | bool | None]:
    n_pos, n_neg = int(tp[-1]), int(fp[-1])
    num_allowed = allowed(cap, n_neg)
    if num_allowed < 1:
        empty = dict.fromkeys(("tpr", "tpr_lo", "tpr_hi", "fpr", "fpr_lo", "fpr_hi"))
        return {"fpr_cap": cap, **empty, "reliable": False}
    at = _last_within(fp, cap)
    (tpr_lo, fpr_lo), (tpr_hi, fpr_hi) = clopper_pearson([tp[at], fp[at]], [n_pos, n_neg], alpha=alpha)
    return {
        "fpr_cap": cap,
        "tpr": tp[at] / n_pos,
        "tpr_lo": tpr_lo,
        "tpr_hi": tpr_hi,
        "fpr": fp[at] / n_neg,
        "fpr_lo": fpr_lo,
        "fpr_hi": fpr_hi,
        "reliable": num_allowed >= RELIABLE,
    }


def balanced_accuracy_interval(
    true_positives: int, n_pos: int, true_negatives: int, n_neg: int, *, alpha: float
) -> tuple[float, float, float]:
    """(value, low, high) of (TPR + TNR) / 2 from exact bounds of both rates, joined by the square-root rule."""
    k, n = np.array([true_positives, true_negatives]), np.array([n_pos, n_neg])
    rate = k / n
    low, high = clopper_pearson(k, n, alpha=alpha)
    value = float(rate.mean())
    return (
        value,
        max(0.0, value - 0.5 * float(np.linalg.norm(rate - low))),
        min(1.0, value + 0.5 * float(np.linalg.norm(high - rate))),
    )


def _heldout_balanced_accuracy(
    scores: Float, is_member: Bool, alpha: float, seed: int
) -> tuple[float | None, float | None, float | None]:
    n_pos, n_neg = int(is_member.sum()), int((~is_member).sum())
    if min(n_pos, n_neg) < 2:
        return None, None, None
    rng = np.random.default_rng(seed)
    half = np.zeros(len(scores), dtype=bool)
    for group in (is_member, ~is_member):
        at = rng.permutation(np.flatnonzero(group))
        half[at[: len(at) // 2]] = True
    called = np.empty(len(scores), dtype=bool)
    for chosen_on, judged in ((half, ~half), (~half, half)):
        threshold = at_best(scores[chosen_on], is_member[chosen_on], Trials(np.flatnonzero(chosen_on)))
        called[judged] = threshold.calls(scores[judged], Trials(np.flatnonzero(judged)))
    return balanced_accuracy_interval(
        int(called[is_member].sum()), n_pos, int((~called[~is_member]).sum()), n_neg, alpha=alpha
    )
