"""A distilled data set from the plan to what people see of it: tables, trace, and what an analysis is given of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from recorded_state import run
from typer.testing import CliRunner

from assets.curation import _pictures
from contracts import schema
from contracts.methods import AnalysisSpec, analysis, maker
from contracts.params import Config, param
from contracts.subject import Subject
from contracts.tables import Column, TableSpec
from palimpsest.testing.worlds import images
from pipelines.cli.app import app
from pipelines.data_export import data_set
from warehouse import Warehouse

pytestmark = pytest.mark.journey

SMALL = {
    "per_class": 2,
    "width": 4,
    "depth": 2,
    "seeds": 1,
    "held_out": 0.2,
    "architectures": [],
    "experts": {"num": 1, "epochs": 4, "batch": 16, "lr": 0.1},
    "match": {"iterations": 3, "steps": 3, "t_max": 3, "lr_img": 5.0, "start": "real"},
    "students": {"epochs": 3},
    "keep_every": 2,
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Named(Config):
    dataset: str = param(doc="a made data set", ref="dataset")


@pytest.fixture(scope="module")
def seen() -> list[object]:
    return []


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder, data = tmp_path_factory.mktemp("pictures"), images().examples
    np.savez(folder / "pictures.npz", x=data.x, y=data.y, ids=data.example_id, split=data.split)
    return Subject.from_mapping(
        {
            "subject": "pictures",
            "source": {"name": "npz", "config": {"root": str(folder), "file": "pictures.npz"}},
            "model": {"name": "mlp", "config": {"hidden": [8]}},
            "recipe": {"name": "supervised", "config": {"epochs": 2}},
            "datasets": [{"name": "few", "method": "distilled", "config": SMALL}],
            "analyses": [{"name": "looked_at", "config": {"dataset": "few"}}],
        }
    )


@pytest.fixture(scope="module")
def home(plan: Subject, tmp_path_factory: pytest.TempPathFactory, seen: list[object]) -> Path:
    state = tmp_path_factory.mktemp("distilled") / "state"
    table = TableSpec(
        schema="studies",
        name="looked_at",
        doc="d",
        columns=(Column(name="num", dtype="int64", doc="d"),),
        key=("num",),
    )

    def look(data, *, config, seed, progress, made):
        seen.append(made(config.dataset))
        return {"looked_at": pl.DataFrame({"num": [len(seen)]})}

    analysis(AnalysisSpec(name="looked_at", doc="D.", config=Named, needs=("made",), tables=(table,)))(look)
    try:
        run(state, plan)
    finally:
        analysis._methods.pop("looked_at")
    return state


def test_it_is_stored_with_its_log_its_worth_and_who_touched_it(home: Path, seen: list[object]) -> None:
    w = Warehouse.open(home)
    members = w.read(schema.MEMBERS, subject="pictures")
    counts = dict(members.group_by("role").len().iter_rows())
    assert counts["source"] == 6 and counts["judged_on"] == 11 and counts["learnt_from"] == 54 - 17
    assert w.query("SELECT * FROM curation.distilled")["logits"].list.len().to_list() == [3] * 6
    assert w.query("SELECT * FROM curation.distillation_log").height == 3
    assert w.query("SELECT * FROM curation.trajectory_smoothness").height == 5
    worth = w.query("SELECT * FROM curation.distillation_worth")
    assert worth.height == 4 + 3 + 2 and worth["acc_lo"].null_count() == worth.height, "of one network"
    assert set(w.query("SELECT * FROM curation.distillation_eval")["set_name"]) >= {"distilled", "initial", "herding"}
    (found,) = seen
    assert len(found.learnt_from) == 43 and len(found.judged_on) == 11 and len(found.sources) == 43
    assert found.tables["distillation_log"]["iteration"].to_list() == [1, 2, 3]
    made = w.artifacts.names("pictures/curation/few")
    assert any("resume-" in name for name in made), "a run that was stopped would go on from here"


@pytest.mark.parametrize("role", ["source", "learnt_from", "judged_on"])
def test_a_trace_of_whatever_touched_it_names_it(home: Path, role: str) -> None:
    w = Warehouse.open(home)
    example = int(w.read(schema.MEMBERS, subject="pictures").filter(role=role)["example_id"][0])
    said = CliRunner().invoke(app, ["trace", str(example)], env={"PALIMPSEST_HOME": str(home), "COLUMNS": "200"})
    assert "pictures/curation/few" in said.output and "was used to make" in said.output
    assert ("curation.drawn_from" in said.output) == (role == "source")


def test_it_leaves_as_a_data_set_without_its_judges(home: Path, plan: Subject) -> None:
    """The examples as they are stored, and as left out the held-out ones, from which nothing was made."""
    w = Warehouse.open(home)
    found = data_set(w, plan, "few")
    stored = w.artifacts.load("pictures/curation/few/result")[0]
    assert np.array_equal(found.examples.x, stored["x"]) and found.examples.x.dtype == np.float32
    judges = w.read(schema.MEMBERS, subject="pictures").filter(role="judged_on")["example_id"].sort()
    assert found.excluded["example_id"].to_list() == judges.to_list()


def test_people_see_it_above_what_it_started_from(home: Path, seen: list[object]) -> None:
    (found,) = seen
    pictures = _pictures(SimpleNamespace(train=images().train), found)  # type: ignore[arg-type]
    assert pictures["made examples"].startswith(b"\x89PNG")


def test_the_report_says_what_it_is_worth_and_shows_it(home: Path) -> None:
    """Its charts, its made images and those they started from, and the table of its worth."""
    folder = home / "artifacts/pictures/reports"
    page, facts = (folder / "audit.html").read_text(), json.loads((folder / "audit.json").read_text())
    [section] = facts["datasets"]
    assert {row["set_name"] for row in section["head"]} >= {"distilled", "random", "everything"}
    assert [len(group["example_id"]) for group in section["examples"]] == [6, 6]
    for picture in maker.get("distilled").spec.pictures:
        assert page.count(picture.title) >= 1
