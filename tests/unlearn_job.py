"""An unlearning job whose content nobody reads, for tests of who starts, adopts and ends it."""

from __future__ import annotations

from contracts.jobs import UnlearnJob
from contracts.subject import Choice

JOB = UnlearnJob(
    subject={},
    code="0",
    data_version="0",
    method=Choice(name="finetune"),
    seeds=(1,),
    target="t",
    target_sha256="0",
    members="m",
    members_sha256="0",
    output="small/unlearning/finetune/result",
)
