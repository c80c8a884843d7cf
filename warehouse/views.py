"""``scores.latest``: one long view over every score table, generated whenever a score table appears or changes.

``scores.latest(subject, score, example_id, value, stderr, higher_means, run_id)`` shows a score only while its row in
``scores.runs`` says that it met its gates; rows of another configuration than that row judged are not shown.
"""

from __future__ import annotations

from contracts.methods import ScoreSpec
from contracts.tables import TableSpec
from warehouse.connection import Connection, first, literal
from warehouse.ddl import quoted

_EMPTY = (
    "SELECT NULL::VARCHAR AS subject, NULL::VARCHAR AS score, NULL::BIGINT AS example_id, NULL::DOUBLE AS value, "
    "NULL::DOUBLE AS stderr, NULL::VARCHAR AS higher_means, NULL::VARCHAR AS run_id WHERE false"
)
LAYOUT = f"""
CREATE SCHEMA IF NOT EXISTS scores;
CREATE TABLE IF NOT EXISTS meta.scores (score VARCHAR NOT NULL, value VARCHAR NOT NULL, stderr VARCHAR NOT NULL);
COMMENT ON TABLE meta.scores IS 'Which columns of a score table scores.latest shows.';
CREATE VIEW IF NOT EXISTS scores.latest AS {_EMPTY};
"""


def refresh(con: Connection, spec: TableSpec, score: ScoreSpec | None = None) -> None:
    """Take a new or changed score table into the view, inside the caller's transaction.

    A score's own declaration says which columns are shown; without it what was said before stays, or the naming rule
    of :func:`shown_columns` holds.
    """
    names = {c.name for c in spec.columns}
    stored = first(con, "SELECT value, stderr FROM meta.scores WHERE score = ?", [spec.name])
    if score:
        shown = (score.value, score.stderr)
    else:
        shown = stored if stored and set(stored) <= names | {""} else shown_columns(spec)
    if shown == stored:
        return
    con.execute("DELETE FROM meta.scores WHERE score = ?", [spec.name])
    con.execute("INSERT INTO meta.scores VALUES (?, ?, ?)", [spec.name, *shown])
    known = con.execute("SELECT score, value, stderr FROM meta.scores ORDER BY score").fetchall()
    con.execute("CREATE OR REPLACE VIEW scores.latest AS\n" + "\nUNION ALL\n".join(_select(*row) for row in known))
    con.execute(
        f"COMMENT ON VIEW scores.latest IS {literal('Every current score that met its gates, one row an example.')}"
    )


def shown_columns(spec: TableSpec) -> tuple[str, str]:
    """Value and standard error of a score table by the naming rule: the column called as the score (else ``value``,
    else the first float) and ``<value>_stderr`` (else ``stderr``, else none)."""
    floats = [c.name for c in spec.columns if c.dtype == "float64"]
    numbers = [c.name for c in spec.columns if c.dtype in ("int64", "float64") and c.name != "example_id"]
    value = next((n for n in (spec.name, "value", *floats, *numbers) if n in numbers), "example_id")
    return value, next((n for n in (f"{value}_stderr", "stderr") if n in numbers), "")


def _select(score: str, value: str, stderr: str) -> str:
    error = f"s.{quoted(stderr)}::DOUBLE" if stderr else "NULL::DOUBLE"
    return (
        f"SELECT s.subject, {literal(score)} AS score, s.example_id, s.{quoted(value)}::DOUBLE AS value, {error} AS stderr, "
        f"r.higher_means, s.run_id FROM scores.{quoted(score)} s JOIN scores.runs r ON r.subject = s.subject "
        f"AND r.score = {literal(score)} AND r.passed AND (r.run_id = s.run_id OR r.config_digest = s.config_digest)"
    )
