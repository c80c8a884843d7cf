"""What is measured on an unlearned model (Fan et al., ICLR 2024). All in percent, eval mode.

    UA = 100 - Q(D_f)          RA = Q(D_r)          TA = Q(test)
    MIA-efficacy = 100 * share of D_f that an SVM calls NON-member
    gap_X = |X - X of retraining, same seed|        avg_gap = mean of gap_UA, gap_RA, gap_TA, gap_MIA

Q is the mean of the task's quality: of classes the accuracy, as published. The SVM (RBF, C = 3, gamma = 1/features) is
fitted on a feature of the model's output on n = min(N_r, N_test) retained (member) and n test (non-member) examples,
drawn without order. Features, with p the softmax and y the label:
    confidence   p_y  (the one reported)                   correctness  [argmax p = y]
    entropy      -sum_j p_j log p_j                        probability  all of p
    modified entropy  -(1 - p_y) log p_y - sum_{j != y} p_j log(1 - p_j)

Those are of classes. Of any other task the one feature is its signal, in units of the mean and spread of the examples
that the SVM is fitted on, and the other MIA figures are None.

Closer to retraining is better: a HIGHER UA or MIA-efficacy is not better when the forgotten examples are a random
share. It is not a membership audit: an average over examples from a weak attack. See ``attacks`` for that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.special import log_softmax
from sklearn.svm import SVC
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import DataError, Diverged, InvalidInput, NotApplicable, NotReady
from recipes.predict import read
from sources.example_set import ExampleSet
from tasks import signals
from tasks.base import Reading
from unlearning.descent import check_labels, finite_logits

METRICS = ("ua", "ra", "ta", "mia_efficacy", "mia_correctness", "mia_entropy", "mia_m_entropy", "mia_prob")
GAPS = {"gap_ua": "ua", "gap_ra": "ra", "gap_ta": "ta", "gap_mia": "mia_efficacy"}
SVC_CAP = 2000
_GRID = 1e-3  # of a feature's unit; the RBF kernel with gamma 1 is flat on this scale


@dataclass(frozen=True, eq=False)
class _Said:
    """What one model says of one set.

    Attributes:
        quality, signal: (n,) the task's readings.
        log_p: (n, K) float64 log-probabilities of a task of classes, or None.
        labels: (n,) of a task of classes.
    """

    quality: np.ndarray
    signal: np.ndarray
    log_p: np.ndarray | None
    labels: np.ndarray

    @classmethod
    def of(
        cls, model: nn.Module, data: ExampleSet, *, what: str, known: Callable[[ExampleSet], Reading] | None
    ) -> _Said:
        if data.task.gives("outputs", "classes"):
            log_p = log_softmax(finite_logits(model, data, what=what).astype(np.float64), axis=1)
            return cls(log_p.argmax(1) == data.y, np.empty(0), log_p, data.y)
        try:
            reading = known(data) if known is not None else read(model, data)
        except DataError as error:
            raise Diverged(f"{what}: {error}") from error
        return cls(reading.quality, reading.signal, None, data.y)

    def mean_quality(self) -> float:
        """Percent."""
        return 100.0 * float(np.mean(self.quality))

    def rows(self, rows: np.ndarray) -> _Said:
        some = (a if a is None or not len(a) else a[rows] for a in (self.quality, self.signal, self.log_p, self.labels))
        return _Said(*some)  # type: ignore[arg-type]

    def features(self) -> dict[str, np.ndarray]:
        """Metric name -> (n, features): what its SVM sees."""
        if self.log_p is None:
            return {"mia_efficacy": self.signal[:, None]}
        p = np.exp(self.log_p)
        own = np.arange(len(self.labels)), self.labels
        return {
            "mia_efficacy": p[own][:, None],
            "mia_correctness": (self.log_p.argmax(1) == self.labels)[:, None].astype(np.float64),
            "mia_entropy": -(p * self.log_p).sum(1, keepdims=True),
            "mia_m_entropy": signals.modified_entropy(self.log_p, self.labels)[:, None],
            "mia_prob": p,
        }


def evaluate(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    test: ExampleSet,
    seed: int,
    svc_cap: int | None = SVC_CAP,
    metrics: Collection[str] = METRICS,
) -> dict[str, float | None]:
    """Measure one unlearned model.

    A class of which nothing is retained is a forgotten class: its test examples are left out (of TA and of the SVM).

    Args:
        model: its mode is restored.
        retain: (N_r) retained training examples, at least one.
        forget: (N_f) forgotten training examples; the same for every method that is compared.
        test: (N_t) test examples.
        seed: draws the examples the SVM is fitted on. Use one seed for a method and for its retraining.
        svc_cap: points a side that an SVM is fitted on as they are; None for no limit, as published. With more, a
            single feature is rounded first (:func:`_merged`), which moved its figures by at most 0.2 points on 10,000
            a side (Fashion-MNIST) and took 0.2 to 0.5 s instead of 10 s; all probabilities are fitted on a random
            ``svc_cap`` a side instead, so ``mia_prob`` of large sets varies with the seed by several points.
        metrics: which to compute; an SVM is fitted for each of the ``mia_`` figures, which is most of the time.

    Returns:
        ``METRICS`` in percent, [0, 100]; None what was not asked for, or is not there for the task. With no forgotten
        example, UA and the MIA figures are None too (undefined).

    Raises:
        NotApplicable: sets of different tasks.
        DataError: targets that are none of the task, no retained example, or no test example of a retained class.
        InvalidInput: svc_cap below 2.
        Diverged: the model's output is not finite somewhere.
    """
    return measure(model, retain=retain, forget=forget, test=test, seed=seed, svc_cap=svc_cap, metrics=metrics)[0]


def measure(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    test: ExampleSet,
    seed: int,
    svc_cap: int | None = SVC_CAP,
    metrics: Collection[str] = METRICS,
    known: Callable[[ExampleSet], Reading] | None = None,
) -> tuple[dict[str, float | None], np.ndarray]:
    """:func:`evaluate`, and what its efficacy attack says of each forgotten example.

    Args:
        known: examples of these sets -> what the model says of them, of whoever has read it already: a text is not run
            again. Not asked where outputs of classes are measured.

    Returns:
        The figures, and (N_f,) bool: called a non-member; all False where ``mia_efficacy`` was not asked for.
    """
    for what, data in (("retain", retain), ("forget", forget), ("test", test)):
        if data.task != retain.task:
            raise NotApplicable(f"the {what} set is a {data.task} task, the retain set a {retain.task} task")
        _check_targets(what, data)
    if svc_cap is not None and svc_cap < 2:
        raise InvalidInput(f"svc_cap = {svc_cap} must be >= 2, or None for no cap")
    if retain.num_examples == 0:
        raise DataError("the retain set is empty: there are no members to compare with")
    if retain.task.gives("classes"):
        test = test.subset(test.example_id[np.isin(test.y, np.unique(retain.y))])
    if test.num_examples == 0:
        raise DataError("the test set has no example of a retained class")
    member, outsider = (
        _Said.of(model, data, what=what, known=known) for what, data in (("retain", retain), ("test", test))
    )
    figures: dict[str, float | None] = dict.fromkeys(METRICS)
    figures |= {"ra": member.mean_quality(), "ta": outsider.mean_quality()}
    called = np.zeros(forget.num_examples, dtype=bool)
    if forget.num_examples == 0:
        return figures, called
    forgotten = _Said.of(model, forget, what="forget", known=known)
    figures["ua"] = 100.0 - forgotten.mean_quality()
    n = min(retain.num_examples, test.num_examples)
    rng = np.random.default_rng(derive_seed("mia", seed))
    known = member.rows(_draw(retain, n, rng)).features(), outsider.rows(_draw(test, n, rng)).features()
    for name, asked in forgotten.features().items():
        if name not in metrics:
            continue
        sides = known[0][name], known[1][name]
        if forgotten.log_p is None:
            asked, *sides = _in_units(asked, *sides)
        if svc_cap is not None and n > svc_cap:
            one_feature = asked.shape[1] == 1
            # _draw gave them in random order: the first are a random choice
            sides = _merged(*sides, groups=svc_cap // 2) if one_feature else (sides[0][:svc_cap], sides[1][:svc_cap])
        outside = _called_non_member(*sides, asked)
        figures[name] = 100.0 * float(outside.mean())
        if name == "mia_efficacy":
            called = outside
    return figures, called


def _in_units(asked: np.ndarray, *sides: np.ndarray) -> list[np.ndarray]:
    """Values less the mean of ``sides`` in units of their standard deviation: a kernel of a fixed width then suits
    every task."""
    joined = np.concatenate(sides)
    return [(values - joined.mean()) / (float(joined.std()) or 1.0) for values in (asked, *sides)]


def _check_targets(what: str, data: ExampleSet) -> None:
    """Raises: DataError: targets that are none of the task; names the set and the examples."""
    if data.task.gives("classes"):
        check_labels(what, data)
    else:
        data.check_targets()


def _draw(data: ExampleSet, n: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` rows without order; a function of the ids, not of the order the rows came in."""
    return np.argsort(data.example_id)[rng.choice(data.num_examples, n, replace=False)]


