"""What a synthetic set is worth: fresh networks trained on it and nothing else, read on examples that no one distilled.

    student   SGD from a fresh initialisation at the set's own step size, momentum 0.9, weight decay; the rate times 0.1
              at half of the epochs; cross-entropy with the labels' probabilities (one softmax, taken here)
    soft      targets softmax(y);      hard   the class that an image was made for
    acc       after the last epoch: the best of several readings on the same examples would be optimistic

A set is compared with the real images that it started from, with random real ones, with coresets of the same size
(k-center, herding, facility location) in what a trained expert sees, and with all training examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.params import Config, param
from curation.coverage.choosing import Rule
from curation.coverage.facility_location import greedy
from curation.coverage.herding import herded
from curation.coverage.k_center import farthest_first
from curation.distilled.augment import STRATEGIES, Augment
from curation.distilled.descent import Descent
from curation.distilled.flat import FlatNetwork, one_hot
from explain.embeddings import last_linear

_RULES: dict[str, Rule] = {"k_center": farthest_first, "herding": herded, "facility_location": greedy}
CORESETS = tuple(_RULES)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig(Config):
    """How students are trained on a set of a few examples."""

    epochs: int = param(1000, ge=1, le=1_000_000, doc="epochs of a student")
    batch: int = param(128, ge=1, le=1_000_000, unit="examples", doc="of a student's step")
    momentum: float = param(0.9, ge=0, lt=1, doc="of a student")
    late_momentum: float | None = param(None, ge=0, lt=1, doc="from half of the epochs on; none: the same; AST: 0.8")
    weight_decay: float = param(5e-4, ge=0, le=1, doc="added to the gradient; AST: 1e-3")
    decay: float = param(0.1, gt=0, le=1, doc="factor of the rate from half of the epochs on; AST: 0.5")
    augment: tuple[str, ...] = param(STRATEGIES, choices=STRATEGIES, doc="kinds of augmentation; none for []")

    def descent(self, rate: float) -> Descent:
        """The training that these fields say, at a step size."""
        half = self.epochs // 2
        late = self.momentum if self.late_momentum is None else self.late_momentum
        return Descent(
            epochs=self.epochs,
            batch=self.batch,
            rate=lambda epoch: rate * (self.decay if epoch >= half else 1.0),
            momentum=lambda epoch: late if epoch >= half else self.momentum,
            weight_decay=self.weight_decay,
            augment=Augment(self.augment),
        )


def train_students(
    network: FlatNetwork, x: Tensor, targets: Tensor, *, rate: float, config: StudentConfig, seeds: Sequence[int]
) -> Tensor:
    """Fresh networks trained on a set: (S, D), one a seed.

    Args:
        x: (n, *shape). targets: (n, K) probabilities: labels' softmax, or indicators of classes.
        rate: their step size.

    Raises:
        Diverged: a parameter is not finite.
    """
    thetas = torch.stack([network.initial(derive_seed("student", seed)) for seed in seeds])
    return config.descent(rate).run(network, thetas, x, targets, seeds=list(seeds))


def coreset(
    name: str, network: FlatNetwork, expert: Tensor, x: Tensor, y: Tensor, *, per_class: int, num_classes: int
) -> NDArray[np.int64]:
    """Positions of ``per_class`` examples of every class that a rule of ``curation.coverage`` chooses.

    Args:
        name: of ``CORESETS``. expert: (D,), in whose activations the rule sees examples; facility location, by the
            gradients of its loss in the logits (CRAIG).
        x: (N, *shape), on the scale that the expert was trained on; y: (N,), classes.
    """
    if name == "facility_location":
        logits = network.logits(expert, x).double()
        features = (logits.softmax(1) - one_hot(y, num_classes, logits.dtype)).float().cpu().numpy()
    else:
        features = activations(network.module(expert), x)
    chosen, labels = [], y.cpu().numpy()
    for label in range(num_classes):
        rows = np.flatnonzero(labels == label)
        chosen.append(rows[_RULES[name](features[rows], per_class)])
    return np.concatenate(chosen)


@torch.no_grad()
def activations(model: nn.Module, x: Tensor, *, batch: int = 1024) -> NDArray[np.float32]:
    """The input of a model's last linear layer on images as they are given: float32 (N, d)."""
    _, head = last_linear(model)
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].float().cpu()))
    try:
        for block in x.split(batch):
            model(block)
    finally:
        handle.remove()
    return torch.cat(seen).numpy()
