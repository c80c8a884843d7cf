"""The tables in words: Markdown generated from the declarations, so that it cannot differ from what is stored."""

from __future__ import annotations

from collections.abc import Iterable

from contracts.schema import TABLES
from contracts.tables import COMMON, Column, TableSpec
from warehouse.ddl import TYPES, range_of


def markdown(specs: Iterable[TableSpec] = TABLES) -> str:
    """One section a table: what it holds, its key and partition, and every column with type, unit and range."""
    ordered = sorted(specs, key=lambda s: s.full_name)
    common = "\n".join(_line(c) for c in COMMON)
    head = f"# Tables\n\nEvery table also carries:\n\n{_HEADER}\n{common}\n"
    return "\n".join([head, *map(_section, ordered)])


_HEADER = "| column | type | null | allowed | what it holds |\n|---|---|---|---|---|"


def _section(spec: TableSpec) -> str:
    facts = [f"Key: `subject`, {_names(spec.key)}."]
    if spec.partition:
        facts.append(f"Replaced as a whole by {_names(spec.partition)}.")
    if spec.version > 1:
        facts.append(f"Version {spec.version}.")
    lines = "\n".join(_line(c) for c in spec.columns)
    return f"## {spec.full_name}\n\n{_cell(spec.doc)} {' '.join(facts)}\n\n{_HEADER}\n{lines}\n"


def _line(column: Column) -> str:
    unit = f" [{column.unit}]" if column.unit else ""
    meaning = "; ".join(filter(None, [column.doc + unit, column.direction]))
    cells = (f"`{column.name}`", TYPES[column.dtype], "yes" if column.nullable else "no", range_of(column), meaning)
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _names(columns: Iterable[str]) -> str:
    return ", ".join(f"`{c}`" for c in columns)


def _cell(text: str) -> str:
    """Text that stays inside its cell and is not read as HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
