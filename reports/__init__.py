"""Rows in, pages and pictures out. Pure: no file, no clock, no network; imports contracts only.

The names below are imported when they are first used: the rows of a summary need no library that draws.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reports.audit import facts, render_html, render_json
    from reports.closing import render_closing
    from reports.contents import AnalysisSection, AuditReport, Examples, Removed, ScoreSection
    from reports.matrix import Matrix, matrix_of
    from reports.series import Curve, Histogram
    from reports.summary import Judgement, Row, findings_frame, judge, rows

_MODULES = {
    "AnalysisSection": "contents",
    "AuditReport": "contents",
    "Curve": "series",
    "Examples": "contents",
    "Histogram": "series",
    "Judgement": "summary",
    "Matrix": "matrix",
    "Removed": "contents",
    "Row": "summary",
    "ScoreSection": "contents",
    "facts": "audit",
    "findings_frame": "summary",
    "judge": "summary",
    "matrix_of": "matrix",
    "render_closing": "closing",
    "render_html": "audit",
    "render_json": "audit",
    "rows": "summary",
}
__all__ = [
    "AnalysisSection",
    "AuditReport",
    "Curve",
    "Examples",
    "Histogram",
    "Judgement",
    "Matrix",
    "Removed",
    "Row",
    "ScoreSection",
    "facts",
    "findings_frame",
    "judge",
    "matrix_of",
    "render_closing",
    "render_html",
    "render_json",
    "rows",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
