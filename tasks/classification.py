"""Classification: one of K classes an example.

    loss            cross-entropy, -log p_y (nats)
    signal          log p_y - log(1 - p_y)                    Carlini et al., IEEE S&P 2022: near normal over models
    log_likelihood  log p_y
    quality         1 where the largest logit is the label's, the first of equals

Everything from logits, in float64 and in log space (``tasks.signals``): 1 - p_y of a float32 softmax is 0 for most
members.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError
from contracts.methods import EVERY_TASK, TaskSpec, task
from tasks.base import Constants, Examples, OutputTask, Reading
from tasks.signals import log_odds, loss_from_log_odds

if TYPE_CHECKING:
    from torch import Tensor


@task(
    TaskSpec(
        name="classification",
        doc="One of K classes an example.",
        source="Carlini et al., IEEE S&P 2022 (signal)",
        gives=(*EVERY_TASK, "outputs", "classes", "features"),
        quality="accuracy",
        loss="cross-entropy (nats)",
    )
)
class Classification(OutputTask):
    """See the file."""

    def losses_of(self, outputs: Any, targets: Any) -> Tensor:
        """Cross-entropy (B,) of logits (B, K) and labels (B,)."""
        from torch.nn import functional as F

        return F.cross_entropy(outputs, targets, reduction="none")

    def reading_of(self, outputs: NDArray[Any], targets: NDArray[Any], constants: Constants) -> Reading:
        """From logits (..., N, K) and labels (N,)."""
        phi = log_odds(outputs, targets)
        loss = loss_from_log_odds(phi)
        return Reading.of(loss=loss, signal=phi, log_likelihood=-loss, quality=outputs.argmax(-1) == targets)

    def of_signal(self, signal: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Cross-entropy and log p_y of log-odds."""
        loss = loss_from_log_odds(signal)
        return loss, -loss

    def wrong_targets(self, data: Examples, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[Any]:
        """Another class, drawn uniformly."""
        num = len(data.class_names)
        return np.asarray((data.y[rows] + rng.integers(1, num, len(rows))) % num)

    def check_targets(self, data: Examples) -> None:
        check_labels(data)

    def check(self, data: Examples) -> None:
        """At least two classes of different names, every one of them with a training example."""
        check_names(data, "class", self.name)
        check_labels(data)
        counts = np.bincount(data.y[data.split == "train"], minlength=len(data.class_names))
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            named = ", ".join(f"{data.class_names[k]!r} (index {k})" for k in empty[:10])
            raise data.refusal(
                f"{len(empty)} of {len(data.class_names)} classes have no training example: {named}",
                np.isin(data.y, empty),
            )

    def describe(self, data: Examples) -> str:
        return f"{len(data.class_names)} classes"

    def strata(self, x: Any, y: NDArray[Any], example_id: NDArray[np.int64]) -> NDArray[np.int64]:
        """The classes."""
        return y.astype(np.int64)

    def constant_quality(self, data: Examples) -> float:
        """The share of the commonest class."""
        return float(np.bincount(data.y).max() / len(data.y))

    def shown(self, data: Examples) -> dict[str, NDArray[Any]]:
        return {"label": data.y, "label_name": np.asarray(data.class_names)[data.y]}


def check_names(data: Examples, what: str, task_name: str) -> None:
    """Raises: DataError: fewer than two classes (items), or a name twice."""
    if len(data.class_names) < 2:
        raise DataError(f"{data.name}: {len(data.class_names)} {what}; {task_name} needs at least 2")
    distinct, counts = np.unique(data.class_names, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{data.name}: class name {str(distinct[counts > 1][0])!r} is used more than once")


def check_labels(data: Examples) -> None:
    """Raises: DataError: labels that are no class (item) of these data; names the examples."""
    num = len(data.class_names)
    outside = (data.y < 0) | (data.y >= num)
    if outside.any():
        rows = np.flatnonzero(outside)[np.argsort(data.example_id[outside])]
        raise data.refusal(f"labels outside 0..{num - 1}, the first is label {data.y[rows[0]]}", rows)
