"""The exposure of every training example, from the reference ensemble: every model serves once as the audited one.

For each attack and false-positive cap (``exposure``): in how many of the models trained with an example the attack
finds it, with Clopper-Pearson bounds, how often it raises a false alarm in the others, and a p-value that the random
membership design makes exact. Benjamini and Hochberg over the examples, Bonferroni over attacks and caps, names the
exposed: of those named for one attack and cap, a share of at most alpha / (attacks x caps) left no trace in
    expectation, and when no example
left any, somebody is named with probability alpha at most.

    summary   mean TPR and mean AUC over models, with intervals that know that all models judge the same examples
              (``over_runs``); mean, 99th percentile and largest exposure; number of exposed examples. The mean is what
              an average-case audit reports; the tail is whom it hides.
    verdict   fail: one exposed example is enough, whatever the AUC. pass: none, by a design that could have named one
              found in k of M/2 models, at a cap that ten non-members carry. Else inconclusive: too few models or
              non-members.

Source: Carlini et al., IEEE S&P 2022 (LiRA); Zarifzadeh et al., ICML 2024 (RMIA); Carlini et al., NeurIPS 2022 (The
    Privacy
Onion Effect). A property of the recipe and the data: what the audited model would give away, by models made as it was,
on half of the data. Shapes: M models, N pool examples; rows for training examples of the pool.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import hypergeom

from attacks.membership.evidence import Evidence
from attacks.membership.exposure import exposure_table, smallest_p_value, trace_p_values
from attacks.membership.metrics import RELIABLE, report_over_targets
from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError
from contracts.methods import EXAMPLE_ID, AnalysisSpec, Picture, analysis, attack
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.subject import Thresholds
from contracts.tables import Column, TableSpec
from contracts.verdicts import ATTACK, Finding, Verdict
from recipes.ensemble import ReferenceEnsemble
from sources.example_set import ExampleSet
from sources.frames import frame_of
from stats import benjamini_hochberg
from tasks.base import require

TARGET = "target"
_NAMED = 5  # ids that a verdict names


@dataclass(frozen=True, kw_only=True, slots=True)
class ExposureConfig(Config):
    attacks: tuple[str, ...] = param(
        ("lira_online", "rmia_online"), doc="registered attacks, with their defaults", ref="attack"
    )
    fpr_caps: tuple[float, ...] = param(
        (1e-3, 1e-2, 5e-2), gt=0, lt=1, doc="tolerated false-positive rates, increasing"
    )
    alpha: float = param(0.05, gt=0, lt=0.5, doc="1 - level of the intervals, and false-discovery rate of the exposed")

    def check(self) -> None:
        if not self.attacks or len(set(self.attacks)) < len(self.attacks):
            raise ConfigError(f"ExposureConfig.attacks = {self.attacks} must hold one at least, and none twice")
        if not self.fpr_caps or any(a >= b for a, b in pairwise(self.fpr_caps)):
            raise ConfigError(f"ExposureConfig.fpr_caps = {self.fpr_caps} must be at least one, increasing")


def _count(name: str, doc: str) -> Column:
    return Column(name=name, dtype="int64", low=0, doc=doc)


def _share(name: str, doc: str, *, nullable: bool = False, direction: str = "") -> Column:
    return Column(name=name, dtype="float64", low=0, high=1, nullable=nullable, direction=direction, doc=doc)


_ATTACK = Column(name="attack", dtype="str", doc="attack")
_CAP = _share("fpr_cap", "largest tolerated share of a model's non-members above the threshold")
_SHOWN = Column(
    name="shown", dtype="bool", doc="the lowest cap that ten non-members of every model carry; else the largest"
)
_SUMMARY = TableSpec(
    schema="audits",
    name="exposure_summary",
    doc="How well each attack finds members at each cap: on average, and the tail.",
    key=("attack", "fpr_cap"),
    columns=(
        _ATTACK,
        _CAP,
        _SHOWN,
        _count("num_models", "models that served as the audited one"),
        _count("num_negatives", "fewest non-members of a model: what a threshold rests on"),
        Column(name="reliable", dtype="bool", doc="fpr_cap * num_negatives >= 10"),
        _share("auc", "area under the ROC curve, mean over models"),
        _share("auc_lo", "lower bound, clustered by model and by example"),
        _share("auc_hi", "upper bound"),
        _share(
            "tpr",
            "true-positive rate at the cap, mean over models; null when fpr_cap * num_negatives < 1",
            nullable=True,
        ),
        _share("tpr_lo", "lower bound, models and examples resampled", nullable=True),
        _share("tpr_hi", "upper bound", nullable=True),
        _count("num_examples", "training examples judged"),
        Column(
            name="num_exposed",
            dtype="int64",
            low=0,
            nullable=True,
            doc="of these, exposed (see audits.exposure); null as tpr",
        ),
        _share("exposure_mean", "mean exposure of the training examples", nullable=True),
        _share("exposure_p99", "99th percentile", nullable=True),
        _share("exposure_max", "largest", nullable=True),
    ),
)
_EXPOSURE = TableSpec(
    schema="audits",
    name="exposure",
    doc="How often each attack finds each training example when it was in training.",
    key=("attack", "fpr_cap", "example_id"),
    columns=(
        _ATTACK,
        _CAP,
        _SHOWN,
        EXAMPLE_ID,
        _count("times_member", "models trained with it"),
        _count("found", "of these, models in which the attack finds it"),
        _count("times_out", "models trained without it"),
        _count("false", "of these, models in which the attack calls it a member"),
        _share("exposure", "found / times_member", direction="higher = more exposed"),
        _share("exposure_lo", "lower bound, Clopper-Pearson"),
        _share("exposure_hi", "upper bound"),
        _share("false_alarms", "false / times_out"),
        _share("p_value", "of: no trace, and found no more often when in training than when out"),
        _share("p_adjusted", "the same after Benjamini and Hochberg over the whole table"),
        Column(name="exposed", dtype="bool", doc="p_adjusted <= alpha of the configuration"),
        _share("share", "share of the examples at least as exposed, for this attack and cap"),
    ),
)


def judge_exposure(tables: Mapping[str, pl.DataFrame], thresholds: Thresholds) -> Sequence[tuple[str, Finding]]:
    """One finding an attack about the audited recipe; it counts when the plan judges the audited model, by
    ``max_target_auc``.

    One exposed example fails it, however small the AUC: an average does not speak for a person.
    """
    summary, rows = tables["exposure_summary"], tables["exposure"]
    found = [
        _judge(str(name), of_attack, rows.filter(pl.col("attack") == name), rows.height, thresholds.alpha)
        for (name,), of_attack in summary.group_by("attack", maintain_order=True)
    ]
    judged = thresholds.max_target_auc is not None
    return [(TARGET, dataclasses.replace(finding, kind=ATTACK, judged=judged)) for finding in found]


def _judge(name: str, summary: pl.DataFrame, rows: pl.DataFrame, family: int, alpha: float) -> Finding:
    first = summary.row(0, named=True)
    num, models = first["num_examples"], first["num_models"]
    average = f"AUC {first['auc']:.3f} ({first['auc_lo']:.3f} to {first['auc_hi']:.3f}) on average"
    exposed = rows.filter(pl.col("p_adjusted") <= alpha)
    ids = exposed["example_id"].unique(maintain_order=True)
    figures: dict[str, Any] = {"what": f"exposure/{name}", "value": float(len(ids)), "threshold": 0.0}
    if len(ids):
        order = ["exposure_lo", "fpr_cap", "false", "example_id"]
        top = exposed.sort(order, descending=[True, False, False, False]).row(0, named=True)
        named = ", ".join(map(str, ids.head(_NAMED))) + (f", ... {len(ids)} in all" if len(ids) > _NAMED else "")
        return Finding(
            **figures,
            verdict=Verdict.FAIL,
            sentence=f"{len(ids)} of {num:,} training examples are exposed (ids {named}; corrected for {family:,} "
            f"tests). Most: {top['example_id']}, found in {top['found']} of {top['times_member']} models trained with "
            f"it ({top['exposure_lo']:.2f} to {top['exposure_hi']:.2f}) at a false-positive rate of "
            f"{top['fpr_cap']:g}. {average}.",
        )
    if not summary["reliable"].any():
        cap = max(summary["fpr_cap"].to_list())
        return Finding(
            **figures,
            verdict=Verdict.INCONCLUSIVE,
            sentence=f"Too few non-members for any cap: {first['num_negatives']}, needed {RELIABLE / cap:.0f} for a "
            f"false-positive rate of {cap:g}. {average}.",
        )
    needed = _found_to_be_named(models, alpha / max(family, 1))
    if needed is None:
        return Finding(
            **figures,
            verdict=Verdict.INCONCLUSIVE,
            sentence=f"Too few models to name one example among {family:,} tests: with {models} no p-value is below "
            f"{smallest_p_value(models):.1e}, needed {alpha / max(family, 1):.1e}. {average}.",
        )
    return Finding(
        **figures,
        verdict=Verdict.PASS,
        sentence=f"None of {num:,} training examples is exposed; one found in {needed} of {models // 2} models trained "
        f"with it and in no other would have been named. {average}.",
    )


def _found_to_be_named(models: int, level: float) -> int | None:
    """Models out of M/2 in which an example without false alarms must be found to be named alone; None when all are too
    few."""
    k = np.arange(1, models // 2 + 1)
    reached = np.flatnonzero(hypergeom.sf(k - 1, models, k, models // 2) <= level)
    return int(k[reached[0]]) if len(reached) else None


@analysis(
    AnalysisSpec(
        name="exposure",
        version=3,
        wants=("reading",),
        doc="Which training examples membership attacks find, how often, and at which false-positive rate.",
        source="Carlini et al., IEEE S&P 2022; Zarifzadeh et al., ICML 2024; Carlini et al., NeurIPS 2022",
        config=ExposureConfig,
        needs=("ensemble",),
        tables=(_SUMMARY, _EXPOSURE),
        pictures=(
            Picture(
                table="exposure_summary",
                title="Members found, mean over models",
                x="fpr_cap",
                y="tpr",
                series="attack",
                low="tpr_lo",
                high="tpr_hi",
                log_x=True,
            ),
            Picture(
                table="exposure",
                title="The exposed few: exposure against the share of examples at least as exposed",
                x="share",
                y="exposure",
                series="attack",
                log_x=True,
                where=(("shown", True),),
            ),
            Picture(
                table="exposure",
                title="Most exposed examples",
                kind="examples",
                x="example_id",
                y="exposure",
                series="attack",
                where=(("shown", True), ("exposed", True)),
            ),
        ),
        judge=judge_exposure,
        finds=lambda config, limits, _: [f"exposure/{name}" for name in config.attacks if limits.max_target_auc],
    )
)
def exposure(
    data: ExampleSet,
    *,
    config: ExposureConfig,
    seed: int,
    ensemble: ReferenceEnsemble,
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Tables ``exposure_summary`` and ``exposure``.

    Args:
        data: both splits, any task; says which examples are training examples.
        config: attacks, caps, level.
        seed: of attacks that draw, and of the bootstrap behind the intervals of the TPR.
        ensemble: M models on halves of the pool, each in turn the audited one with the others as its references.
        progress: called with (attacks done, in all, "attacks on every reference model").

    Raises:
        NotApplicable: an attack wants whole outputs, and the task gives none, or the ensemble's were not kept.
        DataError: ids used twice, no training example in the pool, labels other than the ensemble's, readings that are
            not finite. Names the examples.
        UnknownName: no such attack.
        ConfigError: too few models for an attack.
    """
    for name in config.attacks:
        require(data, f"attack {name}", *attack.get(name).spec.wants)
    wanted = any("outputs" in attack.get(name).spec.wants for name in config.attacks)
    evidence = every_model_a_target(data, ensemble, outputs=wanted)
    assert evidence.keep is not None
    train = np.isin(evidence.example_id, data.example_id[data.split == "train"])
    trace = trace_p_values(evidence.reference_signal[0], evidence.keep)
    negatives = int((~evidence.keep).sum(axis=1).min())
    carried = [cap for cap in config.fpr_caps if cap * negatives * (1 + 1e-12) >= RELIABLE]
    shown = carried[0] if carried else config.fpr_caps[-1]
    summaries, rows = [], []
    for done, name in enumerate(config.attacks):
        method = attack.get(name)
        scores = method(evidence, config=method.spec.config(), seed=derive_seed("exposure", seed, name) % 2**31)
        averages = _averages(scores, evidence.keep, config, seed)
        for cap in config.fpr_caps:
            tpr = averages[f"tpr@{cap:g}"]
            base = {"attack": name, "fpr_cap": cap, "shown": cap == shown}
            summaries.append(
                base
                | {"num_models": len(scores), "num_negatives": negatives, "reliable": cap in carried}
                | dict(zip(("auc", "auc_lo", "auc_hi"), averages["auc"], strict=True))
                | dict(zip(("tpr", "tpr_lo", "tpr_hi"), tpr, strict=True))
            )
            if tpr[0] is None:
                continue
            table = exposure_table(
                scores, evidence.keep, evidence.example_id, trace=trace, fpr_cap=cap, alpha=config.alpha
            ).filter(pl.col("example_id").is_in(evidence.example_id[train].tolist()))
            share = (pl.col("exposure").rank("max", descending=True) / pl.len()).alias("share")
            rows.append(table.with_columns(share, **{key: pl.lit(value) for key, value in base.items()}))
        progress(done + 1, len(config.attacks), "attacks on every reference model")
    exposed = _named(rows, config.alpha)
    return {
        "exposure_summary": _summary(summaries, exposed, int(train.sum())),
        "exposure": exposed.select(c.name for c in _EXPOSURE.columns),
    }


