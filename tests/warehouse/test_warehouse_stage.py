"""Idempotence of stages, requests, lineage and the salt."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from warehouse_helpers import COMMON, EL2N, score_frame

from contracts.errors import ConfigError, IntegrityError, InvalidInput, NotReady, StateError, UnknownName
from contracts.requests import TRANSITIONS, ForgetRequest, RequestState
from contracts.schema import ARTIFACTS, EDGES, EXAMPLES, LINEAGE_MEMBERS, LINEAGE_SETS, MEMBERS, REQUEST_EVENTS
from warehouse import Warehouse, empty
from warehouse.lineage import runs_of
from warehouse.verify import verify

# ------------------------------------------------------------------ stages


def run_stage(w: Warehouse, key: str, ids: list[int], asset: str = "digits/scores/el2n") -> dict[str, Any]:
    """A stage as the assets run it: artefacts, tables, lineage, then the record, then publish."""
    done = w.completed(asset, key)
    if done is not None:
        return done
    artifact = w.artifacts.save(f"{asset}/result", {"ids": np.array(ids)}, {})
    receipt = w.replace(EL2N, score_frame(ids), **COMMON)
    w.record_lineage(
        asset, parents=["digits/data/examples"], artifacts=[artifact, receipt], key=key, members=ids, **COMMON
    )
    w.complete(asset, key, {"wall_s": 1.5, "data_version": key}, outputs=[artifact, receipt])
    w.publish()
    return {}


def test_a_completed_stage_is_known_by_its_key_alone(w: Warehouse) -> None:
    assert run_stage(w, "k1", [1, 2]) == {}
    record = run_stage(w, "k1", [1, 2])
    assert record["wall_s"] == 1.5 and record["key"] == "k1" and len(record["outputs"]) == 2
    assert w.completed("digits/scores/el2n", "k2") is None and w.completed("digits/scores/grand", "k1") is None
    assert w.last_complete("digits/scores/el2n") == record and w.last_complete("digits/other") is None


def test_only_the_last_completion_counts(w: Warehouse) -> None:
    run_stage(w, "k1", [1, 2])
    run_stage(w, "k2", [3])
    assert w.completed("digits/scores/el2n", "k1") is None, "its rows are gone"
    assert run_stage(w, "k1", [1, 2]) == {} and w.completed("digits/scores/el2n", "k1") is not None


def test_a_second_run_of_25_stages_changes_and_publishes_nothing(w: Warehouse) -> None:
    assets = [f"digits/stage/n{i}" for i in range(25)]
    for asset in assets:
        w.complete(asset, "k", {"outputs": []})
    run_stage(w, "k", [1, 2])
    head, inode = w.ledger.head(), w.snapshot.stat().st_ino
    assert all(w.completed(asset, "k") is not None for asset in assets) and run_stage(w, "k", [1, 2])
    assert w.publish() is False and w.ledger.head() == head and w.snapshot.stat().st_ino == inode


@pytest.mark.parametrize(
    "damage",
    [
        lambda w: w.replace(EL2N, score_frame([9]), **COMMON),
        lambda w: w.artifacts.save("digits/scores/el2n/result", {"ids": np.array([9])}, {}),
        lambda w: w.artifacts.remove("digits/scores/el2n/result"),
        lambda w: w.artifacts.describe("digits/scores/el2n/result").path.unlink(),
        lambda w: w.artifacts.describe("digits/scores/el2n/result").path.write_bytes(b"short"),
        lambda w: w.artifacts._manifest_path("digits/scores/el2n/result").write_bytes(b"{}"),
    ],
    ids=["table replaced", "artefact replaced", "artefact removed", "content gone", "content cut", "manifest damaged"],
)
def test_outputs_that_are_not_in_place_undo_the_completion(w: Warehouse, damage: Any) -> None:
    run_stage(w, "k", [1, 2])
    damage(w)
    assert w.completed("digits/scores/el2n", "k") is None
    assert run_stage(w, "k", [1, 2]) == {} and w.completed("digits/scores/el2n", "k") is not None


def test_outputs_as_plain_mappings_verify_by_content_or_by_receipt(w: Warehouse) -> None:
    frame = score_frame([1, 2])
    receipt = w.replace(EL2N, frame, **COMMON)
    content = {"kind": "table", "name": "scores.el2n", "digest": receipt.content}
    w.complete("digits/a", "k", {"outputs": [content]})
    w.complete("digits/b", "k", {"outputs": [content | {"partition": {}, "receipt": receipt.digest}]})
    w.complete("wine/c", "k", {"outputs": [content]})
    assert w.completed("digits/a", "k") and w.completed("digits/b", "k")
    assert w.completed("wine/c", "k") is None, "another subject's rows are not its output"
    w.replace(EL2N, frame.with_columns(el2n=pl.lit(0.5)), **COMMON)
    assert w.completed("digits/a", "k") is None and w.completed("digits/b", "k") is None


def test_an_output_that_cannot_be_verified_is_refused(w: Warehouse) -> None:
    for bad in (
        {"kind": "file", "name": "x", "digest": "d"},
        {"kind": "table", "digest": "d"},
        {"kind": "artifact", "name": "a"},
    ):
        with pytest.raises(InvalidInput, match="needs kind"):
            w.complete("digits/a", "k", {"outputs": [bad]})


# ---------------------------------------------------------------- requests


def request(request_id: str = "r1", **changed: Any) -> ForgetRequest:
    facts = {
        "request_id": request_id,
        "subject": "digits",
        "selector": "ids",
        "ids": (1, 2),
        "received_at": "2026-01-31T23:30:00+00:00",
        "due_at": "2026-03-01T01:00:00+01:00",
    }
    return ForgetRequest(**(facts | changed))


def test_a_request_lives_through_its_states_on_record(w: Warehouse) -> None:
    record = w.requests.add(request(), note="by mail")
    assert record.state is RequestState.RECEIVED and record.request == request()
    for state in ("verified", "scoped", "executed", "audited", "closed"):
        w.requests.advance("r1", state, note=f"now {state}", num_examples=2 if state == "scoped" else None)
    record = w.requests.get("r1")
    assert record.state is RequestState.CLOSED and record.num_examples == 2
    assert record.events["seq"].to_list() == list(range(6)) and record.events["note"][0] == "by mail"
    row = w.requests.list("digits").row(0, named=True)
    assert row["due_at"] == datetime(2026, 3, 1, tzinfo=UTC) and row["state"] == "closed"
    assert w.requests.list("wine").height == 0 and w.requests.list().height == 1
    states = [json.loads(b)["state"] for b in w.ledger.entries(kind="request")["body"]]
    assert states == ["received", "verified", "scoped", "executed", "audited", "closed"]
    assert w.verify_tables() == []


@given(st.lists(st.sampled_from(list(RequestState)), max_size=5))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_only_the_contracts_transitions_are_possible(w: Warehouse, wanted: list[RequestState]) -> None:
    request_id = f"r{w.requests.list().height}"
    state = w.requests.add(request(request_id)).state
    entered = 1
    for step in wanted:
        if step in TRANSITIONS[state]:
            state = w.requests.advance(request_id, step).state
            entered += 1
        else:
            with pytest.raises(StateError, match=f"is {state.value} cannot become {step.value}"):
                w.requests.advance(request_id, step)
    record = w.requests.get(request_id)
    assert record.state is state and record.events["seq"].to_list() == list(range(entered))


def test_adding_again_is_a_no_op_and_another_request_of_that_id_is_refused(w: Warehouse) -> None:
    w.requests.add(request())
    head = w.ledger.head()
    assert w.requests.add(request()).events.height == 1 and w.ledger.head() == head
    for other in (request(ids=(3,)), request(subject="wine")):
        with pytest.raises(ConfigError, match="r1 is taken"):
            w.requests.add(other)
    with pytest.raises(UnknownName, match="known: r1"):
        w.requests.get("r2")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("received_at", "yesterday", "not an ISO 8601 date"),
        ("received_at", "2026-01-31T10:00:00", "no time zone"),
        ("due_at", "2026-01-31T23:30:00+00:00", "not after"),
    ],
)
def test_dates_that_mean_nothing_are_refused(w: Warehouse, field: str, value: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        w.requests.add(request(**{field: value}))
    assert w.requests.list().height == 0


def test_reach_is_idempotent_and_never_goes_back(w: Warehouse) -> None:
    w.requests.add(request())
    with pytest.raises(StateError):
        w.requests.reach("r1", RequestState.EXECUTED)
    for state in (
        RequestState.VERIFIED,
        RequestState.SCOPED,
        RequestState.EXECUTED,
        RequestState.EXECUTED,
        RequestState.SCOPED,
    ):
        w.requests.reach("r1", state)
    assert w.requests.get("r1").state is RequestState.EXECUTED and w.requests.get("r1").events.height == 4
    w.requests.advance("r1", "scoped", note="again")
    assert w.requests.reach("r1", "executed").events.height == 6


def test_hostile_text_in_requests_is_data(w: Warehouse) -> None:
    hostile = "label = 1); DROP TABLE requests.register; --\x00\n'\""
    w.requests.add(request(selector="where", ids=(), where=hostile, legal_basis=hostile), note=hostile)
    record = w.requests.get("r1")
    assert record.request.where == hostile and record.events["note"][0] == hostile
    assert w.requests.list()["legal_basis"].to_list() == [hostile]


@pytest.mark.promise("D7")
def test_events_stay_in_order_when_the_clock_jumps(home: Path) -> None:
    moments = iter([datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=d) for d in (0, 0, -1, 365, -400, 3, 9, 9, 9)])
    w = Warehouse.open(home, clock=lambda: next(moments))
    w.requests.add(request())
    for state in ("verified", "scoped", "executed"):
        w.requests.advance("r1", state)
    assert w.read(REQUEST_EVENTS, subject="digits")["state"].to_list() == ["received", "verified", "scoped", "executed"]
    assert w.requests.get("r1").state is RequestState.EXECUTED


# ----------------------------------------------------------------- lineage


@given(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 60), max_size=80))
def test_runs_are_those_of_a_plain_loop(ids: list[int]) -> None:
    expected: list[tuple[int, int]] = []
    for i in sorted(set(ids)):
        if expected and expected[-1][1] == i - 1:
            expected[-1] = (expected[-1][0], i)
        else:
            expected.append((i, i))
    first, last = runs_of(ids)
    assert list(zip(first.tolist(), last.tolist(), strict=True)) == expected


def _sets(w: Warehouse) -> dict[str, list[tuple[int, int]]]:
    """The runs of each asset's examples, and those of sets that no asset has under ""."""
    runs = w.read(LINEAGE_SETS, subject="digits")
    of = dict(w.read(LINEAGE_MEMBERS, subject="digits").rows())
    out = {asset: runs.filter(pl.col("set_id") == s).select("first_id", "last_id").rows() for asset, s in of.items()}
    unused = runs.filter(~pl.col("set_id").is_in(list(of.values())))
    return out | ({"": unused.rows()} if unused.height else {})


