"""The auditors' door: SQL over tables of groups made from the published snapshot, for people who may see no row.

    1. groups    every split, class and band of owner sizes is counted: examples, and people, who are distinct owners
                 (an example that is nobody's counts as one of its own)
    2. hidden    groups below k people, what they could be had from by subtraction (``warehouse.suppression``), and any
                 group that differs from a larger shown one, of any subject, by 1 to k - 1 people; numbers of people
                 are rounded down to multiples of k, since people, unlike examples, are in several parts of a whole
    3. values    means and quantiles of groups that are left, where the group has k different values, and of quantiles
                 where k people lie on either side; rounded to three digits, so that none is one example's value
    4. door      these tables alone, in a scratch instance: no external access, locked, the guard of
                 ``warehouse.statements``, a time limit

A statement cannot difference rows: there are none. Of a forget request there are states, days and verdicts under a
token, never a figure. No sentence, note, path or name that somebody wrote about a request is in any table. What this
cannot stop stands in SECURITY.md: k bounds what one publication tells, not what two tell together.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import polars as pl

from contracts.errors import InvalidInput
from warehouse import connection, statements
from warehouse.auditors_tables import SCHEMA, TABLES, Shown
from warehouse.chain import head_of
from warehouse.connection import CATALOG, Connection, Limits, fetch, literal
from warehouse.ddl import quoted
from warehouse.suppression import Group, hidden

LIMIT_S = 60.0  # a statement of an outsider
SPILL = "1GB"
DIGITS = 3
QUANTILES = {"p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}

_PLACED = """
CREATE TEMP TABLE placed AS
WITH person AS (
    SELECT subject, example_id, split, label_name AS class, content_hash AS thing, owner <> '' AS owned,
        CASE WHEN owner = '' THEN '#' || example_id ELSE owner END AS unit
    FROM data.examples
), sized AS (
    SELECT *, count(*) OVER (PARTITION BY subject, unit) AS size,
        bool_or(owned) OVER (PARTITION BY subject) AS has_owners
    FROM person
)
SELECT subject, example_id, split, class, thing, unit,
    CASE WHEN NOT has_owners THEN NULL WHEN NOT owned THEN 'nobody''s' WHEN size = 1 THEN '1' WHEN size < 10 THEN '2-9'
        WHEN size < 100 THEN '10-99' ELSE '100 and more' END AS band
FROM sized
"""
_CELLS = """
SELECT CASE WHEN GROUPING(split) = 0 AND GROUPING(class) = 0 THEN 'class' WHEN GROUPING(split) = 0 THEN 'split'
        WHEN GROUPING(band) = 0 THEN 'band' ELSE 'all' END AS level,
    subject, split, class, band, count(*) AS num_examples, count(DISTINCT unit) AS num_people
FROM placed GROUP BY GROUPING SETS ((subject), (subject, split), (subject, split, class), (subject, band))
HAVING level <> 'band' OR band IS NOT NULL
ORDER BY subject, level, split, class, band
"""
_PLACE = ("subject", "split", "class")
_KEYS = {"all": (), "split": ("split",), "class": ("split", "class"), "band": ("band",)}
# Of two cells one may hold the other where they are of different subjects, or divide the whole in different ways or one
# of them a part of the other; there may be owners in one subject and none in the other.
_PAIRS = """
CREATE TEMP TABLE pair AS SELECT a.key AS a, b.key AS b FROM cell a JOIN cell b
ON a.key <> b.key AND a.num_examples >= b.num_examples
    AND (a.num_people - b.num_people < $k OR a.num_examples - b.num_examples < $k)
    AND (a.subject <> b.subject
        OR (a.level <> b.level AND (a.split IS NULL OR b.split IS NULL OR a.split = b.split)))
