"""Operation beside audits: missed ticks, expiring certificates, drift, alerts, lineage events, pruned logs."""

from __future__ import annotations

import email
import email.policy
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from dagster._core.events import DagsterEventType as Kind
from dagster._core.test_utils import create_run_for_test
from dagster._utils.schedules import schedule_execution_time_iterator
from recorded_state import PLAN
from typer.testing import CliRunner

from contracts import schema
from contracts.errors import ConfigError
from contracts.operations import Alerts, Drift, Mail
from contracts.subject import Subject
from pipelines.build import LATE, audit_tick
from pipelines.cli.app import app
from pipelines.operations import definitions, openlineage
from pipelines.operations.after_run import after_run
from pipelines.operations.alerts import KINDS, Alert, send
from pipelines.operations.config import operations_of
from pipelines.operations.definitions import PARTITION_TAG, SUBJECT_TAG, operations_definitions
from pipelines.operations.drift import compare, drift
from pipelines.operations.pruning import DISPENSABLE, prune
from pipelines.operations.upkeep import expiring, upkeep
from pipelines.reaper import PID
from warehouse import Warehouse, anchors, empty

pytestmark = pytest.mark.journey

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
WEEKLY = "0 6 * * 1"
PARTITION = {PARTITION_TAG: "r-1"}


