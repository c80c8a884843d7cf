"""What every asset needs besides its inputs: where state lives, the data in memory, how to say how far it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from contracts.digests import digest
from contracts.jobs import UnlearnJob
from contracts.progress import Progress, silent
from contracts.subject import Subject
from sources import ExampleSet, load
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


def load_examples(subject: Subject) -> ExampleSet:
    """Read, validate and return the data set that a subject names."""
    return load(subject.source.name, subject.source.config, seed=subject.seed)


def device_of(subject: Subject) -> str:
    """``cuda`` or ``cpu``: what ``device: auto`` means on this machine."""
    if subject.device != "auto":
        return subject.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def model_builder(subject: Subject, data: ExampleSet) -> Callable[[int], Any]:
    """``seed -> fresh model`` of the subject's architecture for the shape of its data."""
    from recipes.models import build

    num_outputs = data.num_classes or 1
    shape = (data.num_users,) if data.task == "ranking" else data.input_shape
    return lambda seed: build(
        subject.model.name, subject.model.config, input_shape=shape, num_outputs=num_outputs, seed=seed
    )
