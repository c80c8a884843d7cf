"""Manipulated data sets and the part of a manipulation that has been identified (corrective unlearning).

    S_m = what was manipulated (``add_poison_trigger``, ``interclass_confusion``, ``random_label_swap``,
    ``label_noise``, of ``sources``)
    S_f = uniform subset of S_m of size fraction * |S_m|, at least one: the forget set; the rest of S_m stays in the
    retain set

Source: Goel et al., "Corrective Machine Unlearning", TMLR 2024 (arXiv 2402.14015), sections 3 and 4. Retraining without
    S_f is no
gold standard here: the part of S_m that nobody identified brings the harm back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from contracts.errors import ConfigError, DataError
from contracts.identity import MAX_EXAMPLE_ID
from contracts.methods import CuratorSpec, curator
from contracts.params import param
from curation.members import ForgetConfig, forget_retain, training_ids
from sources.example_set import ExampleSet
from sources.planted_poison import (
    add_poison_trigger,
    corrupt_labels,
    interclass_confusion,
    label_noise,
    random_label_swap,
    sample_deletion_set,
)

__all__ = [
    "DeletionSetConfig",
    "add_poison_trigger",
    "corrupt_labels",
    "deletion_set",
    "interclass_confusion",
    "label_noise",
    "random_label_swap",
    "sample_deletion_set",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeletionSetConfig(ForgetConfig):
    ids: tuple[int, ...] = param(ge=0, le=MAX_EXAMPLE_ID, doc="S_m, the training examples known to be manipulated")
    fraction: float = param(0.1, gt=0, le=1, doc="share of them that has been identified")

    def check(self) -> None:
        if not self.ids or len(set(self.ids)) < len(self.ids):
            raise ConfigError("DeletionSetConfig.ids needs at least one example, each once")


@curator(
    CuratorSpec(
        name="deletion_set",
        doc="Forgets the identified part of a known manipulation; the rest of it stays in the retain set.",
        source="Goel et al., TMLR 2024 (arXiv 2402.14015)",
        config=DeletionSetConfig,
        after_erasure="drop",
    )
)
def deletion_set(data: ExampleSet, *, config: DeletionSetConfig, seed: int) -> pl.DataFrame:
    """(example_id, role, reason) over the training split.

    Raises:
        DataError: ids that are not training examples, or a deletion set that is all of them.
    """
    train = training_ids(data)
    strangers = sorted(set(config.ids) - set(train.tolist()))
    if strangers:
        raise DataError("deletion_set: ids that are not training examples", example_ids=strangers)
    return forget_retain(
        data,
        sample_deletion_set(np.array(config.ids), fraction=config.fraction, seed=seed),
        what=f"{config.fraction:g} of {len(config.ids)} manipulated examples",
        reason="identified as manipulated",
        allow_empty=config.allow_empty,
    )
