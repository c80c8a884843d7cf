"""The door for people: it reads, and can do nothing else. Predicates: one expression, nothing around it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from warehouse_helpers import COMMON, EL2N, score_frame, score_run

from contracts.errors import IntegrityError, InvalidInput, NotReady, UnknownName
from contracts.methods import Call, ScoreSpec
from contracts.schema import COLUMNS, EXAMPLES, SCORE_RUNS
from warehouse import Warehouse, connection, publish, reader, statements
from warehouse.connection import Limits


def examples(n: int = 20) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "example_id": range(n),
            "split": ["test" if i % 5 == 4 else "train" for i in range(n)],
            "label": [i % 3 for i in range(n)],
            "label_name": [["cat", "it's", "ship"][i % 3] for i in range(n)],
            "target": pl.Series([None] * n, dtype=pl.Float64),
            "owner": ["token" if i % 2 else "" for i in range(n)],
            "content_hash": [f"{i:064d}" for i in range(n)],
            "origin": [f"pets/{i}.png" for i in range(n)],
        }
    )


def fill(w: Warehouse) -> Warehouse:
    with w.transaction() as t:
        t.replace(EXAMPLES, examples(), **COMMON)
        t.replace(EL2N, score_frame(list(range(20))), **COMMON)
        t.replace(SCORE_RUNS, score_run(), partition={"score": "el2n"}, **COMMON)
    w.publish()
    return w


@pytest.fixture
def filled(w: Warehouse) -> Warehouse:
    return fill(w)


@pytest.fixture(scope="module")
def door(fresh_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """A filled warehouse that its tests leave as it is."""
    home = tmp_path_factory.mktemp("door") / "home"
    shutil.copytree(fresh_home, home)
    return fill(Warehouse.open(home, limits=Limits(memory="512MB", threads=1)))


def test_nothing_published_says_what_to_run(w: Warehouse) -> None:
    with pytest.raises(NotReady, match="palimpsest audit"):
        w.query("SELECT 1")


def test_parameters_are_bound_by_position_and_by_name(door: Warehouse) -> None:
    sql = "SELECT example_id FROM data.examples WHERE label_name = {} ORDER BY 1 LIMIT 2"
    assert door.query(sql.format("?"), ["it's"])["example_id"].to_list() == [1, 4]
    assert door.query(sql.format("$name"), {"name": "it's"})["example_id"].to_list() == [1, 4]
    assert door.query(sql.format("?"), ["x' OR '1'='1"]).height == 0


@pytest.mark.parametrize(
    "sql",
    [
        "FROM scores.latest",
        "WITH a AS (SELECT 1 AS x) SELECT * FROM a",
        "DESCRIBE data.examples",
        "SHOW ALL TABLES",
        "SUMMARIZE data.examples",
        "EXPLAIN SELECT * FROM data.examples",
        "VALUES (1), (2)",
        "SELECT 1 -- no more; DROP TABLE x",
        "SELECT 1;",
    ],
)
def test_every_way_of_reading_works(door: Warehouse, sql: str) -> None:
    assert door.query(sql).height > 0


ESCAPES = [
    "",
    ";",
    "SELECT 1; SELECT 2",
    "INSERT INTO scores.runs SELECT * FROM scores.runs",
    "UPDATE data.examples SET label = 0",
    "DELETE FROM data.examples",
    "DROP TABLE data.examples",
    "CREATE TABLE x AS SELECT 1",
    "CREATE TEMP TABLE x AS SELECT 1",
    "CREATE VIEW v AS SELECT 1",
    "ALTER TABLE data.examples DROP label",
    "TRUNCATE data.examples",
    "COPY data.examples TO '{out}'",
    "COPY (SELECT 1) TO '{out}' (FORMAT parquet)",
    "EXPORT DATABASE '{out}'",
    "ATTACH '{out}' AS o",
    "ATTACH ':memory:' AS o",
    "DETACH palimpsest",
    "USE memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "RESET enable_external_access",
    "SET threads = 1",
    "SET memory_limit = '100GB'",
    "PRAGMA threads = 4",
    "PRAGMA enable_external_access = true",
    "CALL pragma_version()",
    "CHECKPOINT",
    "VACUUM",
    "BEGIN",
    "COMMIT",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "SET VARIABLE x = 1",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM '{home}/warehouse/palimpsest.duckdb'",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_parquet('http://example.org/x')",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "SELECT getenv('HOME')",
    "SELECT * FROM secret_frame",
    "CREATE SECRET s (TYPE s3)",
    "COMMENT ON TABLE data.examples IS 'x'",
    "IMPORT DATABASE '/tmp'",
    "EXPLAIN ANALYZE COPY data.examples TO '{out}'",
    "SELECT * FROM sqlite_scan('/etc/passwd', 'x')",
    "CREATE MACRO m() AS 1",
    "PRAGMA database_list",
    "PRAGMA show_databases",
    "SELECT nonsense(",
    "SELECT * FROM no.such_table",
]


@pytest.mark.parametrize("sql", ESCAPES)
@pytest.mark.promise("B7")
def test_the_door_can_do_nothing_but_read(door: Warehouse, tmp_path: Path, sql: str) -> None:
    secret_frame = pl.DataFrame({"a": [1]})  # noqa: F841  (a Python variable must not become a table)
    out = tmp_path / "out"
    before, stat = door.snapshot.read_bytes(), door.snapshot.stat()
    with pytest.raises(InvalidInput):
        door.query(sql.format(out=out, home=door.home))
    assert not out.exists() and door.snapshot.read_bytes() == before
    assert door.snapshot.stat().st_mtime_ns == stat.st_mtime_ns
    assert door.query("SELECT count(*) AS n FROM data.examples")["n"].to_list() == [20]


HIDES_SQL = "SELECT * FROM duckdb_settings()"
HIDDEN = [
    "SELECT current_setting('temp_directory')",
    "EXPLAIN SELECT current_setting('temp_directory')",
    "EXPLAIN ANALYZE SELECT current_setting('temp_directory')",
    "EXPLAIN (FORMAT json) SELECT current_setting('temp_directory')",
    "/* \u00e9 */ explain /* ; */ SELECT ('temp_directory').current_setting()",
    "DESCRIBE SELECT * FROM duckdb_databases()",
    "SUMMARIZE SELECT * FROM duckdb_databases()",
    "SUMMARIZE duckdb_databases",
    "FROM duckdb_databases",
    'FROM "DUCKDB_DATABASES"',
    "FROM main.duckdb_databases",
    "FROM system.main.duckdb_databases",
    "FROM pg_catalog.pg_settings",
    "FROM system.pragma_database_list",
    "SELECT (SELECT path FROM duckdb_databases() LIMIT 1)",
    "WITH duckdb_databases AS (SELECT 1) SELECT * FROM duckdb_databases",
    "SELECT * FROM (WITH duckdb_databases AS (SELECT 1 AS x) SELECT x FROM duckdb_databases) a, duckdb_databases b",
    f"SELECT * FROM query('{HIDES_SQL}')",
    "SELECT * FROM query_table('duckdb_databases')",
    "SELECT * FROM histogram('duckdb_databases', path)",
    f"SELECT * FROM json_execute_serialized_sql(json_serialize_sql('{HIDES_SQL}'))",
    "SELECT json_serialize_plan('SELECT current_setting(''temp_directory'')', optimize := true)",
    "SELECT example_id FROM data.examples UNION ALL SELECT length(path) FROM duckdb_databases()",
    "SELECT list_transform([1], lambda x: current_setting('temp_directory'))",
]


@pytest.mark.parametrize("sql", HIDDEN)
def test_what_shows_the_machine_is_refused_however_it_is_written(door: Warehouse, sql: str) -> None:
    with pytest.raises(InvalidInput, match="refused"):
        door.query(sql)


def calls(con: duckdb.DuckDBPyConnection) -> list[str]:
    """Every function, pragma, view and way to show that the engine knows, called with what its signature may take."""
    texts = ("''", "'data.examples'", "'temp_directory'", f"'{HIDES_SQL}'")
    rows = con.execute(
        "SELECT DISTINCT function_name, function_type, len(parameters) FROM duckdb_functions() "
        "WHERE regexp_full_match(function_name, '[a-z_0-9]+') ORDER BY ALL"
    ).fetchall()
    found = []
    for name, kind, num in rows:
        arguments = [""] if num == 0 else [", ".join([t] * min(num, 2)) for t in texts]
        for given in arguments if num <= 2 else [""]:
            if kind == "pragma":
                found += [f"PRAGMA {name}" + (f"({given})" if given else "")]
            elif kind.startswith("table"):
                found += [f"SELECT * FROM {name}({given})"]
            elif kind in ("scalar", "macro"):
                found += [f"SELECT {name}({given})"]
    views = con.execute("SELECT schema_name, view_name FROM duckdb_views() WHERE internal").fetchall()
    found += [f"FROM {schema}.{view}" for schema, view in views] + [f"FROM {view}" for _, view in views]
    return found + [f"SHOW {what}" for what in ("DATABASES", "TABLES", "ALL TABLES", "SCHEMAS", "VARIABLES")]


def leaks(con: duckdb.DuckDBPyConnection, sql: str, secrets: tuple[str, ...], *, checked: bool) -> bool:
    try:
        if checked:
            statements.check(con, sql)
        said = repr(con.execute(sql).fetchall())
    except InvalidInput as error:
        said = str(error)
    except duckdb.Error as error:
        said = str(error)
    return any(secret in said for secret in secrets)


def test_no_function_pragma_or_view_of_the_engine_shows_a_path(door: Warehouse, tmp_path: Path) -> None:
    secrets = (str(door.home), str(tmp_path), "palimpsest-spill")
    limits = Limits(memory="512MB", threads=1, spill=tmp_path / "spill")
    with connection.door(door.snapshot, limits=limits) as con:
        every = [sql for sql in calls(con) if "sleep" not in sql]
        assert len(every) > 500
        for sql in ("FROM duckdb_databases", "SELECT * FROM duckdb_settings()"):
            assert sql in every and leaks(con, sql, secrets, checked=False), "the search would see it"
        assert [sql for sql in every if leaks(con, sql, secrets, checked=True)] == []


def test_a_refusal_by_the_engine_does_not_name_the_folder(filled: Warehouse) -> None:
    tight = Warehouse.open(filled.home, limits=Limits(memory="64MB", threads=1))
    with pytest.raises((InvalidInput, MemoryError)) as refused:
        tight.query("SELECT string_agg(repeat('x', 1000), '') FROM range(200000)")
    assert str(filled.home) not in str(refused.value) or isinstance(refused.value, MemoryError)


def test_what_a_person_looks_at_first_is_still_shown(door: Warehouse) -> None:
    for sql in ("SHOW TABLES", "SHOW DATABASES", "FROM duckdb_tables()", "FROM information_schema.columns"):
        assert str(door.home) not in str(door.query(sql).to_dicts())
    assert door.query("FROM range(3)").height == 3
    assert door.query("SELECT unnest(high) AS one FROM scores.agreement").height > 0


def test_memory_is_bounded_and_spill_leaves_nothing(filled: Warehouse) -> None:
    tight = Warehouse.open(filled.home, limits=Limits(memory="64MB", threads=1))
    n = tight.query("SELECT count(*) AS n FROM (SELECT DISTINCT hash(range) AS h FROM range(3000000))")["n"].to_list()
    assert n == [3_000_000]
    assert list((filled.folder / "spill").iterdir()) == []
    with pytest.raises((InvalidInput, MemoryError)):
        tight.query("SELECT string_agg(repeat('x', 1000), '') FROM range(200000)")


def test_a_damaged_snapshot_of_an_earlier_version_is_an_integrity_error_and_is_replaced(filled: Warehouse) -> None:
    """One whose SHA-256 is on no record; of those that are: ``test_warehouse_snapshot``."""
    publish.sums_file(filled.snapshot).unlink()
    filled.snapshot.write_bytes(b"not a database" * 1000)
    with pytest.raises(IntegrityError, match=r"palimpsest\.read\.duckdb.*'palimpsest audit SUBJECT' publishes it anew"):
        filled.query("SELECT 1")
    assert filled.publish() and filled.query("SELECT 1 AS one").height == 1


PREDICATES = {
    "label = 1": lambda e: e["label"] == 1,
    "label_name = 'it''s'": lambda e: e["label_name"] == "it's",
    "owner <> ''": lambda e: e["owner"] != "",
    "label = 1 OR label = 2 AND owner = ''": lambda e: (e["label"] == 1) | ((e["label"] == 2) & (e["owner"] == "")),
    "example_id BETWEEN 3 AND 7 -- a comment": lambda e: e["example_id"].is_between(3, 7),
    "example_id IN (SELECT max(example_id) FROM data.examples GROUP BY label)": lambda e: e["example_id"].is_in(
        [16, 17, 18]
    ),
    "examples.label % 2 = 0 AND data.examples.label < 9": lambda e: e["label"] % 2 == 0,
    "CASE WHEN label = 0 THEN true ELSE false END": lambda e: e["label"] == 0,
    "target IS NULL": lambda e: e["label"] >= 0,
    "target > 0": lambda e: e["label"] < 0,
    "NULL": lambda e: e["label"] < 0,
    "true": lambda e: e["label"] >= 0,
    "list_contains([1, 2], label)": lambda e: e["label"] >= 1,
    "regexp_matches(label_name, '^s')": lambda e: e["label_name"] == "ship",
}


@pytest.mark.parametrize("predicate", PREDICATES)
def test_predicates_select_training_examples(door: Warehouse, predicate: str) -> None:
    train = examples().filter(pl.col("split") == "train")
    expected = train.filter(PREDICATES[predicate](train))["example_id"].to_list()
    found = door.select_where("digits", predicate)
    assert found.dtype == np.int64 and found.tolist() == expected


def test_predicates_reach_what_else_the_source_keeps(filled: Warehouse) -> None:
    kept = {
        "client": lambda i: f"b{i % 4}",
        "step": lambda i: str(i % 7),
        "part": lambda i: "7" if i else "seven",
        "label": lambda i: "mine",
    }
    rows = [(i, name, of(i)) for name, of in kept.items() for i in range(20) if (name, i) != ("step", 3)]
    frame = pl.DataFrame(rows, schema=["example_id", "name", "value"], orient="row")
    with filled.transaction() as t:
        t.replace(COLUMNS, frame, **COMMON)
    for predicate, wanted in {
        "client = 'b1' AND step >= 5": [5, 13],
        "step IS NULL": [3],
        "step + 1 = 1": [0, 7],
        "part = '7' AND label = 0": [3, 6, 12, 15, 18],
        "column_label = 'mine' AND example_id < 3": [0, 1, 2],
    }.items():
        assert filled.select_where("digits", predicate).tolist() == wanted, predicate


INJECTIONS = [
    "",
    "   ",
    "-- nothing",
    "1=1; DROP TABLE data.examples",
    "1=1) UNION SELECT 5 --",
    "1=1 UNION SELECT 5",
    "1=1) OR (1=1",
    "true ORDER BY random() LIMIT 3",
    "true LIMIT 3",
    "true GROUP BY ALL",
    "true QUALIFY row_number() OVER () = 1",
    "true HAVING true",
    "true) LIMIT (3",
    "true WINDOW w AS ()",
    "true USING SAMPLE 5",
    "label",
    "label + 1",
    "'yes'",
    "label = 'x'",
    "colour = 1",
    "count(*) > 1",
    "random() < 0.5",
    "now() > '2026-01-01'",
    "uuid() IS NOT NULL",
    "label = ?",
    "label = $1",
    "(SELECT count(*) FROM read_csv('/etc/passwd')) > 0",
    "(SELECT count(*) FROM ledger.entries) > 0",
    "(SELECT count(*) FROM query('SELECT random()')) > 0",
    "example_id IN (SELECT * FROM secret_frame)",
    "(SELECT true; SELECT false)",
    "label = 1 */ /*",
    "/* open",
    "'",
    '"',
    "\x00",
    "SELECT true",
    "COPY x TO 'y'",
    "EXISTS (DELETE FROM data.examples)",
]


@pytest.mark.parametrize("predicate", INJECTIONS)
@pytest.mark.promise("B6")
def test_anything_but_one_boolean_expression_is_refused(door: Warehouse, predicate: str) -> None:
    secret_frame = pl.DataFrame({"a": [1]})  # noqa: F841
    with pytest.raises(InvalidInput, match="predicate"):
        door.select_where("digits", predicate)
    assert door.verify_tables() == []


def test_a_predicate_error_carries_duckdbs_message(door: Warehouse) -> None:
    with pytest.raises(InvalidInput, match=r'column "colour" not found'):
        door.select_where("digits", "colour = 1")


def test_a_predicate_that_runs_for_ever_is_stopped() -> None:
    endless = "(SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range + b.range + label = -1) = 0"
    with pytest.raises(InvalidInput, match=r"took longer than 0\.5 s"):
        reader.select_where(examples(), endless, limits=Limits(threads=1, memory="256MB"), limit_s=0.5)


def test_a_subject_without_examples_is_not_ready(door: Warehouse) -> None:
    with pytest.raises(NotReady, match="examples of wine"):
        door.select_where("wine", "label = 1")


def test_latest_shows_a_score_only_while_its_run_passed(filled: Warehouse) -> None:
    assert filled.latest_score("digits", "el2n").equals(
        score_frame(list(range(20))).select(
            "example_id", pl.col("el2n").alias("value"), pl.col("spread").alias("stderr")
        )
    )
    row = filled.query("SELECT * FROM scores.latest ORDER BY example_id LIMIT 1").row(0, named=True)
    assert row == {
        "subject": "digits",
        "score": "el2n",
        "example_id": 0,
        "value": 0.1,
        "stderr": 0.01,
        "higher_means": "harder",
        "run_id": "run-1",
        "calls": "hard",
        "is_called": None,
    }
    filled.replace(SCORE_RUNS, score_run(passed=False, reason="acc_in too low"), partition={"score": "el2n"}, **COMMON)
    with pytest.raises(NotReady, match="did not meet its gates: acc_in too low"):
        filled.latest_score("digits", "el2n")
    with pytest.raises(NotReady, match="has not been computed"):
        filled.latest_score("wine", "el2n")
    with pytest.raises(UnknownName, match="known: el2n"):
        filled.latest_score("digits", "elton")


def test_latest_hides_rows_that_another_configuration_made(filled: Warehouse) -> None:
    """Between the write of a score and that of its run: never new rows under an old verdict."""
    filled.replace(EL2N, score_frame([1, 2]), **(COMMON | {"config_digest": "d" * 64, "run_id": "run-2"}))
    assert filled.latest_score("digits", "el2n").height == 0
    filled.replace(
        SCORE_RUNS,
        score_run(),
        partition={"score": "el2n"},
        **(COMMON | {"config_digest": "d" * 64, "run_id": "run-2"}),
    )
    assert filled.latest_score("digits", "el2n")["example_id"].to_list() == [1, 2]


def test_a_store_of_an_older_version_gets_the_view_when_it_is_opened(filled: Warehouse) -> None:
    with filled.transaction() as tx:
        tx.con.execute("DROP VIEW scores.agreement")
    filled.replace(EL2N, score_frame(list(range(20)), base=0.2), **COMMON)
    filled.publish()
    with pytest.raises(InvalidInput, match="agreement"):
        filled.query("SELECT * FROM scores.agreement")
    again = Warehouse.open(filled.home)
    assert again.query("SELECT count(*) AS n FROM scores.agreement")["n"][0] == 20
    assert again.ledger.verify().ok and again.verify_tables() == []
    head = again.ledger.head()
    assert Warehouse.open(filled.home).ledger.head() == head, "once is enough"


def test_another_column_of_a_score_by_name(filled: Warehouse) -> None:
    spread = filled.latest_score("digits", "el2n.spread")
    assert spread.columns == ["example_id", "value", "stderr"] and spread.height == 20
    assert spread["value"].null_count() < 20 and spread["stderr"].null_count() == 20
    with pytest.raises(UnknownName, match="column of score el2n"):
        filled.latest_score("digits", "el2n.sprout")


def test_a_table_of_the_same_schema_is_no_score(filled: Warehouse) -> None:
    filled.replace(dataclasses.replace(EL2N.table, name="curve"), score_frame([3]), **COMMON)
    filled.publish()
    assert filled.query("SELECT DISTINCT score FROM scores.latest")["score"].to_list() == ["el2n"]
    with pytest.raises(UnknownName):
        filled.latest_score("digits", "curve")


def stored(w: Warehouse, spec: ScoreSpec, ids: list[int], values: list[float] | None = None) -> None:
    frame = score_frame(ids)
    w.replace(spec, frame if values is None else frame.with_columns(el2n=pl.Series(values)), **COMMON)
    w.replace(SCORE_RUNS, score_run(spec.name), partition={"score": spec.name}, **COMMON)
    w.publish()


def agreement(w: Warehouse) -> dict[int, dict[str, Any]]:
    return {r["example_id"]: r for r in w.query("SELECT * FROM scores.agreement").iter_rows(named=True)}


def test_agreement_lists_the_scores_that_call_an_example_something(filled: Warehouse) -> None:
    stored(filled, dataclasses.replace(EL2N, name="aum", calls=Call("noisy")), [1, 2, 9])
    stored(filled, dataclasses.replace(EL2N, name="typical", calls=None), list(range(20)))
    rows = agreement(filled)
    assert rows[19]["high"] == ["el2n"] and rows[19]["says"] == ["hard"]
    assert rows[9]["high"] == ["aum", "el2n"] and rows[9]["says"] == ["hard", "noisy"]
    assert rows[1]["high"] == [] and rows[1]["num_scores"] == 3
    assert rows[9]["mean_place"] == pytest.approx((1.0 + 18 / 19) / 2), "a score that calls nothing is not compared"
    assert (rows[9]["highest"], rows[9]["lowest"]) == ("aum", "el2n") and rows[0]["spread"] == 0.0


def test_equal_values_are_called_together_and_the_smallest_never(filled: Warehouse) -> None:
    ids = list(range(100))
    stored(filled, dataclasses.replace(EL2N, name="votes", calls=Call("noisy")), ids, [0.0] * 98 + [0.8] * 2)
    stored(filled, dataclasses.replace(EL2N, name="same", calls=Call("noisy")), ids, [0.5] * 100)
    stored(filled, dataclasses.replace(EL2N, name="many", calls=Call("memorised")), ids, [0.0] * 80 + [0.9] * 20)
    rows = agreement(filled)
    assert sorted(i for i, r in rows.items() if "votes" in r["high"]) == [98, 99]
    assert not any("same" in r["high"] for r in rows.values())
    assert sorted(i for i, r in rows.items() if "many" in r["high"]) == list(range(80, 100))


def test_a_score_with_a_rule_of_its_own_is_asked_by_it(filled: Warehouse) -> None:
    spec = dataclasses.replace(EL2N, name="twins", calls=Call("duplicate", column="spread", above=0.005))
    stored(filled, spec, list(range(20)))
    spread = filled.read(spec.table, subject="digits")
    called = set(spread.filter(pl.col("spread") > 0.005)["example_id"].to_list())
    assert 0 < len(called) < 20
    assert {i for i, r in agreement(filled).items() if "duplicate" in r["says"]} == called


def test_views_over_many_scores_are_one_long_table(filled: Warehouse) -> None:
    for name in ("aum", "forgetting", "zeta"):
        spec = dataclasses.replace(EL2N, name=name)
        filled.replace(spec, score_frame([1, 2]), **COMMON)
        filled.replace(SCORE_RUNS, score_run(name), partition={"score": name}, **COMMON)
    filled.publish()
    counts = filled.query("SELECT score, count(*) AS n FROM scores.latest GROUP BY score ORDER BY score")
    assert counts.rows() == [("aum", 2), ("el2n", 20), ("forgetting", 2), ("zeta", 2)]


def test_plain_duckdb_reads_the_snapshot_while_an_audit_writes(filled: Warehouse) -> None:
    ask = (
        "SELECT (SELECT count(*) FROM scores.latest), (SELECT count(*) FROM ledger.entries), (SELECT count(*) FROM "
        "requests.register), (SELECT count(*) FROM audits.attack_reports), (SELECT count(*) FROM unlearning.runs)"
    )
    code = f"import duckdb; print(duckdb.connect({str(filled.snapshot)!r}, read_only=True).execute({ask!r}).fetchone())"
    with filled.transaction() as t:
        t.replace(EL2N, score_frame([1]), **COMMON)
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        seq = filled.published_head()
    assert seq is not None and child.stdout.strip() == f"(20, {seq.seq}, 0, 0, 0)"


def test_an_old_reader_keeps_its_rows_across_publishes_and_a_new_one_sees_the_new(filled: Warehouse) -> None:
    old = duckdb.connect(str(filled.snapshot), read_only=True)
    old.begin()
    count = "SELECT count(*) AS n FROM scores.el2n"
    assert old.execute(count).fetchone() == (20,)
    for i in range(3):
        filled.replace(EL2N, score_frame(list(range(i + 1))), **COMMON)
        assert filled.publish()
        assert old.execute(count).fetchone() == (20,)
        assert filled.query(count)["n"].to_list() == [i + 1]
    old.close()


def test_publishing_twice_does_nothing_the_second_time(filled: Warehouse) -> None:
    stat = filled.snapshot.stat()
    assert filled.publish() is False and filled.snapshot.stat().st_ino == stat.st_ino
    filled.ledger.append("note", {})
    assert filled.publish() is True and filled.publish() is False
    assert filled.published_head() == filled.ledger.head()
    assert [p.name for p in filled.folder.iterdir() if "tmp" in p.name or p.suffix == ".wal"] == []


def test_deleted_rows_do_not_travel_into_the_snapshot(w: Warehouse) -> None:
    marker = "marker-7f3a9c-of-a-person"
    row = examples().with_columns(label_name=pl.lit(marker))
    w.replace(EXAMPLES, row, **COMMON)
    w.publish()
    assert marker.encode() in w.snapshot.read_bytes()
    w.replace(EXAMPLES, examples(), **COMMON)
    w.publish()
    assert marker.encode() not in w.snapshot.read_bytes()


def test_importing_and_opening_is_light(home: Path) -> None:
    code = (
        "import sys, time; from warehouse import Warehouse; w = Warehouse.open(sys.argv[1]); "
        "print([m for m in ('torch', 'dagster', 'great_expectations', 'matplotlib') if m in sys.modules])"
    )
    env = dict(os.environ)
    child = subprocess.run(
        [sys.executable, "-c", code, str(home)], capture_output=True, text=True, timeout=60, check=True, env=env
    )
    assert child.stdout.strip() == "[]"


def test_opening_an_up_to_date_warehouse_is_quick(home: Path, w: Warehouse) -> None:
    import time

    def once() -> float:
        started = time.process_time()
        Warehouse.open(home, limits=Limits(threads=1))
        return time.process_time() - started

    assert min(once() for _ in range(5)) < 0.1


def test_check_runs_the_generated_suite_on_what_is_stored(door: Warehouse) -> None:
    report: Any = door.check(EXAMPLES, subject="digits")
    assert report.passed and report.rows == 20 and not report.broken
