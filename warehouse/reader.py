"""Reading for people and for predicates: one SELECT, on a door that can do nothing else.

``query`` runs over the published snapshot; ``select_where`` evaluates a user's boolean expression over the training
rows of one subject's ``data.examples``, alone in a scratch instance: whatever the text says, there is nothing else to
see, to write or to reach, and it must parse as one expression before it is evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

from contracts.errors import InvalidInput
from warehouse import connection, statements
from warehouse.connection import Connection, Limits, fetch, first


def query(snapshot: Path, sql: str, params: Sequence[Any] | Mapping[str, Any], *, limits: Limits) -> pl.DataFrame:
    """Rows of one reading statement over the published snapshot.

    Raises:
        InvalidInput: not exactly one SELECT (or DESCRIBE, SHOW, SUMMARIZE, EXPLAIN), one that names what shows the
            machine (see ``warehouse.statements``), or refused by DuckDB.
        NotReady: nothing has been published yet.
        OSError: what did not fit into memory could not be written to the disk either.
    """
    with connection.door(snapshot, limits=limits) as con:
        statements.check(con, sql)
        try:
            return fetch(con, sql, params)
        except duckdb.IOException:
            raise  # a disk that is full or failing is not the query's fault
        except duckdb.Error as error:
            said = str(error).replace(str(snapshot.parent), "...")
            raise InvalidInput(f"the query was refused: {said}") from error


def select_where(
    examples: pl.DataFrame, predicate: str, *, limits: Limits, limit_s: float = 60.0
) -> np.ndarray[Any, Any]:
    """Ids (ascending) of the rows of ``examples`` for which ``predicate`` is true.

    Raises:
        InvalidInput: not one boolean SQL expression, one whose answer differs from call to call (random(), now()), or
            one that DuckDB refuses; says why in its words, and which columns there are.
    """
    with connection.scratch(limits=limits) as con:
        con.register("incoming", examples)
        con.execute("CREATE SCHEMA data")
        con.execute("CREATE TABLE data.examples AS SELECT * FROM incoming")
        con.unregister("incoming")
        connection.lock_down(con)
        _one_expression(con, predicate)
        try:
            with connection.in_time(con, limit_s):
                kind = first(con, f"SELECT typeof(({predicate}\n)) FROM data.examples LIMIT 1")
                if kind is not None and kind[0] not in ("BOOLEAN", '"NULL"'):
                    raise InvalidInput(f"the predicate {predicate!r} gives {kind[0]}, not true or false")
                ids = fetch(con, f"SELECT example_id FROM data.examples WHERE ({predicate}\n) ORDER BY example_id")
        except duckdb.Error as error:
            told = str(error).strip().splitlines()[0]
            raise InvalidInput(
                f"the predicate {predicate!r} was refused: {told}; columns: {', '.join(examples.columns)}"
            ) from error
    return ids["example_id"].to_numpy().astype(np.int64)


def _one_expression(con: Connection, predicate: str) -> None:
    """The text must mean the same with and without parentheses around it: then it is an expression and ends there."""
    if not isinstance(predicate, str) or not predicate.strip():
        raise InvalidInput("the predicate is empty; write a boolean SQL expression such as label = 3")
    bare = statements.parsed(con, f"SELECT 1 FROM data.examples WHERE {predicate}\n", f"the predicate {predicate!r}")
    closed = statements.parsed(
        con, f"SELECT 1 FROM data.examples WHERE ({predicate}\n)", f"the predicate {predicate!r}"
    )
    plain = statements.parsed(con, "SELECT 1 FROM data.examples WHERE true", f"the predicate {predicate!r}")
    frame = [{**tree, "where_clause": None} for tree in (bare, closed, plain)]
    if frame[0] != frame[2] or frame[1] != frame[2] or bare["where_clause"] != closed["where_clause"]:
        raise InvalidInput(f"the predicate {predicate!r} is more than one boolean expression over data.examples")
    moving = {
        row[0]
        for row in con.execute(
            "SELECT function_name FROM duckdb_functions() WHERE stability IN ('VOLATILE', 'CONSISTENT_WITHIN_QUERY')"
        ).fetchall()
    }
    used = sorted(statements.functions(bare["where_clause"]) & (moving | {"query", "query_table"}))
    if used:
        raise InvalidInput(
            f"the predicate {predicate!r} uses {', '.join(used)}, whose answer differs from call to call"
        )
