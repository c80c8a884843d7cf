"""A job: one unlearning method on one split, run over its seeds in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from contracts.digests import digest
from contracts.params import Config, param
from contracts.subject import Choice


def times_of(output: str) -> str:
    """Name of the file with the wall times of a job's runs, one a seed, beside its output."""
    return f"{output}-times.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnlearnJob(Config):
    """What a worker process needs to know; nothing else reaches it.

    The job's id is the digest of everything in it, so the same work has the same id: on a retry the job that is
    still running is adopted, a finished one is read, and no second one is started.
    """

    subject: dict[str, Any] = param(doc="the subject as plain data, without what is judged or drawn afterwards")
    code: str = param(
        doc="digest of the versions of the code that it runs: recipe, source, model, method, the job itself"
    )
    data_version: str = param(doc="digest of the data set the worker must find")
    method: Choice = param(doc="registered unlearner with its configuration", ref="unlearner")
    seeds: tuple[int, ...] = param(ge=0, lt=2**31, doc="one run a seed")
    target: str = param(doc="artifact of the audited model")
    target_sha256: str = param(doc="its digest")
    members: str = param(doc="artifact with the ids of the forget and the retain set")
    members_sha256: str = param(doc="its digest")
    inputs: dict[str, str] = param({}, doc="artifacts of other models that the method needs -> their digests")
    output: str = param(doc="artifact the worker writes")
    outputs: bool = param(False, doc="keep whole outputs beside the readings, of a task that gives them")

    @property
    def job_id(self) -> str:
        """32 hex digits."""
        return digest(self)[:32]