def test_a_whole_split_is_one_row_and_a_sparse_set_is_exact(w: Warehouse) -> None:
    w.record_lineage("digits/models/target", members=np.arange(50_000), **COMMON)
    assert _sets(w) == {"digits/models/target": [(0, 49_999)]}
    w.record_lineage("digits/models/target", members=[5, 3, 3, 4, 9], **COMMON)
    assert _sets(w) == {"digits/models/target": [(3, 5), (9, 9)]}


def test_a_set_is_stored_once_for_all_its_assets_and_goes_with_the_last(w: Warehouse) -> None:
    far = [10, 2**52, 7**18]  # ids made from content have no neighbours
    for asset in ("digits/a", "digits/b"):
        w.record_lineage(asset, members=far, **(COMMON | {"config_digest": asset}))
    assert w.read(LINEAGE_SETS, subject="digits").height == 3
    w.record_lineage("digits/a", members=[1], **COMMON)
    assert set(_sets(w)) == {"digits/a", "digits/b"} and len(_sets(w)["digits/b"]) == 3
    w.record_lineage("digits/b", members=[1], **COMMON)
    assert _sets(w) == {"digits/a": [(1, 1)], "digits/b": [(1, 1)]}
    w.record_lineage("digits/a", members=far, **COMMON)  # and comes back
    assert len(_sets(w)["digits/a"]) == 3
    w.record_lineage("digits/a", members=[], **COMMON)
    assert _sets(w)["digits/a"] == []


