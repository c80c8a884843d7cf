"""Whole outputs beside readings: the few attacks that read them, and the scale that they are mapped back from.

    f = Q_ref o F_own  on outputs, all classes together      g = Q_ref o F_own  on the signals of the mapped outputs
                       (``scale``)
    reading            of f(outputs), where outputs are given and the references' sample of them is; else as it was read
    signal             g(signal)
    loss, log-lik.     h(g(signal)) where a task's are a function h of the signal (``Task.of_signal``); else by their
                       own maps

Where log-likelihood is h(signal), h increasing, its own map is Q_h(ref) o F_h(own) = h o Q_ref o F_own o h^-1: the same
map seen through h. So an increasing map of all outputs of an audited model of classes, or of all signals of a model of
any task, leaves signal, loss and log-likelihood where they were, up to the interpolation between quantiles; affine ones
exactly.

A task whose answers are not one vector of logits an example has its signals mapped alone. Of numbers the answers
themselves must not be: a regression that interpolates hits its members exactly, and any map of its answers would move
them off.

Shapes: T audited models, n examples, Q queries, K classes, P population points, S sampled values.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.scale import OUTPUT_KNOTS, to_reference_scale
from contracts.errors import DataError, NotApplicable
from recipes.ensemble import NOT_KEPT
from tasks.base import NO_CONSTANTS, Constants, OutputTask, Reading, Task

Float = NDArray[np.float64]
Logits = NDArray[np.floating]


@dataclass(frozen=True, eq=False, kw_only=True)
class Outputs:
    """Class logits of the first query, on the references' scale.

    Attributes:
        labels: (N,) in [0, K).
        target: (T, N, K).
        reference: (M, N, K), or None where the reference models' were not kept.
    """

    labels: NDArray[np.int64]
    target: Logits
    reference: Logits | None = None

    @property
    def num_classes(self) -> int:
        return int(self.target.shape[-1])

    @property
    def references(self) -> Logits:
        """(M, N, K).

        Raises:
            NotApplicable: they were not kept.
        """
        if self.reference is None:
            raise NotApplicable(NOT_KEPT)
        return self.reference


@dataclass(frozen=True, eq=False, kw_only=True)
class Said:
    """What audited models say of n examples.

    Attributes:
        reading: (T, n, 4) of the first query.
        signals: (T, n, Q) of every query, or None for one.
        outputs: (T, n, K), with queries (T, n, Q, K), or None.
        targets: (n,), what outputs are read by; needed beside them.
    """

    reading: Float
    signals: Float | None = None
    outputs: Logits | None = None
    targets: NDArray[np.int64] | None = None

    @classmethod
    def of_outputs(
        cls, outputs: Logits, targets: NDArray[np.int64], *, task: Task, constants: Constants = NO_CONSTANTS
    ) -> Said:
        """Read from outputs; the first query counts, but for the signals."""
        assert isinstance(task, OutputTask)
        if outputs.ndim == 3:
            return cls(reading=task.reading_of(outputs, targets, constants).values, outputs=outputs, targets=targets)
        each = [task.reading_of(outputs[:, :, q], targets, constants) for q in range(outputs.shape[2])]
        signals = np.stack([reading.signal for reading in each], axis=-1)
        return cls(reading=each[0].values, signals=signals, outputs=outputs, targets=targets)

    @property
    def first_outputs(self) -> Logits | None:
        """(T, n, K): the first query."""
        return self.outputs if self.outputs is None or self.outputs.ndim == 3 else self.outputs[:, :, 0]


def on_reference_scale(
    candidates: Said,
    points: Said,
    *,
    reference: Float,
    spoken: Logits | None,
    task: Task,
    constants: Constants = NO_CONSTANTS,
) -> tuple[Said, Said]:
    """Candidates and population points as they would be said on the scale of the reference models, one map a model.

    Args:
        candidates, points: of the same T models; points are non-members of every model.
        reference: (M, P, 4) readings of the points by the reference models.
        spoken: sample of the reference models' outputs on the points, any shape; None where they have none.
        task, constants: what outputs are read by.

    Raises:
        InvalidInput: too few points to read a scale off.
    """
    if spoken is not None and candidates.outputs is not None and points.outputs is not None:
        maps = [to_reference_scale(own, spoken, knots=OUTPUT_KNOTS) for own in points.outputs]
        candidates, points = (
            Said.of_outputs(
                np.stack([to_scale(z) for to_scale, z in zip(maps, said.outputs, strict=True)]),  # type: ignore[arg-type]
                said.targets,  # type: ignore[arg-type]
                task=task,
                constants=constants,
            )
            for said in (candidates, points)
        )
    models = range(len(points.reading))
    own = Reading(points.reading)
    by_signal = [to_reference_scale(own.signal[t], Reading(reference).signal) for t in models]
    seen = []
    for said in (candidates, points):
        values = said.reading.copy()
        for t in models:
            values[t, :, 1] = by_signal[t](said.reading[t, :, 1])
            of_signal = task.of_signal(values[t, :, 1])
            if of_signal is not None:
                values[t, :, 0], values[t, :, 2] = of_signal
                continue
            for column in (0, 2):
                to_scale = to_reference_scale(points.reading[t, :, column], reference[:, :, column])
                values[t, :, column] = to_scale(said.reading[t, :, column])
        signals = said.signals
        if signals is not None:
            signals = np.stack([by_signal[t](signals[t]) for t in models])
        seen.append(dataclasses.replace(said, reading=values, signals=signals))
    return seen[0], seen[1]


def check_outputs(
    name: str,
    outputs: Logits,
    targets: NDArray[np.int64],
    *,
    ids: NDArray[np.int64],
    num_classes: int,
    queries: bool = True,
) -> None:
    """Refuse what is no set of class logits of these examples.

    Raises:
        DataError: names the array, and the examples whose label is none or whose logits are not finite.
    """
    ndims = (3, 4) if queries else (3,)
    if outputs.ndim not in ndims or outputs.shape[1] != len(targets) or outputs.shape[-1] < 2 or not len(outputs):
        raise DataError(f"{name} has shape {outputs.shape}; expected (models, {len(targets)}, classes >= 2)")
    if outputs.shape[-1] != num_classes:
        raise DataError(f"{name} has {outputs.shape[-1]} classes, target_logits {num_classes}")
    if not np.issubdtype(outputs.dtype, np.floating):
        raise DataError(f"{name} must be floating point, not {outputs.dtype}")
    outside = (targets < 0) | (targets >= num_classes)
    if outside.any():
        raise DataError(f"{name}: labels outside [0, {num_classes})", example_ids=ids[outside])
    # One pass without a temporary the size of the outputs: a sum over finite numbers is finite unless it overflows.
    if not np.isfinite(outputs.sum(dtype=np.float64)):
        bad = ~np.isfinite(outputs).reshape(len(outputs), len(targets), -1).all(axis=(0, 2))
        if bad.any():
            raise DataError(f"{name} holds values that are not finite", example_ids=ids[bad])
