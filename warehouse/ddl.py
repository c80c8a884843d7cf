"""Tables from their declarations: DDL with constraints and comments, and careful migration when a version rises.

Identifiers come from the specs (checked there) and pass :func:`quoted`; nothing else is ever formatted into SQL.
Keys are checked by the writer in the same transaction, not by PRIMARY KEY: DuckDB's index keeps the keys of deleted
rows until commit, so it would refuse the DELETE + INSERT of a replace, and it costs memory in proportion to the rows.

A changed declaration with the same version is refused (except its words). With a higher version the table is
recreated; rows that satisfy the new declaration are carried over. Where they do not, or say something in a column that
is gone, the old table stays beside it as ``<name>__v<old version>`` and nothing is lost. Scores of another version are
another quantity: never carried over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from contracts.digests import canonical_json, digest
from contracts.errors import StateError
from contracts.tables import Column, TableSpec
from warehouse.connection import Connection, first, literal

TYPES = {
    "int64": "BIGINT",
    "float64": "DOUBLE",
    "bool": "BOOLEAN",
    "str": "VARCHAR",
    "timestamp": "TIMESTAMPTZ",
    "json": "JSON",
    "floats": "DOUBLE[]",
}

LAYOUT = """
CREATE SCHEMA IF NOT EXISTS meta;
CREATE SCHEMA IF NOT EXISTS ledger;
CREATE TABLE IF NOT EXISTS ledger.entries (
    seq BIGINT NOT NULL, prev_hash VARCHAR NOT NULL, hash VARCHAR NOT NULL, kind VARCHAR NOT NULL, body JSON NOT NULL);
COMMENT ON TABLE ledger.entries IS 'Everything that changed this warehouse, in order: a SHA-256 chain.';
CREATE TABLE IF NOT EXISTS meta.tables (
    name VARCHAR NOT NULL, version BIGINT NOT NULL, shape VARCHAR NOT NULL, words VARCHAR NOT NULL, declaration JSON NOT NULL);
COMMENT ON TABLE meta.tables IS 'Declaration under which each table was created.';
CREATE TABLE IF NOT EXISTS meta.partitions (
    name VARCHAR NOT NULL, subject VARCHAR NOT NULL, part JSON NOT NULL, num_rows BIGINT NOT NULL, digest VARCHAR NOT NULL,
    content VARCHAR NOT NULL, config_digest VARCHAR NOT NULL, run_id VARCHAR NOT NULL, seq BIGINT NOT NULL);
COMMENT ON TABLE meta.partitions IS 'Current content of each partition, as the ledger recorded it last.';
CREATE TABLE IF NOT EXISTS meta.stages (asset VARCHAR NOT NULL, key VARCHAR NOT NULL, seq BIGINT NOT NULL);
COMMENT ON TABLE meta.stages IS 'Last completion of each asset.';
"""


def quoted(identifier: str) -> str:
    """An SQL identifier; the one quoting function."""
    return '"' + identifier.replace('"', '""') + '"'


def table(spec: TableSpec) -> str:
    """The quoted full name of a spec's table."""
    return f"{quoted(spec.schema)}.{quoted(spec.name)}"


def shape_of(spec: TableSpec) -> str:
    """Digest of what decides whether rows fit: columns, types, ranges, key and partition; not the words."""
    columns = [[c.name, c.dtype, c.low, c.high, c.nullable, c.choices] for c in spec.all_columns]
    return digest([spec.full_name, columns, spec.key, spec.partition])


def create_table(spec: TableSpec, *, name: str = "") -> str:
    """The CREATE TABLE statement of a spec."""
    lines = [f"{quoted(c.name)} {TYPES[c.dtype]}{'' if c.nullable else ' NOT NULL'}" for c in spec.all_columns]
    lines += [f"CHECK ({rule})" for c in spec.all_columns for rule in _rules(c)]
    body = ",\n    ".join(lines)
    return f"CREATE TABLE {quoted(spec.schema)}.{quoted(name or spec.name)} (\n    {body}\n)"


def comments(spec: TableSpec) -> list[str]:
    """COMMENT statements: what the table and each column hold, with unit, range and direction."""
    unique = f" Unique within a subject: {', '.join(spec.key)}."
    out = [f"COMMENT ON TABLE {table(spec)} IS {literal(spec.doc + unique)}"]
    for c in spec.all_columns:
        words = "; ".join(filter(None, [c.doc, f"unit: {c.unit}" if c.unit else "", range_of(c), c.direction]))
        out.append(f"COMMENT ON COLUMN {table(spec)}.{quoted(c.name)} IS {literal(words)}")
    return out


def range_of(column: Column) -> str:
    """The allowed values in words; empty when anything of the type is allowed."""
    if column.choices:
        return "one of " + ", ".join(column.choices)
    signs = ((">=", column.low), ("<=", column.high))
    return " and ".join(f"{sign} {bound:g}" for sign, bound in signs if bound is not None)


def outdated(con: Connection, specs: Iterable[TableSpec]) -> list[TableSpec]:
    """The specs whose table does not exist yet or was made under another declaration.

    Raises:
        StateError: the file was written by a newer version of the program.
    """
    known = {row[0]: row[1:] for row in con.execute("SELECT name, version, shape, words FROM meta.tables").fetchall()}
    out = []
    for spec in specs:
        version, shape, words = known.get(spec.full_name, (0, "", ""))
        if version > spec.version:
            raise StateError(
                f"table {spec.full_name} has version {version}, this program knows only {spec.version}: "
                "the warehouse was written by a newer version, use that one"
            )
        if (version, shape, words) != (spec.version, shape_of(spec), digest(spec)):
            out.append(spec)
    return out


