"""Bags from the plan to a folder that somebody else opens: no stored or exported byte holds a response."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from recorded_state import run
from typer.testing import CliRunner

from contracts import schema
from contracts.errors import ConfigError
from contracts.subject import Subject
from palimpsest.testing.worlds import numbers
from pipelines.cli.app import app
from pipelines.subjects import write_subject
from sources.loading import load
from warehouse import Warehouse

pytestmark = pytest.mark.journey

PLAN = {
    "subject": "responses",
    "model": {"name": "mlp", "config": {"hidden": []}},
    "recipe": {"name": "aggregate", "config": {"epochs": 2, "bag_size": 3, "epsilon": 2.0, "clip": 20, "center": 40}},
    "datasets": [
        {"name": "exact", "method": "bags", "config": {"bag_size": 4}},
        {"name": "private", "method": "bags", "config": {"epsilon": 1.0, "clip": 20.0, "center": 40.0, "releases": 2}},
    ],
    "analyses": [
        {"name": "bag_risk_curve", "config": {"bag_sizes": [2, 4], "rhos": [0.0, 0.1], "repeats": 2}},
        {"name": "bag_privacy", "config": {"datasets": ["private", "exact"]}},
    ],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, data = tmp_path_factory.mktemp("responses"), numbers().examples
    np.savez(folder / "r.npz", x=data.x, y=data.y, ids=data.example_id, split=data.split)
    plan = Subject.from_mapping(
        PLAN | {"source": {"name": "npz", "config": {"root": str(folder), "file": "r.npz", "task": "regression"}}}
    )
    write_subject(plan, folder / "state", comment="a test")
    run(folder / "state", plan).publish()
    return folder / "state"


def responses() -> np.ndarray:
    return numbers().train.y


def holds_a_response(values: np.ndarray | pl.Series) -> bool:
    return bool(np.isin(np.asarray(values, np.float64), responses()).any())


def test_the_stored_set_holds_no_response(home: Path) -> None:
    w = Warehouse.open(home)
    raw = [np.float64(value).tobytes() for value in responses()]
    for name in ("exact", "private"):
        files = [path for path in (home / "artifacts/responses/curation" / name).rglob("*") if path.is_file()]
        assert files
        for path in files:
            content = path.read_bytes()
            assert not any(mark in content for mark in raw), path
        arrays, _ = w.artifacts.load(f"responses/curation/{name}/result")
        for key, array in arrays.items():
            assert array.dtype.kind == "U" or not holds_a_response(array), key
    for table in ("bag_release", "drawn_from", "members", "datasets"):
        frame = w.query(f"SELECT * FROM curation.{table}")
        assert frame.height
        for column in frame.columns:
            kind = frame[column].dtype
            if kind.is_numeric():
                assert not holds_a_response(frame[column].to_numpy()), (table, column)
            elif kind == pl.List(pl.Float64):
                assert not holds_a_response(frame[column].explode()), (table, column)
            else:
                told = " ".join(frame[column].cast(pl.String).drop_nulls())
                assert not any(repr(float(value)) in told for value in responses()), (table, column)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "npz"])
def test_an_independent_reader_opens_the_export_and_finds_means_alone(home: Path, tmp_path: Path, kind: str) -> None:
    words = ["export", "responses", "exact", "--to", str(tmp_path / "out"), "--format", kind]
    result = CliRunner().invoke(app, words, env={"PALIMPSEST_HOME": str(home), "COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    if kind == "parquet":
        rows = pq.read_table(tmp_path / "out/data/train-00000-of-00001.parquet").to_pydict()
        label, bag = np.array(rows["label"]), np.array(rows["bag"])
        floats = np.concatenate([np.array(column, np.float64).ravel() for column in rows.values()])
    elif kind == "jsonl":
        lines = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
        label, bag = (np.array([line[name] for line in lines]) for name in ("label", "bag"))
        floats = np.concatenate([np.array([line["label"], *line["values"]]) for line in lines])
    else:
        with np.load(tmp_path / "out/data.npz") as archive:
            label, bag = archive["y"], archive["bag"]
            floats = np.concatenate([archive[name].ravel().astype(np.float64) for name in ("x", "y", "ids", "bag")])
    assert not holds_a_response(floats) and len(label) == 90
    stored = Warehouse.open(home).query("SELECT * FROM curation.bag_release WHERE dataset_id = 'exact'")
    means = {b: float(m[0]) for b, m in stored.select("bag_id", "mean_response").iter_rows()}
    assert all(label[row] == means[int(bag[row])] for row in range(90)) and len(means) == 22
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            content, text = path.read_bytes(), path.read_bytes().decode("utf-8", errors="replace")
            for value in responses():
                assert np.float64(value).tobytes() not in content and repr(float(value)) not in text, path


def test_an_exported_archive_is_read_again_with_its_bags(home: Path, tmp_path: Path) -> None:
    words = ["export", "responses", "private", "--to", str(tmp_path / "out"), "--format", "npz"]
    CliRunner().invoke(app, words, env={"PALIMPSEST_HOME": str(home), "COLUMNS": "200"})
    with np.load(tmp_path / "out/data.npz") as archive:  # a test split is drawn by who trains on it
        np.savez(tmp_path / "drawn.npz", **{name: archive[name] for name in ("x", "y", "ids", "bag")})
    config = {"root": str(tmp_path), "file": "drawn.npz", "keep": ["bag"], "task": "regression"}
    again = load("npz", config, seed=0)
    assert again.columns["bag"].max() == 35 and len(again) == 180


def test_bags_are_not_lost_beside_test_examples(home: Path, tmp_path: Path) -> None:
    words = ["export", "responses", "exact", "--to", str(tmp_path / "out"), "--format", "npz", "--test"]
    result = CliRunner().invoke(app, words, env={"PALIMPSEST_HOME": str(home), "COLUMNS": "200"})
    assert isinstance(result.exception, ConfigError) and "have no column 'bag'" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_what_they_spend_and_cost_is_on_record(home: Path) -> None:
    w = Warehouse.open(home)
    spent = w.query("SELECT dataset_id, epsilon, epsilon_sum FROM studies.bag_privacy ORDER BY place")
    assert spent.rows() == [("private", 2.0, 2.0), ("exact", None, None)]
    assert w.query("SELECT * FROM studies.bag_risk_curve").height == 2 * 2 * 3
    sources = w.read(schema.DRAWN_FROM, subject="responses", partition={"dataset_id": "exact"})
    assert sources.height == 21 * 16 + 36, "from all of each bag: 21 of 4 and one of 6"
    page = w.artifacts.load_bytes("responses/reports/audit.html").decode()
    assert "Excess risk by bag size" in page
