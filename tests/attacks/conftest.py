"""Planted evidence: models whose log-odds are higher by a known amount where the example was in training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from planted_logits import LogitEvidence


def make_evidence(
    seed: int,
    *,
    models: int = 12,
    examples: int = 30,
    classes: int = 4,
    points: int = 25,
    gain: float = 2.0,
    balanced: bool = True,
    queries: int = 1,
    self_targets: bool = True,
) -> LogitEvidence:
    """Every model is a target left out of its own references, or the last three are targets outside the references."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=examples)
    if balanced:
        keep = rng.random((models, examples)).argsort(axis=0) < models // 2
    else:
        keep = rng.random((models, examples)) < 0.5
        keep[:4] = [[True], [True], [False], [False]]
    hard = rng.normal(0, 1, (1, examples))
    logits = rng.normal(0, 1, (models, examples, queries, classes))
    logits[:, np.arange(examples), :, labels] += (1 + hard + gain * keep).T[..., None]
    logits = logits.astype(np.float32)
    if queries == 1:
        logits = logits[:, :, 0]
    z_labels = rng.integers(classes, size=points)
    z = rng.normal(0, 1, (models, points, classes)).astype(np.float32)
    z[:, np.arange(points), z_labels] += 1
    cut = models if self_targets else models - 3
    return LogitEvidence(
        example_id=np.arange(100, 100 + examples),
        labels=labels,
        target_logits=logits if self_targets else logits[cut:],
        reference_logits=logits[:cut],
        keep=keep[:cut],
        population_labels=z_labels,
        population_target_logits=z if self_targets else z[cut:],
        population_reference_logits=z[:cut],
        target_index=np.arange(models) if self_targets else None,
    )


@pytest.fixture
def planted() -> Callable[..., LogitEvidence]:
    return make_evidence


def others(evidence: LogitEvidence, t: int) -> np.ndarray:
    """Rows of the references that target t may be compared with."""
    rows = np.arange(evidence.num_references)
    return rows[rows != evidence.left_out[t]]


@pytest.fixture
def references_of() -> Callable[[LogitEvidence, int], np.ndarray]:
    return others
