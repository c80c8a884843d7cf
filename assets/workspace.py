"""What every asset needs besides its inputs: where state lives, the data in memory, how to say how far it is."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from contracts.digests import digest
from contracts.jobs import UnlearnJob
from contracts.progress import Progress, silent
from contracts.subject import Subject
from recipes.plan import load_examples
from sources import ExampleSet
from warehouse import Warehouse


class Launcher(Protocol):
    """Runs one unlearning job in a process of its own and returns when its output artifact is complete."""

    def run(self, job: UnlearnJob, *, home: Path, context: Any, progress: Progress) -> None: ...


class Workspace:
    """One per process. Nothing is opened or loaded before it is asked for.

    Args:
        home: the state folder, ``$PALIMPSEST_HOME``.
        launcher: how unlearning jobs are run.
        progress: told ``(done, total, what)`` by every long computation.
    """

    def __init__(self, home: Path, *, launcher: Launcher, progress: Progress = silent) -> None:
        self.home, self.launcher, self.progress = home, launcher, progress
        self._examples: dict[str, ExampleSet] = {}

    @cached_property
    def warehouse(self) -> Warehouse:
        return Warehouse.open(self.home)

    def examples(self, subject: Subject) -> ExampleSet:
        """The subject's data, read from its source once a process."""
        key = digest({"source": subject.source, "seed": subject.seed})
        if key not in self._examples:
            self._examples[key] = load_examples(subject)
        return self._examples[key]
