"""Tables from declarations: constraints, comments, documentation, and migration that loses nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import duckdb
import polars as pl
import pytest
from warehouse_helpers import COMMON, EL2N, EVERYTHING, score_frame

from contracts.errors import StateError
from contracts.methods import EXAMPLE_ID
from contracts.schema import DATASETS, EXAMPLES, TABLES
from contracts.tables import Column, TableSpec
from warehouse import Warehouse, ddl, markdown

V1 = TableSpec(
    schema="test",
    name="things",
    doc="Things.",
    key=("example_id",),
    columns=(
        EXAMPLE_ID,
        Column(name="size", dtype="float64", doc="size", low=0),
        Column(name="colour", dtype="str", doc="colour"),
    ),
)
ROWS = pl.DataFrame({"example_id": [1, 2], "size": [0.5, 5.0], "colour": ["red", "blue"]})


def version(number: int, *columns: Column, **changed: object) -> TableSpec:
    return dataclasses.replace(V1, version=number, columns=columns or V1.columns, **changed)  # type: ignore[arg-type]


def tables(w: Warehouse) -> set[str]:
    with w.reading() as con:
        return {
            row[0]
            for row in con.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'test'").fetchall()
        }


@pytest.fixture
def things(w: Warehouse) -> Warehouse:
    w.replace(V1, ROWS, **COMMON)
    return w


def declare(w: Warehouse, spec: TableSpec) -> str:
    before = w.ledger.head().seq
    with w.transaction() as t:
        t.declare([spec])
    notes = w.ledger.entries(kind="table", after=before)["body"].to_list()
    return notes[0] if notes else ""


def test_the_same_declaration_is_nothing_to_do(things: Warehouse) -> None:
    assert declare(things, V1) == ""


def test_other_words_change_the_comment_and_nothing_else(things: Warehouse) -> None:
    assert "described" in declare(things, dataclasses.replace(V1, doc="Other things; it's <b>so</b>."))
    with things.reading() as con:
        comment = con.execute("SELECT comment FROM duckdb_tables() WHERE table_name = 'things'").fetchone()
    assert comment == ("Other things; it's <b>so</b>. Unique within a subject: example_id.",)
    assert things.read(V1, subject="digits").equals(ROWS)


@pytest.mark.parametrize(
    "columns",
    [
        (*V1.columns, Column(name="more", dtype="str", doc="more", nullable=True)),
        V1.columns[:2],
        (V1.columns[0], dataclasses.replace(V1.columns[1], high=9.0), V1.columns[2]),
        (V1.columns[0], dataclasses.replace(V1.columns[1], dtype="int64"), V1.columns[2]),
    ],
    ids=["more", "fewer", "range", "type"],
)
def test_other_columns_under_the_same_version_are_refused(things: Warehouse, columns: tuple[Column, ...]) -> None:
    with pytest.raises(StateError, match="version is still 1: raise it"):
        declare(things, version(1, *columns))
    assert things.read(V1, subject="digits").equals(ROWS)


def test_rows_that_fit_the_new_version_are_carried_over(things: Warehouse) -> None:
    wider = version(2, *V1.columns, Column(name="note", dtype="str", doc="note", nullable=True))
    assert "migrated" in declare(things, wider)
    assert things.read(wider, subject="digits").to_dicts() == [
        {"example_id": 1, "size": 0.5, "colour": "red", "note": None},
        {"example_id": 2, "size": 5.0, "colour": "blue", "note": None},
    ]
    assert tables(things) == {"things"}
    assert things.receipt(wider, subject="digits") is None, "what the ledger recorded was another table"
    assert things.replace(wider, ROWS.with_columns(note=pl.lit("n")), **COMMON).changed


def test_a_column_that_is_gone_takes_no_values_with_it(w: Warehouse) -> None:
    coloured = dataclasses.replace(V1, columns=(*V1.columns[:2], dataclasses.replace(V1.columns[2], nullable=True)))
    w.replace(coloured, ROWS.with_columns(colour=pl.lit(None, pl.String)), **COMMON)
    assert "migrated" in declare(w, version(2, *V1.columns[:2])), "nothing was said in it"
    w.replace(version(3), ROWS, **COMMON)
    assert "archived" in declare(w, version(4, *V1.columns[:2]))
    with w.reading() as con:
        assert con.execute("SELECT list(colour ORDER BY colour) FROM test.things__v3").fetchone() == (["blue", "red"],)


def test_examples_stored_before_they_had_an_origin_are_carried_over(w: Warehouse) -> None:
    now = dataclasses.replace(EXAMPLES, schema="test")
    old = dataclasses.replace(now, version=1, columns=tuple(c for c in EXAMPLES.columns if c.name != "origin"))
    row = {
        "example_id": 1,
        "split": "train",
        "label": 0,
        "label_name": "a",
        "target": None,
        "owner": "",
        "content_hash": "x",
    }
    w.replace(old, pl.DataFrame([row], schema_overrides={"target": pl.Float64}), **COMMON)
    assert "migrated" in declare(w, now)
    assert w.read(now, subject="digits").to_dicts() == [row | {"origin": None}]


@pytest.mark.parametrize(
    "columns",
    [
        (V1.columns[0], dataclasses.replace(V1.columns[1], high=1.0), V1.columns[2]),
        (V1.columns[0], dataclasses.replace(V1.columns[1], dtype="int64"), V1.columns[2]),
        (*V1.columns, Column(name="needed", dtype="str", doc="never null")),
    ],
    ids=["range", "type", "not null"],
)
def test_rows_that_do_not_fit_stay_beside_the_new_table(things: Warehouse, columns: tuple[Column, ...]) -> None:
    assert "archived" in declare(things, version(2, *columns))
    assert tables(things) == {"things", "things__v1"}
    assert things.read("test.things", subject="digits").height == 0
    with things.reading() as con:
        assert con.execute("SELECT count(*), sum(size) FROM test.things__v1").fetchone() == (2, 5.5)


def test_rows_that_break_the_new_key_stay_beside_the_new_table(w: Warehouse) -> None:
    w.replace(V1, ROWS.with_columns(colour=pl.lit("red")), **COMMON)
    assert "archived" in declare(w, version(2, key=("colour",)))


def test_a_score_of_another_version_is_another_quantity(w: Warehouse) -> None:
    w.replace(EL2N, score_frame([1, 2]), **COMMON)
    newer = dataclasses.replace(EL2N, version=2)
    w.replace(newer, score_frame([5]), **COMMON)
    assert w.read(newer, subject="digits")["example_id"].to_list() == [5]
    with w.reading() as con:
        assert con.execute("SELECT count(*) FROM scores.el2n__v1").fetchone() == (2,)


def test_a_warehouse_of_a_newer_program_is_not_touched(things: Warehouse) -> None:
    declare(things, version(3))
    with pytest.raises(StateError, match="has version 3, this program knows only 1"):
        things.replace(V1, ROWS, **COMMON)


def test_opening_brings_every_declared_table_up_to_date(home: Path, w: Warehouse) -> None:
    old = dataclasses.replace(DATASETS, doc="Old words.")
    declare(w, old)
    head = w.ledger.head().seq
    Warehouse.open(home)
    notes = w.ledger.entries(after=head)
    assert notes.height == 1 and "curation.datasets" in notes[0, "body"]
    Warehouse.open(home)
    assert w.ledger.head().seq == head + 1


def test_a_declaration_is_read_back_as_it_was_made(w: Warehouse) -> None:
    with w.transaction() as t:
        t.declare([EVERYTHING])
    with w.reading() as con:
        stored = ddl.declared(con)
    assert stored == {s.full_name: s for s in (*TABLES, EVERYTHING)}


def test_comments_say_unit_range_and_direction(w: Warehouse) -> None:
    w.replace(EL2N, score_frame([1]), **COMMON)
    w.publish()
    with duckdb.connect(str(w.snapshot), read_only=True) as con:
        found = con.execute(
            "SELECT comment FROM duckdb_columns() WHERE table_name = 'el2n' AND column_name = 'el2n'"
        ).fetchone()
        bare = con.execute(
            "SELECT schema_name, table_name FROM duckdb_tables() WHERE comment IS NULL OR comment = ''"
        ).fetchall()
    assert found == ("the score; unit: 1; >= 0 and <= 1.5; higher = harder",)
    assert bare == []


def test_names_are_quoted_whatever_they_are() -> None:
    assert ddl.quoted('a"; DROP TABLE x; --') == '"a""; DROP TABLE x; --"'
    reserved = TableSpec(
        schema="select",
        name="table",
        doc="d'oh",
        key=("order",),
        columns=(Column(name="order", dtype="int64", doc="it's"),),
    )
    con = duckdb.connect()
    con.execute('CREATE SCHEMA "select"')
    con.execute(ddl.create_table(reserved))
    for statement in ddl.comments(reserved):
        con.execute(statement)
    assert con.execute("SELECT comment FROM duckdb_tables()").fetchone() == ("d'oh Unique within a subject: order.",)
    con.close()


def test_the_documentation_has_every_table_and_column_once() -> None:
    text = markdown()
    for spec in TABLES:
        section = text.split(f"## {spec.full_name}\n")[1].split("\n## ")[0]
        for column in spec.columns:
            assert section.count(f"| `{column.name}` |") == 1
    hostile = TableSpec(
        schema="a", name="b", doc="<script> | x", key=("c",), columns=(Column(name="c", dtype="str", doc="a|b\nc"),)
    )
    assert "&lt;script&gt; \\| x" in markdown([hostile]) and "| a\\|b c |" in markdown([hostile])
