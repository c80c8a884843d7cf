"""The pruning curve: accuracy (mean quality of the examples' task) against the fraction of the training set that is
kept, by the rule that keeps it.

Every rule but random is a window of one ranking, ``stats.order``, and the set that a curator keeps, example by example
(N examples with a value that the validation part leaves; n = num_kept; skip, those ranked below the window, is in the
table):
    hardest            the n at the hard end of a stored score               keep_hardest: count n, end = hard
    easiest            the n at the easy end                                 keep_hardest: count n, the other end
    offset             the hardest round(offset * N) left out (where label   offset_window: skip, take n
                       noise sits), then the n hardest of the rest
    stratified         as hardest, every class in its own share              keep_hardest: count n, stratified
    stratified_offset  as offset, likewise                                   offset_window: skip, take n, stratified
    random             n at random, drawn anew for each seed, nested over fractions: the baseline

Every set is trained for the same number of optimiser steps, not for as many epochs: those of the full set at
``effort``, which one more training of it tells. Seeds (of the initialisation and batch order) are shared by all sets,
so ``gain`` over random is a paired difference. A curve ends at fraction 1, the full set. Selecting by score unbalances
the classes: ``pruning_classes`` says by how much.

Rule and offset are chosen in ``pruning_choice``, on ``validation``: training examples of each class that are held out
of every set, the full one included (of each stratum of the task, where it has no classes). For each fraction the choice
is the rule and offset with the best mean validation accuracy, if that is above the random sets' by more than chance
gives the best of C candidates:

    gain > z * sqrt(s^2 / seeds + v / m)            z = Phi^-1(1 - 0.05 / C), m validation examples
    s^2: variance of a training's gain over seeds, pooled over candidates and fractions
    v:   variance over examples of (share of seeds right with the candidate - with the random sets)

(v holds some of s^2 too, so the bar is rather high.) Otherwise the choice is inconclusive and says how many validation
examples would do. Accuracies in ``pruning_curve`` are of the test split, which reports and chooses nothing: what it has
chosen, it cannot judge, and the best of many is flattered by the examples that chose it.

Source: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet" (NeurIPS 2021, arXiv 2107.07075), sections 3 and 4. On
small or noisy sets keeping the hardest is harmful, because it keeps the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import norm
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, InvalidInput
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.tables import Column, TableSpec
from sources.example_set import ExampleSet
from sources.frames import frame_of
from stats.order import ranking
from studies.retraining import Seen, hold_out, mean_interval, quality, scored, splits_by_id, strata_of

RULES = ("hardest", "offset", "stratified", "stratified_offset", "easiest", "random")
_WITH_OFFSET = ("offset", "stratified_offset")
_CHANCE = 0.05  # of a choice at a fraction where no rule is better than random sets
INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, kw_only=True, slots=True)
class PruningCurveConfig(Config):
    score: str = param("el2n", doc="name of the stored score that orders the examples", ref="score")
    hard: str = param("highest", choices=("highest", "lowest"), doc="end of the score at which the hard examples are")
    fractions: tuple[float, ...] = param((0.3, 0.6), gt=0, lt=1, doc="shares of the examples kept, increasing")
    offset: tuple[float, ...] = param(
        (0.05,), ge=0, lt=1, doc="rules with an offset: shares of all examples left out at the hard end, increasing"
    )
    rules: tuple[str, ...] = param(
        ("hardest", "offset", "stratified", "easiest", "random"),
        choices=RULES,
        doc="which rules; random is the baseline and always among them",
    )
    validation: float = param(0.2, gt=0, lt=1, doc="share of each class held out of every set, to choose on")
    seeds: int = param(3, ge=1, le=100, doc="trainings of each set")
    effort: float = param(0.1, gt=0, le=100, doc="length of every training, in the recipe's own number of steps")

    def check(self) -> None:
        for name, values in (("fractions", self.fractions), ("offset", self.offset)):
            if not values or any(a >= b for a, b in pairwise(values)):
                raise ConfigError(f"PruningCurveConfig.{name} = {values} must be at least one, increasing")
        if "random" not in self.rules or len(set(self.rules)) < len(self.rules):
            raise ConfigError(f"PruningCurveConfig.rules = {self.rules} must hold random, and none twice")


def _share(name: str, doc: str, *, low: float = 0, nullable: bool = False) -> Column:
    return Column(name=name, dtype="float64", low=low, high=1, nullable=nullable, doc=doc)


_RULE = Column(name="rule", dtype="str", choices=RULES, doc="what is kept")
_OFFSET = _share("offset", "share of the scored training examples left out at the hard end; 0 for rules without")
_FRACTION = _share("fraction", "share of the scored training examples that is kept; 1 = the full set, for every rule")
_CURVE = TableSpec(
    schema="scores",
    name="pruning_curve",
    doc="Accuracy after training on what each rule keeps, for equal steps.",
    key=("rule", "offset", "fraction"),
    columns=(
        _RULE,
        _OFFSET,
        _FRACTION,
        Column(name="curve", dtype="str", doc="the rule with its offset: a line of the picture"),
        Column(name="num_kept", dtype="int64", low=1, doc="examples kept"),
        Column(
            name="skip",
            dtype="int64",
            low=0,
            nullable=True,
            doc="examples ranked below those kept; null for random sets",
        ),
        Column(name="num_steps", dtype="int64", low=1, doc="optimiser steps of each training, as seen"),
        Column(name="num_seeds", dtype="int64", low=1, doc="trainings averaged"),
        Column(name="num_test", dtype="int64", low=1, doc="examples of the test split, measured on"),
        _share("accuracy", "mean accuracy on these over seeds"),
        _share("low", "lower end of its 90% Student interval over seeds; null for one seed", nullable=True),
        _share("high", "upper end", nullable=True),
        _share("gain", "mean over seeds of the accuracy above the random set of the same size", low=-1),
        _share("gain_low", "lower end of its 90% Student interval over paired seeds", low=-1, nullable=True),
        _share("gain_high", "upper end", low=-1, nullable=True),
    ),
)
_CHOICE = TableSpec(
    schema="scores",
    name="pruning_choice",
    doc="The rule and offset of each fraction, chosen on held-out training examples, or that this cannot be said.",
    key=("fraction",),
    columns=(
        _FRACTION,
        Column(name="choice", dtype="str", doc=f"a curve, 'random' when no rule did better, or '{INCONCLUSIVE}'"),
        Column(name="why", dtype="str", doc="what stands behind it, or against it"),
        Column(name="best", dtype="str", doc="the curve with the best validation accuracy among the rules by score"),
        _share("validation_gain", "its mean validation accuracy above the random sets'", low=-1),
        Column(
            name="stderr",
            dtype="float64",
            low=0,
            nullable=True,
            doc="standard error of that gain, of seeds and examples; null for one seed",
        ),
        Column(name="num_validation", dtype="int64", low=1, doc="examples of the validation part"),
        Column(
            name="num_needed",
            dtype="int64",
            low=1,
            nullable=True,
            doc="validation examples with which such a gain would be a choice; null where there is one or more would "
            "not help",
        ),
        _share("test_accuracy", "its mean accuracy on the test split; decides nothing"),
        _share("test_gain", "its mean test accuracy above the random sets'", low=-1),
    ),
)
_CLASSES = TableSpec(
    schema="scores",
    name="pruning_classes",
    doc="Share of every class that each rule keeps.",
    key=("rule", "offset", "fraction", "label"),
    columns=(
        _RULE,
        _OFFSET,
        _FRACTION,
        Column(name="label", dtype="int64", low=0, doc="class index"),
        Column(name="label_name", dtype="str", doc="class name"),
        _share("keep_rate", "kept examples of the class / scored examples of the class; random: mean over seeds"),
    ),
)


@analysis(
    AnalysisSpec(
        name="pruning_curve",
        version=3,
        wants=("reading",),
        doc="Accuracy against the fraction of the training set kept, by score and at random, for equal training steps.",
        source="Paul et al., Deep Learning on a Data Diet, NeurIPS 2021 (arXiv 2107.07075)",
        config=PruningCurveConfig,
        needs=("scores", "train"),
        tables=(_CHOICE, _CURVE, _CLASSES),
        pictures=(
            Picture(
                table="pruning_curve",
                title="Accuracy against the fraction kept",
                x="fraction",
                y="accuracy",
                series="curve",
                low="low",
                high="high",
            ),
            Picture(
                table="pruning_curve",
                title="Accuracy above a random set of the same size",
                x="fraction",
                y="gain",
                series="curve",
                low="gain_low",
                high="gain_high",
            ),
        ),
    )
)
def pruning_curve(
    data: ExampleSet,
    *,
    config: PruningCurveConfig,
    seed: int,
    progress: Progress,
    scores: Callable[[str], pl.DataFrame],
    train: Callable[..., nn.Module],
) -> dict[str, pl.DataFrame]:
    """Tables ``pruning_choice``, ``pruning_curve`` and ``pruning_classes``; see the head of this file.

    Args:
        data: both splits. Training examples without a value of the score take no part, in the full set
            neither.
        config: score, rules, fractions.
        seed: root of the trainings and of the random sets.
        progress: called with (trainings done, in all, "trainings on pruned sets").
        scores: gives (example_id, value) of a stored score by name.
        train: ``(data, seed, *, effort, steps, observe) -> model``, effort or steps.

    Raises:
        NotApplicable: no test split, a validation part of fewer than 20 examples, or a recipe
            that cannot be told how many steps to train.
        DataError: a stale score, or a fraction that keeps nothing or everything.
        InvalidInput: the recipe does not tell of its mini-batches, or takes more or fewer than it is asked to.
    """
    whole, test = splits_by_id(data, name="pruning_curve")
    examples, values = scored(whole, scores(config.score), score=config.score)
    examples, values, validation = hold_out(examples, values, config.validation, seed=seed, name="pruning_curve")
    num = len(examples)
    sizes = {fraction: round(fraction * num) for fraction in config.fractions}
    wrong = [fraction for fraction, size in sizes.items() if not 0 < size < num]
    if wrong:
        raise DataError(
            f"fraction {wrong[0]:g} keeps {sizes[wrong[0]]} of {num} scored examples; some, not all, are needed"
        )
    seeds = [derive_seed("pruning curve", seed, r) for r in range(config.seeds)]
    shuffles = [np.random.default_rng(derive_seed("random set", seed, r)).permutation(num) for r in range(config.seeds)]
    rules = [(rule, off) for rule in config.rules for off in (config.offset if rule in _WITH_OFFSET else (0.0,))]
    total, done = 1 + config.seeds * (1 + len(sizes) * len(rules)), 0

    def trained(members: NDArray[np.int64], run_seed: int, **length: Any) -> tuple[nn.Module, int]:
        nonlocal done
        seen = Seen()
        model = train(examples.subset(examples.example_id[np.sort(members)]), run_seed, observe=seen, **length)
        seen.check("pruning_curve")
        done += 1
        progress(done, total, "trainings on pruned sets")
        return model, seen.steps

    _, steps = trained(np.arange(num), seeds[0], effort=config.effort)

    def measured(members: list[NDArray[np.int64]]) -> _Measured:
        on_test, right = [], []
        for own, run_seed in zip(members, seeds, strict=True):
            model, taken = trained(own, run_seed, steps=steps)
            if taken != steps:
                raise InvalidInput(f"pruning_curve: the recipe has taken {taken} steps where {steps} were asked for")
            on_test.append(quality(model, test).mean())
            right.append(quality(model, validation))
        return _Measured(np.array(on_test), np.array(right))

    rows: list[dict[str, Any]] = []
    classes: list[dict[str, Any]] = []

    def add(
        rule: str,
        offset: float,
        fraction: float,
        members: list[NDArray[np.int64]],
        skip: int | None,
        found: _Measured,
        random: _Measured,
    ) -> None:
        point = {"rule": rule, "offset": offset, "fraction": fraction}
        figures = _figures(found.test, random.test)
        rows.append(
            {
                **point,
                "curve": _curve(rule, offset),
                "num_kept": len(members[0]),
                "skip": skip,
                "num_steps": steps,
                "num_test": len(test),
                **figures,
            }
        )
        if data.task.gives("classes"):
            classes.extend({**point, **rate} for rate in _keep_rates(members, examples))

    everything = [np.arange(num)] * config.seeds
    full = measured(everything)
    for rule, off in rules:
        add(rule, off, 1.0, everything, None if rule == "random" else 0, full, full)
    strata = strata_of(examples)
    ranked = {rule: ranking(values, strata if rule.startswith("stratified") else None) for rule, _ in rules}
    by_fraction: dict[float, dict[str, _Measured]] = {}
    for fraction, size in sizes.items():
        random_sets = [shuffle[:size] for shuffle in shuffles]
        random = measured(random_sets)
        by_fraction[fraction] = {"random": random}
        for rule, off in rules:
            if rule == "random":
                add(rule, off, fraction, random_sets, None, random, random)
                continue
            skip = _skip(rule, num, size, offset=off, hard=config.hard)
            members = [ranked[rule][skip : skip + size]] * config.seeds
            found = by_fraction[fraction][_curve(rule, off)] = measured(members)
            add(rule, off, fraction, members, skip, found, random)
    order = ["rule", "offset", "fraction"]
    return {
        "pruning_choice": frame_of(_CHOICE, _choices(by_fraction)),
        "pruning_curve": frame_of(_CURVE, rows).sort(order),
        "pruning_classes": frame_of(_CLASSES, classes).sort([*order, "label"]),
    }


def _skip(rule: str, num: int, size: int, *, offset: float, hard: str) -> int:
    """Examples ranked below the window of ``size`` among ``num``; an offset that would leave fewer is cut.

    >>> [_skip("offset", 10, 4, offset=0.2, hard=hard) for hard in ("highest", "lowest")]
    [4, 2]
    """
    away = num - size if rule == "easiest" else min(round(offset * num), num - size)  # from the hard end
    return num - size - away if hard == "highest" else away


def _curve(rule: str, offset: float) -> str:
    return f"{rule} {offset:g}" if rule in _WITH_OFFSET else rule


class _Measured(NamedTuple):
    """Of the trainings of one set: float64 (S,) test accuracy, and bool (S, m) whether a validation example is
    right."""

    test: NDArray[np.float64]
    right: NDArray[np.bool_]


def _choices(by_fraction: Mapping[float, Mapping[str, _Measured]]) -> list[dict[str, Any]]:
    """Rows of ``pruning_choice``, from what was measured of each curve at each fraction, the random sets among them."""
    gains = {
        (fraction, curve): found.right.mean(1) - sets["random"].right.mean(1)
        for fraction, sets in by_fraction.items()
        for curve, found in sets.items()
        if curve != "random"
    }  # (S,) each
    if not gains:
        return []
    num_seeds = len(next(iter(gains.values())))
    by_seed = float(np.mean([gain.var(ddof=1) for gain in gains.values()])) / num_seeds if num_seeds > 1 else math.nan
    rows = []
    for fraction, sets in by_fraction.items():
        candidates = [curve for curve in sets if curve != "random"]
        best = max(candidates, key=lambda curve, at=fraction: gains[at, curve].mean())  # type: ignore[misc]
        found, random = sets[best], sets["random"]
        gain, z = float(gains[fraction, best].mean()), float(norm.isf(_CHANCE / len(candidates)))
        by_example = float((found.right.mean(0) - random.right.mean(0)).var(ddof=1))
        num = found.right.shape[1]
        stderr = math.sqrt(by_seed + by_example / num)
        choice, why, needed = INCONCLUSIVE, "one training of each set says nothing of its noise", None
        if gain <= 0:
            choice, why = "random", "no rule did better than random sets"
        elif gain > z * stderr:
            choice, why = best, f"{gain:.2g} above random sets, chance gives {z * stderr:.2g}"
        elif num_seeds > 1:
            left = (gain / z) ** 2 - by_seed
            needed = math.ceil(by_example / left) if left > 0 else None
            more = f"about {needed} examples would do" if needed else "more seeds would do"
            why = f"{gain:.2g} above random sets, chance gives {z * stderr:.2g} on {num} examples: {more}"
        rows.append(
            {
                "fraction": fraction,
                "choice": choice,
                "why": why,
                "best": best,
                "validation_gain": gain,
                "stderr": None if math.isnan(stderr) else stderr,
                "num_validation": num,
                "num_needed": needed,
                "test_accuracy": float(found.test.mean()),
                "test_gain": float((found.test - random.test).mean()),
            }
        )
    return rows


def _figures(accuracy: NDArray[np.float64], random: NDArray[np.float64]) -> dict[str, Any]:
    mean, low, high = mean_interval(accuracy)
    gain, gain_low, gain_high = mean_interval(accuracy - random)
    ends = {
        "low": (low, 0.0),
        "high": (high, 0.0),
        "gain_low": (gain_low, -1.0),
        "gain_high": (gain_high, -1.0),
    }
    return {
        "num_seeds": len(accuracy),
        "accuracy": mean,
        "gain": gain,
        **{name: None if end is None else min(max(end, least), 1.0) for name, (end, least) in ends.items()},
    }


def _keep_rates(members: list[NDArray[np.int64]], examples: ExampleSet) -> list[dict[str, Any]]:
    of_all = np.bincount(examples.y, minlength=examples.num_classes)
    kept = np.mean([np.bincount(examples.y[own], minlength=examples.num_classes) for own in members], axis=0)
    return [
        {"label": k, "label_name": examples.class_names[k], "keep_rate": kept[k] / of_all[k]}
        for k in np.flatnonzero(of_all).tolist()
    ]
