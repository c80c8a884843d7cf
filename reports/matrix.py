"""Recipes against audits: one row a subject of the state folder, one column an audit, in each cell a word and its
figure.

    column    "removal" for what the removal method in use left behind, else the audit that found it: the attack of
              attack/<name> on the audited model, the first part of <name>/<detail> of any other finding
    cell      the worst of its findings, of equal ones that nearest to its limit or furthest beyond
              (reports.summary.worst); the removal as the first screen answers it, so inconclusive where no attack
              caught the untouched model
    empty     "not judged", with why: not in the plan, does not apply, or ran and found nothing to judge

Columns and rows come from the rows of audits.findings alone: a recipe or an audit that is added later has its place
with no change here. Not a ranking: subjects on other data or with other thresholds are not comparable in a column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from contracts.errors import DataError
from contracts.verdicts import TARGET, Verdict
from reports import summary

REMOVAL = "removal"
UNTRAINED = "(none: given or outputs only)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What one audit says of one subject.

    Attributes:
        audit: its name, the column.
        verdict: of the deciding finding; NOT_JUDGED where there is none.
        value, low, high, threshold: of the deciding finding, where it has any.
        counted: it counts in the subject's verdict; the others are reported.
        sentence: why; of an empty cell what it would take.
    """

    audit: str
    verdict: Verdict
    sentence: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    counted: bool = False

    @property
    def figure(self) -> str:
        return summary.number(self.value)

    @property
    def interval(self) -> str:
        return summary.interval(self.low, self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixRow:
    """A subject: the recipe of its audited model, and a cell for every column."""

    recipe: str
    subject: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """Attributes:
    audits: names of the columns, attacks and other audits by name, the removal last.
    rows: by recipe, then subject.
    """

    audits: tuple[str, ...]
    rows: tuple[MatrixRow, ...]


def matrix_of(findings: pl.DataFrame, *, why_not: Callable[[str, str], str]) -> Matrix:
    """The table over all subjects.

    Args:
        findings: recipe and subject beside the columns of ``audits.findings``, the findings of each subject's own
            audit (not of its forget requests); a subject without any has one row whose verdict is null.
        why_not: (subject, audit) -> why an empty cell is empty, a sentence.

    Raises:
        DataError: a missing column, a verdict that is none, or a subject of two recipes.
    """
    lacking = {"recipe", "subject", *summary.FINDINGS_SCHEMA} - set(findings.columns)
    if lacking:
        raise DataError(f"findings by recipe lack the column {', '.join(sorted(lacking))}")
    known = findings.select("recipe", "subject").unique().sort("recipe", "subject")
    doubled = known.filter(pl.col("subject").is_duplicated())
    if doubled.height:
        raise DataError(f"subject {doubled['subject'][0]} has the audited models of {doubled.height} recipes")
    found = {subject: _cells(findings.filter(subject=subject)) for subject in known["subject"]}
    audits = sorted({audit for cells in found.values() for audit in cells}, key=lambda a: (a == REMOVAL, a))
    rows = [
        MatrixRow(
            recipe=recipe or UNTRAINED,
            subject=subject,
            cells=tuple(
                found[subject].get(audit)
                or Cell(audit=audit, verdict=Verdict.NOT_JUDGED, sentence=why_not(subject, audit))
                for audit in audits
            ),
        )
        for recipe, subject in known.rows()
    ]
    return Matrix(audits=tuple(audits), rows=tuple(rows))


def audit_of(row: summary.Row) -> str:
    """The column of a finding that is not about a removal."""
    first, slash, rest = row.what.partition("/")
    return rest if slash and row.about == TARGET and first == "attack" else first


def facts(table: Matrix) -> dict[str, Any]:
    """As plain data, for the JSON."""
    names = ("sentence", "value", "low", "high", "threshold", "counted")
    return {
        "audits": list(table.audits),
        "rows": [
            {
                "recipe": row.recipe,
                "subject": row.subject,
                "cells": {
                    c.audit: {"verdict": c.verdict.value, **{n: getattr(c, n) for n in names}} for c in row.cells
                },
            }
            for row in table.rows
        ],
    }


def _cells(findings: pl.DataFrame) -> dict[str, Cell]:
    """The cells of one subject that are not empty."""
    known = findings.filter(pl.col("verdict").is_not_null())
    groups: dict[str, list[summary.Row]] = {}
    for row in summary.rows(known):
        if not row.method:
            groups.setdefault(audit_of(row), []).append(row)
        elif row.counted:  # of the method in use; controls and methods compared have no cell
            groups.setdefault(REMOVAL, []).append(row)
    cells = {audit: _cell(audit, group) for audit, group in groups.items()}
    answers = {answer.about: answer for answer in summary.judge(known).answers}
    if REMOVAL in cells:
        answer, cell = answers[summary.REMOVAL], cells[REMOVAL]
        figures = {n: getattr(cell, n) for n in ("value", "low", "high", "threshold")}
        cells[REMOVAL] = Cell(audit=REMOVAL, verdict=answer.verdict, sentence=answer.sentence, counted=True, **figures)
    return cells


def _cell(audit: str, group: Sequence[summary.Row]) -> Cell:
    row = summary.worst(group)
    figures = {n: getattr(row, n) for n in ("value", "low", "high", "threshold", "verdict", "sentence", "counted")}
    return Cell(audit=audit, **figures)
