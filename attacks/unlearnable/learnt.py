"""What trainings on a protected data set come to: intervals over trainings and test examples, doses, and the verdict.

    m        mean accuracy of one kind of training over its S seeds, of n test examples
    interval m -+ sqrt( (t s / sqrt S)^2 + c^2 )
             c from m to the end of Clopper-Pearson's interval of round(m n) of n;
             s^2 pooled over the K kinds of the audit (S >= 2), t of Student with K (S - 1) degrees of freedom;
             one training a kind (S = 1) has c alone: it says nothing of another training
    level    1 - alpha / (D + 1) for each of the D defences and the originals, so that all hold at once
    best     the largest of D means; it lies from the largest lower end to the largest upper end
    learnt   (best - chance) / (originals - chance)

Sources: Clopper & Pearson (1934); Bonferroni over the defences, of which the best was chosen after looking.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from scipy.stats import t as student

from contracts.subject import Thresholds
from contracts.tables import Column, TableSpec
from contracts.verdicts import INFORMATION, PROTECTION, Finding, Verdict, at_most
from sources.frames import frame_of
from stats import clopper_pearson

ESTIMATED, ORIGINALS, PLAIN = "filter_estimation", "originals", "none"


def accuracy_column(name: str, doc: str, *, nullable: bool = False) -> Column:
    """An accuracy, in [0, 1]."""
    return Column(
        name=name, dtype="float64", low=0, high=1, nullable=nullable, doc=doc, direction="higher = more was learnt"
    )


SUMMARY = TableSpec(
    schema="audits",
    name="unlearnability_summary",
    version=2,
    key=("dataset",),
    doc="How much the best defence learnt of what the originals teach.",
    columns=(
        Column(name="dataset", dtype="str", doc="the protected data set"),
        accuracy_column("reference", "mean accuracy of networks trained on the originals"),
        Column(name="chance", dtype="float64", low=0, high=1, doc="share of the largest class among test examples"),
        Column(name="best", dtype="str", doc="the defence that learnt most"),
        accuracy_column("best_accuracy", "its mean accuracy"),
        Column(name="seeds", dtype="int64", low=1, doc="trainings of each kind; 1: the interval is of test examples"),
        Column(name="learnt", dtype="float64", doc="share above chance of what the originals teach; may leave 0 to 1"),
        Column(name="learnt_low", dtype="float64", doc="lower end of its interval"),
        Column(name="learnt_high", dtype="float64", doc="upper end"),
        Column(name="tolerated", dtype="float64", low=0, high=1, doc="largest share that passes"),
        Column(
            name="unexplained",
            dtype="float64",
            low=0,
            nullable=True,
            doc="of protected images by the estimated filters; null for sets that no filters were looked for in",
        ),
    ),
)
DOSES = TableSpec(
    schema="audits",
    name="unlearnability_doses",
    key=("trained_on",),
    doc="What plain training learns from the originals, the protected set and every control, by how it was made.",
    columns=(
        Column(name="trained_on", dtype="str", doc="originals, unprotected (the part that is), or a made data set"),
        Column(name="filters", dtype="str", nullable=True, doc="one a class, or universal; null: its maker has none"),
        Column(name="blur", dtype="float64", low=0, high=1, nullable=True, doc="p_b, the dose; null as above"),
        Column(name="share", dtype="float64", low=0, high=1, nullable=True, doc="of its images that are protected"),
        accuracy_column("accuracy", "mean over trainings, on test images as they are"),
        accuracy_column("low", "lower end of its interval"),
        accuracy_column("high", "upper end"),
        Column(name="learnt", dtype="float64", doc="share above chance of what the originals teach"),
    ),
)


def kinds_of(trainings: pl.DataFrame, *, alpha: float, num_test: int) -> pl.DataFrame:
    """(trained_on, defence, accuracy, low, high): means over the trainings of a kind, see the module.

    Args:
        trainings: (trained_on, defence, repeat, accuracy), S rows a kind.
        alpha: 1 - level of each interval.
    """
    kinds = trainings.group_by("trained_on", "defence", maintain_order=True).agg(
        pl.col("accuracy").mean(), pl.col("accuracy").var().alias("variance"), pl.len().alias("seeds")
    )
    seeds = int(kinds["seeds"][0])
    over_seeds = 0.0
    if seeds > 1:
        pooled = float(kinds["variance"].mean())  # type: ignore[arg-type]
        over_seeds = float(student.ppf(1 - alpha / 2, kinds.height * (seeds - 1))) * math.sqrt(pooled / seeds)
    ends = []
    for mean in kinds["accuracy"].to_list():
        low, high = clopper_pearson(round(mean * num_test), num_test, alpha=alpha)
        below, above = max(mean - float(low), 0.0), max(float(high) - mean, 0.0)
        ends.append((max(mean - math.hypot(over_seeds, below), 0.0), min(mean + math.hypot(over_seeds, above), 1.0)))
    low_high = pl.DataFrame(ends, schema=["low", "high"], orient="row")
    return kinds.select("trained_on", "defence", "accuracy").hstack(low_high)


def summary(
    trainings: pl.DataFrame,
    *,
    dataset: str,
    tolerated: float,
    alpha: float,
    chance: float,
    num_test: int,
    unexplained: float | None,
) -> pl.DataFrame:
    """The best defence, and what it learnt of what there is to learn."""
    defences = trainings.filter(pl.col("trained_on") == dataset)["defence"].n_unique()
    kinds = kinds_of(trainings, alpha=alpha / (defences + 1), num_test=num_test)
    originals = kinds.filter(pl.col("trained_on") == ORIGINALS).row(0, named=True)
    tried = kinds.filter(pl.col("trained_on") == dataset).sort("accuracy", descending=True, maintain_order=True)
    best = tried.row(0, named=True)
    row = {
        "dataset": dataset,
        "reference": originals["accuracy"],
        "chance": chance,
        "best": best["defence"],
        "best_accuracy": best["accuracy"],
        "seeds": trainings["repeat"].n_unique(),
        "learnt": _share(best["accuracy"], originals["accuracy"], chance),
        "learnt_low": _share(tried["low"].max(), originals["high"], chance),
        "learnt_high": _share(tried["high"].max(), originals["low"], chance),
        "tolerated": tolerated,
        "unexplained": unexplained,
    }
    return frame_of(SUMMARY, [row])


def doses(
    trainings: pl.DataFrame, made_by: Mapping[str, Mapping[str, Any]], *, alpha: float, chance: float, num_test: int
) -> pl.DataFrame:
    """Plain training on every set, in the order of the trainings.

    Args:
        made_by: of each made set, how its maker says it was made: filters, blur, share.
    """
    plain = trainings.filter(pl.col("defence") == PLAIN)
    kinds = kinds_of(plain, alpha=alpha, num_test=num_test).drop("defence")
    [reference] = kinds.filter(pl.col("trained_on") == ORIGINALS)["accuracy"].to_list()
    rows = []
    for row in kinds.iter_rows(named=True):
        told = made_by.get(row["trained_on"], {})
        facts = {name: told.get(name) for name in ("filters", "blur", "share")}
        rows.append({**row, **facts, "learnt": _share(row["accuracy"], reference, chance)})
    return frame_of(DOSES, rows)


def _share(accuracy: Any, of: float, chance: float) -> float:
    return (accuracy - chance) / (of - chance) if of > chance else 1.0


def _how(defence: str) -> str:
    return " (which knows some originals beside their protected images)" if defence == ESTIMATED else ""


def judged(tables: Mapping[str, pl.DataFrame], thresholds: Thresholds) -> Sequence[tuple[str, Finding]]:
    """Whether the protection holds against the best defence; an interval across what is tolerated is inconclusive. And,
    not judged, what one filter for all classes costs."""
    rows = tables[SUMMARY.name]
    if rows.is_empty():
        return []
    row = rows.row(0, named=True)
    low, high, limit = row["learnt_low"], row["learnt_high"], row["tolerated"]
    verdict = at_most(low, high, limit)
    said = {
        Verdict.PASS: "No defence that was tried learns much",
        Verdict.FAIL: f"{row['best']} learns from it nevertheless",
        Verdict.INCONCLUSIVE: f"Whether {row['best']} learns too much cannot be told",
    }[verdict]
    over = f"over {row['seeds']} trainings" if row["seeds"] > 1 else "of one training, over test examples alone"
    finding = Finding(
        what="unlearnability",
        kind=PROTECTION,
        verdict=verdict,
        value=row["learnt"],
        low=low,
        high=high,
        threshold=limit,
        sentence=f"{said}: the best defence, {row['best']}{_how(row['best'])}, reaches an accuracy of "
        f"{row['best_accuracy']:.1%}, the originals {row['reference']:.1%}, chance {row['chance']:.1%}; that is "
        f"{row['learnt']:.0%} ({low:.0%} to {high:.0%} {over}) of what there is to learn, tolerated {limit:.0%}. "
        "Another defence may do better.",
    )
    about = f"data set {row['dataset']}"
    control = _control(tables.get(DOSES.name, pl.DataFrame()), row["dataset"])
    return [(about, finding), *((about, found) for found in control)]


def _control(table: pl.DataFrame, dataset: str) -> list[Finding]:
    """What is lost to the change of the images alone, where one filter for all classes was trained on."""
    if table.is_empty() or table.filter(pl.col("filters") == "universal").is_empty():
        return []
    control = table.filter(pl.col("filters") == "universal").row(0, named=True)
    own = table.filter(pl.col("trained_on") == dataset).row(0, named=True)
    apart = own["high"] < control["low"]
    said = (
        "The filters of the classes protect, and not the change of the images alone"
        if apart
        else "It cannot be told that the filters of the classes protect, beyond the change of the images"
    )
    return [
        Finding(
            what="unlearnability/control",
            kind=INFORMATION,
            verdict=Verdict.PASS if apart else Verdict.INCONCLUSIVE,
            value=control["accuracy"] - own["accuracy"],
            judged=False,
            sentence=f"{said}: plain training reaches {control['accuracy']:.1%} ({control['low']:.1%} to "
            f"{control['high']:.1%}) on {control['trained_on']}, whose images bear one filter for all classes, and "
            f"{own['accuracy']:.1%} ({own['low']:.1%} to {own['high']:.1%}) on {dataset}.",
        )
    ]