def test_recording_the_same_again_keeps_when_it_was_made(w: Warehouse) -> None:
    artifact = w.artifacts.save("digits/models/target/weights", {"w": np.ones(2)}, {})
    w.record_lineage("digits/models/target", artifacts=[artifact], parents=["digits/data/examples"], key="k", **COMMON)
    first, head = w.read(ARTIFACTS, subject="digits"), w.ledger.head()
    w.record_lineage("digits/models/target", artifacts=[artifact], parents=["digits/data/examples"], key="k", **COMMON)
    assert w.read(ARTIFACTS, subject="digits").equals(first) and w.ledger.head() == head
    row = first.row(0, named=True)
    assert (w.home / row["location"]).read_bytes() and row["sha256"] == artifact.sha256 and row["kind"] == "safetensors"
    assert w.read(EDGES, subject="digits").rows() == [("digits/models/target", "digits/data/examples")]


def test_trace_finds_everything_an_example_touched_and_nothing_else(w: Warehouse) -> None:
    w.replace(EL2N, score_frame([1, 2, 3]), **COMMON)
    members = pl.DataFrame({"example_id": [2, 3], "role": ["forget", "retain"], "reason": ["<b>", ""]})
    w.replace(MEMBERS, members, partition={"dataset_id": "random"}, **COMMON)
    w.replace(EL2N, score_frame([2]), **(COMMON | {"subject": "wine"}))
    target = w.artifacts.save("digits/models/target/weights", {"w": np.ones(2)}, {})
    report = w.artifacts.save_bytes("digits/report.html", b"<h1>")
    other = w.artifacts.save("digits/models/other/weights", {"w": np.ones(3)}, {})
    w.record_lineage(
        "digits/models/target", artifacts=[target], parents=["digits/data/examples"], members=[1, 2], **COMMON
    )
    w.record_lineage(
        "digits/models/other", artifacts=[other], parents=["digits/data/examples"], members=[1, 3], **COMMON
    )
    w.record_lineage("digits/audit", artifacts=[], parents=["digits/models/target"], **COMMON)
    w.record_lineage("digits/report", artifacts=[report], parents=["digits/audit"], **COMMON)
    found = w.trace(2, "digits")
    assert found.select("kind", "location", "asset").rows() == [
        ("derived", "", "digits/audit"),
        ("derived", "artifacts/digits/report.html", "digits/report"),
        ("made_from", f"artifacts/digits/models/target/{target.path.name}", "digits/models/target"),
        ("row", "curation.members", ""),
        ("row", "scores.el2n", ""),
    ]
    assert json.loads(found.filter(pl.col("location") == "curation.members")[0, "detail"])["role"] == "forget"
    assert w.trace(2)["subject"].unique().sort().to_list() == ["digits", "wine"]
    assert w.trace(99).height == 0
    for bad in (-1, 2**63, True, "1", 1.0):
        with pytest.raises(InvalidInput):
            w.trace(bad)  # type: ignore[arg-type]


