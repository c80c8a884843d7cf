"""What a membership attack may look at: candidates, and what the audited and the reference models say of them.

Legend: T audited models, M reference models, N candidate examples, P population points, Q queries an example, K
    classes.

    target (T, N, 4)   reference (M, N, 4)   readings: loss, signal, log-likelihood, quality (``tasks.base.Reading``)
    keep (M, N): reference m trained on example n
    population_target (T, P, 4)   population_reference (M, P, 4)   of examples that no model was trained on
    tokens: what the audited models say of every token    base (N, 4): what the model said before it was trained
    target_index (T,): which reference the audited model is (left out of its own statistics), -1 for none

So an attack runs on every task. The few that read whole outputs declare ``wants=("outputs", "classes")`` and ask
``evidence.outputs``; those that read single tokens want "tokens" and ask ``evidence.token_readings``; those that
compare with the model before its training declare ``base`` and ask ``evidence.base_loss``. With Q > 1 queries an
example (identity first, then for instance a horizontal flip; Carlini et al. 2022) ``target_signals`` is (T, N, Q) and
``reference_signals`` (M, N, Q): LiRA averages over the queries; everything else is of the first.

The constructors ``of_ensemble`` and ``of_logits`` map what the audited models say to the references' scale when asked
to (``calibrated``; ``outputs.on_reference_scale``): a verdict then does not change when all outputs of an audited model
go through an increasing map. Published attacks, and the figures compared with the authors' codes, are without; audits
are with. Token readings are on no scale of reference models: audits take the temperature out of them (``temperature``).
The base is read as it is; nobody who is audited decides what it says.

Not here: the truth about the audited models. Membership of a target among the references is in ``keep`` because its
siblings need it, and no attack may use row ``target_index[t]`` of it, or of the readings, against target t.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from attacks.membership.outputs import Float, Logits, Outputs, Said, check_outputs, on_reference_scale
from attacks.membership.tokens import TokenReadings
from contracts.errors import ConfigError, DataError, InvalidInput, NotApplicable
from recipes.ensemble import ReferenceEnsemble
from tasks.base import NO_CONSTANTS, READING, Constants, Task, named

_LOSS, _SIGNAL, _LOG_LIKELIHOOD, _QUALITY = range(len(READING))


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """Validated on construction; each of the four numbers is laid out once, on first use, and shared by all attacks.

    Attributes:
        likeliest: log-likelihood of the best answer there can be (``tasks.base.Task.likeliest``).
        whole: outputs, where they were kept.
        tokens, base: where an attack reads them; as the models say it, on no other scale.
        Others: see the module.

    Raises:
        DataError: shapes that do not fit, ids twice, readings that are not finite (the message names the examples).
    """

    example_id: NDArray[np.int64]
    target: Float
    reference: Float | None = None
    keep: NDArray[np.bool_] | None = None
    population_target: Float | None = None
    population_reference: Float | None = None
    target_index: NDArray[np.int64] | None = None
    target_signals: Float | None = None
    reference_signals: Float | None = None
    likeliest: float = 0.0
    whole: Outputs | None = None
    tokens: TokenReadings | None = None
    base: Float | None = None

    def __post_init__(self) -> None:
        num = len(self.example_id)
        if self.example_id.ndim != 1 or num == 0 or len(np.unique(self.example_id)) != num:
            raise DataError("example_id must be a non-empty vector of distinct ids")
        self._check("target", self.target, self.example_id)
        if (self.reference is None) != (self.keep is None):
            raise DataError("the reference models' readings and keep come together")
        if self.reference is not None and self.keep is not None:
            self._check("reference", self.reference, self.example_id)
            if self.keep.dtype != np.bool_ or self.keep.shape != self.reference.shape[:2]:
                raise DataError(
                    f"keep must be bool of shape {self.reference.shape[:2]}, not {self.keep.dtype} {self.keep.shape}"
                )
        self._check_population()
        self._check_queries()
        if self.base is not None:
            self._check("base", self.base[None], self.example_id)
        if self.tokens is not None:
            self.tokens.check(models=self.num_targets, ids=self.example_id)
        if self.target_index is not None:
            index = self.target_index
            if index.shape != (self.num_targets,) or (index < -1).any() or (index >= self.num_references).any():
                raise DataError(
                    f"target_index must be ({self.num_targets},) with values in [-1, {self.num_references})"
                )

    def _check_population(self) -> None:
        if self.population_target is None:
            if self.population_reference is not None:
                raise DataError("population points are read by the audited models too")
            return
        points = np.arange(self.population_target.shape[1]) if self.population_target.ndim == 3 else np.arange(0)
        own, theirs = ("population_target", self.num_targets), ("population_reference", self.num_references)
        for (name, models), values in zip(
            (own, theirs), (self.population_target, self.population_reference), strict=True
        ):
            if values is None:
                continue
            self._check(name, values, points)
            if len(values) != models:
                raise DataError(f"{name} has {len(values)} models, not {models}")

    def _check_queries(self) -> None:
        for name, models in (("target_signals", self.num_targets), ("reference_signals", self.num_references)):
            values = getattr(self, name)
            if values is not None and (values.ndim != 3 or values.shape[:2] != (models, len(self.example_id))):
                raise DataError(f"{name} has shape {values.shape}, not ({models}, {len(self.example_id)}, queries)")
        of = (self.target_signals, self.reference_signals)
        if self.reference is not None and ((of[0] is None) != (of[1] is None)):
            raise DataError("target_signals and reference_signals come together")
        if of[0] is not None and of[1] is not None and of[0].shape[2] != of[1].shape[2]:
            raise DataError(f"target_signals has {of[0].shape[2]} queries, reference_signals {of[1].shape[2]}")

    def _check(self, name: str, values: Float, ids: NDArray[np.int64]) -> None:
        if (
            values.dtype != np.float64
            or values.ndim != 3
            or values.shape[1:] != (len(ids), len(READING))
            or not len(values)
        ):
            raise DataError(
                f"{name} is {values.dtype} {values.shape}; expected float64 (models, {len(ids)}, {len(READING)})"
            )
        if not np.isfinite(values.sum()):
            bad = ~np.isfinite(values).all(axis=(0, 2))
            if bad.any():
                raise DataError(f"{name} holds values that are not finite", example_ids=ids[bad])

    @classmethod
    def of_ensemble(
        cls,
        ensemble: ReferenceEnsemble,
        reading: Float,
        logits: Logits | None = None,
        *,
        task: Task,
        constants: Constants = NO_CONSTANTS,
        target_index: NDArray[np.int64] | None = None,
        calibrated: bool = False,
        outputs: bool = False,
    ) -> Self:
        """The pool's examples as candidates, the population's as points, the ensemble's models as references.

        Args:
            ensemble: M models on N examples.
            reading: (T, N, 4) of the audited models on the ensemble's examples, in its order; the ensemble's own
                reading when its models are the audited ones.
            logits: (T, N, K) behind them, of a task that gives whole outputs: they are on no scale of their own once
                mapped.
            task, constants: of the data.
            target_index, calibrated: see the module.
            outputs: keep the whole outputs, for attacks that want them.

        Raises:
            NotApplicable: outputs that are wanted and were not given.
        """
        pool, own = ensemble.pool, reading is ensemble.reading
        labels = ensemble.labels
        whole = None if logits is None else (logits[:, pool], logits[:, ~pool])
        candidates = Said(reading=reading[:, pool], outputs=whole and whole[0], targets=labels[pool])
        points = Said(reading=reading[:, ~pool], outputs=whole and whole[1], targets=labels[~pool])
        reference = candidates.reading if own else ensemble.reading[:, pool]
        population = points.reading if own else ensemble.reading[:, ~pool]
        if calibrated:
            candidates, points = on_reference_scale(
                candidates, points, reference=population, spoken=ensemble.spoken, task=task, constants=constants
            )
        kept = None
        if outputs:
            if candidates.outputs is None:
                raise NotApplicable(f"the audited models' whole outputs are not there; a {task} task may give none")
            theirs = None if ensemble.logits is None else ensemble.logits[:, pool]
            kept = Outputs(labels=labels[pool], target=candidates.outputs, reference=theirs)
        return cls(
            example_id=ensemble.example_id[pool],
            target=candidates.reading,
            reference=reference,
            keep=ensemble.keep[:, pool],
            population_target=points.reading,
            population_reference=population,
            target_index=target_index,
            likeliest=task.likeliest,
            whole=kept,
        )

    @classmethod
    def of_logits(
        cls,
        *,
        example_id: NDArray[np.int64],
        labels: NDArray[np.int64],
        target_logits: Logits,
        reference_logits: Logits | None = None,
        keep: NDArray[np.bool_] | None = None,
        population_labels: NDArray[np.int64] | None = None,
        population_target_logits: Logits | None = None,
        population_reference_logits: Logits | None = None,
        target_index: NDArray[np.int64] | None = None,
        calibrated: bool = False,
    ) -> Self:
        """Of classifiers whose outputs are known, which are kept: logits (T, N, K), with queries (T, N, Q, K); labels
        (N,).

        Raises:
            DataError: as the class, and labels outside [0, K), logits that are not finite or no logits, naming the
                examples.
        """
        task, num_classes = named("classification"), int(target_logits.shape[-1])
        check_outputs("target_logits", target_logits, labels, ids=example_id, num_classes=num_classes)
        if reference_logits is not None:
            check_outputs("reference_logits", reference_logits, labels, ids=example_id, num_classes=num_classes)
            if reference_logits.shape[1:] != target_logits.shape[1:]:
                raise DataError(
                    f"reference_logits {reference_logits.shape} and target_logits {target_logits.shape} differ past "
                    "the models"
                )
        if (population_labels is None) != (population_target_logits is None):
            raise DataError("population_labels and population_target_logits come together")
        if calibrated and population_reference_logits is None:
            raise DataError("calibrated: the scale of a model is read off population points, and there are none")
        candidates = Said.of_outputs(target_logits, labels, task=task)
        reference, points, population = None, None, None
        if reference_logits is not None:
            same = reference_logits is target_logits
            reference = candidates if same else Said.of_outputs(reference_logits, labels, task=task)
        if population_labels is not None and population_target_logits is not None:
            ids = np.arange(len(population_labels))
            given = {"population_target_logits": population_target_logits}
            if population_reference_logits is not None:
                given["population_reference_logits"] = population_reference_logits
            for name, z in given.items():
                check_outputs(name, z, population_labels, ids=ids, num_classes=num_classes, queries=False)
            points = Said.of_outputs(population_target_logits, population_labels, task=task)
            if population_reference_logits is population_target_logits:
                population = points
            elif population_reference_logits is not None:
                population = Said.of_outputs(population_reference_logits, population_labels, task=task)
        if calibrated:
            assert points is not None and population is not None
            candidates, points = on_reference_scale(
                candidates, points, reference=population.reading, spoken=population_reference_logits, task=task
            )
        assert candidates.first_outputs is not None
        theirs = None if reference is None else reference.first_outputs
        return cls(
            example_id=example_id,
            target=candidates.reading,
            reference=None if reference is None else reference.reading,
            keep=keep,
            population_target=None if points is None else points.reading,
            population_reference=None if population is None else population.reading,
            target_index=target_index,
            target_signals=candidates.signals,
            reference_signals=None if reference is None else reference.signals,
            likeliest=task.likeliest,
            whole=Outputs(labels=labels, target=candidates.first_outputs, reference=theirs),
        )

    @property
    def num_targets(self) -> int:
        return len(self.target)

    @property
    def num_references(self) -> int:
        return 0 if self.reference is None else len(self.reference)

    @property
    def usable_references(self) -> int:
        """Reference models that every target has once it is left out of its own statistics."""
        return self.num_references - int((self.left_out >= 0).any())

    @property
    def outputs(self) -> Outputs:
        """The whole outputs.

        Raises:
            NotApplicable: they were not kept.
        """
        if self.whole is None:
            raise NotApplicable(
                "the attack reads whole outputs, one vector of class logits an example, and only readings were kept: "
                "either the task gives none, or the attack does not declare that it wants outputs"
            )
        return self.whole

    @property
    def token_readings(self) -> TokenReadings:
        """What the audited models say of every token.

        Raises:
            NotApplicable: it was not read.
        """
        if self.tokens is None:
            raise NotApplicable(
                "the attack reads single tokens, and nothing was read of them: either the task has none, or the attack "
                "is run where only readings of whole examples are"
            )
        return self.tokens

    @property
    def base_loss(self) -> Float:
        """(N,) loss of the model before it was trained.

        Raises:
            NotApplicable: it was not read.
        """
        if self.base is None:
            raise NotApplicable(
                "the attack compares with the model before its training, and that was not read: it is not known of a "
                "given model, and not read by audits of many models at once"
            )
        return np.ascontiguousarray(self.base[:, _LOSS])

    @property
    def nbytes(self) -> int:
        """Size of what is held, shared arrays once."""
        parts: list[NDArray[Any] | None] = [
            self.target,
            self.reference,
            self.keep,
            self.population_target,
            self.population_reference,
        ]
        parts += [self.target_signals, self.reference_signals]
        parts += [] if self.whole is None else [self.whole.target, self.whole.reference]
        parts += [self.base, None if self.tokens is None else self.tokens.target]
        return sum({id(part): part.nbytes for part in parts if part is not None}.values())

    @cached_property
    def left_out(self) -> NDArray[np.int64]:
        """(T,) the reference left out for each target, -1 for none."""
        return np.full(self.num_targets, -1) if self.target_index is None else self.target_index.astype(np.int64)

    @cached_property
    def target_signal(self) -> Float:
        """(Q, T, N) signals of the audited models."""
        return _queries(self.target_signals, self.target)

    @cached_property
    def reference_signal(self) -> Float:
        """(Q, M, N) signals of the reference models."""
        if self._shared:
            return self.target_signal
        assert self.reference is not None
        return _queries(self.reference_signals, self.reference)

    @cached_property
    def target_loss(self) -> Float:
        """(T, N) losses of the audited models."""
        return np.ascontiguousarray(self.target[:, :, _LOSS])

    @cached_property
    def reference_loss(self) -> Float:
        """(M, N) losses of the reference models."""
        if self._shared:
            return self.target_loss
        assert self.reference is not None
        return np.ascontiguousarray(self.reference[:, :, _LOSS])

    @cached_property
    def target_log_likelihood(self) -> Float:
        """(T, N) log-likelihoods under the audited models, less that of the best answer there can be."""
        return self.target[:, :, _LOG_LIKELIHOOD] - self.likeliest

    @cached_property
    def reference_log_likelihood(self) -> Float:
        """(M, N) the same under the reference models."""
        if self._shared:
            return self.target_log_likelihood
        assert self.reference is not None
        return self.reference[:, :, _LOG_LIKELIHOOD] - self.likeliest

    @property
    def target_quality(self) -> Float:
        """(T, N) in [0, 1]."""
        return np.ascontiguousarray(self.target[:, :, _QUALITY])

    @property
    def population_target_loss(self) -> Float:
        """(T, P) losses of the audited models on the population points."""
        assert self.population_target is not None
        return np.ascontiguousarray(self.population_target[:, :, _LOSS])

    @property
    def population_target_log_likelihood(self) -> Float:
        """(T, P) as ``target_log_likelihood``."""
        assert self.population_target is not None
        return self.population_target[:, :, _LOG_LIKELIHOOD] - self.likeliest

    @property
    def population_reference_log_likelihood(self) -> Float:
        """(M, P) as ``reference_log_likelihood``."""
        assert self.population_reference is not None
        return self.population_reference[:, :, _LOG_LIKELIHOOD] - self.likeliest

    @property
    def _shared(self) -> bool:
        """The audited models are the references, in their order and on their scale."""
        return self.reference is self.target and self.reference_signals is self.target_signals

    def references(self, attack: str, *, fewest: int) -> tuple[Float, NDArray[np.bool_]]:
        """The first query's signals (M, N) and ``keep`` (M, N).

        Raises:
            ConfigError: fewer than ``fewest`` reference models besides the target.
        """
        self.require_references(attack, fewest=fewest)
        assert self.keep is not None
        return self.reference_signal[0], self.keep

    def require_references(self, attack: str, *, fewest: int) -> None:
        if self.usable_references < fewest:
            raise ConfigError(
                f"attack {attack} needs at least {fewest} reference models besides the audited one, and there are "
                f"{self.usable_references}"
            )

    def require_population(self, attack: str, *, references: bool = False) -> None:
        """Raises: InvalidInput: no population points (known non-members of every model), or none of the references'."""
        if self.population_target is None:
            raise InvalidInput(f"attack {attack} needs population points: examples that no model was trained on")
        if references and self.population_reference is None:
            raise InvalidInput(
                f"attack {attack} needs population_reference: the reference models' readings of the population points"
            )


def _queries(signals: Float | None, reading: Float) -> Float:
    """(Q, models, N)."""
    return np.ascontiguousarray(reading[None, :, :, _SIGNAL] if signals is None else np.moveaxis(signals, -1, 0))
