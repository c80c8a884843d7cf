"""A graph of two tables: nodes with features and a label, and edges that name two nodes each.

    nodes   node, features ..., label [, owner, split, step, domain, client, group]      columns as of the table source
    edges   source, target                                                              other columns are left out

An example is a node with a label. Nodes without one, and validation nodes that are left out, stay in the graph for
their neighbours' sake. Edges count in both directions unless ``directed``; each is kept once, and loops are left out
(networks that want them add one to every node): how many is said. An edge that names an unknown node is refused by row.

Where the node column holds whole numbers these are the ids of the examples; else ids come from the node's name,
features, label, owner and given split, so that no node's id depends on another node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from contracts.errors import ConfigError, DataError
from contracts.methods import Asked, Reading, SourceSpec, source
from contracts.params import param
from sources.assemble import assemble, check_ids
from sources.example_set import ExampleSet
from sources.features import MAX_LEVELS, content_of, encode, features_of, is_text, refuse_missing
from sources.files import manifest, root_folder
from sources.given_splits import read_splits, settle, without_splits
from sources.graph_tables import EDGES, NODES, edge_columns, graph_tables, node_column
from sources.identity import Content
from sources.labels import encode_labels
from sources.payloads.graph import Graph
from sources.splits import stratified_split
from sources.table import ColumnsConfig, beside_columns, column_texts, named_columns, with_drops
from sources.table_files import SEPARATORS, Table, column_names, read_table


@dataclass(frozen=True, kw_only=True)
class NodeTableConfig(ColumnsConfig):
    """Fields of a table of nodes and a table of edges; ``id`` is the column that names a node."""

    edges: str = param(doc="table of edges inside the root")
    start: str = param("", doc="column of edges that names the first node; source, src or from when empty")
    end: str = param("", doc="column of edges that names the second node; target, dst or to when empty")
    directed: bool = param(False, doc="an edge counts from its first node to its second only")
    categorical: tuple[str, ...] = param((), doc="number columns whose values are names of categories")
    separator: str = param("", choices=("", *SEPARATORS), doc="of a CSV; found in the header when empty")
    max_levels: int = param(MAX_LEVELS, ge=2, le=10_000, doc="most levels of a categorical column")
    task: str = param("classification", choices=("classification",), doc="labels are classes")

    def check(self) -> None:
        super().check()
        if not self.id:
            raise ConfigError("NodeTableConfig needs id, the column that names a node")
        if bool(self.start) != bool(self.end) or (self.start and self.start == self.end):
            raise ConfigError("NodeTableConfig: start and end name two columns of the edges, or are both empty")


def _from_path(path: Path, asked: Asked) -> Reading:
    tables = graph_tables(path)
    if tables is None:
        raise DataError(f"{path} has no tables called nodes and edges")
    nodes, edges = tables
    names = column_names(nodes)
    node = asked.id or node_column(names)
    if node is None:
        raise ConfigError(
            f"which column of {nodes.name} names a node? none is called {', '.join(NODES)}; pass --id; "
            f"columns are: {', '.join(names)}"
        )
    rest = Asked(**{f: getattr(asked, f) for f in ("label", "owner", "split", "task", "val", "drop")}, id=node)
    data, config, notes = named_columns(nodes, rest)
    config.pop("class_names", None)
    start, end = edge_columns(column_names(edges))
    if start is None or end is None:
        raise ConfigError(
            f"{edges.name} has no two columns called {', '.join(' and '.join(pair) for pair in EDGES)}; "
            f"columns are: {', '.join(column_names(edges))}"
        )
    notes.append(f"edges of {edges.name} count in both directions (directed: true in the plan changes that)")
    config |= {"root": str(path), "edges": edges.name, "start": start, "end": end}
    return with_drops(data, config, notes, drop=asked.drop)


@source(
    SourceSpec(
        name="node_table",
        doc="A graph: a table of nodes with features and a label, and a table of edges that names two nodes a row.",
        source="definition",
        config=NodeTableConfig,
        detects=lambda path: bool(graph_tables(path)),
        from_path=_from_path,
    )
)
def node_table(*, config: NodeTableConfig, seed: int) -> ExampleSet:
    """The labelled nodes of one graph.

    Raises:
        UnsafeFile: outside the root, or more than ``max_bytes``.
        DataError: nodes named twice, edges of unknown nodes (by row), and what the table source refuses.
    """
    root = root_folder(config.root)
    data = read_table(root, config.file, separator=config.separator, max_bytes=config.max_bytes)
    if not data.num_rows:
        raise DataError(f"{data.name} has no rows")
    absent = [n for n in (*config.drop, *config.categorical) if n not in data.schema]
    if absent:
        raise DataError(f"{data.name} has no column {absent[0]!r}; columns are: {', '.join(map(repr, data.schema))}")
    origin = data.origin()
    names = _names(data, config.id)
    _refuse_doubled(names, data, origin)
    labelled, y, classes, notes = _labels(data, config, origin)
    kept, words, said = _splits(data, config, origin)
    notes += said
    members = np.flatnonzero(labelled & kept)
    if not len(members):
        raise DataError(f"{data.name}: no node has a label")
    if len(members) < len(names):
        notes.append(f"{len(names) - len(members):,} of {len(names):,} nodes are no examples and stay in the graph")
    owner = column_texts(data, config.owner, max_bytes=config.max_bytes) if config.owner else None
    columns = beside_columns(data, config)
    roles = filter(None, (config.label, config.owner, config.id, config.split, *config.beside().values()))
    features = features_of(data, skip={*roles, *config.drop}, categorical=config.categorical)
    found = content_of(data, features, max_bytes=config.max_bytes)
    assert isinstance(found.values, np.ndarray)
    texts = pl.Series(names.tolist(), dtype=pl.String)
    content = Content(found.values, texts if found.texts is None else texts + "\0" + found.texts)
    ids = _ids(data, config.id)
    if ids is None:
        label = np.where(labelled, np.asarray(classes)[y], "")
        more = (column for column in (owner, words) if column is not None)
        ids = content.ids(label, *more, *(columns[name] for name in sorted(columns)))
    split = None if words is None else words[members]
    drawn = split
    if drawn is None:
        drawn = stratified_split(y[members], ids[members], test_fraction=config.test_fraction, seed=seed)
    train = np.zeros(len(names), bool)
    train[members[drawn == "train"]] = True
    values, feature_names, one_hot = encode(
        data, features, found, train=train, max_levels=config.max_levels, max_bytes=config.max_bytes
    )
    edges, paths, counted = _edges(root, config, names)
    graph = Graph(values, edges, ids, directed=config.directed, members=members)
    return assemble(
        graph,
        y[members],
        name=config.name or Path(data.name).stem,
        task="nodes",
        class_names=classes,
        seed=seed,
        test_fraction=config.test_fraction,
        example_id=ids[members],
        split=split,
        owner=None if owner is None else owner[members],
        origin=origin[members],
        content=Content(found.values[members], None if content.texts is None else content.texts.gather(members)),
        keep_columns=one_hot,
        feature_names=feature_names,
        columns={name: column[members] for name, column in columns.items()},
        provenance={
            "source": "node_table",
            "files": manifest(root, [*data.paths, *paths]),
            "licence": config.licence,
            "num_nodes": len(names),
            "num_edges": edges.shape[1],
            "notes": [*notes, *counted, *(f"column {f.name!r}: {f.how}" for f in features if f.how)],
        },
    )


def _names(data: Table, column: str) -> np.ndarray:
    """(N,) str, the name of the node that each row speaks of; whole numbers as they are counted, text as it is.

    Raises:
        DataError: missing, or numbers that are not whole.
    """
    series = data.column(column)
    refuse_missing(series, data, role="node")
    if series.dtype.is_float():
        odd = (series != series.round()).to_numpy() | ~(series.abs() < 2**53).to_numpy()
        if odd.any():
            raise DataError(
                f"{data.name}: column {column!r} names nodes by numbers that are not whole", where=data.origin()[odd]
            )
        series = series.cast(pl.Int64)
    if not (series.dtype.is_integer() or is_text(series.dtype)):
        raise DataError(f"{data.name}: column {column!r} is {series.dtype}; nodes are named by whole numbers or text")
    return np.array(series.cast(pl.String).to_list(), dtype=str)


def _ids(data: Table, column: str) -> np.ndarray | None:
    """(N,) int64 where the names are whole numbers that can be ids; else None."""
    series = data.column(column)
    if not series.dtype.is_numeric() or float(series.min() or 0) < 0:  # type: ignore[arg-type]
        return None
    return check_ids(series.to_numpy())


def _refuse_doubled(names: np.ndarray, data: Table, origin: np.ndarray) -> None:
    distinct, counts = np.unique(names, return_counts=True)
    doubled = distinct[counts > 1]
    if len(doubled):
        some = ", ".join(map(repr, doubled[:10].tolist()))
        raise DataError(
            f"{data.name}: {len(doubled)} nodes stand there twice: {some}", where=origin[np.isin(names, doubled)]
        )


def _labels(
    data: Table, config: NodeTableConfig, origin: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], list[str]]:
    """(N,) bool which rows have a label, (N,) int64 classes (0 where there is none), their names, and notes."""
    series = data.column(config.label)
    if is_text(series.dtype):
        values = column_texts(data, config.label, max_bytes=config.max_bytes)
        there = values != ""
    elif series.dtype.is_numeric() or series.dtype == pl.Boolean:
        filled = (
            series.cast(pl.Float64).fill_null(float("nan")).to_numpy() if series.null_count() else series.to_numpy()
        )
        there = ~np.isnan(filled) if filled.dtype.kind == "f" else np.ones(len(filled), bool)
        values = filled
    else:
        raise DataError(f"label column {config.label!r} is {series.dtype}; labels are whole numbers or text")
    _, own, classes, notes = encode_labels(
        values[there], origin[there], task="classification", class_names=config.class_names
    )
    y = np.zeros(len(values), np.int64)
    y[there] = own
    return there, y, classes, list(notes)


def _splits(
    data: Table, config: NodeTableConfig, origin: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """(N,) bool which nodes may be examples, (N,) their splits (None: to be drawn), and notes."""
    everyone = np.ones(data.num_rows, bool)
    if not config.split:
        return everyone, None, without_splits(config.val)
    series = data.column(config.split)
    text = is_text(series.dtype)
    given = column_texts(data, config.split, max_bytes=config.max_bytes) if text else series.to_numpy()
    blank = given == "" if text else np.zeros(len(given), bool)  # in no split: a node among the others
    words = np.full(len(given), "train", "<U5")
    words[~blank] = read_splits(given[~blank], origin[~blank], name=config.split)
    kept, split, notes = settle(words, val=config.val, what="nodes")
    whole = None
    if split is not None:
        whole = np.full(len(words), "train", "<U5")
        whole[kept] = split
    return kept & ~blank, whole, notes


def _edges(root: Path, config: NodeTableConfig, names: np.ndarray) -> tuple[np.ndarray, list[Path], list[str]]:
    """int64 (2, E) positions of nodes, each edge once; the files; and how many were taken out.

    Raises:
        DataError: columns that are missing, edges that name no node, or an unknown one, by row.
    """
    data = read_table(root, config.edges, separator=config.separator, max_bytes=config.max_bytes)
    start, end = (config.start, config.end) if config.start else edge_columns(list(data.schema))
    if start is None or end is None:
        raise DataError(
            f"{data.name} has no two columns of nodes; name them with start and end: {', '.join(data.schema)}"
        )
    order = np.argsort(names)
    ordered = names[order]
    ends: list[np.ndarray] = []
    unknown = np.zeros(data.num_rows, bool)
    strangers: set[str] = set()
    for column in (start, end):
        called = _names(data, column) if data.num_rows else np.empty(0, "<U1")
        slot = np.minimum(np.searchsorted(ordered, called), len(ordered) - 1)
        bad = ordered[slot] != called
        unknown |= bad
        strangers |= set(called[bad].tolist())
        ends.append(order[slot])
    if strangers:
        raise DataError(
            f"{data.name}: {int(unknown.sum())} edges name nodes that {config.file} does not have: "
            f"{_some(sorted(strangers))}",
            where=data.origin()[unknown],
        )
    edges = np.stack(ends).astype(np.int64)
    loops = edges[0] == edges[1]
    edges = edges[:, ~loops]
    told = edges if config.directed else np.sort(edges, axis=0)
    _, first = np.unique(told[0] * len(names) + told[1], return_index=True)
    once = edges[:, np.sort(first)]
    notes = [f"{int(loops.sum()):,} edges lead from a node to itself and are left out"] if loops.any() else []
    if doubled := edges.shape[1] - once.shape[1]:
        notes.append(f"{doubled:,} edges stand there more than once and are kept once")
    if others := [name for name in data.schema if name not in (start, end)]:
        notes.append(f"columns of {data.name} left out: {', '.join(others)}")
    return np.ascontiguousarray(once), data.paths, notes


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:10]))
    return shown if len(names) <= 10 else f"{shown}, ... {len(names)} in all"
