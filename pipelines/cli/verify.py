"""``palimpsest verify``: what was recorded against what is there, in sentences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipelines.cli.terminal import console, live_progress, state_to_read

if TYPE_CHECKING:
    from warehouse import Head
    from warehouse.verify import Verification


def verify(
    report: Annotated[
        Path | None,
        typer.Argument(
            help="a report (.html or .json), or a copy of one kept elsewhere: check it against the ledger; or the "
            "folder of an exported data set: check it against its manifest; or a certificate: check its signature"
        ),
    ] = None,
    ledger: Annotated[
        bool, typer.Option("--ledger", help="check the whole state folder against its ledger (so it is without REPORT)")
    ] = False,
    head: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="SEQ:HASH", help="a ledger head noted earlier, which the ledger must contain"),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option("--key", help="public key (PEM) of a certificate; then no state folder is needed, or asked"),
    ] = None,
    heads: Annotated[
        Path | None,
        typer.Option(
            "--heads", help="a file of heads, which the ledger must contain (anchors.file of operations.yaml)"
        ),
    ] = None,
    timestamp_roots: Annotated[
        Path | None,
        typer.Option(
            "--timestamp-roots",
            help="root certificates (PEM) of the time-stamping server (anchors.timestamp_roots of operations.yaml)",
        ),
    ] = None,
) -> None:
    """Check ledger, tables, artefacts, reports, requests and the published snapshot against each other.

    Reads everything, writes nothing and waits for nobody: while a run writes, what it has published is checked. Exit 0:
    whole.
    1: not whole, or nothing is recorded, so nothing is proven. 2: the command was misused, or nothing is published yet.
    """
    from warehouse import Head, Warehouse
    from warehouse.signing import is_envelope
    from warehouse.verify import verify as verify_all
    from warehouse.verify import verify_report

    if report is not None and report.is_dir():
        _export(report)
        return
    if key or (report is not None and report.is_file() and is_envelope(report.read_bytes())):
        _certificate(report, key or [])
    anchors = [Head.parse(text) for text in head or ()]
    w = Warehouse.existing(state_to_read())
    noted, whole = _noted(w.home, heads, timestamp_roots)
    anchors += noted
    if report is not None:
        whole &= _print(verify_report(w, report, anchors=anchors), f"the report {report}", w.home)
    if ledger or report is None:
        with live_progress("reading the ledger") as progress:
            found = verify_all(w, anchors=anchors, progress=progress)
        what = "what has been published of the state folder" if found.published_only else "the state folder"
        whole &= _print(found, f"{what} {w.home}", w.home)
    raise typer.Exit(0 if whole else 1)


def _certificate(file: Path | None, keys: list[Path]) -> None:
    """Check a certificate with keys that were given and nothing else, or with the state folder that issued it.

    Raises:
        InvalidInput: no such file, or no key.
        typer.Exit: 0 where it may be relied on, else 1.
    """
    from contracts.errors import InvalidInput
    from pipelines.cli.certify import check
    from warehouse import Warehouse

    if file is None:
        raise InvalidInput("--key is the public key of a certificate, and no file of one is named before it")
    if not file.is_file():
        raise InvalidInput(f"{file}, the certificate to be checked with --key, is no file")
    w = None if keys else Warehouse.existing(state_to_read())
    raise typer.Exit(0 if check(file.read_bytes(), keys, str(file), w) else 1)


def _noted(home: Path, heads: Path | None, roots: Path | None) -> tuple[list[Head], bool]:
    """The heads noted outside the state folder, and whether its time-stamps hold.

    Raises:
        InvalidInput: a file that was named is not there, or not what it should be.
    """
    from pipelines.operations.config import operations_of
    from warehouse import anchors

    config = operations_of(home).anchors
    file = heads or (Path(config.file).expanduser() if config.file else None)
    noted: list[Head] = []
    if file is not None and heads is None and not file.exists():
        _say(f"Note: {file}, where heads are noted, is not there; with --heads FILE another one is read.")
    elif file is not None:
        noted = anchors.heads_in(file)
        _say(f"Checked: {len(noted)} heads noted in {file}, all of which the ledger must contain.")
    trusted = roots or (Path(config.timestamp_roots).expanduser() if config.timestamp_roots else None)
    stamped, problems, said = anchors.check_tokens(home, trusted)
    if said:
        _say(f"{'Checked' if trusted else 'Note'}: {said}")
    for problem in problems:
        console.print(f"[bold red]![/] {escape(problem)}", soft_wrap=True, highlight=False)
    return [*noted, *stamped], not problems


def _export(folder: Path) -> None:
    """Compare an exported data set with its manifest; that needs no state folder.

    Raises:
        typer.Exit: 1 where it is not what was exported.
    """
    from contracts.errors import IntegrityError
    from curation.export.formats import verify_export

    try:
        num = verify_export(folder)
    except IntegrityError as error:
        console.print(f"[bold red]NOT WHOLE[/]  {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error
    console.print(
        f"[bold green]WHOLE[/]  {num} files of {escape(str(folder))} are as they were exported.",
        soft_wrap=True,
        highlight=False,
    )


def _print(found: Verification, what: str, home: Path) -> bool:
    """Say what was checked, what is wrong, and what to do; whether it is whole."""
    if found.is_empty:
        _say(f"Nothing is recorded in {home} yet, so there is nothing to verify: an empty folder is no evidence.")
        _say("Next: palimpsest audit SUBJECT, or set PALIMPSEST_HOME to the state folder that you mean.")
        return False
    for sentence in found.checked:
        _say(f"Checked: {sentence}")
    for note in found.notes:
        _say(f"Note: {note}")
    for number, problem in enumerate(found.problems, 1):
        console.print(f"[bold red]{number}.[/] {escape(problem.sentence)}", soft_wrap=True, highlight=False)
        _say(f"   Next: {problem.todo}")
    if not found.whole:
        count = "1 problem" if len(found.problems) == 1 else f"{len(found.problems)} problems"
        console.print(f"[bold red]NOT WHOLE[/]  {count} in {escape(what)}", soft_wrap=True, highlight=False)
        return False
    console.print(f"[bold green]WHOLE[/]  {escape(what)} is as it was recorded.", soft_wrap=True, highlight=False)
    if found.head is not None:
        _say(
            f"Note this head outside the folder; it shows later that nothing before it was rewritten: --head "
            f"{found.head}"
        )
    return True


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
