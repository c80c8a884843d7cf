"""``scores.latest``: one long view over every score, generated whenever a score appears or changes.

``scores.latest(subject, score, example_id, value, stderr, higher_means, run_id, calls, is_called)`` shows a score only
while its row in ``scores.runs`` says that it met its gates; rows of another configuration than that row judged are not
shown. ``calls`` is what the score calls an example (noisy, hard, memorised, duplicate; "" nothing), ``is_called`` the
verdict of the score's own rule, null when it has none. Tables of analyses share the schema and are not scores.

``scores.agreement(subject, example_id, num_scores, high, says, mean_place, spread, highest, lowest)`` puts the scores
of an example side by side. ``high`` lists the scores that call it something, by their own rule or because it is in
their top 5% (equal values together, the smallest value never), and ``says`` what they call it. The places are shares of
the examples below it, compared over the scores of which a high one is a reason for doubt (noisy, hard, memorised):
``highest`` and ``lowest`` name the scores that place it so, ``spread`` is how far these are apart.

``unlearning.wide`` has a row a run, a column a metric (and the bounds of those that have any), for people; programs
read the long ``unlearning.metrics``.
"""

from __future__ import annotations

import hashlib

from contracts.methods import ScoreSpec
from contracts.schema import INTERVALS, METRICS
from warehouse.connection import Connection, first, literal
from warehouse.ddl import quoted

_EMPTY = (
    "SELECT NULL::VARCHAR AS subject, NULL::VARCHAR AS score, NULL::BIGINT AS example_id, NULL::DOUBLE AS value, "
    "NULL::DOUBLE AS stderr, NULL::VARCHAR AS higher_means, NULL::VARCHAR AS run_id, NULL::VARCHAR AS calls, "
    "NULL::BOOLEAN AS is_called WHERE false"
)
_AGREEMENT = """
CREATE OR REPLACE VIEW scores.agreement AS
WITH placed AS (
    SELECT subject, example_id, score, calls, calls IN ('noisy', 'hard', 'memorised') AS compares,
        percent_rank() OVER (PARTITION BY subject, score ORDER BY value) AS place,
        calls <> '' AND coalesce(is_called, value > min(value) OVER (PARTITION BY subject, score)
            AND rank() OVER (PARTITION BY subject, score ORDER BY value DESC)
                <= ceil(0.05 * count(*) OVER (PARTITION BY subject, score))) AS is_high
    FROM scores.latest
    WHERE value IS NOT NULL
)
SELECT subject, example_id, count(*) AS num_scores,
    coalesce(list(score ORDER BY score) FILTER (is_high), []) AS high,
    coalesce(list_sort(list_distinct(list(calls) FILTER (is_high))), []) AS says,
    avg(place) FILTER (compares) AS mean_place, max(place) FILTER (compares) - min(place) FILTER (compares) AS spread,
    arg_max(score, place) FILTER (compares) AS highest, arg_min(score, place) FILTER (compares) AS lowest
FROM placed
GROUP BY subject, example_id;
"""
_COMMENT = (
    "What all current scores say of an example: who calls it noisy, hard, memorised or duplicate, and the places they "
    f"give it. Definition {hashlib.sha256(_AGREEMENT.encode()).hexdigest()[:12]}."
)
AGREEMENT = f"{_AGREEMENT}COMMENT ON VIEW scores.agreement IS {literal(_COMMENT)};"
_LAYOUT = """
CREATE SCHEMA IF NOT EXISTS scores;
CREATE TABLE IF NOT EXISTS meta.scores (score VARCHAR NOT NULL, value VARCHAR NOT NULL, stderr VARCHAR NOT NULL);
ALTER TABLE meta.scores ADD COLUMN IF NOT EXISTS calls VARCHAR DEFAULT '';
ALTER TABLE meta.scores ADD COLUMN IF NOT EXISTS called VARCHAR DEFAULT '';
COMMENT ON TABLE meta.scores IS 'Which columns of a score table scores.latest shows, and which condition calls an example something.';
"""


