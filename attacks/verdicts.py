"""From intervals to verdicts: pure functions, one :class:`contracts.verdicts.Finding` each, with its sentence.

    pass           the whole interval lies on the tolerated side, and the data can carry the claim
    fail           the whole interval lies on the other side; or more members than chance allows stand out at a low
                   false-positive rate (worst case, not average: an AUC of 0.5 does not save it)
    inconclusive   the interval straddles the threshold, or too few examples or reference models for the claim
    broken         there is no report, or its figures are NaN; never read as passed

A forgotten example must look like an unseen one, not like the opposite of a member: figures around 0.5 are judged on
both sides, max(a, 1 - a) against the threshold (the Streisand effect is a failure too).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import t as student_t

from attacks.dp_audit import EpsilonAudit
from attacks.membership.metrics import RELIABLE
from attacks.membership.unlearning import ULiRAResult, UMIAResult
from attacks.statistics import low_fpr_p_value, minimum_negatives, minimum_references
from contracts.subject import Thresholds
from contracts.verdicts import Finding, Verdict

CLAIM_FPR = 0.05  # the lowest false-positive rate at which a pass claims that nobody stands out, unless told otherwise


def judge_attack(
    report: pl.DataFrame | None,
    *,
    what: str,
    thresholds: Thresholds,
    claim_fpr: float = CLAIM_FPR,
    num_references: int | None = None,
    num_tests: int = 1,
    two_sided: bool = True,
) -> Finding:
    """Judge one attack on one model from its report (``attack_report``, made with ``thresholds.alpha``).

    Fails when the AUC's interval lies beyond ``max_auc`` (or below 1 - max_auc), or when significantly more members than
    chance allows lie above the thresholds of the caps: one rank test over all caps, reliable or not
    (``statistics.low_fpr_p_value``), level alpha / num_tests. Passes only when the AUC's interval lies within the tolerance, no cap is significant, the cap
    ``claim_fpr`` rests on enough non-members (at least 10 above its threshold, and as many as no alarm at all would need at
    level alpha) and, for an attack that uses reference models, there are enough of them for a p-value of ``claim_fpr``
    (1 / (M + 1) <= claim_fpr).

    Args:
        report: one row a cap; None or empty when the attack did not run.
        what: name of the finding, for instance "attack/lira_online".
        claim_fpr: one of the report's caps.
        num_references: reference models the attack used; None for attacks without.
        num_tests: attacks judged together on this model; the significance level is divided by it.
        two_sided: False for the target model itself, of which a low AUC says nothing bad.
    """
    alpha, limit = thresholds.alpha, thresholds.max_auc
    if report is None or report.is_empty():
        return _broken(what, "the attack left no report", limit)
    first = report.row(0, named=True)
    value, low, high = first["auc"], first["auc_lo"], first["auc_hi"]
    if not _finite(value, low, high):
        return _broken(what, "the attack's AUC is not a number", limit)
    figures = {"what": what, "value": value, "low": low, "high": high, "threshold": limit}
    shown = f"AUC {value:.3f} ({_level(alpha)} interval {low:.3f} to {high:.3f}), tolerated {limit:g}"
    standing_out = _standing_out(report, alpha / num_tests)
    if low > limit:
        return Finding(**figures, verdict=Verdict.FAIL, sentence=f"The attack tells members: {shown}.")
    if two_sided and high < 1 - limit:
        return Finding(
            **figures, verdict=Verdict.FAIL, sentence=f"Forgotten examples stand out the other way round: {shown}."
        )
    if standing_out is not None:
        return Finding(**figures, verdict=Verdict.FAIL, sentence=f"{standing_out} {shown}.")
    claim = next((row for row in report.iter_rows(named=True) if math.isclose(row["fpr_cap"], claim_fpr)), None)
    needed = max(math.ceil(RELIABLE / claim_fpr - 1e-9), minimum_negatives(claim_fpr, alpha=alpha))
    if claim is None or not claim["reliable"] or first["n_neg"] < needed:
        return Finding(
            **figures, verdict=Verdict.INCONCLUSIVE,
            sentence=f"Too few non-members for a claim at a false-positive rate of {claim_fpr:g}: {first['n_neg']}, needed {needed}. {shown}.",
        )  # fmt: skip
    if num_references is not None and num_references < minimum_references(claim_fpr):
        return Finding(
            **figures, verdict=Verdict.INCONCLUSIVE,
            sentence=f"Too few reference models for a claim at a false-positive rate of {claim_fpr:g}: {num_references}, needed {minimum_references(claim_fpr)}. {shown}.",
        )  # fmt: skip
    if high > limit or (two_sided and low < 1 - limit):
        return Finding(**figures, verdict=Verdict.INCONCLUSIVE, sentence=f"The interval reaches past the tolerance: {shown}.")  # fmt: skip
    return Finding(
        **figures, verdict=Verdict.PASS,
        sentence=f"The attack does not tell members, down to a false-positive rate of {claim_fpr:g}: {shown}.",
    )  # fmt: skip


def judge_umia(result: UMIAResult | None, *, what: str, thresholds: Thresholds) -> Finding:
    """Judge the population U-MIA of an unlearned model: accuracy within (1 - max_umia, max_umia) as a whole interval.

    The regression learns its own direction, so losses that became too high raise the accuracy too.
    """
    limit = thresholds.max_umia
    if result is None or not _finite(result.accuracy, result.low, result.high):
        return _broken(what, "the population attack left no accuracy", limit)
    direction = "too low" if result.auc >= 0.5 else "too high"
    return _around_half(
        what, result.accuracy, result.low, result.high, limit, thresholds.alpha,
        name="population attack accuracy",
        failed=f"The losses of forgotten examples are {direction} for unseen ones",
        passed="The losses of forgotten examples look like those of unseen ones",
    )  # fmt: skip


def judge_u_lira(result: ULiRAResult | None, *, what: str, thresholds: Thresholds) -> Finding:
    """Judge U-LiRA over shadow runs by its AUC, on both sides of 0.5."""
    limit = thresholds.max_auc
    if result is None or not _finite(result.auc, result.auc_low, result.auc_high):
        return _broken(what, "U-LiRA left no AUC", limit)
    return _around_half(
        what, result.auc, result.auc_low, result.auc_high, limit, thresholds.alpha,
        name="U-LiRA AUC",
        failed="Removed examples can be told from never-seen ones",
        passed="Removed examples cannot be told from never-seen ones",
    )  # fmt: skip


def judge_gap(avg_gaps: Sequence[float | None], *, what: str, thresholds: Thresholds) -> Finding:
    """Judge the average gap to retraining (percentage points, one figure a seed) by the t interval of its mean.

    A single seed has no spread: inconclusive. A missing or NaN gap (a diverged run) is broken.
    """
    limit = thresholds.max_gap
    gaps = np.array([math.nan if g is None else g for g in avg_gaps], dtype=np.float64)
    if not len(gaps) or not np.isfinite(gaps).all():
        return _broken(what, "a run has no gap to retraining", limit)
    mean = float(gaps.mean())
    if len(gaps) == 1:
        return Finding(
            what=what, verdict=Verdict.INCONCLUSIVE, value=mean, threshold=limit,
            sentence=f"Average gap to retraining {mean:.2f} points from a single seed, which has no interval; tolerated {limit:g}.",
        )  # fmt: skip
    reach = float(student_t.ppf(1 - thresholds.alpha / 2, len(gaps) - 1) * gaps.std(ddof=1) / math.sqrt(len(gaps)))
    low, high = max(0.0, mean - reach), mean + reach
    shown = f"average gap to retraining {mean:.2f} points ({_level(thresholds.alpha)} interval {low:.2f} to {high:.2f} over {len(gaps)} seeds), tolerated {limit:g}"
    verdict, lead = (
        (Verdict.FAIL, "Too far from retraining") if low > limit
        else (Verdict.PASS, "As close to retraining as asked") if high <= limit
        else (Verdict.INCONCLUSIVE, "The interval reaches past the tolerance")
    )  # fmt: skip
    return Finding(
        what=what, verdict=verdict, sentence=f"{lead}: {shown}.", value=mean, low=low, high=high, threshold=limit
    )


def judge_epsilon(audit: EpsilonAudit | None, *, what: str, claimed: float) -> Finding:
    """Judge a privacy claim "epsilon <= ``claimed``" by what an attack proved.

    Fails when the lower bound exceeds the claim. Never passes for want of trials: where even a perfect attack could not
    have refuted the claim it is inconclusive. A pass says that this attack, which could have, did not; no attack proves a claim.
    """
    if audit is None or not _finite(audit.eps, audit.largest):
        return _broken(what, "the epsilon audit left no bound", claimed)
    figures: dict[str, Any] = {"what": what, "value": audit.eps, "low": audit.eps, "threshold": claimed}
    if audit.eps > claimed:
        verdict, lead = Verdict.FAIL, f"The claim of epsilon {claimed:g} is refuted"
    elif audit.largest <= claimed:
        verdict, lead = Verdict.INCONCLUSIVE, f"Too few trials to test a claim of epsilon {claimed:g}"
    else:
        verdict, lead = Verdict.PASS, f"The claim of epsilon {claimed:g} is not refuted by this attack"
    return Finding(**figures, verdict=verdict, sentence=f"{lead}. {audit.sentence}")


def _around_half(
    what: str, value: float, low: float, high: float, limit: float, alpha: float, *, name: str, failed: str, passed: str
) -> Finding:
    shown = f"{name} {value:.3f} ({_level(alpha)} interval {low:.3f} to {high:.3f}), tolerated {1 - limit:g} to {limit:g}"  # fmt: skip
    if low > limit or high < 1 - limit:
        verdict, lead = Verdict.FAIL, failed
    elif low >= 1 - limit and high <= limit:
        verdict, lead = Verdict.PASS, passed
    else:
        verdict, lead = Verdict.INCONCLUSIVE, "The interval reaches past the tolerance"
    return Finding(
        what=what, verdict=verdict, sentence=f"{lead}: {shown}.", value=value, low=low, high=high, threshold=limit
    )


def _standing_out(report: pl.DataFrame, level: float) -> str | None:
    """The sentence about members that stand out at low false-positive rates, or None when chance explains them."""
    rows = [row for row in report.iter_rows(named=True) if row["tpr"] is not None]
    if not rows:
        return None
    n_pos, n_neg = rows[0]["n_pos"], rows[0]["n_neg"]
    found = [round(row["tpr"] * n_pos) for row in rows]
    # All non-members that a cap allows count, though ties may have kept the threshold above some: conservative.
    allowed = [math.floor(row["fpr_cap"] * n_neg * (1 + 1e-12)) for row in rows]
    p_value = low_fpr_p_value(found, allowed, n_pos=n_pos, n_neg=n_neg)
    if p_value > level:
        return None
    at_caps = ", ".join(f"{k} at FPR {row['fpr_cap']:g}" for k, row in zip(found, rows, strict=True))
    return f"Of {n_pos} members more stand out than chance allows ({at_caps}; p = {p_value:.1e})."


def _finite(*values: float | None) -> bool:
    return all(v is not None and math.isfinite(v) for v in values)


def _level(alpha: float) -> str:
    return f"{100 * (1 - alpha):g}%"


def _broken(what: str, why: str, threshold: float) -> Finding:
    return Finding(what=what, verdict=Verdict.BROKEN, sentence=f"Could not be judged: {why}.", threshold=threshold)
