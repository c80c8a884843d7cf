"""Unlearning jobs in the process of the test: in one of its own each loads the libraries for three seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contracts.digests import canonical_json
from contracts.errors import JobFailed, in_words
from contracts.jobs import UnlearnJob


class InProcess:
    """Runs a job here, and leaves its folder as the launcher does."""

    def prepare(self) -> None:
        """Everything is loaded here."""

    def run(self, job: UnlearnJob, *, home: Path, context: Any, progress: Any) -> None:
        from pipelines.worker import run_job

        folder = home / "jobs" / job.job_id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.json").write_text(canonical_json(job))
        (folder / "stderr.txt").touch()
        try:
            run_job(job, home=home, folder=folder)
        except Exception as error:
            raise JobFailed(f"unlearning job {job.job_id} ({job.method.name}): {in_words(error)}") from error
