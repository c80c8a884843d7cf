"""The commands, each in a file of its own, and the one place where an error becomes a message and an exit status."""

from __future__ import annotations

import os
import signal
import sys
from importlib import metadata
from types import FrameType
from typing import Annotated

import typer
from rich.markup import escape

from contracts.errors import PalimpsestError, in_words, no_memory
from pipelines.cli import (
    audit,
    certify,
    diff,
    doctor,
    erase,
    export,
    imports,
    init,
    methods,
    reproduce,
    requests,
    show,
    ui,
    upkeep,
    verify,
)
from pipelines.cli.terminal import drop_new_state, errors, print_data, speak_plainly

INTERRUPTED = 130  # as typer ends, and as a shell says of SIGINT

app = typer.Typer(
    name="palimpsest",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("audit")(audit.audit)
app.command("init")(init.init)
app.add_typer(requests.app, name="request")
app.command("sql")(show.sql)
app.command("report")(show.report)
app.command("methods")(methods.methods)
app.command("export")(export.export)
app.command("diff")(diff.diff)
app.command("trace")(show.trace)
app.command("erase")(erase.erase)
app.command("certify")(certify.certify)
app.command("evidence")(certify.evidence)
app.command("ui")(ui.ui)
app.command("verify")(verify.verify)
app.command("upkeep")(upkeep.upkeep)
app.command("reproduce")(reproduce.reproduce)
app.command("import-checkpoint")(imports.import_checkpoint)
app.command("doctor")(doctor.doctor)


def _say_version(asked: bool) -> None:
    if asked:
        print_data(f"palimpsest {metadata.version('palimpsest-audit')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="say it, and do nothing else")
    ] = False,
) -> None:
    """Tells what a trained model still shows of its data: scores, curation, unlearning, attacks and their proof."""


def _in_background(number: int, frame: FrameType | None) -> None:
    """Passes Ctrl-C over, as the shell asked for, and ends at SIGTERM: Dagster handles that as it finds SIGINT handled,
    and where it is ignored nothing short of SIGKILL would end an audit or the interface."""
    if number == signal.SIGTERM:
        raise KeyboardInterrupt


def main() -> None:
    """Entry point. Whatever goes wrong is one message and exit status 2, never a traceback: 1 says that an audit found
    something, or could not show that all is well. Who interrupts it (Ctrl-C, SIGTERM) gets 130."""
    speak_plainly()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script
        signal.signal(signal.SIGINT, _in_background)
    try:
        app()
    except (KeyboardInterrupt, SystemExit) as end:  # typer makes the second of the first
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        errors.print("interrupted: what was stored is kept; the same command can be run again")
        sys.exit(INTERRUPTED)
    except Exception as error:
        drop_new_state()
        if os.environ.get("PALIMPSEST_TRACEBACK"):
            raise
        known, told = isinstance(error, (PalimpsestError, OSError)) or no_memory(error), in_words(error)
        kind, _, rest = told.partition(": ") if isinstance(error, PalimpsestError) else ("Error", "", told)
        errors.print(f"[bold red]{kind}[/]: {escape(rest)}", soft_wrap=True)
        if not known:
            errors.print(
                "Nothing expects this error: with PALIMPSEST_TRACEBACK=1 the same command shows where it comes from."
            )
        sys.exit(2)
