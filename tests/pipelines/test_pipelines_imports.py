"""Checkpoints that were imported into the state: which there are, taking one out, and what an erasure does to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from recorded_state import PLAN
from typer.testing import CliRunner

from contracts.erasure import Action
from contracts.errors import ConfigError, IllegalName, StateError, UnknownName
from contracts.subject import Subject
from pipelines.cli.app import app
from pipelines.cli.imports import store
from pipelines.erasure_plan import Beside, plan
from pipelines.subjects import imported_for, load_subject, write_subject
from warehouse import Warehouse
from warehouse.erasure import Found
from warehouse.verify import verify

pytestmark = pytest.mark.journey


def palimpsest(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def keep(home: Path, name: str, value: float = 1.0) -> None:
    store({"weight": np.full((2, 3), value, np.float32)}, name, file=Path("net.pt"), home=home)


def given(home: Path, subject: str, place: str) -> None:
    body = {**PLAN, "subject": subject, "model": {**PLAN["model"], "checkpoint": place}}  # type: ignore[dict-item]
    write_subject(Subject.from_mapping(body), home, comment="a test")


def test_what_no_plan_names_is_taken_out_and_on_record(home: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2, 3)}, tmp_path / "net.pt")
    palimpsest("import-checkpoint", "net.pt", "--name", "spare")
    palimpsest("import-checkpoint", "net.pt", "--name", "used")
    given(home, "mine", "imported/used")
    said = palimpsest("import-checkpoint", "--list")
    assert "imported/spare" in said and "none" in said and "imported/used" in said and "mine" in said
    with pytest.raises(StateError, match="imported/used is audited by mine"):
        palimpsest("import-checkpoint", "--remove", "used")
    before = Warehouse.open(home).ledger.head().seq
    assert "imported/spare is removed" in palimpsest("import-checkpoint", "--remove", "imported/spare")
    assert (
        not list((home / "artifacts" / "imported").glob("spare*")) and Warehouse.open(home).ledger.head().seq > before
    )
    assert Warehouse.open(home).artifacts.exists("imported/used") and verify(Warehouse.existing(home)).whole
    with pytest.raises(UnknownName, match=r"unknown imported checkpoint 'spare'.*known: used"):
        palimpsest("import-checkpoint", "--remove", "spare")
    with pytest.raises(IllegalName):
        palimpsest("import-checkpoint", "--remove", "../used")


def test_one_that_is_gone_without_the_command_is_still_missed(home: Path) -> None:
    keep(home, "spare")
    w = Warehouse.open(home)
    w.publish()
    w.artifacts.remove("imported/spare")
    (problem,) = verify(Warehouse.existing(home)).problems
    assert "imported/spare is gone" in problem.sentence


def test_killed_between_record_and_file_the_same_command_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from warehouse.artifacts import ArtifactStore

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name in ("spare", "other"):
        keep(home, name)
    with monkeypatch.context() as patch, pytest.raises(BaseException):  # noqa: B017 - the runner makes it SystemExit
        patch.setattr(ArtifactStore, "remove", killed)
        palimpsest("import-checkpoint", "--remove", "spare")
    (problem,) = verify(Warehouse.existing(home)).problems
    assert "--remove spare" in problem.todo
    palimpsest("import-checkpoint", "--remove", "spare")
    assert verify(Warehouse.existing(home)).whole


def test_a_plan_that_cannot_be_read_may_name_it(home: Path) -> None:
    keep(home, "net")
    (home / "subjects" / "odd").mkdir(parents=True)
    (home / "subjects" / "odd" / "defs.yaml").write_text("type: [")
    with pytest.raises(StateError, match="the plan of odd cannot be read"):
        palimpsest("import-checkpoint", "--remove", "net")


def test_a_name_stands_for_one_checkpoint(home: Path, tmp_path: Path) -> None:
    keep(home, "net")
    keep(home, "net")  # the same again changes nothing
    with pytest.raises(ConfigError, match=r"imported/net is another checkpoint already.*--remove net"):
        keep(home, "net", value=2.0)
    assert Warehouse.open(home).artifacts.load("imported/net")[0]["weight"][0, 0] == 1.0
    for words in ((), ("a.pt",), ("--name", "x"), ("a.pt", "--name", "x", "--list"), ("--list", "--remove", "x")):
        with pytest.raises(ConfigError):
            palimpsest("import-checkpoint", *words)
    with pytest.raises(ConfigError, match="where imported checkpoints lie"):
        Subject.from_mapping({**PLAN, "subject": "imported"})


def test_plans_are_read_as_yaml_whatever_else_is_wrong_with_them(home: Path) -> None:
    given(home, "mine", "imported/net")
    path = home / "subjects" / "mine" / "defs.yaml"
    body = yaml.safe_load(path.read_text())
    body["attributes"]["ensemble"] = {"num_models": -1}
    path.write_text(yaml.safe_dump(body))
    with pytest.raises(ConfigError):
        load_subject("mine", home)
    assert imported_for(home) == ({"imported/net": ["mine"]}, [])


@pytest.mark.parametrize(
    ("users", "checkpoint", "action", "words"),
    [
        (["mine"], "imported/net", Action.REMOVE, "cannot be made anew"),
        (["mine", "other"], "imported/net", Action.YOURS, "other name it too"),
        ([], "", Action.YOURS, "nobody here knows what it was trained on"),
        (["other"], "", None, ""),
        (["other"], "/home/me/net.safetensors", Action.YOURS, "cannot be made anew"),
    ],
    ids=["its own", "shared", "nobody's", "another's", "a file elsewhere"],
)
def test_what_an_erasure_does_to_given_models(
    users: list[str], checkpoint: str, action: Action | None, words: str
) -> None:
    found = Found(subject="mine", ids=np.array([5]), assets={"mine/models/target": 1})
    beside = Beside(source="s", subject="mine", checkpoint=checkpoint, imported={"imported/net": users})
    items = [item for item in plan("r1", found, beside) if item.where in ("imported/net", checkpoint)]
    assert [item.action for item in items] == ([] if action is None else [action])
    assert all(
        words in item.why and ("--remove net" in item.why) == (action is Action.YOURS and item.where == "imported/net")
        for item in items
    )
