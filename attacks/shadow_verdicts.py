"""Verdicts on unlearning methods audited over shadow runs, from the stored rows: pure.

Four findings a method, audited as "shadow/<method>":

    u_lira      the whole interval of the AUC within 1 - max_auc .. max_auc (``verdicts.judge_u_lira``)
    examples    no target exposed: different after Holm's correction, and by more than the plan's max_auc tolerates of one
                example; one in a thousand is a failure, whatever the AUC of all
    canaries    no planted canary exposed
    kept        retained people leak no more than after retraining: fail when the paired interval of the excess lies above 0
                and the excess is over 0.02 of AUC; pass when the whole interval is below 0.02. Retraining itself is the
                yardstick: what the others leak more once data is gone (the onion effect) is reported, not held against it

No pass without power: at least 60 runs (19 others a state carry a p-value of 0.05), and at least 9 in 10 of 10 or more
canaries exposed where nothing was removed (method ``none``). Failures need no power: they are exposed already.
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
from attacks.statistics import minimum_references
from attacks.verdicts import CLAIM_FPR, judge_u_lira
from contracts.subject import Thresholds
from contracts.verdicts import Finding, Verdict

KEPT_MARGIN = 0.02  # of AUC
POWER, FEWEST_CANARIES = 0.9, 10
_NAMED = 5


def judge_shadow_unlearning(tables: Mapping[str, pl.DataFrame], thresholds: Thresholds) -> list[tuple[str, Finding]]:
    """Findings of every audited method, the references too: ``none`` has to fail and ``retrain`` to pass.

    Args:
        tables: ``u_lira`` and ``u_lira_examples``, ``u_lira_canaries`` as stored; empty ones give no finding.
        thresholds: max_auc and alpha of the plan.
    """
    rows = tables["u_lira"].to_dicts()
    lacking = _lacking(rows)
    found = []
    for row in rows:
        audited = f"shadow/{row['method']}"
        for finding in _findings(row, tables, thresholds):
            if finding.verdict is Verdict.PASS and lacking:
                finding = dataclasses.replace(
                    finding, verdict=Verdict.INCONCLUSIVE, sentence=f"{lacking} {finding.sentence}"
                )
            found.append((audited, finding))
    return found


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
            f"The audit lacks power: it exposes {control['canaries_exposed']} of {control['num_canaries']} canaries where "
            f"nothing was removed, needed {math.ceil(POWER * control['num_canaries'])}."
        )
    return ""


def _findings(row: dict[str, Any], tables: Mapping[str, pl.DataFrame], thresholds: Thresholds) -> list[Finding]:
    names = ("u_lira", "examples", "canaries", "kept")
    if row["status"] != "ok":
        why = f"Could not be judged: the method diverged in {row['num_diverged']} of {row['num_runs']} shadow runs."
        return [Finding(what=f"unlearning/{n}", verdict=Verdict.BROKEN, sentence=why) for n in names]
    # The intervals are those of the analysis; the plan's alpha decides what it can: corrected p-values.
    own = dataclasses.replace(thresholds, alpha=row["alpha"])
    found = [judge_u_lira(_result(row), what="unlearning/u_lira", thresholds=own)]
    for name, table, who in (("examples", "u_lira_examples", "examples"), ("canaries", "u_lira_canaries", "canaries")):
        frame = tables[table].filter(pl.col("method") == row["method"])
        if frame.height:
            found.append(_judge_exposed(frame, what=f"unlearning/{name}", who=who, thresholds=thresholds))
    if row["kept_excess"] is not None:
        found.append(_judge_kept(row))
    return found


def _judge_exposed(frame: pl.DataFrame, *, what: str, who: str, thresholds: Thresholds) -> Finding:
    """No row exposed at the plan's level and tolerance, after Holm's correction over the rows."""
    exposed = frame.filter(
        (pl.col("p_holm") <= thresholds.alpha) & (pl.col("mu") > tolerated_mu(thresholds.max_auc))
    ).sort("p_value", "example_id")
    eps = frame["eps"].to_numpy()
    shown = f"epsilon: mean {eps.mean():.2f}, 99th percentile {np.quantile(eps, 0.99):.2f}, largest {eps.max():.2f}"
    figures: dict[str, Any] = {"value": float(exposed.height), "threshold": 0.0, "what": what}
    if not exposed.height:
        return Finding(
            **figures, verdict=Verdict.PASS,
            sentence=f"None of {frame.height} removed {who} can be told from never-seen ones (Holm, level {thresholds.alpha:g}); {shown}.",
        )  # fmt: skip
    ids = ", ".join(map(str, exposed["example_id"].head(_NAMED).to_list()))
    more = ", ..." if exposed.height > _NAMED else ""
    return Finding(
        **figures, verdict=Verdict.FAIL,
        sentence=f"{exposed.height} of {frame.height} removed {who} can be told from never-seen ones (Holm, level "
        f"{thresholds.alpha:g}): ids {ids}{more}; {shown}.",
    )  # fmt: skip


def _judge_kept(row: dict[str, Any]) -> Finding:
    """What retained people leak after this method beyond what they leak after retraining."""
    value, low, high = row["kept_excess"], row["kept_excess_lo"], row["kept_excess_hi"]
    shown = (
        f"AUC {row['kept_auc_before']:.3f} before, {row['kept_auc_after']:.3f} after; beyond retraining {value:+.3f} "
        f"({100 * (1 - row['alpha']):g}% interval {low:+.3f} to {high:+.3f}, p = {row['kept_excess_p_value']:.1e}), tolerated {KEPT_MARGIN:g}"
    )
    if low > 0 and value > KEPT_MARGIN:
        verdict, lead = Verdict.FAIL, "Retained examples are more exposed than after retraining"
    elif high <= KEPT_MARGIN:
        verdict, lead = Verdict.PASS, "Retained examples are no more exposed than after retraining"
    else:
        verdict, lead = Verdict.INCONCLUSIVE, "The interval reaches past the tolerance"
    return Finding(
        what="unlearning/kept", verdict=verdict, sentence=f"{lead}: {shown}.", value=value, low=low, high=high,
        threshold=KEPT_MARGIN,
    )  # fmt: skip


def _result(row: dict[str, Any]) -> ULiRAResult:
    """The stored figures as the result they came from; its arrays stay behind."""
    nothing = np.empty((0, 0))
    return ULiRAResult(
        scores=nothing, is_unlearned=nothing.astype(bool), auc=row["auc"], auc_low=row["auc_lo"], auc_high=row["auc_hi"],
        accuracy=row["accuracy"], tpr_at_1=math.nan, tpr_at_1_low=math.nan, tpr_at_1_high=math.nan, example_accuracy=nothing[0:0].ravel(),
    )  # fmt: skip
