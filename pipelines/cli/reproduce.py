"""``palimpsest reproduce``: a paper's claims, measured again."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from pipelines.cli.terminal import console, live_progress, print_data


def reproduce(
    which: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="papers, by short name or number; all when none is given"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="root of every random choice")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="one JSON object a paper, a line each")] = False,
) -> None:
    """Re-measure published claims at small scale on real data. Exit 0 if and only if all pass."""
    import reproductions

    passed = True
    chosen = [reproductions.find(name) for name in which or ()] or reproductions.reproductions()
    for known in chosen:
        with live_progress(known.name) as progress:
            result = reproductions.run(known.name, seed=seed, progress=progress)
        passed &= result["passed"]
        if json_:
            print_data(json.dumps(result))
            continue
        table = Table(
            "claim",
            "measured",
            "",
            "threshold",
            "",
            title=f"{known.name} ({known.paper}), seed {seed}, {result['wall_s']:.0f} s",
            title_justify="left",
        )
        for claim in result["claims"]:
            mark = "[green]pass[/]" if claim["passed"] else "[red]fail[/]"
            # what could not be measured is no number, and its claim is not met
            measured = "none" if claim["measured"] is None else f"{claim['measured']:.4g}"
            table.add_row(claim["name"], measured, claim["direction"], f"{claim['threshold']:.4g}", mark)
        console.print(table)
    raise typer.Exit(0 if passed else 1)
