from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import DataError
from contracts.schema import FINDINGS
from contracts.verdicts import Finding, Verdict, overall
from reports import findings_frame, judge, rows
from reports.summary import interval, number

P, F, I, B = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.BROKEN


def frame(*pairs: tuple[str, Verdict]) -> pl.DataFrame:
    groups: dict[str, list[Finding]] = {}
    for number_, (audited, verdict) in enumerate(pairs):
        groups.setdefault(audited, []).append(
            Finding(what=f"w{number_}", verdict=verdict, sentence=f"because {number_}")
        )
    return findings_frame(groups)


def test_the_frame_has_the_columns_of_the_table() -> None:
    made = findings_frame({"target": [Finding(what="a", verdict=P, sentence="s", value=0.5)]})
    assert made.columns == [c.name for c in FINDINGS.columns]
    assert findings_frame({}).schema == made.schema
    assert made.row(0, named=True)["value"] == 0.5


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([], I),
        ([("target", P), ("s/retrain", P)], P),
        ([("target", P), ("s/none", F)], P),  # the control was caught, as it must
        ([("target", P), ("s/none", P)], I),  # the control was not caught: no power
        ([("target", P), ("s/none", I)], I),
        ([("target", P), ("s/none", P), ("s/none", F)], P),  # caught by one finding of two
        ([("target", P), ("s/none", F), ("t/none", P)], I),  # caught on one split of two
        ([("target", F), ("s/none", P)], F),
        ([("target", B), ("s/none", F), ("target", I)], B),
        ([("s/none", F)], I),
        ([("none", F)], F),  # a subject called "none" is not a method
    ],
)
def test_the_overall_verdict(pairs: list[tuple[str, Verdict]], verdict: Verdict) -> None:
    made = judge(frame(*pairs))
    assert made.verdict is verdict
    assert made.sentence


@given(st.lists(st.sampled_from([P, F, I, B]), max_size=6))
def test_without_controls_it_is_the_worst(verdicts: list[Verdict]) -> None:
    made = judge(frame(*[("target", v) for v in verdicts]))
    assert made.verdict is overall(verdicts)
    assert sum(made.counts.values()) == len(verdicts)


def test_the_sentence_counts_and_quotes() -> None:
    made = judge(frame(("target", P), ("s/finetune", F), ("s/none", F)))
    assert made.sentence == "1 of 2 findings fails. s/finetune: because 1"
    assert judge(frame(("t", P), ("t", P))).sentence == "All 2 findings pass."
    assert "no power" in judge(frame(("target", P), ("split/none", P))).sentence
    assert judge(frame(("target", P), ("split/none", P))).powerless == ("split",)


def test_rows_put_the_worst_first_and_controls_last() -> None:
    made = rows(frame(("a", P), ("s/none", F), ("b", I), ("c", F), ("d", B), ("e", F)))
    assert [r.audited for r in made] == ["c", "e", "d", "b", "a", "s/none"]
    assert [r.control for r in made] == [False] * 5 + [True]


def test_the_method_in_use_decides_and_the_others_are_compared() -> None:
    found = frame(("target", P), ("s/retrain", P), ("s/finetune", F), ("s/none", F))
    assert judge(found).verdict is F
    assert judge(found, decides="retrain").verdict is P
    assert judge(found, decides="retrain").counts[P] == 2
    assert judge(found, decides="finetune").verdict is F
    assert (
        judge(frame(("target", P), ("s/retrain", P), ("s/finetune", F), ("s/none", P)), decides="retrain").verdict is I
    )
    assert [(r.audited, r.counted) for r in rows(found, decides="retrain")] == [
        ("target", True), ("s/retrain", True), ("s/finetune", False), ("s/none", False),
    ]  # fmt: skip


def test_figures_are_readable() -> None:
    row = rows(
        findings_frame(
            {"t": [Finding(what="a", verdict=F, sentence="s", value=0.66349, low=0.6, high=0.7, threshold=5)]}
        )
    )[0]
    assert (row.figure, row.interval, row.limit) == ("0.663", "0.600–0.700", "5.00")
    assert rows(frame(("t", P)))[0].figure == rows(frame(("t", P)))[0].interval == ""
    assert [number(v) for v in (1.0, 1234.5, -12.34, 0.0, float("nan"))] == ["1.000", "1234", "−12.3", "0.000", ""]
    assert interval(-0.1, 0.2) == "−0.100 to 0.200"
    assert interval(None, 1) == ""


def test_wrong_rows_are_refused() -> None:
    good = frame(("t", P))
    with pytest.raises(DataError, match="sentence"):
        judge(good.drop("sentence"))
    with pytest.raises(DataError, match="perhaps"):
        judge(good.with_columns(verdict=pl.lit("perhaps")))
    stored = good.with_columns(subject=pl.lit("digits"), run_id=pl.lit("r"))
    assert judge(stored).verdict is P
