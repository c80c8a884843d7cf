"""Forget the examples whose ids are listed: the plainest form of an erasure request.

    forget = {i : i in ids}

An id that is not a training example is refused by name, never skipped: skipping would report as forgotten what was not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from contracts.errors import ConfigError
from contracts.identity import MAX_EXAMPLE_ID
from contracts.methods import CuratorSpec, curator
from contracts.params import param
from curation.members import ForgetConfig, forget_retain
from sources.example_set import ExampleSet


@dataclass(frozen=True, kw_only=True, slots=True)
class ByIdsConfig(ForgetConfig):
    ids: tuple[int, ...] = param(ge=0, le=MAX_EXAMPLE_ID, doc="example ids to forget")

    def check(self) -> None:
        if len(set(self.ids)) != len(self.ids):
            doubled = sorted({i for i in self.ids if self.ids.count(i) > 1})[:10]
            raise ConfigError(f"ByIdsConfig.ids lists {', '.join(map(str, doubled))} more than once")


@curator(CuratorSpec(name="by_ids", doc="Forgets the listed example ids.", config=ByIdsConfig, after_erasure="drop"))
def by_ids(data: ExampleSet, *, config: ByIdsConfig, seed: int) -> pl.DataFrame:
    """(example_id, role, reason) over the training split; ``seed`` is not used.

    Raises:
        DataError: unknown ids (named), none, or all of them.
    """
    return forget_retain(
        data, np.array(config.ids, np.int64), what="ids", reason="listed by id", allow_empty=config.allow_empty
    )