def declared(con: Connection) -> dict[str, TableSpec]:
    """Every stored table by full name, as it was declared when it was created or last changed."""
    return {name: parsed(text) for name, text in con.execute("SELECT name, declaration FROM meta.tables").fetchall()}


def parsed(declaration: str) -> TableSpec:
    """A spec from its canonical JSON."""
    facts = json.loads(declaration)
    columns = tuple(Column(**{**c, "choices": tuple(c["choices"])}) for c in facts.pop("columns"))
    key, partition = tuple(facts.pop("key")), tuple(facts.pop("partition"))
    return TableSpec(columns=columns, key=key, partition=partition, **facts)


def ensure(con: Connection, spec: TableSpec) -> str:
    """Bring the outdated table of ``spec`` into being or up to date, inside the caller's transaction.

    Returns:
        What happened: "created", "described", "migrated" (rows carried over) or "archived".

    Raises:
        StateError: columns, ranges or key changed under the same version.
    """
    stored = first(con, "SELECT version, shape FROM meta.tables WHERE name = ?", [spec.full_name])
    done = "described"
    if stored is None:
        con.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(spec.schema)}")
        con.execute(create_table(spec))
        done = "created"
    elif stored[0] != spec.version:
        done = _migrate(con, spec, old_version=int(stored[0]))
    elif stored[1] != shape_of(spec):
        raise StateError(
            f"the columns, ranges or key of table {spec.full_name} changed but its version is still {spec.version}: "
            "raise it"
        )
    for statement in comments(spec):
        con.execute(statement)
    con.execute("DELETE FROM meta.tables WHERE name = ?", [spec.full_name])
    con.execute(
        "INSERT INTO meta.tables VALUES (?, ?, ?, ?, ?)",
        [spec.full_name, spec.version, shape_of(spec), digest(spec), canonical_json(spec)],
    )
    return done


def _rules(column: Column) -> list[str]:
    name = quoted(column.name)
    rules = [f"isfinite({name})"] if column.dtype == "float64" else []
    rules += [
        f"{name} {sign} {_number(bound)}"
        for sign, bound in ((">=", column.low), ("<=", column.high))
        if bound is not None
    ]
    if column.choices:
        rules.append(f"{name} IN ({', '.join(map(literal, column.choices))})")
    return rules


def _number(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else f"{bound!r}::DOUBLE"


def _migrate(con: Connection, spec: TableSpec, *, old_version: int) -> str:
    """New table with the rows of the old one where they fit; otherwise the old one is kept under another name."""
    old = f"{spec.name}__v{old_version}"
    carried = _carried(con, spec)
    con.execute(f"ALTER TABLE {table(spec)} RENAME TO {quoted(old)}")
    con.execute(create_table(spec))
    con.execute("DELETE FROM meta.partitions WHERE name = ?", [spec.full_name])
    if carried is None:
        return "archived"
    names = ", ".join(quoted(c.name) for c in carried)
    con.execute(f"INSERT INTO {table(spec)} BY NAME SELECT {names} FROM {quoted(spec.schema)}.{quoted(old)}")
    con.execute(f"DROP TABLE {quoted(spec.schema)}.{quoted(old)}")
    return "migrated"


def _carried(con: Connection, spec: TableSpec) -> list[Column] | None:
    """The columns to copy from the stored table, or None when its rows do not satisfy the new declaration, or would
    lose a value."""
    have = dict(
        con.execute(
            "SELECT column_name, data_type FROM duckdb_columns() "
            "WHERE database_name = current_database() AND schema_name = ? AND table_name = ?",
            [spec.schema, spec.name],
        ).fetchall()
    )
    shared = [c for c in spec.all_columns if have.get(c.name) == _LONG_NAMES.get(c.dtype, TYPES[c.dtype])]
    absent = [c for c in spec.all_columns if c not in shared]
    if spec.schema == "scores" and spec.name != "runs":
        return None
    if any(c.name in have or not c.nullable or c.name in spec.key for c in absent):
        return None
    gone = sorted(set(have) - {c.name for c in spec.all_columns})
    said = " OR ".join(f"{quoted(name)} IS NOT NULL" for name in gone)
    if said and first(con, f"SELECT 1 FROM {table(spec)} WHERE {said} LIMIT 1"):
        return None
    rules = [f"coalesce({rule}, true)" for c in shared for rule in _rules(c)]
    rules += [f"{quoted(c.name)} IS NOT NULL" for c in shared if not c.nullable]
    key = ", ".join(map(quoted, ("subject", *spec.key)))
    bad = first(
        con,
        f"SELECT (SELECT count(*) FROM {table(spec)} WHERE NOT ({' AND '.join(rules)})) "
        f"+ (SELECT count(*) FROM (SELECT 1 FROM {table(spec)} GROUP BY {key} HAVING count(*) > 1))",
    )
    return shared if bad == (0,) else None


_LONG_NAMES = {"timestamp": "TIMESTAMP WITH TIME ZONE"}
