"""The whole graph on real digits: what is stored, that nothing is done twice, that readers can always read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import dagster as dg
import duckdb
import polars as pl
import pytest

from assets import subject_stages
from assets.dagster_view import column_schema, key_of
from assets.judged import ANSWERS, OTHER
from contracts.schema import FINDINGS
from contracts.subject import Subject
from pipelines.cli.audit import run_subject
from pipelines.observations import LOCATION, REPOSITORY
from warehouse import Warehouse


def test_every_promised_table_answers(audited_home: Path) -> None:
    w = Warehouse.open(audited_home)
    latest = w.query("SELECT score, count(*) AS n FROM scores.latest GROUP BY score ORDER BY score")
    train = w.query("SELECT count(*) AS n FROM data.examples WHERE split = 'train'")["n"][0]
    assert {"el2n", "grand"} <= set(latest["score"])
    assert set(latest.filter(pl.col("score") != "memorization")["n"]) == {train}
    audited = w.query("SELECT DISTINCT audited FROM audits.attack_reports")["audited"].to_list()
    assert {"target", "random/none", "random/retrain", "random/finetune"} <= set(audited)
    runs = w.query("SELECT method, avg_gap FROM unlearning.wide")
    assert dict(runs.iter_rows())["retrain"] == 0.0
    assert w.query("SELECT count(*) AS n FROM requests.register")["n"][0] >= 0
    assert w.ledger.verify().ok


def test_a_plain_connection_reads_the_published_file(audited_home: Path) -> None:
    with duckdb.connect(str(Warehouse.open(audited_home).snapshot), read_only=True) as con:
        for table in (
            "scores.latest",
            "audits.attack_reports",
            "unlearning.runs",
            "requests.register",
            "ledger.entries",
        ):
            assert con.execute(f"SELECT count(*) FROM {table}").fetchone() is not None


def test_the_control_stands_out_and_retraining_does_not(audited_home: Path) -> None:
    frame = Warehouse.open(audited_home).query(
        "SELECT audited, auc, auc_lo FROM audits.attack_reports WHERE attack = 'lira_online' AND fpr_cap = 0.05"
    )
    auc = {audited: value for audited, value, _ in frame.iter_rows()}
    low = {audited: value for audited, _, value in frame.iter_rows()}
    assert low["target"] > 0.5, "sixteen references see that the audited model knows its training examples"
    assert auc["random/none"] > auc["random/retrain"]


def test_a_second_run_recomputes_nothing(audited_home: Path, small: Subject) -> None:
    w = Warehouse.open(audited_home)
    before = w.ledger.head()
    _, records = run_subject(small, audited_home, job="audit")
    assert records and all(r["state"].startswith("unchanged") for r in records), records
    assert w.ledger.head() == before


def test_the_answers_and_every_judged_finding_are_checks_in_dagster_and_stop_nothing(
    audited_home: Path, small: Subject
) -> None:
    """The page of the findings in Dagster's UI says what the report says: red where it fails, yellow where it cannot be
    told."""
    (stage,) = [s for s in subject_stages(small) if s.path[1] == "findings" and not s.per_request]
    facts = json.loads(Warehouse.open(audited_home).artifacts.load_bytes("small/reports/audit.json"))
    expected = {ANSWERS[a["about"]]: (a["verdict"], a["sentence"]) for a in facts["answers"] if a["counted"]}
    judged = [f for f in facts["findings"] if f["judged"]]
    assert {f["method"] for f in judged} == {"retrain"}
    for finding in judged:
        name = finding["what"].removeprefix("attack/")
        expected[f"removal_{name}"] = (finding["verdict"], finding["sentence"])
    assert set(stage.judged) == {*expected, OTHER}
    with dg.DagsterInstance.get() as instance:
        keys = {name: dg.AssetCheckKey(asset_key=key_of(stage), name=name) for name in stage.judged}
        found = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(keys.values()))
        for name, key in keys.items():
            told = found[key].event.dagster_event.asset_check_evaluation_data
            verdict, sentence = expected.get(name, ("pass", "There is no other finding that counts."))
            assert told.passed == (verdict == "pass") and not told.blocking and told.description == sentence, name
            assert (told.severity.value == "ERROR") == (verdict in ("fail", "broken")), name
            assert list(told.metadata) == ["verdict", "what", "why"] and told.metadata["verdict"].value == verdict
            if name == "removed_is_gone":
                assert told.metadata["what"].value.startswith("Is what retrain removed gone? ")
            if name == "removal_gap":
                assert told.metadata["what"].value == "random/retrain, gap: 0.000 (0.000\u20130.000), limit 5.00"
    assert {verdict for verdict, _ in expected.values()} - {"pass"}, (
        "sixteen references of small networks cannot pass: else nothing is checked here"
    )


def test_the_verdict_comes_first_in_what_the_ui_shows(audited_home: Path, small: Subject) -> None:
    with dg.DagsterInstance.get() as instance:
        for path in (("audits", "findings"), ("reports", "audit")):
            made = instance.get_latest_materialization_event(dg.AssetKey(["small", *path]))
            assert made is not None and made.asset_materialization is not None
            shown = made.asset_materialization.metadata
            assert list(shown)[:2] == ["verdict", "why"]
            assert [c.name for c in shown["findings"].schema.columns][:2] == ["verdict", "sentence"]
    shown = column_schema(FINDINGS).columns
    assert [c.name for c in shown[:2]] == ["verdict", "sentence"] and shown[-1].name == "config_digest"
    assert "&lt;split&gt;/&lt;method&gt;" in str(shown[2].description), (
        "the UI takes what is in angle brackets for a tag"
    )


def test_a_run_of_the_command_line_is_listed_under_its_job_and_on_the_timeline(audited_home: Path) -> None:
    """Dagster's pages look runs up by the label of their code location, the timeline by their origin."""
    label = {".dagster/repository": f"{REPOSITORY}@{LOCATION}"}
    with dg.DagsterInstance.get() as instance:
        labelled = instance.get_runs(filters=dg.RunsFilter(job_name="audit_small", tags=label))
    assert labelled  # several where other tests have audited again
    for run in labelled:
        assert run.remote_job_origin is not None and run.remote_job_origin.job_name == "audit_small"
        assert run.remote_job_origin.location_name == LOCATION


