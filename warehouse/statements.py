"""What a reader's statement may name: the tables of the snapshot, and nothing of the engine that shows where it lies.

DuckDB has no switch for that. External access is off and the settings are locked, but ``PRAGMA database_list``,
``duckdb_settings()``, ``current_setting(...)`` and the views over them still show paths of the machine. So the parsed
statement is walked, and what it may name is listed, not what it may not: schemas that the snapshot has itself,
``information_schema``, and the table functions and views of the engine below. Functions that give a value are only
refused by name: they are many, and few can show a setting (a test calls all of them).

Names cannot be hidden from the walk: functions that take SQL or a table's name as text (``query``, ``query_table``,
``histogram``, ``json_execute_serialized_sql``) are not among those listed, and ``json_serialize_plan``, which
evaluates constants, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import duckdb

from contracts.errors import InvalidInput
from warehouse.connection import CATALOG, Connection, first, literal

_TABLE_FUNCTIONS = frozenset(
    {
        "duckdb_columns",
        "duckdb_constraints",
        "duckdb_functions",
        "duckdb_indexes",
        "duckdb_keywords",
        "duckdb_schemas",
        "duckdb_tables",
        "duckdb_types",
        "duckdb_views",
        "generate_series",
        "json_each",
        "json_tree",
        "pragma_table_info",
        "range",
        "unnest",
    }
)
_VIEWS = _TABLE_FUNCTIONS | {"sqlite_master", "sqlite_schema"}
_SCALARS = frozenset({"current_query", "current_setting", "getenv", "getvariable", "json_serialize_plan", "write_log"})
_SHOWN = frozenset({"__show_tables_expanded", "databases", "schemas", "tables"})


def parsed(con: Connection, sql: str, what: str) -> dict[str, Any]:
    """The tree of one SELECT, without positions.

    Args:
        what: how messages call the text.

    Raises:
        InvalidInput: it cannot be parsed, or is not one statement that reads.
    """
    try:
        # as a literal: DuckDB imports pandas, which takes a second, before it takes a process's first parameter
        row = first(con, f"SELECT json_serialize_sql({literal(sql)})")
    except duckdb.Error as error:
        raise InvalidInput(f"{what} cannot be parsed: {error}") from error
    tree: dict[str, Any] = json.loads(row[0]) if row else {"error": True}
    if tree.get("error"):
        raise InvalidInput(f"{what} cannot be parsed: {tree.get('error_message', 'not an expression')}")
    if len(tree["statements"]) != 1:
        raise InvalidInput(f"{what} holds {len(tree['statements'])} statements")
    return dict(_without_positions(tree["statements"][0]["node"]))


def functions(node: Any) -> set[str]:
    """The names, in lower case, of all functions in a tree."""
    return {str(n["function_name"]).lower() for n in _nodes(node) if "function_name" in n}


def check(con: Connection, sql: str) -> None:
    """Refuse a statement that names anything but what the module lists.

    Raises:
        InvalidInput: names what is refused, or the statement is not one SELECT (or DESCRIBE, SHOW, SUMMARIZE, EXPLAIN).
    """
    tree = _read(con, sql)
    engine = {name for (name,) in con.execute("SELECT view_name FROM duckdb_views() WHERE internal").fetchall()}
    own = {
        name
        for (name,) in con.execute(
            f"SELECT schema_name FROM duckdb_schemas() WHERE database_name = '{CATALOG}' AND NOT internal"
        ).fetchall()
    } - {"main"}  # the engine's own views are found under that name too
    refused = sorted(functions(tree) & _SCALARS)
    for node in _nodes(tree):
        match node.get("type"):
            case "TABLE_FUNCTION":
                name = str(node["function"].get("function_name", "")).lower()
                if name not in _TABLE_FUNCTIONS:
                    refused.append(name)
            case "BASE_TABLE":
                table, schema = str(node["table_name"]).lower(), str(node["schema_name"]).lower()
                ours = str(node["catalog_name"]).lower() in ("", CATALOG) and schema in {*own, "information_schema"}
                if not ours and not (
                    table in _VIEWS or (not schema and not node["catalog_name"] and table not in engine)
                ):
                    refused.append(".".join(filter(None, (schema, table))))
            case "SHOW_REF":
                table = str(node["table_name"]).lower().strip('"')
                if node.get("query") is None and table not in _SHOWN:
                    refused.append(f"SHOW {table}")
    if refused:
        raise InvalidInput(
            f"the query was refused: {', '.join(dict.fromkeys(refused))} is not among what may be read here: the "
            f"tables of the snapshot ({', '.join(sorted(own))}), information_schema, and "
            f"{', '.join(sorted(_TABLE_FUNCTIONS))}"
        )


def _read(con: Connection, sql: str) -> dict[str, Any]:
    """The tree of the statement, or of the one that an EXPLAIN explains."""
    try:
        kinds = [statement.type.name for statement in con.extract_statements(sql)]
    except duckdb.Error as error:
        raise InvalidInput(f"the query cannot be parsed: {error}") from error
    if len(kinds) != 1 or kinds[0] not in ("SELECT", "EXPLAIN"):
        raise InvalidInput(f"the query must be one SELECT, found: {', '.join(kinds) or 'nothing'}")
    if kinds[0] == "SELECT":
        return parsed(con, sql, "the query")
    for rest in _explained(sql):
        try:
            return parsed(con, rest, "the query")
        except InvalidInput as error:
            problem = error
    raise problem


def _explained(sql: str) -> Iterator[str]:
    """What may follow EXPLAIN: all of it; without ANALYZE; without options in parentheses."""
    data = sql.encode("utf-8")
    starts = [position for position, _ in duckdb.tokenize(sql)]  # in bytes; parentheses are operators
    yield data[starts[1] :].decode("utf-8")
    for number, start in enumerate(starts[1:], 1):
        if data[start:].lower().startswith((b"analyze", b")")) and number + 1 < len(starts):
            yield data[starts[number + 1] :].decode("utf-8")


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _nodes(value)


def _without_positions(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _without_positions(v) for k, v in node.items() if k != "query_location"}
    if isinstance(node, list):
        return [_without_positions(v) for v in node]
    return node
