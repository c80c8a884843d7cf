"""What ``palimpsest init`` does about a model of one's own: where its module lies, and weights that are audited as they
are."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import ConfigError
from contracts.subject import IMPORTED, Model, Subject

if TYPE_CHECKING:
    import numpy as np

    from sources.example_set import ExampleSet

READ = 4096  # training examples that a checkpoint is tried on, in each way of giving it inputs


def model_of(name: str) -> Model:
    """The model of a plan: for ``module:callable`` with a file in the working folder that folder goes on record, so
    that the schedule, the UI and the jobs find the module too, wherever they are started.
    """
    top = name.partition(":")[0].partition(".")[0]
    here = Path.cwd()
    own = ":" in name and ((here / f"{top}.py").is_file() or (here / top).is_dir())
    return Model(name=name, folder=str(here) if own else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights that somebody else trained.

    Attributes:
        place: the ``checkpoint`` of the plan.
        arrays: by name.
        to_import: they come from a ``.pt`` file and are stored under ``place`` when the plan is written.
        file: as it was named.
    """

    place: str
    arrays: dict[str, np.ndarray]
    to_import: bool
    file: Path

    @classmethod
    def named(cls, given: str, *, subject: str, home: Path) -> Checkpoint:
        """A ``.safetensors`` file, a ``.pt`` or ``.pth`` file, or ``imported/NAME``.

        Raises:
            ConfigError: there is no such file; names what was imported. Or another file was imported for this subject.
            DataError, UnsafeFile: it is neither, or holds more than arrays.
        """
        from pipelines.cli.imports import read_legacy, refuse_taken
        from recipes.checkpoints import read_checkpoint
        from warehouse import ArtifactStore

        file = Path(given).expanduser()
        if file.is_file():
            with file.open("rb") as stream:
                start = stream.read(9)
            if start[:2] == b"PK" or start[:1] == b"\x80":  # a zip, or a bare pickle: what torch.save writes
                arrays = read_legacy(file)
                refuse_taken(ArtifactStore(home / "artifacts"), subject, arrays)
                return cls(place=f"{IMPORTED}{subject}", arrays=arrays, to_import=True, file=file)
            return cls(place=str(file.resolve()), arrays=read_checkpoint(file), to_import=False, file=file)
        store = ArtifactStore(home / "artifacts")
        if given.startswith(IMPORTED) and store.exists(given):
            return cls(place=given, arrays=store.load(given)[0], to_import=False, file=file)
        known = ", ".join(name for name in store.names() if name.startswith(IMPORTED)) or "nothing was imported"
        raise ConfigError(f"--checkpoint {given!r} is no file, and not imported ({known})")


def ways(inputs: str | None, *, images: bool) -> list[tuple[str, dict[str, Any], str]]:
    """(name, configuration of the source, ``model.inputs``) of every way to give a checkpoint its inputs, or of the one
    asked for."""
    every = {"standardised": ({"standardise": True} if images else {}, "standardised"), "raw": ({}, "raw")}
    if images:
        every = {"unit": ({}, "standardised"), **every}
    if inputs is not None and inputs not in every:
        raise ConfigError(f"--inputs {inputs} is not one of {', '.join(every)} for these data")
    return [(name, *way) for name, way in every.items() if inputs in (None, name)]


def best_way(
    probe: Subject, checkpoint: Checkpoint, inputs: str | None, *, images: bool
) -> tuple[Subject, ExampleSet, str]:
    """The plan with the inputs that the checkpoint does best on, the data in it, and a sentence that says so.

    A checkpoint knows nothing of how its inputs were scaled. On the training examples, which it has seen, the right way
    is the one in which it answers best; with ``--inputs`` there is one way and no choice.

    Raises:
        ConfigError: the architecture cannot be audited, or the arrays are of another one: names them.
    """
    from recipes.checkpoints import load_arrays
    from recipes.plan import load_examples, tried_model

    found: list[tuple[float, str, Subject, ExampleSet, Any]] = []
    for name, config, scaled in ways(inputs, images=images):
        source = dataclasses.replace(probe.source, config={**probe.source.config, **config})
        model = dataclasses.replace(probe.model, inputs=scaled, checkpoint=checkpoint.place)
        plan = dataclasses.replace(probe, source=source, model=model)
        data = load_examples(plan)
        net = tried_model(plan, data)
        try:
            load_arrays(net, checkpoint.arrays)
        except ValueError as error:
            raise ConfigError(f"--checkpoint {checkpoint.file} is not of model {plan.model.name!r}: {error}") from error
        found.append((_quality(net, data, "train"), name, plan, data, net))
    quality, name, plan, data, net = max(found, key=lambda way: way[0])
    what = data.task.spec.quality
    others = ", ".join(f"{other} {value:.3f}" for value, other, *_ in found if other != name)
    said = (
        f"checkpoint {checkpoint.file.name}: {what} {quality:.3f} in training, {_quality(net, data, 'test'):.3f} in "
        f"test, inputs {name}"
    )
    said += f" (otherwise: {others})" if others else ""
    chance = _chance(data)
    if quality <= chance:
        said += (
            f". That is no better than always giving the same answer ({chance:.3f}): is this the model, and are these "
            "its classes and inputs (--inputs)?"
        )
    return plan, data, said


def _quality(net: Any, data: ExampleSet, split: str) -> float:
    """Mean quality (accuracy, or what the task counts), on up to ``READ`` examples of a split."""
    import numpy as np

    from recipes.predict import read

    rows = np.flatnonzero(data.split == split)
    part = data.take(rows[:: max(1, len(rows) // READ)])
    return float(read(net, part).quality.mean())


def _chance(data: ExampleSet) -> float:
    """What the most frequent label gets right, and three standard errors; 0 where nothing is a label."""
    import numpy as np

    if not data.task.gives("classes"):
        return 0.0
    labels = data.y[data.split == "train"]
    share = float(np.bincount(labels).max() / len(labels))
    return share + 3 * math.sqrt(share * (1 - share) / min(len(labels), READ))
