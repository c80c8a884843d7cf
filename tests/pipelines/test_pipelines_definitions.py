"""Definitions load without data, GPU, network or secrets, and say what they are."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from assets import dagster_view, subject_stages
from assets.judged import OTHER
from assets.stage import Stage
from contracts.errors import ConfigError, UnknownName, in_words
from contracts.methods import analysis
from contracts.subject import Subject
from pipelines.build import MAX_RUNS, REQUEST_TAG, overdue, request_partitions, request_tick, subject_definitions
from pipelines.cli.audit import quick_plan
from pipelines.components.audited_model import AuditedModel, AuditedModelScaffolder
from pipelines.definitions import workspace
from pipelines.subjects import BUILT_IN, attributes_of, load_subject, subject_files, write_subject


def _whole(plan: Subject) -> dg.Definitions:
    return dg.Definitions.merge(subject_definitions(plan), dg.Definitions(resources={"workspace": workspace}))


@pytest.mark.parametrize("name", sorted(p.parent.name for p in BUILT_IN.glob("*/defs.yaml")))
def test_a_built_in_subject_gives_a_whole_graph(name: str, tmp_path: Path) -> None:
    plan = load_subject(name, tmp_path)
    graph = _whole(plan).resolve_asset_graph()
    keys = {"/".join(k.path[1:]) for k in graph.get_all_asset_keys()}
    assert {"data/examples", "models/target", "audits/findings", "reports/audit"} <= keys
    assert {f"scores/{c.name}" for c in plan.scores} | {
        f"{analysis.get(c.name).spec.stage}/{c.name}" for c in plan.analyses
    } <= keys
    assert ("request_reports/audit" in keys) == (plan.unlearning is not None)
    checks = {(k.asset_key.path[-1], k.name) for k in graph.asset_check_keys}
    assert all((c.name, "contract") in checks for c in plan.scores), "every table has its blocking check"
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description and node.code_version and node.owners and node.group_name


def test_the_component_has_every_field_of_a_subject() -> None:
    assert set(AuditedModel.model().model_fields) == {f.name for f in dataclasses.fields(Subject)}


def test_five_subjects_are_ten_groups_at_most(tmp_path: Path) -> None:
    plans = [load_subject(path.parent.name, tmp_path) for path in BUILT_IN.glob("*/defs.yaml")]
    assert len(plans) >= 5
    for plan in plans:
        graph = _whole(plan).resolve_asset_graph()
        groups = {graph.get(key).group_name for key in graph.get_all_asset_keys()}
        assert groups in ({plan.subject}, {plan.subject, f"{plan.subject}_requests"})


def test_a_judged_finding_has_the_name_of_its_check_before_it_is_found(tmp_path: Path) -> None:
    plan = load_subject("digits", tmp_path)
    names = {s.path[0]: s.judged for s in subject_stages(plan) if s.path[1] == "findings"}
    attacks = [f"removal_{a}" for a in ("loss", "lira_online", "rmia_online", "u_mia")]
    shadow = [f"shadow_unlearning_{what}" for what in ("u_lira", "examples", "canaries")]
    answers = ["removed_is_gone", "other_audits_pass"]
    assert list(names["audits"]) == [*answers, *attacks, "removal_gap", "removal_quality", *shadow, OTHER]
    against = ["removal_against_retraining", "removal_gap", "removal_quality"]
    assert list(names["request_audits"]) == ["removed_is_gone", *against, OTHER]
    limits = dataclasses.replace(plan.thresholds, max_target_auc=0.6)
    assert plan.unlearning is not None
    strict = dataclasses.replace(
        plan, thresholds=limits, unlearning=dataclasses.replace(plan.unlearning, decides="finetune")
    )
    (found,) = [s.judged for s in subject_stages(strict) if s.path == ("audits", "findings")]
    more = {"exposes_nothing", "model_loss", "exposure_lira_online", "removal_u_lira", "shadow_unlearning_kept"}
    assert more <= set(found)


@pytest.mark.parametrize(("error", "times"), [(OSError(5, "I/O error"), 3), (ConfigError("lr = -1"), 1)])
def test_what_may_pass_is_tried_again_and_what_is_wrong_is_not(
    small: Subject, monkeypatch: pytest.MonkeyPatch, error: Exception, times: int
) -> None:
    tried = []

    def failing(*_: object, **__: object) -> None:
        tried.append(1)
        raise error

    monkeypatch.setattr(dagster_view, "materialize", failing)
    monkeypatch.setattr(dagster_view, "_AGAIN", dg.RetryPolicy(max_retries=2, delay=0))
    asset = dagster_view.to_asset(subject_stages(small)[0], None)
    done = dg.materialize([asset], resources={"workspace": object()}, raise_on_error=False)
    (failed,) = [e.step_failure_data for e in done.all_events if e.is_step_failure]
    assert len(tried) == times and in_words(error) in failed.user_failure_data.description


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_stage_is_not_tried_again_and_its_run_goes_no_further(
    small: Subject, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    """By the terminal (Ctrl-C), a service manager, or "terminate" in the UI."""
    tried, before = [], signal.getsignal(signal.SIGINT)

    def interrupted(stage: Stage, *_: object, **__: object) -> None:
        tried.append(stage.path)
        os.kill(os.getpid(), sent)
        time.sleep(10)

    monkeypatch.setattr(dagster_view, "materialize", interrupted)
    monkeypatch.setattr(dagster_view, "_AGAIN", dg.RetryPolicy(max_retries=2, delay=0))
    assets = [dagster_view.to_asset(stage, None) for stage in subject_stages(small) if not stage.deps]
    more = dg.asset(name="zz")(lambda: tried.append("the next"))  # stages are run in the order of their names
    done = dg.materialize([*assets, more], resources={"workspace": object()}, raise_on_error=False)
    assert tried == [("data", "examples")] and not done.success
    (failed,) = [e.step_failure_data for e in done.all_events if e.is_step_failure]
    assert failed.error_source.value == "INTERRUPT"
    assert signal.getsignal(signal.SIGINT) is before


def test_jobs_schedule_and_sensor(tmp_path: Path) -> None:
    definitions = _whole(load_subject("digits", tmp_path))
    assert {job.name for job in definitions.resolve_all_job_defs()} >= {"audit_digits", "forget_digits"}
    assert [s.cron_schedule for s in definitions.schedules] == ["0 6 * * 1"]
    assert [s.name for s in definitions.sensors] == ["forget_digits_sensor", "forget_digits_failed"]
    assert {s.default_status.value for s in (*definitions.schedules, *definitions.sensors)} == {"RUNNING"}


def test_the_sensor_starts_one_run_a_verified_request(audited_home: Path, small: Subject) -> None:
    from datetime import UTC, datetime, timedelta

    from dagster._core.test_utils import create_run_for_test

    from contracts.requests import ForgetRequest, RequestState, due_date
    from warehouse import Warehouse

    w, now = Warehouse.open(audited_home), datetime.now(UTC)
    for name in ("s-verified", "s-received"):
        w.requests.add(
            ForgetRequest(
                request_id=name,
                subject="small",
                selector="ids",
                ids=(3,),
                received_at=now.isoformat(),
                due_at=due_date(now).isoformat(),
            )
        )
    w.requests.advance("s-verified", RequestState.VERIFIED, note="a test")
    partitions = request_partitions("small")

    def asked(instance: dg.DagsterInstance) -> list[str]:
        result = request_tick(workspace(None), "small", partitions, instance=instance)
        if isinstance(result, dg.SkipReason):
            return []
        names = [r.partition_key for r in result.run_requests or []]  # other tests may have left requests of their own
        assert list((result.dynamic_partitions_requests or [])[0].partition_keys) == names
        return [r.run_key for r in result.run_requests or [] if r.partition_key.startswith("s-")]

    with dg.instance_for_test() as instance:
        for attempt in range(MAX_RUNS):
            assert asked(instance) == [f"s-verified-{attempt}"], "a failed run is followed by another"
            run = create_run_for_test(instance, tags={REQUEST_TAG: "s-verified"}, status=dg.DagsterRunStatus.STARTED)
            assert asked(instance) == [], "one at a time"
            told = request_tick(workspace(None), "small", partitions, instance=instance)
            assert not isinstance(told, dg.SkipReason) or "under way: s-verified" in str(told.skip_message)
            instance.report_run_failed(run)
        assert asked(instance) == [], "not for ever"
        (said,) = [line for line in overdue(w, "small", now=now + timedelta(days=29)) if "s-verified" in line]
        assert f"is verified and is due on {due_date(now):%Y-%m-%d}" in said
        late = overdue(w, "small", now=due_date(now) + timedelta(hours=1))
        assert any("s-verified is verified and was due on" in line for line in late)
        assert not [line for line in overdue(w, "small", now=now) if "s-" in line]


def test_a_failed_run_leaves_where_and_what_kind_and_no_text_with_the_request(
    tmp_path: Path, small: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import UTC, datetime

    from contracts.requests import ForgetRequest, due_date
    from warehouse import Warehouse

    @dg.op
    def small__request_curation__split() -> None:
        raise dg.Failure("DataError: no 'Ann Lee' in people.csv", allow_retries=False)

    @dg.job
    def forget_small() -> None:
        small__request_curation__split()

    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path))
    w, now = Warehouse.open(tmp_path), datetime.now(UTC)
    due = due_date(now).isoformat()
    w.requests.add(
        ForgetRequest(
            request_id="s-failing", subject="small", selector="ids", ids=(3,), received_at=now.isoformat(), due_at=due
        )
    )
    (sensor,) = [s for s in subject_definitions(small).sensors or () if s.name == "forget_small_failed"]
    with dg.instance_for_test() as instance:
        tags = {REQUEST_TAG: "s-failing"}
        done = forget_small.execute_in_process(instance=instance, raise_on_error=False, tags=tags)
        (failed,) = [event for event in done.all_events if event.is_run_failure]
        context = dg.build_run_status_sensor_context(
            sensor.name, dagster_event=failed, dagster_instance=instance, dagster_run=done.dagster_run
        ).for_run_failure()
        assert isinstance(sensor, dg.RunStatusSensorDefinition)
        sensor(context)
    note = w.requests.get("s-failing").events["note"][-1]
    assert "failed: small/request_curation/split (DataError); the run's page in the Dagster UI says why" in note
    assert "Ann" not in note


@pytest.mark.promise("G1")
@pytest.mark.journey
def test_dg_check_defs_is_clean_in_an_empty_environment(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "VIRTUAL_ENV": str(root / ".venv"),
        "PALIMPSEST_HOME": str(tmp_path / "state"),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [Path(sys.executable).parent / "dg", "check", "defs"],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All definitions loaded successfully" in done.stdout + done.stderr
    assert "arning" not in done.stdout + done.stderr
    listed = subprocess.run(
        [Path(sys.executable).parent / "dg", "list", "components", "--json"],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert '"pipelines.components.AuditedModel"' in listed.stdout and "arning" not in listed.stderr


def test_a_scaffolded_subject_loads_as_it_is(tmp_path: Path) -> None:
    target = tmp_path / "subjects" / "mine"
    target.mkdir(parents=True)
    request = dg.ScaffoldRequest(
        type_name="pipelines.components.AuditedModel",
        target_path=target,
        scaffold_format="yaml",
        project_root=tmp_path,
        append=False,
        params=None,
    )
    AuditedModelScaffolder().scaffold(request)
    plan = load_subject("mine", tmp_path)
    assert plan.scores and plan.attacks and subject_stages(plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"name": "supervised", "config": {"lr": -1.0}}}, "lr"),
        ({"scores": ["no_such_score"]}, "no_such_score"),
        ({"splits": [{"name": "random", "method": "no_such_curator"}]}, "no_such_curator"),
        ({"attacks": [{"name": "loss", "config": {"no_such_field": 1}}]}, "no_such_field"),
    ],
)
def test_a_bad_plan_is_refused_before_any_work(small: Subject, change: dict[str, object], message: str) -> None:
    from contracts.digests import plain

    with pytest.raises((ConfigError, UnknownName), match=message):
        subject_definitions(Subject.from_mapping({**plain(small), **change}))


def test_a_name_is_declared_once(tmp_path: Path, small: Subject) -> None:
    path = write_subject(small, tmp_path, comment="a test")
    assert load_subject("small", tmp_path) == small
    assert attributes_of(path)["subject"] == "small"
    with pytest.raises(ConfigError, match="exists already"):
        write_subject(small, tmp_path, comment="again")
    (tmp_path / "subjects" / "digits").mkdir()
    (tmp_path / "subjects" / "digits" / "defs.yaml").write_text(path.read_text())
    with pytest.raises(ConfigError, match="declared twice"):
        subject_files(tmp_path)


def test_quick_is_smaller_and_has_its_own_digest(tmp_path: Path) -> None:
    plan = load_subject("digits", tmp_path)
    quick = quick_plan(plan)
    assert quick.ensemble.num_models < plan.ensemble.num_models and quick.digest() != plan.digest()
