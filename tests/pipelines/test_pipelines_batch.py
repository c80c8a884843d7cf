"""Many forget requests in one process: in order, on one audit, each by itself, and one that fails alone."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import erasure_world as world
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import assets.batch
import sources.plan
from assets import Workspace, subject_stages
from assets.request_rows import pins, resolve
from assets.stage import materialize
from contracts import schema
from contracts.errors import ConfigError, DataError, JobFailed
from contracts.requests import ForgetRequest, RequestState
from contracts.subject import Subject
from pipelines import batch, build, erasure
from pipelines.batch import waiting, work_off
from pipelines.build import PRIORITY, REQUEST_TAG, deadline_class, request_partitions, request_tick
from pipelines.cli import audit, requests
from pipelines.cli.app import app
from recipes.training import Trainer
from warehouse import connection

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def listed(**changes: Any) -> dict[str, Any]:
    return {"state": "verified", "selector": "ids", "received_at": NOW - 9 * DAY, "due_at": NOW + 20 * DAY} | changes


def test_the_most_urgent_class_comes_first_and_within_it_who_asked_first() -> None:
    rows = {
        "late": listed(),
        "early": listed(received_at=NOW - 10 * DAY, due_at=NOW + 25 * DAY),  # extended: first come, first served still
        "soon": listed(due_at=NOW + 6 * DAY, received_at=NOW - DAY),
        "sooner": listed(due_at=NOW + 5 * DAY, received_at=NOW),
        "missed": listed(due_at=NOW - DAY, received_at=NOW - DAY / 2),
        "twin": listed(),
        "half-way": listed(state="executed", received_at=NOW - 8 * DAY),
        "new": listed(state="received"),
        "done": listed(state="audited", due_at=NOW - DAY),
        "held": listed(state="on_hold", due_at=NOW - DAY),
        "concept": listed(selector="concept"),
    }
    frame = pl.DataFrame([{"request_id": name, **row} for name, row in rows.items()])
    wanted = ["missed", "soon", "sooner", "early", "late", "twin", "half-way"]
    assert waiting(frame, now=NOW) == wanted
    assert waiting(frame.reverse(), now=NOW) == wanted, "the order of the register does not matter"


@pytest.mark.parametrize(("left", "wanted"), [(-1, 0), (0, 1), (7 * 86_400 - 1, 1), (7 * 86_400, 2)])
def test_classes_end_to_the_second(left: int, wanted: int) -> None:
    assert deadline_class(NOW + timedelta(seconds=left), now=NOW) == wanted


def test_the_sensor_starts_runs_in_that_order_and_says_their_class_to_the_queue() -> None:
    now = datetime.now(UTC)
    dues = {"later": now + 20 * DAY, "missed": now - DAY, "soon": now + 3 * DAY}
    rows = [{"request_id": name, **listed(due_at=due, num_examples=1)} for name, due in dues.items()]
    together: list[list[str]] = []
    register = SimpleNamespace(
        list=lambda subject: pl.DataFrame(rows),
        get=lambda name: SimpleNamespace(state=RequestState.VERIFIED, num_examples=4),
        together=together.append,
    )
    found = request_tick(
        SimpleNamespace(warehouse=SimpleNamespace(requests=register, num_training=lambda subject: 50)),  # type: ignore[arg-type]
        "mine",
        request_partitions("mine"),
        instance=SimpleNamespace(get_runs=lambda filters: []),  # type: ignore[arg-type]
    )
    assert together == [["missed", "soon"], ["later"]], "ten of fifty at most"
    assert isinstance(found, dg.SensorResult)
    asked = [(run.partition_key, run.tags[PRIORITY]) for run in found.run_requests or []]
    assert asked == [("missed", "0"), ("soon", "-1"), ("later", "-2")]


@pytest.fixture
def workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    copied = Path(shutil.copytree(finished / "state", tmp_path / "state"))
    monkeypatch.setenv("PALIMPSEST_HOME", str(copied))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Workspace(copied, launcher=world.Here(), publish_every_s=1e9)


def add(workspace: Workspace, plan: Subject, name: str, *rows: int, verified: bool = True) -> np.ndarray:
    """Register a request for training examples by their places; their ids."""
    data, w = workspace.examples(plan), workspace.warehouse
    ids = np.sort(data.example_id[data.split == "train"])[list(rows)]
    request = ForgetRequest(request_id=name, subject="mine", selector="ids", ids=tuple(ids.tolist()), **world.WHEN)
    w.requests.add(request, pins=pins(data, resolve(request, data, w), w.salt()))
    if verified:
        w.requests.advance(name, RequestState.VERIFIED, note="a test")
    return ids


def refuse(name: str) -> list[str]:
    raise DataError(f"{name} has changed")


def test_one_that_fails_is_noted_and_the_others_go_on(
    workspace: Workspace, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, asked = world.plan_of(finished), []
    w = workspace.warehouse
    for name, rows, verified in (("r2", (0,), True), ("r3", (1,), True), ("r4", (2,), False), ("r5", (3, 4), True)):
        add(workspace, plan, name, *rows, verified=verified)

    recorded: list[audit.Recording] = []

    def run_subject(plan: Subject, home: Path, *, job: str, request: str = "", **_: Any) -> None:
        asked.append(request or job)
        with audit.recording(home) as one:
            recorded.append(one)
        if request == "r3":
            raise JobFailed("it failed")
        if request:
            w.artifacts.save_json(
                f"mine/request_reports/{request}/audit.json", {"verdict": "pass", "sentence": "Gone."}
            )

    monkeypatch.setattr(audit, "run_subject", run_subject)
    told: list[Any] = []
    found = work_off(plan, workspace, ["r2", "r3", "r4", "r5"], done=told.append)
    assert asked == ["audit", "r2", "r3", "r5"], "one audit for all; what may not be run is not"
    assert len(set(map(id, recorded))) == 1, "Dagster is opened once for all of them"
    assert {one.request_id: one.ended for one in found} == {"r4": "failed", "r2": "pass", "r3": "failed", "r5": "pass"}
    assert found == told and "only a verified request is run" in found[0].sentence
    assert "failed" in w.requests.get("r3").events["note"].to_list()[-1]
    assert "failed" not in " ".join(w.requests.get("r2").events["note"].to_list())
    monkeypatch.setattr("pipelines.subjects.load_subject", lambda name, home: plan)
    monkeypatch.setattr(audit, "workspace_of", lambda home: workspace)
    monkeypatch.setattr(
        requests, "would_run", lambda plan, workspace, name: {"r2": ["2 stages"]}.get(name) or refuse(name)
    )
    head, said = w.ledger.head(), CliRunner().invoke(app, ["request", "run", "mine", "--all-due", "--dry-run"])
    assert said.exit_code == 0 and "2 stages" in said.output and "cannot be run: r5 has changed" in said.output
    assert w.ledger.head() == head
    assert work_off(plan, workspace, []) == [] and asked == ["audit", "r2", "r3", "r5"]


def test_one_id_or_all_and_the_end_says_the_worst(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (("mine",), ("mine", "r1", "--all-due")):
        assert isinstance(CliRunner().invoke(app, ["request", "run", *given]).exception, ConfigError)
    said = CliRunner().invoke(app, ["request", "run", "mine", "--all-due"])
    assert said.exit_code == 0 and "no verified forget request of mine is waiting" in said.output
    monkeypatch.setattr(batch, "waiting", lambda *_, **__: ["a", "b"])
    for ends, code in (
        (("pass", ""), 0),
        (("pass", "inconclusive"), 1),
        (("fail", "pass"), 1),
        (("failed", "fail"), 2),
    ):
        worked = [batch.Worked(name, end, "") for name, end in zip("ab", ends, strict=True)]
        monkeypatch.setattr(batch, "work_off", lambda *_, worked=worked, **__: worked)
        assert CliRunner().invoke(app, ["request", "run", "mine", "--all-due"]).exit_code == code


@pytest.mark.parametrize("each", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.journey
@pytest.mark.promise("D9")
def test_what_many_name_is_removed_at_once_and_each_is_audited_and_certified_by_itself(
    workspace: Workspace, finished: Path, monkeypatch: pytest.MonkeyPatch, each: bool
) -> None:
    world.without_checks_and_pictures(monkeypatch)
    plan, w = world.plan_of(finished), workspace.warehouse
    loads: list[str] = []
    load, many = sources.plan.load_examples, Trainer.many
    monkeypatch.setattr(sources.plan, "load_examples", lambda subject: loads.append(subject.subject) or load(subject))
    trainings: list[int] = []
    monkeypatch.setattr(
        Trainer, "many", lambda self, *a, **k: trainings.append(len(k["members"])) or many(self, *a, **k)
    )
    sessions: list[Any] = []
    built: list[Any] = []
    opened, definitions = connection.opened, build.subject_definitions
    monkeypatch.setattr(connection, "opened", lambda *a, **k: sessions.append(a) or opened(*a, **k))
    monkeypatch.setattr(build, "subject_definitions", lambda plan: built.append(plan) or definitions(plan))
    rows = {"r2": (0, 1), "r3": (5,), "r4": (1, 7)}
    ids = {name: add(workspace, plan, name, *places) for name, places in rows.items()}
    jobs = set((workspace.home / "jobs").iterdir())
    sessions.clear()
    found = work_off(plan, workspace, waiting(w.requests.list("mine"), now=NOW), each=each)
    num_stages = len(rows) * sum(stage.per_request for stage in subject_stages(plan))
    assert len(sessions) / num_stages < 8, "of the warehouse, for all that a stage and its request ask"
    assert len(built) == 1, "one set of definitions serves the audit and all requests"
    assert [one.request_id for one in found] == ["r2", "r3", "r4"] and not any(one.ended == "failed" for one in found)
    assert loads == ["mine"], "the data are read once"
    made = len(set((workspace.home / "jobs").iterdir()) - jobs)
    assert (made, len(trainings)) == ((9, 3) if each else (3, 1)), "three methods, and the retrainings"
    issued = w.read(schema.CERTIFICATES, subject="mine").filter(pl.col("request_id").is_in(list(rows)))
    assert sorted(issued["request_id"]) == list(rows) and issued["sha256"].n_unique() == 3
    together = np.unique(np.concatenate(list(ids.values())))
    for name, own in ids.items():
        assert w.requests.get(name).state in (RequestState.AUDITED, RequestState.CLOSED)
        assert w.requests.get(name).num_examples == len(own)
        scope, _ = w.artifacts.load(f"mine/request_curation/{name}/split/result")
        removed, meta = w.artifacts.load(f"mine/request_unlearning/{name}/retrain/result")
        assert scope["forget"].tolist() == removed["forget"].tolist() == own.tolist(), "its own rows and no others"
        gone = own if each else together
        assert not np.isin(scope["retain"], gone).any() and len(scope["retain"]) == 160 - len(gone)
        assert [run["num_forget"] for run in meta["runs"]] == [len(own)]
        judged = w.read(schema.AGAINST_RETRAINING, subject="mine", partition={"audited": f"{name}/finetune"})
        assert judged["num_examples"].to_list() == [len(own)]
    with dg.DagsterInstance.get() as instance:
        runs = {name: instance.get_runs(dg.RunsFilter(tags={REQUEST_TAG: name})) for name in ids}
        assert all(len(found) == 1 for found in runs.values())
        assert runs["r2"][0].run_id != runs["r3"][0].run_id
    if each:
        return
    shas = {name: sha for name, sha in world.artifacts_of(w).items() if "/r4/" in name and name.endswith("/result")}
    again = anew(workspace, plan, "r4", monkeypatch)
    assert {name: sha for name, sha in again.items() if name in shas} == shas, "bit for bit what jobs of its own give"
    erased_one_by_one(workspace, plan, ids)


def anew(workspace: Workspace, plan: Subject, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The artefacts after a request's models were made again, none of them found at another's."""
    with monkeypatch.context() as patch:
        patch.setattr(assets.batch, "_others", lambda run: iter(()))
        for artifact in list(workspace.warehouse.artifacts.names(f"mine/request_unlearning/{name}")):
            workspace.warehouse.artifacts.remove(artifact)
        for stage in subject_stages(plan):
            if stage.per_request:
                materialize(stage, workspace, run_id="again", request=name, context=None)
    return world.artifacts_of(workspace.warehouse)


