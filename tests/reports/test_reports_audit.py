from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest

from contracts.digests import canonical_json
from contracts.errors import DataError, InvalidInput
from contracts.verdicts import Finding, Verdict
from reports import AnalysisSection, AuditReport, Examples, Histogram, ScoreSection, facts, render_html, render_json
from reports.contents import MAX_EXAMPLES

Changed = Callable[..., AuditReport]
Long = Callable[[pl.DataFrame], dict[str, pl.DataFrame]]
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> [x](javascript:alert(3)) {{ 7331*7331 }} **b**"


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; fails on a tag that is not closed."""

    VOID: ClassVar = {"meta", "img", "source", "line", "circle", "br", "link"}

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings[-1] += data


@pytest.fixture(scope="module")
def whole(digits_report: AuditReport) -> str:
    return render_html(digits_report)


@pytest.fixture(scope="module")
def page(whole: str) -> Page:
    return Page(whole)


def small(**fields: Any) -> AuditReport:
    base: dict[str, Any] = {"subject": "wine", "created_at": "2026-11-24T06:30:00+00:00", "findings": []}
    return AuditReport(**(base | fields))


def test_the_page_asks_nothing_of_anybody(whole: str, page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "srcset", "href", "action", "data", "poster", "xlink:href"}:
                assert (value or "").startswith(("data:image/png;base64,", "#")), (tag, value)
    style = whole.split("<style>")[1].split("</style>")[0]
    assert not re.search(r"url\(|@import|expression", style)
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_verdict_comes_first_and_the_sections_in_order(page: Page) -> None:
    assert page.headings == [
        "What was audited",
        "Findings",
        "Scores of the examples",
        "Unlearning against retraining",
        "Attacks",
        "What is not decided, and why",
        "Do it again",
    ]
    assert page.text.index("2 of 7 findings that count fail.") < page.text.index("What was audited\n")
    targets = {a["id"] for _, a in page.tags if "id" in a}
    assert {a["href"][1:] for t, a in page.tags if t == "a"} <= targets  # type: ignore[index]


def test_the_first_screen_answers_says_what_was_removed_and_shows_three_pictures(
    digits_report: AuditReport, whole: str, page: Page
) -> None:
    first = whole[: whole.index("<nav")]
    assert first.count('<figure class="chart">') == 3
    alts = re.findall(r'alt="([^"]+)"', first)
    order = ["Area under the ROC curve of every attack", "Average gap to retraining against time", "ROC curves"]
    pictures = [alt for alt in alts if not alt.startswith("Example")]
    assert [alt.startswith(start) for alt, start in zip(pictures, order, strict=True)] == [True] * 3
    assert "audited model: rmia 0.663" in alts[0] or any("audited model: rmia 0.663" in alt for alt in alts)
    assert (
        "144 of 1\u202f437 training examples (10\u202f%), a random share. By class: digit 3 (100), digit 8 (44)"
        in page.text
    )
    assert page.text.index("Removed") > page.text.index("2 of 7 findings that count fail.")
    facts_of = json.loads(render_json(digits_report))["removed"]
    assert facts_of == {
        "num": 144,
        "num_train": 1437,
        "how": "a random share",
        "classes": {"digit 3": 100, "digit 8": 44},
    }


def test_scores_stand_behind_a_line_each_and_wide_tables_in_what_scrolls(whole: str) -> None:
    for name in ("el2n", "memorization", "Over all scores"):
        before = whole[: whole.index(f"<h3>{name}</h3>")]
        assert before.endswith("<summary>") and before.count("<details>") == before.count("</details>") + 1
    assert "<details open" not in whole
    assert re.findall(r"(<div class=\"scroll\" tabindex=\"0\">)?\s*<table", whole).count("") == 0


def test_a_column_that_holds_nothing_is_not_shown(digits_report: AuditReport, lean: Changed, long: Long) -> None:
    frame, attacks = digits_report.runs, digits_report.attacks
    assert frame is not None and attacks is not None
    empty = pl.DataFrame({"known": [1.5, 2.5], "unknown": [None, None], "text": ["a", None]})
    section = AnalysisSection(name="a", doc="d", table=empty, num_rows=2)
    nothing = [pl.lit(None, pl.Float64).alias(c) for c in ("mia_efficacy", "avg_gap")]
    no_rate = attacks.with_columns(tpr=pl.when(pl.col("fpr_cap") > 0.01).then("tpr"))
    text = render_html(lean(**long(frame.with_columns(nothing)), attacks=no_rate, analyses=(section,)))
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", text)
    assert "Membership eff. %" not in heads and "Average gap" not in heads and "Retain acc. %" in heads
    assert [h for h in heads if h.startswith("Found at")] == ["Found at \u2264 5\u202f%"]
    assert "known" in heads and "text" in heads and "unknown" not in heads


def test_a_chart_is_shown_as_its_analysis_drew_it(lean: Changed) -> None:
    section = AnalysisSection(name="a", doc="d", charts=[("drawn", b"these very bytes")])
    text = render_html(lean(analyses=(section,)))
    assert base64.b64encode(b"these very bytes").decode() in text and 'alt="drawn.' in text


def test_every_fact_is_on_the_page(digits_report: AuditReport, page: Page) -> None:
    for group in digits_report.audited.values():
        for label in group:
            assert label in page.text
    for row in digits_report.rows:
        assert row.sentence in page.text
    assert digits_report.ledger_head in page.text
    assert digits_report.config_yaml.strip() in page.text
    assert "palimpsest audit digits" in page.text
    frame = digits_report.runs
    assert frame is not None
    gaps = frame.filter(pl.col("method") == "finetune")["avg_gap"]
    assert re.search(rf"finetune\s.*?{gaps.mean():.2f}\s+± {gaps.std():.3f}", page.text, re.S)
    assert "10\u202f000 for 0.1\u202f%" in page.text, "why the lowest rate is not claimed"


def test_retraining_leads_and_methods_follow_by_gap(digits_report: AuditReport, whole: str) -> None:
    text = whole.split('id="unlearning"')[1].split('id="attacks"')[0]
    order = re.findall(r'<td class="name">(\w+)', text)
    frame = digits_report.runs
    assert frame is not None
    means = frame.filter(pl.col("method") != "retrain").group_by("method").agg(pl.col("avg_gap").mean()).sort("avg_gap")
    assert order == ["retrain", *means["method"]]


@pytest.mark.journey
def test_the_same_report_gives_the_same_bytes_in_another_process(digits_report: AuditReport, whole: str) -> None:
    here = {hashlib.sha256(text.encode()).hexdigest() for text in (whole, render_json(digits_report))}
    code = (
        "import sys, hashlib; sys.path[:0] = sys.argv[1:3]; import conftest, reports; r = conftest.build_report()\n"
        "for f in (reports.render_html, reports.render_json): "
        "sys.stdout.write(hashlib.sha256(f(r).encode()).hexdigest() + ' ')"
    )
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(folder.parent.parent)], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == here


def test_the_json_is_canonical_holds_the_facts_and_is_named_on_the_page(digits_report: AuditReport, page: Page) -> None:
    text = render_json(digits_report)
    data = json.loads(text)
    assert text == canonical_json(data) + "\n"
    assert hashlib.sha256(text.encode()).hexdigest() in page.text
    assert data["verdict"] == "fail"
    assert data["counts"] == {"pass": 4, "fail": 2, "inconclusive": 1, "broken": 0}
    frame, attacks = digits_report.unlearning, digits_report.attacks
    assert frame is not None
    assert attacks is not None
    assert data["unlearning"] == json.loads(frame.write_json())
    assert digits_report.unlearning_metrics is not None
    assert data["unlearning_metrics"] == json.loads(digits_report.unlearning_metrics.write_json())
    assert [r["auc"] for r in data["attacks"]] == attacks["auc"].to_list()
    assert data["scores"][0]["examples"][0]["example_id"] == digits_report.scores[0].examples[0].example_id.tolist()
    assert data["inconclusive"][0]["what"] == "random/finetune · umia"


def test_only_created_at_is_a_clock(changed: Changed) -> None:
    a, b = facts(changed()), facts(changed(created_at="2027-01-01T00:00:00+00:00"))
    assert {k for k in a if a[k] != b[k]} == {"created_at"}


@pytest.mark.promise("B9")
def test_hostile_text_is_shown_and_never_run() -> None:
    rows = pl.DataFrame({HOSTILE: [HOSTILE]})
    examples = Examples(
        heading=HOSTILE,
        example_id=np.array([1]),
        value=np.array([0.5]),
        label=[HOSTILE],
        note=[HOSTILE],
        images=np.zeros((1, 4, 4)),
    )
    table = dataclasses.replace(examples, images=None, rows=rows)
    score = ScoreSection(
        name=HOSTILE,
        doc=HOSTILE,
        unit=HOSTILE,
        higher_means=HOSTILE,
        histogram=Histogram.of([1.0, 2.0]),
        examples=(examples, table),
        passed=False,
        reason=HOSTILE,
    )
    report = small(
        subject=HOSTILE,
        title=HOSTILE,
        created_at=HOSTILE,
        findings=[Finding(what=HOSTILE, verdict=Verdict.BROKEN, sentence=HOSTILE)],
        audited={HOSTILE: {HOSTILE: HOSTILE}},
        scores=(score,),
        groups=(examples,),
        notes=(HOSTILE,),
        commands=(HOSTILE,),
        config_yaml=HOSTILE,
        environment={HOSTILE: [HOSTILE]},
        ledger_head=HOSTILE,
        request={HOSTILE: HOSTILE},
        events=pl.DataFrame({"at": [HOSTILE], "state": [HOSTILE], "note": [HOSTILE]}),
    )
    text = render_html(report)
    page = Page(text)
    assert page.text.count(HOSTILE) >= 25
    assert "<script" not in text
    assert "<img src=x" not in text
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "53743561" not in page.text, "the template engine must not evaluate data"
    assert not [a for t, a in page.tags if t == "a" and not (a["href"] or "").startswith("#")]
    assert json.loads(render_json(report))["title"] == HOSTILE


def test_an_audit_of_nothing_is_not_judged_and_still_a_page() -> None:
    report = small(
        computed="24,600 examples were scored by personal_loss. A verdict needs attacks and unlearning in the plan."
    )
    page = Page(render_html(report))
    assert "– Not judged" in page.text and "✓" not in page.text
    assert "Nothing was judged" in page.text and "24,600 examples were scored" in page.text
    assert report.judgement.verdict is Verdict.NOT_JUDGED and json.loads(render_json(report))["verdict"] == "not judged"
    assert page.headings == ["What was audited", "Findings", "What is not decided, and why", "Do it again"]


def test_missing_numbers_become_dashes_and_nulls(digits_report: AuditReport, lean: Changed, long: Long) -> None:
    frame = digits_report.runs
    assert frame is not None
    known = [pl.lit(None, pl.Float64).alias(c) for c in ("avg_gap", "ua")]
    broken = frame.with_columns(*known, ra=pl.lit(float("nan")), status=pl.lit("diverged"))
    report = lean(**long(broken))
    text = render_html(report)
    assert "3 diverged or refused" in text
    assert "nan" not in Page(text).text.lower()
    first = json.loads(render_json(report))["unlearning_metrics"][0]
    assert first["metric"] == "ra" and first["value"] is None


def test_a_score_that_is_not_current_and_missing_values_are_told(lean: Changed) -> None:
    score = ScoreSection(
        name="memorization",
        doc="d",
        histogram=Histogram.of([0.1, float("nan")]),
        passed=False,
        reason="mean acc_in 0.93 < 0.98",
    )
    page = Page(render_html(lean(scores=(score,))))
    assert page.text.count("mean acc_in 0.93 < 0.98") == 2
    assert "1 examples have no finite value" in page.text or "1 example has no finite value" in page.text


def test_a_control_that_is_not_caught_is_told(lean: Changed, digits_report: AuditReport) -> None:
    found = digits_report.findings
    assert isinstance(found, pl.DataFrame)
    only = found.filter(pl.col("verdict") == "pass").vstack(
        found.filter(pl.col("about") == "random/none").with_columns(verdict=pl.lit("pass"))
    )
    report = lean(findings=only)
    assert report.judgement.verdict is Verdict.INCONCLUSIVE
    assert "had no power on this split" in Page(render_html(report)).text


def test_two_questions_have_two_answers_above_the_verdict(
    digits_report: AuditReport, page: Page, lean: Changed
) -> None:
    model, removal, rest = digits_report.judgement.answers
    assert (
        (model.answer, model.verdict) == ("yes", Verdict.FAIL)
        and "rmia" in model.sentence
        and "0.663" in model.sentence
    )
    assert removal.verdict is Verdict.FAIL and "gap" in removal.sentence and rest.answer == "yes"
    for answer in digits_report.judgement.answers:
        assert page.text.index(answer.question) < page.text.index("2 of 7 findings that count fail.")
    found = digits_report.findings
    assert isinstance(found, pl.DataFrame)
    told = lean(findings=found.with_columns(judged=pl.col("method") == "retrain"), decides="retrain").judgement
    assert told.verdict is Verdict.PASS and told.answers[0].answer == "yes" and not told.answers[0].counted
    assert "max_target_auc" in told.answers[0].sentence and told.answers[1].question == "Is what retrain removed gone?"


def test_the_report_of_one_request_shows_it_and_each_methods_verdict(lean: Changed) -> None:
    events = pl.DataFrame(
        {
            "request_id": ["r-1"] * 2,
            "seq": [0, 1],
            "state": ["received", "verified"],
            "note": ["by mail", "identity seen"],
            "at": [datetime(2026, 11, 1, 9), datetime(2026, 11, 2, 10, 30)],
        }
    )
    report = lean(request={"Request": "r-1", "Selector": "ids", "Examples": 144}, events=events)
    page = Page(render_html(report))
    assert page.headings[0] == "The request"
    assert "2 November 2026, 10:30 UTC" in page.text
    table = page.text.split("Retraining without the forgotten")[1]
    assert re.search(r"finetune\s+\? inconclusive", table)
    assert re.search(r"gradient_ascent\s+✗ fail", table)
    assert json.loads(render_json(report))["events"][1]["at"] == "2026-11-02T10:30:00"


def test_a_million_examples_weigh_what_a_thousand_do() -> None:
    def one(n: int) -> str:
        rng = np.random.default_rng(0)
        shown = Examples(
            heading="h",
            example_id=np.arange(n),
            value=rng.random(n),
            label=["a"] * n,
            images=np.zeros((n, 4, 4), np.uint8),
        )
        return render_html(
            small(scores=(ScoreSection(name="s", doc="d", histogram=Histogram.of(rng.random(n)), examples=(shown,)),))
        )

    few, many = one(1_000), one(300_000)
    assert abs(len(many) - len(few)) < 4_000
    assert many.count('<li class="card">') == MAX_EXAMPLES


def test_pictures_on_the_page_are_the_examples() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    examples = Examples(
        heading="h", example_id=np.array([5, 9]), value=np.array([1.0, 0.5]), label=["cat", "dog"], images=x
    )
    page = Page(render_html(small(groups=(examples,))))
    shown = [a for t, a in page.tags if t == "img" and (a["alt"] or "").startswith("Example")]
    assert [a["alt"] for a in shown] == ["Example 5, labelled cat", "Example 9, labelled dog"]
    from io import BytesIO

    from PIL import Image

    png = base64.b64decode((shown[1]["src"] or "").split(",")[1])
    assert np.array_equal(np.asarray(Image.open(BytesIO(png))), x[1].transpose(1, 2, 0))


def test_tables_show_rows_as_text() -> None:
    rows = pl.DataFrame({f"c{i}": [i + 0.25, None] for i in range(11)})
    examples = Examples(
        heading="h", example_id=np.array([3, 4]), value=np.array([1.0, 0.5]), label=["x", "y"], rows=rows
    )
    page = Page(render_html(small(groups=(examples,))))
    assert "7.25" in page.text
    assert "8.25" not in page.text
    assert "3 further columns are not shown" in page.text


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(InvalidInput, match="label"):
        Examples(heading="h", example_id=np.arange(2), value=np.zeros(2), label=["a"])
    with pytest.raises(InvalidInput, match="picture"):
        Examples(heading="h", example_id=np.arange(2), value=np.zeros(2), label=["a", "b"], images=np.zeros((2, 30)))
    with pytest.raises(DataError, match=r"unlearning\.runs.*status"):
        small(unlearning=pl.DataFrame({"split": ["s"]}), unlearning_metrics=pl.DataFrame())
    with pytest.raises(DataError, match="runs of unlearning with their metrics, or neither"):
        small(unlearning=pl.DataFrame({"split": ["s"]}))
    with pytest.raises(DataError, match="verdict"):
        small(findings=pl.DataFrame({"what": ["x"]}))


def test_a_request_of_many_examples_is_shortened_on_the_page_and_whole_in_the_data() -> None:
    report = small(request={"ids": list(range(10_000, 15_000))})
    page = Page(render_html(report))
    assert "10039, … 5\u202f000 in all" in page.text
    assert "10040" not in page.text
    assert json.loads(render_json(report))["request"]["ids"][-1] == 14_999
