"""What the functions of this package give back besides frames: a report and a forget request, as a notebook shows
them."""

from __future__ import annotations

import dataclasses
import html
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from reports import Judgement, Row


@dataclass(frozen=True, eq=False)
class Report:
    """A stored report.

    Attributes:
        title: of the audit.
        path: of the whole page, one HTML file that works offline.
        judgement: verdict, sentence and the answers to the questions that people ask first.
        rows: one a finding: those that count first.
        facts: the whole JSON beside the page.
    """

    title: str
    path: Path
    judgement: Judgement
    rows: tuple[Row, ...]
    facts: dict[str, Any]

    @property
    def verdict(self) -> str:
        """pass, fail, inconclusive, broken or not judged."""
        return self.judgement.verdict.value

    @property
    def findings(self) -> pl.DataFrame:
        """One row a finding: about, what, verdict, figure with its interval, limit, sentence, and whether it counts."""
        rows = [{**dataclasses.asdict(row), "verdict": row.verdict.value} for row in self.rows]
        order = ("about", "what", "verdict", "value", "low", "high", "threshold", "counted", "sentence")
        return pl.DataFrame(rows, infer_schema_length=None).select(order) if rows else pl.DataFrame()

    @property
    def answers(self) -> pl.DataFrame:
        """question, answer, verdict, whether it counts, why."""
        return pl.DataFrame([answer.shown for answer in self.judgement.answers])

    def __repr__(self) -> str:
        lines = [f"{answer.question} {answer.answer.upper()}" for answer in self.judgement.answers]
        return "\n".join([self.title, *lines, f"{self.verdict.upper()} {self.judgement.sentence}", f"{self.path}"])

    def _repr_html_(self) -> str:
        from reports.card import render_card

        return render_card(self.title, self.judgement, self.rows, link=_near(self.path))


@dataclass(frozen=True, eq=False)
class Closing:
    """The proof on which a forget request was closed: exact retraining on data without its rows.

    Attributes:
        title, ground: which request, and the ground in a sentence.
        path: of the page.
        facts: the whole JSON beside the page.
    """

    title: str
    ground: str
    path: Path
    facts: dict[str, Any]

    @property
    def checks(self) -> pl.DataFrame:
        """(what, found): what was looked at."""
        return pl.DataFrame(self.facts["checks"]).select("what", "found")

    def __repr__(self) -> str:
        return f"{self.title}: {self.ground}\n{self.path}"


def stored(home: Path, page: str) -> Report | Closing:
    """What lies beside a page of the artifact store; its digest is verified."""
    from reports.summary import judgement_of
    from warehouse import Warehouse

    store = Warehouse.existing(home).artifacts
    facts, path = json.loads(store.load_bytes(page.removesuffix(".html") + ".json")), store.describe(page).path
    if "ground" in facts:
        return Closing(f"Request {facts['request']} of {facts['subject']}", facts["ground"], home / path, facts)
    judgement, rows = judgement_of(facts)
    title, (_, kind, request, *_) = facts["title"] or facts["subject"], page.split("/")
    title += f", request {request}" if kind == "request_reports" else ""
    return Report(title, home / path, judgement, tuple(rows), facts)


@dataclass(frozen=True, eq=False)
class Request:
    """A registered forget request.

    Attributes:
        home: the state folder that was asked for; None: the one of the environment.
        subject, request_id: as registered; ``due``: YYYY-MM-DD.
        example_id: ids of the rows that it names.
        said: how many they are and whose, and what verdict their number can carry.
    """

    home: str | Path | None
    subject: str
    request_id: str
    due: str
    example_id: tuple[int, ...]
    said: tuple[str, ...]

    def run(self) -> Report | Closing | str:
        """Unlearn its rows and audit the result; the report. Where it names no training example there is nothing to
        unlearn: then the answer to the person, in a sentence.

        Raises:
            DataError: its rows have changed since it was registered; nothing was removed.
            StateError: it is on hold, withdrawn, refused or closed. JobFailed: a stage failed.
        """
        import palimpsest
        from pipelines.cli.requests import execute

        with palimpsest._work(self.subject, self.home) as (plan, workspace):
            done = execute(plan, workspace, self.request_id)
        return done if isinstance(done, str) else palimpsest.report(self.request_id, home=self.home)

    def __repr__(self) -> str:
        return "\n  ".join([f"request {self.request_id} of {self.subject}, due {self.due}", *self.said])

    def _repr_html_(self) -> str:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self.said)
        return (
            f"<b>request {html.escape(self.request_id)}</b> of {html.escape(self.subject)}, due "
            f"{self.due}<ul>{lines}</ul>"
        )


def _near(path: Path) -> str:
    """A path as seen from the working folder, where it lies below it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
