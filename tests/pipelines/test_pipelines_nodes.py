"""A plan of nodes, walked from two tables to its page: the untouched model gives its members away, a retraining on the
graph that is left does not."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from graph_data import make_nodes
from in_process import InProcess

from assets import Workspace, subject_stages
from assets.stage import materialize
from contracts.subject import Subject

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Workspace]:
    """240 nodes; a fifth of the labels means nothing, so that fitting them is learning them by heart."""
    folder, data = tmp_path_factory.mktemp("tables"), make_nodes(240)
    rng, graph = np.random.default_rng(0), data.x
    y = np.where(rng.random(len(data)) < 0.2, rng.integers(0, 3, len(data)), data.y)
    columns = {f"f{k}": graph.features[graph.members, k] for k in range(5)}
    noise = {f"n{k}": rng.normal(size=len(data)) for k in range(12)}
    label = [data.class_names[k] for k in y]
    pl.DataFrame({"node": data.example_id, **columns, **noise, "label": label}).write_csv(folder / "nodes.csv")
    ends = graph.node_id[graph.edges[:, np.isin(graph.edges, graph.members).all(axis=0)]]
    pl.DataFrame({"source": ends[0], "target": ends[1]}).write_csv(folder / "edges.csv")
    source = {"root": str(folder), "file": "nodes.csv", "id": "node", "label": "label", "edges": "edges.csv"}
    subject = Subject.from_mapping(
        {
            "subject": "nodes",
            "source": {"name": "node_table", "config": {**source, "test_fraction": 0.4}},
            "model": {"name": "gat", "config": {"hidden": 32, "heads": 4, "dim": 32, "dropout": 0.0}},
            "recipe": {"name": "node_classifier", "config": {"lr": 0.02, "epochs": 80}},
            "early": {"seeds": 1, "epoch": 5},
            "ensemble": {"num_models": 16, "block": 8},
            "scores": ["grand", "erase_labels"],
            "analyses": [{"name": "coding_rates", "config": {"eps": 0.5}}],
            "splits": [{"name": "random", "method": "random_fraction", "config": {"fraction": 0.3}}],
            "unlearning": {
                "split": "random",
                "methods": [{"name": "random_label", "config": {"epochs": 20, "lr": 0.1}}],
                "seeds": 1,
                "decides": "retrain",
            },
            "attacks": ["loss", "lira_online"],
        }
    )
    workspace = Workspace(tmp_path_factory.mktemp("state"), launcher=InProcess(), publish_every_s=1e9)
    for stage in subject_stages(subject):
        if not stage.per_request:
            materialize(stage, workspace, run_id="r", request=None, context=None)
    return subject, workspace


def test_members_are_told_of_the_untouched_model_and_not_of_a_retraining(audited: tuple[Subject, Workspace]) -> None:
    reports = audited[1].warehouse.query(
        "SELECT DISTINCT audited, auc, auc_lo, auc_hi FROM audits.attack_reports WHERE attack = 'lira_online'"
    )
    area = {name: (value, low, high) for name, value, low, high in reports.rows()}
    assert area["target"][1] > 0.52 and area["random/none"][0] > area["random/retrain"][0] + 0.05, area
    assert area["random/retrain"][1] <= 0.5 <= area["random/retrain"][2], area


def test_forgetting_costs_what_the_untouched_model_knew_by_heart(audited: tuple[Subject, Workspace]) -> None:
    runs = audited[1].warehouse.query("SELECT method, ua, ra, ta FROM unlearning.wide")
    known = {row["method"]: row for row in runs.iter_rows(named=True)}
    assert known["retrain"]["ua"] > known["none"]["ua"] + 5, known
    assert known["random_label"]["ua"] > known["none"]["ua"], known


def test_the_page_is_written_and_the_scores_are_of_every_training_node(audited: tuple[Subject, Workspace]) -> None:
    subject, workspace = audited
    data, w = workspace.examples(subject), workspace.warehouse
    for name in ("grand", "erase_labels"):
        rows = w.query(f"SELECT example_id FROM scores.{name}")["example_id"]
        assert set(rows) == set(data.example_id[data.split == "train"])
    pages = [page.read_text() for page in workspace.home.rglob("audit.html")]
    assert len(pages) == 1 and "node_classifier" in pages[0]


def test_coding_rates_are_asked_for_in_sql_and_shown_on_the_page(audited: tuple[Subject, Workspace]) -> None:
    """A network fitted to wrong labels has classes that are apart on its training nodes; every class has its rows."""
    w = audited[1].warehouse
    rates = w.query("SELECT labels, rate, class_rate, delta, effective_rank FROM scores.coding_rate_summary")
    assert set(rates["labels"]) == {"given", "corrected"} and rates["delta"].min() > 0
    assert 1 < rates["effective_rank"][0] <= 32
    parts = w.query("SELECT labels, sum(part) AS part, count(*) AS classes FROM scores.coding_rates GROUP BY labels")
    for row in parts.iter_rows(named=True):
        assert row["classes"] == 3
        assert row["part"] == pytest.approx(rates.filter(labels=row["labels"])["class_rate"].item())
    page = next(audited[1].home.rglob("audit.html")).read_text()
    for shown in ("Coding rate of each class, labels as corrected", "Effective rank of each class", "class_rate"):
        assert shown in page, shown
