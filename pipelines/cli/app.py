"""The commands, each in a file of its own, and the one place where an error becomes a message and an exit status."""

from __future__ import annotations

import sys

import typer

from contracts.errors import PalimpsestError
from pipelines.cli import audit, doctor, imports, init, reproduce, requests, show, verify
from pipelines.cli.terminal import errors

app = typer.Typer(
    name="palimpsest",
    help="Tells what a trained model still shows of its data: scores, curation, unlearning, attacks and their proof.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("audit")(audit.audit)
app.command("init")(init.init)
app.add_typer(requests.app, name="request")
app.command("sql")(show.sql)
app.command("report")(show.report)
app.command("trace")(show.trace)
app.command("verify")(verify.verify)
app.command("reproduce")(reproduce.reproduce)
app.command("import-checkpoint")(imports.import_checkpoint)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point. A known error is one message and exit status 2, never a traceback."""
    try:
        app()
    except PalimpsestError as error:
        errors.print(f"[bold red]{type(error).__name__}[/]: {_escape(str(error))}")
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("interrupted; finished stages are kept, run the same command to go on")
        sys.exit(2)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
