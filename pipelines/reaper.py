"""Runs whose process died stay STARTED for ever with the default launcher and hold their pool slots. This ends them.

The identity of a run's process is in its tags: pid, start time and boot id.
"""

from __future__ import annotations

from collections.abc import Callable

import dagster as dg
import psutil
from dagster import DagsterRunStatus, RunsFilter

from pipelines.launchers import boot_id

PID, STARTED, BOOT = "palimpsest/pid", "palimpsest/started", "palimpsest/boot_id"
MAX_RETRIES = "dagster/max_retries"
UNFINISHED = [DagsterRunStatus.STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.CANCELING]


def run_tags() -> dict[str, str]:
    """Tags by which a later process can tell whether this one still lives. No daemon repeats what a person has
    started."""
    me = psutil.Process()
    return {PID: str(me.pid), STARTED: f"{me.create_time():.2f}", BOOT: boot_id(), MAX_RETRIES: "0"}


def reap(instance: dg.DagsterInstance, *, note: Callable[[str], None]) -> list[str]:
    """Report every unfinished run of a dead process as failed, free its pool slots, and return the runs' ids.

    Only runs that carry our tags are judged; runs of a daemon are left to Dagster's run monitoring.
    """
    dead = []
    for run in instance.get_runs(filters=RunsFilter(statuses=UNFINISHED)):
        if PID in run.tags and not _alive(run.tags):
            instance.report_run_failed(run, message="its process died; reported by the next start")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            note(f"an earlier run ({run.run_id[:8]}) had died; its finished stages are kept")
            dead.append(run.run_id)
    return dead


def _alive(tags: dict[str, str]) -> bool:
    try:
        process = psutil.Process(int(tags[PID]))
        same = abs(process.create_time() - float(tags[STARTED])) < 0.02 and tags[BOOT] == boot_id()
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, KeyError):
        return False
