"""Jobs are adopted or read, never doubled; runs of dead processes are ended; a recycled pid fools nobody."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import numpy as np
import psutil
import pytest
from dagster import DagsterRunStatus
from in_process import InProcess
from recorded_state import PLAN
from unlearn_job import JOB

from assets import Workspace
from contracts.digests import canonical_json, digest, plain
from contracts.errors import JobFailed, JobLost
from contracts.jobs import UnlearnJob
from contracts.progress import silent
from contracts.subject import Subject
from pipelines import launchers
from pipelines.build import audit_job_name, subject_definitions
from pipelines.launchers import PipesLauncher, boot_id
from pipelines.reaper import BOOT, PID, STARTED, reap, run_tags
from warehouse import ArtifactStore, fsio

pytestmark = pytest.mark.journey

CONTEXT = SimpleNamespace(log=logging.getLogger("test"), run=SimpleNamespace(run_id="a-run"))


def _finish(home: Path, job: UnlearnJob = JOB) -> None:
    ArtifactStore(home / "artifacts").save(
        job.output, {"logits": np.zeros((1, 2, 2), np.float32)}, {"job": digest(job)}
    )


def _record(home: Path, pid: int, started: float, boot: str) -> None:
    folder = home / "jobs" / JOB.job_id
    folder.mkdir(parents=True)
    fsio.write_bytes(folder / "record.json", canonical_json({"pid": pid, "started": started, "boot_id": boot}).encode())


@pytest.fixture
def no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a second process was started")

    monkeypatch.setattr(PipesLauncher, "_start", refuse)


@pytest.mark.filterwarnings("ignore::dagster.PreviewWarning")
def test_a_job_runs_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path))
    plan = Subject.from_mapping(
        {
            **PLAN,
            "splits": [{"name": "random", "method": "random_fraction", "config": {"fraction": 0.2}}],
            "unlearning": {"split": "random", "methods": [], "seeds": 1},
        }
    )
    resources = {"workspace": dg.ResourceDefinition.hardcoded_resource(Workspace(tmp_path, launcher=PipesLauncher()))}
    definitions = dg.Definitions.merge(subject_definitions(plan), dg.Definitions(resources=resources))
    made = [("data", "examples"), ("models", "target"), ("curation", "random"), ("unlearning", "none")]
    with dg.DagsterInstance.ephemeral() as instance:
        done = definitions.resolve_job_def(audit_job_name(plan.subject)).execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey([plan.subject, *path]) for path in made]
        )
    assert done.success
    (folder,) = (tmp_path / "jobs").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert record["pid"] != os.getpid() and record["run_id"] == done.run_id and not psutil.pid_exists(record["pid"])
    assert ArtifactStore(tmp_path / "artifacts").exists(f"{plan.subject}/unlearning/none/result")


def test_what_stands_beside_the_set_is_removed_with_it_and_not_measured(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(shutil.copytree(recorded, tmp_path / "home"))
    monkeypatch.setenv("PALIMPSEST_HOME", str(home))
    plan, store = Subject.from_mapping(PLAN), ArtifactStore(home / "artifacts")
    data = Workspace(home, launcher=PipesLauncher()).examples(plan)
    train = np.sort(data.example_id[data.split == "train"])
    ours, others = train[:6], train[6:20]
    sets = {
        "batch": {"forget": ours, "beside": others, "retain": train[20:]},
        "whole": {"forget": train[:20], "retain": train[20:]},
        "alone": {"forget": ours, "retain": train[20:]},
    }
    found = {}
    for name, ids in sets.items():
        members, target = f"wine/{name}/members", "wine/models/target/weights"
        sha = store.save(members, ids, {}).sha256
        job = UnlearnJob.from_mapping(
            plain(JOB)
            | {"subject": plain(plan), "data_version": data.digest, "method": {"name": "gradient_ascent"}}
            | {"target": target, "target_sha256": store.sha256(target), "inputs": {}}
            | {"members": members, "members_sha256": sha, "output": f"wine/{name}/result"}
        )
        InProcess().run(job, home=home, context=CONTEXT, progress=silent)
        found[name] = store.load(job.output)
    weights = {name: {k: v for k, v in arrays.items() if k[0].isdigit()} for name, (arrays, _) in found.items()}
    same = {name: all(np.array_equal(v, weights["batch"][k]) for k, v in w.items()) for name, w in weights.items()}
    assert same == {"batch": True, "whole": True, "alone": False}
    arrays, meta = found["batch"]
    assert arrays["forget"].tolist() == ours.tolist() and {row["num_forget"] for row in meta["runs"]} == {6}
    assert arrays["non_member"].shape == (1, 6)


def test_a_finished_job_is_read_not_run(tmp_path: Path, no_start: None) -> None:
    _finish(tmp_path)
    PipesLauncher().run(JOB, home=tmp_path, context=CONTEXT, progress=silent)


@pytest.mark.promise("A6")
def test_a_running_job_is_adopted(tmp_path: Path, no_start: None) -> None:
    code = (
        "import sys, time; time.sleep(1.0)\n"
        "from pathlib import Path; import numpy as np; from warehouse import ArtifactStore\n"
        "ArtifactStore(Path(sys.argv[1])).save(sys.argv[2], {'logits': np.zeros((1, 2, 2), np.float32)}, {'job': "
        "sys.argv[3]})"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "artifacts"), JOB.output, digest(JOB)])
    try:
        _record(tmp_path, child.pid, psutil.Process(child.pid).create_time(), boot_id())
        PipesLauncher().run(JOB, home=tmp_path, context=CONTEXT, progress=silent)
    finally:
        child.wait(60)
    assert ArtifactStore(tmp_path / "artifacts").exists(JOB.output)


@pytest.mark.promise("A6")
def test_a_worker_waits_for_the_one_at_work_and_then_has_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its starter had died before it wrote a record, so a second worker was started."""
    from pipelines import worker

    folder = tmp_path / "jobs" / JOB.job_id
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(canonical_json(JOB))
    pipes = SimpleNamespace(log=logging.getLogger("test"))
    ran: list[str] = []
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path))
    monkeypatch.setattr(worker, "open_dagster_pipes", lambda: nullcontext())
    monkeypatch.setattr(worker, "PipesContext", SimpleNamespace(get=lambda: pipes))
    monkeypatch.setattr(worker, "run_job", lambda *_, **__: (ran.append("ran"), {"runs": []})[1])
    second = threading.Thread(target=worker.main, args=(folder / "job.json",))
    with fsio.locked_folder(folder):
        second.start()
        second.join(0.3)
        assert second.is_alive() and ran == []
        _finish(tmp_path)
    second.join(30)
    assert not second.is_alive() and ran == []


