"""Ground truth by planting: labels of known training examples are changed, so that a score can be judged.

    flipped = round(fraction * N_train) training ids, drawn without replacement
    y'_i = (y_i + u_i) mod K,  u_i uniform on 1..K-1          (a uniformly drawn *other* class)

The draw depends on (ids, labels, seed), not on the order of the rows. Test examples are never touched.
Not a noise model of real annotators (those confuse alike classes); symmetric noise is what cards 15 and 26 measure on.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from contracts.errors import ConfigError, NotApplicable
from sources.example_set import ExampleSet


def plant_label_noise(examples: ExampleSet, *, fraction: float, seed: int) -> tuple[ExampleSet, np.ndarray]:
    """Change the labels of a fraction of the training examples.

    Args:
        examples: a classification set.
        fraction: share of the training examples, in (0, 1].
        seed: of the draw.

    Returns:
        the set with the planted labels (same ids, values and hashes), and the changed ids, ascending int64.

    Raises:
        NotApplicable: regression.
        ConfigError: fraction out of range.
        DataError: a class would be left without a training example.
    """
    if examples.task != "classification":
        raise NotApplicable("label noise is planted in class labels; this set is for regression")
    if not 0 < fraction <= 1:
        raise ConfigError(f"plant_label_noise: fraction = {fraction!r} is outside (0, 1]")
    rng = np.random.default_rng(seed)
    train = np.sort(examples.example_id[examples.split == "train"])
    flipped = np.sort(rng.permutation(train)[: round(fraction * len(train))])
    rows = examples.positions(flipped)
    y = examples.y.copy()
    y[rows] = (y[rows] + rng.integers(1, examples.num_classes, len(rows))) % examples.num_classes
    planted = dataclasses.replace(
        examples,
        y=y,
        provenance={**examples.provenance, "planted_label_noise": {"fraction": fraction, "seed": seed}},
    )
    planted.validate()
    return planted, flipped
