"""A worker that takes its time and says in a file when it is at work, started as the real one is and with its lock."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np

from contracts.digests import digest
from contracts.jobs import UnlearnJob
from pipelines.home import state_home
from pipelines.launchers import finished
from warehouse import ArtifactStore, fsio


def main(path: Path) -> None:
    home = state_home()
    job = UnlearnJob.from_mapping(json.loads(path.read_bytes()))
    with fsio.locked_folder(path.parent):
        if finished(job, home):
            return
        with (home / "at-work.txt").open("a") as log:
            log.write(f"begins {os.getpid()}\n")
        time.sleep(float(os.environ["SLOW_S"]))
        ArtifactStore(home / "artifacts").save(job.output, {"reading": np.arange(9.0)}, {"job": digest(job)})
        with (home / "at-work.txt").open("a") as log:
            log.write(f"ends {os.getpid()}\n")
