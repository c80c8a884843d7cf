"""Forget requests on a graph: a neighbourhood is rows like others; an edge is removed by training everything again
without it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from graph_data import make_nodes
from recorded_state import run
from typer.testing import CliRunner

from assets import Workspace, request_closing, subject_stages
from assets.request_rows import refuse_changed, resolve
from assets.stage import materialize
from contracts.errors import ConfigError, DataError, NotApplicable, StateError
from contracts.requests import ForgetRequest, RequestState
from contracts.subject import Subject
from pipelines.build import request_partitions, request_tick
from pipelines.cli.app import app
from pipelines.cli.audit import workspace_of
from pipelines.cli.requests import _current
from pipelines.subjects import write_subject
from sources.plan import load_examples
from warehouse import Warehouse
from warehouse.verify import verify

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph as two tables; node ids are those of the examples."""
    folder, data = tmp_path_factory.mktemp("graph"), make_nodes(60)
    graph = data.x
    columns = {f"f{k}": graph.features[graph.members, k] for k in range(5)}
    label = [data.class_names[k] for k in data.y]
    pl.DataFrame({"node": data.example_id, **columns, "label": label}).write_csv(folder / "nodes.csv")
    inside = np.isin(graph.edges, graph.members).all(axis=0)
    ends = graph.node_id[graph.edges[:, inside]]
    pl.DataFrame({"source": ends[0], "target": ends[1]}).write_csv(folder / "edges.csv")
    return folder


@pytest.fixture
def plan(files: Path) -> Subject:
    source = {"root": str(files), "file": "nodes.csv", "id": "node", "label": "label", "edges": "edges.csv"}
    return Subject.from_mapping(
        {
            "subject": "nodes",
            "source": {"name": "node_table", "config": source},
            "model": {"name": "gcn", "config": {"hidden": 4, "dim": 4}},
            "recipe": {"name": "node_classifier", "config": {"epochs": 2}},
            "early": {"seeds": 1, "epoch": 1},
            "ensemble": {"num_models": 4, "block": 4},
            "scores": ["erase_labels"],
        }
    )


@pytest.fixture
def home(tmp_path: Path, plan: Subject, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path))
    write_subject(plan, tmp_path, comment="a test")
    return tmp_path