"""
_MEMBER = "CREATE TEMP TABLE member AS " + " UNION ALL ".join(
    f"SELECT c.key, p.thing, p.unit FROM placed p JOIN cell c USING ({', '.join(('subject', *names))}) "
    f"WHERE c.level = '{level}' AND c.key IN (SELECT a FROM pair UNION SELECT b FROM pair)"
    for level, names in _KEYS.items()
)
_BETWEEN = """
WITH outside AS (
    SELECT DISTINCT p.a, p.b FROM pair p JOIN member o ON o.key = p.b
    LEFT JOIN member i ON i.key = p.a AND i.thing = o.thing WHERE i.key IS NULL
), nested AS (SELECT a, b FROM pair EXCEPT SELECT a, b FROM outside)
SELECT n.b FROM nested n JOIN member m ON m.key = n.a
LEFT JOIN member o ON o.key = n.b AND o.thing = m.thing
WHERE o.key IS NULL GROUP BY n.a, n.b HAVING count(DISTINCT m.unit) < $k
"""
_SCORES = "SELECT subject, score AS name, NULL::BIGINT AS seed, example_id, value FROM scores.latest"
_EXPOSURE = """
SELECT subject, attack AS name, seed, example_id, score AS value FROM audits.attack_scores WHERE audited = 'target'
"""


def _values(source: str) -> str:
    """Every (name, seed) of a relation of values, by split, and by split and class."""
    quantiles = ", ".join(f"quantile_cont(v.value, {q}) AS {name}" for name, q in QUANTILES.items())
    return f"""
WITH given AS ({source}), asked AS (SELECT DISTINCT subject, name, seed FROM given)
SELECT p.subject, a.name, a.seed, p.split, p.class, GROUPING(p.class) = 1 AS whole,
    count(DISTINCT p.unit) FILTER (v.value IS NOT NULL) AS num_people,
    count(DISTINCT p.unit) FILTER (v.value IS NULL) AS num_without,
    count(DISTINCT v.value) AS num_values, avg(v.value) AS mean, {quantiles}
FROM placed p JOIN asked a USING (subject)
LEFT JOIN given v ON v.subject = p.subject AND v.name = a.name AND v.seed IS NOT DISTINCT FROM a.seed
    AND v.example_id = p.example_id
GROUP BY GROUPING SETS ((p.subject, a.name, a.seed, p.split), (p.subject, a.name, a.seed, p.split, p.class))
ORDER BY ALL
"""


_SETS = """
SELECT m.subject, m.dataset_id AS name, count(DISTINCT p.unit) FILTER (m.role = 'forget') AS inside,
    count(DISTINCT p.unit) FILTER (m.role <> 'forget') AS outside
FROM curation.members m JOIN placed p USING (subject, example_id)
WHERE m.dataset_id NOT IN (SELECT request_id FROM requests.register)
GROUP BY ALL
"""
_ATTACKS = """
SELECT subject, audited, attack, seed, auc, auc_lo, auc_hi, fpr_cap, tpr, tpr_lo, tpr_hi, fpr, fpr_lo, fpr_hi, reliable
FROM audits.attack_reports ORDER BY subject, audited, attack, seed, fpr_cap
"""
_FINDINGS = """
SELECT subject, stage, about, what, method, kind, verdict, judged, value, low, high, threshold
FROM audits.findings ORDER BY subject, stage, about, what
"""
_REQUESTS = """
SELECT r.subject, r.request_id, r.selector, r.state, r.received_at::DATE AS received, r.due_at::DATE AS due,
    e.closed, c.method, c.verdict
FROM requests.register r
LEFT JOIN (SELECT subject, request_id, max("at")::DATE AS closed FROM requests.events WHERE state = 'closed'
    GROUP BY ALL) e USING (subject, request_id)
LEFT JOIN (SELECT subject, request_id, arg_max(method, serial) AS method, arg_max(verdict, serial) AS verdict
    FROM certificates.issued GROUP BY ALL) c USING (subject, request_id)
ORDER BY r.received_at, r.request_id
"""
_EVENTS = 'SELECT subject, request_id, seq, state, "at"::DATE AS day FROM requests.events'
_CERTIFICATES = """
SELECT subject, request_id, serial, method, verdict, issued_at::DATE AS issued, expires_at::DATE AS expires, sha256,
    report_sha256, key_id
FROM certificates.issued ORDER BY subject, request_id, serial
"""
_METHODS = """
SELECT DISTINCT subject, 'score' AS kind, score AS name,
    CASE WHEN passed THEN 'gates met' ELSE 'gates not met' END AS outcome