@pytest.fixture
def home(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = Path(shutil.copytree(recorded, tmp_path / "home"))
    monkeypatch.setenv("PALIMPSEST_HOME", str(home))
    for name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def posted() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server on the loopback: its address, and the JSON that it was sent."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path.startswith("/broken") else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    thread.join()
    server.server_close()


# ------------------------------------------------------------- missed ticks


def _ticks(down: datetime, back: datetime) -> list[datetime]:
    """The times that Dagster asks for when it comes back: every one since it went down."""
    found = []
    for at in schedule_execution_time_iterator(down.timestamp(), WEEKLY, "UTC", ascending=True):
        if at > back:
            return found
        if at > down:
            found.append(at)
    return found


@pytest.mark.promise("D8")
@pytest.mark.parametrize("weeks", [1, 2, 5, 60])
def test_audits_that_were_missed_are_made_up_for_by_one_that_is_marked_late(weeks: int) -> None:
    back = NOW + timedelta(weeks=weeks)
    answers = [audit_tick(WEEKLY, due=due, now=back) for due in _ticks(NOW, back)]
    assert len(answers) == weeks
    runs = [a for a in answers if isinstance(a, dg.RunRequest)]
    assert len(runs) == 1 and runs[0] is answers[-1]
    due = datetime.fromisoformat(runs[0].tags[LATE])
    assert due.weekday() == 0 and due.hour == 6 and timedelta(0) < back - due < timedelta(weeks=1)


@pytest.mark.promise("D8")
def test_an_audit_on_time_is_not_late_and_one_tick_is_one_run() -> None:
    due = datetime(2026, 3, 9, 6, tzinfo=UTC)
    on_time = [audit_tick(WEEKLY, due=due, now=due + timedelta(minutes=m)) for m in (0, 1, 59)]
    assert all(isinstance(a, dg.RunRequest) and LATE not in a.tags for a in on_time)
    assert len({a.run_key for a in on_time if isinstance(a, dg.RunRequest)}) == 1
    late = audit_tick(WEEKLY, due=due, now=due + timedelta(hours=2))
    assert isinstance(late, dg.RunRequest) and late.tags[LATE] == due.isoformat()


# -------------------------------------------------------------------- drift


def _frame(ids: np.ndarray, values: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({"example_id": ids, "value": values})


def test_only_what_moved_is_an_alarm_and_only_the_same_examples_are_compared() -> None:
    rng = np.random.default_rng(5)
    ids, own = np.arange(400), rng.normal(size=400)
    before = {name: _frame(ids, own) for name in ("same", "noise", "far", "little")}
    after = {
        "same": _frame(ids[::-1].copy(), own[::-1].copy()),
        "noise": _frame(ids, own + 0.02 * rng.normal(size=400)),
        "far": _frame(ids[100:], own[100:] + 0.6),
        "little": _frame(ids, own + 0.05),
        "new": _frame(ids, own),
    }
    rows = {row["score"]: row for row in compare(before, after, Drift(), seed=0).iter_rows(named=True)}
    assert [name for name, row in rows.items() if row["moved"]] == ["far"]
    assert (rows["far"]["num_examples"], rows["far"]["num_others"]) == (300, 100)
    assert rows["same"]["distance"] == 0 and rows["same"]["p_value"] == 1
    assert rows["little"]["p_holm"] <= 0.01 and rows["little"]["distance"] < 0.1, "found, and too small for an alarm"
    assert rows["new"]["distance"] is None and not rows["new"]["moved"]


def test_unmoved_scores_raise_no_alarm_however_many_there_are() -> None:
    """Holm: 40 scores of 40 examples, whose distance by chance alone is beyond the smallest of an alarm."""
    rng = np.random.default_rng(2)
    ids, alarms, uncorrected = np.arange(40), 0, 0
    for seed in range(5):
        pairs = {str(i): rng.normal(size=(2, 40)) for i in range(40)}
        before = {n: _frame(ids, p[0]) for n, p in pairs.items()}
        after = {n: _frame(ids, p[1]) for n, p in pairs.items()}
        rows = compare(before, after, Drift(alpha=0.05), seed=seed)
        alarms += int(rows["moved"].any())
        uncorrected += int(((rows["p_value"] <= 0.05) & (rows["distance"] >= 0.1)).any())
    assert alarms <= 2 and uncorrected >= 3


def test_a_score_that_moves_between_two_audits_is_recorded_and_the_next_audit_starts_from_it(home: Path) -> None:
    w, plan = Warehouse.open(home), Subject.from_mapping(PLAN)
    first = drift(w, plan, Drift(), run_id="a")
    assert first["distance"].null_count() == first.height >= 3 and "attack:loss" in first["score"].to_list()
    head = w.ledger.head()
    assert drift(w, plan, Drift(), run_id="a")["moved"].any() is False
    stored = w.read(schema.BASELINE, subject="wine", partition={"score": "el2n"})
    shifted = stored.select("example_id", value=pl.col("value") + 5.0)
    common = {"subject": "wine", "run_id": "b", "config_digest": plan.digest()}
    w.replace(schema.BASELINE, shifted, partition={"score": "el2n"}, **common)
    moved = drift(w, plan, Drift(), run_id="b").filter("moved")
    assert moved["score"].to_list() == ["el2n"] and moved["distance"].to_list() == [1.0]
    assert w.read(schema.DRIFT, subject="wine").filter("moved")["score"].to_list() == ["el2n"]
    assert not drift(w, plan, Drift(), run_id="c")["moved"].any(), "the moved values are the baseline now"
    other = Subject.from_mapping({**PLAN, "seed": 7})
    assert drift(w, other, Drift(), run_id="d")["distance"].null_count() == first.height, "another plan, a new baseline"
    assert w.ledger.verify().ok and w.verify_tables() == [] and w.ledger.head().seq > head.seq


# ------------------------------------------------------------------- alerts

ALERT = Alert(kind="drift", subject="wine", sentence="wine: moved since the last audit: el2n")


def test_a_webhook_is_told_kind_subject_sentence_and_time(posted: tuple[str, list[dict[str, Any]]]) -> None:
    url, got = posted
    assert send([ALERT], Alerts(webhook=url), now=NOW) == []
    assert got == [
        {
            "format": "palimpsest-alert/1",
            "kind": "drift",
            "subject": "wine",
            "sentence": ALERT.sentence,
            "at": "2026-03-04T12:00:00+00:00",
        }
    ]
    assert send([ALERT], Alerts(), now=NOW) == [] and len(got) == 1


class MailServer(threading.Thread):
    """One SMTP conversation on the loopback."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.envelope: list[str] = []
        self.data = b""

    def run(self) -> None:
        connection, _ = self.listening.accept()
        with connection, connection.makefile("rwb") as stream:

            def say(line: bytes) -> None:
                stream.write(line + b"\r\n")
                stream.flush()

            say(b"220 test")
            while line := stream.readline():
                word = line.split()[0].upper()
                self.envelope.append(line.decode().strip())
                if word == b"DATA":
                    say(b"354 go on")
                    while (part := stream.readline()) != b".\r\n":
                        self.data += part
                    say(b"250 taken")
                elif word == b"QUIT":
                    say(b"221 bye")
                    return
                else:
                    say(b"250 test")


def test_a_mail_goes_to_everyone_who_is_named() -> None:
    server = MailServer()
    server.start()
    mail = Mail(host="127.0.0.1", port=server.port, security="none", sender="a@here", to=("b@there", "c@there"))
    assert send([ALERT], Alerts(mail=mail), now=NOW) == []
    server.join(10)
    message = email.message_from_bytes(server.data, policy=email.policy.default)
    assert message["Subject"] == "[palimpsest] wine: drift" and message["To"] == "b@there, c@there"
    assert message.get_content().strip() == ALERT.sentence
    assert [e for e in server.envelope if e.upper().startswith("RCPT")] == ["rcpt TO:<b@there>", "rcpt TO:<c@there>"]


def test_a_server_that_fails_is_said_without_what_it_answered(
    posted: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = posted
    secret = f"{url}/broken?token=s3cret"
    mail = Mail(host="127.0.0.1", port=1, security="none", sender="a@here", to=("b@there",))
    problems = send([ALERT], Alerts(webhook=secret, mail=mail, timeout_s=2), now=NOW)
    assert len(problems) == 2 and "it answered 500" in problems[0] and "s3cret" not in " ".join(problems)
    monkeypatch.delenv("PALIMPSEST_SMTP_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match="there are"):
        Alert(kind="gossip", subject="", sentence="")
    assert "run_failed" in KINDS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alerts: {webhook: ftp://x}", "http"),
        ("alerts: {mail: {host: h, sender: a@b, to: []}}", "nobody"),
        ("alerts: {mail: {host: h, sender: 'a b@c', to: [x@y]}}", "no address"),
        ("anchor: {}", "anchor"),
        ("- 1", "must hold fields"),
        ("a: [", "not readable"),
    ],
)
def test_a_wrong_configuration_names_the_file(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "operations.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says) as refused:
        operations_of(tmp_path)
    assert "operations.yaml" in str(refused.value)


# ------------------------------------------------- after a run, and once a day


def _run_of(instance: dg.DagsterInstance, **tags: str) -> str:
    run = create_run_for_test(instance, tags=tags, status=dg.DagsterRunStatus.STARTED)
    return run.run_id


def test_after_a_run_the_head_is_noted_and_people_are_told_nothing_of_anybody(
    home: Path, tmp_path: Path, posted: tuple[str, list[dict[str, Any]]]
) -> None:
    url, got = posted
    heads = tmp_path / "heads"
    (home / "operations.yaml").write_text(f"anchors: {{file: '{heads}'}}\nalerts: {{webhook: '{url}'}}\n")
    plan = Subject.from_mapping(PLAN)
    with dg.instance_for_test() as instance:
        late = _run_of(instance, **{LATE: "2026-03-02T06:00:00+00:00"})
        assert after_run(home, plan, instance=instance, run_id=late, succeeded=True) == []
        assert [one["kind"] for one in got] == ["late"] and "2026-03-02" in got[0]["sentence"]
        failed = _run_of(instance)
        after_run(home, plan, instance=instance, run_id=failed, succeeded=False, interrupted=True)
        assert len(got) == 1, "who ended it knows"
        after_run(home, plan, instance=instance, run_id=failed, succeeded=False, request="r-1")
    assert got[1]["kind"] == "run_failed" and set(got[1]) == {"format", "kind", "subject", "sentence", "at"}
    noted = anchors.heads_in(heads)
    assert noted[-1] == Warehouse.open(home).ledger.head()
    assert Warehouse.open(home).ledger.verify(anchors=noted).ok


def test_what_fails_after_a_run_is_said_and_nothing_else_fails(home: Path) -> None:
    (home / "operations.yaml").write_text("anchors: {file: /nowhere/at/all}\nalerts: {webhook: 'http://127.0.0.1:9'}\n")
    with dg.instance_for_test() as instance:
        said = after_run(home, Subject.from_mapping(PLAN), instance=instance, run_id=_run_of(instance), succeeded=True)
        assert len(said) == 2 and "anchors.file" in said[0] and "alerts.webhook" in said[1]
        (home / "operations.yaml").write_text("nonsense: 1")
        (said,) = after_run(home, Subject.from_mapping(PLAN), instance=instance, run_id="x", succeeded=True)
        assert "nonsense" in said


@pytest.mark.promise("E5")
def test_verify_compares_the_ledger_with_the_heads_that_were_noted(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "heads"
    (home / "operations.yaml").write_text(f"anchors: {{file: '{file}'}}")
    head = Warehouse.open(home).ledger.head()
    anchors.note(head, home, operations_of(home).anchors, now=NOW)
    done = CliRunner().invoke(app, ["verify"])
    assert done.exit_code == 0 and "1 heads noted" in done.output
    other = tmp_path / "other"
    other.write_text(f"{head.seq}:{'0' * 64} 2026-01-01T00:00:00+00:00\n")
    done = CliRunner().invoke(app, ["verify", "--heads", str(other)])
    assert done.exit_code == 1 and "head mismatch" in " ".join(done.output.split())


def _certificates(w: Warehouse, request: str, *expires: datetime) -> None:
    for serial, at in enumerate(expires, 1):
        row = {
            "request_id": request,
            "serial": serial,
            "method": "retrain",
            "verdict": "pass",
            "artifact": "a",
            "report_sha256": "0",
            "sha256": "0",
            "key_id": "k",
            "issued_at": NOW - timedelta(days=80),
            "expires_at": at,
        }
        frame = pl.DataFrame([row], schema=empty(schema.CERTIFICATES).schema)
        part = {"request_id": request, "serial": serial}
        w.replace(schema.CERTIFICATES, frame, partition=part, subject="wine", run_id="r", config_digest="c")


def test_certificates_that_expire_are_said_and_replaced_ones_are_not(home: Path) -> None:
    w, day = Warehouse.open(home), timedelta(days=1)
    _certificates(w, "gone", NOW - day)
    _certificates(w, "soon", NOW + 5 * day)
    _certificates(w, "renewed", NOW - day, NOW + 60 * day)
    _certificates(w, "shortened", NOW + 60 * day, NOW + 3 * day)
    _certificates(w, "far", NOW + 15 * day)
    said = [alert.sentence for alert in expiring(w, "wine", now=NOW, warn_days=14)]
    assert [s.split(" of forget request ")[1].split()[0] for s in said] == ["gone", "shortened", "soon"]
    assert "expired on 2026-03-03" in said[0] and "expires on 2026-03-07" in said[1]


def test_the_advice_for_an_expired_certificate_is_a_command_that_is_not_refused(home: Path) -> None:
    """Run again while the request is under way; a new date alone once it is closed, or held."""
    w = Warehouse.open(home)
    _certificates(w, "r-1", NOW - timedelta(days=1))

    def advice() -> str:
        return expiring(w, "wine", now=NOW, warn_days=14)[0].sentence.partition(": ")[2]

    again = "palimpsest request run wine r-1, then palimpsest certify wine r-1"
    for state, wanted in (
        ("verified", again),
        ("scoped", again),
        ("executed", again),
        ("audited", again),
        ("on_hold", "palimpsest certify wine r-1"),
        ("verified", again),
        ("scoped", again),
        ("executed", again),
        ("audited", again),
        ("closed", "palimpsest certify wine r-1"),
    ):
        w.requests.advance("r-1", state)
        assert advice() == wanted, state


def test_upkeep_says_what_is_due_prunes_and_is_quiet_when_nothing_is(home: Path) -> None:
    from pipelines.subjects import write_subject

    write_subject(Subject.from_mapping(PLAN), home, comment="a test")
    _certificates(Warehouse.open(home), "soon", NOW + timedelta(days=2))
    with dg.instance_for_test() as instance:
        said = upkeep(home, instance, now=NOW)
        assert len([s for s in said if "certificate 1 of forget request soon" in s]) == 1
        assert len([s for s in said if "forget request r-1" in s and "was due" in s]) == 1
        assert not [s for s in upkeep(home, instance, now=datetime(2026, 1, 2, tzinfo=UTC)) if "r-1" in s]


# ----------------------------------------------------------------- pruning


@dg.asset(check_specs=[dg.AssetCheckSpec("fine", asset="thing")])
def thing(context) -> dg.MaterializeResult:  # type: ignore[no-untyped-def, type-arg]
    context.log.info("a line that was logged: canary-4711")
    return dg.MaterializeResult(
        metadata={"ledger_head": dg.MetadataValue.json({"seq": 3, "hash": "ab"})},
        check_results=[dg.AssetCheckResult(check_name="fine", passed=True)],
    )


@pytest.mark.promise("G7")
def test_old_logs_lose_what_only_helped_while_they_ran(tmp_path: Path) -> None:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        runs = [dg.materialize([thing], instance=instance).run_id for _ in range(2)]
        waiting = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED).run_id
        instance.report_engine_event("under way", instance.get_run_by_id(waiting))
        before = {run: [e.dagster_event_type for e in instance.all_logs(run)] for run in (*runs, waiting)}
        size = sum(p.stat().st_size for p in tmp_path.rglob("*.db"))
        assert prune(instance, before=datetime.now(UTC) - timedelta(days=1)).events == 0, "they are young"
        pruned = prune(instance, before=datetime.now(UTC) + timedelta(minutes=1))
        after = {run: [e.dagster_event_type for e in instance.all_logs(run)] for run in (*runs, waiting)}
        assert pruned.runs == 2 and pruned.events == sum(len(before[r]) - len(after[r]) for r in runs) > 20
        assert after[waiting] == before[waiting], "a run that is under way is left alone"
        for run in runs:
            assert after[run] == [kind for kind in before[run] if kind is not None and kind not in DISPENSABLE]
            assert {Kind.ASSET_MATERIALIZATION, Kind.ASSET_CHECK_EVALUATION, Kind.RUN_SUCCESS} <= set(after[run])
        event = instance.get_latest_materialization_event(dg.AssetKey("thing"))
        assert event is not None and event.asset_materialization is not None
        assert event.asset_materialization.metadata["ledger_head"].value == {"seq": 3, "hash": "ab"}
        assert instance.get_run_by_id(runs[0]).status == dg.DagsterRunStatus.SUCCESS
        assert prune(instance, before=datetime.now(UTC) + timedelta(minutes=1)).events == 0
        assert sum(p.stat().st_size for p in tmp_path.rglob("*.db")) < size
        logs = [p for p in tmp_path.rglob("*") if p.is_file() and b"canary-4711" in p.read_bytes()]
        assert logs == [], "what was logged is in no file any more"


# --------------------------------------------------------------- openlineage


def _staged(instance: dg.DagsterInstance, fails: bool = False) -> str:
    columns = dg.TableSchema(columns=[dg.TableColumn("example_id", "int64"), dg.TableColumn("el2n", "float64")])

    @dg.asset(key=["wine", "scores", "el2n"])
    def stage() -> dg.MaterializeResult:  # type: ignore[type-arg]
        if fails:
            raise ValueError("the label of example 12 is 'canary-4711'")
        return dg.MaterializeResult(
            metadata={"dagster/row_count": 89, "dagster/column_schema": columns, "data_version": "abc"}
        )

    return dg.materialize([stage], instance=instance, raise_on_error=False).run_id


def test_lineage_events_name_what_was_read_and_made_and_nobody(
    home: Path, posted: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, got = posted
    w = Warehouse.open(home)
    with dg.instance_for_test() as instance:
        run = _staged(instance)
        assert not openlineage.configured()
        monkeypatch.setenv("OPENLINEAGE_URL", url)
        assert openlineage.configured()
        for _ in range(2):
            assert openlineage.emit(instance, w, run, subject="wine", request=None) == []
        failed = _staged(instance, fails=True)
        openlineage.emit(instance, w, failed, subject="wine", request=None)
        monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
        assert not openlineage.configured()
    assert [e["eventType"] for e in got] == ["START", "COMPLETE"] * 2 + ["START", "FAIL"]
    start, complete = got[:2]
    assert {e["run"]["runId"] for e in got[:4]} == {start["run"]["runId"]} != {got[4]["run"]["runId"]}
    assert start["job"] | {"facets": None} == {"namespace": "palimpsest", "name": "wine.scores.el2n", "facets": None}
    edges = w.read(schema.EDGES, subject="wine").filter(pl.col("child") == "wine/scores/el2n")["parent"].to_list()
    assert [i["name"] for i in complete["inputs"]] == sorted(edges) and len(edges) >= 2
    (output,) = complete["outputs"]
    assert output["name"] == "wine/scores/el2n" and output["outputFacets"]["outputStatistics"]["rowCount"] == 89
    assert [f["name"] for f in output["facets"]["schema"]["fields"]] == ["example_id", "el2n"]
    assert output["facets"]["version"]["datasetVersion"] == "abc"
    assert got[5]["outputs"] == [] and "canary" not in json.dumps(got) and start["eventTime"] <= complete["eventTime"]


def test_a_lineage_server_that_is_gone_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "http")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__URL", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__RETRY__TOTAL", "0")
    with dg.instance_for_test() as instance:
        (said,) = openlineage.emit(instance, Warehouse.open(home), _staged(instance), subject="wine", request=None)
    assert "took 0 events" in said


# ----------------------------------------------------------------- in Dagster


def test_what_operation_adds_to_the_code_location_is_there_once_and_runs_by_itself() -> None:
    found = operations_definitions()
    assert [job.name for job in found.jobs or []] == ["upkeep"]
    assert sorted(s.name for s in found.sensors or []) == ["after_failure", "after_run", "reaper"]
    assert [s.cron_schedule for s in found.schedules or []] == ["0 5 * * *"]
    assert {s.default_status.value for s in (*(found.sensors or []), *(found.schedules or []))} == {"RUNNING"}


def test_a_daemons_run_is_followed_once_and_one_of_the_command_line_is_not(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.subjects import write_subject

    write_subject(Subject.from_mapping(PLAN), home, comment="a test")
    followed: list[tuple[str, bool, str | None]] = []

    def noted(_: Path, plan: Subject, *, succeeded: bool, request: str | None, **__: object) -> list[str]:
        followed.append((plan.subject, succeeded, request))
        return ["a sentence"]

    monkeypatch.setattr("pipelines.operations.after_run.after_run", noted)
    lines: list[str] = []
    with dg.instance_for_test() as instance:
        for tags in ({}, {SUBJECT_TAG: "wine", PID: "1"}, {SUBJECT_TAG: "wine"}, {SUBJECT_TAG: "wine", **PARTITION}):
            run = create_run_for_test(instance, tags=tags)
            context = SimpleNamespace(dagster_run=run, instance=instance, log=SimpleNamespace(warning=lines.append))
            definitions._follow(context, succeeded=not PARTITION.items() <= tags.items())  # type: ignore[arg-type]
    assert followed == [("wine", True, None), ("wine", False, "r-1")] and lines == ["a sentence"] * 2


def test_the_reaper_says_what_it_ended(home: Path, posted: tuple[str, list[dict[str, Any]]]) -> None:
    url, got = posted
    (home / "operations.yaml").write_text(f"alerts: {{webhook: '{url}'}}")
    with dg.instance_for_test() as instance:
        context = dg.build_sensor_context(instance=instance)
        assert "alive" in str(definitions.reaper_sensor(context))
        dead = {PID: "1", "palimpsest/started": "0", "palimpsest/boot_id": "another boot"}
        run = create_run_for_test(instance, tags=dead, status=dg.DagsterRunStatus.STARTED)
        assert run.run_id[:8] in str(definitions.reaper_sensor(context))
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
    assert [one["kind"] for one in got] == ["reaped"]
