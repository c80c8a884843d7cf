"""From intervals to verdicts: pure functions, one :class:`contracts.verdicts.Finding` each, with its sentence.

    pass           the whole interval lies on the tolerated side, and the data can carry the claim
    fail           the whole interval, at the corrected level, lies on the other side; or more members than chance
                   allows stand out at a low false-positive rate (worst case, not average: an AUC of 0.5 does not save
                   it)
    inconclusive   the interval straddles the threshold, or too few examples or reference models for the claim
    broken         there is no report, or its figures are NaN; never read as passed

A forgotten example must look like an unseen one, not like the opposite of a member: figures around 0.5 are judged on
both sides, max(a, 1 - a) against the threshold (the Streisand effect is a failure too).

Levels. An audit fails when any of its tests does, so each fails at alpha / ``num_tests`` (Bonferroni; they share
examples): exact removal fails in at most alpha of all audits. It passes when all pass, each at its own 1 - alpha
interval (intersection- union, Berger 1982), which needs no correction. "Nobody stands out" is a test that did not
reject: a pass says which AUC it would have found with probability 0.8, and is inconclusive when that lies beyond what
    the plan tolerates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from scipy.stats import norm

from attacks.dp_audit import EpsilonAudit
from attacks.membership.metrics import RELIABLE
from attacks.membership.retraining_null import AgainstRetraining
from attacks.membership.shadow_runs import tolerated_mu
from attacks.membership.unlearning import ULiRAResult, UMIAResult
from attacks.peers import PEERS, Apart, Unseen, apart
from contracts.subject import Thresholds
from contracts.verdicts import ATTACK, DISTANCE, OF_FINDINGS, QUALITY, Finding, Verdict, at_most
from stats import (
    at_level,
    auc_of_effect,
    detectable_auc,
    examples_for_auc,
    low_fpr_p_value,
    minimum_negatives,
    minimum_references,
)

NO_PEERS = (
    "Members and non-members differ by themselves, so that this comparison decides nothing (draw the test split as the "
    "training split was drawn, and keep copies of an example together)"
)
_MANY = 100  # times as many examples: more are not named
CLAIM_FPR = 0.05  # the lowest false-positive rate at which a pass claims that nobody stands out, unless given otherwise


def judge_attack(
    report: pl.DataFrame | None,
    *,
    what: str,
    thresholds: Thresholds,
    claim_fpr: float = CLAIM_FPR,
    num_references: int | None = None,
    num_tests: int = 1,
    two_sided: bool = True,
    unseen: Sequence[Unseen] = (),
) -> Finding:
    """Judge one attack on one model from its report (``attack_report``, made with ``thresholds.alpha``).

    Fails when the AUC's interval at level alpha / num_tests lies beyond ``max_auc`` (or below 1 - max_auc), or when
    significantly more members than chance allows lie above the thresholds of the caps: one rank test over all caps,
    reliable or not (``statistics.low_fpr_p_value``), level alpha / num_tests. Passes only when the AUC's interval lies
    within the tolerance, no cap is significant, an AUC of ``max_auc`` would have been found with probability 0.8, the
    cap ``claim_fpr`` rests on enough non-members (at least 10 above its threshold, and as many as no alarm at all would
    need at level alpha) and, for an attack that uses reference models, there are enough of them on each side for a
    p-value of ``claim_fpr``. Where members and non-members differ by themselves (``attacks.peers``), what that alone
    would give is no failure, and what it may hide no pass.

    Args:
        report: one row a cap; None or empty when the attack did not run.
        what: name of the finding, for instance "attack/lira_online".
        claim_fpr: one of the report's caps.
        num_references: reference models on each side of an example, with it and without it (M / 2 of a balanced
            design); None for attacks without.
        num_tests: tests that fail this audit together (attacks x seeds); the level of a failure is divided by it.
        two_sided: False for the target model itself, of which a low AUC says nothing bad.
        unseen: what the same attack finds between the two sides on models that saw neither, where that is known.
    """
    alpha, limit = thresholds.alpha, thresholds.max_auc
    if report is None or report.is_empty():
        return _broken(what, "the attack left no report", limit, kind=ATTACK)
    first = report.row(0, named=True)
    value, low, high = first["auc"], first["auc_lo"], first["auc_hi"]
    n_pos, n_neg = int(first["n_pos"]), int(first["n_neg"])
    if not _finite(value, low, high):
        return _broken(what, "the attack's AUC is not a number", limit, kind=ATTACK)
    figures: dict[str, Any] = {
        "what": what,
        "value": value,
        "low": low,
        "high": high,
        "threshold": limit,
        "kind": ATTACK,
    }
    level = alpha / num_tests
    sides = apart(unseen, alpha=alpha, level=level)
    shown = f"AUC {value:.3f} ({_level(alpha)} interval {low:.3f} to {high:.3f}), tolerated {limit:g}{sides.aside}"
    standing_out, by_themselves = _standing_out(report, level), sides.up > 0 or sides.stand_out
    surely_low, surely_high = at_level(value, low, high, alpha=alpha, level=level)
    if surely_low - sides.up > limit:
        return Finding(**figures, verdict=Verdict.FAIL, sentence=f"The attack tells members: {shown}.")
    if two_sided and surely_high + sides.down < 1 - limit:
        return Finding(
            **figures, verdict=Verdict.FAIL, sentence=f"Forgotten examples stand out the other way round: {shown}."
        )
    if standing_out is not None and not by_themselves:
        return Finding(**figures, verdict=Verdict.FAIL, sentence=f"{standing_out} {shown}.")
    found_from = detectable_auc(n_pos, n_neg, alpha=alpha)
    lacking = _lacking(report, n_neg, claim_fpr, alpha, num_references)
    if not lacking and found_from > limit:
        lacking = (
            f"Too few examples: of {n_pos} against {n_neg} only an AUC of {min(found_from, 1.0):.3f} or more would "
            f"have been found; {examples_for_auc(limit, alpha=alpha)} of each are needed for {limit:g}"
        )
    if lacking:
        return Finding(**figures, verdict=Verdict.INCONCLUSIVE, sentence=f"{lacking}. {shown}.")
    if high + sides.down > limit or (two_sided and low - sides.up < 1 - limit) or standing_out is not None:
        below = 1 - limit if two_sided else None
        reaches = NO_PEERS if sides.aside else past_tolerance(value, low, high, above=limit, below=below)
        return Finding(**figures, verdict=Verdict.INCONCLUSIVE, sentence=f"{reaches}: {shown}.")
    told = "does not tell members"
    if low > 0.5 or (two_sided and high < 0.5):
        told = "hardly tells members: within what is tolerated, and nobody stands out"
    return Finding(
        **figures,
        verdict=Verdict.PASS,
        sentence=f"The attack {told}, down to a false-positive rate of {claim_fpr:g}; an AUC of {found_from:.3f} would "
        f"have been found: {shown}.",
    )


def judge_umia(
    result: UMIAResult | None,
    *,
    what: str,
    thresholds: Thresholds,
    num_tests: int = 1,
    unseen: Sequence[Unseen] = (),
) -> Finding:
    """Judge the population U-MIA of an unlearned model: accuracy within (1 - max_umia, max_umia) as a whole interval.

    The regression learns its own direction, so losses that became too high raise the accuracy too.

    Args:
        unseen: its accuracy on models that saw neither side; see :func:`judge_attack`.
    """
    limit = thresholds.max_umia
    if result is None or not _finite(result.accuracy, result.low, result.high):
        return _broken(what, "the population attack left no accuracy", limit, kind=ATTACK)
    direction = "too low" if result.auc >= 0.5 else "too high"
    return _around_half(
        what,
        (result.accuracy, result.low, result.high),
        limit,
        thresholds.alpha,
        num_tests,
        name="population attack accuracy",
        failed=f"The losses of forgotten examples are {direction} for unseen ones",
        passed="The losses of forgotten examples look like those of unseen ones",
        sides=apart(unseen, alpha=thresholds.alpha, level=thresholds.alpha / num_tests),
    )


def judge_u_lira(result: ULiRAResult | None, *, what: str, thresholds: Thresholds, num_tests: int = 1) -> Finding:
    """Judge U-LiRA over shadow runs by its AUC, on both sides of 0.5."""
    limit = thresholds.max_auc
    if result is None or not _finite(result.auc, result.auc_low, result.auc_high):
        return _broken(what, "U-LiRA left no AUC", limit, kind=ATTACK)
    return _around_half(
        what,
        (result.auc, result.auc_low, result.auc_high),
        limit,
        thresholds.alpha,
        num_tests,
        name="U-LiRA AUC",
        failed="Removed examples can be told from never-seen ones",
        passed="Removed examples cannot be told from never-seen ones",
    )


def judge_against_retraining(found: AgainstRetraining | None, *, what: str, thresholds: Thresholds) -> Finding:
    """Judge one unlearned model of a set that is not random by retrainings without that set (``retraining_null``).

    Fails when the set's mean lies beyond the tolerated distance as a whole interval at the result's own ``level``, on
    either side, or when single examples stand out. Passes when the mean lies within the tolerance and, at 1 - alpha, at
    most ``max_trace`` of the untouched model's trace can be left; single examples are then only not found. The figure
    is the AUC at which one example of the set would be told: Phi(shift / sqrt 2).
    """
    limit = thresholds.max_auc
    if found is None or not _finite(found.shift, found.shift_lo, found.shift_hi):
        return _broken(what, "there is nothing to compare with retraining", limit, kind=ATTACK)
    bound = tolerated_mu(limit)
    figures: dict[str, Any] = {
        "what": what,
        "value": auc_of_effect(found.shift),
        "low": auc_of_effect(found.shift_lo),
        "high": auc_of_effect(found.shift_hi),
        "threshold": limit,
        "kind": ATTACK,
    }
    shown = (
        f"known {found.shift:+.2f} standard deviations of one example better than by {found.num_retrainings} "
        f"retrainings without the set ({_level(found.alpha)} interval {found.shift_lo:+.2f} to {found.shift_hi:+.2f}; "
        f"untouched {found.trace:+.2f}), an AUC of {figures['value']:.3f}, tolerated {1 - limit:g} to {limit:g}"
    )
    surely_low, surely_high = found.surely()
    if surely_low > bound or surely_high < -bound:
        way = "is still known" if surely_low > bound else "stands out the other way round"
        return Finding(**figures, verdict=Verdict.FAIL, sentence=f"The forgotten set {way}: {shown}.")
    if found.standing_out and found.beyond:
        return Finding(
            **figures,
            verdict=Verdict.FAIL,
            sentence=f"{found.standing_out} of {found.num_examples} forgotten examples stand out from retraining "
            f"(Holm, and further than the furthest example of retrainings leads one to expect); the set is {shown}.",
        )
    if found.trace_left > thresholds.max_trace:
        left = "all" if found.trace_left >= 1 else f"{found.trace_left:.0%}"
        return Finding(
            **figures,
            verdict=Verdict.INCONCLUSIVE,
            sentence=f"{found.num_examples} forgotten example{'s are' if found.num_examples != 1 else ' is'} too few, "
            f"or the untouched model knows them too little better, to show that they are gone: up to "
            f"{left} of the trace may be left, tolerated {thresholds.max_trace:.0%}; the set is {shown}.",
        )
    if abs(found.shift) > bound:
        return Finding(
            **figures,
            verdict=Verdict.INCONCLUSIVE,
            sentence=f"The set lies past the tolerance, but not surely: {shown}.",
        )
    single = auc_of_effect(found.detectable + float(norm.ppf(0.8)))
    return Finding(
        **figures,
        verdict=Verdict.PASS,
        sentence=f"The forgotten set looks as after retraining, at most {found.trace_left:.0%} of its trace can be "
        f"left: {shown}. No single example stands out; one would have been found from an AUC of {single:.3f} on, which "
        "a single model cannot narrow.",
    )


def judge_gap(
    value: float | None,
    low: float | None,
    high: float | None,
    *,
    spread: float | None,
    what: str,
    thresholds: Thresholds,
    num_tests: int = 1,
) -> Finding:
    """Judge the average gap to retraining of one run by its interval, paired by example.

    Args:
        value, low, high: percentage points, at 1 - alpha; None or NaN for a run that diverged.
        spread: average gap between retrainings of different seeds, points; a tolerance below it cannot be held against
            a method. None when there is one seed.
        num_tests: see the module.
    """
    limit = thresholds.max_gap
    if not _finite(value, low, high):
        return _broken(what, "the run has no gap to retraining", limit, kind=DISTANCE)
    assert value is not None and low is not None and high is not None
    beside = "" if spread is None else f"; retrainings of other seeds differ by {spread:.2f}"
    shown = (
        f"average gap to retraining {value:.2f} points ({_level(thresholds.alpha)} interval {low:.2f} to {high:.2f}, "
        f"paired by example), tolerated {limit:g}{beside}"
    )
    surely_low = value - (value - low) * _wider(thresholds.alpha, num_tests)
    if surely_low > limit and spread is not None and spread > limit:
        verdict, lead = Verdict.INCONCLUSIVE, "Retraining itself varies by more than the tolerance"
    elif surely_low > limit:
        verdict, lead = Verdict.FAIL, "Too far from retraining"
    elif high <= limit:
        verdict, lead = Verdict.PASS, "As close to retraining as asked"
    else:
        verdict, lead = Verdict.INCONCLUSIVE, past_tolerance(value, low, high, above=limit)
    return Finding(
        what=what,
        verdict=verdict,
        sentence=f"{lead}: {shown}.",
        value=value,
        low=low,
        high=high,
        threshold=limit,
        kind=DISTANCE,
    )


def judge_quality(
    losses: Mapping[str, tuple[float, float, float]],
    *,
    what: str,
    thresholds: Thresholds,
    num_tests: int = 1,
    quality: str = "accuracy",
) -> Finding:
    """Judge what a method costs: quality (accuracy for classes) lost against retraining, on what is kept and on new
    examples.

    A model that was destroyed has forgotten too, and no attack finds anything in it.

    Args:
        losses: name of the examples ("retained", "test") -> (value, low, high) in percentage points, retraining's
            quality less the method's; the worst decides. Better than retraining is no fault.
        quality: what the task's quality is, for people.
    """
    limit = thresholds.max_quality_loss
    if not losses or not all(_finite(*figures) for figures in losses.values()):
        return _broken(what, f"there is no {quality} to compare with retraining", limit, kind=QUALITY)

    def judged(figures: tuple[float, float, float]) -> Verdict:
        value, low, high = figures
        return at_most(value - (value - low) * _wider(thresholds.alpha, num_tests), high, limit)

    name = min(losses, key=lambda n: (OF_FINDINGS.index(judged(losses[n])), -losses[n][0]))
    value, low, high = losses[name]
    lead = {
        Verdict.FAIL: "The model is worse than after retraining",
        Verdict.PASS: "The model is as good as after retraining",
        Verdict.INCONCLUSIVE: past_tolerance(value, low, high, above=limit),
    }[judged(losses[name])]
    shown = ", ".join(f"{n} {v:.2f} points ({lo:.2f} to {hi:.2f})" for n, (v, lo, hi) in losses.items())
    return Finding(
        what=what,
        verdict=judged(losses[name]),
        value=value,
        low=low,
        high=high,
        threshold=limit,
        kind=QUALITY,
        sentence=f"{lead}: {quality} lost {shown}, tolerated {limit:g}.",
    )


def judge_epsilon(audit: EpsilonAudit | None, *, what: str, claimed: float) -> Finding:
    """Judge a privacy claim "epsilon <= ``claimed``" by what an attack proved.

    Fails when the lower bound exceeds the claim. Never passes for want of trials: where even a perfect attack could not
    have refuted the claim it is inconclusive. A pass says that this attack, which could have, did not; no attack proves
    a claim.
    """
    if audit is None or not _finite(audit.eps, audit.largest):
        return _broken(what, "the epsilon audit left no bound", claimed, kind=ATTACK)
    figures: dict[str, Any] = {
        "what": what,
        "value": audit.eps,
        "low": audit.eps,
        "threshold": claimed,
        "kind": ATTACK,
    }
    if audit.eps > claimed:
        verdict, lead = Verdict.FAIL, f"The claim of epsilon {claimed:g} is refuted"
    elif audit.largest <= claimed:
        verdict, lead = Verdict.INCONCLUSIVE, f"Too few trials to test a claim of epsilon {claimed:g}"
    else:
        verdict, lead = Verdict.PASS, f"The claim of epsilon {claimed:g} is not refuted by this attack"
    return Finding(**figures, verdict=verdict, sentence=f"{lead}. {audit.sentence}")


def worst(of_seeds: Mapping[int, Finding]) -> Finding:
    """The finding that counts of several models of one method: the worst verdict, then the figure furthest from where
    it belongs.

    Scores are not averaged before judging: one model in three that was left as it was is one that tells.
    """

    def rank(item: tuple[int, Finding]) -> tuple[int, float]:
        found = item[1]
        centre = 0.5 if found.kind == ATTACK else 0.0
        away = math.inf if found.value is None else abs(found.value - centre)
        return OF_FINDINGS.index(found.verdict), -away

    seed, found = min(of_seeds.items(), key=rank)
    if len(of_seeds) == 1:
        return found
    return dataclasses.replace(found, sentence=f"Worst of {len(of_seeds)} models (seed {seed}): {found.sentence}")


def past_tolerance(value: float, low: float, high: float, *, above: float, below: float | None = None) -> str:
    """What an interval that reaches past the tolerance lacks, as a sentence without its end: how many times as many
    examples would decide, if the figure stayed, as intervals narrow with the root of their number.

    Args:
        above: tolerated up to here. ``below``: and from here on; None: no figure is too low.

    >>> past_tolerance(0.55, 0.49, 0.61, above=0.6, below=0.4)
    'The interval reaches past the tolerance, and 1.5 times as many examples would decide it if the figure stayed'
    """
    if value > above or (below is not None and value < below):
        outer = above if value > above else float(below)  # type: ignore[arg-type]
        times = [((value - (low if value > above else high)) / (value - outer)) ** 2]
    else:
        sides = [(high - value, above - value), *([] if below is None else [(value - low, value - below)])]
        times = [(reach / room) ** 2 if room > 0 else math.inf for reach, room in sides]
    lead, most = "The interval reaches past the tolerance", max(times)
    if not most <= _MANY:
        return f"{lead}, and the figure lies so near to it that {_MANY} times as many examples would not decide it"
    enough = max(math.ceil(10 * most) / 10, 1.1)
    return f"{lead}, and {enough:g} times as many examples would decide it if the figure stayed"


def _wider(alpha: float, num_tests: int) -> float:
    """How much wider a normal interval is at alpha / num_tests."""
    return float(norm.isf(alpha / num_tests / 2) / norm.isf(alpha / 2))


def _lacking(report: pl.DataFrame, n_neg: int, claim_fpr: float, alpha: float, num_references: int | None) -> str:
    """Why the data cannot carry a pass at a low false-positive rate, or ""."""
    claim = next((row for row in report.iter_rows(named=True) if math.isclose(row["fpr_cap"], claim_fpr)), None)
    needed = max(math.ceil(RELIABLE / claim_fpr - 1e-9), minimum_negatives(claim_fpr, alpha=alpha))
    if claim is None or not claim["reliable"] or n_neg < needed:
        return f"Too few non-members for a claim at a false-positive rate of {claim_fpr:g}: {n_neg}, needed {needed}"
    if num_references is not None and num_references < minimum_references(claim_fpr):
        return (
            f"Too few reference models for a claim at a false-positive rate of {claim_fpr:g}: {num_references} with "
            f"and as many without an example, needed {minimum_references(claim_fpr)}"
        )
    return ""


def _around_half(
    what: str,
    figures: tuple[float, float, float],
    limit: float,
    alpha: float,
    num_tests: int,
    *,
    name: str,
    failed: str,
    passed: str,
    sides: Apart = PEERS,
) -> Finding:
    value, low, high = figures
    surely_low, surely_high = at_level(value, low, high, alpha=alpha, level=alpha / num_tests)
    shown = (
        f"{name} {value:.3f} ({_level(alpha)} interval {low:.3f} to {high:.3f}), tolerated {1 - limit:g} to {limit:g}"
        f"{sides.aside}"
    )
    if surely_low - sides.up > limit or surely_high + sides.down < 1 - limit:
        verdict, lead = Verdict.FAIL, failed
    elif low - sides.up >= 1 - limit and high + sides.down <= limit:
        verdict, lead = Verdict.PASS, passed
    elif sides.aside:
        verdict, lead = Verdict.INCONCLUSIVE, NO_PEERS
    else:
        verdict, lead = Verdict.INCONCLUSIVE, past_tolerance(value, low, high, above=limit, below=1 - limit)
    return Finding(
        what=what,
        verdict=verdict,
        sentence=f"{lead}: {shown}.",
        value=value,
        low=low,
        high=high,
        threshold=limit,
        kind=ATTACK,
    )


def unseen_by_retraining(report: pl.DataFrame, *, accuracy: bool = False) -> Unseen:
    """The control that one exact retraining is: it saw neither the removed examples nor the unseen ones.

    Args:
        report: of an attack on it (``attack_report``), one row a cap.
        accuracy: the attack's claim is its accuracy, not its AUC.
    """
    first = report.row(0, named=True)
    name = "balanced_acc_heldout" if accuracy else "auc"
    return Unseen(
        value=first[name],
        low=first[f"{name}_lo"],
        high=first[f"{name}_hi"],
        p_value=1.0 if accuracy else _low_fpr(report)[0],
        by="a retrained model",
    )


def _standing_out(report: pl.DataFrame, level: float) -> str | None:
    """The sentence about members that stand out at low false-positive rates, or None when chance explains them."""
    p_value, at_caps = _low_fpr(report)
    if p_value > level:
        return None
    return f"Of {report['n_pos'][0]} members more stand out than chance allows ({at_caps}; p = {p_value:.1e})."


def _low_fpr(report: pl.DataFrame) -> tuple[float, str]:
    """p-value of "no more members stand out than chance allows" over all caps, and how many do at each."""
    rows = [row for row in report.iter_rows(named=True) if row["tpr"] is not None]
    if not rows:
        return 1.0, ""
    n_pos, n_neg = rows[0]["n_pos"], rows[0]["n_neg"]
    found = [round(row["tpr"] * n_pos) for row in rows]
    # All non-members that a cap allows count, though ties may have kept the threshold above some: conservative.
    allowed = [math.floor(row["fpr_cap"] * n_neg * (1 + 1e-12)) for row in rows]
    p_value = low_fpr_p_value(found, allowed, n_pos=n_pos, n_neg=n_neg)
    return p_value, ", ".join(f"{k} at FPR {row['fpr_cap']:g}" for k, row in zip(found, rows, strict=True))


def _finite(*values: float | None) -> bool:
    return all(v is not None and math.isfinite(v) for v in values)


def _level(alpha: float) -> str:
    return f"{100 * (1 - alpha):g}%"


def _broken(what: str, why: str, threshold: float, *, kind: str) -> Finding:
    return Finding(
        what=what, verdict=Verdict.BROKEN, sentence=f"Could not be judged: {why}.", threshold=threshold, kind=kind
    )