def test_trace_ends_on_a_circle(w: Warehouse) -> None:
    w.record_lineage("digits/a", parents=["digits/b"], members=[1], **COMMON)
    w.record_lineage("digits/b", parents=["digits/a"], **COMMON)
    assert w.trace(1)["asset"].to_list() == ["digits/b", "digits/a"]


# -------------------------------------------------------------------- salt


def test_the_salt_is_made_once_and_kept_private(home: Path, w: Warehouse) -> None:
    salt = w.salt()
    assert len(salt) == 32 and Warehouse.open(home).salt() == salt
    assert stat.S_IMODE((w.folder / "salt").stat().st_mode) == 0o600
    w.publish()
    assert salt not in w.snapshot.read_bytes() and salt.hex().encode() not in w.snapshot.read_bytes()
    assert w.ledger.entries(kind="salt").height == 1, "noted once"
    assert Warehouse.existing(home).salt() == salt


@pytest.mark.promise("B1")
def test_a_lost_or_damaged_salt_is_refused_before_a_token_is_made(home: Path, w: Warehouse) -> None:
    """A token made with another salt would name nobody, and nothing would say so."""
    file, salt = w.folder / "salt", w.salt()
    for place in (0, 100, 255):
        bad = bytearray(salt)
        bad[place // 8] ^= 1 << place % 8
        file.write_bytes(bytes(bad))
        with pytest.raises(IntegrityError, match=r"salt is damaged or was replaced.*backup.*PALIMPSEST_HOME"):
            w.salt()
        assert any("salt" in problem.sentence for problem in verify(w).problems)
    file.write_bytes(b"short")
    with pytest.raises(IntegrityError, match="not 32"):
        w.salt()
    file.unlink()
    for opened in (w, Warehouse.open(home)):
        with pytest.raises(IntegrityError, match=r"salt is gone.*Restore it from a backup"):
            opened.salt()
    assert not file.exists(), "no other one is made"
    assert any("is gone" in problem.sentence for problem in verify(w).problems)
    w.publish()
    with pytest.raises(IntegrityError, match="is gone"):
        Warehouse.existing(home).salt()
    file.write_bytes(salt)
    assert w.salt() == salt and not verify(w).problems


def test_a_salt_of_an_earlier_version_is_noted_at_its_next_use_and_a_lost_one_is_told_by_what_it_made(
    home: Path, w: Warehouse
) -> None:
    file = w.folder / "salt"
    file.write_bytes(b"s" * 32)  # made before its check was recorded
    assert w.salt() == b"s" * 32 and w.ledger.entries(kind="salt").height == 1
    file.write_bytes(b"t" * 32)
    with pytest.raises(IntegrityError, match="was replaced"):
        w.salt()
    other = Warehouse.open(home.parent / "other")
    row = {c.name: "" for c in EXAMPLES.columns} | {"example_id": 1, "split": "train", "owner": "0" * 32}
    owned = pl.DataFrame([row | {"label": None, "target": None}], schema=empty(EXAMPLES).schema)
    other.replace(EXAMPLES, owned, **COMMON)
    with pytest.raises(IntegrityError, match="is gone"):
        other.salt()


def test_looking_makes_no_salt(home: Path, w: Warehouse) -> None:
    w.publish()
    with pytest.raises(NotReady, match="no owner has a token"):
        Warehouse.existing(home).salt()
    assert not (w.folder / "salt").exists()


def test_a_salt_whose_maker_was_killed_before_it_was_noted_is_the_one(
    w: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    from warehouse import chain

    def killed(name: str, *_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(chain, "fault", killed)
        w.salt()
    left = (w.folder / "salt").read_bytes()
    assert w.ledger.entries(kind="salt").height == 0
    assert w.salt() == left and w.ledger.entries(kind="salt").height == 1
