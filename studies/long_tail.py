"""The long tail: how much of the training set is memorised, class by class, and what not memorising it would cost.

    memorised mass of a class = (1/n) sum over its examples of mem_i;   over all classes = mean acc_in - mean acc_out
    subpopulation             = connected component of the training examples at most ratio D apart
    D                         = median distance of two training examples, in what they hold (``explain.payloads``)
    singleton                 = subpopulation seen once in the training set;  n_l = number of subpopulations seen l
                              times
    price of not memorising   = accuracy lost when the labels of singletons are guessed = n_1 tau_1 (1 - 1/k)
    price_by_mem              = the same with their mean mem in place of 1 - 1/k: they are predicted by the rest instead

tau_1, the expected frequency of a subpopulation seen once among n, is given three ways, to be read side by side:
    zipf          Feldman's example: N subpopulations with frequencies drawn from i^-exponent (no look at the data; by
                  default N = n, exponent 1)
    good_turing   2 n_2 / (n n_1): the data's own counts, and n_1 / n for the mass of subpopulations never seen
    measured      share of the population (in no model) whose nearest training example is a singleton and alike, over
                  n_1; its price is the mean over the population of infl(nearest singleton, j), with a standard error:
                  the accuracy that hinges on singletons, no assumption about labels

Source: Feldman, "Does Learning Require Memorization?" (STOC 2020, arXiv 1906.05271), theorem 2.3; Good (Biometrika
    1953);
influence as in Feldman & Zhang (arXiv 2008.03703). The theorem assumes that subpopulations say nothing about each
other's labels; where they do (digits: a lone 3 still looks like a 3), what was seen once is predicted by the rest and
the measured price is far below the other two. Groups depend on the ratio: compare the missing mass of good_turing with
the measured one before believing either (digits, ratios 0.25 to 0.5: within 0.04). Groups that reach the size of a
class are no subpopulations, and are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contracts.errors import NotApplicable
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from explain.components import components_at
from explain.neighbours import METHODS, Ints, nearest
from explain.payloads import PayloadSpace, check_finite
from recipes.ensemble import ReferenceEnsemble
from scoring.memorization import Memorization, fit_of, memorization_scores
from scoring.pool import members, qualities
from sources.example_set import ExampleSet
from sources.frames import frame_of
from sources.long_tail import price_of_not_memorising, zipf_prior

ESTIMATES = ("zipf", "good_turing", "measured")
_PAIRS = 20_000  # of training examples whose distance is measured
_DRAWS = 200  # of the Zipf domain: one per cent of error in tau_1
_NORMAL = 1.96  # standard errors either side of a 95% interval


@dataclass(frozen=True, kw_only=True, slots=True)
class LongTailConfig(Config):
    """What counts as one subpopulation, and as memorised."""

    ratio: float = param(
        0.3,
        gt=0,
        lt=1,
        doc="largest step within a subpopulation, as a share of the median distance of two training examples",
    )
    min_mem: float = param(
        0.25,
        ge=-1,
        le=1,
        doc="an example counts as memorised when the lower end of its mem's interval is here or above",
    )
    index: str = param("exact", choices=METHODS, doc="exact search, or the approximate HNSW for more than some 10^5")
    num_subpopulations: int | None = param(
        None, ge=2, le=1_000_000, doc="subpopulations that zipf assumes; null: one for every training example"
    )
    exponent: float = param(1.0, ge=0, le=10, doc="of the frequencies i^-exponent that zipf assumes")


def _count(name: str, doc: str) -> Column:
    return Column(name=name, dtype="int64", low=0, doc=doc)


_CLASSES = TableSpec(
    schema="scores",
    name="long_tail_classes",
    key=("label",),
    doc="Memorised mass and singletons of each class.",
    columns=(
        _count("label", "class index"),
        Column(name="label_name", dtype="str", doc="class name"),
        _count("num_examples", "training examples in the pool"),
        Column(
            name="mean_mem",
            dtype="float64",
            low=-1,
            high=1,
            direction="higher = more memorised",
            doc="mean memorization",
        ),
        Column(
            name="memorised_mass",
            dtype="float64",
            low=-1,
            high=1,
            doc="sum of mem over the class / all training examples in the pool; summed over classes: accuracy inside "
            "minus outside",
        ),
        _count("num_memorised", "examples with the lower end of mem's 95% interval at or above the cut"),
        _count("num_singletons", "subpopulations seen once"),
        Column(
            name="singleton_mem",
            dtype="float64",
            low=-1,
            high=1,
            nullable=True,
            doc="mean memorization of singletons; null without any",
        ),
        Column(
            name="other_mem",
            dtype="float64",
            low=-1,
            high=1,
            nullable=True,
            doc="mean memorization of the others; null without any",
        ),
    ),
)
_PRICE = TableSpec(
    schema="scores",
    name="long_tail_price",
    key=("estimate",),
    doc="What not memorising singletons costs: theory beside measurement.",
    columns=(
        Column(name="estimate", dtype="str", choices=ESTIMATES, doc="where tau_1 comes from"),
        _count("num_examples", "training examples in the pool, n"),
        _count("num_subpopulations", "groups among them (zipf: subpopulations assumed)"),
        _count("num_singletons", "of these, seen once, n_1 (also for zipf)"),
        Column(
            name="tau_1",
            dtype="float64",
            low=0,
            high=1,
            nullable=True,
            doc="expected frequency of a subpopulation seen once; null without singletons",
        ),
        Column(
            name="singleton_mass",
            dtype="float64",
            low=0,
            nullable=True,
            doc="n_1 tau_1: share of new examples from subpopulations seen once",
        ),
        Column(
            name="missing_mass",
            dtype="float64",
            low=0,
            high=1,
            nullable=True,
            doc="share of new examples from subpopulations never seen; null for zipf",
        ),
        Column(
            name="price",
            dtype="float64",
            low=-1,
            nullable=True,
            direction="higher = memorising matters more",
            doc="accuracy lost when singletons are not fitted; null without a population",
        ),
        Column(
            name="price_by_mem",
            dtype="float64",
            low=-1,
            nullable=True,
            doc="singleton_mass times the mean mem of singletons; null without singletons",
        ),
        Column(name="price_low", dtype="float64", nullable=True, doc="lower end of the 95% interval; measured only"),
        Column(name="price_high", dtype="float64", nullable=True, doc="upper end"),
        Column(
            name="acc_in",
            dtype="float64",
            low=0,
            high=1,
            doc="accuracy of the models on their own members; nothing is published below 0.98",
        ),
    ),
)


@analysis(
    AnalysisSpec(
        name="long_tail_report",
        wants=("reading", "classes", "features"),
        doc="Long tail: memorised mass by class, subpopulations seen once, and the price of not memorising them.",
        source="Feldman, STOC 2020 (arXiv 1906.05271), theorem 2.3; Good, Biometrika 1953",
        config=LongTailConfig,
        version=3,
        needs=("ensemble",),
        tables=(_CLASSES, _PRICE),
        pictures=(
            Picture(
                table="long_tail_classes",
                kind="bars",
                x="label_name",
                y="memorised_mass",
                title="Memorised mass by class",
            ),
            Picture(
                table="long_tail_price",
                kind="dots",
                x="estimate",
                y="price",
                low="price_low",
                high="price_high",
                title="Accuracy lost by not memorising what was seen once",
            ),
        ),
    )
)
def long_tail_report(
    data: ExampleSet,
    *,
    config: LongTailConfig,
    seed: int,
    ensemble: ReferenceEnsemble,
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Memorised mass by class and the price of not memorising.

    Args:
        data: both splits, classification.
        config: ratio, cut and index.
        seed: of the draws of the Zipf domain, and of the pairs whose distance is measured.
        ensemble: M models on halves of the pool.
        progress: called with how far the search for neighbours is.

    Returns:
        ``long_tail_classes``, one row a class of ``data``, and ``long_tail_price``, one row an estimate.

    Raises:
        NotApplicable: not classification, an ensemble that does not fit its training sets (the gate of
            ``memorization``), or a group as large as the class of one of its examples.
        DataError: ids used twice; no training example in the pool; labels other than the ensemble's; values that are
            not finite. Names the examples.
    """
    train = data.part("train")
    train = train.by_id()
    rows, columns = members("long_tail_report", train, ensemble, wants=("classes",))
    train = train.subset(train.example_id[rows])
    population = np.flatnonzero(~ensemble.pool)
    population = population[np.argsort(ensemble.example_id[population])]
    unseen = data.subset(ensemble.example_id[population])

    check_finite(unseen.x, unseen.example_id)
    space = PayloadSpace(train.x, train.example_id)
    points, queries = space.vectors(np.arange(len(train))), space.vectors(np.arange(len(unseen)), of=unseen.x)
    least = 1 - (config.ratio * _typical(points, seed)) ** 2 / 2
    group, _ = components_at(points, threshold=least, method=config.index)
    size = np.bincount(group, minlength=len(group))[group]
    _refuse_crowds(size, train, config.ratio)
    near = nearest(points, k=1, queries=queries, method=config.index, progress=progress)
    keep = ensemble.keep[:, columns]
    own = memorization_scores(keep, qualities(ensemble, columns))
    fit = fit_of("long_tail_report", own)
    at = near.position[:, 0]
    infl = _influence_of(keep[:, at], qualities(ensemble, population))
    known = near.similarity[:, 0] >= least
    return {
        "long_tail_classes": _by_class(train, own, size == 1, config.min_mem),
        "long_tail_price": frame_of(
            _PRICE,
            [
                _zipf(size, data.num_classes, config, seed),
                _good_turing(size, data.num_classes),
                _measured(size, known & (size[at] == 1), known, infl),
            ],
        ).with_columns(
            price_by_mem=pl.col("singleton_mass") * pl.lit(_mean(own.mem[size == 1]), pl.Float64), acc_in=fit
        ),
    }


