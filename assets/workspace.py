"""What every asset needs besides its inputs: where state lives, the data in memory, how to say how far it is."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from contracts.digests import digest
from contracts.jobs import UnlearnJob
from contracts.progress import Progress, silent
from contracts.subject import Subject
from warehouse import Warehouse

if TYPE_CHECKING:
    from sources import ExampleSet


class Launcher(Protocol):
    """Runs one unlearning job in a process of its own and returns when its output artifact is complete."""

    def run(self, job: UnlearnJob, *, home: Path, context: Any, progress: Progress) -> None: ...


class Workspace:
    """One per process. Nothing is opened or loaded before it is asked for.

    Args:
        home: the state folder, ``$PALIMPSEST_HOME``.
        launcher: how unlearning jobs are run.
        progress: told ``(done, total, what)`` by every long computation.
        publish_every_s: how old the published snapshot may get before a finished stage brings it up to date; 0: every one
            does. Who sets more publishes when the last stage is done.
    """

    def __init__(
        self, home: Path, *, launcher: Launcher, progress: Progress = silent, publish_every_s: float = 0.0
    ) -> None:
        self.home, self.launcher, self.progress = home, launcher, progress
        self._publish_every_s, self._published_s = publish_every_s, time.monotonic()
        self._examples: dict[str, ExampleSet] = {}

    @cached_property
    def warehouse(self) -> Warehouse:
        return Warehouse.open(self.home)

    def publish(self) -> None:
        """A stage is done: bring the published snapshot up to date if it is due."""
        if time.monotonic() - self._published_s >= self._publish_every_s:
            self.warehouse.publish()
            self._published_s = time.monotonic()

    def examples(self, subject: Subject) -> ExampleSet:
        """The subject's data, read from its source once a process."""
        from sources import load  # here, so that a run that has nothing to do loads no library of numbers

        key = digest({"source": subject.source, "seed": subject.seed})
        if key not in self._examples:
            self._examples[key] = load(subject.source.name, subject.source.config, seed=subject.seed)
        return self._examples[key]
