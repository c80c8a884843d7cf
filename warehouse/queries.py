"""Named questions to the warehouse: ``queries/*.sql``, one a file, for people and for ``palimpsest sql --named``.

A file opens with comments: what it answers (one or more lines), then its parameters with their defaults, a JSON value
each, and what each is for:

    -- The examples with the highest value of a score.
    -- $score = "el2n": which score
    -- $subject = null: which subject; all of them when null

    SELECT ... WHERE score = $score AND ($subject::VARCHAR IS NULL OR subject = $subject) ...

Parameters are bound by DuckDB, never formatted. A query reads the published tables and nothing else, so it runs
unchanged in any DuckDB client.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

from contracts.errors import ConfigError, UnknownName
from contracts.identity import check_name

_PARAMETER = re.compile(r'\$([a-z_]+) = ("[^"]*"|[^:]+): (.+)')
_USED = re.compile(r"\$([a-z_]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedQuery:
    """A question with its answer in SQL.

    Attributes:
        name: name of the file without its suffix.
        summary: what it answers.
        sql: one SELECT with ``$name`` parameters.
        params: parameter -> default, in the order of the file; pass them all, with changed values where wanted.
        help: parameter -> what it is for.
    """

    name: str
    summary: str
    sql: str
    params: Mapping[str, Any]
    help: Mapping[str, str]


def names() -> tuple[str, ...]:
    """Names of all queries, in alphabetical order."""
    return tuple(sorted(_all()))


def get(name: str) -> NamedQuery:
    """The query of that name.

    Raises:
        UnknownName: with the list of the known ones.
    """
    if name not in _all():
        raise UnknownName("query", name, _all())
    return _all()[name]


def text(name: str) -> str:
    """The SQL of the query of that name; raises as :func:`get`."""
    return get(name).sql


def parse(name: str, source: str) -> NamedQuery:
    """Read a query file.

    Raises:
        ConfigError: no summary, a parameter that is not declared, not used, or whose default is not JSON.
    """
    check_name(name, kind="query")
    head, words, params, about = [], [], {}, {}
    for line in source.splitlines():
        if not line.startswith("--"):
            break
        head.append(line)
        comment = line[2:].strip()
        found = _PARAMETER.fullmatch(comment)
        if found:
            try:
                params[found[1]] = json.loads(found[2])
            except json.JSONDecodeError as error:
                raise ConfigError(f"query {name}: the default of ${found[1]}, {found[2]}, is not JSON") from error
            about[found[1]] = found[3]
        elif params:
            raise ConfigError(
                f"query {name}: {comment!r} stands among the parameters; use $name = default: what it is for"
            )
        else:
            words.append(comment)
    body = source.split("\n", len(head))[-1].strip().removesuffix(";")
    used = set(_USED.findall(body))
    if not " ".join(words) or not body:
        raise ConfigError(f"query {name}: it needs a comment that says what it answers, and one SELECT")
    if used != set(params):
        wrong = ", ".join(f"${p}" for p in sorted(used ^ set(params)))
        raise ConfigError(f"query {name}: {wrong} must be both declared and used")
    return NamedQuery(
        name=name, summary=" ".join(words), sql=body, params=MappingProxyType(params), help=MappingProxyType(about)
    )


@functools.cache
def _all() -> Mapping[str, NamedQuery]:
    found = {}
    for file in resources.files("warehouse").joinpath("queries").iterdir():
        if file.name.endswith(".sql"):
            name = file.name.removesuffix(".sql")
            found[name] = parse(name, file.read_text(encoding="utf-8"))
    return MappingProxyType(found)


def cookbook() -> str:
    """All queries as Markdown; ``docs/sql-cookbook.md`` is this text."""
    return "\n".join([_INTRODUCTION, *(_section(get(name)) for name in names())])


_INTRODUCTION = """\
# SQL cookbook

Everything an audit finds lies in tables, and every table may be read by anyone who can read the file. The published
snapshot is `warehouse/palimpsest.read.duckdb` under the state folder (`$PALIMPSEST_HOME`, by default `.palimpsest`): a
whole copy that is replaced in one step, so reading never waits for an audit and an audit never waits for a reader.

    palimpsest sql                                        # lists the questions below
    palimpsest sql --named hardest --param subject=digits --param limit=5
    palimpsest sql "SELECT * FROM scores.latest LIMIT 5" --format csv
    duckdb -readonly .palimpsest/warehouse/palimpsest.read.duckdb

```python
import duckdb
from warehouse import queries

hardest = queries.get("hardest")
con = duckdb.connect(".palimpsest/warehouse/palimpsest.read.duckdb", read_only=True)
con.sql(hardest.sql, params={**hardest.params, "limit": 5}).pl()
```

Joins are on `subject` and `example_id`, never on positions. `scores.latest` shows only scores whose run met the
score's own conditions; `scores.runs` says why one is missing. Owners appear as salted tokens. Times are UTC.
Outsiders, who may see no row, get tables of groups in place of these: [auditors.md](auditors.md).

This page is made from `warehouse/queries/*.sql` (`warehouse.queries.cookbook()`).
"""


def _section(query: NamedQuery) -> str:
    rows = [f"| `{p}` | `{json.dumps(v)}` | {query.help[p]} |" for p, v in query.params.items()]
    table = ["", "| parameter | default | what it is for |", "|---|---|---|", *rows] if rows else []
    return "\n".join([f"## {query.name}", "", query.summary, *table, "", "```sql", query.sql, "```", ""])
