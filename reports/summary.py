"""The audit in a few rows: two answers and the overall verdict, and one row a finding, for terminal, page and exit
status alike.

    Does the audited model expose its training data?     findings about the target
    Is what <method in use> removed gone?                findings about the method that the plan names, judged or not
                                                         shown

Two questions, two answers, never one word for both. The overall verdict is the worst of the findings that count
(column ``judged``): a pass says that every one of them passes. The untouched model (method "none") is a positive
control: an audit that works must fail it by an attack, so its failures never count against the subject, and where no
    attack fails it,
the audit had no power: then "pass" becomes "inconclusive". Where nothing counts, nothing was judged, which is no pass.

Plain data only: strings and numbers; colours and boxes are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from contracts.errors import DataError
from contracts.schema import FINDINGS
from contracts.verdicts import ATTACK, INFORMATION, OF_FINDINGS, TARGET, Finding, Verdict, overall

CONTROLS = ("none",)
MODEL, REMOVAL, OTHERS = "model", "removal", "others"  # what an answer is about
_TYPES = {"str": pl.String, "float64": pl.Float64, "bool": pl.Boolean}
FINDINGS_SCHEMA = pl.Schema({c.name: _TYPES[c.dtype]() for c in FINDINGS.columns})


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the summary table: a finding, what it is about, and its figures as text.

    Attributes:
        stage, kind, about, method, what, verdict, sentence, value, low, high, threshold: of the finding.
        control: the row is about a control: it must fail.
        counted: the row decides the overall verdict; the others are controls, methods compared and information.
    """

    stage: str
    kind: str
    about: str
    method: str
    what: str
    verdict: Verdict
    sentence: str
    value: float | None
    low: float | None
    high: float | None
    threshold: float | None
    control: bool
    counted: bool

    @property
    def figure(self) -> str:
        return number(self.value)

    @property
    def interval(self) -> str:
        return interval(self.low, self.high)

    @property
    def limit(self) -> str:
        return number(self.threshold)

    @property
    def role(self) -> str:
        """Why it does not count: "must fail", "compared", "for information"; "" when it does."""
        if self.counted:
            return ""
        compared = self.method and self.kind != INFORMATION
        return "must fail" if self.control else "compared" if compared else "for information"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One of the two questions with its answer in words and the finding that decided it.

    Attributes:
        about: "model", "removal" or "others".
        question: as a person would ask it.
        answer: in a word or two.
        verdict: of the findings that answer it.
        counted: they count in the overall verdict; else the plan sets no limit and the answer is reported only.
        sentence: the deciding finding, with its figure; or what would be needed.
    """

    about: str
    question: str
    answer: str
    verdict: Verdict
    counted: bool
    sentence: str

    @property
    def shown(self) -> dict[str, Any]:
        """A row for Dagster's metadata."""
        return {
            "question": self.question,
            "answer": self.answer,
            "verdict": self.verdict.value,
            "counts": self.counted,
            "why": self.sentence,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """The verdict over all findings that count, the sentence that a banner shows, and the answers.

    Attributes:
        counts: verdict -> number of findings that count; every verdict of a finding is a key.
        powerless: splits on which no attack caught the untouched model.
        answers: to the two questions, as far as they were asked, and one for what other audits found.
    """

    verdict: Verdict
    sentence: str
    counts: Mapping[Verdict, int]
    powerless: tuple[str, ...]
    answers: tuple[Answer, ...]


def findings_frame(findings: Iterable[tuple[str, Finding]], *, stage: str = "") -> pl.DataFrame:
    """Pairs of what a finding is about and the finding, as rows of ``audits.findings``, in the order given."""
    names = ("kind", "method", "what", "sentence", "value", "low", "high", "threshold", "judged")
    rows = [
        {
            "stage": stage,
            "about": about,
            "verdict": Verdict(f.verdict).value,
            **{name: getattr(f, name) for name in names},
        }
        for about, f in findings
    ]
    return pl.DataFrame(rows, schema=FINDINGS_SCHEMA)


def check_findings(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns of ``audits.findings`` of ``frame``, in their order; other columns are dropped.

    Raises:
        DataError: a column is missing, or a verdict is not one of pass, fail, inconclusive, broken.
    """
    missing = [name for name in FINDINGS_SCHEMA if name not in frame.columns]
    if missing:
        raise DataError(f"findings lack the column {', '.join(missing)}")
    unknown = sorted(set(frame["verdict"].to_list()) - {v.value for v in OF_FINDINGS}, key=str)
    if unknown:
        raise DataError(f"findings: verdict {unknown[0]!r} is not one of {', '.join(v.value for v in OF_FINDINGS)}")
    return frame.select(pl.col(name).cast(dtype) for name, dtype in FINDINGS_SCHEMA.items())


def judge(
    findings: pl.DataFrame, *, controls: Sequence[str] = CONTROLS, decides: str | None = None, computed: str = ""
) -> Judgement:
    """The overall verdict of ``audits.findings`` rows, and the answers.

    Args:
        findings: rows of ``audits.findings``; other columns are ignored.
        controls: methods whose failure is expected and required.
        decides: the unlearning method in use; None when the plan has none.
        computed: what was computed, for an audit that judged nothing.

    Raises:
        DataError: see :func:`check_findings`.
    """
    every = rows(findings, controls=controls)
    counted = [r for r in every if r.counted]
    tally = {v: sum(r.verdict is v for r in counted) for v in OF_FINDINGS}
    powerless = _powerless(every)
    verdict = overall(r.verdict for r in counted) if counted else Verdict.NOT_JUDGED
    if verdict is Verdict.PASS and powerless:
        verdict = Verdict.INCONCLUSIVE
    model = _about_model(every)
    answers = [model, _about_removal(every, decides, powerless), _about_rest(every)]
    sentence = _sentence(verdict, counted, tally, powerless, computed)
    if verdict is Verdict.PASS and model is not None and not model.counted and model.verdict is Verdict.FAIL:
        sentence += " That the audited model exposes its training data is reported, not judged."
    return Judgement(
        verdict=verdict,
        sentence=sentence,
        counts=tally,
        powerless=powerless,
        answers=tuple(answer for answer in answers if answer is not None),
    )


def judgement_of(facts: Mapping[str, Any]) -> tuple[Judgement, list[Row]]:
    """The overall verdict and the summary rows of a stored JSON report."""
    findings = pl.DataFrame(facts["findings"], schema=FINDINGS_SCHEMA)
    controls = facts["controls"]["methods"]
    judgement = judge(findings, controls=controls, decides=facts["decides"], computed=facts["computed"])
    return judgement, rows(findings, controls=controls)


def rows(findings: pl.DataFrame, *, controls: Sequence[str] = CONTROLS) -> list[Row]:
    """One row a finding: those that count, then methods compared, then controls; within each failures first, then
    broken, inconclusive, passed; else in the order given."""
    made = [
        Row(
            **{k: v for k, v in r.items() if k not in ("verdict", "judged")},
            verdict=Verdict(r["verdict"]),
            control=r["method"] in controls,
            counted=r["judged"] and r["method"] not in controls,
        )
        for r in check_findings(findings).iter_rows(named=True)
    ]
    return sorted(made, key=lambda r: (not r.counted, r.control, OF_FINDINGS.index(r.verdict)))


def number(value: float | None) -> str:
    """A figure for people: three significant decimals below 1, one decimal above 10, nothing for None or NaN.

    >>> number(0.51234), number(12.345), number(-0.5), number(None)
    ('0.512', '12.3', '−0.500', '')
    """
    if value is None or value != value:
        return ""
    size = abs(value)
    text = (
        f"{value:.0f}"
        if size >= 1000
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size > 1
        else f"{value:.3f}"
    )
    return text.replace("-", "\u2212")


def interval(low: float | None, high: float | None) -> str:
    """``low-high`` with an en dash ("to" where a bound is negative), or "" when a bound is not known."""
    if not number(low) or not number(high):
        return ""
    between = " to " if min(float(low or 0), float(high or 0)) < 0 else "\u2013"
    return f"{number(low)}{between}{number(high)}"


def _powerless(every: Sequence[Row]) -> tuple[str, ...]:
    """Splits with a control that no attack failed. A gap or a lost accuracy of the untouched model shows no power."""
    caught: dict[str, bool] = {}
    for row in every:
        if row.control:
            split = row.about.rsplit("/", 1)[0]
            caught[split] = caught.get(split, False) or (row.kind == ATTACK and row.verdict is Verdict.FAIL)
    return tuple(sorted(split for split, found in caught.items() if not found))


def worst(group: Sequence[Row]) -> Row:
    """The worst verdict; among equals the figure nearest to, or furthest beyond, its limit."""

    def nearness(row: Row) -> float:
        if row.value is None or not row.threshold:
            return -1.0
        return (
            max(row.value, 1 - row.value) if row.kind == ATTACK and row.threshold < 1 else row.value
        ) / row.threshold

    return min(group, key=lambda r: (OF_FINDINGS.index(r.verdict), -nearness(r)))


def _said(row: Row) -> str:
    return f"{row.what.removeprefix('attack/').removeprefix('unlearning/')}: {row.sentence}"


def _about_model(every: Sequence[Row]) -> Answer | None:
    found = [r for r in every if r.about == TARGET and not r.method]
    if not found:
        return None
    deciding = worst(found)
    answer = {Verdict.FAIL: "yes", Verdict.PASS: "no sign found"}.get(deciding.verdict, "cannot be told")
    counted = any(r.counted for r in found)
    limit = "" if counted else " Reported, not judged: the plan sets no thresholds.max_target_auc."
    return Answer(
        about=MODEL,
        question="Does the audited model expose its training data?",
        answer=answer,
        verdict=deciding.verdict,
        counted=counted,
        sentence=_said(deciding) + limit,
    )


def _about_removal(every: Sequence[Row], decides: str | None, powerless: Sequence[str]) -> Answer | None:
    found = [r for r in every if r.counted and r.method]
    if not found:
        return None
    deciding, verdict = worst(found), overall(r.verdict for r in found)
    blind = [split for split in powerless if any(r.about.rsplit("/", 1)[0] == split for r in found)]
    sentence = _said(deciding)
    if verdict is Verdict.PASS and blind:
        verdict, sentence = Verdict.INCONCLUSIVE, _blind(blind)
    answer = {Verdict.FAIL: "no", Verdict.PASS: "yes, as far as these attacks see"}.get(verdict, "cannot be told")
    return Answer(
        about=REMOVAL,
        question=f"Is what {decides or deciding.method} removed gone?",
        answer=answer,
        verdict=verdict,
        counted=True,
        sentence=sentence,
    )


def _about_rest(every: Sequence[Row]) -> Answer | None:
    found = [r for r in every if r.counted and not r.method and r.about != TARGET]
    if not found:
        return None
    deciding = worst(found)
    return Answer(
        about=OTHERS,
        question="Do the other audits pass?",
        answer="yes"
        if deciding.verdict is Verdict.PASS
        else "no"
        if deciding.verdict is Verdict.FAIL
        else "cannot be told",
        verdict=deciding.verdict,
        counted=True,
        sentence=f"{deciding.about}, {_said(deciding)}" if deciding.about else _said(deciding),
    )


def _blind(powerless: Sequence[str]) -> str:
    return (
        f"No attack caught the untouched model on {', '.join(powerless)}: the audit had no power there, so passing it "
        "proves nothing."
    )


def _sentence(
    verdict: Verdict, counted: Sequence[Row], tally: Mapping[Verdict, int], powerless: Sequence[str], computed: str
) -> str:
    if verdict is Verdict.NOT_JUDGED:
        return f"Nothing was judged, so nothing is claimed. {computed}".strip()
    total = len(counted)
    if verdict is Verdict.INCONCLUSIVE and not tally[Verdict.INCONCLUSIVE]:
        return _blind(powerless)
    if verdict is Verdict.PASS:
        return (
            f"All {total} findings that count pass."
            if total > 1
            else f"The one finding that counts passes: {counted[0].sentence}"
        )
    of_verdict = [r for r in counted if r.verdict is verdict]
    verb = {Verdict.FAIL: "fail", Verdict.BROKEN: "could not be checked", Verdict.INCONCLUSIVE: "cannot be decided"}[
        verdict
    ]
    if verdict is Verdict.FAIL and len(of_verdict) == 1:
        verb = "fails"
    first: Any = of_verdict[0]
    where = f"{first.about}: " if first.about else ""
    return f"{len(of_verdict)} of {total} findings that count {verb}. {where}{first.sentence}"