def every_model_a_target(data: ExampleSet, ensemble: ReferenceEnsemble, *, outputs: bool = False) -> Evidence:
    """The pool's examples in the order of their ids, every model audited with the others as its references.

    Args:
        outputs: keep the whole outputs, for attacks that want them.

    Raises:
        NotApplicable, DataError: see :func:`exposure`.
    """
    ids, times = np.unique(data.example_id, return_counts=True)
    if (times > 1).any():
        raise DataError("ids are used twice", example_ids=ids[times > 1])
    data.check_targets()
    _, here, there = np.intersect1d(data.example_id, ensemble.example_id, assume_unique=True, return_indices=True)
    other = data.y[here] != ensemble.labels[there] if data.y.ndim == 1 else np.zeros(len(here), bool)
    if other.any():
        raise DataError(
            "labels differ from those the ensemble was trained on", example_ids=data.example_id[here][other]
        )
    if not (ensemble.pool[there] & (data.split[here] == "train")).any():
        raise DataError(f"no training example of {data.name} is in the ensemble's pool", example_ids=data.example_id)
    ordered = ensemble.by_id()
    return Evidence.of_ensemble(
        ordered,
        ordered.reading,
        ordered.outputs if outputs else None,
        task=data.task,
        constants=data.constants,
        target_index=np.arange(ensemble.num_models),
        outputs=outputs,
    )


