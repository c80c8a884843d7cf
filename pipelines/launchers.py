"""Unlearning jobs in processes of their own. A job record makes a retry adopt the running job or read the finished one.

    <home>/jobs/<job id>/record.json   {pid, started, boot_id, run_id}     written before the job counts as running
    <home>/jobs/<job id>/job.json      what the worker reads
    <home>/jobs/<job id>/progress.json {done, total, what}                 written by the worker, read by whoever waits

The identity of a process is (pid, start time, boot id): a recycled pid is never taken for the job. ``run_id`` is the
run that waits for it: who adopts the job writes its own. The worker holds the lock of the folder while it works, so
that one whose starter died before it wrote the record is waited for by the next, too.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from contracts.digests import canonical_json, digest
from contracts.errors import IntegrityError, JobFailed, JobLost, NotReady
from contracts.jobs import UnlearnJob
from contracts.progress import Progress
from pipelines.home import ROOT
from pipelines.worker_host import WorkerHost
from warehouse import ArtifactStore, fsio

POLL_S = 0.1
RECORD = "record.json"
WORKER = "pipelines.worker"


class PipesLauncher:
    """Runs the worker in a local process through Dagster Pipes, which carries its log lines and its result's
    metadata."""

    def __init__(self) -> None:
        self._host: WorkerHost | None = None

    def prepare(self) -> None:
        """Begin to load what jobs run on: for a run that will have some."""
        self._ready_host()

    def _ready_host(self) -> WorkerHost:
        if self._host is None or not self._host.serves(WORKER, _path()):
            self._host = WorkerHost(WORKER, _path())
        return self._host

    def run(self, job: UnlearnJob, *, home: Path, context: Any, progress: Progress) -> None:
        """Return when the job's output artifact is complete; adopt, read or start it, never double it.

        Raises:
            JobFailed: the worker ended without its output; the message carries its last words.
            JobLost: it was killed, which another run may be spared.
        """
        folder = home / "jobs" / job.job_id
        folder.mkdir(parents=True, exist_ok=True)
        running = process_of(folder)
        if running is not None:
            with suppress(psutil.NoSuchProcess):
                _write_record(folder, running, context)
            context.log.info(f"adopting job {job.job_id}: process {running.pid} is still at work")
            _wait(running, folder, progress)
        if finished(job, home):
            return
        fsio.write_bytes(folder / "job.json", canonical_json(job).encode())
        status = self._start(folder, home, context, progress)
        if finished(job, home):
            return
        what = f"unlearning job {job.job_id} ({job.method.name})"
        if status < 0:
            raise JobLost(f"{what} was killed by {signal.Signals(-status).name}; the same command runs it again")
        raise JobFailed(f"{what} ended without a result: {_last_words(folder)} (all it said: {folder / 'stderr.txt'})")

    def _start(self, folder: Path, home: Path, context: Any, progress: Progress) -> int:
        """Run the worker to its end; its exit status."""
        import dagster as dg
        from dagster import PipesEnvContextInjector, PipesTempFileMessageReader, open_pipes_session

        host, words = self._ready_host(), folder / "stderr.txt"
        words.write_bytes(b"")
        with open_pipes_session(
            context=context, context_injector=PipesEnvContextInjector(), message_reader=PipesTempFileMessageReader()
        ) as session:
            env = {
                **os.environ,
                **session.get_bootstrap_env_vars(),
                "PALIMPSEST_HOME": str(home),
                "PYTHONPATH": _path(),
            }
            pid = None
            try:
                pid = host.fork(folder / "job.json", env=env, stderr=words)
                with suppress(psutil.NoSuchProcess):  # it had ended before
                    _write_record(folder, psutil.Process(pid), context)
                while (status := host.status(POLL_S)) is None:
                    _report(folder, progress)
            except BaseException as error:
                if pid is not None and isinstance(error, KeyboardInterrupt | dg.DagsterExecutionInterruptedError):
                    with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                        child = psutil.Process(pid)
                        child.terminate()
                        child.wait(10)
                host.close()  # its answer to this job would be taken for one to the next
                raise
            return status


def _write_record(folder: Path, process: psutil.Process, context: Any) -> None:
    record = {"pid": process.pid, "started": process.create_time(), "boot_id": boot_id(), "run_id": context.run.run_id}
    fsio.write_bytes(folder / RECORD, canonical_json(record).encode())


def process_of(folder: Path) -> psutil.Process | None:
    """The job's process if it still runs. A process of the same pid, but another start or boot, is not it."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        return same_process(record["pid"], record["started"], record["boot_id"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def same_process(pid: int | str, started: float | str, boot: str) -> psutil.Process | None:
    """The process of this pid, start time (s since 1970) and boot, if it still runs.

    Raises:
        ValueError: pid or start time is no number.
    """
    try:
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - float(started)) < 0.02 and boot == boot_id()
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _wait(process: psutil.Process, folder: Path, progress: Progress) -> None:
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        _report(folder, progress)
        time.sleep(POLL_S)


def _report(folder: Path, progress: Progress) -> None:
    try:
        state = json.loads((folder / "progress.json").read_bytes())
        progress(int(state["done"]), int(state["total"]), str(state["what"]))
    except (FileNotFoundError, ValueError, KeyError):
        return


def finished(job: UnlearnJob, home: Path) -> bool:
    """The output exists, is whole, and was made by exactly this job."""
    try:
        _, meta = ArtifactStore(home / "artifacts").load(job.output)
    except (IntegrityError, NotReady):
        return False
    return bool(meta.get("job") == digest(job))


def _last_words(folder: Path) -> str:
    """The last line that a worker wrote: its error, in one sentence."""
    try:
        lines = (folder / "stderr.txt").read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        lines = []
    return lines[-1].strip() if lines else "it said nothing"


def _path() -> str:
    """Python's path for a child: this program first, as in this process."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def boot_id() -> str:
    """Changes at every boot of the machine: a pid of another boot means nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        return str(psutil.boot_time())
