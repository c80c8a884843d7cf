"""Earlier forgetting is measured again from what is kept of a request, its examples erased or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import erasure_world as world
import pytest
from typer.testing import CliRunner

from assets.remeasure import measured_again
from contracts.errors import NotReady, UnknownName
from pipelines.cli.app import app
from warehouse import Warehouse


def test_it_says_after_the_erasure_what_it_said_before(finished: Path, erased_once: Any) -> None:
    plan = world.plan_of(finished)
    before, after = (measured_again(plan, Warehouse.open(home), "r1") for home in (finished / "state", erased_once[0]))
    assert before == after and [one.method for one in before] == ["none", "retrain"]
    assert all(0 <= one.moved < 0.2 and one.recorded == one.now.verdict for one in before)
    assert before[0].now.value != before[1].now.value


def test_readings_of_a_model_that_forgot_nothing_are_told(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copytree(finished / "state", tmp_path / "state"))
    monkeypatch.setenv("PALIMPSEST_HOME", str(copied))
    w, plan = Warehouse.open(copied), world.plan_of(finished)
    before = measured_again(plan, w, "r1")
    name = "mine/request_unlearning/r1/{}/result"
    arrays, meta = w.artifacts.load(name.format("retrain"))
    w.artifacts.save(
        name.format("retrain"), arrays | {"reading": w.artifacts.load(name.format("none"))[0]["reading"]}, meta
    )
    untouched, removed = measured_again(plan, w, "r1")
    assert removed.now.value == untouched.now.value != before[1].now.value
    monkeypatch.setattr("pipelines.subjects.load_subject", lambda name, home: plan)
    said = CliRunner().invoke(app, ["request", "remeasure", "mine", "--json"])
    assert said.exit_code == 1 and json.loads(said.stdout)["r1"][1]["now"]["value"] == removed.now.value
    w.artifacts.remove(name.format("retrainings"))
    with pytest.raises(NotReady, match="retrainings/result, which an audited request keeps, is not there"):
        measured_again(plan, w, "r1")
    assert CliRunner().invoke(app, ["request", "remeasure", "mine", "r1"]).exit_code == 2
    with pytest.raises(UnknownName):
        measured_again(plan, w, "r9")
