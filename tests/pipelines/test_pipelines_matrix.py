"""Recipes against audits in the report of a subject: all subjects of the state folder as they stand, each under its
recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from assets import Workspace, subject_stages
from assets.stage import materialize
from contracts.subject import Subject

pytestmark = pytest.mark.journey

STEPS = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def carry_out(workspace: Workspace, name: str, recipe: str, attacks: list[str], *, upto: str = "") -> None:
    subject = Subject.from_mapping(
        {
            "subject": name,
            "source": {"name": "sklearn", "config": {"dataset": "digits"}},
            "model": {"name": "mlp", "config": {"hidden": [8]}},
            "recipe": {
                "name": recipe,
                "config": {"steps": STEPS, "epochs": 2} if recipe != "supervised" else {"epochs": 2},
            },
            "attacks": attacks,
            "thresholds": {"max_target_auc": 0.6},
        }
    )
    for stage in subject_stages(subject):
        materialize(stage, workspace, run_id="r", request=None, context=None)
        if "/".join(stage.path) == upto:
            return


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    workspace = Workspace(Path(tmp_path_factory.mktemp("state")), launcher=None)  # type: ignore[arg-type]
    carry_out(workspace, "free", "rehearsal_free", ["loss"])
    alone = json.loads(workspace.warehouse.artifacts.load_bytes("free/reports/audit.json"))["matrix"]
    assert [row["subject"] for row in alone["rows"]] == ["free"] and alone["audits"] == ["loss"]
    carry_out(workspace, "begun", "supervised", ["loss"], upto="models/target")
    carry_out(workspace, "kept", "replay", ["loss", "entropy"])
    page = workspace.warehouse.artifacts.load_bytes("kept/reports/audit.html").decode()
    assert 'id="matrix"' in page and page.count('aria-current="true"') == 1
    return json.loads(workspace.warehouse.artifacts.load_bytes("kept/reports/audit.json"))  # type: ignore[no-any-return]


def test_a_report_shows_every_subject_under_its_recipe(table: dict[str, Any]) -> None:
    rows = [(row["recipe"], row["subject"]) for row in table["matrix"]["rows"]]
    assert rows == [("rehearsal_free", "free"), ("replay", "kept"), ("supervised", "begun")]
    assert table["matrix"]["audits"] == ["entropy", "loss"]


def test_its_cells_are_the_findings_and_empty_ones_say_what_they_lack(table: dict[str, Any]) -> None:
    cells = {row["subject"]: row["cells"] for row in table["matrix"]["rows"]}
    for finding in table["findings"]:
        cell = cells["kept"][finding["what"].removeprefix("attack/")]
        assert {cell[k] for k in ("verdict", "sentence")} == {finding[k] for k in ("verdict", "sentence")}
        assert [cell[k] for k in ("value", "low", "high")] == [finding[k] for k in ("value", "low", "high")]
    assert cells["free"]["loss"]["value"] is not None and cells["free"]["loss"]["counted"]
    assert cells["free"]["entropy"]["sentence"] == "Not in its plan; it needs entropy."
    assert cells["begun"]["loss"]["sentence"] == "Not audited to the end; run: palimpsest audit begun"
    assert {cells["free"]["entropy"]["verdict"], cells["begun"]["loss"]["verdict"]} == {"not judged"}
