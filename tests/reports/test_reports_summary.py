from __future__ import annotations

import dataclasses

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import DataError
from contracts.schema import FINDINGS
from contracts.verdicts import ATTACK, DISTANCE, INFORMATION, QUALITY, RESULT, Finding, Verdict, overall
from reports import findings_frame, judge, rows
from reports.summary import interval, number

P, F, I, B = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.BROKEN


def frame(*pairs: tuple[str, Verdict], kind: str = ATTACK) -> pl.DataFrame:
    """Findings about "target" or "<split>/<method>"; those of the untouched model are controls."""
    groups: dict[str, list[Finding]] = {}
    for number_, (about, verdict) in enumerate(pairs):
        method = about.partition("/")[2]
        finding = Finding(what=f"w{number_}", verdict=verdict, sentence=f"because {number_}", method=method, kind=kind)
        groups.setdefault(about, []).append(finding)
    return findings_frame(pairs_of(groups), stage="s/audits/findings")


def pairs_of(groups: dict[str, list[Finding]]) -> list[tuple[str, Finding]]:
    return [(about, finding) for about, group in groups.items() for finding in group]


def test_the_frame_has_the_columns_of_the_table() -> None:
    made = findings_frame(
        [("target", Finding(what="a", verdict=P, sentence="s", value=0.5))], stage="d/audits/findings"
    )
    assert made.columns == [c.name for c in FINDINGS.columns]
    assert findings_frame([]).schema == made.schema
    row = made.row(0, named=True)
    assert (row["value"], row["stage"], row["judged"], row["kind"]) == (0.5, "d/audits/findings", True, "")


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([], Verdict.NOT_JUDGED),
        ([("target", P), ("s/retrain", P)], P),
        ([("target", P), ("s/none", F)], P),  # the control was caught, as it must
        ([("target", P), ("s/none", P)], I),  # the control was not caught: no power
        ([("target", P), ("s/none", I)], I),
        ([("target", P), ("s/none", P), ("s/none", F)], P),  # caught by one finding of two
        ([("target", P), ("s/none", F), ("t/none", P)], I),  # caught on one split of two
        ([("target", F), ("s/none", P)], F),
        ([("target", B), ("s/none", F), ("target", I)], B),
        ([("s/none", F)], Verdict.NOT_JUDGED),
        ([("none", F)], F),  # an audit that calls itself "none" is not a method
        ([("an outside audit", F), ("target", P)], F),
        ([("an outside audit", P)], P),
    ],
)
def test_the_overall_verdict(pairs: list[tuple[str, Verdict]], verdict: Verdict) -> None:
    made = judge(frame(*pairs))
    assert made.verdict is verdict
    assert made.sentence


@pytest.mark.parametrize("kind", [QUALITY, DISTANCE, RESULT, ""])
def test_only_an_attack_on_the_untouched_model_shows_power(kind: str) -> None:
    """Its gap and its accuracy fail too, and say nothing about what the attacks can see."""
    found = pl.concat([frame(("s/retrain", P)), frame(("s/none", F), kind=kind)])
    assert judge(found).verdict is I and judge(found).powerless == ("s",)


@given(st.lists(st.sampled_from([P, F, I, B]), min_size=1, max_size=6))
def test_without_controls_it_is_the_worst(verdicts: list[Verdict]) -> None:
    made = judge(frame(*[("target", v) for v in verdicts]))
    assert made.verdict is overall(verdicts)
    assert sum(made.counts.values()) == len(verdicts)


def test_the_sentence_counts_and_quotes() -> None:
    made = judge(frame(("target", P), ("s/finetune", F), ("s/none", F)))
    assert made.sentence == "1 of 2 findings that count fails. s/finetune: because 1"
    assert judge(frame(("t", P), ("t", P))).sentence == "All 2 findings that count pass."
    assert "no power" in judge(frame(("target", P), ("split/none", P))).sentence
    assert judge(frame(("target", P), ("split/none", P))).powerless == ("split",)
    assert judge(frame(), computed="5 examples were scored.").sentence.endswith("5 examples were scored.")


def test_rows_put_the_worst_first_and_controls_last() -> None:
    made = rows(frame(("a", P), ("s/none", F), ("b", I), ("c", F), ("d", B), ("e", F)))
    assert [r.about for r in made] == ["c", "e", "d", "b", "a", "s/none"]
    assert [r.control for r in made] == [False] * 5 + [True]
    assert made[-1].role == "must fail" and made[0].role == ""


def test_what_does_not_count_is_compared_or_shown() -> None:
    found = frame(("target", F), ("s/retrain", P), ("s/finetune", F), ("s/none", F))
    assert judge(found).verdict is F
    counted = found.with_columns(judged=pl.col("method") == "retrain")
    assert judge(counted).verdict is P and judge(counted).counts[P] == 1
    assert judge(counted).sentence.endswith("exposes its training data is reported, not judged.")
    assert [(r.about, r.role) for r in rows(counted)] == [
        ("s/retrain", ""),
        ("target", "for information"),
        ("s/finetune", "compared"),
        ("s/none", "must fail"),
    ]


def test_a_figure_for_information_is_not_a_comparison() -> None:
    known = Finding(what="a", verdict=I, sentence="s", method="retrain", kind=INFORMATION, judged=False)
    assert rows(findings_frame([("s/retrain", known)]))[0].role == "for information"


def test_the_two_answers_say_which_finding_decided() -> None:
    groups = {
        "target": [
            Finding(what="attack/lira", verdict=P, sentence="AUC 0.55.", value=0.55, threshold=0.6, kind=ATTACK),
            Finding(what="attack/rmia", verdict=P, sentence="AUC 0.58.", value=0.58, threshold=0.6, kind=ATTACK),
        ],
        "s/retrain": [
            Finding(
                what="attack/lira",
                verdict=P,
                sentence="AUC 0.43.",
                value=0.43,
                threshold=0.6,
                kind=ATTACK,
                method="retrain",
            ),
            Finding(
                what="gap", verdict=P, sentence="gap 1.", value=1.0, threshold=5.0, kind=DISTANCE, method="retrain"
            ),
        ],
        "s/none": [Finding(what="attack/lira", verdict=F, sentence="AUC 0.7.", value=0.7, kind=ATTACK, method="none")],
    }
    model, removal = judge(findings_frame(pairs_of(groups)), decides="retrain").answers
    assert model.answer == "no sign found" and model.sentence == "rmia: AUC 0.58.", "nearest to its limit"
    assert removal.question == "Is what retrain removed gone?" and removal.sentence == "lira: AUC 0.43."
    blind = groups | {"s/none": [dataclasses.replace(groups["s/none"][0], verdict=I)]}
    assert judge(findings_frame(pairs_of(blind)), decides="retrain").answers[1].verdict is I


def test_figures_are_readable() -> None:
    row = rows(
        findings_frame(
            [("t", Finding(what="a", verdict=F, sentence="s", value=0.66349, low=0.6, high=0.7, threshold=5))]
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
