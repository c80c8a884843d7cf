"""What Dagster's own storage keeps of a subject, and its removal: runs, events (tables, previews, messages), logs.

Dagster's SQLite files lie under the state folder (``dagster.yaml``). A deleted row stays in a file's free pages until
VACUUM, and in the write-ahead log until that is truncated.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.home import dagster_home
from warehouse import sqlite

if TYPE_CHECKING:
    import dagster as dg

_FOLDERS = ("history", "schedules")


def databases(home: Path) -> list[Path]:
    """Dagster's SQLite files below a state folder."""
    return sorted(path for folder in _FOLDERS for path in (home / folder).rglob("*.db"))


def runs_of(home: Path, subject: str) -> list[str]:
    """Ids of the runs that made or observed assets of a subject; none where Dagster has recorded nothing."""
    if not databases(home):
        return []
    import dagster as dg

    dagster_home()
    with dg.DagsterInstance.get() as instance:
        return sorted(run.run_id for run in instance.get_runs() if _is_of(run, subject))


def _is_of(run: dg.DagsterRun, subject: str) -> bool:
    from pipelines.build import audit_job_name, request_job_name

    if run.job_name in (audit_job_name(subject), request_job_name(subject)):
        return True
    return any(key.path[0] == subject for key in run.asset_selection or ())


def logs_of(home: Path, runs: Iterable[str]) -> list[Path]:
    """Folders with what the processes of runs printed and passed on."""
    places = [place / run for run in runs for place in (home, home / "storage")]
    return [place for place in places if place.is_dir()]


def unfinished(home: Path, subject: str) -> list[str]:
    """Runs of a subject that are under way, after those of dead processes were ended."""
    if not databases(home):
        return []
    import dagster as dg

    from pipelines.reaper import reap

    dagster_home()
    with dg.DagsterInstance.get() as instance:
        reap(instance, note=lambda _: None)
        return [run.run_id for run in instance.get_runs() if not run.is_finished and _is_of(run, subject)]


def remove(home: Path, subject: str, runs: Iterable[str]) -> None:
    """Delete runs with their events, and every event about assets of a subject, whoever reported it."""
    if not databases(home):
        return
    import dagster as dg

    dagster_home()
    with dg.DagsterInstance.get() as instance:
        for run in runs:
            instance.delete_run(run)
        keys = [key for key in instance.all_asset_keys() if key.path[0] == subject]
        if keys:
            instance.wipe_assets(keys)
    for run in runs:
        for path in (home / "history" / "runs").glob(f"{run}.db*"):
            path.unlink(missing_ok=True)
    for path in databases(home):
        sqlite.forget_assets(path, subject)


def remove_path(path: Path) -> None:
    """Delete a file or a whole folder that may already be gone; a link is not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
