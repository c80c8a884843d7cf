"""``palimpsest sql --auditor``: the command around the auditors' door."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from contracts.errors import ConfigError, InvalidInput, NotReady
from pipelines.cli.app import app
from warehouse import Warehouse

pytestmark = pytest.mark.journey


@pytest.fixture
def home(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = Path(shutil.copytree(recorded, tmp_path / "home"))
    monkeypatch.setenv("PALIMPSEST_HOME", str(home))
    return home


def sql(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["sql", *arguments], env={"COLUMNS": "300"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def classes(home: Path) -> list[str]:
    asked = "SELECT class FROM groups WHERE level = 'class' AND split = 'train' ORDER BY class"
    return [row["class"] for row in json.loads(sql("--auditor", asked, "-f", "json"))]


def test_groups_are_asked_and_rows_are_not(home: Path) -> None:
    assert "certificates" in sql("--auditor") and "num_people" in sql("--auditor")
    counted = json.loads(
        sql("--auditor", "SELECT sum(num_examples)::BIGINT AS n FROM groups WHERE level = 'split'", "-f", "json")
    )
    assert counted == [{"n": 178}]
    assert sql("SELECT count(*) AS n FROM data.examples", "-f", "csv") == "n\n178\n"
    for refused, error in (
        (("--auditor", "SELECT * FROM data.examples"), InvalidInput),
        (("--auditor", "--named", "hardest"), ConfigError),
    ):
        with pytest.raises(error):
            sql(*refused)


def test_a_request_is_found_by_the_token_that_its_page_shows(home: Path) -> None:
    w = Warehouse.open(home)
    w.salt()
    shown = CliRunner().invoke(app, ["request", "show", "wine", "r-1"]).stdout
    token = w.request_token("r-1")
    assert token in shown
    rows = json.loads(sql("--auditor", "SELECT request, state FROM requests", "-f", "json"))
    assert rows == [{"request": token, "state": "received"}]
    assert "r-1" not in sql("--auditor", "FROM requests") + sql("--auditor", "FROM request_events")


def test_k_is_that_of_the_operations_file(home: Path) -> None:
    before = classes(home)
    assert len(before) == 3
    sizes = json.loads(sql("--auditor", "SELECT num_examples FROM groups WHERE level = 'class'", "-f", "json"))
    (home / "operations.yaml").write_text(f"auditors: {{k: {min(row['num_examples'] for row in sizes) + 1}}}\n")
    assert len(classes(home)) < 3
    (home / "operations.yaml").write_text("auditors: {k: 2}\n")
    with pytest.raises(NotReady, match=r"nothing can be asked now: \.\.\./operations\.yaml.*k"):
        classes(home)


@pytest.mark.parametrize("how", ["gone", "damaged", "no database"])
def test_what_is_wrong_here_is_said_without_a_path(home: Path, how: str) -> None:
    snapshot = Warehouse.existing(home).snapshot
    if how == "gone":
        snapshot.unlink()
    else:
        data = bytearray(snapshot.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        snapshot.write_bytes(data if how == "damaged" else b"nothing of the kind")
    with pytest.raises(NotReady, match="nothing can be asked now") as caught:
        sql("--auditor", "FROM groups")
    assert str(home) not in str(caught.value) and caught.value.__suppress_context__
