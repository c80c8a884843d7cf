"""``palimpsest erase``: the deletion cascade of a forget request that has been audited."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import polars as pl
import typer
from rich import box
from rich.table import Table

from contracts.erasure import ACTIONS, Action, Item
from contracts.errors import ConfigError
from pipelines.cli.terminal import console, print_data, state_to_write

if TYPE_CHECKING:
    from collections.abc import Sequence


def erase(
    subject: Annotated[str, typer.Argument(help="the audited subject")],
    request_id: Annotated[str, typer.Argument(help="a forget request that has been audited")],
    plan: Annotated[bool, typer.Option("--plan", help="say what would be done; nothing is changed")] = False,
    execute: Annotated[bool, typer.Option("--execute", help="do it; killed, the same command goes on")] = False,
    payload: Annotated[
        list[Path] | None,
        typer.Option(
            "--payload", help="a payload file of yours, from which the examples are taken out; may be repeated"
        ),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="every item, not those of one kind together")] = False,
    json_: Annotated[bool, typer.Option("--json", help="the items as JSON on standard output")] = False,
) -> None:
    """Erase what a forget request names from everything that holds, or was made from, it: rows, models, sets, reports,
    jobs, Dagster's records, the bytes that deletion leaves. First the audit (request run), then this, then an audit of
    what is left."""
    from pipelines.cli.audit import workspace_of
    from pipelines.erasure import execute as carry_out
    from pipelines.erasure import preview
    from pipelines.subjects import load_subject

    if plan == execute:
        raise ConfigError("give one of --plan (nothing is changed) and --execute")
    if payload and not execute:
        raise ConfigError("--payload goes with --execute")
    home = state_to_write()
    declared = load_subject(subject, home)
    workspace = workspace_of(home)
    if plan:
        _show(preview(declared, workspace, request_id), subject, request_id, everything=all_, as_json=json_)
        return
    journal = carry_out(declared, workspace, request_id)
    for path in payload or ():
        _take_out(path, workspace, request_id)
    if json_:
        print_data(json.dumps(_told(journal)))
        return
    state = workspace.warehouse.requests.get(request_id).state.value
    done = journal.filter(pl.col("state") == "done")
    console.print(f"request {request_id}: {done.height} items done, each with its proof in requests.erasures")
    for row in journal.filter(pl.col("state") == "open").iter_rows(named=True):
        console.print(f"  yours: {row['place']}: {row['why']}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"The request is {state}." + ("" if state == "closed" else f" {_next(subject, request_id)}"))
    console.print("Next, when the rows are out of the source:", highlight=False)
    for command in (f"palimpsest audit {subject}", f"palimpsest certify {subject} {request_id} --to FOLDER"):
        console.print(f"  {command}", highlight=False, soft_wrap=True)


def _next(subject: str, request_id: str) -> str:
    return f"Its audit was not a pass: palimpsest request close {subject} {request_id} --by NAME --why REASON"


def _told(journal: pl.DataFrame) -> list[dict[str, object]]:
    columns = ["seq", "kind", "place", "part", "asset", "action", "why", "num_examples", "state", "proof"]
    return journal.select(columns).to_dicts()


def _take_out(path: Path, workspace: object, request_id: str) -> None:
    from pipelines.erasure import ids_of
    from sources.payloads.files import erase_examples

    done = erase_examples(path, ids_of(workspace.warehouse, request_id))  # type: ignore[attr-defined]
    console.print(f"{path}: {done.num_erased} examples taken out, SHA-256 now {done.sha256}", soft_wrap=True)


def _show(items: Sequence[Item], subject: str, request_id: str, *, everything: bool, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "kind": i.kind,
                "place": i.where,
                "part": i.part,
                "asset": i.asset,
                "action": i.action.value,
                "why": i.why,
                "num_examples": i.examples,
            }
            for i in items
        ]
        print_data(json.dumps(rows))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("action", "kind", "what", "why"):
        table.add_column(name, overflow="fold")
    if everything:
        for i in items:
            part = f" {json.dumps(i.part)}" if i.part else ""
            table.add_row(i.action.value, i.kind, i.where + part, i.why)
    else:
        groups = Counter((i.action.value, i.kind, i.why) for i in items if i.kind != "lineage")
        for (action, kind, why), num in groups.items():
            names = [i.where for i in items if (i.action.value, i.kind, i.why) == (action, kind, why)]
            shown = ", ".join(dict.fromkeys(names[:3])) + (f" and {num - 3} more" if num > 3 else "")
            table.add_row(action, kind, shown, why)
    console.print(table)
    for action, num in Counter(i.action for i in items).items():
        console.print(f"{action.value}, {num}: {ACTIONS[Action(action)]}", highlight=False, markup=False)
    console.print(f"Nothing was changed. To do it: palimpsest erase {subject} {request_id} --execute", soft_wrap=True)
