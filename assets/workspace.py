"""What every asset needs besides its inputs: where state lives, the data in memory, how to say how far it is."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from contracts.digests import digest
from contracts.errors import ConfigError, NotReady
from contracts.jobs import UnlearnJob
from contracts.progress import Progress, silent
from contracts.subject import IMPORTED, Subject
from warehouse import Warehouse
from warehouse.fsio import sha256_of

if TYPE_CHECKING:
    from sources.example_set import ExampleSet


class Launcher(Protocol):
    """Runs one unlearning job in a process of its own and returns when its output artifact is complete."""

    def prepare(self) -> None:
        """Called before a run that will have jobs, so that what takes time to load can be loading meanwhile."""

    def run(self, job: UnlearnJob, *, home: Path, context: Any, progress: Progress) -> None: ...


class Workspace:
    """One per process. Nothing is opened or loaded before it is asked for.

    Args:
        home: the state folder, ``$PALIMPSEST_HOME``.
        launcher: how unlearning jobs are run.
        progress: called with ``(done, total, what)`` by every long computation.
        publish_every_s: how old the published snapshot may get before a finished stage brings it up to date; 0: every
            one does. Who sets more publishes when the last stage is done.
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
        """The subject's data, read from its source once a process.

        Raises:
            DataError: it holds rows or edges that were erased for a forget request.
            Others: as the source raises.
        """
        from assets.request_edges import refuse_erased_edges
        from assets.request_rows import refuse_erased
        from sources.plan import load_examples  # here: a run that has nothing to do loads no library of numbers

        read = {"source": subject.source, "seed": subject.seed, "inputs": subject.model.inputs}
        key = digest(read | {"without": [subject.without, subject.without_edges]})
        if key not in self._examples:
            data = load_examples(subject)
            refuse_erased(subject.subject, data, self.warehouse)
            refuse_erased_edges(subject.subject, data, self.warehouse)
            self._examples[key] = data
        return self._examples[key]

    def outside(self, subject: Subject, what: str) -> str:
        """Digest of the subject's "data", or of the "model" or "references" that were given to it, as they are now; ""
        of nothing.

        Raises:
            ConfigError, NotReady: there is no such checkpoint, or there are no such files of references.
            Others: as the source raises.
        """
        if what == "data":
            return self.examples(subject).digest
        if what == "references":
            from recipes.given import fingerprints

            return digest(fingerprints(subject.ensemble.policy))
        if what != "model":
            return ""
        if subject.outputs_only:
            from sources.outputs import outputs_file

            return sha256_of(outputs_file(subject.source.config))
        return self.checkpoint(subject)[1]

    def checkpoint(self, subject: Subject) -> tuple[Path, str]:
        """The file of the checkpoint that a plan names, and its SHA-256.

        Raises:
            ConfigError: there is no such file.
            NotReady: nothing of that name was imported; Erased: it was, and erased for a forget request.
        """
        named = subject.model.checkpoint
        if named.startswith(IMPORTED):
            try:
                found = self.warehouse.artifacts.verified(named)
            except NotReady as error:
                raise type(error)(
                    f"{str(error).partition(':')[0]}; it is the given model of {subject.subject}, made by no audit: "
                    "palimpsest import-checkpoint FILE --name NEW, then model.checkpoint: imported/NEW in the plan"
                ) from None
            return found.path, found.sha256
        path = Path(named)
        if not path.is_file():
            raise ConfigError(f"model.checkpoint {named!r} of {subject.subject} is no file")
        return path, sha256_of(path)