def _averages(
    scores: NDArray[np.float64], keep: NDArray[np.bool_], config: ExposureConfig, seed: int
) -> dict[str, tuple[float | None, ...]]:
    report = report_over_targets(scores, keep, alpha=config.alpha, fpr_caps=config.fpr_caps, seed=seed)
    return {row["figure"]: (row["value"], row["low"], row["high"]) for row in report.iter_rows(named=True)}


def _named(rows: Sequence[pl.DataFrame], alpha: float) -> pl.DataFrame:
    """All tables as one, with adjusted p-values.

    Not Benjamini and Hochberg over all rows at once: an exposed example is found by every attack at every cap, and its
    many small p-values would make room for a false one.
    """
    if not rows:
        return frame_of(_EXPOSURE, [])
    adjusted = [np.minimum(1.0, len(rows) * benjamini_hochberg(table["p_value"].to_numpy())) for table in rows]
    table = pl.concat([t.with_columns(p_adjusted=p) for t, p in zip(rows, adjusted, strict=True)])
    return table.with_columns(exposed=pl.col("p_adjusted") <= alpha)


def _summary(averages: Sequence[Mapping[str, object]], exposed: pl.DataFrame, num_examples: int) -> pl.DataFrame:
    """Averages over models beside the tail over examples."""
    value = pl.col("exposure")
    tail = exposed.group_by("attack", "fpr_cap").agg(
        num_exposed=pl.col("exposed").sum().cast(pl.Int64),
        exposure_mean=value.mean(),
        exposure_p99=value.quantile(0.99, "higher"),
        exposure_max=value.max(),
    )
    floats = {c.name: pl.Float64 for c in _SUMMARY.columns if c.dtype == "float64"}
    frame = pl.DataFrame(averages, schema_overrides={k: v for k, v in floats.items() if k in averages[0]})
    return (
        frame.with_columns(num_examples=pl.lit(num_examples, pl.Int64))
        .join(tail, on=["attack", "fpr_cap"], how="left", maintain_order="left")
        .select(c.name for c in _SUMMARY.columns)
    )
