"""``palimpsest diff``: two versions of a set of examples, stored ones of a subject or two exported folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import polars as pl
import typer

from contracts.errors import ConfigError
from pipelines.cli.show import print_table
from pipelines.cli.terminal import console, print_data, state_to_read

if TYPE_CHECKING:
    from curation.difference import Version

_SHOWN = 12  # digits of a hash in the table


def diff(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="[SUBJECT] BEFORE AFTER",
            help="a subject and two of its curated sets, SET or SET:ROLE (keep or retain without a role); or two "
            "folders that palimpsest export wrote",
        ),
    ],
    json_: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """Who came, who left and why, whose content or label changed, from one version of a set to another."""
    from curation.difference import CHANGES, difference, in_words
    from curation.export.index import read_version

    if len(what) == 3:
        before, after = _stored(*what)
    elif len(what) == 2:
        if strange := [text for text in what if not Path(text).is_dir()]:
            raise ConfigError(f"{strange[0]} is no folder: give two exported folders, or a subject and two of its sets")
        before, after = (read_version(Path(text)) for text in what)
    else:
        raise ConfigError(f"diff takes a subject and two of its sets, or two exported folders, not {len(what)} words")
    rows = difference(before, after)
    sentence = in_words(rows, before, after)
    if json_:
        counts = {change: int((rows["change"] == change).sum()) for change in CHANGES}
        about = {"before": before.name, "after": after.name, "sentence": sentence, "counts": counts}
        print_data(json.dumps(about | {"rows": rows.to_dicts()}))
        return
    if rows.height:
        short = pl.when(pl.col("change") == "content").then(pl.col("before", "after").str.head(_SHOWN))
        print_table(rows.with_columns(short.otherwise(pl.col("before", "after"))), whole="--json")
    console.print(sentence, soft_wrap=True, highlight=False)


def _stored(subject: str, *names: str) -> tuple[Version, Version]:
    """Two curated sets of a subject, as they are stored."""
    from curation.difference import Version
    from curation.export.index import index_of
    from pipelines.data_export import data_set
    from pipelines.subjects import load_subject
    from sources.plan import load_examples
    from warehouse import Warehouse

    home = state_to_read()
    plan, warehouse = load_subject(subject, home), Warehouse.existing(home)
    data = load_examples(plan)
    found = []
    for text in names:
        name, _, role = text.partition(":")
        chosen = data_set(warehouse, plan, name, role=role, data=data)
        reasons = chosen.members.select("example_id", "role", "reason")
        found.append(Version(f"{subject}/{text}", index_of(chosen.examples), reasons))
    return found[0], found[1]
