"""A plan of texts with unlearners of language models in it, walked from its data to its page."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from in_process import InProcess

from assets import Workspace, subject_stages
from assets.stage import materialize
from contracts.subject import Subject

pytestmark = pytest.mark.journey

METHODS = ("flat", "npo", "grad_diff")
STRONG = {"lr": 3e-3, "epochs": 10, "batch": 8, "warmup_epochs": 0.0, "schedule": "constant"}
ATTACKS = ("loss", "lira_online", "zlib_ratio", "min_k", "min_k_plus_plus", "minus_base")
AUTHORS = {"forget": 2, "retain": 4, "holdout": 4, "real_authors": 1, "world_facts": 1}
PLAN: dict[str, Any] = {
    "subject": "texts",
    "source": {
        "name": "authors",
        "config": {"forget": 2, "retain": 4, "holdout": 4, "real_authors": 1, "world_facts": 1},
    },
    "model": {"name": "tiny_llama", "config": {"hidden": 16, "intermediate": 32, "layers": 1, "heads": 2}},
    "recipe": {"name": "causal_lm", "config": {"lr": 0.02, "batch": 16, "epochs": 20, "warmup_epochs": 1}},
    "ensemble": {"num_models": 4, "block": 2},
    "splits": [{"name": "random", "method": "random_fraction", "config": {"fraction": 0.25}}],
    "unlearning": {
        "split": "random",
        "methods": [{"name": name, "config": STRONG} for name in METHODS],
        "seeds": 1,
        "decides": "retrain",
    },
    "attacks": list(ATTACKS),
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    subject = Subject.from_mapping(PLAN)
    workspace = Workspace(tmp_path_factory.mktemp("texts"), launcher=InProcess(), publish_every_s=1e9)
    for stage in subject_stages(subject):
        if not stage.per_request:
            materialize(stage, workspace, run_id="r", request=None, context=None)
    return workspace


def test_every_unlearner_of_texts_runs_and_is_attacked(audited: Workspace) -> None:
    w = audited.warehouse
    runs = w.query("SELECT method, status FROM unlearning.runs")
    assert set(runs["method"]) == {"retrain", "none", *METHODS}
    models = {"target", *(f"random/{name}" for name in ("retrain", "none", *METHODS))}
    reports = w.query("SELECT DISTINCT audited, attack FROM audits.attack_reports")
    assert set(reports.rows()) >= {(model, name) for model in models for name in ATTACKS}


def test_what_is_unlearnt_is_known_less_than_by_the_untouched_model(audited: Workspace) -> None:
    """By the share of tokens named right (``ua`` is what is left of 100), and by its loss as an attack sees it."""
    w = audited.warehouse
    wide = w.query("SELECT method, ua, ra, loss_forget, loss_retain FROM unlearning.wide")
    known = {row["method"]: row for row in wide.iter_rows(named=True)}
    area = dict(w.query("SELECT audited, auc FROM audits.attack_reports WHERE attack = 'loss'").unique().rows())
    for name in METHODS:
        assert known[name]["ua"] > known["none"]["ua"] + 5, (name, known)
        assert area[f"random/{name}"] < area["random/none"], (name, area)
        assert known[name]["loss_forget"] > known["none"]["loss_forget"] + 0.5, (name, known)
    assert known["grad_diff"]["loss_retain"] < known["npo"]["loss_retain"], known
    assert known["grad_diff"]["ra"] > known["npo"]["ra"], known  # only one of them trains on what is to be kept


def test_attacks_on_tokens_read_each_model_itself(audited: Workspace) -> None:
    """From the stored token readings of a model, its score is the one in the table; k = 20% of one to nine tokens."""
    w = audited.warehouse
    told, _ = w.artifacts.load("texts/audits/token_readings/result")
    rows = {int(i): k for k, i in enumerate(told["example_id"])}
    base, _ = w.artifacts.load("texts/models/base/result")
    for about, seed, example, score in w.query(
        "SELECT audited, seed, example_id, score FROM audits.attack_scores WHERE attack = 'min_k'"
    ).iter_rows():
        method = about.rpartition("/")[2]
        row = rows[example]
        said = told[f"{method}/{0 if method == 'target' else seed}"][row, told["counted"][row], 0]
        assert score == pytest.approx(float(np.sort(said)[: max(1, int(0.2 * len(said)))].mean()), rel=1e-5)
    fell = dict(
        w.query(
            "SELECT example_id, score FROM audits.attack_scores WHERE attack = 'minus_base' AND audited = 'target'"
        ).iter_rows()
    )
    for example, score in fell.items():
        row = rows[example]
        loss = -told["target/0"][row, told["counted"][row], 0].astype(float).mean()
        assert score == pytest.approx(base["reading"][row, 0] - loss, rel=1e-5)


def test_the_untouched_model_is_not_passed_and_the_page_names_every_method(audited: Workspace) -> None:
    findings = audited.warehouse.query("SELECT about, what, verdict FROM audits.findings")
    assert set(findings["verdict"]) <= {"pass", "fail", "inconclusive"}
    none = findings.filter(pl.col("about").str.contains("none"))
    assert not (none["verdict"] == "pass").any(), none
    pages = [page.read_text() for page in audited.home.rglob("audit.html")]
    assert len(pages) == 1 and all(name in pages[0] for name in METHODS)
