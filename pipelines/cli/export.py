"""``palimpsest export``: a score or a curated set of a subject as a file, or as a data set, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contracts.errors import ConfigError, UnknownName
from pipelines.cli.terminal import console, live_progress, state_to_read


def export(
    subject: Annotated[str, typer.Argument(help="the audited subject")],
    what: Annotated[str, typer.Argument(help="name of a score, or of a split or another curated set")],
    to: Annotated[Path, typer.Option("--to", help="FILE.parquet, .csv, .json or .jsonl; with --format a new folder")],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="write the examples of a curated set as a data set: parquet (Hugging Face), jsonl, npz, idx, folder "
            "(of pictures), webdataset",
        ),
    ] = "",
    role: Annotated[
        str, typer.Option("--role", help="of a split, the role that is written; keep or retain without it")
    ] = "",
    test: Annotated[bool, typer.Option("--test", help="with the test examples, as they are")] = False,
) -> None:
    """Write a score with all its columns, or the members of a curated set, to a file, by example id; or, with
    --format, the examples of a curated set to a folder, with manifest, data sheet and Croissant metadata."""
    from pipelines.export import refuse_target, remember, table, write
    from pipelines.subjects import load_subject
    from warehouse import Warehouse

    if format:
        _data_set(subject, what, to, format, role, test)
        return
    if role or test:
        raise ConfigError("--role and --test are of data sets: give --format, and a folder with --to")
    refuse_target(to)
    home = state_to_read()
    made = table(Warehouse.existing(home), load_subject(subject, home).subject, what)
    remember(home, subject, to)
    write(made, to)
    console.print(f"{made.frame.height:,} rows of {made.made['asset']} in {to}", soft_wrap=True, highlight=False)


def _data_set(subject: str, what: str, to: Path, format: str, role: str, test: bool) -> None:
    """The examples of a curated set in a folder of its own."""
    from curation.export.formats import FORMATS, refuse_folder
    from pipelines.data_export import data_set, write_data_set
    from pipelines.export import remember
    from pipelines.subjects import load_subject
    from warehouse import Warehouse

    if format not in FORMATS:
        raise UnknownName("export format (--format)", format, FORMATS)
    refuse_folder(to)
    home = state_to_read()
    plan, warehouse = load_subject(subject, home), Warehouse.existing(home)
    with live_progress(f"exporting {what}") as progress:
        found = data_set(warehouse, plan, what, role=role, test=test)
        remember(home, subject, to)
        write_data_set(warehouse, plan, what, to, format=format, found=found, progress=progress)
    console.print(
        f"{len(found.examples):,} examples of {subject}/curation/{what} in {to}, as {format}, with README.md, "
        "datasheet.html, croissant.json and manifest.json",
        soft_wrap=True,
        highlight=False,
    )
