"""The tables of issues: one row an issue that was looked for, and one an example behind an issue that was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from contracts.subject import Thresholds
from contracts.tables import Column, TableSpec
from contracts.verdicts import INFORMATION, Finding, Verdict
from sources.frames import frame_of

KINDS = ("outliers", "order", "imbalance", "group", "train_test", "near_constant")
_ADVICE = {
    "outliers": "look at them; what does not belong goes out with the curator by_ids, what is rare stays",
    "order": "split by drawing, or by the group that the order stands for; do not take the first rows for training",
    "imbalance": "collect more, weight the loss, or report the class apart; an average over examples hides it",
    "group": "look at its examples; collect more of them, or report the group apart",
    "train_test": "report the accuracy on the other test examples; see train_test_duplicates",
    "near_constant": "leave it out, or find out why it was recorded so",
}


def _share(name: str, doc: str) -> Column:
    return Column(name=name, dtype="float64", nullable=True, doc=doc)


ISSUES = TableSpec(
    schema="scores",
    name="dataset_issues",
    key=("issue", "about"),
    doc="What may be wrong with the data set: one row an issue that was looked for, found or not.",
    columns=(
        Column(name="issue", dtype="str", choices=KINDS, doc="kind of issue"),
        Column(name="about", dtype="str", doc="what it is about: the examples, a class, a group, a feature"),
        Column(name="found", dtype="bool", doc="it is an issue, by the rule of its kind"),
        Column(
            name="severity",
            dtype="float64",
            low=0,
            high=1,
            direction="higher = worse",
            doc="share that is affected, or what is lacking; to be compared within a kind; 0 where nothing was found",
        ),
        Column(name="statistic", dtype="str", doc="what was measured"),
        _share("value", "the figure"),
        _share("low", "lower end of its interval; null where there is a p-value alone"),
        _share("high", "upper end"),
        Column(name="p_value", dtype="float64", low=0, high=1, nullable=True, doc="adjusted within the kind"),
        Column(name="num_examples", dtype="int64", low=0, doc="examples that it rests on"),
        Column(name="what", dtype="str", doc="the finding in words"),
        Column(name="to_do", dtype="str", doc="what can be done; empty where nothing was found"),
    ),
)
EXAMPLES = TableSpec(
    schema="scores",
    name="issue_examples",
    key=("issue", "about", "example_id"),
    doc="The examples behind an issue that was found, where it is one of single examples.",
    columns=(
        Column(name="issue", dtype="str", choices=KINDS, doc="kind of issue"),
        Column(name="about", dtype="str", doc="as of the issue"),
        Column(name="example_id", dtype="int64", low=0, doc="training example; of group and train_test a test example"),
        Column(name="value", dtype="float64", doc="its figure"),
        Column(name="reason", dtype="str", doc="what the figure is, in words"),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Issue:
    """A row of ``ISSUES`` and its rows of ``EXAMPLES``: (example_id, value, reason)."""

    issue: str
    about: str
    found: bool
    severity: float
    statistic: str
    value: float | None
    what: str
    num_examples: int
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    examples: Sequence[tuple[int, float, str]] = ()


def informing(tables: Mapping[str, pl.DataFrame], thresholds: Thresholds) -> Sequence[tuple[str, Finding]]:
    """One finding a kind of issue that was found, its worst row; none decides a verdict."""
    found = tables[ISSUES.name].filter("found").sort("severity", descending=True, maintain_order=True)
    rows = [found.filter(pl.col("issue") == kind) for kind in KINDS]
    return [
        (
            "the data set",
            Finding(
                what=f"dataset_issues/{of_kind['issue'][0]}",
                kind=INFORMATION,
                verdict=Verdict.FAIL,
                value=of_kind["value"][0],
                low=of_kind["low"][0],
                high=of_kind["high"][0],
                judged=False,
                sentence=of_kind["what"][0]
                + (f" ({of_kind.height - 1} more of the kind.)" if of_kind.height > 1 else "")
                + f" To do: {of_kind['to_do'][0]}.",
            ),
        )
        for of_kind in rows
        if of_kind.height
    ]


def tables_of(found: Sequence[Issue]) -> dict[str, pl.DataFrame]:
    """Both tables."""
    rows = [
        {**{name: getattr(one, name) for name in Issue.__slots__}, "to_do": _ADVICE[one.issue] if one.found else ""}
        for one in found
    ]
    examples = [
        {"issue": one.issue, "about": one.about, "example_id": example, "value": value, "reason": reason}
        for one in found
        for example, value, reason in one.examples
    ]
    return {ISSUES.name: frame_of(ISSUES, rows), EXAMPLES.name: frame_of(EXAMPLES, examples)}
