"""What an audit of unlearning over shadow runs stores: a row a method, a row an example, a row a canary."""

from __future__ import annotations

from typing import Any

from contracts.methods import EXAMPLE_ID, Picture
from contracts.tables import Column, TableSpec

_METHOD = Column(
    name="method", dtype="str", doc="unlearner; none is the untouched model (power), retrain the reference (no trace)"
)


def _share(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="float64", low=0, high=1, nullable=True, doc=doc, **more)


def _change(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="float64", low=-1, high=1, nullable=True, doc=doc, **more)


def _at_least_0(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="float64", low=0, nullable=True, doc=doc, **more)


def _count(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="int64", low=0, doc=doc, **more)


_WORSE = {"direction": "higher = more of the removed example is left"}

U_LIRA = TableSpec(
    schema="audits",
    name="u_lira",
    version=2,
    key=("method",),
    doc="Unlearning methods over the same shadow runs: can removed examples be told from never-seen ones. Null where a "
    "run diverged.",
    columns=(
        _METHOD,
        Column(
            name="status",
            dtype="str",
            choices=("ok", "diverged", "refused"),
            doc="no figures unless ok. diverged: the method gave up in a run; refused: what it gave back is not a "
            "model of the plan",
        ),
        _count("num_diverged", "runs in which the method gave up or was refused"),
        Column(name="reason", dtype="str", doc="why, of the first of them; empty when ok"),
        _count("num_runs", "shadow runs; a third of them in each state for every example"),
        _count("num_targets", "natural examples audited"),
        Column(
            name="set_kind",
            dtype="str",
            doc="how the removed sets were chosen: random. The result covers no other kind",
        ),
        _count("num_forget", "natural examples removed in a run, mean", unit="examples"),
        _count("num_train", "examples trained on in a run, mean", unit="examples"),
        Column(name="alpha", dtype="float64", low=0, high=1, doc="1 - level of the intervals"),
        _share("auc", "U-LiRA, removed against never seen, mean over runs; ideal 0.5", **_WORSE),
        _share("auc_lo", "lower bound, clustered by run and example"),
        _share("auc_hi", "upper bound"),
        _share("population_auc", "loss alone, one threshold for all: what an audit without shadow runs sees"),
        _share("accuracy", "share of (run, example) with the right sign of the ratio; ideal 0.5"),
        _share(
            "tpr_at_1",
            "true-positive rate at 1% false positives, mean over runs; null below 100 never-seen examples a run",
        ),
        _share("tpr_at_1_lo", "lower bound, clustered by run and example"),
        _share("tpr_at_1_hi", "upper bound"),
        _at_least_0("eps_mean", "mean of the examples' epsilon"),
        _at_least_0("eps_p99", "its 99th percentile"),
        _at_least_0("eps_max", "largest epsilon of an example", **_WORSE),
        _at_least_0("eps_low_max", "largest lower bound of an example's epsilon, valid for all examples together"),
        Column(
            name="worst_example", dtype="int64", low=0, nullable=True, doc="id of the example with the smallest p-value"
        ),
        Column(
            name="num_exposed",
            dtype="int64",
            low=0,
            nullable=True,
            doc="examples exposed after Holm's correction",
            unit="examples",
        ),
        _share("kept_auc_before", "retained against never seen (LiRA), before unlearning"),
        _share("kept_auc_after", "the same after unlearning"),
        _change("kept_change", "after less before, paired by run", direction="higher = retained people leak more"),
        _change("kept_change_lo", "lower bound, clustered by run and example"),
        _change("kept_change_hi", "upper bound"),
        _share("kept_p_value", "one-sided paired test of 'not grown'"),
        _change(
            "kept_excess",
            "after this method less after retraining, same runs; null for retrain itself",
            direction="higher = worse than retraining",
        ),
        _change("kept_excess_lo", "lower bound, clustered by run and example"),
        _change("kept_excess_hi", "upper bound"),
        _share("kept_excess_p_value", "one-sided paired test of 'no more than after retraining'"),
        _share("kept_acc_before", "quality (accuracy for classes) on retained targets before"),
        _share("kept_acc_after", "and after unlearning"),
        _change(
            "kept_acc_lost",
            "quality (accuracy for classes) on retained targets after retraining less after this method, same runs",
            direction="higher = worse than retraining",
        ),
        _change("kept_acc_lost_lo", "lower bound, clustered by run and example"),
        _change("kept_acc_lost_hi", "upper bound"),
        _change(
            "new_acc_lost", "the same on targets that the run never saw", direction="higher = worse than retraining"
        ),
        _change("new_acc_lost_lo", "lower bound, clustered by run and example"),
        _change("new_acc_lost_hi", "upper bound"),
        _share("relearn_auc", "U-LiRA on how soon and how well an example is relearned; ideal 0.5", **_WORSE),
        _share("relearn_auc_lo", "lower bound, clustered by run and example"),
        _share("relearn_auc_hi", "upper bound"),
        _at_least_0(
            "relearn_steps",
            "steps until the removed examples are as well known as before, mean over runs; budget + 1 when never",
            unit="steps",
        ),
        _at_least_0("relearn_steps_unseen", "the same for never-seen examples", unit="steps"),
        _at_least_0(
            "anamnesis", "ratio of the two; 1 = as slow as new ones; null when new ones are known from the start"
        ),
        _count("num_canaries", "planted canaries: copies of test examples under a wrong target"),
        Column(
            name="canaries_exposed",
            dtype="int64",
            low=0,
            nullable=True,
            doc="canaries exposed after Holm's correction; for none this is the power of the audit",
        ),
        _share("canaries_exposed_lo", "lower bound of their share, Clopper-Pearson"),
        _share("canaries_exposed_hi", "upper bound"),
    ),
)

