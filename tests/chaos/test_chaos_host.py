"""A host that dies: daemon, code server, run and step at once. After the restart the run is ended, its slot is free,
and the retry does the work once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster import DagsterRunStatus

from pipelines.home import ROOT
from warehouse import Warehouse

pytestmark = [pytest.mark.chaos, pytest.mark.promise("A5")]
DEFS = Path(__file__).with_name("host_defs.py")


class Host:
    """The processes of a machine that runs Dagster's daemon."""

    def __init__(self, env: dict[str, str], log: Path) -> None:
        self._env, self._log = env, log
        self.daemon: subprocess.Popen[bytes] | None = None

    def dagster(self, *words: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", *words, "-f", str(DEFS)]
            return subprocess.Popen(command, env=self._env, stdout=log, stderr=log, start_new_session=True)

    def boot(self) -> None:
        self.daemon = self.dagster("dagster._daemon", "run")

    def die(self) -> None:
        """SIGKILL to every process, the daemon first stopped so that it notices nothing."""
        if self.daemon is None:
            return
        found = []
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.daemon.pid)
            root.suspend()
            found = [root, *root.children(recursive=True)]
        for process in found:
            with suppress(psutil.NoSuchProcess):
                os.kill(process.pid, signal.SIGKILL)
        self.daemon.wait(30)
        psutil.wait_procs(found, timeout=30)
        self.daemon = None


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(ROOT))
    (tmp_path / "home").mkdir()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    found = Host({**os.environ, "PYTHONPATH": path}, tmp_path / "log.txt")
    yield found
    found.die()


def _until(what: Callable[[], bool], limit_s: float, log: Path) -> float:
    started = time.monotonic()
    while not what():
        took = time.monotonic() - started
        assert took < limit_s, log.read_text(errors="replace")[-4000:]
        time.sleep(0.25)
    return time.monotonic() - started


@pytest.mark.timeout(600)
def test_a_host_that_died_leaves_no_run_behind_and_the_work_is_done_once(host: Host, tmp_path: Path) -> None:
    home, log = tmp_path / "home", tmp_path / "log.txt"
    with dg.DagsterInstance.get():
        pass  # lays out its storage: two processes that do it at once are in each other's way
    host.boot()
    assert host.dagster("dagster", "job", "launch", "-j", "slow_job").wait(180) == 0, log.read_text()
    _until((home / "first-attempt").exists, 180, log)
    with dg.DagsterInstance.get() as instance:
        (run,) = instance.get_runs()
        assert run.status == DagsterRunStatus.STARTED
        host.die()
        assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.STARTED
        assert instance.event_log_storage.get_concurrency_info("cpu").active_slot_count == 1
        host.boot()

        def state(run_id: str) -> DagsterRunStatus:
            return instance.get_run_by_id(run_id).status

        _until(lambda: state(run.run_id) == DagsterRunStatus.FAILURE, 120, log)
        _until(lambda: len(instance.get_runs()) == 2, 120, log)
        (again,) = [other.run_id for other in instance.get_runs() if other.run_id != run.run_id]
        _until(lambda: state(again) == DagsterRunStatus.SUCCESS, 120, log)
        _until(lambda: instance.event_log_storage.get_concurrency_info("cpu").active_slot_count == 0, 60, log)
    w = Warehouse.open(home)
    stages = [body for body in w.ledger.entries(kind="stage")["body"] if "host/data/slow" in body]
    assert len(stages) == 1 and w.ledger.verify().ok
