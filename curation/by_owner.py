"""Forget everything that one owner contributed: the erasure request of a person (GDPR Art. 17).

    forget = {i : owner_i = owner}

``owner`` is the raw name as the source gave it; the warehouse knows tokens only (``contracts.identity.owner_token``).
Neither the name nor the other owners' names appear in reasons or messages.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from contracts.errors import ConfigError
from contracts.methods import CuratorSpec, curator
from contracts.params import param
from curation.members import ForgetConfig, forget_retain
from sources.example_set import ExampleSet


@dataclass(frozen=True, kw_only=True, slots=True)
class ByOwnerConfig(ForgetConfig):
    owner: str = param(doc="raw name of the owner")

    def check(self) -> None:
        if not self.owner:
            raise ConfigError("ByOwnerConfig.owner is empty; '' marks examples that are nobody's")


@curator(
    CuratorSpec(
        name="by_owner", doc="Forgets all training examples of one owner.", config=ByOwnerConfig, after_erasure="drop"
    )
)
def by_owner(data: ExampleSet, *, config: ByOwnerConfig, seed: int) -> pl.DataFrame:
    """(example_id, role, reason) over the training split; ``seed`` is not used.

    Raises:
        DataError: the owner has no training example (unless ``allow_empty``), or owns all of them.
    """
    return forget_retain(
        data,
        data.example_id[(data.owner == config.owner) & (data.split == "train")],
        what="the given owner",
        reason="belongs to the owner",
        allow_empty=config.allow_empty,
    )
