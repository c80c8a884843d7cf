"""Qualification of unlearners: the same methods on random, worst-case, easiest and other forget sets, against retraining.

    for each trial t, forget set F of each selector (drawn or searched anew in every trial):
        UA = 100 - acc(F), RA, TA, MIA-efficacy   of retraining without F and of every method, in percent
        avg_gap = mean of |UA - UA'|, |RA - RA'|, |TA - TA'|, |MIA - MIA'|       ' = retraining, same F, same seed
        excess  = avg_gap on F - avg_gap of the same method on the random set, same trial

A method that passes on random sets and has a large excess on the worst case was graded on easy questions. On the worst-case set
retraining itself keeps UA near 0, on the easiest it loses most of it: read a UA beside that of retraining, never alone.
The configuration of a method is that of the subject, whatever the set: as in the paper, it is not tuned to the set.

Source: Zhang et al., "Challenging Forgets" (ECCV 2024, arXiv 2403.07362), evaluation protocol; metrics of Fan et al., SalUn
(ICLR 2024). Not a membership audit of the result: for that see the attacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, Diverged, InvalidInput
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from scoring.forget_selectors import SELECTORS, choose
from scoring.worst_case_forget import Unlearn, WorstCaseForgetConfig
from sources.example_set import ExampleSet

YARDSTICK = "retrain"
METRICS = ("ua", "ra", "ta", "mia_efficacy")
_GAPS = ("gap_ua", "gap_ra", "gap_ta", "gap_mia")


@dataclass(frozen=True, kw_only=True, slots=True)
class QualificationConfig(Config):
    methods: tuple[str, ...] = param(
        ("finetune", "gradient_ascent", "random_label"), doc="registered unlearners to qualify, beside retrain"
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
_METHOD = Column(name="method", dtype="str", doc="unlearner; retrain is the yardstick, none the untouched model")
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
    schema="scores", name="qualification", key=("split", "method"),
    doc="Each unlearner on each kind of forget set: mean and spread over trials. Metrics are null where undefined.",
    columns=(
        _SPLIT, _METHOD,
        Column(name="num_trials", dtype="int64", low=1, doc="trials run"),
        Column(name="num_diverged", dtype="int64", low=0, doc="of them ended in Diverged; left out of the means"),
        *(column for name in (*METRICS, "avg_gap") for column in _spread(name)),
        *(_percent(f"{name}_{end}", f"{word} {name} over trials") for name in ("ua", "avg_gap") for end, word in (("low", "lowest"), ("high", "highest"))),
        Column(
            name="excess", dtype="float64", unit="percent", low=-100, high=100, nullable=True,
            direction="higher = the random set flatters the method", doc="avg_gap above that on the random set, mean of paired trials",
        ),
        _percent("excess_std", "sample standard deviation of the paired differences; null for one"),
    ),
)  # fmt: skip
RUNS = TableSpec(
    schema="scores", name="qualification_runs", key=("split", "method", "trial"),
    doc="Every single run of the qualification.",
    columns=(
        _SPLIT, _METHOD,
        Column(name="trial", dtype="int64", low=0, doc="number of the trial"),
        Column(name="seed", dtype="int64", low=0, doc="seed of the unlearner and of its metrics"),
        Column(name="num_forget", dtype="int64", low=1, doc="forgotten examples"),
        Column(name="num_retain", dtype="int64", low=1, doc="retained examples"),
        *(_percent(name, _MEANINGS[name]) for name in METRICS),
        *(_percent(name, "distance to retraining, same set and seed") for name in _GAPS),
        _percent("avg_gap", _MEANINGS["avg_gap"], direction="lower = closer to retraining"),
        Column(name="status", dtype="str", choices=("ok", "diverged"), doc="diverged: the unlearner gave up, no metrics"),
    ),
)  # fmt: skip


@analysis(
    AnalysisSpec(
        name="qualification",
        doc="Every unlearner on random, worst-case, easiest and lowest-loss forget sets against retraining.",
        source="Zhang et al., Challenging Forgets, ECCV 2024 (arXiv 2403.07362)",
        config=QualificationConfig,
        needs=("model", "unlearn", "evaluate"),
        tables=(SUMMARY, RUNS),
        pictures=(
            Picture(
                table="qualification", title="Gap to retraining by forget set (lower is better)", kind="dots",
                x="method", y="avg_gap", series="split", low="avg_gap_low", high="avg_gap_high",
            ),
            Picture(
                table="qualification", title="Unlearning accuracy by forget set (nearer to retrain is better)", kind="dots",
                x="method", y="ua", series="split", low="ua_low", high="ua_high",
            ),
        ),
    )
)  # fmt: skip
def qualification(
    data: ExampleSet,
    *,
    config: QualificationConfig,
    seed: int,
    model: nn.Module,
    unlearn: Unlearn,
    evaluate: Callable[..., Mapping[str, float | None]],
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Run every method on every kind of forget set.

    Args:
        data: both splits.
        config: methods, sets, trials.
        seed: root of the sets, of the unlearners and of the metrics.
        model: the audited model; not changed.
        unlearn: ``(name, *, retain, forget, seed) -> model``; knows ``retrain``.
        evaluate: ``(model, *, retain, forget, test, seed) -> {ua, ra, ta, mia_efficacy}`` in percent.
        progress: told (runs done, all, "qualification").

    Returns:
        ``qualification`` and ``qualification_runs``, rows in the order of splits, then methods, retraining first.

    Raises:
        Diverged: retraining itself, or a search for a set, left the finite numbers; there is no yardstick.
        InvalidInput: see :func:`scoring.forget_selectors.choose` and the unlearners.
    """
    train, test = data.part("train"), data.part("test")
    if not len(test):
        raise InvalidInput(f"{data.name} has no test split: TA and the membership test cannot be measured")
    methods = (YARDSTICK, *(m for m in config.methods if m != YARDSTICK))
    total, rows = config.trials * len(config.splits) * len(methods), []
    for trial in range(config.trials):
        for split in config.splits:
            chosen = choose(
                split, model, train, config=config.search, seed=derive_seed("set", seed, trial), unlearn=unlearn
            )
            gone = np.isin(train.example_id, chosen.example_id)
            sets = {"retain": train.subset(train.example_id[~gone]), "forget": train.subset(train.example_id[gone])}
            run_seed = derive_seed("qualify", seed, trial) % 2**31
            yard: dict[str, float | None] | None = None
            for method in methods:
                found = _run(method, unlearn, evaluate, sets, test, run_seed)
                yard = found if yard is None else yard
                rows.append(
                    {
                        "split": split, "method": method, "trial": trial, "seed": run_seed,
                        "num_forget": int(gone.sum()), "num_retain": int((~gone).sum()),
                        **(found or dict.fromkeys(METRICS)), **_gaps(found, yard),
                        "status": "diverged" if found is None else "ok",
                    }
                )  # fmt: skip
                progress(len(rows), total, "qualification")
    floats = {c.name: pl.Float64 for c in RUNS.columns if c.dtype == "float64"}
    runs = pl.DataFrame(rows, schema_overrides=floats, infer_schema_length=None)
    order = {name: number for number, name in enumerate(config.splits)}
    runs = runs.sort(pl.col("split").replace_strict(order, return_dtype=pl.Int64), maintain_order=True)
    return {"qualification": summarise(runs), "qualification_runs": runs}


