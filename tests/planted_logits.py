"""Evidence about classifiers whose outputs are known, of which single arrays can be replaced: attacks read it as any
other."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from attacks.membership import Evidence


@dataclass(frozen=True, eq=False, kw_only=True)
class LogitEvidence:
    """Fields as of ``Evidence.of_logits``; everything else is that of the evidence made of them."""

    example_id: np.ndarray
    labels: np.ndarray
    target_logits: np.ndarray
    reference_logits: np.ndarray | None = None
    keep: np.ndarray | None = None
    population_labels: np.ndarray | None = None
    population_target_logits: np.ndarray | None = None
    population_reference_logits: np.ndarray | None = None
    target_index: np.ndarray | None = None
    calibrated: bool = False

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        object.__setattr__(self, "made", Evidence.of_logits(**given))

    def __getattr__(self, name: str) -> Any:
        if name == "made":
            raise AttributeError(name)
        return getattr(self.made, name)
