"""Runs and jobs whose process died, or that nobody waits for any more, are ended here.

run    stays STARTED for ever with the default launcher when its process dies, and holds its pool slots. The process
       is known by the run's tags (pid, start time, boot id; runs of the command line), or by the event in which the
       run's own process reported its pid (runs of a daemon on this machine)
job    lives on when whoever started it dies. A retry adopts it; where none has for GRACE_S seconds after its run
       ended, it is ended, by the identity in its record and no other
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import dagster as dg
import psutil
from dagster import DagsterEventType, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.launcher import DefaultRunLauncher

from pipelines.launchers import RECORD, boot_id, process_of, same_process

PID, STARTED, BOOT = "palimpsest/pid", "palimpsest/started", "palimpsest/boot_id"
MAX_RETRIES = "dagster/max_retries"
UNFINISHED = [DagsterRunStatus.STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.CANCELING]
GRACE_S = 300.0
_LATER_S = 5.0  # a process that began so much later than it reported itself is another one
_REPORTED = re.compile(r"Started process for run \(pid: (\d+)\)")


def run_tags() -> dict[str, str]:
    """Tags by which a later process can tell whether this one still lives. No daemon repeats what a person has
    started."""
    me = psutil.Process()
    return {PID: str(me.pid), STARTED: f"{me.create_time():.2f}", BOOT: boot_id(), MAX_RETRIES: "0"}


def reap(instance: dg.DagsterInstance, *, note: Callable[[str], None]) -> list[str]:
    """Report every unfinished run of a dead process as failed, free its pool slots, and return the runs' ids.

    A run whose process cannot be known (it has not reported one yet, or another launcher started it elsewhere) is left
    to Dagster's run monitoring.
    """
    dead = []
    for run in instance.get_runs(filters=RunsFilter(statuses=UNFINISHED)):
        alive = _alive(run.tags) if PID in run.tags else _reported_alive(instance, run)
        if alive is False:
            instance.report_run_failed(run, message="its process died; reported by the reaper")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            note(f"an earlier run ({run.run_id[:8]}) had died; its finished stages are kept")
            dead.append(run.run_id)
    return dead


def _alive(tags: Mapping[str, str]) -> bool:
    try:
        return same_process(tags[PID], tags[STARTED], tags[BOOT]) is not None
    except (ValueError, KeyError):
        return False


def _reported_alive(instance: dg.DagsterInstance, run: DagsterRun) -> bool | None:
    """Whether the process that a run of the default launcher reported still lives; None where it has reported none."""
    if not isinstance(instance.run_launcher, DefaultRunLauncher):
        return None
    reported = None
    for entry in instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT):
        match = _REPORTED.search(entry.message or "")
        reported = (int(match[1]), entry.timestamp) if match else reported
    if reported is None:
        return None
    pid, at = reported
    if at < psutil.boot_time() - _LATER_S:
        return False
    try:
        process = psutil.Process(pid)
        return process.create_time() <= at + _LATER_S and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def reap_jobs(
    instance: dg.DagsterInstance, home: Path, *, now: datetime, note: Callable[[str], None], grace_s: float = GRACE_S
) -> list[str]:
    """End the jobs that are still at work though their run ended ``grace_s`` seconds ago; their ids.

    A job of a run that this instance does not know is somebody else's and is left alone.
    """
    ended = []
    for path in sorted((home / "jobs").glob(f"*/{RECORD}")):
        process = process_of(path.parent)
        if process is None:
            continue
        with suppress(OSError, ValueError, KeyError):
            run = instance.get_run_record_by_id(str(json.loads(path.read_bytes())["run_id"]))
            if run is None or not run.dagster_run.is_finished or run.end_time is None:
                continue
            if now.timestamp() - run.end_time < grace_s:
                continue
            _end(process)
            note(f"job {path.parent.name} was still at work after its run had ended; it was ended")
            ended.append(path.parent.name)
    return ended


def _end(process: psutil.Process) -> None:
    """End a job, which leads a session of its own, and what it has started: politely, then not."""
    children = []
    with suppress(psutil.NoSuchProcess):
        children = process.children(recursive=True)
    for one in (process, *children):
        with suppress(psutil.NoSuchProcess):
            one.terminate()
    _, left = psutil.wait_procs([process, *children], timeout=10)
    for one in left:
        with suppress(psutil.NoSuchProcess):
            os.kill(one.pid, signal.SIGKILL)