def summarise(runs: pl.DataFrame) -> pl.DataFrame:
    """``qualification_runs`` -> ``qualification``, in the order of first appearance.

    The excess is paired: only trials in which a method has a gap on both sets count.
    """
    on_random = runs.filter(pl.col("split") == "random").select("method", "trial", pl.col("avg_gap").alias("_usual"))
    excess = pl.col("avg_gap") - pl.col("_usual")
    return (
        runs.join(on_random, on=["method", "trial"], how="left", maintain_order="left")
        .group_by("split", "method", maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("num_trials"),
            (pl.col("status") == "diverged").sum().cast(pl.Int64).alias("num_diverged"),
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
            excess.mean().alias("excess"),
            excess.std().alias("excess_std"),
        )
        .select([c.name for c in SUMMARY.columns])
    )


def _run(
    method: str,
    unlearn: Unlearn,
    evaluate: Callable[..., Mapping[str, float | None]],
    sets: Mapping[str, ExampleSet],
    test: ExampleSet,
    seed: int,
) -> dict[str, float | None] | None:
    """The metrics of one run; None when the method diverged, which is a finding about it."""
    try:
        figures = evaluate(unlearn(method, **sets, seed=seed), **sets, test=test, seed=seed)
    except Diverged:
        if method == YARDSTICK:
            raise
        return None
    return {name: figures[name] for name in METRICS}


def _gaps(found: Mapping[str, float | None] | None, yard: Mapping[str, float | None] | None) -> dict[str, float | None]:
    """Distance to retraining; null where either is undefined."""
    values = [
        math.nan if found is None or yard is None or found[m] is None or yard[m] is None else abs(found[m] - yard[m])  # type: ignore[operator]
        for m in METRICS
    ]
    mean = float(np.mean(values))
    return {name: None if math.isnan(v) else v for name, v in zip((*_GAPS, "avg_gap"), (*values, mean), strict=True)}
