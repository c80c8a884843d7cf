"""Verdicts on unlearning methods audited over shadow runs, from the stored rows: pure.

Five findings a method, about "shadow/<method>":

    u_lira      the whole interval of the AUC within 1 - max_auc .. max_auc (``verdicts.judge_u_lira``)
    examples    no target exposed: different after Holm's correction, and by more than the plan's max_auc tolerates of
                one example; one in a thousand is a failure, whatever the AUC of all
    canaries    no planted canary exposed
    kept        retained people leak no more than after retraining: fail when the paired interval of the excess lies
                above 0 and the excess is over 0.02 of AUC; pass when the whole interval is below 0.02. Retraining
                itself is the reference: what the others leak more once data is gone (the onion effect) is reported, not
                held against
                    it
    quality     retained and new examples are answered as well as after retraining, within max_quality_loss

Each fails at alpha / 10: five findings share one half of alpha, attacks on the unlearned models themselves the other,
so that exact removal fails in at most alpha of all audits. No pass without power: at least 60 runs
(19 others a state carry a p-value of 0.05), and at least 9 in 10 of 10 or more canaries exposed where nothing was
removed (method ``none``). "None is exposed" passes only where an example of the plan's max_example_auc would have been
found with probability 0.8; the sentence says from which AUC on. Failures need no power: they are exposed already.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from attacks.membership.shadow_runs import tolerated_mu
from attacks.membership.unlearning import ULiRAResult
from attacks.verdicts import CLAIM_FPR, judge_quality, judge_u_lira, past_tolerance
from contracts.subject import Thresholds
from contracts.verdicts import ATTACK, QUALITY, RESULT, Finding, Verdict
from stats import auc_of_effect, detectable_effect, minimum_references, runs_for_effect

KEPT_MARGIN = 0.02  # of AUC
POWER, FEWEST_CANARIES = 0.9, 10
_FAMILY = 10  # five findings, and half of alpha is for the attacks on the models themselves
_NAMED = 5


def judge_shadow_unlearning(tables: Mapping[str, pl.DataFrame], thresholds: Thresholds) -> list[tuple[str, Finding]]:
    """Findings of every audited method, the references too: ``none`` has to fail and ``retrain`` to pass.

    Args:
        tables: ``u_lira`` and ``u_lira_examples``, ``u_lira_canaries`` as stored; empty ones give no finding.
        thresholds: max_auc, max_example_auc, max_quality_loss and alpha of the plan.
    """
    rows = tables["u_lira"].to_dicts()
    lacking = _lacking(rows)
    found = []
    for row in rows:
        for finding in _findings(row, tables, thresholds):
            if finding.verdict is Verdict.PASS and lacking:
                finding = dataclasses.replace(
                    finding, verdict=Verdict.INCONCLUSIVE, sentence=f"{lacking} {finding.sentence}"
                )
            found.append((f"shadow/{row['method']}", dataclasses.replace(finding, method=row["method"])))
    return found


def found_of(method: str, *, canaries: bool) -> list[str]:
    """What of each finding about a method; retraining is itself what the last two compare with."""
    names = ["u_lira", "examples", *(["canaries"] if canaries else [])]
    names += [] if method == "retrain" else ["kept", "quality"]
    return [f"unlearning/{name}" for name in names]


def _lacking(rows: list[dict[str, Any]]) -> str:
    """Why this audit could not have seen what it did not see; "" when it could."""
    if not rows:
        return ""
    needed = 3 * (minimum_references(CLAIM_FPR) + 1)
    if rows[0]["num_runs"] < needed:
        return f"Too few shadow runs for a pass: {rows[0]['num_runs']}, needed {needed}."
    control = next((row for row in rows if row["method"] == "none"), None)
    if control is None or control["canaries_exposed"] is None or control["num_canaries"] < FEWEST_CANARIES:
        planted = 0 if control is None else control["num_canaries"]
        return f"Too few canaries to show the power of the audit: {planted}, needed {FEWEST_CANARIES}."
    if control["canaries_exposed"] < POWER * control["num_canaries"]:
        return (
            f"The audit lacks power: it exposes {control['canaries_exposed']} of {control['num_canaries']} canaries "
            f"where nothing was removed, needed {math.ceil(POWER * control['num_canaries'])}."
        )
    return ""


def _findings(row: dict[str, Any], tables: Mapping[str, pl.DataFrame], thresholds: Thresholds) -> list[Finding]:
    names = ("u_lira", "examples", "canaries", "kept", "quality")
    if row["status"] != "ok":
        verdict = Verdict.FAIL if row["status"] == "refused" else Verdict.BROKEN
        why = (
            f"Could not be judged: the method {_GAVE_UP[row['status']]} in {row['num_diverged']} of {row['num_runs']} "
            f"shadow runs: {row['reason']}"
        )
        return [
            Finding(what=f"unlearning/{n}", verdict=verdict, sentence=f"{why.rstrip('.')}.", kind=RESULT) for n in names
        ]
    # The intervals are those of the analysis; the plan's alpha decides what it can: corrected p-values.
    own = dataclasses.replace(thresholds, alpha=row["alpha"])
    found = [judge_u_lira(_result(row), what="unlearning/u_lira", thresholds=own, num_tests=_FAMILY)]
    for name, table, who in (("examples", "u_lira_examples", "examples"), ("canaries", "u_lira_canaries", "canaries")):
        frame = tables[table].filter(pl.col("method") == row["method"])
        if frame.height:
            found.append(_judge_exposed(frame, row, what=f"unlearning/{name}", who=who, thresholds=thresholds))
    if row["kept_excess"] is not None:
        found.append(_judge_kept(row))
        lost = {
            who: tuple(100 * row[f"{name}_acc_lost{side}"] for side in ("", "_lo", "_hi"))
            for who, name in (("retained", "kept"), ("new", "new"))
        }
        found.append(
            judge_quality(lost, what="unlearning/quality", thresholds=own, num_tests=_FAMILY, quality="quality")  # type: ignore[arg-type]
        )
    return found


_GAVE_UP = {"diverged": "diverged", "refused": "gave back what is not a model of the plan"}


def _judge_exposed(
    frame: pl.DataFrame, row: Mapping[str, Any], *, what: str, who: str, thresholds: Thresholds
) -> Finding:
    """No row exposed at the plan's level and tolerance, after Holm's correction over the rows."""
    level, side = thresholds.alpha / _FAMILY, row["num_runs"] // 3
    exposed = frame.filter((pl.col("p_holm") <= level) & (pl.col("mu") > tolerated_mu(thresholds.max_auc))).sort(
        "p_value", "example_id"
    )
    eps = frame["eps"].to_numpy()
    shown = f"epsilon: mean {eps.mean():.2f}, 99th percentile {np.quantile(eps, 0.99):.2f}, largest {eps.max():.2f}"
    figures: dict[str, Any] = {"value": float(exposed.height), "threshold": 0.0, "what": what, "kind": ATTACK}
    if exposed.height:
        ids = ", ".join(map(str, exposed["example_id"].head(_NAMED).to_list()))
        more = ", ..." if exposed.height > _NAMED else ""
        return Finding(
            **figures,
            verdict=Verdict.FAIL,
            sentence=f"{exposed.height} of {frame.height} removed {who} can be told from never-seen ones (Holm, level "
            f"{level:g}): ids {ids}{more}; {shown}.",
        )
    corrected, limit = level / frame.height, thresholds.max_example_auc
    seen = auc_of_effect(detectable_effect(side, side, alpha=corrected))
    none = (
        f"None of {frame.height} removed {who} can be told from never-seen ones (Holm, level {level:g}); one at an AUC "
        f"of {seen:.3f} would have been found"
    )
    if seen > limit:
        needed = 3 * runs_for_effect(tolerated_mu(limit), alpha=corrected)
        return Finding(
            **figures,
            verdict=Verdict.INCONCLUSIVE,
            sentence=f"{none}, but {limit:g} is what is tolerated of one example: {needed} shadow runs are needed, "
            f"there are {row['num_runs']}; {shown}.",
        )
    return Finding(**figures, verdict=Verdict.PASS, sentence=f"{none}, tolerated {limit:g}; {shown}.")


def _judge_kept(row: dict[str, Any]) -> Finding:
    """What retained people leak after this method beyond what they leak after retraining."""
    value, low, high = row["kept_excess"], row["kept_excess_lo"], row["kept_excess_hi"]
    shown = (
        f"AUC {row['kept_auc_before']:.3f} before, {row['kept_auc_after']:.3f} after; beyond retraining {value:+.3f} "
        f"({100 * (1 - row['alpha']):g}% interval {low:+.3f} to {high:+.3f}, p = {row['kept_excess_p_value']:.1e}), "
        f"tolerated {KEPT_MARGIN:g}"
    )
    if row["kept_excess_p_value"] <= row["alpha"] / _FAMILY and value > KEPT_MARGIN:
        verdict, lead = Verdict.FAIL, "Retained examples are more exposed than after retraining"
    elif high <= KEPT_MARGIN:
        verdict, lead = Verdict.PASS, "Retained examples are no more exposed than after retraining"
    else:
        verdict, lead = Verdict.INCONCLUSIVE, past_tolerance(value, low, high, above=KEPT_MARGIN)
    return Finding(
        what="unlearning/kept",
        verdict=verdict,
        sentence=f"{lead}: {shown}.",
        value=value,
        low=low,
        high=high,
        threshold=KEPT_MARGIN,
        kind=QUALITY,
    )


def covers(row: Mapping[str, Any] | None, *, set_kind: str, num_forget: int, num_train: int) -> str:
    """Why a U-LiRA row says nothing about a set of this kind and size; "" when it covers it.

    A result is about sets chosen as it chose them, of half to twice the share of training that it removed.

    Args:
        row: of ``audits.u_lira``; None when the method was not audited.
        set_kind: how the set was chosen.
        num_forget, num_train: its size, and the training examples it was taken from.
    """
    if row is None:
        return (
            "U-LiRA did not audit this method: list the analysis shadow_unlearning in the plan (its methods default "
            "to the one in use)"
        )
    if row["set_kind"] != set_kind:
        return (
            f"U-LiRA audited {row['set_kind']} sets, and this one was chosen by {set_kind}: its result covers no other "
            "kind; exact retraining needs none"
        )
    share, audited = num_forget / max(num_train, 1), row["num_forget"] / max(row["num_train"], 1)
    if not 0.5 <= share / max(audited, 1e-12) <= 2.0:
        wanted = round(3 * share * row["num_train"])
        return (
            f"U-LiRA audited sets of {audited:.1%} of training ({row['num_forget']} examples), and this one is "
            f"{share:.1%}: set targets of shadow_unlearning to about {wanted}"
        )
    return ""


def _result(row: dict[str, Any]) -> ULiRAResult:
    """The stored figures as the result they came from; its arrays stay behind."""
    nothing = np.empty((0, 0))
    return ULiRAResult(
        scores=nothing,
        is_unlearned=nothing.astype(bool),
        auc=row["auc"],
        auc_low=row["auc_lo"],
        auc_high=row["auc_hi"],
        accuracy=row["accuracy"],
        tpr_at_1=math.nan,
        tpr_at_1_low=math.nan,
        tpr_at_1_high=math.nan,
        example_accuracy=nothing[0:0].ravel(),
    )
