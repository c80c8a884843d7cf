"""One audit on one page: everything a reader needs to believe a verdict or to doubt it.

``reports.contents.AuditReport`` holds plain facts; :func:`render_html` makes one self-contained page of them (no
request leaves it, it opens from a disk or a mail) and :func:`render_json` the same facts as canonical JSON. Both are
functions of the report
alone: the only time in them is ``created_at``, so the same report gives the same bytes.

The order is the reader's. The first screen: the answers, the verdict, what was removed, every method under every
attack, gap against time, the audited model's ROC. Then what was audited, the findings, the scores with their examples
(behind a line each), the unlearning methods against retraining, the attacks, what is inconclusive and why, recipes
against audits over all subjects, how to do it again.

Everything that comes from data (labels, class names, notes) is escaped by the template; nothing is interpreted as HTML
or Markdown. Not a certificate: nothing here is signed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import numpy as np
import polars as pl

from contracts.digests import canonical_json
from reports import matrix, page
from reports.contents import AnalysisSection, AuditReport, Examples


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
            "format": "palimpsest-audit/3",
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
            "analyses": [_section(a) for a in report.analyses],
            "datasets": [_section(d) for d in report.datasets],
            "removed": None
            if report.removed is None
            else {
                "num": report.removed.num,
                "num_train": report.removed.num_train,
                "how": report.removed.how,
                "classes": report.removed.classes,
            },
            "unlearning": report.unlearning,
            "unlearning_metrics": report.unlearning_metrics,
            "max_gap": report.max_gap,
            "attacks": report.attacks,
            "curves": {a: {name: c.facts() for name, c in group.items()} for a, group in report.curves.items()},
            "matrix": None if report.matrix is None else matrix.facts(report.matrix),
            "inconclusive": [{"what": w, "why": y} for w, y in page.open_questions(report)],
            "reproduce": {
                "commands": list(report.commands),
                "config_yaml": report.config_yaml,
                "environment": report.environment,
                "ledger_head": report.ledger_head,
            },
        }
    )


def _section(section: AnalysisSection) -> dict[str, Any]:
    return {
        "name": section.name,
        "doc": section.doc,
        "reason": section.reason,
        "num_rows": section.num_rows,
        "head": section.table,
        "examples": [_listed(e) for e in section.examples],
    }


def _listed(examples: Examples) -> dict[str, Any]:
    return {
        "heading": examples.heading,
        "example_id": examples.example_id,
        "value": examples.value,
        "label": list(examples.label),
        "note": list(examples.note),
        "rows": examples.rows,
    }


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
