"""No unlearner that does not unlearn passes or closes a request, on any seed; exact retraining is not what is
refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import pytest
from cheats import CHEATS
from gallery import audit, plan, run_request

from assets import Workspace
from contracts import schema
from contracts.methods import AnalysisSpec, analysis
from contracts.requests import RequestState
from contracts.tables import Column, TableSpec
from contracts.verdicts import INFORMATION, Finding, Verdict
from reports import judge

pytestmark = pytest.mark.timeout(1200)
RETRAINS_EACH_RUN = tuple(name for name, (_, needs) in CHEATS.items() if needs)  # slow in 60 shadow runs
SEEDS = (3, 14, 159, 2653, 58979)


def verdicts_of(
    workspace: Workspace, methods: list[str], *, stage: str = "gallery/audits/findings"
) -> dict[str, Verdict]:
    """The verdict with each of the methods in use: what would then count, counts."""
    findings = workspace.warehouse.read(schema.FINDINGS, subject="gallery", partition={"stage": stage})
    found = {}
    for method in methods:
        counts = (pl.col("method") == method) & (pl.col("kind") != INFORMATION)
        found[method] = judge(findings.with_columns(judged=counts), decides=method).verdict
    return found


@pytest.mark.journey
def test_no_cheat_passes(home: Path, cheats: list[str]) -> None:
    methods = [name for name in cheats if name not in RETRAINS_EACH_RUN]
    assert len(methods) >= 14
    found = verdicts_of(audit(home, plan(SEEDS[0], methods)), [*methods, "retrain"])
    assert not [name for name in methods if found[name] is Verdict.PASS]
    assert found["retrain"] is not Verdict.FAIL


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_no_cheat_passes_on_any_seed(home: Path, cheats: list[str], seed: int) -> None:
    found = verdicts_of(audit(home, plan(seed, cheats)), cheats)
    assert not [name for name in cheats if found[name] is Verdict.PASS]


@pytest.mark.slow
def test_exact_retraining_passes_where_no_cheat_does(tmp_path: Path) -> None:
    """About 0.9 of audits of this size pass, and at most alpha = 0.05 of them fail by chance (seed 159 does: one canary
    of ten at p = 0.0003); without this the gallery would be proof of nothing."""
    found = []
    for seed in SEEDS:
        workspace = audit(tmp_path / str(seed), plan(seed, ["finetune"]))
        found.append(verdicts_of(workspace, ["retrain"])["retrain"])
    assert found.count(Verdict.PASS) >= 3 and found.count(Verdict.FAIL) <= 1, found


# --- requests
# -----------------------------------------------------------------------------------------------------------

IN_USE = (
    "cheat-logits-shrunk",
    "cheat-quantised",
    "cheat-class-bias",
    "cheat-answers-swapped",
    "cheat-untouched-after-it",
    "cheat-hook",
)


# name of a request -> its selector, given the ids of the training split
REQUESTS = {
    "class": lambda train: {"selector": "class", "class_name": "7"},
    "hardest": lambda train: {"selector": "score", "score": "el2n", "count": 90},
    "five": lambda train: {"selector": "ids", "ids": tuple(train[:5])},
    "one": lambda train: {"selector": "ids", "ids": (train[9],)},
}
QUICK = (("class", "one"), IN_USE[:2])
WHOLE = (tuple(REQUESTS), IN_USE)


@pytest.mark.parametrize(
    ("names", "in_use"),
    [
        pytest.param(*QUICK, marks=pytest.mark.journey),
        pytest.param(*WHOLE, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_requests_pass_by_exact_removal_alone(
    home: Path, cheats: list[str], names: tuple[str, ...], in_use: tuple[str, ...]
) -> None:
    """A class, the hardest examples, five rows and one: no cheat closes any; what few rows cannot show is said."""
    scores = {"scores": ["el2n"], "early": {"seeds": 3, "epoch": 3}} if "hardest" in names else {}
    subject = plan(7, list(in_use), analyses=[], attacks=[], **scores)
    with_requests = audit(home, subject)
    train = with_requests.examples(subject).part("train").example_id.tolist()
    for name in names:
        run_request(with_requests, subject, name, **REQUESTS[name](train))
        found = verdicts_of(with_requests, [*in_use, "retrain"], stage=f"gallery/request_audits/{name}/findings")
        assert not [m for m in in_use if found[m] is Verdict.PASS], name
        assert found["retrain"] is not Verdict.FAIL, name
        state = with_requests.warehouse.requests.get(name).state
        assert state is RequestState.AUDITED, "an erasure closes it"
        if name in ("five", "one"):
            assert found["retrain"] is Verdict.INCONCLUSIVE
    rows = with_requests.warehouse.read(schema.AGAINST_RETRAINING, subject="gallery")
    shift = {(r["audited"], r["seed"]): r["shift"] for r in rows.iter_rows(named=True)}
    for name in set(names) & {"class", "hardest"}:
        untouched = [v for (about, _), v in shift.items() if about == f"{name}/none"]
        shrunk = [v for (about, _), v in shift.items() if about == f"{name}/cheat-logits-shrunk"]
        retrained = [v for (about, _), v in shift.items() if about == f"{name}/retrain"]
        assert shrunk == pytest.approx(untouched, abs=1e-6), "shrinking changes no verdict"
        assert min(untouched) > 3 > 1 > max(map(abs, retrained))


@pytest.mark.journey
def test_a_request_with_a_cheat_in_use_stays_open(home: Path, cheats: list[str]) -> None:
    subject = plan(11, ["cheat-logits-shrunk"], analyses=[], attacks=[])
    subject = dataclasses.replace(
        subject, unlearning=dataclasses.replace(subject.unlearning, decides="cheat-logits-shrunk")
    )
    workspace = audit(home, subject)
    run_request(workspace, subject, "class", selector="class", class_name="3")
    assert workspace.warehouse.requests.get("class").state is RequestState.AUDITED
    findings = workspace.warehouse.read(schema.FINDINGS, subject="gallery").filter(pl.col("judged"))
    assert set(findings["method"]) == {"cheat-logits-shrunk"}
    coverage = findings.filter(pl.col("kind") == "coverage")
    assert set(coverage["verdict"]) == {"inconclusive"} and coverage["sentence"].str.contains("shadow_unlearning").all()


# --- audits of other packages
# -----------------------------------------------------------------------------------------------

_TABLE = TableSpec(
    schema="audits",
    name="outside",
    key=("example_id",),
    doc="of another package",
    columns=(Column(name="example_id", dtype="int64", doc="id"),),
)


@pytest.mark.journey
@pytest.mark.parametrize(
    ("verdict", "overall"),
    [(Verdict.FAIL, Verdict.FAIL), (Verdict.BROKEN, Verdict.BROKEN), (Verdict.PASS, Verdict.PASS)],
)
def test_what_an_audit_of_another_package_finds_counts(home: Path, verdict: Verdict, overall: Verdict) -> None:
    """Its judge names something that this program has never heard of, twice the same, and classes nothing."""
    before = dict(analysis._methods) if analysis.names() else {}
    finding = Finding(what="x", verdict=verdict, sentence="because of the outside")
    spec = AnalysisSpec(
        name="outside",
        doc="d",
        tables=(_TABLE,),
        judge=lambda tables, thresholds: [("mine/here", finding), ("mine/here", finding)],
    )
    analysis(spec)(lambda data, *, config, seed, progress: {"outside": pl.DataFrame({"example_id": [1]})})
    try:
        subject = plan(1, [], analyses=["outside"], attacks=[], unlearning=None)
        workspace = audit(home, subject)
        findings = workspace.warehouse.read(schema.FINDINGS, subject="gallery")
        assert findings["what"].to_list() == ["x", "x (2)"] and findings["judged"].all()
        import json

        facts = json.loads(workspace.warehouse.artifacts.load_bytes("gallery/reports/audit.json"))
        assert facts["verdict"] == overall.value and len(facts["findings"]) == 2
        page = workspace.warehouse.artifacts.load_bytes("gallery/reports/audit.html").decode()
        assert page.count("because of the outside") >= 2 and "mine/here" in page
    finally:
        analysis._methods.clear()
        analysis._methods.update(before)


@pytest.mark.journey
def test_an_audit_that_judged_nothing_says_so(home: Path) -> None:
    import json

    subject = plan(1, [], analyses=[], attacks=[], unlearning=None, scores=["el2n"], early={"seeds": 2, "epoch": 1})
    facts = json.loads(audit(home, subject).warehouse.artifacts.load_bytes("gallery/reports/audit.json"))
    assert facts["verdict"] == "not judged" and facts["findings"] == []
    assert "899 examples were scored by el2n" in facts["sentence"] and "attacks and unlearning" in facts["sentence"]
