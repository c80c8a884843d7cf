"""Rows in, pages and pictures out. Pure: no file, no clock, no network; imports contracts only."""

from reports.audit import AnalysisSection, AuditReport, Examples, ScoreSection, facts, render_html, render_json
from reports.series import Curve, Histogram
from reports.summary import Judgement, Row, findings_frame, judge, rows

__all__ = [
    "AnalysisSection",
    "AuditReport",
    "Curve",
    "Examples",
    "Histogram",
    "Judgement",
    "Row",
    "ScoreSection",
    "facts",
    "findings_frame",
    "judge",
    "render_html",
    "render_json",
    "rows",
]
