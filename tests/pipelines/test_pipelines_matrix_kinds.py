"""Recipes against audits where subjects are a graph, masks, and texts of a given language model: each is a row under
its recipe in query and report, and what is inconclusive for want of budget says what it would take."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from addresses_package import write_addresses
from graph_data import make_nodes
from in_process import InProcess

from assets import Workspace, subject_stages
from assets.stage import materialize
from contracts.subject import Subject
from recipes.models import builder
from sources.loading import load
from warehouse import queries

pytestmark = pytest.mark.journey

SHARED = {"early": {"seeds": 1, "epoch": 1}, "thresholds": {"max_target_auc": 0.95}}
FEW = {"num_models": 4, "block": 4}
NEEDED = re.compile(r"needed \d+|\d+ of each are needed|times as many examples|\d+ texts of which none")


def graph(folder: Path) -> dict[str, Any]:
    data, at = make_nodes(120), folder / "nodes"
    at.mkdir()
    graph, label = data.x, [data.class_names[k] for k in data.y]
    features = {f"f{k}": graph.features[graph.members, k] for k in range(5)}
    pl.DataFrame({"node": data.example_id, **features, "label": label}).write_csv(at / "nodes.csv")
    known = set(graph.members.tolist())
    ends = [(int(graph.node_id[a]), int(graph.node_id[b])) for a, b in graph.edges.T if {int(a), int(b)} <= known]
    pl.DataFrame(ends, schema=["source", "target"], orient="row").write_csv(at / "edges.csv")
    source = {"root": str(at), "file": "nodes.csv", "id": "node", "label": "label", "edges": "edges.csv"}
    return {
        "subject": "nodes",
        "source": {"name": "node_table", "config": {**source, "test_fraction": 0.5}},
        "model": {"name": "gat", "config": {"hidden": 8, "heads": 2, "dim": 8, "rows": "l1"}},
        "recipe": {"name": "erase", "config": {"epochs": 5, "lr": 0.01}},
        "ensemble": FEW,
        "attacks": ["loss", "lira_online"],
    }


def masks(folder: Path) -> dict[str, Any]:
    return {
        "subject": "walls",
        "source": {"name": "brick_walls", "config": {"size": 32, "num_train": 8, "num_test": 8, "num_other": 0}},
        "model": {"name": "unet", "config": {"channels": [4, 8]}},
        "recipe": {"name": "segmentation", "config": {"epochs": 2, "batch": 4, "lr": 0.02}},
        "ensemble": FEW,
        "attacks": ["loss"],
    }


def texts(folder: Path) -> dict[str, Any]:
    """A stored Llama of fresh weights is as good as a trained one here: what is given is loaded, adapted and read."""
    root = write_addresses(folder / "npm")
    config = {"root": str(root), "tokenizer": "bytes", "tokens": 64, "presidents": ["Ada Elm", "Ben Oak"]}
    config |= {"member": 6, "held_out": 6, "planted": 2, "copies": 2}
    read = load("presidential_addresses", config, seed=0)
    sizes = {"hidden": 32, "intermediate": 64, "layers": 2, "heads": 2}
    shapes = {"input_shape": read.input_shape, "num_outputs": read.task.num_outputs(read)}
    given: Any = builder("tiny_llama", sizes, **shapes)(0)
    given.save_pretrained(folder / "base", safe_serialization=True)
    return {
        "subject": "letters",
        "source": {"name": "presidential_addresses", "config": config},
        "model": {"name": "pretrained_lm", "config": {"path": str(folder / "base")}},
        "recipe": {
            "name": "lora",
            "config": {"targets": ["q_proj"], "layers": [1], "merge": False, "epochs": 2, "rank": 2},
        },
        "ensemble": {**FEW, "policy": "adapters", "population_fraction": 0.5},
        "analyses": [{"name": "extraction", "config": {"prefix": 16, "suffix": 8}}],
        "attacks": ["min_k", "minus_base", "lira_offline"],
    }


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("data")
    made = Workspace(tmp_path_factory.mktemp("state"), launcher=InProcess(), publish_every_s=1e9)
    for plan in (graph, masks, texts):  # the last one's report has all rows
        for stage in subject_stages(Subject.from_mapping({**plan(folder), **SHARED})):
            materialize(stage, made, run_id="r", request=None, context=None)
    made.warehouse.publish()
    return made


def test_every_kind_is_a_row_under_its_recipe_in_query_and_report(workspace: Workspace) -> None:
    w, rows = workspace.warehouse, [("erase", "nodes"), ("lora", "letters"), ("segmentation", "walls")]
    table = json.loads(w.artifacts.load_bytes("letters/reports/audit.json"))["matrix"]
    assert [(row["recipe"], row["subject"]) for row in table["rows"]] == rows
    assert set(table["audits"]) == {"loss", "lira_online", "min_k", "minus_base", "lira_offline", "extraction"}
    query = queries.get("recipe-audit-matrix")
    found = w.query(query.sql, dict(query.params))
    assert set(found.select("recipe", "subject", "attack").unique().rows()) == {
        ("erase", "nodes", "loss"),
        ("erase", "nodes", "lira_online"),
        ("segmentation", "walls", "loss"),
        *(("lora", "letters", attack) for attack in ("min_k", "minus_base", "lira_offline")),
    }
    assert found["auc"].is_between(0, 1).all() and found["train_quality"].is_not_null().all()
    page = w.artifacts.load_bytes("letters/reports/audit.html").decode()
    assert all(f">{name}<" in page for _, name in rows)


def test_what_is_inconclusive_says_what_it_would_take(workspace: Workspace) -> None:
    w = workspace.warehouse
    cells = {
        (row["subject"], name): cell
        for row in json.loads(w.artifacts.load_bytes("letters/reports/audit.json"))["matrix"]["rows"]
        for name, cell in row["cells"].items()
    }
    inconclusive = {where: cell["sentence"] for where, cell in cells.items() if cell["verdict"] == "inconclusive"}
    assert {("nodes", "lira_online"), ("walls", "loss"), ("letters", "min_k")} <= set(inconclusive), cells
    for where, sentence in inconclusive.items():
        assert NEEDED.search(sentence), (where, sentence)
    empty = {where: cell["sentence"] for where, cell in cells.items() if cell["verdict"] == "not judged"}
    assert all(sentence == f"Not in its plan; it needs {audit}." for (_, audit), sentence in empty.items()), empty