_EFFECT = (
    _at_least_0(
        "mu",
        "distance of the means of removed and never-seen runs in their own spread",
        direction="higher = more is left",
    ),
    _at_least_0("eps", "epsilon of two normals that far apart, Gaussian differential privacy"),
    _at_least_0("eps_low", "lower bound of epsilon, valid for all examples of the method together"),
    _share("p_value", "two-sided t test of 'removed and never-seen runs are alike'"),
    _share("p_holm", "after Holm's correction over the examples of the method"),
    Column(
        name="exposed",
        dtype="bool",
        doc="p_holm <= alpha, and mu is beyond that of an AUC of 0.6; a verdict goes by the plan's own tolerance",
    ),
)

EXAMPLES = TableSpec(
    schema="audits",
    name="u_lira_examples",
    key=("method", "example_id"),
    doc="What each method leaves of each audited example, worst first.",
    columns=(
        _METHOD,
        EXAMPLE_ID,
        Column(name="rank", dtype="int64", low=1, doc="1 = the largest epsilon of the method"),
        *_EFFECT,
        _share("p_bh", "after Benjamini and Hochberg's correction"),
        _share("accuracy", "share of held-out runs in which U-LiRA is right about the example; ideal 0.5"),
    ),
)

CANARIES = TableSpec(
    schema="audits",
    name="u_lira_canaries",
    version=2,
    key=("method", "example_id"),
    doc="Planted canaries: given a wrong target, repeated, impossible to fit without memorising. Power with none, "
    "removal with the others.",
    columns=(
        _METHOD,
        Column(name="example_id", dtype="int64", low=0, doc="the test example it is a copy of, under a wrong target"),
        _count("label", "the wrong class or item it was given; null for a number", nullable=True),
        Column(name="target", dtype="float64", nullable=True, doc="the wrong number it was given; null for a class"),
        Column(name="repeats", dtype="int64", low=1, doc="copies in training"),
        *_EFFECT,
    ),
)

PICTURES = (
    Picture(
        table="u_lira",
        title="Removed against never seen, U-LiRA (0.5 is forgotten)",
        kind="dots",
        x="method",
        y="auc",
        low="auc_lo",
        high="auc_hi",
    ),
    Picture(
        table="u_lira_examples",
        title="Epsilon of each example, most exposed first",
        kind="lines",
        x="rank",
        y="eps",
        series="method",
        log_x=True,
    ),
    Picture(
        table="u_lira",
        title="Removed against never seen while relearned (0.5 is forgotten)",
        kind="dots",
        x="method",
        y="relearn_auc",
        low="relearn_auc_lo",
        high="relearn_auc_hi",
    ),
    Picture(
        table="u_lira",
        title="Retained examples: change of their exposure",
        kind="dots",
        x="method",
        y="kept_change",
        low="kept_change_lo",
        high="kept_change_hi",
    ),
)
