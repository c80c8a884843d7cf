"""The process that loads once and forks one process a job."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import dagster
import psutil
import pytest
from unlearn_job import JOB

from contracts.errors import JobLost
from contracts.progress import silent
from pipelines import launchers
from pipelines.launchers import _path
from pipelines.worker_host import WorkerHost

pytestmark = pytest.mark.journey

CHAOS = Path(__file__).parents[1] / "chaos"

WORKER = """
import os, signal, sys, time
LOADED_BY = os.getpid()

def prepare():
    print("a library says something")

def main(path):
    what = path.read_text()
    print(LOADED_BY, os.getpid(), os.environ.get("ONE"), os.environ.get("TWO"), os.getcwd(), flush=True)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raises":
        raise RuntimeError("mat1 and mat2 do not fit")
    if what == "ends":
        sys.exit(3)
    if what == "long":
        time.sleep(60)
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerHost]:
    (tmp_path / "a_worker.py").write_text(WORKER)
    monkeypatch.setenv("ONE", "1")
    monkeypatch.chdir(tmp_path)
    made = WorkerHost("a_worker", f"{_path()}{os.pathsep}{tmp_path}")
    yield made
    made.close()


def begin(host: WorkerHost, tmp_path: Path, what: str, **env: str) -> tuple[int, Path]:
    job, words = tmp_path / f"{what}.json", tmp_path / f"{what}.txt"
    job.write_text(what)
    return host.fork(job, env=env, stderr=words), words


def ended(host: WorkerHost) -> int:
    while (status := host.status(0.05)) is None:
        pass
    return status


def test_jobs_are_processes_of_their_own_forked_from_one_that_has_loaded(host: WorkerHost, tmp_path: Path) -> None:
    said = []
    for what, env in (("first", {"TWO": "2"}), ("second", {"ONE": "one"})):
        pid, words = begin(host, tmp_path, what, **env)
        assert ended(host) == 0
        loaded_by, own, *rest = words.read_text().split()
        assert int(own) == pid != int(loaded_by)
        said.append((loaded_by, own, *rest))
    (first, own, *rest), (second, other, *others) = said
    assert first == second and own != other, "loaded once"
    assert rest == ["None", "2", str(tmp_path)] and others == ["one", "None", str(tmp_path)], "its environment alone"


@pytest.mark.parametrize(("what", "status"), [("killed", -signal.SIGKILL), ("raises", 1), ("ends", 3), ("fine", 0)])
def test_it_says_how_a_job_ended_and_takes_the_next(host: WorkerHost, tmp_path: Path, what: str, status: int) -> None:
    _, words = begin(host, tmp_path, what)
    assert ended(host) == status
    assert what != "raises" or words.read_text().splitlines()[-1] == "RuntimeError: mat1 and mat2 do not fit"
    begin(host, tmp_path, "next")
    assert ended(host) == 0


def test_a_job_outlives_its_host(host: WorkerHost, tmp_path: Path) -> None:
    pid, words = begin(host, tmp_path, "long")
    while not words.exists() or not words.read_text():
        time.sleep(0.02)
    loader = psutil.Process(int(words.read_text().split()[0]))
    host.close()
    job = psutil.Process(pid)
    assert not loader.is_running() and job.is_running()
    job.kill()


def test_a_host_that_is_gone_is_said_and_is_none(host: WorkerHost, tmp_path: Path) -> None:
    path = f"{_path()}{os.pathsep}{tmp_path}"
    assert host.serves("a_worker", path) and not host.serves("a_worker", _path()) and not host.serves("other", path)
    _, words = begin(host, tmp_path, "long")
    while not words.exists() or not words.read_text():
        time.sleep(0.02)
    loader, job = map(int, words.read_text().split()[:2])
    os.kill(loader, signal.SIGKILL)
    with pytest.raises(JobLost, match="killed by SIGKILL"):
        ended(host)
    os.kill(job, signal.SIGKILL)
    assert not host.serves("a_worker", path)


def test_what_cannot_be_loaded_is_quoted(tmp_path: Path) -> None:
    host = WorkerHost("no_such_worker", _path())
    with pytest.raises(JobLost, match="No module named 'no_such_worker'"):
        begin(host, tmp_path, "any")
    host.close()


@pytest.fixture
def sigterm_ignored() -> Iterator[None]:
    """As in a script's background, where Dagster lets the signal be ignored."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm_ignored")
def test_a_launcher_that_was_interrupted_ends_its_job_and_can_run_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = SimpleNamespace(get_bootstrap_env_vars=dict)
    monkeypatch.setattr(dagster, "open_pipes_session", lambda **_: nullcontext(session))
    monkeypatch.setattr(launchers, "WORKER", "slow_worker")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CHAOS), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("SLOW_S", "60")
    folder, log = tmp_path / "jobs" / JOB.job_id, tmp_path / "at-work.txt"
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text('{"done": 0, "total": 1, "what": "at work"}')

    def interrupt(*_: object) -> None:
        if log.exists():
            raise KeyboardInterrupt

    launcher = launchers.PipesLauncher()
    context = SimpleNamespace(log=logging.getLogger("test"), run=SimpleNamespace(run_id="r"))
    with pytest.raises(KeyboardInterrupt):
        launcher.run(JOB, home=tmp_path, context=context, progress=interrupt)
    assert launchers.process_of(folder) is None, "it has ended"
    monkeypatch.setenv("SLOW_S", "0")
    launcher.run(JOB, home=tmp_path, context=context, progress=silent)
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["begins", "begins", "ends"]


AFTER_A_FORK = """
import os
from pipelines.worker import prepare

prepare()
pid = os.fork()
if not pid:
    import polars as pl
    import torch

    torch.set_num_threads(2)
    assert float((torch.ones(800, 800) @ torch.ones(800, 800)).sum()) == 800.0**3
    frame = pl.DataFrame({"k": [i % 7 for i in range(100_000)], "v": list(range(100_000))})
    assert frame.group_by("k").agg(pl.col("v").sort().sum())["v"].sum() == 4_999_950_000
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_what_the_real_worker_loads_leaves_pools_of_threads_to_its_jobs() -> None:
    """A pool that runs before a fork is not there after it, and whoever waits for it waits for ever."""
    env = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": _path()}
    done = subprocess.run(
        [sys.executable, "-P", "-c", AFTER_A_FORK], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["7"], done.stderr