def test_the_report_is_one_file_that_needs_no_network(audited_home: Path) -> None:
    store = Warehouse.open(audited_home).artifacts
    page = store.load_bytes("small/reports/audit.html").decode()
    facts = json.loads(store.load_bytes("small/reports/audit.json"))
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert facts["verdict"] in page.lower() and len(facts["scores"]) == 4
    assert [a["name"] for a in facts["analyses"]] == ["influence", "dropout_inversion"]
    about_data, about_model = page.index("<h3>influence"), page.index("<h3>dropout_inversion")
    assert about_data < page.index('id="attacks"') < about_model, "an audit stands with the attacks"
    inversion = page[about_model:]
    assert inversion.index("panel original") < inversion.index("panel dia"), "the originals come first"


def test_trace_names_what_an_example_touched(audited_home: Path) -> None:
    w = Warehouse.open(audited_home)
    forgotten = w.query(
        "SELECT min(example_id) AS i FROM curation.members WHERE role = 'forget' AND dataset_id = 'random'"
    )["i"][0]
    found = w.trace(int(forgotten), "small")
    assets = set(found["asset"].drop_nulls()) | set(found["location"].drop_nulls())
    assert any("scores.el2n" in a for a in assets) and any("models/target" in a for a in assets)
    made_from = found.filter(pl.col("kind") == "made_from")["asset"].to_list()
    assert "small/unlearning/finetune" in made_from
    assert "small/unlearning/retrain" not in made_from, "the retrained model never saw a forgotten example"


