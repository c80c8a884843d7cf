"""Recipes against audits: every cell is the worst of its findings, and an empty one says why."""

from __future__ import annotations

import json

import polars as pl
import pytest

from contracts.errors import DataError
from contracts.verdicts import ATTACK, DISTANCE, INFORMATION, TARGET, Finding, Verdict
from reports import AuditReport, findings_frame, matrix_of, render_html, render_json

P, F, I = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
HOSTILE = "<script>x</script>{{ 7*7 }}"


def of(subject: str, recipe: str, *findings: tuple[str, Finding]) -> pl.DataFrame:
    frame = findings_frame(findings, stage=f"{subject}/audits/findings")
    if not frame.height:
        frame = pl.DataFrame({c: [None] for c in frame.columns}, schema=frame.schema)
    return frame.with_columns(subject=pl.lit(subject), recipe=pl.lit(recipe))


def found(what: str, verdict: Verdict, value: float, *, limit: float = 0.6, **more: object) -> Finding:
    more = {"kind": ATTACK, "low": value - 0.02, "high": value + 0.02, "sentence": f"{what} {value}"} | more
    return Finding(what=what, verdict=verdict, value=value, threshold=limit, **more)  # type: ignore[arg-type]


def removal(method: str, verdict: Verdict, value: float, **more: object) -> tuple[str, Finding]:
    return f"random/{method}", found("attack/lira", verdict, value, method=method, **more)


FINDINGS = pl.concat(
    [
        of(
            "kept",
            "replay",
            (TARGET, found("attack/lira", F, 0.72, judged=False)),
            (TARGET, found("attack/loss", P, 0.53, judged=False)),
            (TARGET, found("exposure/lira", P, 0.0, limit=0.0)),
            (TARGET, found("exposure/rmia", F, 3.0, limit=0.0)),
            ("buffer", found("buffer_leak/lira", F, 0.19, limit=0.1, kind=INFORMATION, judged=False)),
            removal("finetune", F, 0.66),
            removal("gone", P, 0.5, judged=False),
            removal("none", F, 0.7, judged=False),
            ("random/finetune", found("gap", P, 2.0, limit=5.0, kind=DISTANCE, method="finetune")),
        ),
        of(
            "free",
            "rehearsal_free",
            (TARGET, found("attack/lira", I, 0.58)),
            removal("retrain", P, 0.5),
            removal("none", P, 0.52, judged=False),
        ),
        of("begun", "rehearsal_free"),
        of("given", "", (TARGET, found("attack/loss", P, 0.55))),
    ]
)


def why_not(subject: str, audit: str) -> str:
    return f"{subject} lacks {audit}"


TABLE = matrix_of(FINDINGS, why_not=why_not)
CELLS = {(row.subject, cell.audit): cell for row in TABLE.rows for cell in row.cells}


def test_columns_are_the_audits_that_found_anything_and_rows_every_subject() -> None:
    assert TABLE.audits == ("buffer_leak", "exposure", "lira", "loss", "removal")
    rows = [(row.recipe, row.subject) for row in TABLE.rows]
    assert rows == [
        ("(none: given or outputs only)", "given"),
        ("rehearsal_free", "begun"),
        ("rehearsal_free", "free"),
        ("replay", "kept"),
    ]
    assert all(tuple(cell.audit for cell in row.cells) == TABLE.audits for row in TABLE.rows)


def test_a_cell_is_the_worst_of_its_findings() -> None:
    leak = CELLS["kept", "lira"]
    assert (leak.verdict, leak.figure, leak.interval, leak.counted) == (F, "0.720", "0.700–0.740", False)
    assert CELLS["kept", "exposure"].value == 3.0, "the failing one of two"
    assert CELLS["kept", "buffer_leak"].threshold == 0.1
    assert (CELLS["free", "lira"].verdict, CELLS["free", "lira"].counted) == (I, True)


def test_the_removal_is_that_in_use_and_blind_where_nothing_caught_the_untouched_model() -> None:
    used = CELLS["kept", "removal"]
    assert (used.verdict, used.value, used.counted) == (F, 0.66, True)
    blind = CELLS["free", "removal"]
    assert (blind.verdict, blind.value) == (I, 0.5) and "no power" in blind.sentence


def test_empty_cells_say_what_they_lack() -> None:
    assert CELLS["free", "loss"].verdict is Verdict.NOT_JUDGED
    assert CELLS["free", "loss"].sentence == "free lacks loss"
    assert {CELLS["begun", audit].sentence for audit in TABLE.audits} == {f"begun lacks {a}" for a in TABLE.audits}
    assert CELLS["given", "removal"].verdict is Verdict.NOT_JUDGED


def test_another_recipe_or_audit_needs_no_change() -> None:
    more = of("new", "later", (TARGET, found("attack/later_attack", P, 0.5)))
    table = matrix_of(pl.concat([FINDINGS, more]), why_not=why_not)
    assert table.audits == ("buffer_leak", "exposure", "later_attack", "lira", "loss", "removal")
    assert table.rows[1].recipe == "later" and table.rows[1].cells[2].verdict is P
    assert [row.cells[2].verdict for row in table.rows if row.subject != "new"] == [Verdict.NOT_JUDGED] * 4


def test_a_subject_of_two_recipes_and_missing_columns_are_refused() -> None:
    with pytest.raises(DataError, match="kept has the audited models of 2 recipes"):
        matrix_of(pl.concat([FINDINGS, of("kept", "other")]), why_not=why_not)
    with pytest.raises(DataError, match="recipe"):
        matrix_of(FINDINGS.drop("recipe"), why_not=why_not)


def page(frame: pl.DataFrame) -> tuple[str, dict[str, object]]:
    own = FINDINGS.filter(subject="kept")
    table = matrix_of(frame, why_not=why_not)
    report = AuditReport(subject="kept", created_at="2026-11-24T06:30:00+00:00", findings=own, matrix=table)
    return render_html(report), json.loads(render_json(report))["matrix"]


def test_page_and_json_hold_every_cell_escaped_and_the_own_row_is_marked() -> None:
    html, facts = page(pl.concat([FINDINGS, of("odd", HOSTILE, (TARGET, found(f"attack/{HOSTILE}", P, 0.5)))]))
    section = html[html.index('<section id="matrix">') : html.index('<section id="again">')]
    for row in TABLE.rows:
        for cell in row.cells:
            assert (cell.sentence if cell.verdict is Verdict.NOT_JUDGED else cell.interval) in section
            if cell.verdict in (F, I):
                assert f"{row.subject} · {cell.audit}: {cell.verdict.value}</b>{cell.sentence}</li>" in section
    assert section.count('aria-current="true"') == 1
    assert "kept</span>" in section[section.index('aria-current="true"') :][:200]
    assert "<script" not in html and "49" not in section.replace("0.49", "")
    assert facts["audits"] == ["<script>x</script>{{ 7*7 }}", *TABLE.audits]
    by_subject = {row["subject"]: row for row in facts["rows"]}  # type: ignore[attr-defined]
    assert by_subject["kept"]["cells"]["lira"]["verdict"] == "fail"
    assert by_subject["free"]["cells"]["loss"] == {
        "verdict": "not judged",
        "sentence": "free lacks loss",
        **dict.fromkeys(("value", "low", "high", "threshold")),
        "counted": False,
    }


def test_one_subject_alone_has_no_table_on_the_page() -> None:
    html, facts = page(FINDINGS.filter(subject="kept"))
    assert 'id="matrix"' not in html and len(facts["rows"]) == 1  # type: ignore[arg-type]
