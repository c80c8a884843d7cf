"""Forget what an SQL predicate over ``data.examples`` selects.

    forget = {i : where(row_i)}

The predicate is evaluated by the warehouse, read-only, and given as ``select_where``; there is no SQL here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from contracts.errors import ConfigError
from contracts.methods import CuratorSpec, curator
from contracts.params import param
from curation.members import ForgetConfig, forget_retain
from sources.example_set import ExampleSet


@dataclass(frozen=True, kw_only=True, slots=True)
class ByPredicateConfig(ForgetConfig):
    where: str = param(
        doc="SQL predicate over data.examples and the source's columns: label_name = '3' AND owner <> ''"
    )

    def check(self) -> None:
        if not self.where.strip():
            raise ConfigError("ByPredicateConfig.where is empty")


@curator(
    CuratorSpec(
        name="by_predicate",
        doc="Forgets the training examples that an SQL predicate over data.examples selects.",
        config=ByPredicateConfig,
        needs=("select_where",),
        after_erasure="drop",
    )
)
def by_predicate(
    data: ExampleSet, *, config: ByPredicateConfig, seed: int, select_where: Callable[[str], np.ndarray]
) -> pl.DataFrame:
    """(example_id, role, reason) over the training split; ``seed`` is not used.

    Args:
        select_where: ids of the training examples for which the predicate holds.

    Raises:
        DataError: it selects ids that are not in this training split (stale warehouse), none, or all.
    """
    return forget_retain(
        data,
        np.unique(np.asarray(select_where(config.where))),
        what=f"the predicate {config.where!r}",
        reason="selected by the predicate",
        allow_empty=config.allow_empty,
    )
