"""The report of a past audit is made again from ledger, tables and artefacts: the same byte for byte."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import erasure_world as world
import pytest
from erasure_world import Here
from typer.testing import CliRunner

from assets import Workspace, subject_stages
from assets.reports import rebuild
from assets.stage import Stage
from contracts.errors import Erased, IntegrityError, NotReady
from contracts.subject import Subject
from pipelines.cli.app import app
from warehouse import Head

pytestmark = pytest.mark.journey


@pytest.fixture
def past(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Workspace, Subject]:
    """The state of ``erasure_world`` some time later: other entries stand in the ledger behind those of its reports."""
    home = Path(shutil.copytree(finished / "state", tmp_path / "state"))
    monkeypatch.setenv("PALIMPSEST_HOME", str(home))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    workspace = Workspace(home, launcher=Here())
    workspace.warehouse.ledger.append("note", {"later": True})
    workspace.warehouse.requests.note("r1", "a call to the person")
    return workspace, world.plan_of(finished)


def report_of(plan: Subject, request: str | None) -> Stage:
    (found,) = [s for s in subject_stages(plan) if s.report is not None and s.per_request == (request is not None)]
    return found


@pytest.mark.promise("E7")
@pytest.mark.parametrize("request_id", [None, "r1"], ids=["of a subject", "of a request"])
def test_a_past_report_is_made_again_byte_for_byte(past: tuple[Workspace, Subject], request_id: str | None) -> None:
    workspace, plan = past
    w, stage = workspace.warehouse, report_of(plan, request_id)
    name = f"{stage.asset(request_id)}.json"
    stored, head = w.artifacts.load_bytes(name), w.ledger.head()
    facts = json.loads(stored)
    made = rebuild(stage, workspace, request=request_id)
    assert made.differs == () and made.text.encode() == stored
    assert w.ledger.head() == head and w.artifacts.load_bytes(name) == stored, "nothing was written"
    named = Head.parse(facts["reproduce"]["ledger_head"])
    assert named.seq < head.seq and w.ledger.before(stage.asset(request_id), request=request_id) == named
    assert (facts["events"] is None) == (request_id is None), "later events are not in it"


@pytest.mark.promise("E7")
def test_it_is_made_of_what_is_stored_and_of_nothing_else(past: tuple[Workspace, Subject]) -> None:
    """Another row, another array: another report, or none."""
    from contracts.schema import FINDINGS

    workspace, plan = past
    w, stage = workspace.warehouse, report_of(plan, None)
    upstream = {dep.path[1]: dep for dep in stage.deps}
    with w.writing(_Raw) as t:  # past the pipeline: neither ledger nor completions know
        t.con.execute("UPDATE audits.findings SET sentence = 'all is well' WHERE subject = 'mine'")
    made = rebuild(stage, workspace)
    assert "findings" in made.differs and w.read(FINDINGS, subject="mine")["sentence"].unique().to_list() != []
    target = w.artifacts.describe(f"{upstream['target'].asset(None)}/weights")
    target.path.write_bytes(target.path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(NotReady, match=r"cannot be made again as it was: mine/models/target: .*damaged"):
        rebuild(stage, workspace)


@pytest.mark.promise("E7")
def test_what_was_replaced_erased_or_damaged_since_is_refused_by_name(
    past: tuple[Workspace, Subject], erased_once: tuple[Path, Any, Any]
) -> None:
    workspace, plan = past
    w = workspace.warehouse
    later = dataclasses.replace(plan, thresholds=dataclasses.replace(plan.thresholds, max_auc=0.9))
    with pytest.raises(NotReady, match="the plan, the data or the code are other ones"):
        rebuild(report_of(later, None), workspace)
    stage = report_of(plan, None)
    (path,) = (w.home / "artifacts").glob(f"{stage.asset(None)}.json.{'[0-9a-f]' * 16}.json")
    good = path.read_bytes()
    path.write_bytes(good.replace(b"mine", b"mime", 1))
    with pytest.raises(IntegrityError, match="damaged"):
        rebuild(stage, workspace)
    with pytest.raises(Erased, match="cannot be rebuilt"):
        rebuild(stage, Workspace(erased_once[0], launcher=Here()))
    never = Workspace(w.home.parent / "never", launcher=Here())
    with pytest.raises(NotReady):
        rebuild(stage, never)
    with pytest.raises(NotReady, match="no entry of the ledger"):
        w.ledger.before("mine/none/such")


def test_the_command_says_whether_it_is_the_same(past: tuple[Workspace, Subject]) -> None:
    workspace, _ = past
    said = CliRunner().invoke(app, ["report", "mine", "--rebuild"])
    assert said.exit_code == 0 and "THE SAME" in said.output and "byte for byte" in said.output, said.output
    other = Workspace(workspace.home, launcher=Here())
    with other.warehouse.writing(_Raw) as t:
        t.con.execute("UPDATE audits.findings SET sentence = 'all is well' WHERE subject = 'mine'")
    said = CliRunner().invoke(app, ["report", "mine", "--rebuild"])
    assert said.exit_code == 1 and "differs in" in said.output and "findings" in said.output, said.output


class _Raw:
    """A transaction that tells the ledger nothing."""

    def __init__(self, con: Any, head: Head, _: Any) -> None:
        self.con, self.head = con, head
