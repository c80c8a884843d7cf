"""Forget a uniformly random fraction: the usual benchmark of unlearning ("random data forgetting").

    forget = first round(fraction * N) of a random permutation of the training ids

With one seed the sets are nested: what 10% forgets is part of what 20% forgets. The draw depends on the ids and the
seed, not on the order of the rows.

``by`` names a column whose values are drawn as a whole, in random order, until the fraction is reached. A removed
example is compared with unseen ones, and they are its peers only if neither has more of its kind among what is
retained: where the test split was drawn by group (the same thing in several pictures, chunks of a document), so must be
what is forgotten. An audit that draws examples apart from their group finds even retraining guilty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from contracts.methods import CuratorSpec, curator
from contracts.params import param
from curation.members import ForgetConfig, forget_retain, training_ids
from sources.example_set import ExampleSet


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomFractionConfig(ForgetConfig):
    fraction: float = param(0.1, gt=0, lt=1, doc="share of the training examples")
    by: str = param("", doc="column of the data whose values are drawn as a whole, for instance group; '': examples")


@curator(
    CuratorSpec(
        name="random_fraction",
        doc="Forgets a random fraction of the training examples.",
        random=True,
        source="Fan et al., SalUn, ICLR 2024, section 5 (random data forgetting)",
        config=RandomFractionConfig,
        after_erasure="drop",
    )
)
def random_fraction(data: ExampleSet, *, config: RandomFractionConfig, seed: int) -> pl.DataFrame:
    """(example_id, role, reason) over the training split.

    Raises:
        ConfigError: ``by`` is no column of the data.
        DataError: the fraction rounds to no example (unless ``allow_empty``), or to all.
    """
    train, rng = training_ids(data), np.random.default_rng(seed)
    wanted = round(config.fraction * len(train))
    chosen = _whole_values(data, train, config.by, wanted, rng) if config.by else rng.permutation(train)[:wanted]
    return forget_retain(
        data,
        chosen,
        what=f"fraction {config.fraction:g} of {len(train)} examples" + (f" by {config.by}" if config.by else ""),
        reason=f"drawn at random with its {config.by}" if config.by else "drawn at random",
        allow_empty=config.allow_empty,
    )


def _whole_values(data: ExampleSet, train: np.ndarray, by: str, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Ids of the training examples of as many random values of a column as are needed for ``wanted`` of them."""
    column = data.column(by, asked="RandomFractionConfig.by")
    _, value, num = np.unique(column[data.positions(train)], return_inverse=True, return_counts=True)
    order = rng.permutation(len(num))
    needed = int(np.searchsorted(num[order].cumsum(), wanted)) + 1 if wanted else 0
    return train[np.isin(value, order[:needed])]
