"""Node and edge tables: the graph as its tables say it, ids of its own, what stays as a neighbour, refusals by row."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import ConfigError, DataError
from sources.loading import detect, load

NUM = 24


def _nodes(num=NUM):
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "node": [f"paper {i}" for i in range(num)],
            "size": rng.normal(size=num),
            "venue": [("kdd", "www")[i % 2] for i in range(num)],
            "label": [("a", "b", "c")[i % 3] for i in range(num)],
            "owner": [f"o{i % 5}" for i in range(num)],
        }
    )


def _edges(num=NUM):
    pairs = [(i, (i * 5 + 1) % num) for i in range(num)] + [(i, (i + 1) % num) for i in range(num)]
    return pl.DataFrame({"source": [f"paper {a}" for a, _ in pairs], "target": [f"paper {b}" for _, b in pairs]})


def _write(root, nodes=None, edges=None, kind="csv"):
    root.mkdir(exist_ok=True)
    for name, frame in (
        ("nodes", _nodes() if nodes is None else nodes),
        ("edges", _edges() if edges is None else edges),
    ):
        path = root / f"{name}.{kind}"
        frame.write_csv(path) if kind == "csv" else frame.write_parquet(path)
    return root


def _config(root, kind="csv", **more):
    files = {"file": f"nodes.{kind}", "edges": f"edges.{kind}"}
    return {"root": str(root), **files, "id": "node", "label": "label", "owner": "owner", **more}


def _pairs(data):
    """Undirected edges by the names of nodes, from the origin of the examples."""
    ids = data.x.node_id[data.x.edges]
    return {frozenset(pair) for pair in ids.T.tolist()}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_graph_is_what_the_tables_say(tmp_path, kind):
    root = _write(tmp_path / "g", kind=kind)
    found = detect(root)
    assert found.name == "node_table" and found.config["id"] == "node" and found.config["label"] == "label"
    data = load("node_table", found.config | {"owner": "owner"}, seed=1)
    nodes = _nodes()
    assert data.task.name == "nodes" and data.class_names == ("a", "b", "c") and data.input_shape == (3,)
    assert data.feature_names == ("size", "venue=kdd", "venue=www")
    np.testing.assert_allclose(data.x.features[:, 0], nodes["size"].to_numpy(), rtol=1e-6)
    np.testing.assert_array_equal(data.x.features[:, 1], (nodes["venue"] == "kdd").to_numpy())
    assert [data.class_names[k] for k in data.y] == nodes["label"].to_list() and data.owner.tolist() == nodes[
        "owner"
    ].to_list()
    by_name = dict(zip(nodes["node"].to_list(), data.example_id.tolist(), strict=True))
    said = {frozenset((by_name[a], by_name[b])) for a, b in _edges().iter_rows() if a != b}
    assert _pairs(data) == said and data.x.edges.shape[1] == len(said)
    got = data.inputs(np.array([5, 2]))
    assert got["x"].shape == (NUM, 3) and got["nodes"].tolist() == [5, 2]
    train = data.split == "train"
    mean, std = data.x.features[train, 0].mean(dtype=np.float64), data.x.features[train, 0].std(dtype=np.float64)
    np.testing.assert_allclose(got["x"][:, 0], (data.x.features[:, 0] - mean) / std, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got["x"][:, 1], data.x.features[:, 1])


def test_csv_and_parquet_are_one_data_set(tmp_path):
    one, other = (load("node_table", _config(_write(tmp_path / k, kind=k), k)) for k in ("csv", "parquet"))
    assert one.digest == other.digest


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_order_is_the_same_set_and_a_deleted_node_changes_no_other_id(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("g")
    nodes, edges = _nodes().drop("venue"), _edges()
    whole = load("node_table", _config(_write(root, nodes, edges)))
    moved_nodes = nodes[data.draw(st.permutations(range(NUM)))]
    moved_edges = edges[data.draw(st.permutations(range(len(edges))))]
    moved = load("node_table", _config(_write(root, moved_nodes, moved_edges)))
    assert moved.digest == whole.digest
    gone = data.draw(st.integers(0, NUM - 1))
    name = f"paper {gone}"
    kept = edges.filter((pl.col("source") != name) & (pl.col("target") != name))
    less = load("node_table", _config(_write(root, nodes.filter(pl.col("node") != name), kept)))
    assert set(whole.example_id.tolist()) - set(less.example_id.tolist()) == {whole.example_id.tolist()[gone]}
    alone = whole.only(np.delete(np.arange(NUM), gone))
    assert dict(alone.payload.shared)["edges"] == dict(less.payload.shared)["edges"]


def test_whole_numbers_that_name_nodes_are_their_ids(tmp_path):
    nodes = _nodes().with_columns(node=pl.Series(np.arange(NUM) * 7 + 2))
    ids = dict(zip(_nodes()["node"].to_list(), nodes["node"].to_list(), strict=True))
    edges = _edges().select(pl.all().replace_strict(ids, return_dtype=pl.Int64))
    data = load("node_table", _config(_write(tmp_path / "g", nodes, edges)))
    assert data.example_id.tolist() == nodes["node"].to_list()
    as_floats = load("node_table", _config(_write(tmp_path / "f", nodes, edges.cast(pl.Float64), "parquet"), "parquet"))
    assert dict(as_floats.payload.shared) == dict(data.payload.shared)


def test_loops_and_doubled_edges_are_counted_and_said(tmp_path):
    edges = pl.DataFrame(
        {
            "src": ["paper 0", "paper 1", "paper 0", "paper 2", "paper 2"],
            "dst": ["paper 1", "paper 0", "paper 1", "paper 2", "paper 3"],
            "weight": [1, 2, 3, 4, 5],
        }
    )
    root = _write(tmp_path / "g", edges=edges)
    data = load("node_table", _config(root))
    notes = " | ".join(data.provenance["notes"])
    assert data.x.edges.T.tolist() == [[0, 1], [2, 3]]
    assert "1 edges lead from a node to itself" in notes and "2 edges stand there more than once" in notes
    assert "columns of edges.csv left out: weight" in notes
    directed = load("node_table", _config(root, directed=True))
    assert directed.x.edges.T.tolist() == [[0, 1], [1, 0], [2, 3]] and directed.digest != data.digest
    assert directed.provenance["num_edges"] == 3


def test_nodes_without_a_label_and_validation_nodes_stay_as_neighbours(tmp_path):
    words = ["train"] * 12 + ["val"] * 3 + ["test"] * 6 + [""] * 3
    nodes = _nodes().with_columns(split=pl.Series(words), label=pl.Series([None, *_nodes()["label"].to_list()[1:]]))
    data = load("node_table", _config(_write(tmp_path / "g", nodes), split="split"))
    assert len(data) == 17 and len(data.x.features) == NUM
    assert data.x.nodes.tolist() == [*range(1, 12), *range(15, 21)]
    assert data.split.tolist() == ["train"] * 11 + ["test"] * 6
    assert any("7 of 24 nodes are no examples and stay in the graph" in note for note in data.provenance["notes"])
    assert (
        len(set(data.x.node_id.tolist())) == NUM and data.x.node_id[data.x.nodes].tolist() == data.example_id.tolist()
    )
    alone = data.part("train").only(np.arange(11))
    assert len(alone.x.features) == 11 and alone.validate().example_id.tolist() == data.example_id[:11].tolist()


@pytest.mark.parametrize(
    ("nodes", "edges", "config", "says"),
    [
        (
            None,
            _edges().with_columns(target=pl.lit("paper x")),
            {},
            r"48 edges name nodes that nodes.csv does not have: 'paper x'",
        ),
        (
            None,
            pl.DataFrame({"source": ["paper 0", "paper 1"], "target": ["paper 1", None]}),
            {},
            r"'target' is missing.*edges\.csv row 2",
        ),
        (
            pl.concat([_nodes(), _nodes()[:2]]),
            None,
            {},
            r"2 nodes stand there twice: 'paper 0', 'paper 1'.*rows 1, 2, 25, 26",
        ),
        (
            _nodes().with_columns(node=pl.Series([None, *_nodes()["node"].to_list()[1:]])),
            None,
            {},
            r"'node' is missing.*row 1",
        ),
        (
            _nodes().with_columns(size=pl.Series([float("nan")] * 2 + [1.0] * 22)),
            None,
            {},
            r"'size' is missing \(or NaN\) in 2 rows",
        ),
        (None, pl.DataFrame({"a": ["paper 0"], "b": ["paper 1"], "c": [1]}), {}, "no two columns of nodes"),
        (None, None, {"drop": ("colour",)}, "no column 'colour'"),
        (None, None, {"start": "from", "end": "to"}, "no column 'from'"),
        (_nodes().with_columns(label=pl.lit("a")), None, {}, "nodes needs at least 2"),
        (_nodes().drop("size", "venue"), None, {}, "no feature column"),
    ],
)
def test_bad_tables_are_refused_by_row(tmp_path, nodes, edges, config, says):
    with pytest.raises(DataError, match=says):
        load("node_table", _config(_write(tmp_path / "g", nodes, edges), **config))


@pytest.mark.parametrize(
    "config", [{"id": ""}, {"start": "a"}, {"start": "a", "end": "a"}, {"task": "regression"}, {"domain": "label"}]
)
def test_fields_that_contradict_each_other_are_refused(tmp_path, config):
    with pytest.raises(ConfigError, match="NodeTableConfig"):
        load("node_table", _config(_write(tmp_path / "g"), **config))


def test_a_column_kept_beside_is_no_feature(tmp_path):
    data = load("node_table", _config(_write(tmp_path / "g"), domain="venue"))
    assert data.columns["domain"].tolist() == _nodes()["venue"].to_list() and data.input_shape == (1,)


def test_two_tables_of_other_names_are_no_graph(tmp_path):
    root = _write(tmp_path / "g")
    (root / "nodes.csv").rename(root / "one.csv")
    assert detect(root / "one.csv").name == "table"
