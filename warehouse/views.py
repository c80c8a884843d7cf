"""``scores.latest``: one long view over every score, generated whenever a score appears or changes.

``scores.latest(subject, score, example_id, value, stderr, higher_means, run_id)`` shows a score only while its row in
``scores.runs`` says that it met its gates; rows of another configuration than that row judged are not shown.
Tables of analyses share the schema and are not scores.

``scores.agreement(subject, example_id, num_scores, mean_place, spread, high, says, highest, lowest)`` puts the scores of an example side by
side: its place in each is the share of examples below it; ``high`` lists the scores in whose top 5% it is and ``says``
what they mean by it (harder, memorised, ...); ``highest`` and ``lowest`` name the scores that place it so.
"""

from __future__ import annotations

import hashlib

from contracts.methods import ScoreSpec
from warehouse.connection import Connection, first, literal
from warehouse.ddl import quoted

_EMPTY = (
    "SELECT NULL::VARCHAR AS subject, NULL::VARCHAR AS score, NULL::BIGINT AS example_id, NULL::DOUBLE AS value, "
    "NULL::DOUBLE AS stderr, NULL::VARCHAR AS higher_means, NULL::VARCHAR AS run_id WHERE false"
)
_AGREEMENT = """
CREATE OR REPLACE VIEW scores.agreement AS
WITH placed AS (
    SELECT subject, example_id, score, higher_means,
        percent_rank() OVER (PARTITION BY subject, score ORDER BY value) AS place,
        row_number() OVER (PARTITION BY subject, score ORDER BY value DESC, example_id)
            <= ceil(0.05 * count(*) OVER (PARTITION BY subject, score)) AS is_high
    FROM scores.latest
    WHERE value IS NOT NULL
)
SELECT subject, example_id, count(*) AS num_scores, avg(place) AS mean_place, max(place) - min(place) AS spread,
    coalesce(list(score ORDER BY score) FILTER (is_high), []) AS high,
    coalesce(list_sort(list_distinct(list(higher_means) FILTER (is_high))), []) AS says,
    arg_max(score, place) AS highest, arg_min(score, place) AS lowest
FROM placed
GROUP BY subject, example_id;
"""
_COMMENT = (
    "What all current scores say of an example: places, and in whose top 5% it is. "
    f"Definition {hashlib.sha256(_AGREEMENT.encode()).hexdigest()[:12]}."
)
AGREEMENT = f"{_AGREEMENT}COMMENT ON VIEW scores.agreement IS {literal(_COMMENT)};"
LAYOUT = f"""
CREATE SCHEMA IF NOT EXISTS scores;
CREATE TABLE IF NOT EXISTS meta.scores (score VARCHAR NOT NULL, value VARCHAR NOT NULL, stderr VARCHAR NOT NULL);
COMMENT ON TABLE meta.scores IS 'Which columns of a score table scores.latest shows.';
CREATE VIEW IF NOT EXISTS scores.latest AS {_EMPTY};
{AGREEMENT}
"""


def outdated(con: Connection) -> bool:
    """Whether the store was laid out by another version, with another ``scores.agreement`` or none."""
    found = first(con, "SELECT comment FROM duckdb_views() WHERE schema_name = 'scores' AND view_name = 'agreement'")
    return found != (_COMMENT,)


def refresh(con: Connection, score: ScoreSpec) -> None:
    """Take a new or changed score into the view, inside the caller's transaction; its declaration says which columns."""
    shown = (score.value, score.stderr)
    if shown == first(con, "SELECT value, stderr FROM meta.scores WHERE score = ?", [score.name]):
        return
    con.execute("DELETE FROM meta.scores WHERE score = ?", [score.name])
    con.execute("INSERT INTO meta.scores VALUES (?, ?, ?)", [score.name, *shown])
    known = con.execute("SELECT score, value, stderr FROM meta.scores ORDER BY score").fetchall()
    con.execute("CREATE OR REPLACE VIEW scores.latest AS\n" + "\nUNION ALL\n".join(_select(*row) for row in known))
    con.execute(
        f"COMMENT ON VIEW scores.latest IS {literal('Every current score that met its gates, one row an example.')}"
    )


def _select(score: str, value: str, stderr: str) -> str:
    error = f"s.{quoted(stderr)}::DOUBLE" if stderr else "NULL::DOUBLE"
    return (
        f"SELECT s.subject, {literal(score)} AS score, s.example_id, s.{quoted(value)}::DOUBLE AS value, {error} AS stderr, "
        f"r.higher_means, s.run_id FROM scores.{quoted(score)} s JOIN scores.runs r ON r.subject = s.subject "
        f"AND r.score = {literal(score)} AND r.passed AND (r.run_id = s.run_id OR r.config_digest = s.config_digest)"
    )
