"""Forget a uniformly random fraction: the usual benchmark of unlearning ("random data forgetting").

    forget = first round(fraction * N) of a random permutation of the training ids

With one seed the sets are nested: what 10% forgets is part of what 20% forgets. The draw depends on the ids and the
seed, not on the order of the rows.
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


@curator(
    CuratorSpec(
        name="random_fraction",
        doc="Forgets a random fraction of the training examples.",
        random=True,
        source="Fan et al., SalUn, ICLR 2024, section 5 (random data forgetting)",
        config=RandomFractionConfig,
    )
)
def random_fraction(data: ExampleSet, *, config: RandomFractionConfig, seed: int) -> pl.DataFrame:
    """(example_id, role, reason) over the training split.

    Raises:
        DataError: the fraction rounds to no example (unless ``allow_empty``), or to all.
    """
    train = training_ids(data)
    chosen = np.random.default_rng(seed).permutation(train)[: round(config.fraction * len(train))]
    return forget_retain(
        data,
        chosen,
        what=f"fraction {config.fraction:g} of {len(train)} examples",
        reason="drawn at random",
        allow_empty=config.allow_empty,
    )
