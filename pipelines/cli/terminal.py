"""Consoles, verdict colours, the state folder as a command names it, and the progress display of the long commands."""

from __future__ import annotations

import codecs
import io
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from contracts.progress import Progress as Report
from pipelines.home import DEFAULT, state_home

if TYPE_CHECKING:
    from reports import Judgement, Row

console = Console()
errors = Console(stderr=True)
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "broken": "magenta", "not judged": "cyan"}


_SPELLED = {"\u2013": "-", "\u2212": "-", "\u2026": "...", "\u202f": " ", "\u2265": ">=", "\u2264": "<=", "\u00d7": "x"}


class _Pipe(io.FileIO):
    """Standard output or error. A reader that goes away, such as head, ends nothing and changes no exit status: what
    is said from then on is dropped, so that an audit, an erasure or a list ends as it would have."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


def speak_plainly() -> None:
    """Let what cannot be printed stop nobody.

    A character that the terminal does not know becomes the nearest plain text: dashes and the like their ASCII
    neighbours, spinners an asterisk, any other its escape. A reader that has gone is passed over.
    """
    codecs.register_error("palimpsest", _spelled)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        buffer = getattr(stream, "buffer", None)  # of PYTHONUNBUFFERED the raw file itself
        if isinstance(getattr(buffer, "raw", buffer), io.FileIO):
            stream.flush()
            pipe = _Pipe(stream.fileno(), "w", closefd=False)
            anew = io.TextIOWrapper(
                pipe if isinstance(buffer, io.FileIO) else io.BufferedWriter(pipe),
                encoding=stream.encoding,
                errors="palimpsest",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, anew)


def _spelled(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    found = error.object[error.start : error.end]
    plain = ("*" if "\u2800" <= c <= "\u28ff" else _SPELLED.get(c) or ascii(c)[1:-1] for c in found)
    return "".join(plain), error.end


def print_data(text: str) -> None:
    """Text as it is, for other programs: UTF-8 whatever the terminal can print, no wrapping, no colours."""
    typer.echo(text.encode(), nl=not text.endswith("\n"))


def not_on_path() -> str:
    """What makes the command found under its name in this shell; "" where it is, or where nobody knows."""
    activate = Path(sys.argv[0]).absolute().with_name("activate")
    return f"source {activate}" if shutil.which("palimpsest") is None and activate.exists() else ""


_new: list[Path] = []  # state folders that this process has made


def drop_new_state() -> None:
    """Take away a state folder that was made for a command which then failed before it wrote anything."""
    while _new:
        with suppress(OSError):
            _new.pop().rmdir()


def state_to_write() -> Path:
    """The state folder of a command that writes, made if it is missing; says which it is and why that one."""
    named = os.environ.get("PALIMPSEST_HOME")
    new = "" if Path(named or DEFAULT).expanduser().exists() else "new, "
    home = state_home()
    _new.extend([home] if new else [])
    why = "named by PALIMPSEST_HOME" if named else "in the working folder: PALIMPSEST_HOME is not set"
    errors.print(f"State: {home} ({new}{why})", highlight=False, markup=False, soft_wrap=True)
    return home


def state_to_read() -> Path:
    """The state folder of a command that only reads: nothing is made.

    Raises:
        NotReady: the environment names none, and there is none in the working folder.
    """
    return state_home(make=False)


@contextmanager
def live_progress(title: str) -> Iterator[Report]:
    """A live line on a terminal or in a notebook; on a pipe, one line whenever the stage changes."""
    if errors.is_jupyter:
        with _line_of_a_notebook(title) as report:
            yield report
        return
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


@contextmanager
def _line_of_a_notebook(title: str) -> Iterator[Report]:
    """One output that is written over, some times a second, and is empty in the end."""
    from IPython.display import display

    def said(text: str) -> dict[str, str]:
        return {"text/plain": text}

    shown, last = display(said(title), raw=True, display_id=True), time.monotonic()

    def report(done: int, total: int, what: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.3:
            last = time.monotonic()
            shown.update(said(f"{what} {done}/{total}" if total else what), raw=True)

    try:
        yield report
    finally:
        shown.update(said(""), raw=True)


ROLES = {
    "": "Judged: these decide the verdict",
    "compared": "Compared with the method in use: not judged",
    "for information": "For information: not judged",
    "must fail": "Control: the untouched model, which an attack has to catch",
}


def summary(rows: Iterable[Row], *, title: str, width: int | None) -> Iterator[str]:
    """One line a finding, as markup: what decides first, then what is compared or shown, then the control.

    Names stay whole: where they and the figures do not fit into ``width`` columns (None: no limit, as for a pipe), the
    figures go to a line of their own.
    """
    rows = list(rows)
    widest = max((len(_name(row)) for row in rows), default=0)
    sizes = [max(widest, 7), max(map(len, COLOURS)), max(17, *(len(_figures(row)) for row in rows), 0), 5]
    narrow = width is not None and 4 + sum(sizes) + len(sizes) - 1 > width

    def line(indent: int, *cells: str, colour: str = "") -> str:
        name, verdict, figure, limit = cells
        verdict = f"{verdict:<{sizes[1]}}"
        shown = f"[{colour}]{verdict}[/]" if colour else verdict
        shown += f" {figure:>{sizes[2]}} {limit:>{sizes[3]}}".rstrip()
        first = " " * indent + name
        if narrow:
            return f"{escape(first)}\n{' ' * (indent + 2)}{shown}"
        return f"{escape(f'{first:<{4 + sizes[0]}}')} {shown}".rstrip()

    yield f"[bold]{escape(title)}[/]\n"
    yield f"[bold]{line(0, 'finding', 'verdict', 'figure (interval)', 'limit')}[/]"
    for role, heading in ROLES.items():
        of_role = [row for row in rows if row.role == role]
        if of_role:
            yield f"\n[bold]{heading}[/]"
        for about in dict.fromkeys(row.about for row in of_role):
            yield f"  {escape(about)}"
            for row in of_role:
                if row.about == about:
                    verdict = row.verdict.value
                    yield line(4, _name(row), verdict, _figures(row), row.limit, colour=COLOURS[verdict])


def _name(row: Row) -> str:
    return row.what.removeprefix("attack/").removeprefix("unlearning/")


def _figures(row: Row) -> str:
    return f"{row.figure} ({row.interval})" if row.interval else row.figure


def answers(judgement: Judgement) -> Iterator[str]:
    """The two questions with their answers, as markup: what a person came for, before any table."""
    for answer in judgement.answers:
        colour = COLOURS[answer.verdict.value] if answer.counted else "bold"
        yield f"[bold]{escape(answer.question)}[/] [{colour}]{escape(answer.answer.upper())}[/]"
        yield f"  {escape(answer.sentence)}"
