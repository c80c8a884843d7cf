"""A made data set from the plan to what people see of it: tables, an artefact, a picture, its trace, a refusal."""

from __future__ import annotations

import dataclasses
import hmac
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from recorded_state import run
from typer.testing import CliRunner

from assets.references import check_references
from contracts import schema
from contracts.digests import plain
from contracts.errors import ConfigError, IntegrityError, UnknownName
from contracts.methods import AnalysisSpec, analysis
from contracts.params import Config, param
from contracts.subject import Subject
from contracts.tables import Column, TableSpec
from curation.unlearnable.cuda_unlearnable import _FILTERS, _stream
from explain.class_filters import ClassFilters
from palimpsest.testing.worlds import images
from pipelines.cli.app import app
from sources.loading import load
from sources.made import made_from
from warehouse import Warehouse

pytestmark = pytest.mark.journey

PLAN = {
    "subject": "pictures",
    "source": {"name": "npz", "config": {}},
    "model": {"name": "mlp", "config": {"hidden": [8]}},
    "recipe": {"name": "supervised", "config": {"epochs": 2}},
    "datasets": [{"name": "protected", "method": "cuda_unlearnable", "config": {"mix": 0.5}}],
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder, data = tmp_path_factory.mktemp("pictures"), images().examples
    owner = np.array(["ann", "bob", "eve"])[np.arange(len(data)) % 3]
    np.savez(folder / "pictures.npz", x=data.x, y=data.y, ids=data.example_id, split=data.split, owner=owner)
    source = {"name": "npz", "config": {"root": str(folder), "file": "pictures.npz"}}
    return Subject.from_mapping(PLAN | {"source": source})


@pytest.fixture(scope="module")
def home(plan: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("made") / "state"
    run(home, plan)
    return home


def test_it_is_stored_with_what_it_was_made_from(plan: Subject, home: Path) -> None:
    w = Warehouse.open(home)
    [row] = w.read(schema.DATASETS, subject="pictures").to_dicts()
    assert (row["dataset_id"], row["method"], row["num_examples"]) == ("protected", "cuda_unlearnable", 54)
    members = w.read(schema.MEMBERS, subject="pictures")
    drawn = w.read(schema.DRAWN_FROM, subject="pictures")
    manifest = w.query("SELECT * FROM curation.cuda_unlearnable ORDER BY made_id")
    assert set(members["role"]) == {"source"} and members.height == drawn.height == manifest.height == 54
    assert (drawn["made_id"] == drawn["example_id"]).all() and 0 < manifest["protected"].sum() < 54
    arrays, meta = w.artifacts.load("pictures/curation/protected/result")
    made = made_from(arrays, meta)
    assert made.digest == row["digest"] and made.example_id.tolist() == manifest["made_id"].to_list()
    assert set(made.owner) == {""}


def test_a_trace_of_an_example_names_it(home: Path) -> None:
    w = Warehouse.open(home)
    example = int(w.read(schema.DRAWN_FROM, subject="pictures")["example_id"][7])
    said = CliRunner().invoke(app, ["trace", str(example)], env={"PALIMPSEST_HOME": str(home), "COLUMNS": "200"})
    assert "pictures/curation/protected" in said.output


def test_the_key_is_nowhere_but_in_the_file_of_the_secret(plan: Subject, home: Path) -> None:
    """Neither the derived key nor the filters that it makes stand in any byte of the state."""
    w = Warehouse.open(home)
    key = hmac.digest(w.salt(), b"made data set pictures/curation/protected", "sha256")
    weights = ClassFilters.drawn(3, size=3, blur=0.3, rng=_stream(key, _FILTERS)).weights
    data = load(plan.source.name, plan.source.config, seed=plan.seed).part("train").by_id()
    made = made_from(*w.artifacts.load("pictures/curation/protected/result"))
    manifest = w.query("SELECT protected FROM curation.cuda_unlearnable ORDER BY made_id")["protected"].to_numpy()
    x = torch.from_numpy(np.asarray(data.x, np.float32) / 255)
    again = ClassFilters(weights)(x, torch.from_numpy(data.y))[0].mul(255).round().numpy()
    assert np.array_equal(again[manifest], made.x[manifest]), "that is the key indeed"
    marks = [key, key.hex().encode(), weights[0].numpy().tobytes()[:16]]
    for path in home.rglob("*"):
        if path.is_file() and path.name != "salt":
            content = path.read_bytes()
            assert not any(mark in content for mark in marks), path


def test_it_is_made_once_and_refused_when_it_was_changed(plan: Subject, home: Path, tmp_path: Path) -> None:
    home = shutil.copytree(home, tmp_path / "state")
    before = Warehouse.open(home).artifacts.sha256("pictures/curation/protected/result")
    w = run(home, plan, run_id="r2")
    assert w.artifacts.sha256("pictures/curation/protected/result") == before
    assert set(w.read(schema.DATASETS, subject="pictures", columns=("run_id",))["run_id"]) == {"r1"}, "not made again"
    content = next((home / "artifacts/pictures/curation/protected").glob("result*.safetensors"))
    data = bytearray(content.read_bytes())
    data[-1] ^= 1
    content.write_bytes(data)
    with pytest.raises(IntegrityError):
        Warehouse.open(home).artifacts.load("pictures/curation/protected/result")


def test_an_analysis_is_given_what_was_made(plan: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = TableSpec(
        schema="studies",
        name="brightness",
        doc="d",
        columns=(Column(name="mean", dtype="float64", doc="d"),),
        key=("mean",),
    )

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Named(Config):
        dataset: str = param(doc="d", ref="dataset")

    seen = []

    def look(data, *, config, seed, progress, made):
        found = made(config.dataset)
        seen.append(found)
        return {"brightness": pl.DataFrame({"mean": [float(found.examples.x.mean())]})}

    analysis(AnalysisSpec(name="brightness", doc="D.", config=Named, needs=("made",), tables=(table,)))(look)
    try:
        listed = [{"name": "brightness", "config": {"dataset": "protected"}}]
        asked = Subject.from_mapping(plain(plan) | {"analyses": listed})
        run(tmp_path / "state", asked)
        assert seen[0].tables["cuda_unlearnable"].height == seen[0].drawn_from.height == 54
        wrong = dataclasses.replace(asked, datasets=())
        with pytest.raises(UnknownName, match="data set"):
            run(tmp_path / "other", wrong)
    finally:
        analysis._methods.pop("brightness")


def test_sets_of_one_key_bear_the_same_draw(plan: Subject, tmp_path: Path) -> None:
    """With no blur a filter is its one alone: where it lies is what a draw decides."""
    listed = [
        {"name": name, "method": "cuda_unlearnable", "config": {"blur": 0.0, "kernel_size": 5, "key": key}}
        for name, key in (("a", "k"), ("b", "k"), ("c", ""), ("d", ""))
    ]
    w = run(tmp_path / "state", Subject.from_mapping(plain(plan) | {"datasets": listed, "analyses": []}))
    a, b, c, d = (w.artifacts.load(f"pictures/curation/{name}/result")[0]["x"] for name in "abcd")
    assert np.array_equal(a, b) and not np.array_equal(a, c) and not np.array_equal(c, d)


def test_its_audit_is_a_finding_of_the_report(plan: Subject, tmp_path: Path) -> None:
    chosen = {"dataset": "protected", "defences": ["none", "cutout"]}
    asked = Subject.from_mapping(plain(plan) | {"analyses": [{"name": "unlearnability_audit", "config": chosen}]})
    w = run(tmp_path / "state", asked)
    found = w.read(schema.FINDINGS, subject="pictures").filter(pl.col("what") == "unlearnability")
    [row] = found.to_dicts()
    assert row["about"] == "data set protected" and row["judged"] and row["kind"] == "protection"
    page = w.artifacts.load_bytes("pictures/reports/audit.html").decode()
    sections = {d["name"]: d for d in w.artifacts.load_json("pictures/reports/audit.json")["datasets"]}
    assert list(sections) == [d.name for d in plan.datasets] and "Data sets made" in page
    for section in sections.values():
        made, originals = section["examples"]
        assert made["heading"].startswith("Made: ") and len(made["example_id"]) >= len(originals["example_id"]) > 0
    assert "What is learnt from protected images" in page and "of what there is to learn" in page


def test_names_of_sets_are_of_one_kind(plan: Subject) -> None:
    twice = {"splits": [{"name": "protected", "method": "random_fraction"}]}
    with pytest.raises(ConfigError, match="split or data set protected is listed twice"):
        Subject.from_mapping(PLAN | twice)
    with pytest.raises(UnknownName, match="maker"):
        check_references(Subject.from_mapping(PLAN | {"datasets": [{"name": "a", "method": "no_such"}]}))
