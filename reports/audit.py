"""One audit on one page: everything a reader needs to believe a verdict or to doubt it.

``AuditReport`` holds plain facts; :func:`render_html` makes one self-contained page of them (no request leaves it, it
opens from a disk or a mail) and :func:`render_json` the same facts as canonical JSON. Both are functions of the report
alone: the only time in them is ``created_at``, so the same report gives the same bytes.

The order is the reader's. The first screen: the answers, the verdict, what was removed, every method under every attack, gap
against time, the audited model's ROC. Then what was audited, the findings, the scores with their examples (behind a line each),
the unlearning methods against retraining, the attacks, what is inconclusive and why, how to do it again.

Everything that comes from data (labels, class names, notes) is escaped by the template; nothing is interpreted as HTML
or Markdown. Not a certificate: nothing here is signed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contracts.digests import canonical_json
from contracts.errors import DataError, InvalidInput
from contracts.methods import Picture
from contracts.schema import ATTACK_REPORTS, UNLEARNING_RUNS
from contracts.tables import TableSpec
from contracts.verdicts import Finding
from reports import page, plots, summary
from reports.series import Curve, Histogram

MAX_EXAMPLES = 24


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """A few examples under one heading, shown as pictures where there are any, else as rows of text.

    Only the first ``MAX_EXAMPLES`` are kept, so that a page stays a page.

    Attributes:
        heading: "Most memorised".
        example_id: (n,) int64.
        value: (n,) float64, what they were chosen by.
        label: n strings, the given label ("" for none).
        note: () or n strings: what else is worth knowing ("model says 3").
        images: (n, H, W) or (n, C, H, W), or None.
        rows: n rows of features for tables, or None; the first eight columns are shown.
    """

    heading: str
    example_id: NDArray[np.int64]
    value: NDArray[np.float64]
    label: Sequence[str]
    note: Sequence[str] = ()
    images: NDArray[Any] | None = None
    rows: pl.DataFrame | None = None

    def __post_init__(self) -> None:
        n = len(self.example_id)
        lengths = {
            "value": len(self.value),
            "label": len(self.label),
            "note": len(self.note) if len(self.note) else n,
            "images": n if self.images is None else len(self.images),
            "rows": n if self.rows is None else self.rows.height,
        }
        wrong = {k: v for k, v in lengths.items() if v != n}
        if wrong:
            raise InvalidInput(f"examples {self.heading!r}: {n} example ids but {wrong}")
        if self.images is not None and not plots.is_picture(self.images.shape[1:]):
            raise InvalidInput(f"examples {self.heading!r}: shape {self.images.shape[1:]} is not that of a picture")
        for name in ("example_id", "value", "label", "note", "images", "rows"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else value[:MAX_EXAMPLES])


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreSection:
    """One score: its distribution and the examples at its ends.

    Attributes:
        name: score name; ``doc``: one sentence; ``unit`` and ``higher_means`` as declared by the score.
        histogram: of the score's value over the scored examples.
        passed, reason: whether its run met the score's gates, and if not, why (columns of ``scores.runs``).
    """

    name: str
    doc: str
    histogram: Histogram
    higher_means: str = ""
    unit: str = ""
    examples: Sequence[Examples] = ()
    passed: bool = True
    reason: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class AnalysisSection:
    """One finding about the whole data set: its pictures and the head of its table.

    Attributes:
        name, doc: as the analysis declares them.
        charts: (declaration, rows) of each picture that is a chart.
        examples: one group a picture of kind "examples".
        table: the first rows of its first table; ``num_rows`` says how many there are.
        reason: why it does not apply to this subject, or "".
        audit: it is about what the model tells an attacker, and stands with the attacks.
    """

    name: str
    doc: str
    audit: bool = False
    charts: Sequence[tuple[Picture, pl.DataFrame]] = ()
    examples: Sequence[Examples] = ()
    table: pl.DataFrame | None = None
    num_rows: int = 0
    reason: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Removed:
    """What was taken out of the model.

    Attributes:
        num: training examples removed, of ``num_train``.
        how: how they were chosen, in words ("a random share", "named by owner").
        classes: class name -> how many of them; empty where there are no classes.
        examples: a few of them; None where they are not to be shown (a person's).
    """

    num: int
    num_train: int
    how: str
    classes: Mapping[str, int] = field(default_factory=dict)
    examples: Examples | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditReport:
    """What one audit found.

    Attributes:
        subject: name of the subject. ``title``: one line for people.
        created_at: ISO 8601 in UTC; the only time on the page that is not a fact of the audit.
        findings: rows of ``audits.findings``, or findings about nothing in particular.
        audited: group -> {label: value}; the groups "Data", "Model", "Recipe", "Seeds", "Digests" in the order shown.
        scores: one section a score. ``groups``: examples chosen over several scores (the noisiest).
        analyses: one section an analysis.
        removed: what was taken out, or None.
        unlearning: rows of ``unlearning.runs``. ``attacks``: rows of ``audits.attack_reports``. None when not run.
        curves: audited -> attack -> ROC curve.
        notes: further limits and reasons, one sentence each.
        commands: what to type to do it again. ``config_yaml``: the subject's configuration as text.
        environment: {label: value}: versions, device, threads.
        ledger_head: hash of the ledger's last entry when the report was made.
        request: {label: value} when this is the report of one forget request, else None.
        events: rows of ``requests.events`` of that request, or None.
        controls: methods that must fail; see :mod:`reports.summary`.
        decides: the unlearning method in use, whose verdict counts; None when the plan has none.
        computed: what was computed and what a verdict would need, for an audit that judged nothing.
        max_gap: the plan's largest tolerated average gap to retraining, drawn as a line; None for no line.

    Raises:
        DataError: a frame lacks a column of its table.
    """

    subject: str
    created_at: str
    findings: pl.DataFrame | Sequence[Finding]
    title: str = ""
    audited: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scores: Sequence[ScoreSection] = ()
    groups: Sequence[Examples] = ()
    analyses: Sequence[AnalysisSection] = ()
    removed: Removed | None = None
    unlearning: pl.DataFrame | None = None
    attacks: pl.DataFrame | None = None
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()
    config_yaml: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    ledger_head: str = ""
    request: Mapping[str, Any] | None = None
    events: pl.DataFrame | None = None
    controls: Sequence[str] = summary.CONTROLS
    decides: str | None = None
    computed: str = ""
    max_gap: float | None = None

    def __post_init__(self) -> None:
        found = self.findings
        frame = found if isinstance(found, pl.DataFrame) else summary.findings_frame(("", f) for f in found)
        object.__setattr__(self, "findings", summary.check_findings(frame))
        for frame, spec in ((self.unlearning, UNLEARNING_RUNS), (self.attacks, ATTACK_REPORTS)):
            _check_columns(frame, spec)

    @property
    def judgement(self) -> summary.Judgement:
        """The overall verdict and the banner's sentence."""
        return summary.judge(self._findings, controls=self.controls, decides=self.decides, computed=self.computed)

    @property
    def rows(self) -> list[summary.Row]:
        """One row a finding, worst first; the terminal shows the same."""
        return summary.rows(self._findings, controls=self.controls)

    @property
    def _findings(self) -> pl.DataFrame:
        assert isinstance(self.findings, pl.DataFrame)
        return self.findings


def render_html(report: AuditReport) -> str:
    """The page: one file, UTF-8, no script, no request. Its foot names the SHA-256 of :func:`render_json`'s bytes."""
    text = render_json(report)
    return page.render(report, digest=hashlib.sha256(text.encode("utf-8")).hexdigest())


def render_json(report: AuditReport) -> str:
    """The same facts as canonical JSON (sorted keys, no spaces, NaN as null) with a final newline."""
    return canonical_json(facts(report)) + "\n"


def facts(report: AuditReport) -> dict[str, Any]:
    """What the page says, as JSON's own types. Pictures are left out: the example ids name them."""
    judgement = report.judgement
    return _plain(
        {
            "format": "palimpsest-audit/2",
            "subject": report.subject,
            "title": report.title,
            "created_at": report.created_at,
            "verdict": judgement.verdict.value,
            "sentence": judgement.sentence,
            "answers": [dataclasses.asdict(answer) | {"verdict": answer.verdict.value} for answer in judgement.answers],
            "counts": {v.value: n for v, n in judgement.counts.items()},
            "controls": {"methods": list(report.controls), "not_caught": list(judgement.powerless)},
            "decides": report.decides,
            "computed": report.computed,
            "request": report.request,
            "events": report.events,
            "audited": report.audited,
            "findings": report.findings,
            "scores": [
                {
                    "name": s.name,
                    "doc": s.doc,
                    "unit": s.unit,
                    "higher_means": s.higher_means,
                    "passed": s.passed,
                    "reason": s.reason,
                    "histogram": s.histogram.facts(),
                    "examples": [_listed(e) for e in s.examples],
                }
                for s in report.scores
            ],
            "groups": [_listed(e) for e in report.groups],
            "analyses": [
                {
                    "name": a.name,
                    "doc": a.doc,
                    "reason": a.reason,
                    "num_rows": a.num_rows,
                    "head": a.table,
                    "examples": [_listed(e) for e in a.examples],
                }
                for a in report.analyses
            ],
            "removed": None
            if report.removed is None
            else {
                "num": report.removed.num,
                "num_train": report.removed.num_train,
                "how": report.removed.how,
                "classes": report.removed.classes,
            },
            "unlearning": report.unlearning,
            "max_gap": report.max_gap,
            "attacks": report.attacks,
            "curves": {a: {name: c.facts() for name, c in group.items()} for a, group in report.curves.items()},
            "inconclusive": [{"what": w, "why": y} for w, y in page.open_questions(report)],
            "reproduce": {
                "commands": list(report.commands),
                "config_yaml": report.config_yaml,
                "environment": report.environment,
                "ledger_head": report.ledger_head,
            },
        }
    )


def _listed(examples: Examples) -> dict[str, Any]:
    return {
        "heading": examples.heading,
        "example_id": examples.example_id,
        "value": examples.value,
        "label": list(examples.label),
        "note": list(examples.note),
        "rows": examples.rows,
    }


def _check_columns(frame: pl.DataFrame | None, spec: TableSpec) -> None:
    missing = [] if frame is None else [c.name for c in spec.columns if c.name not in frame.columns]
    if missing:
        raise DataError(f"{spec.full_name} rows lack the column {', '.join(missing)}")


def _plain(value: Any) -> Any:
    """JSON's own types: frames as lists of rows, arrays as lists, times as ISO 8601, NaN and infinities as None."""
    if isinstance(value, pl.DataFrame):
        return [_plain(row) for row in value.iter_rows(named=True)]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
