"""Consoles, verdict colours, and the progress display shared by the long commands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from contracts.progress import Progress as Report
from reports import Row

console = Console()
errors = Console(stderr=True)
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "broken": "magenta"}


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
    """One line a finding: what, verdict, figure with interval, the plan's limit."""
    table = Table(title=title, title_justify="left", header_style="bold", expand=False)
    for name, right in (
        ("about", False),
        ("what", False),
        ("verdict", False),
        ("figure", True),
        ("interval", True),
        ("limit", True),
    ):
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "what")
    for row in rows:
        colour = COLOURS[row.verdict.value]
        role = f" [dim]({row.role})[/]" if row.role else ""
        table.add_row(
            escape(row.audited) + role,
            escape(row.what),
            f"[{colour}]{row.verdict.value}[/]",
            row.figure,
            row.interval,
            row.limit,
        )
    return table
