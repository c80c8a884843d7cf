"""The auditors' door: no cell that it shows, and no difference of two, is about fewer than k people."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

from contracts.errors import ConfigError, InvalidInput, NotReady
from contracts.operations import Operations
from contracts.schema import (
    ACCEPTANCE,
    ATTACK_REPORTS,
    ATTACK_SCORES,
    CERTIFICATES,
    CHECKPOINTS,
    DATASETS,
    EXAMPLES,
    FINDINGS,
    MEMBERS,
    REGISTER,
    REQUEST_EVENTS,
    SCORE_RUNS,
    TABLES,
    UNLEARNING_RUNS,
)
from contracts.tables import TableSpec
from warehouse import Limits, Warehouse, auditors, auditors_tables, ddl, suppression

K = 10
SALT = b"s" * 32
LIMITS = Limits(memory="512MB", threads=1)
ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 11, 24, 12, 34, tzinfo=UTC)
FIRST_ID = 7_000_001
Frames = dict[str, pl.DataFrame]


def put(con: duckdb.DuckDBPyConnection, spec: TableSpec, frame: pl.DataFrame, subject: str = "photos") -> None:
    rest = {"subject": subject, "run_id": "r", "config_digest": "c"}
    frame = frame.with_columns(pl.lit(v).alias(n) for n, v in rest.items() if n not in frame.columns)
    con.register("given", frame)
    con.execute(f"INSERT INTO {ddl.table(spec)} BY NAME SELECT * FROM given")
    con.unregister("given")


@pytest.fixture(scope="module")
def empty() -> Iterator[duckdb.DuckDBPyConnection]:
    """All tables, without constraints or rows."""
    con = duckdb.connect(config={"threads": 1})
    con.execute("SET TimeZone = 'UTC'")
    for schema in sorted({s.schema for s in TABLES} | {"ledger"}):
        con.execute(f"CREATE SCHEMA IF NOT EXISTS {ddl.quoted(schema)}")
    for spec in TABLES:
        columns = ", ".join(f"{ddl.quoted(c.name)} {ddl.TYPES[c.dtype]}" for c in spec.all_columns)
        con.execute(f"CREATE TABLE {ddl.table(spec)} ({columns})")
    con.execute("CREATE TABLE ledger.entries (seq BIGINT, prev_hash VARCHAR, hash VARCHAR, kind VARCHAR, body VARCHAR)")
    con.execute("CREATE TABLE scores.latest (subject VARCHAR, score VARCHAR, example_id BIGINT, value DOUBLE)")
    yield con
    con.close()


@pytest.fixture
def con(empty: duckdb.DuckDBPyConnection) -> Iterator[duckdb.DuckDBPyConnection]:
    empty.begin()
    yield empty
    empty.rollback()


def people(rows: list[tuple[str, str, str]], *, first: int = FIRST_ID) -> pl.DataFrame:
    """Examples of (split, class, owner)."""
    split, label, owner = zip(*rows, strict=True)
    ids = range(first, first + len(rows))
    return pl.DataFrame(
        {
            "example_id": ids,
            "split": split,
            "label_name": label,
            "owner": owner,
            "content_hash": [f"hash-of-{i}" for i in ids],
            "origin": [f"/srv/photos/{o or 'x'}/{i}.png" for i, o in zip(ids, owner, strict=True)],
        }
    )


def photos() -> pl.DataFrame:
    """Cats of 20 people, dogs of 30, gnus of 25, many emus of one, a fox of another; cats and dogs in the test."""
    rows = [("train", "cat", f"token{i % 20}") for i in range(40)]
    rows += [("train", "dog", f"token{10 + i % 30}") for i in range(60)]
    rows += [("train", "gnu", f"token{i}") for i in range(25)]
    rows += [("train", "emu", "token-of-solo")] * 60 + [("train", "fox", "token-of-anna")]
    rows += [("test", "cat", f"token{i}") for i in range(15)] + [("test", "dog", f"token{i}") for i in range(15, 40)]
    return people(rows)


SECRET = (
    "emu",
    "fox",
    "token-",
    "token1",
    "token2",
    "token3",
    "secret_",
    "hash-of",
    "/srv",
    ".png",
    "anna",
    "solo",
    "7000",
    "because",
)


def fill(con: duckdb.DuckDBPyConnection, data: pl.DataFrame) -> None:
    """The photos, with scores, attacks, verdicts and two forget requests; ids, notes and sentences name people."""
    put(con, EXAMPLES, data)
    rng = np.random.default_rng(1)
    train = data.filter(pl.col("split") == "train")
    number = pl.Series("value", rng.normal(size=len(train)))
    flat = pl.when(pl.col("label_name") == "dog").then(0.0).otherwise(number)
    holes = pl.when((pl.col("label_name") != "dog") | (pl.col("owner") > "token13")).then(number)
    for name, value in (("el2n", number), ("flat", flat), ("holes", holes)):
        scored = train.select("example_id", "label_name", "owner").with_columns(value)
        scored = scored.select("example_id", subject=pl.lit("photos"), score=pl.lit(name), value=value)
        con.register("given", scored)
        con.execute("INSERT INTO scores.latest BY NAME SELECT * FROM given")
    attacked = data.select("example_id", score=pl.Series(rng.normal(size=len(data))))
    for of in ("target", "everyone/finetune", "anna-mueller/retrain"):
        put(con, ATTACK_SCORES, attacked.with_columns(audited=pl.lit(of), attack=pl.lit("lira"), seed=0))
    sets = {"everyone": train["label_name"] != "cat", "one-man": train["owner"] == "token-of-solo"}
    sets |= {"anna-mueller": train["owner"] == "token-of-anna"}
    for name, chosen in sets.items():
        role = pl.when(chosen).then(pl.lit("forget")).otherwise(pl.lit("retain"))
        put(con, MEMBERS, train.select("example_id", dataset_id=pl.lit(name), role=role, reason=pl.lit("because")))
    put(con, DATASETS, pl.DataFrame({"dataset_id": list(sets), "method": ["a", "b", "secret_method"]}))
    abouts = [
        "target",
        "everyone/finetune",
        "one-man/finetune",
        "anna-mueller/retrain",
        "shadow/finetune",
        "Client Anna",
    ]
    stages = ["photos/audits/findings"] * 6
    stages[3] = "photos/request_audits/anna-mueller/findings"
    put(
        con,
        FINDINGS,
        pl.DataFrame(
            {
                "stage": stages,
                "about": abouts,
                "what": "lira",
                "method": "finetune",
                "kind": "attack",
                "verdict": "fail",
                "judged": True,
                "sentence": "ids 7000001 of anna",
                "value": 0.123456,
                "low": 0.1,
                "high": 0.2,
                "threshold": 0.5,
            }
        ),
    )
    put(
        con,
        FINDINGS,
        pl.DataFrame({"stage": stages[0], "about": "target", "what": "examples", "value": 3.0, "verdict": "fail"}),
    )
    reports = pl.DataFrame({"audited": abouts[:4], "attack": "lira", "seed": 0, "auc": 0.512345, "n_pos": 61})
    put(con, ATTACK_REPORTS, reports)
    put(con, SCORE_RUNS, pl.DataFrame({"score": ["el2n", "flat"], "passed": [True, False], "reason": "7000001 is bad"}))
    put(con, CHECKPOINTS, pl.DataFrame({"role": ["target", "unlearned/x"], "recipe": ["supervised", "other"]}))
    runs = {"split": ["everyone", "anna-mueller"], "method": ["finetune", "secret_method"], "status": "ok"}
    put(con, UNLEARNING_RUNS, pl.DataFrame(runs))
    put(con, ACCEPTANCE, pl.DataFrame({"method": ["finetune"], "accepted": [False]}))
    for name, state in (("anna-mueller", "closed"), ("r2", "verified")):
        row = {"request_id": [name], "state": [state], "selector": ["owner"], "legal_basis": ["because"]}
        put(con, REGISTER, pl.DataFrame(row | {"received_at": [NOW], "due_at": [NOW], "num_examples": [1]}))
        put(
            con,
            REQUEST_EVENTS,
            pl.DataFrame({"request_id": [name], "seq": [0], "state": [state], "note": ["because"], "at": [NOW]}),
        )
    issued = {"request_id": ["anna-mueller"] * 2, "serial": [1, 2], "verdict": ["fail", "pass"], "method": "retrain"}
    issued |= {"artifact": "photos/anna", "sha256": ["aa", "bb"], "issued_at": NOW, "expires_at": NOW}
    put(con, CERTIFICATES, pl.DataFrame(issued))
    con.execute("INSERT INTO ledger.entries VALUES (1, '0', 'h', 'note', '{\"of\": \"anna\"}')")


def shown(con: duckdb.DuckDBPyConnection, k: int = K) -> Frames:
    return auditors.tables_of(con, k=k, salt=SALT)


def members(data: pl.DataFrame, row: dict[str, Any]) -> pl.DataFrame:
    """The examples that a row of ``groups`` counts, by what its columns say."""
    data = data.filter(pl.col("subject") == row["subject"])
    if row["level"] == "band":
        size = pl.col("example_id").count().over("owner")
        bands = {"1": (1, 1), "2-9": (2, 9), "10-99": (10, 99), "100 and more": (100, 10**9)}
        nobody = pl.col("owner") == ""
        if row["band"] == "nobody's":
            return data.filter(nobody)
        return data.filter(~nobody & size.is_between(*bands[row["band"]]))
    for column, name in (("split", "split"), ("class", "label_name")):
        if row[column] is not None:
            data = data.filter(pl.col(name) == row[column])
    return data


def differences(data: pl.DataFrame, groups: pl.DataFrame, k: int = K) -> list[tuple[dict[str, Any], ...]]:
    """Every row of ``groups``, and every pair of them of which one holds the other (by subject and content), whose
    people, or people between, are 1 to k - 1. Then every whole less all its shown parts, of each way to divide it."""
    data = data.with_columns(person=pl.when(pl.col("owner") == "").then(pl.col("content_hash")).otherwise("owner"))
    rows = groups.to_dicts()
    pairs = [set(members(data, row).select("content_hash", "person").iter_rows()) for row in rows]
    things = [{thing for thing, _ in found} for found in pairs]
    found: list[tuple[dict[str, Any], ...]] = []

    def few(left: set[tuple[str, str]]) -> bool:
        return 0 < len({person for _, person in left}) < k

    found += [(row,) for row, mine in zip(rows, pairs, strict=True) if few(mine)]
    for (i, a), (j, b) in itertools.permutations(enumerate(rows), 2):
        if things[j] < things[i] and few({p for p in pairs[i] if p[0] not in things[j]}):
            found.append((a, b))
    for i, whole in enumerate(rows):
        below = {"all": ("split", "band"), "split": ("class",)}.get(whole["level"], ())
        for level in below:
            parts = [j for j, r in enumerate(rows) if r["level"] == level and r["subject"] == whole["subject"]]
            parts = [j for j in parts if level != "class" or rows[j]["split"] == whole["split"]]
            if parts and few(pairs[i].difference(*(pairs[j] for j in parts))):
                found.append((whole, *(rows[j] for j in parts)))
    return found


def of_photos(data: pl.DataFrame) -> pl.DataFrame:
    return data.with_columns(subject=pl.lit("photos"))


def test_small_classes_owners_and_what_tells_of_them_are_not_counted(con: duckdb.DuckDBPyConnection) -> None:
    data = photos()
    fill(con, data)
    groups = shown(con)["groups"]
    classes = groups.filter(pl.col("level") == "class").select("split", "class").rows()
    assert classes == [("test", "cat"), ("test", "dog"), ("train", "dog"), ("train", "gnu")]
    assert groups.filter(pl.col("level") == "band").height == 0, "one owner of one example, one of 60"
    assert groups.select("level", "complete").unique().sort("level", "complete").rows() == [
        ("all", False),
        ("class", True),
        ("split", False),
        ("split", True),
    ]
    assert differences(of_photos(data), groups) == []
    for row in groups.iter_rows(named=True):
        mine = members(of_photos(data), row)
        assert (row["num_examples"], row["num_people"]) == (mine.height, mine["owner"].n_unique() // K * K)


def test_no_id_name_path_token_note_or_sentence_is_in_any_cell(con: duckdb.DuckDBPyConnection) -> None:
    fill(con, photos())
    frames = shown(con)
    assert set(frames) == {spec.name for spec in auditors_tables.TABLES}
    for name, frame in frames.items():
        assert frame.height, f"{name} shows nothing: the test would be none"
        text = json.dumps(frame.to_dicts(), default=str)
        assert [secret for secret in SECRET if secret in text] == [], name


def test_numbers_of_people_tell_of_nobody_who_is_in_one_part_alone(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People are in several parts: where 42 are in all and 40 in training, two are in the test split alone."""
    rows = [(split, label, f"token{i}") for i in range(40) for split in ("train", "test") for label in "ab"]
    rows += [("test", label, f"token{i}") for i in (40, 41) for label in "ab"]
    data = people(rows)
    put(con, EXAMPLES, data)
    groups = shown(con)["groups"]
    numbers = groups.filter(pl.col("level").is_in(["all", "split"]))["num_people"].to_list()
    assert numbers == [40, 40, 40] and differences(of_photos(data), groups) == []
    assert not close_numbers(groups)
    monkeypatch.setattr(auditors, "_counted", lambda counts, *_: counts.with_columns(complete=pl.lit(True)))
    assert close_numbers(shown(con)["groups"])