@pytest.mark.parametrize(("shift", "boot"), [(100.0, None), (0.0, "another boot")])
def test_a_recycled_pid_is_not_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float, boot: str | None
) -> None:
    me = psutil.Process()
    _record(tmp_path, me.pid, me.create_time() - shift, boot or boot_id())
    started = []
    monkeypatch.setattr(PipesLauncher, "_start", lambda *a: (started.append(1), _finish(tmp_path)))
    PipesLauncher().run(JOB, home=tmp_path, context=CONTEXT, progress=silent)
    assert started == [1]


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [(1, JobFailed, "RuntimeError: mat1 and mat2 do not fit (nets.py, line 3)"), (-9, JobLost, "killed by SIGKILL")],
)
def test_a_worker_that_ends_without_a_result_is_quoted_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[JobFailed], said: str
) -> None:
    def start(self: object, folder: Path, *_: object) -> int:
        (folder / "stderr.txt").write_text(
            "Traceback (most recent call last):\n  ...\n\nRuntimeError: mat1 and mat2 do not fit (nets.py, line 3)\n"
        )
        return status

    monkeypatch.setattr(PipesLauncher, "_start", start)
    with pytest.raises(kind) as failed:
        PipesLauncher().run(JOB, home=tmp_path, context=CONTEXT, progress=silent)
    assert said in str(failed.value) and "Traceback" not in str(failed.value) and "\n" not in str(failed.value)
    assert type(failed.value) is kind


def test_another_jobs_result_is_not_taken(tmp_path: Path) -> None:
    other = UnlearnJob.from_mapping({**json.loads(canonical_json(JOB)), "seeds": [2]})
    _finish(tmp_path, other)
    assert JOB.job_id != other.job_id
    assert not launchers.finished(JOB, tmp_path) and launchers.finished(other, tmp_path)


@pytest.mark.promise("A5")
def test_the_reaper_ends_runs_of_dead_processes_only() -> None:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def empty() -> None:
        nothing()

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = psutil.Process(child.pid)
    dead = {PID: str(child.pid), STARTED: f"{process.create_time():.2f}", BOOT: boot_id()}
    with dg.instance_for_test() as instance:
        runs = {
            name: instance.create_run_for_job(empty, status=DagsterRunStatus.STARTED, tags=tags)
            for name, tags in {"dead": dead, "alive": run_tags(), "daemon": {}}.items()
        }
        assert reap(instance, note=lambda _: None) == []
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        time.sleep(0.05)
        notes: list[str] = []
        assert reap(instance, note=notes.append) == [runs["dead"].run_id]
        states = {name: instance.get_run_by_id(run.run_id).status for name, run in runs.items()}
    assert states == {
        "dead": DagsterRunStatus.FAILURE,
        "alive": DagsterRunStatus.STARTED,
        "daemon": DagsterRunStatus.STARTED,
    }
    assert "finished stages are kept" in notes[0]


@pytest.mark.promise("A5")
@pytest.mark.parametrize(
    ("case", "reaped"),
    [("gone", True), ("recycled", True), ("before the boot", True), ("alive", False), ("silent", False)],
)
def test_runs_of_a_daemon_are_known_by_the_pid_that_they_reported(
    case: str, reaped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def empty() -> None:
        nothing()

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with dg.instance_for_test() as instance:
        run = instance.create_run_for_job(empty, status=DagsterRunStatus.STARTED)
        if case == "recycled":  # the process that has this pid now began long after the event
            monkeypatch.setattr("pipelines.reaper._LATER_S", -1000.0)
        if case == "before the boot":
            monkeypatch.setattr(psutil, "boot_time", lambda: time.time() + 3600)
        if case != "silent":
            instance.report_engine_event(f"Started process for run (pid: {child.pid}).", run)
        if case in ("gone", "silent"):
            child.kill()
            child.wait(10)
        assert reap(instance, note=lambda _: None) == ([run.run_id] if reaped else [])
    child.kill()
    child.wait(10)