def _typical(points: NDArray[np.float32], seed: int) -> float:
    """Median distance of two points, in (0, 2]; of a sample of pairs. 1 where more than half of the pairs coincide."""
    a, b = np.random.default_rng(seed).integers(0, len(points), (2, _PAIRS))
    away = a != b
    cosine = np.einsum("nd,nd->n", points[a[away]].astype(np.float64), points[b[away]].astype(np.float64))
    distance = float(np.median(np.sqrt(np.maximum(2 - 2 * cosine, 0)))) if away.any() else 0.0
    return distance or 1.0


def _refuse_crowds(size: Ints, train: ExampleSet, ratio: float) -> None:
    count = np.bincount(train.y)[train.y]
    crowded = size >= np.maximum(count, 2)
    if crowded.any():
        worst = int(np.argmax(np.where(crowded, size, 0)))
        raise NotApplicable(
            f"long_tail_report: at ratio {ratio:g} one group holds {size[worst]} of {len(size)} training examples, as "
            f"many as class {train.class_names[train.y[worst]]!r} ({count[worst]}): these are no subpopulations; lower "
            "the ratio"
        )


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _by_class(train: ExampleSet, own: Memorization, single: NDArray[np.bool_], min_mem: float) -> pl.DataFrame:
    frame = pl.DataFrame({"label": train.y, "mem": own.mem, "low": own.low, "single": single})
    names = pl.DataFrame({"label": np.arange(train.num_classes), "label_name": list(train.class_names)})
    mem = pl.col("mem")
    found = frame.group_by("label").agg(
        num_examples=pl.len().cast(pl.Int64),
        mean_mem=mem.mean(),
        memorised_mass=mem.sum() / len(train),
        num_memorised=(pl.col("low") >= min_mem).sum().cast(pl.Int64),
        num_singletons=pl.col("single").sum().cast(pl.Int64),
        singleton_mem=mem.filter(pl.col("single")).mean(),
        other_mem=mem.filter(~pl.col("single")).mean(),
    )
    return found.join(names, on="label").sort("label").select([c.name for c in _CLASSES.columns])


