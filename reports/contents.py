"""What an audit's page is made of: plain facts, arranged by nobody yet.

``AuditReport`` holds them; ``reports.audit`` turns them into one page and into canonical JSON, ``reports.page``
arranges them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contracts.errors import DataError, InvalidInput
from contracts.schema import ATTACK_REPORTS, INTERVALS, METRICS, UNLEARNING_METRICS, UNLEARNING_RUNS
from contracts.tables import TableSpec
from contracts.verdicts import Finding
from reports import plots, summary
from reports.matrix import Matrix
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
        charts: (title, PNG) of each picture that is a chart, as the analysis drew it.
        examples: one group a picture of kind "examples".
        table: the first rows of its first table; ``num_rows`` says how many there are.
        reason: why it does not apply to this subject, or "".
        audit: it is about what the model tells an attacker, and stands with the attacks.
    """

    name: str
    doc: str
    audit: bool = False
    charts: Sequence[tuple[str, bytes]] = ()
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
        analyses: one section an analysis. ``datasets``: one a made data set, under its own name.
        removed: what was taken out, or None.
        unlearning: rows of ``unlearning.runs``. ``unlearning_metrics``: rows of ``unlearning.metrics`` of these runs.
            ``attacks``: rows of ``audits.attack_reports``. None when not run.
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
        matrix: recipes against audits over all subjects of the state folder, as they stood; None for none.
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
    datasets: Sequence[AnalysisSection] = ()
    removed: Removed | None = None
    unlearning: pl.DataFrame | None = None
    unlearning_metrics: pl.DataFrame | None = None
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
    matrix: Matrix | None = None
    max_gap: float | None = None

    def __post_init__(self) -> None:
        found = self.findings
        frame = found if isinstance(found, pl.DataFrame) else summary.findings_frame(("", f) for f in found)
        object.__setattr__(self, "findings", summary.check_findings(frame))
        if (self.unlearning is None) != (self.unlearning_metrics is None):
            raise DataError("a report shows runs of unlearning with their metrics, or neither")
        for frame, spec in (
            (self.unlearning, UNLEARNING_RUNS),
            (self.unlearning_metrics, UNLEARNING_METRICS),
            (self.attacks, ATTACK_REPORTS),
        ):
            _check_columns(frame, spec)

    @property
    def runs(self) -> pl.DataFrame | None:
        """``unlearning`` with a column for each metric, null where it has none; ``<metric>_lo`` and ``_hi`` where it
        has bounds."""
        if self.unlearning is None or self.unlearning_metrics is None:
            return None
        key, rows = ["split", "method", "seed"], self.unlearning_metrics
        wide = self.unlearning
        for metric in METRICS:
            bounds = {"low": f"{metric}_lo", "high": f"{metric}_hi"} if metric in INTERVALS else {}
            one = rows.filter(pl.col("metric") == metric).select(*key, "value", *bounds)
            wide = wide.join(one.rename({"value": metric, **bounds}), on=key, how="left", maintain_order="left")
        return wide

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


def _check_columns(frame: pl.DataFrame | None, spec: TableSpec) -> None:
    missing = [] if frame is None else [c.name for c in spec.columns if c.name not in frame.columns]
    if missing:
        raise DataError(f"{spec.full_name} rows lack the column {', '.join(missing)}")