def close_numbers(groups: pl.DataFrame, k: int = K) -> list[tuple[int, int]]:
    """All pairs of numbers of people, of whichever rows, that are 1 to k - 1 apart; and numbers below k."""
    numbers = [0, *groups["num_people"]]
    return [(a, b) for a, b in itertools.permutations(numbers, 2) if 0 < a - b < k]


def broken(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "no complementary step":
        monkeypatch.setattr(suppression, "_complement", lambda *_: set())
    if how == "rows are counted, not owners":
        by_rows = auditors._PLACED.replace(
            "CASE WHEN owner = '' THEN '#' || example_id ELSE owner END", "'#' || example_id"
        )
        assert by_rows != auditors._PLACED
        monkeypatch.setattr(auditors, "_PLACED", by_rows)
    if how == "other groups are not looked at":
        monkeypatch.setattr(auditors, "_nearly_another", lambda *_: set())


@pytest.mark.parametrize("how", ["no complementary step", "rows are counted, not owners"])
def test_a_door_that_leaves_a_step_out_is_caught(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    data = photos()
    fill(con, data)
    broken(monkeypatch, how)
    assert differences(of_photos(data), shown(con)["groups"]) != []


def others(data: pl.DataFrame) -> pl.DataFrame:
    """A subject on the same photos without those of three people, under ids of its own."""
    kept = data.filter(~pl.col("owner").is_in(["token12", "token13", "token14"]), pl.col("label_name") != "emu")
    return kept.with_columns(example_id=pl.col("example_id") + 1_000)


def test_a_subject_that_lacks_a_few_people_of_another_is_not_counted_beside_it(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer, data = others(photos()), photos()
    put(con, EXAMPLES, fewer, "fewer")
    both = pl.concat([of_photos(data), fewer.with_columns(subject=pl.lit("fewer"))])
    alone = shown(con)["groups"]
    assert alone.filter(pl.col("level") == "class").height > 0 and differences(both, alone) == []
    put(con, EXAMPLES, data)
    groups = shown(con)["groups"]
    assert differences(both, groups) == [] and set(groups["subject"]) >= {"photos"}
    broken(monkeypatch, "other groups are not looked at")
    assert differences(both, shown(con)["groups"]) != []


@pytest.mark.parametrize("owned", ["photos", "fewer"])
def test_the_same_examples_may_have_owners_in_one_subject_only(con: duckdb.DuckDBPyConnection, owned: str) -> None:
    data = photos()
    fewer = data.filter(~pl.col("owner").is_in(["token-of-anna", "token3"])).with_columns(pl.col("example_id") + 1_000)
    if owned == "photos":
        fewer = fewer.with_columns(owner=pl.lit(""))
    else:
        data = data.with_columns(owner=pl.lit(""))
    put(con, EXAMPLES, data)
    put(con, EXAMPLES, fewer, "fewer")
    both = pl.concat([of_photos(data), fewer.with_columns(subject=pl.lit("fewer"))])
    groups = shown(con)["groups"]
    assert differences(both, groups) == [] and "photos" in groups["subject"]


@pytest.mark.parametrize("seed", range(12))
def test_nothing_small_in_random_worlds(con: duckdb.DuckDBPyConnection, seed: int) -> None:
    rng = np.random.default_rng(seed)
    num = int(rng.integers(40, 400))
    spread = rng.dirichlet(np.full(6, 0.5))
    owners = np.minimum(rng.geometric(0.03, num), 60)
    rows = [
        (("train", "test")[int(rng.random() < 0.2)], f"class{rng.choice(6, p=spread)}", "" if n % 7 == 0 else f"o{n}")
        for n in owners.tolist()
    ]
    data = people(rows)
    part = data.filter(pl.Series(rng.random(num) < 0.97)).with_columns(example_id=pl.col("example_id") + 10_000)
    put(con, EXAMPLES, data)
    put(con, EXAMPLES, part, "part")
    both = pl.concat([of_photos(data), part.with_columns(subject=pl.lit("part"))])
    for k in (5, 11):
        groups = shown(con, k)["groups"]
        assert differences(both, groups, k) == [] and close_numbers(groups, k) == []
    assert shown(con, 5)["groups"].height > 0


def test_counts_are_exact_and_hide_nothing_where_all_groups_are_large(con: duckdb.DuckDBPyConnection) -> None:
    data = people([(s, c, "") for s in ("train", "test") for c in "ab" for _ in range(30)])
    put(con, EXAMPLES, data)
    groups = shown(con)["groups"]
    assert groups.select("level", "split", "class", "band", "num_examples", "num_people").rows() == [
        ("all", None, None, None, 120, 120),
        ("class", "test", "a", None, 30, 30),
        ("class", "test", "b", None, 30, 30),
        ("class", "train", "a", None, 30, 30),
        ("class", "train", "b", None, 30, 30),
        ("split", "test", None, None, 60, 60),
        ("split", "train", None, None, 60, 60),
    ]
    assert groups["complete"].all()


def test_values_are_those_of_the_group_to_three_digits(con: duckdb.DuckDBPyConnection) -> None:
    data = people([("train", c, "") for c in "ab" for _ in range(250)])
    put(con, EXAMPLES, data)
    value = np.random.default_rng(0).normal(size=500)
    given = data.select("example_id", subject=pl.lit("photos"), score=pl.lit("el2n"), value=pl.Series(value))
    con.register("given", given)
    con.execute("INSERT INTO scores.latest BY NAME SELECT * FROM given")
    rows = {row["class"]: row for row in shown(con)["scores"].iter_rows(named=True)}
    assert set(rows) == {None, "a", "b"}
    for name, part in ((None, value), ("a", value[:250]), ("b", value[250:])):
        assert rows[name]["mean"] == pytest.approx(part.mean(), rel=6e-3)
        for q in (25, 50, 75, 95):
            wanted = np.percentile(part, q)
            assert rows[name][f"p{q}"] == pytest.approx(wanted, rel=6e-3) and rows[name][f"p{q}"] != wanted
    rows = {row["class"]: row for row in shown(con, 13)["scores"].iter_rows(named=True)}
    assert rows["a"]["p95"] is None and rows["a"]["p75"] is not None, "13 of 250 are not beyond the 95th percentile"


def test_values_of_few_kinds_or_nearly_all_are_not_shown_nor_what_gives_them_away(
    con: duckdb.DuckDBPyConnection,
) -> None:
    fill(con, photos())
    scores = shown(con)["scores"]
    assert set(scores.filter(pl.col("score") == "el2n")["class"]) == {None, "dog", "gnu"}
    assert set(scores.filter(pl.col("score") == "flat")["class"]) == {None, "gnu"}, "all dogs are 0; cats go with them"
    assert scores.filter(pl.col("score") == "holes").height == 0, "four people of the split have no value"
    exposure = shown(con)["exposure"]
    assert set(exposure["class"]) == {None, "cat", "dog", "gnu"} and set(exposure["attack"]) == {"lira"}


def test_figures_are_about_what_is_large_and_never_about_a_request(con: duckdb.DuckDBPyConnection) -> None:
    fill(con, photos())
    frames = shown(con)
    assert frames["attacks"].select("audited", "auc").rows() == [("everyone/finetune", 0.512), ("target", 0.512)]
    findings = frames["findings"].sort("about", "what", nulls_last=True)
    told = {(r["about"], r["what"], r["request"] is not None): r["value"] for r in findings.iter_rows(named=True)}
    assert told == {
        ("", "lira", False): None,
        ("", "lira", True): None,
        ("everyone/finetune", "lira", False): 0.123,
        ("shadow/finetune", "lira", False): 0.123,
        ("target", "examples", False): None,
        ("target", "lira", False): 0.123,
    }
    assert findings.height == 7 and set(findings["verdict"]) == {"fail"}, "every verdict is there"


def test_requests_stand_under_tokens_with_days(con: duckdb.DuckDBPyConnection) -> None:
    fill(con, photos())
    frames = shown(con)
    token = auditors.request_token("anna-mueller", salt=SALT)
    assert token != auditors.request_token("anna-mueller", salt=b"t" * 32) and len(token) == 16
    row = frames["requests"].filter(request=token).row(0, named=True)
    day = date(2026, 11, 24)
    assert (row["state"], row["received"], row["closed"], row["verdict"]) == ("closed", day, day, "pass")
    assert frames["requests"].height == 2 and frames["request_events"].height == 2
    assert frames["certificates"].select("request", "serial", "sha256").rows() == [(token, 1, "aa"), (token, 2, "bb")]
    assert frames["ledger"].rows() == [(1, "h")]
    assert frames["methods"].select("kind", "name", "outcome").rows() == [
        ("attack", "lira", ""),
        ("curation", "a", ""),
        ("curation", "b", ""),
        ("removal for requests", "finetune", "not accepted"),
        ("score", "el2n", "gates met"),
        ("score", "flat", "gates not met"),
        ("training", "supervised", "target"),
        ("unlearning", "finetune", "ok"),
    ]


def test_the_order_of_stored_rows_does_not_matter(con: duckdb.DuckDBPyConnection) -> None:
    fill(con, photos())
    before = shown(con)
    rows = con.execute("SELECT * FROM data.examples ORDER BY hash(example_id)").pl()
    con.execute("DELETE FROM data.examples")
    put(con, EXAMPLES, rows)
    after = shown(con)
    assert all(before[name].equals(after[name]) for name in before)


def test_an_empty_warehouse_has_empty_tables(con: duckdb.DuckDBPyConnection) -> None:
    assert {name: frame.height for name, frame in shown(con).items() if frame.height} == {"ledger": 1}


# ------------------------------------------------------------------------------------------------ the door itself


@pytest.fixture(scope="module")
def ask(empty: duckdb.DuckDBPyConnection) -> Callable[..., pl.DataFrame]:
    empty.begin()
    try:
        fill(empty, photos())
        frames = shown(empty)
    finally:
        empty.rollback()
    return lambda sql, params=(), **more: auditors.query(frames, sql, params, limits=LIMITS, **more)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM groups",
        "FROM auditors.groups WHERE level = 'class'",
        "DESCRIBE requests",
        "SHOW ALL TABLES",
        "SUMMARIZE scores",
        "SELECT table_name, comment FROM duckdb_tables()",
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'groups'",
        "SELECT a.num_people - b.num_people FROM groups a, groups b",
    ],
)
def test_free_sql_runs_over_the_tables(ask: Callable[..., pl.DataFrame], sql: str) -> None:
    found = ask(sql)
    assert found.height > 0
    text = json.dumps(found.to_dicts(), default=str)
    assert [secret for secret in SECRET if secret in text] == []


@pytest.mark.promise("B7")
@pytest.mark.parametrize(
    "sql",
    [
        "",
        "SELECT 1; SELECT 2",
        "SELECT * FROM data.examples",
        "SELECT * FROM palimpsest.data.examples",
        "SELECT * FROM placed",
        "SELECT * FROM temp.placed",
        "SELECT * FROM incoming",
        "INSERT INTO groups SELECT * FROM groups",
        "DROP TABLE groups",
        "CREATE TABLE x AS SELECT 1",
        "ATTACH '{snapshot}' AS s",
        "SELECT * FROM '{snapshot}'",
        "SELECT * FROM read_text('/etc/passwd')",
        "COPY groups TO '{out}'",
        "SET enable_external_access = true",
        "PRAGMA database_list",
        "SELECT * FROM duckdb_settings()",
        "SELECT current_setting('temp_directory')",
        "SELECT getenv('HOME')",
        "SELECT * FROM frames",
        "INSTALL httpfs",
    ],
)
def test_nothing_else_can_be_asked_or_done(ask: Callable[..., pl.DataFrame], tmp_path: Path, sql: str) -> None:
    frames = pl.DataFrame({"a": [1]})  # noqa: F841  (a Python variable must not become a table)
    with pytest.raises(InvalidInput):
        ask(sql.format(snapshot=tmp_path / "x.duckdb", out=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_statement_that_runs_for_ever_is_stopped(ask: Callable[..., pl.DataFrame]) -> None:
    endless = "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range + b.range = -1"
    with pytest.raises(InvalidInput, match=r"took longer than 0\.3 s"):
        ask(endless, limit_s=0.3)


def test_the_examples_of_the_page_run(ask: Callable[..., pl.DataFrame]) -> None:
    block = auditors_tables.page().split("```sql\n")[1].split("```")[0]
    asked = [part for part in block.split(";\n") if part.strip()]
    assert len(asked) == 4
    for sql in asked:
        ask(sql)


def test_the_page_is_fresh() -> None:
    assert (ROOT / "docs" / "auditors.md").read_text(encoding="utf-8") == auditors_tables.page(), (
        "python -c 'from warehouse.auditors_tables import page; print(page(), end=\"\")' > docs/auditors.md"
    )


def test_the_door_of_a_warehouse_reads_what_was_published_and_writes_nothing(w: Warehouse) -> None:
    looking = Warehouse.existing(w.home, limits=LIMITS)
    with pytest.raises(NotReady, match="palimpsest audit"):
        looking.query_groups("SELECT 1", k=K)
    data = photos().with_columns(label=0, target=pl.lit(None, dtype=pl.Float64))
    common: dict[str, Any] = {"subject": "photos", "run_id": "run", "config_digest": "c" * 64}
    w.salt()  # as the stage that forms the owners' tokens does
    w.replace(EXAMPLES, data, **common)
    w.publish()
    before = sorted((path, path.stat().st_mtime_ns) for path in w.home.rglob("*"))
    asked = "SELECT num_people FROM groups WHERE level = $level"
    assert looking.query_groups(asked, {"level": "all"}, k=K)["num_people"].to_list() == [40]
    assert sorted((path, path.stat().st_mtime_ns) for path in w.home.rglob("*")) == before
    with pytest.raises(InvalidInput, match="5 or more"):
        looking.query_groups("SELECT 1", k=1)


def test_k_is_set_for_the_installation_and_has_a_floor() -> None:
    assert Operations.from_mapping({}).auditors.k == 10
    assert Operations.from_mapping({"auditors": {"k": 25}}).auditors.k == 25
    with pytest.raises(ConfigError, match="k"):
        Operations.from_mapping({"auditors": {"k": 4}})
