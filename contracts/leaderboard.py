"""Tables of the leaderboard of removal methods (``studies.leaderboard``), keyed by kind of forget set and method.

``leaderboard`` and ``leaderboard_examples`` are there in every warehouse, empty or not: named queries read them."""

from __future__ import annotations

from typing import Any

from contracts.tables import Column, TableSpec

REFERENCE, UNTOUCHED = "retrain", "none"
METRICS = ("ua", "ra", "ta", "mia_efficacy")
GAPS = ("gap_ua", "gap_ra", "gap_ta", "gap_mia")
PARTS = ("forget", "retain", "test")
STATUS = {
    "ok": "measured",
    "diverged": "the method left the finite numbers",
    "refused": "what it gave back is no model of the plan",
    "not_applicable": "the method, or the forget set, is not defined here",
}
_MEANINGS = {
    "ua": "100 - quality (accuracy of classes) on the forget set",
    "ra": "quality on the retain set",
    "ta": "quality on the test split",
    "mia_efficacy": "share of the forget set that an SVM on confidences calls non-member",
    "avg_gap": "mean distance to retraining over UA, RA, TA and MIA-efficacy",
}
_SET = Column(name="forget_set", dtype="str", doc="kind of the forget set: random, class, worst_case, owner, ...")
_METHOD = Column(name="method", dtype="str", doc="unlearner; retrain is the reference, none the untouched model")
_PART = Column(name="part", dtype="str", choices=PARTS, doc="the examples asked")
_WORDS = "; ".join(f"{k}: {v}" for k, v in STATUS.items())
_WHY = Column(name="why", dtype="str", doc="what stands in the way, of the first run that says so; else empty")
_LABEL = Column(name="label", dtype="int64", low=0, nullable=True, doc="class; null where the task has none")


def _percent(name: str, doc: str, **more: Any) -> Column:
    return Column(
        name=name, dtype="float64", unit="percent", **{"low": 0, "high": 100, "nullable": True, **more}, doc=doc
    )


def _count(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="int64", **{"low": 0, **more}, doc=doc)


def _share(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="float64", **{"low": 0, "high": 1, "nullable": True, **more}, doc=doc)


def _nats(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="float64", unit="nats", nullable=True, doc=doc, **more)


def _seconds(doc: str) -> Column:
    return Column(name="wall_s", dtype="float64", unit="s", low=0, nullable=True, volatile=True, doc=doc)