def palimpsest(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def an_edge(plan: Subject) -> tuple[int, int]:
    """Between two training nodes, the first that is on file."""
    data = load_examples(plan)
    train = data.example_id[data.split == "train"]
    ends = data.x.node_id[data.x.edges]
    first, second = ends[:, np.isin(ends, train).all(axis=0)][:, 0].tolist()
    return first, second


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_what_a_plan_is_without_is_in_no_graph(plan: Subject) -> None:
    """A node that is left out takes its edges along; an edge that is left out leaves its nodes."""
    whole = load_examples(plan)
    first, second = an_edge(plan)
    left = load_examples(dataclasses.replace(plan, without=(first,)))
    assert first not in left.x.node_id and len(left.x.features) == len(whole) - 1
    expected = whole.x.edges[:, ~(whole.x.node_id[whole.x.edges] == first).any(axis=0)].shape[1]
    assert left.x.edges.shape[1] == expected < whole.x.edges.shape[1]
    cut = load_examples(dataclasses.replace(plan, without_edges=((second, first),)))
    assert cut.x.edges.shape[1] == whole.x.edges.shape[1] - 1 and not cut.x.has_edge(first, second)
    assert len({whole.digest, left.digest, cut.digest}) == 3 and cut.example_id.tolist() == whole.example_id.tolist()
    with pytest.raises(ConfigError, match="no nodes of a graph"):
        load_examples(
            Subject.from_mapping(
                {"subject": "w", "source": WINE, "model": "mlp", "recipe": "supervised", "without_edges": [[1, 2]]}
            )
        )


WINE = {"name": "sklearn", "config": {"dataset": "wine"}}


@pytest.mark.parametrize("hops", [1, 2])
def test_a_neighbourhood_is_what_a_search_finds_pinned_and_watched(home: Path, plan: Subject, hops: int) -> None:
    data = load_examples(plan)
    node = int(data.x.node_id[data.x.edges[0, 3]])
    seen = {node}
    ends = data.x.node_id[data.x.edges].T.tolist()
    for _ in range(hops):
        seen |= {b for a, b in ends if a in seen} | {a for a, b in ends if b in seen}
    asked = ("--neighbourhood", str(node), *(("--hops", "2") if hops == 2 else ()))
    palimpsest("request", "add", "nodes", *asked, "--id", "r1")
    w = Warehouse.open(home)
    entry = w.requests.get("r1")
    assert set(w.requests.pins("r1")["example_id"]) == seen and entry.request.names_rows
    assert "neighbourhood" in palimpsest("request", "list", "nodes")
    refuse_changed(entry.request, w.requests.pins("r1"), data, w)
    other = next(i for i in data.example_id.tolist() if i not in seen)
    near = data.x.edges[:, 0] * 0 + [data.positions([node])[0], data.positions([other])[0]]
    more = dataclasses.replace(data, x=dataclasses.replace(data.x, edges=np.column_stack([data.x.edges, near])))
    with pytest.raises(DataError, match=r"\d+ new"):
        refuse_changed(entry.request, w.requests.pins("r1"), more, w)
    assert verify(w).whole


def test_nonsense_is_refused_and_not_on_the_register(home: Path, plan: Subject) -> None:
    first, second = an_edge(plan)
    ids = load_examples(plan).example_id
    far = next(i for i in ids.tolist() if i not in (first, second) and not load_examples(plan).x.has_edge(first, i))
    for given, error, says in (
        (("--edge", f"{first},{second}", "--ids", "3"), ConfigError, "exactly one of"),
        (("--edge", "3"), ConfigError, "between two nodes"),
        (("--edge", "3,3"), ConfigError, "between two nodes"),
        (("--edge", "3,x"), ConfigError, "like 3,17"),
        (("--edge", f"{first},{far}"), DataError, "no edge joins"),
        (("--neighbourhood", "999999"), DataError, "no node 999999"),
        (("--ids", str(first), "--hops", "2"), ConfigError, "goes with --neighbourhood"),
    ):
        with pytest.raises(error, match=says):
            palimpsest("request", "add", "nodes", *given, "--id", "r1")
    write_subject(
        Subject.from_mapping({"subject": "vines", "source": WINE, "model": "mlp", "recipe": "supervised"}),
        home,
        comment="a test",
    )
    for given in (("--edge", "1,2"), ("--neighbourhood", "1")):
        with pytest.raises(NotApplicable, match="no nodes of one"):
            palimpsest("request", "add", "vines", *given, "--id", "r1")
    assert not Warehouse.open(home).requests.list("nodes").height


def test_requests_of_other_kinds_keep_the_record_they_had() -> None:
    times = {"received_at": "2026-01-01T00:00:00+00:00", "due_at": "2026-02-01T00:00:00+00:00"}
    rows = {"request_id": "r9", "subject": "vines", "selector": "ids", "ids": [3]}
    assert not set(ForgetRequest.from_mapping({**rows, **times}).recorded()) & {"around", "hops", "edge"}


# ---- an edge --------------------------------------------------------------------------------------------------------


def test_an_edge_is_registered_and_no_run_starts(home: Path, plan: Subject) -> None:
    first, second = an_edge(plan)
    said = palimpsest("request", "add", "nodes", "--edge", f"{second},{first}", "--id", "r1")
    assert "one edge" in said and "--retrained" in said and "request run" not in said
    w = Warehouse.open(home)
    entry = w.requests.get("r1")
    assert entry.request.edge == (second, first) and not entry.request.names_rows and not w.requests.pins("r1").height
    assert entry.state is RequestState.VERIFIED and "edge" in palimpsest("request", "list", "nodes")
    assert "--retrained" in palimpsest("request", "show", "nodes", "r1")
    with pytest.raises(NotApplicable, match="no method of unlearning takes one out"):
        palimpsest("request", "run", "nodes", "r1")
    with dg.DagsterInstance.ephemeral() as instance:
        tick = request_tick(workspace_of(home), "nodes", request_partitions("nodes"), instance=instance)
    assert isinstance(tick, dg.SkipReason) and "r1" in str(tick.skip_message)
    from pipelines.erasure import _refuse

    with pytest.raises(StateError, match="names edge, not rows"):
        _refuse(plan, entry.request, RequestState.AUDITED, retrained=True)


def test_the_version_of_the_examples_covers_the_edges(home: Path, plan: Subject) -> None:
    """Their table holds no edge; what is made of them must be made anew when one leaves, and only then."""
    found = []
    for one in (plan, plan, dataclasses.replace(plan, without_edges=(an_edge(plan),))):
        workspace = Workspace(home, launcher=None)  # type: ignore[arg-type]  # nothing is unlearned
        stage = next(stage for stage in subject_stages(one) if stage.path == ("data", "examples"))
        found.append(materialize(stage, workspace, run_id="r", request=None, context=None))
    assert found[0]["data_version"] == found[1]["data_version"] != found[2]["data_version"]
    assert found[0]["outputs"][0]["digest"] == found[2]["outputs"][0]["digest"]


def test_an_edge_is_closed_when_everything_was_trained_without_it(
    home: Path, plan: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = an_edge(plan)
    w = run(home, plan)
    with_edge = w.artifacts.load("nodes/models/target/weights")[0]
    palimpsest("request", "add", "nodes", "--edge", f"{first},{second}", "--id", "r1")
    with pytest.raises(StateError, match="still in the data"):
        palimpsest("request", "close", "nodes", "r1", "--retrained")
    cut = dataclasses.replace(plan, without_edges=((first, second),))
    workspace = workspace_of(home)
    with pytest.raises(StateError, match="made before the edge was taken out"):  # nothing was trained again
        request_closing.close_on_retraining("r1", cut, workspace, current=_current(cut, workspace))
    assert workspace.warehouse.requests.get("r1").state is RequestState.VERIFIED

    def audit(plan: Subject, home: Path, **_: Any) -> tuple[str, list[Any]]:
        run(home, plan, run_id="r2")
        return "", []

    monkeypatch.setattr("pipelines.cli.audit.run_subject", audit)
    write_subject(cut, home, comment="a test", replace=True)
    said = palimpsest("request", "close", "nodes", "r1", "--retrained", "--by", "Ann")
    assert "Exact retraining" in said and "without its edge" in said
    w = Warehouse.open(home)
    assert w.requests.get("r1").state is RequestState.CLOSED
    without = w.artifacts.load("nodes/models/target/weights")[0]
    assert any(not np.array_equal(with_edge[name], without[name]) for name in with_edge)
    proof = w.artifacts.load_json("nodes/request_reports/r1/closing.json")
    assert "edges" in proof["checks"][0]["what"] and load_examples(cut).digest in proof["checks"][0]["found"]
    assert json.dumps(proof).count(str(first)) == 0 or str(first) in load_examples(cut).digest
    assert verify(w).whole
    with pytest.raises(DataError, match="still holds the edge"):  # nobody trains on it again
        workspace_of(home).examples(plan)
    workspace_of(home).examples(cut)


def test_a_neighbourhood_without_training_nodes_around_it_is_still_rows(plan: Subject, home: Path) -> None:
    """Nodes of the test split are named too, as ids are."""
    data = load_examples(plan)
    test = int(data.example_id[data.split == "test"][0])
    request = ForgetRequest(
        request_id="r1",
        subject="nodes",
        selector="neighbourhood",
        around=test,
        received_at="2026-01-01T00:00:00+00:00",
        due_at="2026-02-01T00:00:00+00:00",
    )
    assert test in resolve(request, data, Warehouse.open(home))