def test_a_stale_or_unknown_score_selects_nothing(audited_home: Path, small: Subject) -> None:
    from assets.graph import subject_stages
    from assets.stage import Run
    from assets.workspace import Workspace
    from contracts.errors import NotReady, UnknownName
    from pipelines.launchers import PipesLauncher

    def stored(plan: Subject, name: str) -> pl.DataFrame:
        split = next(s for s in subject_stages(plan) if s.path == ("request_curation", "split"))
        return Run(split, Workspace(audited_home, launcher=PipesLauncher()), "r", None, None).stored_score(name)

    assert stored(small, "el2n").height > 0
    longer = dataclasses.replace(small, early=dataclasses.replace(small.early, epoch=2))
    with pytest.raises(NotReady, match="score el2n of small is stale"):
        stored(longer, "el2n")
    assert stored(longer, "memorization").height > 0, "the ensemble is not made of early models"
    with pytest.raises(UnknownName, match="el2n"):
        stored(small, "elton")
    with pytest.raises(UnknownName, match="known: el2n, memorization, near_duplicates"):
        stored(without(longer, "grand"), "grand")


def without(plan: Subject, score: str) -> Subject:
    return dataclasses.replace(plan, scores=tuple(c for c in plan.scores if c.name != score))


@pytest.mark.journey
def test_a_score_that_the_plan_drops_is_no_longer_current(audited_home: Path, small: Subject, tmp_path: Path) -> None:
    home = shutil.copytree(audited_home, tmp_path / "state")
    run_subject(without(small, "grand"), home, job="audit")
    scores = "SELECT DISTINCT score FROM scores.latest ORDER BY 1"
    kept = ["el2n", "memorization", "near_duplicates"]
    assert Warehouse.open(home).query(scores)["score"].to_list() == kept
    facts = json.loads(Warehouse.open(home).artifacts.load_bytes("small/reports/audit.json"))
    assert [s["name"] for s in facts["scores"]] == kept
    _, records = run_subject(small, home, job="audit")
    again = {r["stage"]: r["state"] for r in records} if "stage" in records[0] else records
    assert Warehouse.open(home).query(scores)["score"].to_list() == [
        "el2n",
        "grand",
        "memorization",
        "near_duplicates",
    ], again


@pytest.mark.parametrize("selector", [pytest.param("ids", marks=pytest.mark.journey), "owner_missing"])
def test_a_forget_request_runs_to_its_verdict(audited_home: Path, small: Subject, selector: str) -> None:
    from datetime import UTC, datetime

    from contracts.errors import JobFailed
    from contracts.requests import ForgetRequest, RequestState, due_date

    w = Warehouse.open(audited_home)
    now = datetime.now(UTC)
    train = w.query("SELECT example_id FROM data.examples WHERE split = 'train' ORDER BY 1 LIMIT 40")["example_id"]
    chosen = {"selector": "ids", "ids": tuple(train)} if selector == "ids" else {"selector": "owner", "owner": "0" * 32}
    name = f"r-{selector.replace('_', '-')}"
    w.requests.add(
        ForgetRequest(
            request_id=name, subject="small", received_at=now.isoformat(), due_at=due_date(now).isoformat(), **chosen
        )
    )
    with pytest.raises(JobFailed, match="verif"):
        run_subject(small, audited_home, job="forget", request=name)
    w.requests.advance(name, RequestState.VERIFIED, note="a test")
    if selector == "owner_missing":
        with pytest.raises(JobFailed, match="belongs to this owner"):
            run_subject(small, audited_home, job="forget", request=name)
        return
    run_subject(small, audited_home, job="forget", request=name)
    entry = w.requests.get(name)
    assert entry.state in (RequestState.AUDITED, RequestState.CLOSED)
    methods = w.query("SELECT DISTINCT method FROM unlearning.runs WHERE split = ?", [name])["method"]
    assert set(methods) == {"none", "retrain", "finetune"}
    groups = w.latest_score("small", "near_duplicates.group_id")
    named = groups.filter(pl.col("example_id").is_in(train.to_list()))["value"].unique()
    closed = groups.filter(pl.col("value").is_in(named.to_list()))["example_id"].to_list()
    forgotten = w.query("SELECT example_id FROM curation.members WHERE dataset_id = ? AND role = 'forget'", [name])
    assert set(forgotten["example_id"]) == set(closed) > set(train), "the near duplicates go with what was named"
    assert w.artifacts.exists(f"small/request_reports/{name}/audit.html")
