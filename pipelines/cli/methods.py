"""``palimpsest methods [NAME]``: what there is, and all that is known of one method."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pipelines.cli.terminal import console, print_data

_UNSET = "(required)"


def methods(
    name: Annotated[str | None, typer.Argument(help="a method, or KIND/METHOD; all are listed without one")] = None,
    json_: Annotated[bool, typer.Option("--json", help="as JSON on standard output")] = False,
) -> None:
    """List every registered method by kind; with a name, its fields with their ranges, its tables and all it
    declares."""
    from pipelines import catalogue

    found: Any = catalogue.every() if name is None else catalogue.find(name)
    if json_:
        print_data(json.dumps(found, indent=2))
        return
    if name is None:
        for kind, known in found.items():
            _print_kind(kind, known)
        console.print("One in full, with its paper and its fields: [bold]palimpsest methods NAME[/]", highlight=False)
        return
    for method in found:
        _print_method(method)


def _print_kind(kind: str, known: Iterable[Mapping[str, Any]]) -> None:
    table = Table(
        title=kind, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 0)
    )
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for method in known:
        table.add_row(escape(method["name"]), escape(_line(method["doc"])))
    console.print(table)
    console.print()


def _line(doc: str) -> str:
    """The first sentence."""
    return doc.partition(". ")[0].rstrip(".") + "."


def _print_method(method: Mapping[str, Any]) -> None:
    console.print(f"[bold]{escape(method['name'])}[/], {method['kind']}, version {method['version']}", highlight=False)
    for text in (method["doc"], method["source"]):
        if text:
            console.print(escape(text), highlight=False)
    console.print(f"defined in {method['defined_in']}", highlight=False)
    for title, words in (("wants of the task", method["wants"]), ("needs", method["needs"])):
        _print_rows(title, ("word", "what it is"), words.items())
    _print_rows("declares", ("", ""), ((k, _shown(v)) for k, v in method["declares"].items()))
    rows = [
        (
            f["name"],
            f["type"],
            _UNSET if f["required"] else _shown(f["default"]),
            f["range"],
            f["unit"],
            f["doc"] + (f" ({f['names']})" if f["names"] else ""),
        )
        for f in method["fields"]
    ]
    _print_rows("configuration", ("field", "type", "default", "range", "unit", "what it is"), rows)
    for table in method["tables"]:
        columns = [
            (c["name"], c["type"], c["range"], c["unit"], "; ".join(filter(None, (c["doc"], c["direction"]))))
            for c in table["columns"]
        ]
        _print_rows(f"table {table['name']}", ("column", "type", "range", "unit", "what it is"), columns)


def _print_rows(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    listed = list(rows)
    if not listed:
        return
    table = Table(title=title, title_justify="left", show_header=any(head))
    for name in head:
        table.add_column(name, overflow="fold")  # a name that is cut off cannot be typed
    for row in listed:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def _shown(value: Any) -> str:
    """A value as YAML says it, on one line."""
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value)
