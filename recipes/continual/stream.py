"""The steps of a stream: which examples come when, and which classes are seen by then.

    class-incremental    by: class      steps: [[2, 5], [3, 7], [4, 6]]      a step is some of the classes (indexes or
    names)
    domain-incremental   by: domain     steps: []                            a step is one value of a column of the
    data, ascending
                         by: domain     steps: [[photo], [sketch, paint]]    or several, in the order given

``by: ""`` takes the column ``step`` where the data has one, and the classes where it has not. A value that ``pretrain``
names is
trained on before the first step and is no step. Every example belongs to exactly one of them. A step of which a subset
of
the data has no example is passed over, and its classes are not seen: retraining without a class is the same recipe.
Within a step, examples are in ascending order of their ids, so that the order of the rows changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ConfigError, DataError
from contracts.params import Config, param
from sources.example_set import ExampleSet

CLASS, STEP = "class", "step"
PRETRAINING = -1  # the step of examples that are trained on before the first
Value = int | str


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig(Config):
    """The steps of a stream, and how a model is trained in each."""

    by: str = param("", doc="'class', or a column of the data; '' takes the column 'step', or the classes without one")
    steps: tuple[tuple[Value, ...], ...] = param(
        (), doc="classes (index or name) or values of the column of each step, in order; () takes every value as a step"
    )
    pretrain: tuple[Value, ...] = param((), doc="classes or values that train the encoder before the first step")
    pretrain_epochs: int = param(4, ge=1, le=100_000, doc="of this pre-training, with a softmax head of its own")
    pretrain_lr: float = param(2e-3, gt=0, le=100, doc="Adam")
    rotations: bool = param(False, doc="pre-training: every image in four rotations, each a class of its own")
    loss: str = param("bce", choices=("bce", "ce"), doc="sigmoid, summed over the seen classes; or softmax over them")
    train: str = param(
        "all", choices=("all", "qkv"), doc="parameters trained; qkv: a transformer's projections and the head"
    )
    lr: float = param(1e-3, gt=0, le=100, doc="Adam, betas 0.9, 0.999; fresh in every step")
    weight_decay: float = param(0.0, ge=0, le=1, doc="added to the gradient")
    batch: int = param(64, ge=1, le=1_000_000, unit="examples", doc="the last, shorter batch of an epoch is kept")
    epochs: int = param(8, ge=1, le=100_000, doc="of every step")
    schedule: str = param(
        "constant",
        choices=("constant", "multistep", "cosine"),
        doc="cosine: lr cos(99 pi e / (200 (E - 1))) in epoch e",
    )
    milestones: tuple[int, ...] = param((), ge=1, le=100_000, unit="epochs", doc="multistep only: x 0.1 at each")

    def check(self) -> None:
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ConfigError(
                f"{type(self).__name__}.milestones go with schedule = 'multistep', which needs some below epochs"
            )
        if any(not step for step in self.steps):
            raise ConfigError(f"{type(self).__name__}.steps = {self.steps}: a step names at least one value")
        named = [*self.pretrain, *(value for step in self.steps for value in step)]
        doubled = sorted({str(v) for v in named if list(map(str, named)).count(str(v)) > 1})
        if doubled:
            raise ConfigError(f"{type(self).__name__}: {doubled[0]!r} is named in more than one step")

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch of a step, from 0."""
        if self.schedule == "cosine":
            return float(self.lr * np.cos(99 * np.pi * epoch / (200 * max(self.epochs - 1, 1))))
        return float(self.lr * 0.1 ** sum(m <= epoch for m in self.milestones))


@dataclass(frozen=True, eq=False, kw_only=True)
class Stream:
    """The steps of some examples.

    Attributes:
        step: (N,) int64, the step of each example from 0, or PRETRAINING.
        names: of the S steps, for people.
        classes: the classes of each step: those named, or those that its examples have; () for a step without examples.
        pretrain: classes of the examples trained on before the first step.
    """

    step: NDArray[np.int64]
    names: tuple[str, ...]
    classes: tuple[tuple[int, ...], ...]
    pretrain: tuple[int, ...]

    def rows(self, step: int, example_id: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of the examples of a step, in ascending order of their ids."""
        rows = np.flatnonzero(self.step == step)
        return rows[np.argsort(example_id[rows], kind="stable")]

    @property
    def num_steps(self) -> int:
        return len(self.names)


def stream_of(data: ExampleSet, config: StreamConfig) -> Stream:
    """The steps of ``data``, both splits if it has both.

    Raises:
        ConfigError: no steps, a class or a column that the data does not have.
        DataError: targets that are none of the task's, examples that belong to no step; names them.
    """
    data.check_targets()
    columns: Mapping[str, NDArray[np.generic]] = getattr(data, "columns", None) or {}
    by = config.by or (STEP if STEP in columns else CLASS)
    if by == CLASS:
        groups = [_class_indexes(data, step) for step in config.steps]
        first = _class_indexes(data, config.pretrain)
        values = data.y
    elif by in columns:
        values = columns[by]
        groups, first = _column_groups(values, config)
    else:
        known = ", ".join(map(repr, columns)) or "none"
        raise ConfigError(f"by = {by!r} is not 'class' nor a column of {data.name}; its columns: {known}")
    if not groups:
        raise ConfigError(
            f"a stream of {data.name} needs steps: name the classes of each, or give the data a column 'step'"
        )
    step = np.full(len(data), -2, np.int64)
    for number, group in enumerate([first, *groups], start=PRETRAINING):
        step[np.isin(values, np.array(group, values.dtype))] = number
    if (step == -2).any():
        raise DataError(
            f"{int((step == -2).sum())} examples of {data.name} belong to no step of the stream (by {by})",
            example_ids=data.example_id[step == -2],
        )
    there = [np.unique(data.y[step == n]) for n in range(len(groups))]
    classes = tuple(
        () if not len(own) else tuple(map(int, group if by == CLASS else own))
        for group, own in zip(groups, there, strict=True)
    )
    names = tuple("+".join(data.class_names[c] if by == CLASS else str(c) for c in group) for group in groups)
    return Stream(
        step=step, names=names, classes=classes, pretrain=tuple(map(int, np.unique(data.y[step == PRETRAINING])))
    )


def _class_indexes(data: ExampleSet, values: Sequence[Value]) -> list[int]:
    names = {name: index for index, name in enumerate(data.class_names)}
    found = [value if isinstance(value, int) else names.get(value, -1) for value in values]
    for value, index in zip(values, found, strict=True):
        if not 0 <= index < data.num_classes:
            raise ConfigError(f"a step names class {value!r}; {data.name} has {data.num_classes}: {', '.join(names)}")
    return found


def _column_groups(values: NDArray[np.generic], config: StreamConfig) -> tuple[list[list[Value]], list[Value]]:
    """(values of each step, values of the pre-training), as the column spells them."""
    there = np.unique(values).tolist()
    spelled = {str(value): value for value in there}

    def known(group: Sequence[Value]) -> list[Value]:
        return [spelled[str(value)] for value in group if str(value) in spelled]

    first = known(config.pretrain)
    if config.steps:
        return [known(step) for step in config.steps], first
    return [[value] for value in there if value not in first], first
