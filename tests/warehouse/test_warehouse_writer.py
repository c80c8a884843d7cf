"""Replace and append: all or nothing, by name, verified, on record; the same again is a no-op."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import hypothesis.strategies as st
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from warehouse_helpers import COMMON, EL2N, EVERYTHING, score_frame, score_run

from contracts.errors import DataError, IllegalName, IntegrityError, LockTimeout, StateError, UnknownName
from contracts.schema import EXAMPLES, REQUEST_EVENTS, SCORE_RUNS, TABLES
from contracts.tables import Column, TableSpec
from warehouse import Warehouse, connection, frames, writer

HOSTILE = [
    "'; DROP TABLE scores.el2n; --",
    '" OR 1=1 --',
    "’;–",
    "a\x00b",
    "line\nbreak\r\n",
    "select",
    "x" * 300,
    "\u202eabc",
    "😀",
    "",
    " ",
    "\\",
    "%s",
    "{0}",
    "$1",
    "?",
    "NULL",
    "é",
    "e\u0301",
    "<script>alert(1)</script>",
    "../../etc/passwd",
]


def everything(text: list[str | None]) -> pl.DataFrame:
    n = len(text)
    return pl.DataFrame(
        {
            "example_id": range(n),
            "part": ["p"] * n,
            "number": [0.1] * n,
            "flag": [True] * n,
            "text": text,
            "at": [datetime(2026, 1, 1, tzinfo=UTC)] * n,
            "facts": ["{}"] * n,
            "kind": ["a"] * n,
            "shape": [[0.5, float(i)] for i in range(n)],
        },
        schema={c.name: frames.POLARS[c.dtype] for c in EVERYTHING.columns},
    )


def replace(w: Warehouse, frame: pl.DataFrame, **changed: Any) -> Any:
    return w.replace(EL2N, frame, **(COMMON | changed))


def test_what_was_written_is_read_back_and_on_record(w: Warehouse) -> None:
    receipt = replace(w, score_frame([3, 1, 2]))
    assert (receipt.table, receipt.rows, receipt.changed) == ("scores.el2n", 3, True)
    assert w.read(EL2N, subject="digits").equals(score_frame([1, 2, 3]))
    assert w.read("scores.el2n", subject="wine").height == 0
    entry = w.ledger.entries(kind="replace").row(0, named=True)
    assert entry["seq"] == receipt.seq == w.ledger.head().seq and receipt.digest in entry["body"]
    stored = w.read(EL2N, subject="digits", columns=["run_id", "config_digest", "example_id"])
    assert stored.rows() == [("run-1", "c" * 64, i) for i in (1, 2, 3)]


def test_a_replace_replaces_its_partition_and_nothing_else(w: Warehouse) -> None:
    replace(w, score_frame([1, 2, 3]))
    replace(w, score_frame([7]), subject="wine")
    replace(w, score_frame([4, 5], base=0.2))
    assert w.read(EL2N, subject="digits")["example_id"].to_list() == [4, 5]
    assert w.read(EL2N, subject="wine")["example_id"].to_list() == [7]
    parts = {"a": everything(["x"]), "b": everything(["y", "z"])}
    for part, frame in parts.items():
        w.replace(EVERYTHING, frame.drop("part"), partition={"part": part}, **COMMON)
    w.replace(EVERYTHING, everything([]).drop("part"), partition={"part": "a"}, **COMMON)
    assert w.read(EVERYTHING, subject="digits")["text"].to_list() == ["y", "z"]
    assert w.read(EVERYTHING, subject="digits", partition={"part": "a"}).height == 0


def test_the_same_content_again_changes_nothing_and_says_so(w: Warehouse) -> None:
    first = replace(w, score_frame([1, 2, 3]))
    head, stat = w.ledger.head(), (w.folder / "palimpsest.duckdb").stat()
    again = replace(w, score_frame([3, 2, 1]).with_columns(wall_s=pl.lit(9.0)), run_id="run-2")
    assert (again.changed, again.digest, again.seq, again.rows) == (False, first.digest, first.seq, 3)
    assert w.ledger.head() == head and (w.folder / "palimpsest.duckdb").stat().st_mtime_ns == stat.st_mtime_ns
    other = replace(w, score_frame([1, 2, 3]), config_digest="d" * 64)
    assert other.changed, "rows must not claim a configuration that did not make them"


@pytest.mark.promise("A9")
def test_no_rows_are_a_result(w: Warehouse) -> None:
    assert w.receipt(EL2N.table, subject="digits") is None
    assert replace(w, score_frame([])).changed
    again = replace(w, score_frame([]))
    assert not again.changed and again.rows == 0 and w.receipt(EL2N.table, subject="digits") == again


@pytest.mark.parametrize(
    "bad",
    [
        score_frame([1]).drop("el2n"),
        score_frame([1]).with_columns(more=pl.lit(1)),
        score_frame([1]).with_columns(el2n=pl.lit("0.5")),
        score_frame([1, 1]),
        score_frame([1]).with_columns(el2n=pl.lit(float("nan"))),
        score_frame([1]).with_columns(el2n=pl.lit(2.0)),
    ],
    ids=["missing", "extra", "type", "duplicate", "nan", "range"],
)
def test_a_refused_frame_leaves_the_old_rows_intact(w: Warehouse, bad: pl.DataFrame) -> None:
    replace(w, score_frame([1, 2, 3]))
    head = w.ledger.head()
    with pytest.raises(DataError, match=r"scores\.el2n"):
        replace(w, bad)
    assert w.read(EL2N, subject="digits").equals(score_frame([1, 2, 3])) and w.ledger.head() == head
    assert w.verify_tables() == []


@pytest.mark.promise("C4")
def test_columns_in_another_order_are_matched_by_name(w: Warehouse) -> None:
    frame = pl.DataFrame({"wall_s": [1.0], "spread": [0.25], "el2n": [0.5], "example_id": [7]})
    replace(w, frame)
    assert w.read(EL2N, subject="digits").row(0, named=True) == {
        "example_id": 7,
        "el2n": 0.5,
        "spread": 0.25,
        "wall_s": 1.0,
    }


@pytest.mark.promise("B6")
def test_hostile_values_come_back_byte_for_byte(w: Warehouse) -> None:
    w.replace(EVERYTHING, everything([*HOSTILE, None]), partition={"part": "p"}, **COMMON)
    with w.reading() as con:
        before = con.execute("SELECT count(*) FROM information_schema.tables").fetchone()
    for hostile in HOSTILE:
        w.replace(
            EVERYTHING,
            everything([hostile]).drop("part"),
            partition={"part": hostile},
            run_id=hostile or "r",
            subject="digits",
            config_digest="c",
        )
        back = w.read(EVERYTHING, subject="digits", partition={"part": hostile}, columns=["text", "part"])
        assert back.row(0) == (hostile, hostile)
    with w.reading() as con:
        assert con.execute("SELECT count(*) FROM information_schema.tables").fetchone() == before
    assert w.ledger.verify().ok and w.verify_tables() == []


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=6))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back(w: Warehouse, text: list[str]) -> None:
    w.replace(EVERYTHING, everything(text), partition={"part": "p"}, **COMMON)
    assert w.read(EVERYTHING, subject="digits", partition={"part": "p"})["text"].to_list() == text


@pytest.mark.parametrize("name", ["", "Digits", "a b", "../x", "a'b", "x" * 65, "-a", "a\n", None, 7])
@pytest.mark.promise("B6")
def test_hostile_subjects_are_refused(w: Warehouse, name: Any) -> None:
    with pytest.raises(IllegalName):
        replace(w, score_frame([1]), subject=name)


def test_rows_must_say_who_made_them(w: Warehouse) -> None:
    for field in ("run_id", "config_digest"):
        with pytest.raises(DataError, match="may not be empty"):
            replace(w, score_frame([1]), **{field: ""})


def test_append_adds_and_refuses_a_key_that_is_there(w: Warehouse) -> None:
    part: dict[str, Any] = COMMON | {"partition": {"request_id": "r1"}}
    event = {"seq": 0, "state": "received", "note": "", "at": datetime(2026, 1, 1, tzinfo=UTC)}
    w.append(REQUEST_EVENTS, pl.DataFrame([event]), **part)
    receipt = w.append(REQUEST_EVENTS, pl.DataFrame([event | {"seq": 1}]), **part)
    assert receipt.rows == 2 and receipt.changed
    with pytest.raises(DataError, match="repeat the key"):
        w.append(REQUEST_EVENTS, pl.DataFrame([event | {"note": "again"}]), **part)
    nothing = w.append(REQUEST_EVENTS, pl.DataFrame([event]).clear(), **part)
    assert not nothing.changed and w.read(REQUEST_EVENTS, subject="digits")["seq"].to_list() == [0, 1]
    assert w.verify_tables() == []


def test_several_writes_happen_together_or_not_at_all(w: Warehouse) -> None:
    with pytest.raises(ZeroDivisionError), w.transaction() as t:
        t.replace(EL2N, score_frame([1]), **COMMON)
        t.replace(SCORE_RUNS, score_run(), partition={"score": "el2n"}, **COMMON)
        raise ZeroDivisionError
    with pytest.raises(UnknownName):
        w.read(EL2N, subject="digits")
    assert w.read(SCORE_RUNS, subject="digits").height == 0
    with w.transaction() as t:
        t.replace(EL2N, score_frame([1]), **COMMON)
        t.replace(SCORE_RUNS, score_run(), partition={"score": "el2n"}, **COMMON)
    assert w.latest_score("digits", "el2n").height == 1 and w.ledger.verify().ok


def test_what_is_asked_within_a_reading_is_asked_in_one_session(w: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, times = connection.opened, []
    monkeypatch.setattr(connection, "opened", lambda *a, **k: times.append(a) or opened(*a, **k))
    with w.reading():
        assert w.read(SCORE_RUNS, subject="digits").height == 0 and w.ledger.head().seq == w.ledger.head().seq
        with pytest.raises(UnknownName):
            w.requests.get("nobody")
        assert w.versions(["digits/data/examples"]) == {}
        assert len(times) == 1
        with pytest.raises(StateError, match="already open in this thread"):
            w.complete("digits/scores/el2n", "k")
        with ThreadPoolExecutor(1) as other, pytest.raises(LockTimeout):
            other.submit(Warehouse.existing(w.home).ledger.append, "note", {}).result()
    with pytest.raises(ZeroDivisionError), w.reading():
        raise ZeroDivisionError
    w.replace(SCORE_RUNS, score_run(), partition={"score": "el2n"}, **COMMON)
    assert w.read(SCORE_RUNS, subject="digits").height == 1, "the next reading sees what was written since"


def test_opening_again_inside_a_transaction_is_refused_at_once(w: Warehouse) -> None:
    with w.transaction(), pytest.raises(StateError, match="already open in this thread"):
        w.read(SCORE_RUNS, subject="digits")
    assert w.read(SCORE_RUNS, subject="digits").height == 0


def test_rows_that_came_back_different_are_not_committed(w: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(w, score_frame([1, 2]))
    real = writer.read_partition
    monkeypatch.setattr(writer, "read_partition", lambda *a, **k: real(*a, **k).head(1))
    with pytest.raises(IntegrityError, match="2 rows were written, 1 rows"):
        replace(w, score_frame([5, 6]))
    monkeypatch.undo()
    assert w.read(EL2N, subject="digits")["example_id"].to_list() == [1, 2]


def test_a_row_changed_behind_our_back_is_found(w: Warehouse) -> None:
    replace(w, score_frame([1, 2, 3]))
    with w.transaction() as t:
        t.con.execute("UPDATE scores.el2n SET el2n = 0.75 WHERE example_id = 2")
    (problem,) = w.verify_tables()
    assert "scores.el2n of digits" in problem


def test_reading_names_what_exists(w: Warehouse) -> None:
    with pytest.raises(UnknownName, match=r"unknown table 'scores\.elton' .*; known: .*audits\.findings"):
        w.read("scores.elton", subject="digits")
    with pytest.raises(DataError, match=r"no .*column colour"):
        w.read(EXAMPLES, subject="digits", columns=["colour"])
    with pytest.raises(DataError, match=r"no .*column split"):
        w.read(EXAMPLES, subject="digits", partition={"split": "train"})


@pytest.mark.parametrize("spec", TABLES, ids=lambda s: s.full_name)
def test_every_declared_table_is_there_and_empty_with_its_types(w: Warehouse, spec: TableSpec) -> None:
    frame = w.read(spec, subject="digits")
    assert frame.schema == {c.name: frames.POLARS[c.dtype] for c in spec.columns} and frame.height == 0


def test_the_database_itself_holds_the_ranges(w: Warehouse) -> None:
    """Not only our own gate: rows brought in by any other way are held to the declaration too."""
    replace(w, score_frame([1]))
    good = ["digits", "r", "c", 2, 0.5, None, 1.0]
    for position, value in ((3, -1), (4, 1.6), (4, float("nan")), (4, None), (5, float("inf"))):
        row = list(good)
        row[position] = value
        with pytest.raises(DataError, match="the database refused the rows"), w.transaction() as t:
            t.con.execute("INSERT INTO scores.el2n VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    with w.transaction() as t:
        t.con.execute("INSERT INTO scores.el2n VALUES (?, ?, ?, ?, ?, ?, ?)", good)


def test_a_score_may_not_take_the_views_name(w: Warehouse) -> None:
    latest = TableSpec(schema="scores", name="latest", doc="d", key=("example_id",), columns=EL2N.table.columns)
    with pytest.raises(DataError, match="no score may be called latest"):
        w.replace(latest, score_frame([1]), **COMMON)
    other = TableSpec(
        schema="scores", name="runs", doc="d", key=("a",), columns=(Column(name="a", dtype="int64", doc="a"),)
    )
    with pytest.raises(StateError, match="raise it"):
        w.replace(other, pl.DataFrame({"a": [1]}), **COMMON)


def test_replacing_over_and_over_does_not_grow_the_file(w: Warehouse) -> None:
    sizes = []
    for i in range(6):
        replace(w, score_frame(list(range(30_000)), base=0.01 * i))
        sizes.append((w.folder / "palimpsest.duckdb").stat().st_size)
    assert max(sizes) <= 3 * sizes[0] and sizes[-1] <= max(sizes[:3])


def test_a_warehouse_can_be_sent_to_another_process(w: Warehouse) -> None:
    import pickle

    again = pickle.loads(pickle.dumps(w))
    assert again.replace(EL2N, score_frame([1]), **COMMON).changed
    assert w.read(EL2N, subject="digits").height == 1
