"""Pruned training sets: keep the hardest examples, or a window of the ranking that leaves the hardest out.

    v_(1) <= ... <= v_(N)   the ranking (stats.order): the score ascending; of equal values the smaller id is the higher
    keep_hardest:   keep v_(N - m + 1) .. v_(N)               m = count, or round(fraction * N); end lowest: v_(1) ..
                    v_(m)
    offset_window:  keep v_(s + 1) .. v_(s + t)               s = skip, t = take

Stratified, both take from the ranking of shares within the classes, which keeps every class in its proportion (within
the strata of the task where it has no classes: bins of the target, users).

Source: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet" (NeurIPS 2021, arXiv 2107.07075), sections 3 and 4. On
small or noisy sets the hardest examples are the mislabelled ones: choose the window on validation data (analysis
``pruning_curve`` with ``validation``). Train what is kept for as many steps as the whole set, not for as many epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from contracts.errors import ConfigError, DataError
from contracts.methods import CuratorSpec, curator
from contracts.params import Config, param
from curation.members import training_ids
from curation.scored import score_values
from sources.example_set import ExampleSet
from stats.order import ranking

ROLES = ("keep", "drop")
_SOURCE = "Paul et al., Deep Learning on a Data Diet, NeurIPS 2021 (arXiv 2107.07075)"
_MISSING = ("refuse", "highest", "lowest")
_MISSING_DOC = (
    "where an example without a value ranks: refuse the curation, above all values (forgetting: never learnt), below "
    "them"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepHardestConfig(Config):
    score: str = param(doc="name of a stored score", ref="score")
    fraction: float | None = param(None, gt=0, lt=1, doc="share of the training examples to keep")
    count: int | None = param(None, ge=1, unit="examples", doc="number to keep; instead of fraction")
    end: str = param("highest", choices=("highest", "lowest"), doc="which end is kept; lowest keeps the easiest")
    stratified: bool = param(False, doc="the same share of every class, or stratum of the task")
    missing: str = param("refuse", choices=_MISSING, doc=_MISSING_DOC)

    def check(self) -> None:
        if (self.fraction is None) == (self.count is None):
            raise ConfigError("KeepHardestConfig needs either fraction or count")


@dataclass(frozen=True, kw_only=True, slots=True)
class OffsetWindowConfig(Config):
    score: str = param(doc="name of a stored score", ref="score")
    skip_fraction: float | None = param(None, ge=0, lt=1, doc="share of the training examples skipped from below")
    skip: int | None = param(None, ge=0, unit="examples", doc="number skipped from below; instead of skip_fraction")
    take_fraction: float | None = param(None, gt=0, lt=1, doc="share of the training examples to keep")
    take: int | None = param(None, ge=1, unit="examples", doc="number to keep; instead of take_fraction")
    stratified: bool = param(False, doc="the same window of every class, or stratum of the task")
    missing: str = param("refuse", choices=_MISSING, doc=_MISSING_DOC)

    def check(self) -> None:
        if (self.skip_fraction is None) == (self.skip is None):
            raise ConfigError("OffsetWindowConfig needs either skip_fraction or skip")
        if (self.take_fraction is None) == (self.take is None):
            raise ConfigError("OffsetWindowConfig needs either take_fraction or take")
        if (self.skip_fraction or 0.0) + (self.take_fraction or 0.0) > 1:
            raise ConfigError(
                f"OffsetWindowConfig: skip_fraction {self.skip_fraction:g} + take_fraction {self.take_fraction:g} "
                "must be <= 1"
            )


@curator(
    CuratorSpec(
        name="keep_hardest",
        version=2,
        doc="Keeps the training examples with the highest (or lowest) values of a stored score, of all or of every "
        "class.",
        source=_SOURCE,
        config=KeepHardestConfig,
        needs=("scores",),
        roles=ROLES,
    )
)
def keep_hardest(
    data: ExampleSet, *, config: KeepHardestConfig, seed: int, scores: Callable[[str], pl.DataFrame]
) -> pl.DataFrame:
    """(example_id, role "keep" or "drop", reason) over the training split; ``seed`` is not used.

    Args:
        scores: gives the frame (example_id, value) of a stored, current score by its name; refuses others.

    Raises:
        DataError: nothing or everything would be kept, examples have no value (named) while ``missing`` is "refuse", or
            the score is of other data.
    """
    ranked = _Ranked(data, scores(config.score), config.score, stratified=config.stratified, missing=config.missing)
    num = len(ranked.ids)
    wanted = _number(config.count, config.fraction, num)
    return ranked.members(ranked.order[max(num - wanted, 0) :] if config.end == "highest" else ranked.order[:wanted])


@curator(
    CuratorSpec(
        name="offset_window",
        version=2,
        doc="Keeps a window of the ranking by a stored score: skips the easiest, takes the next, leaves the hardest "
        "out.",
        source=_SOURCE,
        config=OffsetWindowConfig,
        needs=("scores",),
        roles=ROLES,
    )
)
def offset_window(
    data: ExampleSet, *, config: OffsetWindowConfig, seed: int, scores: Callable[[str], pl.DataFrame]
) -> pl.DataFrame:
    """(example_id, role "keep" or "drop", reason) over the training split; ``seed`` is not used.

    Args:
        scores: gives the frame (example_id, value) of a stored, current score by its name; refuses others.

    Raises:
        DataError: the window is empty, is everything or ends beyond the last example; otherwise as
            :func:`keep_hardest`.
    """
    ranked = _Ranked(data, scores(config.score), config.score, stratified=config.stratified, missing=config.missing)
    num = len(ranked.ids)
    skip, take = _number(config.skip, config.skip_fraction, num), _number(config.take, config.take_fraction, num)
    if config.skip is None and config.take is None:
        take = min(take, num - skip)  # both rounded up
    if skip + take > num:
        raise DataError(f"skip {skip} + take {take} is more than the {num} training examples of {data.name}")
    return ranked.members(ranked.order[skip : skip + take])


def _number(count: int | None, fraction: float | None, num: int) -> int:
    return count if count is not None else round((fraction or 0.0) * num)


class _Ranked:
    """The training split by a score.

    Attributes:
        ids: (N_train,) int64, ascending.
        values: (N_train,) float64; +-inf stands for a missing value that ranks at that end.
        order: (N_train,) positions in ``ids``, lowest first.
    """

    def __init__(self, data: ExampleSet, frame: pl.DataFrame, score: str, *, stratified: bool, missing: str) -> None:
        self.data, self.score = data, score
        self.ids = training_ids(data)
        self.values = score_values(frame, self.ids, score=score, data_name=data.name)
        self.unknown = np.isnan(self.values)
        if missing == "refuse" and self.unknown.any():
            raise DataError(
                f"score {score!r} has no value for {int(self.unknown.sum())} training examples; "
                "say with missing = 'highest' or 'lowest' where these rank",
                example_ids=self.ids[self.unknown],
            )
        self.values[self.unknown] = np.inf if missing == "highest" else -np.inf
        train, by_class = data.subset(self.ids), data.task.gives("classes")
        self.labels = np.zeros(len(self.ids), np.int64)
        self.names: tuple[str, ...] = ("all",)
        if stratified or by_class:
            self.labels = data.task.strata(train.x, train.y, train.example_id)
            self.names = data.class_names if by_class else tuple(f"stratum {k}" for k in range(self.labels.max() + 1))
        self.order = ranking(self.values, self.labels if stratified else None)

    def members(self, kept: np.ndarray) -> pl.DataFrame:
        """The members table; every reason gives the example's value, its rank and what is kept of its class."""
        num = len(self.ids)
        what = f"pruning {self.data.name} by {self.score!r}"
        if not len(kept):
            raise DataError(f"{what} would keep none of its {num} training examples")
        if len(kept) == num:
            raise DataError(f"{what} would keep all of its {num} training examples: nothing is pruned")
        keep = np.zeros(num, bool)
        keep[kept] = True
        rank = np.empty(num, np.int64)
        rank[ranking(self.values)] = np.arange(1, num + 1)
        of_class, total = (
            np.bincount(self.labels[keep], minlength=len(np.bincount(self.labels))),
            np.bincount(self.labels),
        )
        rates = [f"{k} of {n} ({k / max(n, 1):.1%})" for k, n in zip(of_class.tolist(), total.tolist(), strict=True)]
        shown = [
            "no value" if u else f"{v:.6g}" for u, v in zip(self.unknown.tolist(), self.values.tolist(), strict=True)
        ]
        reasons = [
            f"{self.score} {value}, rank {place} of {num} ascending; kept of {self.names[label]!r}: {rates[label]}"
            for value, place, label in zip(shown, rank.tolist(), self.labels.tolist(), strict=True)
        ]
        return pl.DataFrame(
            {"example_id": self.ids, "role": np.where(keep, *ROLES).tolist(), "reason": reasons},
            schema={"example_id": pl.Int64, "role": pl.String, "reason": pl.String},
        )