def erased_one_by_one(workspace: Workspace, plan: Subject, ids: dict[str, np.ndarray]) -> None:
    """What is shared is no way around an erasure: nothing of an erased one is left at the others'."""
    w = workspace.warehouse
    for name, own in ids.items():
        erasure.execute(plan, workspace, name)
        left = w.erasures.found("mine", own)
        assert not any(left.assets.values()), left.assets
        for other in set(ids) - {name}:
            for stage in ("retrain", "finetune", "none", "retrainings"):
                kept, _ = w.artifacts.load(f"mine/request_unlearning/{other}/{stage}/result")
                others = np.setdiff1d(own, ids[other])
                assert not np.isin(kept["example_id"], others).any(), (name, other, stage)
                assert kept.get("signal", kept["example_id"][None]).shape[1] == len(kept["example_id"])


@pytest.mark.slow
@pytest.mark.timeout(3600)  # two seconds each on a machine of its own: their audits, not their unlearning
@pytest.mark.promise("D9")
def test_fifty_are_removed_by_two_unlearnings_in_their_order(
    workspace: Workspace, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.without_checks_and_pictures(monkeypatch)
    plan, w = world.plan_of(finished), workspace.warehouse
    names = [f"p{k:02d}" for k in range(50)]
    for k, name in enumerate(names):
        add(workspace, plan, name, k)
    jobs, told = set((workspace.home / "jobs").iterdir()), []
    found = work_off(plan, workspace, waiting(w.requests.list("mine"), now=NOW), note=told.append)
    assert [one.request_id for one in found] == names and not any(one.ended == "failed" for one in found)
    assert len(told) == 2 and told[0].startswith("32 requests") and told[1].startswith("18 requests")
    assert len(set((workspace.home / "jobs").iterdir()) - jobs) == 2 * 3, "three methods a batch"
    issued = w.read(schema.CERTIFICATES, subject="mine").filter(pl.col("request_id").is_in(names))
    assert sorted(issued["request_id"]) == names and issued["sha256"].n_unique() == 50