SUMMARY = TableSpec(
    schema="scores",
    name="leaderboard",
    key=("forget_set", "method"),
    doc="Each removal method on each kind of forget set: distance to retraining, rank, who cannot be told from whom, "
    "cost. Metrics are null where undefined, and for methods that did not finish every run.",
    columns=(
        _SET,
        _METHOD,
        Column(name="status", dtype="str", choices=tuple(STATUS), doc=f"worst of the runs. {_WORDS}"),
        _WHY,
        _count("num_forget", "forgotten examples; null without a set", low=1, nullable=True),
        _count("num_retain", "retained examples; null without a set", low=1, nullable=True),
        _count("num_runs", "runs, each with an original, a retraining and a seed of its own"),
        _count("num_diverged", "of them diverged or refused"),
        *(
            column
            for name in (*METRICS, "avg_gap")
            for column in (
                _percent(name, f"{_MEANINGS[name]}; mean over runs"),
                _percent(f"{name}_std", "sample standard deviation over runs"),
            )
        ),
        _percent("avg_gap_low", "lower end of its Student interval over runs, of this method alone"),
        _percent("avg_gap_high", "upper end", high=None),
        _percent("avg_gap_worst", "largest of the runs"),
        _percent(
            "gap_floor",
            "mean distance between retrainings of different seeds on this set: nothing can be told closer than that",
        ),
        Column(
            name="gap_ratio",
            dtype="float64",
            low=0,
            nullable=True,
            direction="lower = better than doing nothing",
            doc="avg_gap over that of the untouched model; 1 = as good as doing nothing; null when that has none",
        ),
        _percent(
            "excess",
            "avg_gap above that on the random set, mean of paired runs; null without one",
            low=-100,
            direction="higher = the random set flatters the method",
        ),
        _percent("excess_std", "sample standard deviation of the paired differences"),
        _count(
            "rank", "1 = closest to retraining, of the methods that finished; null for the others", low=1, nullable=True
        ),
        Column(
            name="groups",
            dtype="str",
            doc="letters: two methods that share one cannot be told apart (Holm over all pairs of the set); "
            "empty without a rank",
        ),
        Column(
            name="beats_none",
            dtype="bool",
            nullable=True,
            doc="told apart from doing nothing, and closer to retraining; null without a rank",
        ),
        _nats("klom_forget", "KLoM on forgotten examples, by halves of the runs, mean; null for few runs"),
        _nats("klom_forget_floor", "the same of retraining against retraining"),
        Column(name="tuned", dtype="str", doc="what was chosen on the validation set, as lr=0.01; empty: the plan's"),
        _seconds("mean wall time of the runs made alone; of retraining, of one model on the first set"),
        Column(
            name="rte",
            dtype="float64",
            low=0,
            nullable=True,
            volatile=True,
            direction="lower = cheaper",
            doc="wall_s over that of retraining; 1 = as dear as retraining",
        ),
        Column(
            name="pareto",
            dtype="bool",
            nullable=True,
            volatile=True,
            doc="no other method that finished is both as close and as quick, and better in one; null without a rank",
        ),
    ),
)
RUNS = TableSpec(
    schema="scores",
    name="leaderboard_runs",
    key=("forget_set", "method", "run"),
    doc="Every single run of the leaderboard.",
    columns=(
        _SET,
        _METHOD,
        _count("run", "number of the run; the same original and retraining for all methods"),
        _count("seed", "of original, retraining, method and metrics"),
        *(_percent(name, _MEANINGS[name]) for name in METRICS),
        *(_percent(name, "distance to retraining, same set and seed") for name in GAPS),
        _percent("avg_gap", _MEANINGS["avg_gap"], direction="lower = closer to retraining"),
        _seconds("wall time, with the copy of the model; null of models that were made together"),
        Column(name="status", dtype="str", choices=tuple(STATUS), doc=_WORDS),
        _WHY,
    ),
)
PAIRS = TableSpec(
    schema="scores",
    name="leaderboard_pairs",
    key=("forget_set", "method", "other"),
    doc="All pairs of ranked methods on each forget set, the closer to retraining first: can they be told apart.",
    columns=(
        _SET,
        _METHOD,
        Column(name="other", dtype="str", doc="the method it is compared with"),
        _count("num_runs", "runs that both have"),
        _percent("difference", "avg_gap of method less that of other, mean over runs", low=-100),
        _percent("low", "lower bound; holds for all pairs of the set together (Bonferroni)", low=None, high=None),
        _percent("high", "upper bound", low=None, high=None),
        _share("p_value", "paired t test over runs", nullable=False),
        _share("p_holm", "after Holm's correction over all pairs of the set", nullable=False),
        Column(name="told_apart", dtype="bool", doc="p_holm <= alpha"),
        Column(name="closer", dtype="str", doc="the one closer to retraining when told apart; else empty"),
        _share("same_forget", "share of forgotten examples that both answer alike, same runs; null without classes"),
        _share("same_test", "share of test examples"),
    ),
)
TUNING = TableSpec(
    schema="scores",
    name="leaderboard_tuning",
    key=("forget_set", "method", "place"),
    doc="What was tried of each method on a validation forget set that shares no example with the judged one, from a "
    "model that never saw the judged one, and what was chosen by avg_gap. Empty without a budget.",
    columns=(
        _SET,
        _METHOD,
        _count("place", "number of the try; 0 with the reason where nothing could be tried"),
        Column(name="field", dtype="str", doc="the field that is tuned; empty when there is none"),
        Column(name="value", dtype="float64", nullable=True, doc="its value"),
        _count("num_forget", "examples in the validation set", nullable=True),
        *(_percent(name, _MEANINGS[name]) for name in METRICS),
        _percent("avg_gap", "distance to retraining without the validation set", direction="lower = chosen"),
        Column(name="status", dtype="str", choices=tuple(STATUS), doc=_WORDS),
        _WHY,
        Column(name="chosen", dtype="bool", doc="this value was taken to the judged set"),
    ),
)
KLOM = TableSpec(
    schema="scores",
    name="leaderboard_klom",
    key=("forget_set", "method", "part"),
    doc="KLoM: divergence of the margins over runs from those of retrained models, mean over a sample of examples, "
    "beside that of retraining from itself. See stats/klom.py.",
    columns=(
        _SET,
        _METHOD,
        _PART,
        _count("num_runs", "runs a side", low=2),
        _count("num_examples", "examples", low=1),
        _nats("klom", "by the published bins, on all runs; biased upwards, the more the fewer runs"),
        _nats("klom_p95", "its 95th percentile over examples, the published figure"),
        _nats("half", "the same on half of the runs a side, mean over halvings; null below four runs"),
        _nats("floor", "of retraining against retraining on the same halves"),
        _nats("excess", "half less floor", direction="higher = farther from retraining; 0 is exact"),
        _nats("normal", "by normals with moderated variances, on all runs: for few runs the better estimate"),
        _nats("normal_half", "on halves"),
        _nats("normal_floor", "of retraining against retraining"),
        _nats("normal_excess", "normal_half less normal_floor", direction="higher = farther from retraining"),
        _share("p_value", "that an exact method had a mean of normal as large, by swaps of runs"),
        _share("p_holm", "after Holm's correction over the methods of the set and part"),
        Column(name="beyond_noise", dtype="bool", doc="p_holm <= alpha"),
    ),
)
EXAMPLES = TableSpec(
    schema="scores",
    name="leaderboard_examples",
    key=("forget_set", "method", "example_id"),
    doc="A sample of forgotten, retained and test examples under each method: answers, KLoM, and where the embedding "
    "puts them. From here any two methods are compared (query compare-methods).",
    columns=(
        _SET,
        _METHOD,
        Column(name="example_id", dtype="int64", low=0, doc="stable id of the example"),
        _PART,
        _LABEL,
        _count("answer", "class that the model of the first run says", nullable=True),
        _share("quality", "of the answers (1 = right class), mean over runs"),
        Column(name="signal", dtype="float64", nullable=True, doc="margin (the task's signal), mean over runs"),
        _nats("klom", "by halves; null for few runs and for retraining"),
        _nats("floor", "of retraining against retraining"),
        Column(
            name="x",
            dtype="float64",
            nullable=True,
            doc="first principal component of the embedding of the untouched model, onto which that of the method is "
            "rotated (Procrustes); first run; null without embeddings",
        ),
        Column(name="y", dtype="float64", nullable=True, doc="second component"),
    ),
)
CLASSES = TableSpec(
    schema="scores",
    name="leaderboard_classes",
    key=("forget_set", "method", "part", "label"),
    doc="Quality (accuracy) by class, of forgotten and of test examples, mean over runs, and its change.",
    columns=(
        _SET,
        _METHOD,
        _PART,
        _count("label", "class"),
        Column(name="class_name", dtype="str", doc="its name"),
        _count("num", "examples of it", low=1),
        _percent("accuracy", "mean over runs"),
        _percent("change", "less that of the untouched model", low=-100),
        _percent("off", "less that of retraining; 0 is exact", low=-100),
    ),
)
LAYERS = TableSpec(
    schema="scores",
    name="leaderboard_layers",
    key=("forget_set", "method", "layer"),
    doc="How alike the layers of each method's model and of its retraining describe test examples (linear CKA), first "
    "run. The row of retrain is against the retraining of another seed: nothing can be told closer than that.",
    columns=(
        _SET,
        _METHOD,
        Column(name="layer", dtype="str", doc="name of the layer in the model"),
        _count("place", "its place in the model, from 0"),
        _share(
            "cka", "linear CKA, 1 = alike; null where a layer says the same of all", direction="higher = more alike"
        ),
    ),
)
TABLES = (SUMMARY, RUNS, PAIRS, TUNING, KLOM, EXAMPLES, CLASSES, LAYERS)
