"""Erasure: the cascade is complete, physical, safe to kill, and leaves others alone."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import zlib
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import erasure_world as world
import marker_search
import numpy as np
import polars as pl
import pytest
from erasure_world import MARKER, Here
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from assets import Workspace
from assets.certificates import certify
from contracts.erasure import DONE, OPEN, Action, Item
from contracts.errors import ConfigError, DataError, Erased, IntegrityError, InvalidInput, StateError
from contracts.requests import ForgetRequest, RequestState
from pipelines import dagster_records, erasure
from pipelines.cli.app import app
from pipelines.cli.imports import store
from pipelines.erasure_plan import Beside, closure_of, plan
from pipelines.operations.upkeep import expiring
from pipelines.subjects import write_subject
from warehouse import Warehouse, faults, sqlite, verify
from warehouse.erasure import Found, Held, reached

pytestmark = pytest.mark.journey

ROOT = Path(__file__).resolve().parents[2]
POINTS = [p for p in (ROOT / "tests/chaos/points.txt").read_text().split() if p.startswith("erasure.")]
SLOW = pytest.mark.slow
REST = [point for point in POINTS if point != "erasure.before_swap"]


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copied = Path(shutil.copytree(finished / "state", tmp_path / "state"))
    monkeypatch.setenv("PALIMPSEST_HOME", str(copied))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return copied


@pytest.fixture
def erased(
    erased_once: tuple[Path, list[Item], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[Item], dict[str, Any]]:
    monkeypatch.setenv("PALIMPSEST_HOME", str(erased_once[0]))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return erased_once


# --------------------------------------------------------------------------------- E1: gone means gone


def holding(home: Path) -> list[str]:
    """Every file under a folder in whose bytes, or in what it decodes to, the marker is."""
    return marker_search.holding(home, MARKER)


@pytest.mark.promise("E1")
def test_nothing_of_the_marker_is_left_in_any_byte_or_decoded_file(erased: tuple[Path, Any, Any]) -> None:
    home, _, _ = erased
    assert holding(home) == []
    assert (home.parent / "outside.csv").read_text() == MARKER, "what lies outside is named, and not touched"
    open_ = erasures(home).filter(pl.col("state") == OPEN)
    assert str(home.parent / "outside.csv") in open_["place"].to_list() and "source" in open_["kind"].to_list()
    assert verify.verify(Warehouse.existing(home)).whole


def test_the_search_finds_the_marker_in_every_kind_of_file(tmp_path: Path) -> None:
    """A search that finds nothing anywhere proves nothing."""
    pl.DataFrame({"a": [MARKER]}).write_parquet(tmp_path / "a.parquet", compression="zstd")
    (tmp_path / "b.gz").write_bytes(gzip.compress(MARKER.encode()))
    np.savez_compressed(tmp_path / "c.npz", x=np.frombuffer(MARKER.encode(), np.uint8))
    with closing(sqlite3.connect(tmp_path / "d.db")) as con, con:
        con.execute("CREATE TABLE t AS SELECT ? AS x", [zlib.compress(MARKER.encode())])
    with duckdb.connect(str(tmp_path / "e.duckdb")) as duck:
        duck.execute("CREATE TABLE t AS SELECT ? || i AS x FROM range(9) r(i)", [MARKER])
    assert len(holding(tmp_path)) == 5


@pytest.mark.parametrize(
    ("where", "spoiled"),
    [
        ("warehouse/palimpsest.duckdb", lambda m: m.setattr(Warehouse, "compact", Warehouse.publish)),
        pytest.param("history/", lambda m: m.setattr(dagster_records, "remove", lambda *_: None), marks=SLOW),
        pytest.param("jobs/", lambda m: m.setattr(dagster_records, "remove_path", lambda path: None), marks=SLOW),
    ],
    ids=["no new database", "runs stay", "folders stay"],
)
def test_without_one_of_its_steps_the_marker_is_found(
    home: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, where: str, spoiled: Any
) -> None:
    spoiled(monkeypatch)
    workspace = Workspace(home, launcher=Here())
    erasure.execute(world.plan_of(finished), workspace, "r1")
    assert any(found.startswith(where) for found in holding(home)), where


# --------------------------------------------------------------------------------- E2: the cascade is complete


@settings(max_examples=25, deadline=None)
@given(
    edges=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=24),
    members=st.lists(st.frozensets(st.integers(0, 5), max_size=4), min_size=9, max_size=9),
    asked=st.frozensets(st.integers(0, 5), min_size=1, max_size=3),
)
@pytest.mark.promise("E2")
def test_the_closure_of_a_graph_is_what_is_acted_on(
    edges: list[tuple[int, int]], members: list[frozenset[int]], asked: frozenset[int]
) -> None:
    """Against a naive walk; ``parent < child`` as assets are made in order."""
    parents = {(a, b) for a, b in edges if a < b}
    expected = {k for k in range(9) if members[k] & asked}
    for child in range(9):
        if any(a in expected for a, b in parents if b == child):
            expected.add(child)
    names = [f"mine/stage/n{k}" for k in range(9)]
    with duckdb.connect() as con:
        con.execute("CREATE SCHEMA lineage; CREATE TABLE lineage.edges (subject TEXT, parent TEXT, child TEXT)")
        con.execute("CREATE TABLE lineage.members (subject TEXT, asset TEXT, set_id TEXT)")
        con.execute("CREATE TABLE lineage.sets (subject TEXT, set_id TEXT, first_id BIGINT, last_id BIGINT)")
        for a, b in parents:
            con.execute("INSERT INTO lineage.edges VALUES ('mine', ?, ?)", [names[a], names[b]])
        for k, ids in enumerate(members):
            con.execute("INSERT INTO lineage.members VALUES ('mine', ?, ?), ('other', ?, ?)", [names[k], str(k)] * 2)
            for i in ids:
                con.execute("INSERT INTO lineage.sets VALUES ('mine', ?, ?, ?)", [str(k), i, i])
        found = reached(con, "mine", np.array(sorted(asked)))
    assert found == {names[k]: len(members[k] & asked) for k in expected}
    items = plan("r1", Found(subject="mine", ids=np.array(sorted(asked)), assets=found), Beside(source="s"))
    assert closure_of(items) == {names[k] for k in expected}


def test_what_is_shown_is_what_is_done_and_each_item_has_its_proof(erased: tuple[Path, list[Item], Any]) -> None:
    home, shown, _ = erased
    journal = erasures(home)
    assert [item for item in map(erasure.item_of, journal.iter_rows(named=True))] == shown
    assert set(journal["state"]) == {DONE, OPEN}
    assert set(journal.filter(pl.col("state") == OPEN)["action"]) == {"yours"}
    assert journal.filter((pl.col("state") == DONE) & (pl.col("proof") == "")).height == 0
    assert journal.filter(pl.col("kind") == "lineage").height > 20


def erasures(home: Path) -> pl.DataFrame:
    return Warehouse.open(home).erasures.journal("r1")


# --------------------------------------------------------------------------------- E3: killed, it goes on


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def state(home: Path) -> Any:
    """Digest of the tables and artefacts, for comparing two ways to the same end."""
    w = Warehouse.open(home)
    tables = {name: frame.drop("run_id", strict=False) for name, frame in world.tables_of(w).items()}
    return {name: frame.to_dicts() for name, frame in tables.items()}, world.artifacts_of(w)


@pytest.mark.parametrize(
    "point",
    ["erasure.after_artifact:9", *(pytest.param(p, marks=pytest.mark.slow) for p in ("erasure.before_swap", *REST))],
)
@pytest.mark.promise("E3")
def test_killed_at_a_point_it_goes_on_to_the_same_end(
    home: Path, finished: Path, point: str, monkeypatch: pytest.MonkeyPatch, golden: Any
) -> None:
    wanted, _, nth = point.partition(":")
    passed = 0

    def struck(name: str, path: Path | None = None) -> None:
        nonlocal passed
        passed += name == wanted
        if name == wanted and passed == int(nth or 1):
            raise Killed

    from warehouse import artifacts, warehouse
    from warehouse import erasure as in_warehouse

    subject = world.plan_of(finished)
    with monkeypatch.context() as patch:
        for module in (erasure, in_warehouse, artifacts, warehouse):
            patch.setattr(module, "fault", struck)
        with pytest.raises(Killed):
            erasure.execute(subject, Workspace(home, launcher=Here()), "r1")
    workspace = Workspace(home, launcher=Here())
    assert workspace.warehouse.requests.get("r1").state is not RequestState.CLOSED
    with pytest.raises(StateError, match="can only be finished"):
        erasure.withdraw(subject, workspace, "r1")
    erasure.execute(subject, workspace, "r1")
    assert state(home) == golden and holding(home) == []
    assert verify.verify(Warehouse.existing(home)).whole


@pytest.fixture(scope="session")
def golden(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The state after an erasure that nothing disturbed."""
    copied = Path(shutil.copytree(finished / "state", tmp_path_factory.mktemp("golden") / "state"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_HOME", str(copied))
        erasure.execute(world.plan_of(finished), Workspace(copied, launcher=Here()), "r1")
        return state(copied)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.promise("E3")
@pytest.mark.parametrize("point", ["erasure.after_artifact:9", *POINTS])
def test_the_command_killed_for_good_at_every_point_goes_on_when_it_is_given_again(
    home: Path, point: str, golden: Any
) -> None:
    """SIGKILL in the process of the command, then the same command."""

    def erase(armed: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PALIMPSEST_HOME": str(home), faults.VARIABLE: armed}
        command = [sys.executable, "-P", "-m", "palimpsest", "erase", "mine", "r1", "--execute"]
        return subprocess.run(command, env=env, cwd=home.parent, timeout=300, capture_output=True, text=True)

    killed = erase(point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    w = Warehouse.open(home)
    assert w.requests.get("r1").state is not RequestState.CLOSED
    if point != "erasure.after_settle":  # where all is done, and the request only to be closed
        assert not verify.verify(Warehouse.existing(home)).whole, "until then it is said what is to be done"
    again = erase("")
    assert again.returncode == 0, again.stderr
    assert state(home) == golden and holding(home) == []
    assert verify.verify(Warehouse.existing(home)).whole


# --------------------------------------------------------------------------------- E4: others untouched


@pytest.mark.promise("E4")
def test_others_are_untouched(erased: tuple[Path, list[Item], dict[str, Any]], finished: Path) -> None:
    home, _, before = erased
    w = Warehouse.open(home)
    after = world.tables_of(w)
    ids = erasure.ids_of(w, "r1").tolist()
    assert len(ids) == 20
    for name, frame in after.items():
        other = world.of_subject(before[name], "wine")
        assert world.of_subject(frame, "wine").equals(other), f"{name} of another subject"
    for name in ("data.examples", "data.columns", "scores.el2n"):
        left = world.of_subject(before[name], "mine").filter(~pl.col("example_id").is_in(ids))
        assert world.of_subject(after[name], "mine").equals(left), f"{name}: the rows of others"
    random = pl.col("dataset_id") == "random"
    kept = before["curation.members"].filter(random, ~pl.col("example_id").is_in(ids))
    assert after["curation.members"].filter(random).equals(kept), "a drawn set loses a row, and stays as it is"
    assert not after["curation.members"].filter(pl.col("dataset_id") == "pruned").height, "a ranked one is chosen anew"
    theirs = {name: sha for name, sha in before["artifacts"].items() if name.startswith("wine/")}
    assert {name: sha for name, sha in world.artifacts_of(w).items() if name.startswith("wine/")} == theirs
    assert dagster_records.runs_of(home, "wine") and not dagster_records.runs_of(home, "mine")


# --------------------------------------------------------------------------------- what stays, and what is refused


def test_the_evidence_of_the_request_holds_no_content_and_is_certified(erased: Any, finished: Path) -> None:
    home, _, _ = erased
    w = Warehouse.open(home)
    before, _ = Warehouse.existing(finished / "state").artifacts.load("mine/request_unlearning/r1/finetune/result")
    left, _ = w.artifacts.load("mine/request_unlearning/r1/finetune/result")
    assert np.array_equal(left["reading"], before["reading"]) and len(left["forget"])
    assert not any(name[0].isdigit() for name in left), (
        "a method that is compared was started from a model that saw them"
    )
    kept, _ = w.artifacts.load("mine/request_unlearning/r1/retrain/result")
    assert any(name[0].isdigit() for name in kept), "a retraining never saw them"
    assert "logits" not in kept and "logits" not in left
    assert w.requests.get("r1").request.where == "erased" and len(w.requests.pins("r1")) == 20
    issued = certify(world.plan_of(finished), w, "r1")
    assert issued.certificate.serial == 2 and len(issued.certificate.digests["erasure"]) == 64
    result = CliRunner().invoke(app, ["verify", str(home / issued.file.path)], env={"PALIMPSEST_HOME": str(home)})
    assert result.exit_code == 0 and "GENUINE" in result.output, result.output
    said = expiring(w, "mine", now=datetime(2100, 1, 1, tzinfo=UTC), warn_days=1)
    advice = said[0].sentence.partition(": palimpsest ")[2]
    assert len(said) == 1 and advice == "certify mine r1", "what is erased is not run again"
    refused = CliRunner().invoke(app, ["request", "run", "mine", "r1"])
    assert isinstance(refused.exception, StateError)
    result = CliRunner().invoke(app, advice.split())
    assert result.exit_code == 0 and "Certificate 3 of request r1" in " ".join(result.output.split()), result.output


@pytest.mark.promise("B1")
def test_a_lost_signing_key_is_refused_and_another_is_taken_when_that_is_asked_for(home: Path, finished: Path) -> None:
    subject, w = world.plan_of(finished), Warehouse.open(home)
    issued = home / w.artifacts.describe("mine/request_certificates/r1/1.dsse.json").path
    (home / "keys" / "signing.pem").unlink()
    with pytest.raises(IntegrityError, match=r"is gone.*backup.*--new-key"):
        certify(subject, w, "r1")
    assert any("signing key" in problem.sentence for problem in verify.verify(Warehouse.existing(home)).problems)
    said = CliRunner().invoke(app, ["certify", "mine", "r1", "--new-key"])
    assert said.exit_code == 0 and "Certificate 2" in said.output, (said.output, said.exception)
    first = CliRunner().invoke(app, ["verify", str(issued)])
    assert "has taken its place" in first.output and "signature" not in first.output, "the old public key stays"
    second = home / w.artifacts.describe("mine/request_certificates/r1/2.dsse.json").path
    assert "GENUINE" in CliRunner().invoke(app, ["verify", str(second)]).output
    assert verify.verify(Warehouse.existing(home)).whole


def test_a_certificate_goes_to_a_new_folder_and_is_checked_from_there(home: Path, tmp_path: Path) -> None:
    """As the playbook prints it: certify --to FOLDER, then verify FOLDER/... --key FOLDER/..."""
    to = tmp_path / "new" / "folder"
    said = CliRunner().invoke(app, ["certify", "mine", "r1", "--to", str(to)])
    assert said.exit_code == 0, (said.output, said.exception)
    assert {path.name for path in to.iterdir()} == {"mine-r1-2.dsse.json", "signing.pub.pem"}
    key = ["--key", str(to / "signing.pub.pem")]
    assert "GENUINE" in CliRunner().invoke(app, ["verify", str(to / "mine-r1-2.dsse.json"), *key]).output
    gone = CliRunner().invoke(app, ["verify", str(to / "mine-r1-9.dsse.json"), *key]).exception
    assert isinstance(gone, InvalidInput) and "mine-r1-9.dsse.json, the certificate to be checked" in str(gone)
    a_file = CliRunner().invoke(app, ["certify", "mine", "r1", "--to", str(to / "signing.pub.pem")]).exception
    assert isinstance(a_file, ConfigError) and "signing.pub.pem is no folder" in str(a_file)


def test_what_cannot_be_rebuilt_is_refused_by_name(erased: Any) -> None:
    home, _, _ = erased
    store = Warehouse.existing(home).artifacts
    for name in ("mine/models/target/weights", "mine/models/target/retained"):
        with pytest.raises(Erased, match=rf"{name}.* was erased for forget request r1 on 20.*cannot be rebuilt"):
            store.load(name)
    with pytest.raises(Erased, match=r"audit\.html"):
        store.load_bytes("mine/reports/audit.html")


def test_a_source_that_still_holds_them_is_refused_and_without_them_is_loaded(erased: Any, finished: Path) -> None:
    home, _, _ = erased
    subject, workspace = world.plan_of(finished), Workspace(home, launcher=Here())
    ids = erasure.ids_of(workspace.warehouse, "r1").tolist()
    with pytest.raises(DataError, match="20 of request r1"):
        workspace.examples(subject)
    import dataclasses

    data = workspace.examples(dataclasses.replace(subject, without=tuple(ids)))
    assert len(data) == 220 and not np.isin(ids, data.example_id).any()


def test_nothing_is_erased_before_it_is_audited_or_closed_before_it_is_erased(home: Path, finished: Path) -> None:
    subject, workspace = world.plan_of(finished), Workspace(home, launcher=Here())
    w = workspace.warehouse
    assert w.requests.get("r1").state is RequestState.AUDITED
    w.requests.add(ForgetRequest(request_id="r2", subject="mine", selector="class", class_name="odd", **world.WHEN))
    with pytest.raises(StateError, match="first the audit, then the erasure"):
        erasure.preview(subject, workspace, "r2")
    with pytest.raises(StateError, match="palimpsest request verify mine r2"):
        erasure.preview(subject, workspace, "r2")
    head = w.ledger.head()
    erasure.preview(subject, workspace, "r1")
    assert w.ledger.head() == head, "a plan changes nothing"
    w.requests.advance("r2", RequestState.REFUSED, note="a test")
    with pytest.raises(StateError, match="is refused: nothing is erased for it"):
        erasure.preview(subject, workspace, "r2")
    closing = ["request", "close", "mine", "r1", "--by", "Ann", "--why", "enough"]
    result = CliRunner().invoke(app, closing)
    assert isinstance(result.exception, StateError) and "erase mine r1 --execute" in str(result.exception)


def test_a_withdrawn_request_leaves_everything_but_the_register_as_it_was(
    home: Path, finished: Path, first: tuple[dict[str, pl.DataFrame], dict[str, str]]
) -> None:
    subject, workspace = world.plan_of(finished), Workspace(home, launcher=Here())
    erasure.withdraw(subject, workspace, "r1")
    tables, artifacts = first
    after = world.tables_of(workspace.warehouse)
    assert {n: f for n, f in after.items() if not f.equals(tables[n])} == {}
    assert world.artifacts_of(workspace.warehouse) == artifacts
    workspace.warehouse.publish()
    assert verify.verify(Warehouse.existing(home)).whole


@pytest.fixture
def first(finished: Path) -> tuple[dict[str, pl.DataFrame], dict[str, str]]:
    """Tables and artefacts as they were before the request was run: what the builder noted."""
    return world.NOTED[finished]


# --------------------------------------------------------------------------------- the planner alone


def test_what_models_say_of_every_token_of_theirs_goes_with_them() -> None:
    """Log-probabilities of a text's tokens are near to the text itself; readings of it are not."""
    own, loss = (f"mine/request_audits/r1/{name}" for name in ("token_readings", "loss"))
    found = Found(
        subject="mine",
        ids=np.array([5]),
        assets={own: 1, loss: 1},
        artifacts={own: [f"{own}/result"], loss: [f"{loss}/result"]},
    )
    items = {item.where: item.action for item in plan("r1", found, Beside(source="s")) if item.kind == "artifact"}
    assert items[f"{own}/result"] is Action.REMOVE and items[f"{loss}/result"] is Action.KEEP


def test_what_another_request_says_of_them_leaves_and_its_own_evidence_stays() -> None:
    """Earlier forgetting is measured again from its readings, which hold no content."""
    asset = "mine/request_unlearning/r0/finetune"
    found = Found(
        subject="mine",
        ids=np.array([5]),
        assets={asset: 1, "mine/request_audits/r0/loss": 0},
        held=[
            Held(
                table="audits.attack_scores",
                part={"attack": "loss"},
                by_example=True,
                rows=9,
                num=1,
                asset="mine/request_audits/r0/loss",
            )
        ],
        artifacts={asset: [f"{asset}/result"]},
    )
    items = {item.where: item for item in plan("r1", found, Beside(source="s")) if item.kind in ("artifact", "table")}
    assert items["audits.attack_scores"].action is Action.CUT
    note = items[f"{asset}/result"].note
    assert note == {"how": "readings", "weights": False, "rows": True}
    arrays = {
        "0.weight": np.ones(3),
        "example_id": np.array([3, 5, 7]),
        "reading": np.arange(12.0).reshape(1, 3, 4),
        "logits": np.ones((1, 3, 2)),
        "forget": np.array([3]),
        "non_member": np.ones((1, 1), bool),
    }
    left = erasure._readings(arrays, np.array([5]), note)
    assert left["example_id"].tolist() == [3, 7] and left["reading"].shape == (1, 2, 4)
    assert left["reading"][0, 0].tolist() == [0, 1, 2, 3] and set(left) == {
        "example_id",
        "reading",
        "forget",
        "non_member",
    }
    own = erasure._readings(arrays, np.array([3]), {"weights": True, "rows": False})
    assert "0.weight" in own and own["reading"].shape == (1, 3, 4)


def test_what_a_recipe_retains_is_named_and_goes() -> None:
    found = Found(
        subject="mine",
        ids=np.array([5]),
        assets={"mine/models/target": 1},
        artifacts={"mine/models/target": ["mine/models/target/retained"]},
    )
    [item] = [i for i in plan("r1", found, Beside(source="s", retains=("replay buffer",))) if i.kind == "artifact"]
    assert item.action is Action.REMOVE and "retains besides the weights (replay buffer)" in item.why


def test_an_erasure_takes_an_imported_model_out_of_the_state(home: Path, finished: Path) -> None:
    """A copy of weights that saw the examples: it goes as the models do that were trained here."""
    for name in ("net", "loose"):
        store({"weight": np.full((2, 3), 1.0, np.float32)}, name, file=Path("net.pt"), home=home)
    subject = world.plan_of(finished)
    subject = dataclasses.replace(subject, model=dataclasses.replace(subject.model, checkpoint="imported/net"))
    write_subject(subject, home, comment="a test", replace=True)
    workspace = Workspace(home, launcher=Here())
    shown = {item.where: item.action for item in erasure.preview(subject, workspace, "r1")}
    assert shown["imported/net"] is Action.REMOVE and shown["imported/loose"] is Action.YOURS
    erasure.execute(subject, workspace, "r1")
    assert not list((home / "artifacts" / "imported").glob("net.*.safetensors"))
    with pytest.raises(Erased, match=r"erased for forget request r1.*given model of mine.*import-checkpoint FILE"):
        workspace.checkpoint(subject)
    assert verify.verify(Warehouse.existing(home)).whole


def test_items_go_in_an_order_in_which_nothing_can_be_served_first() -> None:
    found = Found(
        subject="mine",
        ids=np.array([5]),
        assets={"mine/models/target": 1},
        artifacts={"mine/models/target": ["mine/models/target/weights"]},
    )
    kinds = [
        item.kind for item in plan("r1", found, Beside(source="s", jobs=["jobs/a"], runs=["r"], databases=["x.db"]))
    ]
    assert kinds.index("job") < kinds.index("artifact") < kinds.index("lineage") < kinds.index("dagster")
    assert kinds.index("dagster") < kinds.index("database") < kinds.index("source")


def test_the_plan_as_json_and_a_command_that_asks_for_one_of_two(home: Path) -> None:
    result = CliRunner().invoke(app, ["erase", "mine", "r1", "--plan", "--json"])
    items = json.loads(result.stdout[result.stdout.index("[") :])
    assert {"cut", "empty", "remove", "rewrite", "keep", "yours"} == {item["action"] for item in items}
    assert CliRunner().invoke(app, ["erase", "mine", "r1"]).exception is not None


def test_a_dry_run_says_what_a_run_would_do_and_changes_nothing(home: Path) -> None:
    w = Warehouse.open(home)
    w.requests.add(ForgetRequest(request_id="r2", subject="mine", selector="ids", ids=(1,), **world.WHEN))
    w.requests.advance("r2", RequestState.VERIFIED, note="a test")
    head = w.ledger.head()
    said = CliRunner().invoke(app, ["request", "run", "mine", "r2", "--dry-run"])
    assert said.exit_code == 0, said.output
    named = [line.strip() for line in said.output.splitlines() if line.startswith("  mine/")]
    assert "mine/request_unlearning/r2/retrain" in named, "what is to be trained"
    assert all("/r2/" in asset for asset in named), "the audit is current"
    assert w.ledger.head() == head


def test_the_events_of_a_subject_of_almost_the_same_name_stay(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    with closing(sqlite3.connect(path)) as con, con:
        con.execute("CREATE TABLE asset_keys (asset_key TEXT)")
        keys = ['["a_b", "scores"]', '["axb", "scores"]', '["a_bc", "scores"]']
        con.executemany("INSERT INTO asset_keys VALUES (?)", [(key,) for key in keys])
    sqlite.forget_assets(path, "a_b")
    with closing(sqlite3.connect(path)) as con:
        assert [row[0] for row in con.execute("SELECT asset_key FROM asset_keys")] == keys[1:]


def test_deleted_rows_of_a_sqlite_file_are_gone_once_it_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    with closing(sqlite3.connect(path)) as con:
        con.isolation_level = None
        con.execute("PRAGMA secure_delete = OFF")
        con.execute("CREATE TABLE t AS SELECT ? AS x", [MARKER * 9])
        con.execute("DELETE FROM t")
    assert MARKER.encode() in path.read_bytes(), "or there is nothing to show"
    sqlite.rewrite(path)
    assert MARKER.encode() not in path.read_bytes()
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN EXCLUSIVE")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(StateError, match="stop what has it open"):
            patch.setattr(sqlite, "_BUSY_MS", 10)
            sqlite.rewrite(path)
