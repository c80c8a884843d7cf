"""The audit in a few rows: the overall verdict with its sentence, and one row a finding, for terminal and page alike.

Overall verdict = the worst of the findings that count (contracts.verdicts.overall). Of the unlearning methods only the
one in use counts (``decides``); the others are compared with it. The untouched model (method "none") is a positive
control: an audit that works must fail it, so its failures never count against the subject, and when nothing about it
fails, the audit had no power on that split: then "pass" becomes "inconclusive".

Plain data only: strings and numbers; colours and boxes are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from contracts.errors import DataError
from contracts.schema import FINDINGS
from contracts.verdicts import Finding, Verdict, overall

CONTROLS = ("none",)
_TYPES = {"str": pl.String, "float64": pl.Float64}
FINDINGS_SCHEMA = pl.Schema({c.name: _TYPES[c.dtype]() for c in FINDINGS.columns})


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the summary table: a finding, what it is about, and its figures as text.

    Attributes:
        audited: "target", "scores" or "<split>/<method>".
        what, verdict, sentence, value, low, high, threshold: of the finding.
        control: the row is about a control: it must fail.
        counted: the row decides the overall verdict; the others are controls and methods compared.
    """

    audited: str
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """The verdict over all findings and the sentence that a banner shows.

    Attributes:
        counts: verdict -> number of findings that count; every verdict is a key.
        powerless: splits whose positive control was not caught.
    """

    verdict: Verdict
    sentence: str
    counts: Mapping[Verdict, int]
    powerless: tuple[str, ...]


def findings_frame(findings: Mapping[str, Iterable[Finding]]) -> pl.DataFrame:
    """``audited -> findings`` as rows of ``audits.findings`` (audited, what, verdict, sentence, value, low, high, threshold)."""
    rows = [
        {"audited": audited, "what": f.what, "verdict": Verdict(f.verdict).value, "sentence": f.sentence,
         "value": f.value, "low": f.low, "high": f.high, "threshold": f.threshold}
        for audited, group in findings.items() for f in group
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=FINDINGS_SCHEMA)


def check_findings(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns of ``audits.findings`` of ``frame``, in their order; other columns are dropped.

    Raises:
        DataError: a column is missing, or a verdict is not one of pass, fail, inconclusive, broken.
    """
    missing = [name for name in FINDINGS_SCHEMA if name not in frame.columns]
    if missing:
        raise DataError(f"findings lack the column {', '.join(missing)}")
    unknown = sorted(set(frame["verdict"].to_list()) - {v.value for v in Verdict}, key=str)
    if unknown:
        raise DataError(f"findings: verdict {unknown[0]!r} is not one of {', '.join(v.value for v in Verdict)}")
    return frame.select(pl.col(name).cast(dtype) for name, dtype in FINDINGS_SCHEMA.items())


def is_control(audited: str, controls: Sequence[str] = CONTROLS) -> bool:
    """Whether ``<split>/<method>`` names a control method.

    >>> is_control("random/none"), is_control("target")
    (True, False)
    """
    return "/" in audited and audited.rsplit("/", 1)[1] in controls


def counts(audited: str, *, controls: Sequence[str] = CONTROLS, decides: str | None = None) -> bool:
    """Whether findings about ``audited`` decide the overall verdict: those about a method do when it is the one in use.

    >>> counts("target"), counts("random/none"), counts("random/finetune", decides="retrain")
    (True, False, False)
    """
    if "/" not in audited:
        return True
    return not is_control(audited, controls) and decides in (None, audited.rsplit("/", 1)[1])


def judge(findings: pl.DataFrame, *, controls: Sequence[str] = CONTROLS, decides: str | None = None) -> Judgement:
    """The overall verdict of ``audits.findings`` rows.

    Args:
        findings: rows of ``audits.findings``; other columns are ignored.
        controls: methods whose failure is expected and required.
        decides: the unlearning method in use; with None all that are no controls count.

    Raises:
        DataError: see :func:`check_findings`.
    """
    frame = check_findings(findings)
    rows = [r | {"verdict": Verdict(r["verdict"])} for r in frame.iter_rows(named=True)]
    counted = [r for r in rows if counts(r["audited"], controls=controls, decides=decides)]
    tally = {v: sum(r["verdict"] is v for r in counted) for v in Verdict}
    verdict = overall(r["verdict"] for r in counted)

    caught: dict[str, bool] = {}
    for row in rows:
        if is_control(row["audited"], controls):
            split = row["audited"].rsplit("/", 1)[0]
            caught[split] = caught.get(split, False) or row["verdict"] is Verdict.FAIL
    powerless = tuple(sorted(split for split, found in caught.items() if not found))
    if verdict is Verdict.PASS and powerless:
        verdict = Verdict.INCONCLUSIVE
    return Judgement(verdict=verdict, sentence=_sentence(verdict, counted, tally, powerless), counts=tally, powerless=powerless)  # fmt: skip


def rows(findings: pl.DataFrame, *, controls: Sequence[str] = CONTROLS, decides: str | None = None) -> list[Row]:
    """One row a finding: those that count, then methods compared, then controls; within each failures first, then
    broken, inconclusive, passed; else in the order given."""
    order = {v: n for n, v in enumerate((Verdict.FAIL, Verdict.BROKEN, Verdict.INCONCLUSIVE, Verdict.PASS))}
    made = [
        Row(
            **(r | {"verdict": Verdict(r["verdict"])}),
            control=is_control(r["audited"], controls),
            counted=counts(r["audited"], controls=controls, decides=decides),
        )
        for r in check_findings(findings).iter_rows(named=True)
    ]
    return sorted(made, key=lambda r: (not r.counted, r.control, order[r.verdict]))


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


def _sentence(
    verdict: Verdict, counted: Sequence[Mapping[str, Any]], tally: Mapping[Verdict, int], powerless: Sequence[str]
) -> str:
    if not counted:
        return "Nothing was judged, so nothing can be claimed."
    total = len(counted)
    if verdict is Verdict.INCONCLUSIVE and not tally[Verdict.INCONCLUSIVE]:
        return (
            f"The untouched model was not caught on {', '.join(powerless)}: the audit had no power there, "
            "so passing it proves nothing."
        )
    if verdict is Verdict.PASS:
        return f"All {total} findings pass." if total > 1 else f"The one finding passes: {counted[0]['sentence']}"
    worst = [r for r in counted if r["verdict"] is verdict]
    verb = {Verdict.FAIL: "fail", Verdict.BROKEN: "could not be checked", Verdict.INCONCLUSIVE: "cannot be decided"}[
        verdict
    ]
    if verdict is Verdict.FAIL and len(worst) == 1:
        verb = "fails"
    first = worst[0]
    where = f"{first['audited']}: " if first["audited"] else ""
    return f"{len(worst)} of {total} findings {verb}. {where}{first['sentence']}"