def _influence_of(keep: NDArray[np.bool_], correct: NDArray[Any]) -> NDArray[np.float64]:
    """Influence of column j of ``keep`` on column j of ``correct``: the diagonal of the influence matrix, float64
    (P,)."""
    return memorization_scores(keep, correct).mem


def _row(estimate: str, size: Ints, mass: float | None, **more: float | int | None) -> dict[str, object]:
    single = int((size == 1).sum())
    return {
        "estimate": estimate,
        "num_examples": len(size),
        "num_subpopulations": round(float((1.0 / size).sum())),
        "num_singletons": single,
        "tau_1": mass / single if single and mass is not None else None,
        "singleton_mass": mass,
        "missing_mass": None,
        "price_low": None,
        "price_high": None,
        **more,
    }


def _zipf(size: Ints, num_classes: int, config: LongTailConfig, seed: int) -> dict[str, object]:
    num, single = config.num_subpopulations or len(size), int((size == 1).sum())
    if num < 2:
        return _row("zipf", size, None, price=None)
    prior = zipf_prior(num, exponent=config.exponent)
    mass = price_of_not_memorising(prior, {1: single}, num_samples=len(size), draws=_DRAWS, seed=seed)
    return _row("zipf", size, mass, price=mass * (1 - 1 / num_classes), num_subpopulations=num)


def _good_turing(size: Ints, num_classes: int) -> dict[str, object]:
    mass = float((size == 2).sum()) / len(size)  # 2 n_2 / n: examples in pairs
    return _row("good_turing", size, mass, price=mass * (1 - 1 / num_classes), missing_mass=float((size == 1).mean()))


def _measured(
    size: Ints, hinges: NDArray[np.bool_], known: NDArray[np.bool_], infl: NDArray[np.float64]
) -> dict[str, object]:
    """From the population: which examples fall into a singleton's subpopulation, and what its label did for them."""
    if not len(hinges):
        return _row("measured", size, None, price=None)
    gain = np.where(hinges, infl, 0.0)
    half = _NORMAL * float(gain.std(ddof=1)) / np.sqrt(len(gain)) if len(gain) > 1 else None
    price = float(gain.mean())
    return _row(
        "measured",
        size,
        float(hinges.mean()),
        price=price,
        missing_mass=float(1.0 - known.mean()),
        price_low=None if half is None else price - half,
        price_high=None if half is None else price + half,
    )
