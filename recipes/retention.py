"""What a trained model's recipe still holds of its training data besides the weights, beside the model itself.

A recipe that keeps examples (a replay buffer) or what is computed from them (a Fisher information) says so on the model
it returns:
an erasure must reach these too, and an audit asks whether they show. A copy of the model carries it along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

_NAME = "palimpsest_retained"


@dataclass(frozen=True, eq=False, kw_only=True)
class Retained:
    """Attributes:
    example_id: (n,) int64, ascending: the examples that are kept as they are.
    derived: arrays computed from the data, by name.
    """

    example_id: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    derived: Mapping[str, np.ndarray] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """For an artefact store; empty when nothing is retained."""
        kept = {"example_id": self.example_id} if len(self.example_id) else {}
        return kept | {f"derived/{name}": values for name, values in self.derived.items()}


def retain(model: nn.Module, retained: Retained) -> None:
    """Say on ``model`` what its recipe retains; no parameter, no buffer, so the model's arrays are as before."""
    object.__setattr__(model, _NAME, retained)


def retained_of(model: nn.Module) -> Retained:
    """What the recipe of ``model`` retains; nothing where it does not say."""
    found = getattr(model, _NAME, None)
    return found if isinstance(found, Retained) else Retained()


def held(model: nn.Module, example_id: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) bool: which of these examples the model's recipe still keeps."""
    return np.isin(example_id, retained_of(model).example_id)
