"""Consoles, verdict colours, and the progress display shared by the long commands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from contracts.progress import Progress as Report

if TYPE_CHECKING:
    from reports import Judgement, Row

console = Console()
errors = Console(stderr=True)
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "broken": "magenta", "not judged": "cyan"}


@contextmanager
def live_progress(title: str) -> Iterator[Report]:
    """A live line on a terminal; on a pipe, one line whenever the stage changes."""
    if not errors.is_terminal:
        last = ""

        def plain(done: int, total: int, what: str) -> None:
            nonlocal last
            stage = what.split(":", 1)[0]
            if stage != last:
                last = stage
                errors.print(f"  {escape(stage)}", highlight=False)

        yield plain
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=28), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total, what: bars.update(
            task, completed=done, total=total or None, description=escape(what[:60])
        )


def summary_table(rows: Iterable[Row], *, title: str) -> Table:
    """One line a finding, grouped by what it is about: first what decides, then methods compared, then the control."""
    table = Table(
        title=title,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("finding", overflow="fold")  # a narrow terminal breaks names, not verdicts
    table.add_column("verdict", no_wrap=True)
    table.add_column("figure (interval)", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.about, []).append(row)
    for about, members in groups.items():
        role = members[0].role
        table.add_row(f"{escape(about)} [dim]{role}[/]")
        for n, row in enumerate(members):
            colour = COLOURS[row.verdict.value]
            figure = f"{row.figure} ({row.interval})" if row.interval else row.figure
            what = escape(row.what.removeprefix("attack/").removeprefix("unlearning/")) + (
                "" if row.role == role else f" [dim]({row.role})[/]"
            )
            table.add_row(
                f"  {what}", f"[{colour}]{row.verdict.value}[/]", figure, row.limit, end_section=n == len(members) - 1
            )
    return table


def answers(judgement: Judgement) -> Iterator[str]:
    """The two questions with their answers, as markup: what a person came for, before any table."""
    for answer in judgement.answers:
        colour = COLOURS[answer.verdict.value] if answer.counted else "bold"
        yield f"[bold]{escape(answer.question)}[/] [{colour}]{escape(answer.answer.upper())}[/]"
        yield f"  {escape(answer.sentence)}"
