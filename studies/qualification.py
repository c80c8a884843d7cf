"""Qualification of unlearners: the same methods on random, worst-case, easiest and other forget sets, against
retraining.

Accuracies are mean qualities of the examples' task (``tasks.base``): shares of right answers of a classifier.

    for each trial t, forget set F of each selector (drawn or searched anew in every trial):
        UA = 100 - acc(F), RA, TA, MIA-efficacy   of retraining without F, of the untouched model and of every method,
                                                  in percent
        avg_gap   = mean of |UA - UA'|, |RA - RA'|, |TA - TA'|, |MIA - MIA'|       ' = retraining, same F, same seed
        gap_ratio = avg_gap / avg_gap of the untouched model on F, over the trials that have both
        excess    = avg_gap on F - avg_gap of the same method on the random set, same trial

A method that passes on random sets and has a large excess on the worst case was graded on easy questions. On the
worst-case set retraining itself keeps UA near 0, so that a model from which nothing was removed has a small gap there:
read a gap beside that of ``none``; a ratio of 1 is as good as doing nothing. On the easiest set retraining loses most
of UA: read a UA beside its own. The configuration of a method is that of the subject, whatever the set: as in the
paper, it is not tuned to the set.

Source: Zhang et al., "Challenging Forgets" (ECCV 2024, arXiv 2403.07362), evaluation protocol; metrics of Fan et al.,
    SalUn
(ICLR 2024). Not a membership audit of the result: for that see the attacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, Diverged, InvalidInput, NotApplicable
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from scoring.worst_case_forget import WorstCaseForgetConfig
from sources.example_set import ExampleSet
from sources.frames import frame_of
from studies.forget_selectors import SELECTORS, choose

REFERENCE, UNTOUCHED = "retrain", "none"
METRICS = ("ua", "ra", "ta", "mia_efficacy")
_GAPS = ("gap_ua", "gap_ra", "gap_ta", "gap_mia")


class Unlearners(Protocol):
    """Runs a registered unlearner on the audited model; ``methods`` are those of the subject."""

    @property
    def methods(self) -> Sequence[str]: ...

    def __call__(self, name: str, *, retain: ExampleSet, forget: ExampleSet, seed: int) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class QualificationConfig(Config):
    methods: tuple[str, ...] = param(
        (),
        doc="registered unlearners to qualify, beside retrain and none; none named: those of the subject's plan",
        ref="unlearner",
    )
    splits: tuple[str, ...] = param(
        ("random", "worst_case", "easiest", "lowest_loss"),
        choices=SELECTORS,
        doc="forget sets; random is the reference",
    )
    trials: int = param(3, ge=1, le=1000, doc="repeats, each with its own sets and seeds")
    search: WorstCaseForgetConfig = param(
        WorstCaseForgetConfig(), doc="budget and group of all sets, and the search; its direction is set by the split"
    )

    def check(self) -> None:
        for name in ("methods", "splits"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"QualificationConfig.{name} = {values} lists something twice")
        if "random" not in self.splits:
            raise ConfigError(f"QualificationConfig.splits = {self.splits} needs 'random', the reference of the excess")


def _percent(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="float64", unit="percent", low=0, high=100, nullable=True, doc=doc, **more)


_SPLIT = Column(name="split", dtype="str", choices=SELECTORS, doc="how the forget set was chosen")
_METHOD = Column(name="method", dtype="str", doc="unlearner; retrain is the reference, none the untouched model")
_STATUS = {
    "ok": "measured",
    "diverged": "the unlearner left the finite numbers",
    "not_applicable": "the unlearner, or the selector of the set, is not defined here",
}
_MEANINGS = {
    "ua": "100 - accuracy on the forget set",
    "ra": "accuracy on the retain set",
    "ta": "accuracy on the test split",
    "mia_efficacy": "share of the forget set that an SVM on confidences calls non-member",
    "avg_gap": "mean distance to retraining over UA, RA, TA and MIA-efficacy",
}


def _spread(name: str) -> tuple[Column, ...]:
    return (
        _percent(name, f"{_MEANINGS[name]}; mean over trials"),
        _percent(f"{name}_std", "sample standard deviation over trials; null for one"),
    )


SUMMARY = TableSpec(
    schema="scores",
    name="qualification",
    key=("split", "method"),
    version=2,
    doc="Each unlearner on each kind of forget set: mean and spread over trials. Metrics are null where undefined.",
    columns=(
        _SPLIT,
        _METHOD,
        Column(name="num_trials", dtype="int64", low=1, doc="trials run"),
        Column(name="num_diverged", dtype="int64", low=0, doc="of them diverged; left out of the means"),
        Column(name="num_not_applicable", dtype="int64", low=0, doc="of them did not apply; left out of the means"),
        *(column for name in (*METRICS, "avg_gap") for column in _spread(name)),
        *(
            _percent(f"{name}_{end}", f"{word} {name} over trials")
            for name in ("ua", "avg_gap")
            for end, word in (("low", "lowest"), ("high", "highest"))
        ),
        Column(
            name="gap_ratio",
            dtype="float64",
            low=0,
            nullable=True,
            direction="lower = better than doing nothing",
            doc="avg_gap over that of the untouched model on the same sets; 1 = as good as doing nothing; null when "
            "that has none",
        ),
        Column(
            name="excess",
            dtype="float64",
            unit="percent",
            low=-100,
            high=100,
            nullable=True,
            direction="higher = the random set flatters the method",
            doc="avg_gap above that on the random set, mean of paired trials",
        ),
        _percent("excess_std", "sample standard deviation of the paired differences; null for one"),
    ),
)
RUNS = TableSpec(
    schema="scores",
    name="qualification_runs",
    key=("split", "method", "trial"),
    version=2,
    doc="Every single run of the qualification.",
    columns=(
        _SPLIT,
        _METHOD,
        Column(name="trial", dtype="int64", low=0, doc="number of the trial"),
        Column(name="seed", dtype="int64", low=0, doc="seed of the unlearner and of its metrics"),
        Column(
            name="num_forget", dtype="int64", low=1, nullable=True, doc="forgotten examples; null when there is no set"
        ),
        Column(
            name="num_retain", dtype="int64", low=1, nullable=True, doc="retained examples; null when there is no set"
        ),
        *(_percent(name, _MEANINGS[name]) for name in METRICS),
        *(_percent(name, "distance to retraining, same set and seed") for name in _GAPS),
        _percent("avg_gap", _MEANINGS["avg_gap"], direction="lower = closer to retraining"),
        Column(
            name="status", dtype="str", choices=tuple(_STATUS), doc="; ".join(f"{k}: {v}" for k, v in _STATUS.items())
        ),
        Column(name="why", dtype="str", doc="what a run without metrics said; else empty"),
    ),
)


@analysis(
    AnalysisSpec(
        name="qualification",
        wants=("losses", "reading"),
        doc="Every unlearner on random, worst-case, easiest and lowest-loss forget sets against retraining.",
        source="Zhang et al., Challenging Forgets, ECCV 2024 (arXiv 2403.07362)",
        version=2,
        config=QualificationConfig,
        needs=("model", "train_many", "unlearn", "evaluate"),
        tables=(SUMMARY, RUNS),
        pictures=(
            Picture(
                table="qualification",
                title="Gap to retraining by forget set (lower is better; none: nothing removed)",
                kind="dots",
                x="method",
                y="avg_gap",
                series="split",
                low="avg_gap_low",
                high="avg_gap_high",
            ),
            Picture(
                table="qualification",
                title="Unlearning accuracy by forget set (nearer to retrain is better)",
                kind="dots",
                x="method",
                y="ua",
                series="split",
                low="ua_low",
                high="ua_high",
            ),
        ),
    )
)
def qualification(
    data: ExampleSet,
    *,
    config: QualificationConfig,
    seed: int,
    model: nn.Module,
    train_many: Callable[..., Sequence[nn.Module]],
    unlearn: Unlearners,
    evaluate: Callable[..., Mapping[str, float | None]],
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Run every method on every kind of forget set.

    Args:
        data: both splits.
        config: methods, sets, trials.
        seed: root of the sets, of the unlearners and of the metrics.
        model: the audited model; not changed.
        train_many: ``(ids of each training set, seeds, *, data) -> models``, the retrainings of a trial at once.
        unlearn: ``(name, *, retain, forget, seed) -> model``; its ``methods`` are qualified when the configuration
            names none.
        evaluate: ``(model, *, retain, forget, test, seed, metrics) -> {ua, ra, ta, mia_efficacy}`` in percent.
        progress: called with (runs done, all, "qualification").

    Returns:
        ``qualification`` and ``qualification_runs``, rows in the order of splits, then methods, retraining first.

    Raises:
        Diverged: retraining itself, or a search for a set, left the finite numbers; there is no reference.
        NotApplicable: no random set, which is the reference, or the metrics are not defined for retraining.
        InvalidInput: see :func:`studies.forget_selectors.choose` and the unlearners.
    """
    train, test = data.part("train").by_id(), data.part("test").by_id()
    if not len(test):
        raise InvalidInput(f"{data.name} has no test split: TA and the membership test cannot be measured")
    methods = tuple(dict.fromkeys((REFERENCE, UNTOUCHED, *(config.methods or unlearn.methods))))
    total, rows = config.trials * len(config.splits) * len(methods), []
    for trial in range(config.trials):
        set_seed, run_seed = derive_seed("set", seed, trial), derive_seed("qualify", seed, trial) % 2**31
        sets: dict[str, dict[str, ExampleSet]] = {}
        for split in config.splits:
            try:
                chosen = choose(split, model, train, config=config.search, seed=set_seed, unlearn=unlearn)
            except NotApplicable as error:
                if split == "random":
                    raise
                named = {
                    "split": split,
                    "trial": trial,
                    "seed": run_seed,
                    "status": "not_applicable",
                    "why": str(error),
                }
                rows += [{**named, "method": method} for method in methods]
                continue
            gone = np.isin(train.example_id, chosen.example_id)
            sets[split] = {
                role: train.take(np.flatnonzero(gone == (role == "forget"))) for role in ("retain", "forget")
            }
        kept = [np.sort(parts["retain"].example_id) for parts in sets.values()]
        retrained = train_many(kept, [run_seed] * len(kept), data=train)
        for (split, parts), fresh in zip(sets.items(), retrained, strict=True):
            yard: dict[str, float | None] = {}
            for method in methods:
                found: dict[str, float | None] = {}
                status, why = "ok", ""
                try:
                    made = {REFERENCE: fresh, UNTOUCHED: model}.get(method)
                    made = unlearn(method, **parts, seed=run_seed) if made is None else made
                    figures = evaluate(made, **parts, test=test, seed=run_seed, metrics=METRICS)
                    found = {name: figures[name] for name in METRICS}
                except (Diverged, NotApplicable) as error:  # a finding about the method, not the end of the others
                    if method == REFERENCE:
                        raise
                    status, why = "diverged" if isinstance(error, Diverged) else "not_applicable", str(error)
                yard = yard or found
                rows.append(
                    {
                        "split": split,
                        "method": method,
                        "trial": trial,
                        "seed": run_seed,
                        **{f"num_{role}": len(part) for role, part in parts.items()},
                        **found,
                        **_gaps(found, yard),
                        "status": status,
                        "why": why,
                    }
                )
                progress(len(rows), total, "qualification")
    order = {name: number for number, name in enumerate(config.splits)}
    runs = frame_of(RUNS, rows).sort(pl.col("split").replace_strict(order, return_dtype=pl.Int64), maintain_order=True)
    return {"qualification": summarise(runs), "qualification_runs": runs}


