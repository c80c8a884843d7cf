"""A forget request that names a concept: registered, listed and shown like any other; not run where nothing can remove
one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from assets.request_concepts import lacking
from assets.request_rows import resolve
from contracts.errors import ConfigError, InvalidInput, NotApplicable, StateError
from contracts.methods import unlearner
from contracts.requests import ForgetRequest, RequestState
from contracts.schema import REGISTER
from contracts.subject import Subject
from pipelines.build import request_partitions, request_tick
from pipelines.cli import app as command
from pipelines.cli.app import app
from pipelines.cli.audit import workspace_of
from pipelines.subjects import write_subject
from warehouse import Warehouse
from warehouse.verify import verify

PLAN = {
    "subject": "vines",
    "source": {"name": "sklearn", "config": {"dataset": "wine", "test_fraction": 0.4}},
    "model": "mlp",
    "recipe": "supervised",
    "splits": [{"name": "random", "method": "random_fraction"}],
    "unlearning": {"methods": ["finetune"], "seeds": 1},
}
WORDS = ("--concept", "Van Gogh", "--alias", "Vincent", "--alias", "VG", "--anchor", "a painter", "--keep", "Monet")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path))
    write_subject(Subject.from_mapping(PLAN), tmp_path, comment="a test")
    return tmp_path


def palimpsest(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_concept_is_registered_listed_and_shown(home: Path) -> None:
    said = " ".join(palimpsest("request", "add", "vines", *WORDS, "--id", "r1").split())
    assert "aliases Vincent, VG" in said and "none of the unlearning methods of vines takes concepts" in said
    w = Warehouse.open(home)
    entry = w.requests.get("r1")
    found = entry.request.concept
    assert found is not None and not entry.request.names_rows
    assert (found.name, found.aliases, found.anchor, found.keep) == (
        "Van Gogh",
        ("Vincent", "VG"),
        "a painter",
        ("Monet",),
    )
    assert entry.state is RequestState.VERIFIED and entry.num_examples is None and not w.requests.pins("r1").height
    listed = palimpsest("request", "list", "vines")
    assert "r1" in listed and "concept" in listed
    shown = palimpsest("request", "show", "vines", "r1")
    assert "concept  Van Gogh" in shown and "keep  Monet" in shown and "verified" in shown
    assert verify(w).whole


def test_a_run_says_what_is_missing_and_leaves_everything_as_it_was(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    palimpsest("request", "add", "vines", *WORDS, "--id", "r1")
    w = Warehouse.open(home)
    before = (w.ledger.head(), w.requests.get("r1").events.height)
    monkeypatch.setattr("sys.argv", ["palimpsest", "request", "run", "vines", "r1"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    said = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 2
    assert "NotApplicable: request r1 asks to forget the concept 'Van Gogh': none of the unlearning methods" in said
    assert "listed: finetune; registered ones that do: none" in said and "stands as it was" in said
    assert (w.ledger.head(), w.requests.get("r1").events.height) == before
    with pytest.raises(StateError, match="verified"):
        palimpsest("request", "add", "vines", *WORDS, "--id", "r2", "--unverified")
        palimpsest("request", "run", "vines", "r2")


def test_what_is_lacking_depends_on_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Subject.from_mapping(PLAN)
    assert "has no unlearning" in lacking(dataclasses.replace(plan, unlearning=None))
    method = unlearner.get("finetune")
    able = dataclasses.replace(method, spec=dataclasses.replace(method.spec, concepts=True))
    monkeypatch.setitem(unlearner._methods, "finetune", able)
    assert "method in use of vines, retrain, takes no concepts (registered ones that do: finetune)" in lacking(plan)
    in_use = Subject.from_mapping({**PLAN, "unlearning": {"methods": ["finetune"], "decides": "finetune"}})
    assert lacking(in_use) == ""


def test_the_sensor_starts_no_run_for_a_concept(home: Path) -> None:
    palimpsest("request", "add", "vines", *WORDS, "--id", "r1")
    with dg.DagsterInstance.ephemeral() as instance:
        tick = request_tick(workspace_of(home), "vines", request_partitions("vines"), instance=instance)
    assert isinstance(tick, dg.SkipReason) and "r1" in str(tick.skip_message)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--concept", "a", "--ids", "3"), "exactly one of"),
        (("--ids", "3", "--alias", "b"), "go with --concept"),
        (("--concept", " "), "is empty"),
        (("--concept", "a", "--alias", "A"), "hold a word twice"),
        (("--concept", "a", "--keep", "A"), "cannot be kept"),
        (("--concept", "a", "--anchor", "a"), "cannot be kept or be the anchor"),
    ],
)
def test_nonsense_is_refused_and_not_on_the_register(home: Path, given: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        palimpsest("request", "add", "vines", *given, "--id", "r1")
    assert not Warehouse.open(home).requests.list("vines").height


def test_a_concept_names_no_rows(home: Path) -> None:
    palimpsest("request", "add", "vines", *WORDS, "--id", "r1")
    workspace = workspace_of(home)
    plan, request = Subject.from_mapping(PLAN), workspace.warehouse.requests.get("r1").request
    with pytest.raises(InvalidInput, match="names no rows but the concept 'Van Gogh'"):
        resolve(request, workspace.examples(plan), workspace.warehouse)
    from assets.request_closing import refuse_left_in_source
    from assets.requests import refuse_concept

    with pytest.raises(StateError, match="names a concept"):
        refuse_left_in_source("r1", plan, workspace)
    with pytest.raises(NotApplicable):
        refuse_concept(request, plan)


def test_requests_for_rows_keep_the_record_they_had(home: Path) -> None:
    """The digest of a request is in the ledger: one from before there were concepts must still be what its row says."""
    rows = {"request_id": "r9", "subject": "vines", "selector": "ids", "ids": [3]}
    times = {"received_at": "2026-01-01T00:00:00+00:00", "due_at": "2026-02-01T00:00:00+00:00"}
    request = ForgetRequest.from_mapping({**rows, **times})
    w = Warehouse.open(home)
    w.requests.add(request)
    w.requests.advance("r9", RequestState.VERIFIED)
    stored = json.loads(w.read(REGISTER, subject="vines")["request"][0])
    assert "concept" not in stored and ForgetRequest.from_mapping(stored) == request
    assert request.digest() == "ad6a7683da7ff6370f1ee00858472d8d0f7a138f71ba43b5bed4b5eb7e61a30a"
    w.publish()
    assert verify(w).whole, verify(w).problems
