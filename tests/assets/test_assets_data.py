"""What is stored of each example: its columns, a row a value, with no owner's name in the clear, gone with the
example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from assets.data import _without_names
from assets.graph import subject_stages
from assets.stage import materialize
from assets.workspace import Workspace
from contracts.identity import owner_token
from contracts.schema import COLUMNS, EXAMPLES
from contracts.subject import Subject
from warehouse import Warehouse, queries

PEOPLE = ("ada", "bo", "cy")
TOKENS = {name: owner_token(name, salt=b"s") for name in ("", *PEOPLE, "1", "2")}


def told(values: Any, owner: list[str]) -> list[str]:
    return _without_names(np.array(values), np.array(owner), TOKENS).to_list()


def test_a_column_that_names_the_owner_holds_the_tokens() -> None:
    assert told(["ada", "bo", "ada"], ["ada", "bo", "ada"]) == [TOKENS["ada"], TOKENS["bo"], TOKENS["ada"]]
    assert told(["ada", "dee", "bo"], ["ada", "", "bo"]) == [TOKENS["ada"], "dee", TOKENS["bo"]], "dee owns nothing"
    assert told([1, 2, 1], ["1", "2", "1"]) == [TOKENS["1"], TOKENS["2"], TOKENS["1"]]


def test_a_name_in_any_other_column_is_a_token_as_well() -> None:
    assert told(["bo", "ada", "shop"], ["ada", "bo", "cy"]) == [TOKENS["bo"], TOKENS["ada"], "shop"]


def test_a_step_is_no_owner_by_chance() -> None:
    assert told([1, 2, 2], ["1", "2", "1"]) == ["1", "2", "2"]
    assert told(["1", "2", "2"], ["1", "2", "1"]) == ["1", "2", "2"]
    assert told([-3, 10, 2], ["", "", ""]) == ["-3", "10", "2"]


def write(path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    person = np.array(PEOPLE)[np.arange(60) % 3]
    values = {f"f{i}": rng.normal(size=60) for i in range(3)}
    frame = pl.DataFrame(
        {**values, "y": np.arange(60) % 2, "who": person, "round": np.arange(60) // 6, "site": ["b", "a"] * 30}
    )
    frame.head(rows).write_csv(path)


def plan(path: Path, **source: Any) -> Subject:
    config = {"root": str(path.parent), "file": path.name, "label": "y", "owner": "who", **source}
    return Subject.from_mapping(
        {
            "subject": "people",
            "source": {"name": "table", "config": config},
            "model": {"name": "mlp", "config": {"hidden": [4]}},
            "recipe": {"name": "supervised"},
        }
    )


def recorded(subject: Subject, home: Path) -> Warehouse:
    workspace = Workspace(home, launcher=None)  # type: ignore[arg-type] - no job is launched
    stages = {"/".join(stage.path): stage for stage in subject_stages(subject)}
    made = materialize(stages["data/examples"], workspace, run_id="r", request=None, context=None)
    assert made["contract"]["passed"], made["contract"]["problems"]
    return workspace.warehouse


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "people.csv", 60)
    return tmp_path / "people.csv"


KEPT = {"step": "round", "domain": "site", "client": "who"}


def test_columns_are_stored_beside_the_examples_and_scores_group_by_them(file: Path, tmp_path: Path) -> None:
    w = recorded(plan(file, **KEPT), tmp_path / "home")
    columns, examples = w.read(COLUMNS, subject="people"), w.read(EXAMPLES, subject="people")
    assert columns.group_by("name").len().sort("name").rows() == [("client", 60), ("domain", 60), ("step", 60)]
    client = columns.filter(name="client").join(examples, on="example_id", validate="1:1")
    assert (client["value"] == client["owner"]).all() and client["value"].n_unique() == 3
    assert not set(PEOPLE) & {*columns["value"], *examples["owner"]}
    counted = w.query(
        "SELECT value, count(*) FROM data.columns JOIN data.examples USING (subject, example_id) "
        "WHERE name = 'step' GROUP BY value ORDER BY try_cast(value AS BIGINT)"
    )
    assert counted.rows() == [(str(step), 6) for step in range(10)]
    with w.transaction() as t:
        t.con.execute("CREATE TABLE scores.made AS SELECT example_id, example_id % 7 AS value FROM data.examples")
        t.con.execute(
            "CREATE OR REPLACE VIEW scores.latest AS SELECT 'people' AS subject, 'made' AS score, example_id, value, "
            "NULL::DOUBLE AS stderr, 'more' AS higher_means FROM scores.made"
        )
        query = queries.get("score-by-step")
        found = t.con.execute(query.sql, {**query.params, "score": "made"}).pl()
    step = columns.filter(name="step").select("example_id", "value")
    joined = step.join(examples.select("example_id", "split"), on="example_id")
    expected = (
        joined.with_columns(made=pl.col("example_id") % 7)
        .group_by("value", "split")
        .agg(n=pl.len(), mean=pl.col("made").mean(), median=pl.col("made").median(), sd=pl.col("made").std())
        .sort(pl.col("value").cast(pl.Int64), "split", descending=[False, True])
    )
    assert found["step"].to_list() == expected["value"].to_list(), "step 10 follows step 9"
    assert found["split"].to_list() == expected["split"].to_list()
    assert found["num_examples"].to_list() == expected["n"].to_list()
    np.testing.assert_allclose(found["mean"], expected["mean"])
    np.testing.assert_allclose(found["median"], expected["median"])
    known = expected["n"].to_numpy() > 1
    error = (expected["sd"] / expected["n"].sqrt()).to_numpy()
    np.testing.assert_allclose(found["stderr"].to_numpy()[known], error[known])


def test_an_example_that_is_gone_takes_its_columns_with_it(file: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    before = recorded(plan(file, **KEPT), home).read(COLUMNS, subject="people")
    write(file, 57)
    w = recorded(plan(file, **KEPT), home)
    left = w.read(COLUMNS, subject="people")
    gone = set(before["example_id"]) - set(left["example_id"])
    assert len(gone) == 3 and left.height == 3 * 57
    assert set(left["example_id"]) == set(w.read(EXAMPLES, subject="people")["example_id"])
    assert all("data.columns" not in w.trace(example, "people")["location"].to_list() for example in gone)
    assert "data.columns" in w.trace(int(left["example_id"][0]), "people")["location"].to_list()


def test_columns_that_the_plan_no_longer_keeps_are_gone_and_none_are_no_rows(file: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    recorded(plan(file, **KEPT), home)
    assert set(recorded(plan(file, step="round"), home).read(COLUMNS, subject="people")["name"]) == {"step"}
    assert recorded(plan(file), home).read(COLUMNS, subject="people").is_empty()