def summarise(runs: pl.DataFrame) -> pl.DataFrame:
    """``qualification_runs`` -> ``qualification``, in the order of first appearance.

    The excess and the ratio are paired: only trials in which both of the compared have a gap count.
    """
    on_random = runs.filter(pl.col("split") == "random").select("method", "trial", pl.col("avg_gap").alias("_usual"))
    untouched = runs.filter(pl.col("method") == UNTOUCHED).select("split", "trial", pl.col("avg_gap").alias("_nothing"))
    excess = pl.col("avg_gap") - pl.col("_usual")
    own, nothing = (
        pl.col(name).filter(pl.all_horizontal(pl.col("avg_gap", "_nothing").is_not_null())).sum()
        for name in ("avg_gap", "_nothing")
    )
    return (
        runs.join(on_random, on=["method", "trial"], how="left", maintain_order="left")
        .join(untouched, on=["split", "trial"], how="left", maintain_order="left")
        .group_by("split", "method", maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("num_trials"),
            *(
                (pl.col("status") == status).sum().cast(pl.Int64).alias(f"num_{status}")
                for status in ("diverged", "not_applicable")
            ),
            *(
                statistic
                for name in (*METRICS, "avg_gap")
                for statistic in (pl.col(name).mean(), pl.col(name).std().alias(f"{name}_std"))
            ),
            *(
                statistic
                for name in ("ua", "avg_gap")
                for statistic in (pl.col(name).min().alias(f"{name}_low"), pl.col(name).max().alias(f"{name}_high"))
            ),
            pl.when(nothing > 0).then(own / nothing).alias("gap_ratio"),
            excess.mean().alias("excess"),
            excess.std().alias("excess_std"),
        )
        .select([c.name for c in SUMMARY.columns])
    )


def _gaps(found: Mapping[str, float | None], yard: Mapping[str, float | None]) -> dict[str, float]:
    """Distance to retraining; NaN where either is undefined."""
    values = []
    for name in METRICS:
        own, other = found.get(name), yard.get(name)
        values.append(math.nan if own is None or other is None else abs(own - other))
    return dict(zip((*_GAPS, "avg_gap"), (*values, float(np.mean(values))), strict=True))
