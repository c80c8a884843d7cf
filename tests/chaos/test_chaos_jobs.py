"""Unlearning jobs that outlive whoever started them: adopted, waited for, or ended; never two at work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.test_utils import create_run_for_test
from unlearn_job import JOB

from pipelines import launchers
from pipelines.reaper import GRACE_S, reap_jobs
from warehouse import ArtifactStore

pytestmark = [pytest.mark.chaos, pytest.mark.promise("A6")]
HERE = Path(__file__).parent


def _start(home: Path, point: str = "", *, slow_s: float = 4.0, run_id: str = "r") -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PALIMPSEST_HOME": str(home), "PYTHONPATH": path, "SLOW_S": str(slow_s)}
    command = [sys.executable, str(HERE / "job_starter.py"), str(home), point, run_id]
    return subprocess.Popen(command, env=env, start_new_session=True)


def _at_work(home: Path) -> list[list[str]]:
    file = home / "at-work.txt"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def _until_at_work(home: Path) -> int:
    deadline = time.monotonic() + 60
    while not _at_work(home):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(_at_work(home)[0][1])


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for _, pid in _at_work(tmp_path):  # its own workers, should a test have failed
        try:
            if "slow_worker" in " ".join(psutil.Process(int(pid)).cmdline()):
                os.kill(int(pid), signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


@pytest.mark.parametrize("point", ["", "before_record"])
def test_a_job_whose_starter_was_killed_is_not_started_again(home: Path, point: str) -> None:
    """With its record the retry adopts it; without one (killed between start and record) the second worker waits."""
    starter = _start(home, point)
    worker = _until_at_work(home)
    if not point:
        while launchers.process_of(home / "jobs" / JOB.job_id) is None:
            time.sleep(0.02)
        starter.kill()
    assert starter.wait(60) == -signal.SIGKILL
    assert psutil.pid_exists(worker), "the job lives on as an orphan"
    again = _start(home)
    assert again.wait(120) == 0
    assert _at_work(home) == [["begins", str(worker)], ["ends", str(worker)]], "one worker did it, once"
    arrays, _ = ArtifactStore(home / "artifacts").load(JOB.output)
    assert arrays["reading"].tolist() == list(range(9))
    assert _start(home).wait(120) == 0 and len(_at_work(home)) == 2, "a third start reads what is there"


def test_a_killed_worker_is_started_anew_and_ends_in_the_same_result(home: Path) -> None:
    starter = _start(home, slow_s=1)
    os.kill(_until_at_work(home), signal.SIGKILL)
    assert starter.wait(60) not in (0, None), "JobLost"
    assert not ArtifactStore(home / "artifacts").exists(JOB.output)
    assert _start(home, slow_s=0.1).wait(120) == 0
    words = [word for word, _ in _at_work(home)]
    assert words == ["begins", "begins", "ends"]
    arrays, _ = ArtifactStore(home / "artifacts").load(JOB.output)
    assert arrays["reading"].tolist() == list(range(9))


def test_a_job_that_nobody_waits_for_is_ended_after_a_while_and_no_other_is(home: Path) -> None:
    with dg.instance_for_test() as instance:
        run = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED)
        starter = _start(home, slow_s=120, run_id=run.run_id)
        worker = psutil.Process(_until_at_work(home))
        while launchers.process_of(home / "jobs" / JOB.job_id) is None:
            time.sleep(0.02)
        starter.kill()
        starter.wait(60)
        now, notes = datetime.now(UTC), []

        def reaped(at: datetime) -> list[str]:
            return reap_jobs(instance, home, now=at, note=notes.append)

        assert reaped(now + timedelta(days=1)) == [], "its run is under way"
        instance.report_run_failed(run)
        assert reaped(datetime.now(UTC)) == [], "a retry may still adopt it"
        with dg.instance_for_test() as other:
            assert reap_jobs(other, home, now=now + timedelta(days=1), note=notes.append) == [], "of another instance"
        assert worker.is_running() and notes == []
        later = datetime.now(UTC) + timedelta(seconds=GRACE_S + 1)
        assert reaped(later) == [JOB.job_id]
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
        assert len(notes) == 1 and reaped(later) == []
