"""Each judged finding as a Dagster asset check: an error where it fails, a warning where it is inconclusive, never
blocking.

Dagster wants the checks when the definitions load, the findings are known when an audit ends: so the plan declares one
check for each finding that it will judge, under a name that stays the same from audit to audit, and a finding that
nobody announced (an audit of another package, a run that gave nothing back) falls to ``other_findings``. The answers of
the report are checks too.

    model_<attack>          the audited model, where the plan sets a limit for it
    removal_<what>          the removal method in use: attacks, gap, quality, u_lira or against_retraining
    references              how a given model compares with the stated recipe, on which the reference models rest
    <analysis>_<what>       an analysis that judges; <analysis> alone where it does not say beforehand what it will find
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from assets.stage import Checked
from assets.unlearning import RETRAIN
from contracts.methods import analysis
from contracts.subject import Subject
from contracts.verdicts import OF_FINDINGS, Verdict
from reports import Judgement
from reports.summary import MODEL, OTHERS, REMOVAL, interval, number

ANSWERS = {MODEL: "exposes_nothing", REMOVAL: "removed_is_gone", OTHERS: "other_audits_pass"}
OTHER = "other_findings"


def declared(
    subject: Subject, *, removal: Sequence[str], per_request: bool, judges: Iterable[str], others: Sequence[str] = ()
) -> tuple[str, ...]:
    """Names of the checks of a findings stage, the answers first.

    Args:
        removal: what the removal method in use is judged by; none where nothing is removed.
        per_request: a forget request's: it says nothing of the audited model.
        judges: names of the analyses whose findings it holds.
        others: what else is judged, under its own name.
    """
    model = [] if per_request or subject.thresholds.max_target_auc is None else [c.name for c in subject.attacks]
    names = [f"{MODEL}_{_slug(what)}" for what in model] + [f"{REMOVAL}_{_slug(what)}" for what in removal]
    for choice in subject.analyses:
        spec = analysis.get(choice.name).spec
        if choice.name not in judges:
            continue
        if spec.finds is None:
            names.append(_slug(choice.name))
            continue
        in_use = subject.unlearning.decides if subject.unlearning else RETRAIN
        found = spec.finds(spec.config.from_mapping(choice.config), subject.thresholds, in_use)
        names += [f"{_slug(choice.name)}_{_slug(what)}" for what in found]
    answers = [name for about, name in ANSWERS.items() if {MODEL: model, REMOVAL: removal, OTHERS: judges}[about]]
    return (*answers, *dict.fromkeys([*names, *others]), OTHER)


def results(names: Sequence[str], frame: pl.DataFrame, by: Sequence[str], told: Judgement) -> dict[str, Checked]:
    """What each declared check says.

    Args:
        names: of :func:`declared`.
        frame: rows of ``audits.findings``; ``by``: of each row, "model", "removal" or the analysis that found it.
        told: the answers to the report's questions.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {name: [] for name in names}
    for row, owner in zip(frame.iter_rows(named=True), by, strict=True):
        if row["judged"]:
            own = (f"{_slug(owner)}_{_slug(row['what'])}", _slug(owner), OTHER)
            groups[next(name for name in own if name in groups)].append(row)
    made = {name: _worst(rows) for name, rows in groups.items()}
    for rest in (OTHER, ANSWERS[OTHERS]):  # what nobody announced need not be there
        if rest in made and not groups[rest]:
            made[rest] = Checked(verdict=Verdict.PASS, sentence="There is no other finding that counts.")
    answered = {
        ANSWERS[a.about]: Checked(verdict=a.verdict, sentence=a.sentence, what=f"{a.question} {a.answer}")
        for a in told.answers
        if a.counted
    }
    return {**made, **{name: found for name, found in answered.items() if name in made}}


def _worst(rows: Sequence[Mapping[str, Any]]) -> Checked:
    """The worst of several findings; none at all is nothing judged."""
    if not rows:
        return Checked(verdict=Verdict.NOT_JUDGED, sentence="This audit recorded no finding of this name that counts.")
    first = min(rows, key=lambda row: OF_FINDINGS.index(Verdict(row["verdict"])))
    between = interval(first["low"], first["high"])
    figures = [f"{number(first['value'])}{f' ({between})' * bool(between)}", f"limit {number(first['threshold'])}"]
    known = [text for text, column in zip(figures, ("value", "threshold"), strict=True) if first[column] is not None]
    return Checked(
        verdict=Verdict(first["verdict"]),
        sentence=str(first["sentence"]),
        what=": ".join(filter(None, (f"{first['about']}, {first['what']}", ", ".join(known)))),
    )


def _slug(what: str) -> str:
    """A name as Dagster takes it: "attack/lira_online" is lira_online, "against retraining" against_retraining.

    >>> _slug("attack/lira_online"), _slug("against retraining (2)")
    ('lira_online', 'against_retraining_2')
    """
    return re.sub(r"[^A-Za-z0-9]+", "_", what.rpartition("/")[2]).strip("_")
