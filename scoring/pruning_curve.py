"""The pruning curve: test accuracy against the fraction of the training set that is kept, by the rule that keeps it.

    hardest      the n examples at the hard end of a stored score
    offset       the hardest ``offset`` of all N skipped (where label noise sits), then the n hardest of the rest
    stratified   hardest within each class, classes in their own shares (largest remainders)
    easiest      the n examples at the easy end
    random       n at random, drawn anew for each seed, nested over fractions: the baseline

Every set is trained for the same number of optimiser steps as the full set, not for as many epochs: effort is multiplied
by ceil(N / B) / ceil(n / B), which is N / n up to the last batch; B is what the recipe is seen to use. Seeds (of the
initialisation and batch order) are shared by all sets, so ``gain`` over random is a paired difference. A curve ends at
fraction 1, the full set. Selecting by score unbalances the classes: ``pruning_classes`` says by how much.

Source: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet" (NeurIPS 2021, arXiv 2107.07075), sections 3 and 4. On
small or noisy sets keeping the hardest is harmful, because it keeps the noise; this analysis is how to see it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.tables import Column, TableSpec
from recipes.frames import frame_of
from scoring.retraining import Seen, mean_interval, scored, splits_by_id, test_error
from sources.example_set import ExampleSet

RULES = ("hardest", "offset", "stratified", "easiest", "random")


@dataclass(frozen=True, kw_only=True, slots=True)
class PruningCurveConfig(Config):
    score: str = param("el2n", doc="name of the stored score that orders the examples")
    hard: str = param("highest", choices=("highest", "lowest"), doc="end of the score at which the hard examples are")
    fractions: tuple[float, ...] = param((0.3, 0.6), gt=0, lt=1, doc="shares of the examples kept, increasing")
    offset: float = param(0.05, ge=0, lt=1, doc="rule offset: share of all examples skipped at the hard end")
    rules: tuple[str, ...] = param(
        RULES, choices=RULES, doc="which rules; random is the baseline and always among them"
    )
    seeds: int = param(3, ge=1, le=100, doc="trainings of each set")
    effort: float = param(0.1, gt=0, le=100, doc="length of every training, in the recipe's own number of steps")

    def check(self) -> None:
        if not self.fractions or any(a >= b for a, b in pairwise(self.fractions)):
            raise ConfigError(f"PruningCurveConfig.fractions = {self.fractions} must be at least one, increasing")
        if "random" not in self.rules or len(set(self.rules)) < len(self.rules):
            raise ConfigError(f"PruningCurveConfig.rules = {self.rules} must hold random, and none twice")


def _share(name: str, doc: str, *, low: float = 0, nullable: bool = False) -> Column:
    return Column(name=name, dtype="float64", low=low, high=1, nullable=nullable, doc=doc)


_RULE = Column(name="rule", dtype="str", choices=RULES, doc="what is kept")
_FRACTION = _share("fraction", "share of the scored training examples that is kept; 1 = the full set, for every rule")
_CURVE = TableSpec(
    schema="scores", name="pruning_curve", doc="Test accuracy after training on what each rule keeps, for equal steps.",
    key=("rule", "fraction"),
    columns=(
        _RULE, _FRACTION,
        Column(name="num_kept", dtype="int64", low=1, doc="examples kept"),
        Column(name="num_steps", dtype="int64", low=1, doc="optimiser steps of each training, as seen"),
        Column(name="num_seeds", dtype="int64", low=1, doc="trainings averaged"),
        _share("accuracy", "mean test accuracy over seeds"),
        _share("low", "lower end of its 90% Student interval over seeds; null for one seed", nullable=True),
        _share("high", "upper end", nullable=True),
        _share("gain", "mean over seeds of the accuracy above the random set of the same size", low=-1),
        _share("gain_low", "lower end of its 90% Student interval over paired seeds", low=-1, nullable=True),
        _share("gain_high", "upper end", low=-1, nullable=True),
    ),
)  # fmt: skip
_CLASSES = TableSpec(
    schema="scores", name="pruning_classes", doc="Share of every class that each rule keeps.",
    key=("rule", "fraction", "label"),
    columns=(
        _RULE, _FRACTION,
        Column(name="label", dtype="int64", low=0, doc="class index"),
        Column(name="label_name", dtype="str", doc="class name"),
        _share("keep_rate", "kept examples of the class / scored examples of the class; random: mean over seeds"),
    ),
)  # fmt: skip


@analysis(
    AnalysisSpec(
        name="pruning_curve",
        doc="Accuracy against the fraction of the training set kept, by score and at random, for equal training steps.",
        source="Paul et al., Deep Learning on a Data Diet, NeurIPS 2021 (arXiv 2107.07075)",
        config=PruningCurveConfig,
        needs=("scores", "train"),
        tables=(_CURVE, _CLASSES),
        pictures=(
            Picture(
                table="pruning_curve", title="Test accuracy against the fraction kept", x="fraction", y="accuracy",
                series="rule", low="low", high="high",
            ),
            Picture(
                table="pruning_curve", title="Accuracy above a random set of the same size", x="fraction", y="gain",
                series="rule", low="gain_low", high="gain_high",
            ),
        ),
    )
)  # fmt: skip
def pruning_curve(
    data: ExampleSet,
    *,
    config: PruningCurveConfig,
    seed: int,
    progress: Progress,
    scores: Callable[[str], pl.DataFrame],
    train: Callable[..., nn.Module],
) -> dict[str, pl.DataFrame]:
    """Tables ``pruning_curve`` and ``pruning_classes``; see the head of this file.

    Args:
        data: both splits, classification. Training examples without a value of the score take no part, in the full set
            neither.
        config: score, rules, fractions.
        seed: root of the trainings and of the random sets.
        progress: told (trainings done, in all, "trainings on pruned sets").
        scores: gives (example_id, value) of a stored score by name.
        train: ``(data, seed, *, effort, observe) -> model``.

    Raises:
        NotApplicable: not a classification task, no test split.
        DataError: a stale score, or a fraction that keeps nothing or everything.
        InvalidInput: the recipe does not tell of its mini-batches.
    """
    whole, test = splits_by_id(data, name="pruning_curve")
    examples, values = scored(whole, scores(config.score), score=config.score)
    num = len(examples)
    hardness = values if config.hard == "highest" else -values
    sizes = {fraction: round(fraction * num) for fraction in config.fractions}
    wrong = [fraction for fraction, size in sizes.items() if not 0 < size < num]
    if wrong:
        raise DataError(
            f"fraction {wrong[0]:g} keeps {sizes[wrong[0]]} of {num} scored examples; some, not all, are needed"
        )
    seeds = [derive_seed("pruning curve", seed, r) for r in range(config.seeds)]
    shuffles = [np.random.default_rng(derive_seed("random set", seed, r)).permutation(num) for r in range(config.seeds)]
    total, done = config.seeds * (1 + len(sizes) * len(config.rules)), 0

    def accuracies(members: list[NDArray[np.int64]], effort: float) -> tuple[NDArray[np.float64], Seen]:
        nonlocal done
        found = []
        for own, run_seed in zip(members, seeds, strict=True):
            seen = Seen()
            model = train(examples.subset(np.sort(examples.example_id[own])), run_seed, effort=effort, observe=seen)
            seen.check("pruning_curve")
            found.append(1.0 - test_error(model, test))
            done += 1
            progress(done, total, "trainings on pruned sets")
        return np.array(found), seen

    everything = [np.arange(num)] * config.seeds
    full, seen_full = accuracies(everything, config.effort)
    rows = [_row(rule, 1.0, num, seen_full, full, full) for rule in config.rules]
    classes = [row for rule in config.rules for row in _class_rows(rule, 1.0, everything, examples)]
    for fraction, size in sizes.items():
        effort = config.effort * -(-num // seen_full.widest) / -(-size // seen_full.widest)
        kept = {
            rule: [rows_kept(rule, hardness, examples.y, size, offset=config.offset)] * config.seeds
            if rule != "random"
            else [shuffle[:size] for shuffle in shuffles]
            for rule in config.rules
        }
        measured = {rule: accuracies(members, effort) for rule, members in kept.items()}
        for rule, (accuracy, seen) in measured.items():
            rows.append(_row(rule, fraction, size, seen, accuracy, measured["random"][0]))
            classes += _class_rows(rule, fraction, kept[rule], examples)
    order = ["rule", "fraction"]
    return {
        "pruning_curve": frame_of(_CURVE, rows).sort(order),
        "pruning_classes": frame_of(_CLASSES, classes).sort([*order, "label"]),
    }


def rows_kept(
    rule: str, hardness: NDArray[np.float64], labels: NDArray[np.int64], size: int, *, offset: float = 0.0
) -> NDArray[np.int64]:
    """Positions that a rule keeps, in no particular order; equal hardness: the smaller position counts as harder.

    Args:
        rule: hardest, offset, stratified or easiest.
        hardness: (N,), higher = harder.
        labels: (N,) class indexes; used by stratified.
        size: n, 0 < n < N.
        offset: share of N skipped at the hard end by rule offset; less when fewer than n would be left.

    >>> rows_kept("offset", np.array([0.1, 0.9, 0.5, 0.4]), np.zeros(4, int), 2, offset=0.25).tolist()
    [2, 3]
    """
    num = len(hardness)
    order = np.argsort(-hardness, kind="stable")
    if rule == "hardest":
        return order[:size]
    if rule == "easiest":
        return order[num - size :]
    if rule == "offset":
        start = min(round(offset * num), num - size)
        return order[start : start + size]
    assert rule == "stratified", rule
    by_class = order[np.argsort(labels[order], kind="stable")]  # hardest first within each class
    _, first, count = np.unique(labels[by_class], return_index=True, return_counts=True)
    quota = count * size / num
    take = np.floor(quota).astype(np.int64)
    take[np.argsort(take - quota, kind="stable")[: size - int(take.sum())]] += 1
    rank = np.arange(num) - np.repeat(first, count)
    return np.asarray(by_class[rank < np.repeat(take, count)])


def _row(
    rule: str, fraction: float, size: int, seen: Seen, accuracy: NDArray[np.float64], random: NDArray[np.float64]
) -> dict[str, Any]:
    mean, low, high = mean_interval(accuracy)
    gain, gain_low, gain_high = mean_interval(accuracy - random)
    ends = {
        "low": (low, 0.0), "high": (high, 0.0), "gain_low": (gain_low, -1.0), "gain_high": (gain_high, -1.0),
    }  # fmt: skip
    return {
        "rule": rule, "fraction": fraction, "num_kept": size, "num_steps": seen.steps, "num_seeds": len(accuracy),
        "accuracy": mean, "gain": gain,
        **{name: None if end is None else min(max(end, least), 1.0) for name, (end, least) in ends.items()},
    }  # fmt: skip


def _class_rows(
    rule: str, fraction: float, members: list[NDArray[np.int64]], examples: ExampleSet
) -> list[dict[str, Any]]:
    of_all = np.bincount(examples.y, minlength=examples.num_classes)
    kept = np.mean([np.bincount(examples.y[own], minlength=examples.num_classes) for own in members], axis=0)
    return [
        {"rule": rule, "fraction": fraction, "label": k, "label_name": examples.class_names[k], "keep_rate": kept[k] / of_all[k]}
        for k in np.flatnonzero(of_all).tolist()
    ]  # fmt: skip
