"""What attacks read besides whole examples is made where one reads it, of any task that has it, and refused else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from assets import Workspace, needs, read_closely, subject_stages
from assets.stage import materialize
from contracts.methods import attack
from contracts.subject import Subject
from sources.loading import load

PLAN: dict[str, Any] = {
    "subject": "wines",
    "source": {"name": "sklearn", "config": {"dataset": "wine", "test_fraction": 0.5}},
    "model": {"name": "mlp", "config": {"hidden": [8]}},
    "recipe": {"name": "supervised", "config": {"lr": 0.1, "batch": 16, "epochs": 20}},
    "ensemble": {"policy": "none"},
    "attacks": ["loss", "min_k", "minus_base"],
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("wines"), launcher=None, publish_every_s=1e9)  # type: ignore[arg-type]
    for stage in subject_stages(Subject.from_mapping(PLAN)):
        materialize(stage, workspace, run_id="r", request=None, context=None)
    workspace.warehouse.publish()
    return workspace


def test_the_base_of_any_task_is_the_model_before_its_training(audited: Workspace) -> None:
    w = audited.warehouse
    base, target = (w.artifacts.load(f"wines/models/{name}")[0] for name in ("base/result", "target/readings"))
    rows = {int(i): k for k, i in enumerate(base["example_id"])}
    scores = w.query("SELECT example_id, score FROM audits.attack_scores WHERE attack = 'minus_base'")
    assert scores.height > 50
    for example, score in scores.iter_rows():
        row = rows[example]
        assert score == pytest.approx(base["reading"][row, 0] - target["reading"][row, 0])
    assert base["reading"][:, 0].mean() > target["reading"][:, 0].mean() + 0.3


def test_an_attack_on_tokens_says_of_other_examples_that_they_have_none(audited: Workspace) -> None:
    w = audited.warehouse
    for name in ("min_k", "token_readings"):
        warnings = (w.last_complete(f"wines/audits/{name}") or {})["warnings"]
        assert any("sequence of tokens" in why for why in warnings.values()), (name, warnings)
    assert set(w.query("SELECT DISTINCT attack FROM audits.attack_reports")["attack"]) == {"loss", "minus_base"}


def test_nothing_is_made_that_no_attack_reads() -> None:
    plain = Subject.from_mapping({**PLAN, "attacks": ["loss"]})
    paths = {stage.path for stage in subject_stages(plain)}
    assert ("models", "base") not in paths and ("audits", "token_readings") not in paths
    every = {stage.path for stage in subject_stages(Subject.from_mapping(PLAN))}
    assert {("models", "base"), ("audits", "token_readings")} <= every


def test_a_table_of_outputs_and_a_given_model_have_no_base(tmp_path: Path) -> None:
    data = load("sklearn", {"dataset": "wine"}, seed=0)
    assert "before its training" in needs.lacks(attack.get("minus_base").spec, "attack", data)
    assert needs.lacks(attack.get("loss").spec, "attack", data) == ""
    given = Subject.from_mapping({**PLAN, "model": {**PLAN["model"], "checkpoint": str(tmp_path / "w.safetensors")}})
    stage = read_closely.base(given, subject_stages(given)[0])
    assert stage is not None

    class Run:
        subject = given

    assert "not known" in next(iter(stage.work(Run()).warnings.values()))  # type: ignore[arg-type]