def _wide() -> str:
    """The statement behind ``unlearning.wide``. No EXCLUDE: DuckDB keeps its names in no fixed order."""
    columns = {}
    for metric in METRICS:
        columns[metric] = ("value", metric)
        if metric in INTERVALS:
            columns |= {f"{metric}_lo": ("low", metric), f"{metric}_hi": ("high", metric)}
    made = ",\n        ".join(
        f"max(m.{of}) FILTER (m.metric = {literal(metric)}) AS {quoted(name)}" for name, (of, metric) in columns.items()
    )
    return (
        f"SELECT r.*, {', '.join(f'w.{quoted(name)}' for name in columns)}\nFROM unlearning.runs r LEFT JOIN (\n"
        f"    SELECT m.subject, m.split, m.method, m.seed,\n        {made}\n"
        f"    FROM unlearning.metrics m GROUP BY m.subject, m.split, m.method, m.seed\n"
        f") w USING (subject, split, method, seed)"
    )


WIDE = _wide()
_WIDE_COMMENT = (
    "One row an unlearning run, one column a metric of unlearning.metrics. "
    f"Definition {hashlib.sha256(WIDE.encode()).hexdigest()[:12]}."
)


def outdated(con: Connection) -> list[str]:
    """The views that are not there, or were laid out by another version of this program."""
    found = dict(
        con.execute(
            "SELECT schema_name || '.' || view_name, comment FROM duckdb_views() "
            "WHERE database_name = current_database() AND NOT internal"
        ).fetchall()
    )
    expected = {"scores.agreement": _COMMENT, "unlearning.wide": _WIDE_COMMENT}
    return [name for name, comment in expected.items() if found.get(name) != comment]


def lay_out_wide(con: Connection) -> None:
    """``unlearning.wide`` over the tables of runs and metrics, inside the caller's transaction."""
    con.execute(f"CREATE OR REPLACE VIEW unlearning.wide AS\n{WIDE}")
    con.execute(f"COMMENT ON VIEW unlearning.wide IS {literal(_WIDE_COMMENT)}")


def lay_out(con: Connection) -> None:
    """Both views over the scores known so far, and what they stand on, inside the caller's transaction if there is
    one."""
    con.execute(_LAYOUT)
    con.execute(f"CREATE OR REPLACE VIEW scores.latest AS\n{latest(con)}")
    con.execute(
        f"COMMENT ON VIEW scores.latest IS {literal('Every current score that met its gates, one row an example.')}"
    )
    con.execute(AGREEMENT)


def shown(con: Connection) -> dict[str, tuple[str, str, str, str]]:
    """What the view shows of each score: its value and error columns, what it calls an example, and by which
    condition."""
    rows = con.execute("SELECT score, value, stderr, calls, called FROM meta.scores ORDER BY score").fetchall()
    return {score: (value, stderr, calls, called) for score, value, stderr, calls, called in rows}


def latest(con: Connection) -> str:
    """The statement behind ``scores.latest`` over the scores known so far."""
    return "\nUNION ALL\n".join(_select(score, *columns) for score, columns in shown(con).items()) or _EMPTY


def agreement() -> str:
    """The statement behind ``scores.agreement``."""
    return _AGREEMENT.partition(" AS\n")[2].rstrip().rstrip(";")


def refresh(con: Connection, score: ScoreSpec) -> tuple[str, str, str, str] | None:
    """Take a new or changed score into the view, inside the caller's transaction; its declaration says which columns.

    Returns:
        What the view shows of it now; None when that was so before.
    """
    calls = score.calls
    called = (
        f"coalesce(s.{quoted(calls.column)}::DOUBLE > {float(calls.above)!r}, false)" if calls and calls.column else ""
    )
    columns = (score.value, score.stderr, calls.kind if calls else "", called)
    if columns == first(con, "SELECT value, stderr, calls, called FROM meta.scores WHERE score = ?", [score.name]):
        return None
    con.execute("DELETE FROM meta.scores WHERE score = ?", [score.name])
    con.execute(
        "INSERT INTO meta.scores (score, value, stderr, calls, called) VALUES (?, ?, ?, ?, ?)", [score.name, *columns]
    )
    lay_out(con)
    return columns


def _select(score: str, value: str, stderr: str, calls: str, called: str) -> str:
    error = f"s.{quoted(stderr)}::DOUBLE" if stderr else "NULL::DOUBLE"
    return (
        f"SELECT s.subject, {literal(score)} AS score, s.example_id, s.{quoted(value)}::DOUBLE AS value, {error} AS "
        f"stderr, r.higher_means, s.run_id, {literal(calls)} AS calls, {called or 'NULL::BOOLEAN'} AS is_called FROM "
        f"scores.{quoted(score)} s JOIN scores.runs r ON r.subject = s.subject AND r.score = {literal(score)} AND "
        "r.passed AND (r.run_id = s.run_id OR r.config_digest = s.config_digest)"
    )
