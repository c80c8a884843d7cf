"""``palimpsest export``: a score or a curated set of a subject as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.terminal import console, state_to_read


def export(
    subject: Annotated[str, typer.Argument(help="the audited subject")],
    what: Annotated[str, typer.Argument(help="name of a score, or of a split or another curated set")],
    to: Annotated[Path, typer.Option("--to", help="FILE.parquet, .csv, .json or .jsonl")],
) -> None:
    """Write a score with all its columns, or the members of a curated set, to a file, by example id."""
    from pipelines.export import refuse_target, table, write
    from pipelines.subjects import load_subject
    from warehouse import Warehouse

    refuse_target(to)
    home = state_to_read()
    made = table(Warehouse.existing(home), load_subject(subject, home).subject, what)
    write(made, to)
    console.print(f"{made.frame.height:,} rows of {made.made['asset']} in {to}", soft_wrap=True, highlight=False)
