"""Which folders hold a graph as two tables, and what its columns are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from contracts.errors import DataError
from sources.files import entries
from sources.table_files import kind_of

NODES = ("node", "node_id", "id")
EDGES = (("source", "target"), ("src", "dst"), ("from", "to"))


def graph_tables(path: Path) -> tuple[Path, Path] | None:
    """The tables of nodes and of edges in a folder, called nodes.* and edges.*; None where they are not there."""
    if not path.is_dir():
        return None
    try:
        files = [entry for entry in entries(path) if not entry.is_dir()]
    except DataError:
        return None
    found = [[file for file in files if file.stem.lower() == name and kind_of(file)] for name in ("nodes", "edges")]
    return (found[0][0], found[1][0]) if all(len(of) == 1 for of in found) else None


def node_column(names: Sequence[str]) -> str | None:
    """The column that names a node, by its name."""
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in NODES if name in lower), None)


def edge_columns(names: Sequence[str]) -> tuple[str | None, str | None]:
    """The columns of the two nodes of an edge, by their names; the only two columns where there are two."""
    lower = {name.lower(): name for name in names}
    pair = next(((lower[a], lower[b]) for a, b in EDGES if a in lower and b in lower), None)
    if pair:
        return pair
    return (names[0], names[1]) if len(names) == 2 else (None, None)
