"""Deduplicated: of every group of near duplicates one is kept, the others are dropped.

    group    examples with the same value in the column of a stored score (near_duplicates.group_id)
    kept     among those with the label that most of the group have (of equals the smallest), the smallest id
    conflict a group with several labels: one is kept as above, or, with ``conflicts: drop``, none

Training on copies weighs them, wastes steps, and makes a removal harder: an example is not forgotten while its twin is
trained on (Lee et al. 2022). Whether copies across the splits are there is for ``train_test_duplicates``.

Source: Lee et al., "Deduplicating Training Data Makes Language Models Better" (ACL 2022, arXiv 2107.06499), section 4;
Barz & Denzler (J. Imaging 2020) for conflicting labels. A score with no group for an example: it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from contracts.errors import DataError
from contracts.methods import CuratorSpec, curator
from contracts.params import Config, param
from curation.members import training_ids
from sources.example_set import ExampleSet

ROLES = ("keep", "drop")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeduplicatedConfig(Config):
    score: str = param("near_duplicates", doc="name of a stored score with a column of groups", ref="score")
    column: str = param("group_id", doc="its column: examples with equal values are near duplicates")
    conflicts: str = param(
        "majority", choices=("majority", "drop"), doc="of a group with several labels: one of the most common, or none"
    )


@curator(
    CuratorSpec(
        name="deduplicated",
        doc="Keeps one example of every group of near duplicates.",
        source="Lee et al., ACL 2022 (arXiv 2107.06499), section 4",
        config=DeduplicatedConfig,
        needs=("scores",),
        roles=ROLES,
    )
)
def deduplicated(
    data: ExampleSet, *, config: DeduplicatedConfig, seed: int, scores: Callable[[str], pl.DataFrame]
) -> pl.DataFrame:
    """(example_id, role, reason) over the training split; ``seed`` is not used. Nothing to drop is a result.

    Args:
        scores: gives (example_id, value) of a stored score's column by "<score>.<column>".

    Raises:
        DataError: the groups are about other data (stale), or name an example twice; every example would be dropped.
    """
    train = data.subset(training_ids(data))
    groups = scores(f"{config.score}.{config.column}").select("example_id", group="value")
    doubled = groups.filter(pl.col("example_id").is_duplicated())["example_id"].unique().sort()
    if len(doubled):
        raise DataError(f"score {config.score!r} has examples twice", example_ids=doubled)
    if len(other := np.setdiff1d(groups["example_id"].to_numpy(), train.example_id)):
        raise DataError(
            f"score {config.score!r} is about examples that are not in the training split of {data.name}",
            example_ids=other,
        )
    label = train.y if train.y.ndim == 1 else np.zeros(len(train), np.int64)
    table = pl.DataFrame({"example_id": train.example_id, "label": label}).join(groups, on="example_id", how="left")
    grouped = table.filter(pl.col("group").is_not_null())
    common = (
        grouped.group_by("group", "label")
        .agg(pl.len().alias("votes"), pl.col("example_id").min().alias("first"))
        .sort("votes", "label", descending=[True, False])
        .group_by("group", maintain_order=True)
        .agg(pl.col("first").first(), pl.len().alias("labels"), pl.col("votes").sum().alias("size"))
    )
    table = table.join(common, on="group", how="left").sort("example_id")
    rows = [_said(*row, drop=config.conflicts == "drop") for row in table.drop("label", "group").iter_rows()]
    frame = pl.DataFrame(
        [(example, *said) for example, said in zip(table["example_id"].to_list(), rows, strict=True)],
        schema={"example_id": pl.Int64, "role": pl.String, "reason": pl.String},
        orient="row",
    )
    if not (frame["role"] == "keep").any():
        raise DataError(f"deduplicated: all {len(train)} training examples of {data.name} are in groups of conflict")
    return frame


def _said(example: int, first: int | None, labels: int | None, size: int | None, *, drop: bool) -> tuple[str, str]:
    """Role and reason of an example, of whose group ``first`` is the one to keep."""
    if first is None or size == 1:
        return "keep", "no near duplicate"
    if labels != 1 and drop:
        return "drop", f"one of {size} near duplicates with {labels} labels"
    if example == first:
        return "keep", f"first of {size} near duplicates" + (f" with {labels} labels" if labels != 1 else "")
    return "drop", f"near duplicate of {first}, which is kept"