def _called_non_member(members: np.ndarray, outsiders: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Which of ``asked`` the SVM calls non-member, bool.

    Equal points of one side are one point of their number's weight: the same optimum, and quick for correctness or
    for saturated confidences, where nearly all points are equal.
    """
    points, sides, weights = [], [], []
    for side, values in ((1, members), (0, outsiders)):
        distinct, counts = np.unique(values, axis=0, return_counts=True)
        points.append(distinct)
        sides.append(np.full(len(distinct), side))
        weights.append(counts)
    svm = SVC(kernel="rbf", C=3.0, gamma="auto", random_state=0)  # None would move numpy's global state
    svm.fit(np.concatenate(points), np.concatenate(sides), sample_weight=np.concatenate(weights))
    distinct, where = np.unique(asked, axis=0, return_inverse=True)
    return np.asarray(svm.predict(distinct)[where.reshape(-1)] == 0)


def _merged(members: np.ndarray, outsiders: np.ndarray, *, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of one feature, (n, 1) each, with neighbouring values replaced by their common mean.

    Neighbours lie in one cell of a grid of 1e-3 *and* in one of ``groups`` quantile groups of all values. The grid
    bounds how far a value moves; the quantiles keep apart what is dense, as the confidences of an overfitted model,
    which all lie within 1e-3 of 1: no group holds more than 1/groups of the values, unless they are equal.
    """
    values = np.concatenate([members, outsiders])[:, 0]
    quantile = np.searchsorted(np.quantile(values, np.linspace(0, 1, groups + 1)[1:-1]), values, side="right")
    cells = np.stack([np.floor(values / _GRID), quantile], axis=1)
    _, group = np.unique(cells, axis=0, return_inverse=True)
    group = group.reshape(-1)
    means = np.bincount(group, weights=values) / np.bincount(group)
    rounded = means[group][:, None]
    return rounded[: len(members)], rounded[len(members) :]


def add_gaps(rows: pl.DataFrame) -> pl.DataFrame:
    """Fill gap_ua, gap_ra, gap_ta, gap_mia and avg_gap of each run against retraining of the same split and seed.

    Args:
        rows: split, method, seed and the metrics of ``unlearning.metrics``, a column each; existing gap columns are
            replaced. Where a metric is null or NaN (a diverged run, or an undefined figure), the gap is null.

    Returns:
        The rows in their order, with the gaps in percentage points. avg_gap is null unless all four are known.

    Raises:
        NotReady: a split and seed has no retraining.
        DataError: two retrainings of one split and seed, or a run on other forget or retain sets than its retraining.
    """
    metrics = tuple(GAPS.values())
    rows = rows.drop(*GAPS, "avg_gap", strict=False)
    rows = rows.with_columns(pl.col(*metrics).cast(pl.Float64))  # all runs diverged: a column of type Null
    sizes = [c for c in ("num_forget", "num_retain") if c in rows.columns]
    yard = rows.filter(pl.col("method") == "retrain").select(
        "split", "seed", *(pl.col(c).alias(f"_{c}") for c in (*metrics, *sizes))
    )
    if yard.select("split", "seed").is_duplicated().any():
        raise DataError("two retrainings of one split and seed: the gaps would be ambiguous")
    alone = rows.join(yard, on=["split", "seed"], how="anti").select("split", "seed").unique(maintain_order=True)
    if alone.height:
        pairs = ", ".join(f"split {s} seed {k}" for s, k in alone.head(5).iter_rows())
        raise NotReady(f"no retraining to compare with for {pairs}; run the unlearner 'retrain' there first")
    both = rows.join(yard, on=["split", "seed"], how="left", maintain_order="left")
    for size in sizes:
        other = both.filter(pl.col(size) != pl.col(f"_{size}"))
        if other.height:
            split, method, seed = other.select("split", "method", "seed").row(0)
            raise DataError(f"{method} on split {split}, seed {seed} has another {size} than its retraining")
    gaps = [(pl.col(m) - pl.col(f"_{m}")).abs().fill_nan(None).alias(g) for g, m in GAPS.items()]
    known = pl.all_horizontal(pl.col(*GAPS).is_not_null())
    mean = pl.when(known).then(pl.mean_horizontal(*GAPS)).alias("avg_gap")
    return both.with_columns(gaps).with_columns(mean).select(*rows.columns, *GAPS, "avg_gap")


def summarise(rows: pl.DataFrame) -> pl.DataFrame:
    """Mean and spread over seeds, one row a split x method x metric.

    Args:
        rows: split, method and any of the metrics, the gaps, avg_gap, wall_s and rte, one row a seed.

    Returns:
        split, method, metric, mean, std (n - 1 in the denominator, null for one run), n (runs with a value) and
        num_runs (all, with the diverged ones), in the order of first appearance.
    """
    known = [c for c in (*METRICS, *GAPS, "avg_gap", "wall_s", "rte") if c in rows.columns]
    long = rows.select("split", "method", *known).unpivot(
        known, index=["split", "method"], variable_name="metric", value_name="value"
    )
    value = pl.col("value").fill_nan(None)
    return long.group_by("split", "method", "metric", maintain_order=True).agg(
        value.mean().alias("mean"),
        value.std().alias("std"),
        value.count().cast(pl.Int64).alias("n"),
        pl.len().cast(pl.Int64).alias("num_runs"),
    )
