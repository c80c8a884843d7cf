"""What a membership attack may look at: candidates, labels, and outputs of the audited and of the reference models.

Legend: T audited models, M reference models, N candidate examples, K classes, P population points, Q queries an example.

    labels (N,)   target_logits (T, N, K)   reference_logits (M, N, K)   keep (M, N): reference m trained on example n
    population_labels (P,)   population_target_logits (T, P, K)   population_reference_logits (M, P, K)
    target_index (T,): which reference the audited model is (left out of its own statistics), -1 for none

With Q > 1 queries an example (identity first, then for instance a horizontal flip; Carlini et al. 2022) the candidates'
logits are (T, N, Q, K) and (M, N, Q, K). LiRA averages over the queries; the other attacks use the first.

``calibrated=True`` maps the audited models' log-odds to the references' scale (``scale``): a verdict then does not change when
all outputs of an audited model go through an increasing map. Published attacks, and the figures compared with the authors'
codes, are without; audits are with.

Not here: the truth about the audited models. Membership of a target among the references is in ``keep`` because its
siblings need it, and no attack may use row ``target_index[t]`` of it, or of the logits, against target t.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from attacks.membership.scale import OUTPUT_KNOTS, MonotoneMap, to_reference_scale
from contracts.errors import ConfigError, DataError, InvalidInput
from recipes.ensemble import ReferenceEnsemble
from tasks import signals

Float = NDArray[np.float64]
Logits = NDArray[np.floating]


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """Validated on construction; signals are formed once, on first use, and shared by all attacks.

    Raises:
        DataError: shapes that do not fit, labels outside [0, K), ids twice, logits that are not finite
            (the message names the examples).
    """

    example_id: NDArray[np.int64]
    labels: NDArray[np.int64]
    target_logits: Logits
    reference_logits: Logits | None = None
    keep: NDArray[np.bool_] | None = None
    population_labels: NDArray[np.int64] | None = None
    population_target_logits: Logits | None = None
    population_reference_logits: Logits | None = None
    target_index: NDArray[np.int64] | None = None
    calibrated: bool = False

    def __post_init__(self) -> None:
        num = len(self.example_id)
        if self.example_id.ndim != 1 or num == 0 or len(np.unique(self.example_id)) != num:
            raise DataError("example_id must be a non-empty vector of distinct ids")
        self._check_logits("target_logits", self.target_logits, self.labels, None)
        if (self.reference_logits is None) != (self.keep is None):
            raise DataError("reference_logits and keep come together")
        if self.reference_logits is not None and self.keep is not None:
            self._check_logits("reference_logits", self.reference_logits, self.labels, None)
            if self.reference_logits.shape[1:] != self.target_logits.shape[1:]:
                raise DataError(
                    f"reference_logits {self.reference_logits.shape} and target_logits {self.target_logits.shape} differ past the models"
                )
            if self.keep.dtype != np.bool_ or self.keep.shape != self.reference_logits.shape[:2]:
                raise DataError(
                    f"keep must be bool of shape {self.reference_logits.shape[:2]}, not {self.keep.dtype} {self.keep.shape}"
                )
        if (self.population_labels is None) != (self.population_target_logits is None):
            raise DataError("population_labels and population_target_logits come together")
        if self.population_labels is not None and self.population_target_logits is not None:
            self._check_logits("population_target_logits", self.population_target_logits, self.population_labels, 3)
            if len(self.population_target_logits) != self.num_targets:
                raise DataError(
                    f"population_target_logits has {len(self.population_target_logits)} models, not {self.num_targets}"
                )
            if self.population_reference_logits is not None:
                self._check_logits(
                    "population_reference_logits", self.population_reference_logits, self.population_labels, 3
                )
                if len(self.population_reference_logits) != self.num_references:
                    raise DataError(
                        f"population_reference_logits has {len(self.population_reference_logits)} models, not {self.num_references}"
                    )
        if self.calibrated and self.population_reference_logits is None:
            raise DataError("calibrated: the scale of a model is read off population points, and there are none")
        if self.target_index is not None:
            index = self.target_index
            if index.shape != (self.num_targets,) or (index < -1).any() or (index >= self.num_references).any():
                raise DataError(
                    f"target_index must be ({self.num_targets},) with values in [-1, {self.num_references})"
                )

    @classmethod
    def of_ensemble(
        cls,
        ensemble: ReferenceEnsemble,
        target_logits: Logits,
        *,
        target_index: NDArray[np.int64] | None = None,
        calibrated: bool = False,
    ) -> Self:
        """The pool's examples as candidates, the population's as points, the ensemble's models as references.

        Args:
            ensemble: M models on N examples.
            target_logits: (T, N, K) of the audited models on the ensemble's examples, in its order; the ensemble's own logits
                when its models are the audited ones.
            target_index, calibrated: see the class.
        """
        pool, own = ensemble.pool, target_logits is ensemble.logits
        candidates, points = target_logits[:, pool], target_logits[:, ~pool]
        return cls(
            example_id=ensemble.example_id[pool],
            labels=ensemble.labels[pool],
            target_logits=candidates,
            reference_logits=candidates if own else ensemble.outputs[:, pool],
            keep=ensemble.keep[:, pool],
            population_labels=ensemble.labels[~pool],
            population_target_logits=points,
            population_reference_logits=points if own else ensemble.outputs[:, ~pool],
            target_index=target_index,
            calibrated=calibrated,
        )

    def _check_logits(self, name: str, logits: Logits, labels: NDArray[np.int64], ndim: int | None) -> None:
        ndims = (3, 4) if ndim is None else (ndim,)
        if logits.ndim not in ndims or logits.shape[1] != len(labels) or logits.shape[-1] < 2 or not len(logits):
            raise DataError(f"{name} has shape {logits.shape}; expected (models, {len(labels)}, classes >= 2)")
        if logits.shape[-1] != self.target_logits.shape[-1]:
            raise DataError(f"{name} has {logits.shape[-1]} classes, target_logits {self.target_logits.shape[-1]}")
        if not np.issubdtype(logits.dtype, np.floating):
            raise DataError(f"{name} must be floating point, not {logits.dtype}")
        outside = (labels < 0) | (labels >= logits.shape[-1])
        ids = self.example_id if labels is self.labels else np.arange(len(labels))
        if outside.any():
            raise DataError(f"{name}: labels outside [0, {logits.shape[-1]})", example_ids=ids[outside])
        # One pass without a temporary the size of the logits: a sum over finite numbers is finite unless it overflows.
        if not np.isfinite(logits.sum(dtype=np.float64)):
            bad = ~np.isfinite(logits).reshape(len(logits), len(labels), -1).all(axis=(0, 2))
            if bad.any():
                raise DataError(f"{name} holds values that are not finite", example_ids=ids[bad])

    @property
    def num_targets(self) -> int:
        return len(self.target_logits)

    @property
    def num_references(self) -> int:
        return 0 if self.reference_logits is None else len(self.reference_logits)

    @property
    def usable_references(self) -> int:
        """Reference models that every target has once it is left out of its own statistics."""
        return self.num_references - int((self.left_out >= 0).any())

    @cached_property
    def left_out(self) -> NDArray[np.int64]:
        """(T,) the reference left out for each target, -1 for none."""
        return np.full(self.num_targets, -1) if self.target_index is None else self.target_index.astype(np.int64)

    @cached_property
    def _output_maps(self) -> list[MonotoneMap]:
        """T increasing maps from the audited models' outputs to the references' scale."""
        assert self.population_target_logits is not None and self.population_reference_logits is not None
        return [
            to_reference_scale(own, self.population_reference_logits, knots=OUTPUT_KNOTS)
            for own in self.population_target_logits
        ]

    @cached_property
    def _phi_maps(self) -> list[MonotoneMap]:
        """T increasing maps from the log-odds of the mapped outputs to the references' scale."""
        assert self.population_target_logits is not None and self.population_labels is not None
        own = signals.log_odds(self._on_scale(self.population_target_logits), self.population_labels)
        return [to_reference_scale(row, self.population_reference_phi) for row in own]

    def _on_scale(self, logits: Logits) -> Logits:
        """Outputs of the audited models, models first, as attacks see them."""
        if not self.calibrated:
            return logits
        return np.stack([to_scale(z) for to_scale, z in zip(self._output_maps, logits, strict=True)])

    def _seen(self, logits: Logits, labels: NDArray[np.int64]) -> Float:
        """(Q, T, n) log-odds of the audited models as attacks see them."""
        phi = _phi(self._on_scale(logits), labels)
        if self.calibrated:
            for t, to_scale in enumerate(self._phi_maps):
                phi[:, t] = to_scale(phi[:, t])
        return np.asarray(phi)

    @cached_property
    def first_target_logits(self) -> Logits:
        """(T, N, K): the first query."""
        first = self.target_logits if self.target_logits.ndim == 3 else self.target_logits[:, :, 0]
        return self._on_scale(first)

    @cached_property
    def first_reference_logits(self) -> Logits:
        """(M, N, K): the first query."""
        assert self.reference_logits is not None
        return self.reference_logits if self.reference_logits.ndim == 3 else self.reference_logits[:, :, 0]

    @cached_property
    def target_phi(self) -> Float:
        """(Q, T, N) log-odds of the audited models."""
        return self._seen(self.target_logits, self.labels)

    @cached_property
    def reference_phi(self) -> Float:
        """(Q, M, N) log-odds of the reference models."""
        assert self.reference_logits is not None
        if self.reference_logits is self.target_logits and not self.calibrated:
            return self.target_phi
        return _phi(self.reference_logits, self.labels)

    @cached_property
    def population_target_phi(self) -> Float:
        """(T, P) log-odds of the audited models on the population points."""
        assert self.population_target_logits is not None and self.population_labels is not None
        return np.asarray(self._seen(self.population_target_logits, self.population_labels)[0])

    @cached_property
    def population_reference_phi(self) -> Float:
        """(M, P) log-odds of the reference models on the population points."""
        assert self.population_reference_logits is not None and self.population_labels is not None
        if self.population_reference_logits is self.population_target_logits and not self.calibrated:
            return self.population_target_phi
        return signals.log_odds(self.population_reference_logits, self.population_labels)

    def references(self, attack: str, *, fewest: int) -> tuple[Float, NDArray[np.bool_]]:
        """The first query's log-odds (M, N) and ``keep`` (M, N).

        Raises:
            ConfigError: fewer than ``fewest`` reference models besides the target.
        """
        self.require_references(attack, fewest=fewest)
        assert self.keep is not None
        return self.reference_phi[0], self.keep

    def require_references(self, attack: str, *, fewest: int) -> None:
        if self.usable_references < fewest:
            raise ConfigError(
                f"attack {attack} needs at least {fewest} reference models besides the audited one, and there are {self.usable_references}"
            )

    def require_population(self, attack: str, *, references: bool = False) -> None:
        """Raises: InvalidInput: no population points (known non-members of every model), or none of the references'."""
        if self.population_target_logits is None:
            raise InvalidInput(f"attack {attack} needs population points: examples that no model was trained on")
        if references and self.population_reference_logits is None:
            raise InvalidInput(
                f"attack {attack} needs population_reference_logits: the reference models' outputs on the population points"
            )


def _phi(logits: Logits, labels: NDArray[np.int64]) -> Float:
    if logits.ndim == 3:
        return signals.log_odds(logits, labels)[None]
    return np.stack([signals.log_odds(logits[:, :, q], labels) for q in range(logits.shape[2])])
