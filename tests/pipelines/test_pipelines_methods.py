"""``palimpsest methods``: everything registered, as declared; one method in full; near misses."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from contracts.digests import plain
from contracts.errors import UnknownName
from contracts.methods import NEEDS, REGISTRIES, VIEWS, recipe
from pipelines import catalogue
from pipelines.cli import app as command
from pipelines.cli.app import app

METHODS = [(registry.kind, method) for registry in REGISTRIES for method in registry]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "300")
    return CliRunner()


def test_everything_registered_is_listed_once():
    listed = catalogue.every()
    assert set(listed) == {*(registry.kind for registry in REGISTRIES), "model"}
    for registry in REGISTRIES:
        assert [method["name"] for method in listed[registry.kind]] == list(registry.names())
    assert "mlp" in {model["name"] for model in listed["model"]}


@pytest.mark.parametrize(("kind", "method"), METHODS, ids=[f"{kind}/{m.spec.name}" for kind, m in METHODS])
def test_a_method_is_shown_as_it_is_declared(kind, method):
    [shown] = catalogue.find(f"{kind}/{method.spec.name}")
    spec = method.spec
    assert (shown["kind"], shown["name"], shown["doc"], shown["version"]) == (kind, spec.name, spec.doc, spec.version)
    assert shown["needs"] == {need: NEEDS[need] for need in getattr(spec, "needs", ())}
    assert shown["wants"] == {view: VIEWS[view] for view in getattr(spec, "wants", ())}
    assert json.loads(json.dumps(shown)) == shown, "plain data"
    if config := getattr(spec, "config", None):
        top = {field["name"].split(".")[0] for field in shown["fields"]}
        assert top == {field.name for field in dataclasses.fields(config)}
        required = {field["name"] for field in shown["fields"] if field["required"]}
        values = {field["name"]: field["default"] for field in shown["fields"] if "." not in field["name"]}
        if not required:  # the defaults shown are those of the configuration
            built = config.from_mapping({})
            assert values == {name: plain(getattr(built, name)) for name in values}
    columns = [column["name"] for table in shown["tables"] for column in table["columns"]]
    tables = getattr(spec, "tables", ()) or ([spec.table] if kind == "score" else [])
    assert columns == [column.name for table in tables for column in table.columns]


def test_a_name_of_two_kinds_shows_both_and_a_kind_chooses():
    assert {method["kind"] for method in catalogue.find("quality_pools")} == {"analysis", "curator"}
    assert [method["kind"] for method in catalogue.find("curator/quality_pools")] == ["curator"]


def test_nested_fields_have_their_path_and_references_say_what_they_name():
    [shown] = catalogue.find("leaderboard")
    by_name = {field["name"]: field for field in shown["fields"]}
    assert by_name["search.unlearner"]["names"] == by_name["methods"]["names"] == "a registered unlearner"
    assert by_name["methods"]["type"] == "list of str" and by_name["seeds"]["range"] == ">= 3 and <= 1000"
    [supervised] = catalogue.find("recipe/supervised")
    batch = next(field for field in supervised["fields"] if field["name"] == "batch")
    assert (batch["unit"], batch["range"]) == ("examples", ">= 1 and <= 1e+06")


def test_what_a_recipe_retains_is_shown(monkeypatch, run):
    method = recipe.get("supervised")
    keeps = dataclasses.replace(method, spec=dataclasses.replace(method.spec, retains=("exemplars", "teacher")))
    monkeypatch.setitem(recipe._methods, "supervised", keeps)
    [shown] = catalogue.find("supervised")
    assert shown["declares"]["retains"] == ["exemplars", "teacher"]
    assert '["exemplars", "teacher"]' in run.invoke(app, ["methods", "supervised"]).output


def test_the_command_lists_and_shows_and_speaks_json(run):
    listed = run.invoke(app, ["methods"])
    assert listed.exit_code == 0 and all(method.spec.name in listed.output for _, method in METHODS)
    shown = run.invoke(app, ["methods", "el2n"])
    assert shown.exit_code == 0 and "scores.el2n" in shown.output and "examples a forward pass" in shown.output
    assert set(json.loads(run.invoke(app, ["methods", "--json"]).stdout)) == set(catalogue.every())
    assert json.loads(run.invoke(app, ["methods", "el2n", "--json"]).stdout) == catalogue.find("el2n")


def test_no_name_is_cut_off_and_every_model_says_what_it_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    said = "".join(CliRunner().invoke(app, ["methods", "el2n"]).output.split())
    assert "n_seeds" in said and "…" not in said
    for model in catalogue.every()["model"]:
        assert len(model["doc"]) > 20 and "head of this file" not in model["doc"], model["name"]


@pytest.mark.journey
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["sql"], 0), (["init", "A-B", "--data", "x.csv"], 2)])
def test_a_reader_that_goes_away_changes_no_status(words, status, unbuffered):
    """As in ``palimpsest --help | head -1`` under ``set -o pipefail``: what was asked for ends as it would have."""
    code = f"import sys; sys.argv = ['palimpsest', *{words}]; from pipelines.cli.app import main; main()"
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    ) as running:
        running.stdout.close()
        said = running.stderr.read().decode()
        assert running.wait() == status and ("IllegalName" in said) == bool(status) and "Error:" not in said


def test_an_unknown_name_says_what_is_near_it_with_status_2(run, monkeypatch, capsys):
    with pytest.raises(UnknownName, match=r"unknown method 'el3n' \(near: el2n\); known: .*memorization"):
        catalogue.find("el3n")
    with pytest.raises(UnknownName, match=r"unknown attack 'rmia' \(near: rmia_offline, rmia_online\); known: entropy"):
        catalogue.find("attack/rmia")
    monkeypatch.setattr("sys.argv", ["palimpsest", "methods", "memorisation"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2 and "near: memorization" in capsys.readouterr().err