FROM scores.runs
UNION SELECT subject, 'training', recipe, role FROM models.checkpoints
    WHERE role IN ('target', 'early') AND recipe <> ''
UNION SELECT subject, 'attack', attack, '' FROM audits.attack_reports
UNION SELECT subject, 'curation', method, '' FROM curation.datasets
    WHERE dataset_id NOT IN (SELECT request_id FROM requests.register)
UNION SELECT subject, 'unlearning', method, status FROM unlearning.runs
    WHERE split NOT IN (SELECT request_id FROM requests.register)
UNION SELECT subject, 'removal for requests', method, CASE WHEN accepted THEN 'accepted' ELSE 'not accepted' END
    FROM unlearning.acceptance
ORDER BY ALL
"""


def query(
    frames: Mapping[str, pl.DataFrame],
    sql: str,
    params: Sequence[Any] | Mapping[str, Any] = (),
    *,
    limits: Limits,
    limit_s: float = LIMIT_S,
) -> pl.DataFrame:
    """Rows of one reading statement over the tables of groups.

    Args:
        frames: of :func:`tables_of`.

    Raises:
        InvalidInput: not one SELECT (or DESCRIBE, SHOW, SUMMARIZE, EXPLAIN), one that names anything else, one that
            takes longer than ``limit_s`` seconds, or one that DuckDB refuses.
    """
    with connection.scratch(limits=limits) as con:
        fill(con, frames)
        connection.lock_down(con)
        statements.check(con, sql)
        try:
            with connection.in_time(con, limit_s):
                return fetch(con, sql, params)
        except duckdb.Error as error:
            raise InvalidInput(f"the query was refused: {error}") from error


def fill(con: Connection, frames: Mapping[str, pl.DataFrame]) -> None:
    """The tables in an empty instance, as :data:`CATALOG`."""
    con.execute(f"SET max_temp_directory_size = {literal(SPILL)}")
    con.execute(f"ATTACH ':memory:' AS {CATALOG}")
    con.execute(f"USE {CATALOG}")
    con.execute(f"CREATE SCHEMA {SCHEMA}")
    for spec in TABLES:
        con.register("incoming", frames[spec.name])
        columns = ", ".join(f"{quoted(c.name)}::{c.type} AS {quoted(c.name)}" for c in spec.columns)
        con.execute(f"CREATE TABLE {SCHEMA}.{quoted(spec.name)} AS SELECT {columns} FROM incoming")
        con.unregister("incoming")
        con.execute(f"COMMENT ON TABLE {SCHEMA}.{quoted(spec.name)} IS {literal(spec.doc)}")
        for column in spec.columns:
            of = f"{SCHEMA}.{quoted(spec.name)}.{quoted(column.name)}"
            con.execute(f"COMMENT ON COLUMN {of} IS {literal(column.doc)}")
    con.execute(f"USE {CATALOG}.{SCHEMA}")


def tables_of(con: Connection, *, k: int, salt: bytes) -> dict[str, pl.DataFrame]:
    """What an auditor may see of the warehouse that ``con`` has open: a frame for each of ``auditors_tables.TABLES``.

    Args:
        con: the published snapshot, read-only.
        k: the fewest people of a shown group, 5 or more. Fixed for an installation: two values tell more than one.
        salt: of the request tokens.

    Raises:
        InvalidInput: k is below 5.
    """
    con.execute(_PLACED)
    cells = fetch(con, _CELLS).with_row_index("key").cast({"key": pl.Int64})
    gone, refused = _hidden_cells(con, cells, k)
    counts = cells.filter(~pl.col("key").is_in(gone))
    place = cells.filter(pl.col("level").is_in(["split", "class"])).select(
        *_PLACE, counted=~pl.col("key").is_in(gone), refused=pl.col("key").is_in(refused)
    )
    shown = {name: _summaries(con, source, place, k) for name, source in (("scores", _SCORES), ("exposure", _EXPOSURE))}
    large = _large_sets(con, counts, k)
    requests = fetch(con, _REQUESTS)
    ids = requests["request_id"].to_list()
    token = pl.DataFrame(
        {"request_id": ids, "request": [request_token(name, salt=salt) for name in ids]},
        schema={"request_id": pl.String, "request": pl.String},
    )
    head = head_of(con)
    frames = {
        "groups": _counted(counts, cells, gone, k),
        **shown,
        "attacks": _attacks(fetch(con, _ATTACKS), large),
        "findings": _findings(fetch(con, _FINDINGS), token, large),
        "requests": _under_token(requests, token),
        "request_events": _under_token(fetch(con, _EVENTS), token),
        "certificates": _under_token(fetch(con, _CERTIFICATES), token),
        "methods": fetch(con, _METHODS),
        "ledger": pl.DataFrame({"seq": [head.seq], "hash": [head.hash]}),
    }
    con.execute("DROP TABLE placed")
    return {spec.name: _as_declared(frames[spec.name], spec) for spec in TABLES}


def request_token(request_id: str, *, salt: bytes) -> str:
    """What stands for a forget request in place of its id, which may be a name: 16 hex digits of HMAC-SHA256(salt,
    "request" NUL id)."""
    return hmac.new(salt, b"request\0" + request_id.encode("utf-8"), hashlib.sha256).hexdigest()[:16]


def _hidden_cells(con: Connection, cells: pl.DataFrame, k: int) -> tuple[list[int], list[int]]:
    """Keys of the cells that are not shown: by size, by subtraction within a subject, by what they lack of another; and
    those of the last kind alone."""
    rows = cells.select("key", "subject", "level", "split", "num_people").to_dicts()
    at: dict[tuple[str, str, str | None], int] = {
        (r["subject"], r["level"], r["split"]): r["key"] for r in rows if r["level"] in ("all", "split")
    }

    def parent(row: Mapping[str, Any]) -> int | None:
        if row["level"] == "all":
            return None
        return at[(row["subject"], "split", row["split"]) if row["level"] == "class" else (row["subject"], "all", None)]

    groups = [Group(key=r["key"], parent=parent(r), family=r["level"], units=r["num_people"]) for r in rows]
    refused: set[int] = set()
    while True:
        gone = hidden(groups, k, refused)
        found = _nearly_another(con, cells.filter(~pl.col("key").is_in(sorted(gone))), k)
        if not found:
            return sorted(gone), sorted(refused)
        refused |= found


def _nearly_another(con: Connection, cells: pl.DataFrame, k: int) -> set[int]:
    """Keys of cells inside another one that holds 1 to k - 1 people more."""
    con.register("incoming", cells)
    con.execute("CREATE TEMP TABLE cell AS SELECT * FROM incoming")
    con.unregister("incoming")
    con.execute(_PAIRS, {"k": k})
    con.execute(_MEMBER)
    found = {key for (key,) in con.execute(_BETWEEN, {"k": k}).fetchall()}
    for name in ("pair", "cell", "member"):
        con.execute(f"DROP TABLE {name}")
    return found


def _counted(counts: pl.DataFrame, cells: pl.DataFrame, gone: list[int], k: int) -> pl.DataFrame:
    """The shown cells; ``complete`` where no part of it is hidden. People are rounded down to a multiple of k: of 42 in
    all and 40 in a part, two would be those who are in the other parts alone."""
    lost = cells.filter(pl.col("key").is_in(gone)).select("subject", "split").rows()
    splits, subjects = set(lost), {subject for subject, _ in lost}
    whole = [
        row["level"] not in ("all", "split")
        or (row["subject"] not in subjects if row["level"] == "all" else (row["subject"], row["split"]) not in splits)
        for row in counts.iter_rows(named=True)
    ]
    return counts.with_columns(num_people=pl.col("num_people") // k * k, complete=pl.Series(whole, dtype=pl.Boolean))


def _summaries(con: Connection, source: str, place: pl.DataFrame, k: int) -> pl.DataFrame:
    """Means and quantiles of every score or attack in the groups that are left.

    Args:
        place: of each split, and class in a split, whether it is ``counted``, and whether it was ``refused``.
    """
    rows = fetch(con, _values(source)).filter(pl.col("num_people") > 0).with_row_index("key").cast({"key": pl.Int64})
    rows = rows.join(place, on=_PLACE, how="left", nulls_equal=True, maintain_order="left")
    of = ["subject", "name", "seed", "split"]
    at = {tuple(row[n] for n in of): row["key"] for row in rows.filter("whole").iter_rows(named=True)}
    groups = [
        Group(
            key=row["key"],
            parent=None if row["whole"] else at[tuple(row[n] for n in of)],
            family="class",
            units=row["num_people"],
        )
        for row in rows.iter_rows(named=True)
    ]
    few = (pl.col("num_values") < k) | pl.col("num_without").is_between(1, k - 1) | pl.col("refused")
    gone = hidden(groups, k, rows.filter(few)["key"].to_list())
    kept = rows.filter("counted", ~pl.col("key").is_in(sorted(gone)))
    beside = {name: pl.col("num_people") * min(q, 1 - q) >= k for name, q in QUANTILES.items()}
    return kept.with_columns(
        pl.col("mean").round_sig_figs(DIGITS),
        *(pl.when(enough).then(pl.col(name).round_sig_figs(DIGITS)).alias(name) for name, enough in beside.items()),
        level=pl.when("whole").then(pl.lit("split")).otherwise(pl.lit("class")),
        score="name",
        attack="name",
    )


def _large_sets(con: Connection, counts: pl.DataFrame, k: int) -> dict[str, set[str]]:
    """By subject, what figures may be about: the audited model, where both splits are shown, and sets of the plan that
    are neither less than k people nor leave less than k."""
    splits = counts.filter(pl.col("level") == "split")
    found: dict[str, set[str]] = {subject: set() for subject in splits["subject"].unique()}
    for subject, rows in splits.group_by("subject"):
        if set(rows["split"]) == {"train", "test"}:
            found[str(subject[0])].add("target")
    for row in fetch(con, _SETS).iter_rows(named=True):
        if row["subject"] in found and row["inside"] >= k and (row["outside"] == 0 or row["outside"] >= k):
            found[row["subject"]].add(row["name"])
    return found


def _may(large: Mapping[str, set[str]], column: str) -> pl.Expr:
    """Whether a figure is about something large: ``column`` is target or <set>/<method>."""
    names = ["", *(f"{subject}/{name}" for subject, sets in large.items() for name in sets)]
    return pl.concat_str("subject", pl.lit("/"), pl.col(column).str.split("/").list.first()).is_in(names)


def _attacks(rows: pl.DataFrame, large: Mapping[str, set[str]]) -> pl.DataFrame:
    figures = [name for name in rows.columns if rows.schema[name] == pl.Float64]
    return rows.filter(_may(large, "audited")).with_columns(pl.col(figures).round(DIGITS))


def _findings(rows: pl.DataFrame, token: pl.DataFrame, large: Mapping[str, set[str]]) -> pl.DataFrame:
    """Verdicts; figures that have an interval, of what is large. Names that another program may have chosen are left
    out: ``about`` is target, a set of the plan, or a method among shadow runs."""
    parts = pl.col("stage").str.split("/")
    is_request = parts.list.get(1, null_on_oob=True).str.starts_with("request_").fill_null(False)
    named = ~is_request & (_may(large, "about") | pl.col("about").str.starts_with("shadow/"))
    figures = named & pl.col("low").is_not_null() & pl.col("high").is_not_null()
    rows = rows.with_columns(
        request_id=pl.when(is_request).then(parts.list.get(2, null_on_oob=True)),
        about=pl.when(named).then("about").otherwise(pl.lit("")),
        **{name: pl.when(figures).then(pl.col(name).round(DIGITS)) for name in ("value", "low", "high")},
    ).join(token, on="request_id", how="left")
    return rows.filter(pl.col("request_id").is_null() | pl.col("request").is_not_null())


def _under_token(rows: pl.DataFrame, token: pl.DataFrame) -> pl.DataFrame:
    """Rows about requests, with tokens in place of ids; what is about no registered request is left out."""
    return rows.join(token, on="request_id", how="inner")


def _as_declared(frame: pl.DataFrame, spec: Shown) -> pl.DataFrame:
    """The declared columns and no others, rows in the order of their values: that of ids would tell."""
    chosen = frame.select(c.name for c in spec.columns)
    return chosen.sort(chosen.columns, nulls_last=False)
