"""``palimpsest sql | report | trace``: reading what is stored, never writing."""

from __future__ import annotations

import enum
import json
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from contracts.errors import ConfigError, IntegrityError, NotReady, UnknownName
from contracts.requests import OPEN, RequestState
from pipelines.cli.terminal import console, print_data, state_to_read


class Format(enum.StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def sql(
    query: Annotated[str | None, typer.Argument(help="one SELECT")] = None,
    named: Annotated[
        str | None, typer.Option("--named", help="a query of the cookbook; without a name of one, they are listed")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", help="NAME=VALUE for a named query; may be repeated")
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f")] = Format.TABLE,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write to a file (needed for parquet)")] = None,
    auditor: Annotated[
        bool,
        typer.Option("--auditor", help="for outsiders: tables of groups of k people or more, in place of the rows"),
    ] = False,
) -> None:
    """Ask the published snapshot. Read-only: nothing can be written, attached or read from disk."""
    from pipelines.export import csv_of
    from warehouse import Warehouse, queries

    if auditor and named is not None:
        raise ConfigError("--named asks for rows, which --auditor does not show: write a query over its tables")
    if auditor and query is None:
        _list_groups()
        return
    if (query is None) == (named is None):
        if query is None:
            _list_queries(queries)
            return
        raise ConfigError("give a query or --named NAME, not both")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        what = "is a folder" if out.is_dir() else f"cannot be written: there is no folder {out.absolute().parent}"
        raise ConfigError(f"--out {out} {what}")
    if out is not None and format is Format.TABLE:  # a table is for a terminal; a file says by its name what it holds
        format = {".json": Format.JSON, ".parquet": Format.PARQUET}.get(out.suffix, Format.CSV)
    if format is Format.PARQUET and out is None:
        raise ConfigError("--format parquet needs --out FILE")
    values: dict[str, Any] = {}
    if named is not None:
        chosen = queries.get(named)
        query, values = chosen.sql, {**chosen.params, **_params(param or [], chosen.params)}
    assert query is not None
    w = Warehouse.existing(state_to_read())
    frame = _ask_groups(w, query) if auditor else w.query(query, values or ())
    if format is Format.TABLE:
        print_table(frame)
        return
    if format is Format.PARQUET:
        assert out is not None
        frame.write_parquet(out)
        return
    text = frame.write_json() if format is Format.JSON else csv_of(frame)
    if out is None:
        print_data(text)
    else:
        out.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


def _params(given: list[str], known: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for item in given:
        name, sep, value = item.partition("=")
        if not sep or name not in known:
            raise ConfigError(
                f"--param {item!r}: use NAME=VALUE with NAME one of {', '.join(known) or '(this query has none)'}"
            )
        default = known[name]
        try:
            out[name] = type(default)(value) if default is not None else value
        except ValueError:
            raise ConfigError(f"--param {item!r}: {value!r} is not a {type(default).__name__}") from None
    return out


def _list_queries(queries: Any) -> None:
    table = Table("name", "answers", "parameters", title="Named queries", title_justify="left")
    for name in queries.names():
        chosen = queries.get(name)
        table.add_row(
            name,
            chosen.summary.partition(". ")[0].partition(": ")[0],
            ", ".join(f"{k}={v}" for k, v in chosen.params.items()),
        )
    console.print(table)
    console.print(
        'Run one: palimpsest sql --named NAME [--param subject=digits]; or your own: palimpsest sql "SELECT ..."'
    )


def _ask_groups(w: Any, query: str) -> pl.DataFrame:
    """An outsider's question. What is wrong here and not with the question is said without a path of this machine."""
    from pipelines.operations.config import operations_of

    try:
        return w.query_groups(query, k=operations_of(w.home).auditors.k)  # type: ignore[no-any-return]
    except (ConfigError, NotReady, IntegrityError, OSError, MemoryError) as error:
        said = str(error).replace(str(w.home), "...")
        raise NotReady(f"nothing can be asked now: {said}") from None


def _list_groups() -> None:
    from warehouse.auditors_tables import TABLES

    table = Table("table", "holds", "columns", title="What auditors may ask", title_justify="left")
    for spec in TABLES:
        table.add_row(spec.name, spec.doc.partition(". ")[0], ", ".join(column.name for column in spec.columns))
    console.print(table)
    console.print('Ask: palimpsest sql --auditor "SELECT ..."; examples are in docs/auditors.md', highlight=False)


def print_table(frame: Any, limit: int = 200, *, whole: str = "--format csv") -> None:
    """A table, or one record below the other where the terminal is too narrow for its columns.

    Args:
        whole: the option that prints all rows.
    """
    rows = [[escape(_text(v)) for v in row] for row in frame.head(limit).iter_rows()]
    table = Table(*frame.columns, header_style="bold")
    for row in rows:
        table.add_row(*row)
    if Measurement.get(console, console.options.update(max_width=100_000), table).maximum > console.width:
        table = Table.grid("", "", padding=(0, 2, 0, 0))
        for number, row in enumerate(rows, 1):
            table.add_row(f"[dim]row {number}[/]", "")
            for name, value in zip(frame.columns, row, strict=True):
                table.add_row(f"[bold]{escape(name)}[/]", value)
    console.print(table)
    more = f" of {frame.height:,}; use {whole} for all" if frame.height > limit else ""
    console.print(f"{min(frame.height, limit):,} rows{more}", highlight=False)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def report(
    what: Annotated[str, typer.Argument(help="a subject, or the id of a forget request")],
    open_: Annotated[bool, typer.Option("--open", help="open it in the browser")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="make it again from what is stored, and say whether it is the same")
    ] = False,
) -> None:
    """Where the report of a subject or of a forget request is. With --rebuild: exit 0 when it is the same, else 1."""
    from warehouse import Warehouse

    home = state_to_read()
    if rebuild:
        _rebuild(what, home)
    path = home / Warehouse.existing(home).artifacts.describe(find_report(what, home)).path
    console.print(str(path), soft_wrap=True, highlight=False)
    if open_:
        webbrowser.open(path.as_uri())


def _rebuild(what: str, home: Path) -> None:
    """Make a report on record again, and compare.

    Raises:
        ConfigError: it is no report of an audit.
        NotReady, IntegrityError: as ``assets.reports.rebuild``.
        typer.Exit: 1 where it is another.
    """
    from assets import subject_stages
    from assets.reports import rebuild
    from pipelines.cli.audit import workspace_of
    from pipelines.subjects import load_subject

    name = find_report(what, home).removesuffix(".html")
    plan = load_subject(name.partition("/")[0], home)
    request = what if what != plan.subject else None
    stage = next((stage for stage in subject_stages(plan) if stage.asset(request) == name and stage.report), None)
    if stage is None:
        raise ConfigError(f"{name} is no report of an audit of the plan as it is now, so it cannot be made again")
    made = rebuild(stage, workspace_of(home), request=request)
    if made.differs:
        console.print(f"[bold red]NOT THE SAME[/]  {escape(name)} made again differs in {', '.join(made.differs)}")
        raise typer.Exit(1)
    console.print(f"[bold green]THE SAME[/]  {escape(name)} made again is the one on record, byte for byte.")


def find_report(what: str, home: Path) -> str:
    """Name, in the artifact store, of the page about a subject, or of the last one about a forget request.

    Raises:
        NotReady: there is none yet; names the command that makes it.
        UnknownName: there is no such subject or request.
    """
    from assets.request_closing import closing_of
    from pipelines.subjects import subject_files
    from warehouse import Warehouse

    w = Warehouse.existing(home)
    names = [f"{what}/reports/audit.html"]
    columns = ["subject", "request_id", "state", "num_examples"]
    known = w.requests.list().select(columns) if w.snapshot.exists() else pl.DataFrame(schema=columns)
    asked = known.filter(pl.col("request_id") == what)
    for subject in asked["subject"]:
        names += [f"{subject}/request_reports/{what}/audit.html", f"{closing_of(subject, what)}.html"]
    for name in reversed(names):
        if w.artifacts.exists(name):
            return name
    for subject, _, state, num in asked.iter_rows():
        unseen = num == 0 and state in (RequestState.AUDITED, RequestState.CLOSED)
        why = "no report: none of its examples is in the training split, so nothing was unlearned"
        then = what_next(subject, what, RequestState(state))
        raise NotReady(f"request {what} is {state} and has {why if unseen else 'no report yet'}; {then}")
    if what not in (subjects := subject_files(home)):
        raise UnknownName("subject or forget request", what, [*subjects, *known["request_id"]])
    raise NotReady(f"there is no report of {what!r} in {home} yet; run: palimpsest audit {what}")


def what_next(subject: str, request_id: str, state: RequestState) -> str:
    """What a person does with a request in that state, as half a sentence."""
    of = f"{subject} {request_id}"
    if state is RequestState.RECEIVED:
        return f"verify who asks, then: palimpsest request verify {of}"
    if state is RequestState.ON_HOLD:
        return f"to take it up again: palimpsest request verify {of}"
    if state is RequestState.AUDITED:
        return f"its examples are erased by: palimpsest erase {of} --plan, and then --execute"
    if state in OPEN:
        return f"run: palimpsest request run {of}"
    return f"it is at its end; its history: palimpsest request show {of}"


def trace(
    what: Annotated[str, typer.Argument(metavar="EXAMPLE|OWNER", help="stable id of an example, or an owner's name")],
    subject: Annotated[str | None, typer.Option("--subject", help="only of this subject")] = None,
    owner: Annotated[bool, typer.Option("--owner", help="it is an owner's name although it is a whole number")] = False,
    json_: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """Everything an example, or all of an owner's, touched: tables, splits, models, reports; and what a forget request
    does to each curated set."""
    from pipelines.after_erasure import effects
    from warehouse import Warehouse

    w = Warehouse.existing(state_to_read())
    if what.isdecimal() and not owner:
        frame = w.trace(int(what), subject=subject)
        if not frame.height:
            raise NotReady(f"no stored thing mentions example {what}" + (f" of {subject}" if subject else ""))
        named = pl.when(pl.col("kind") == "row").then(pl.col("location")).otherwise(pl.col("asset"))
        grouped = frame.group_by("subject", "kind", named.alias("where"), maintain_order=True).len("things")
        order = pl.col("kind").replace_strict({"made_from": 0, "derived": 1, "row": 2}, return_dtype=pl.Int8)
        touched = grouped.sort("subject", order, "where").with_columns(kind=pl.col("kind").replace(_TRACE_WORDS))
        sets = effects(w.curated(example_ids=[int(what)], subject=subject))
    else:
        touched, sets = _of_owner(w, what, subject)
    if json_:
        print_data(json.dumps({"touched": touched.to_dicts(), "after_erasure": sets.to_dicts()}))
        return
    print_table(touched, whole="--json")
    if sets.height:
        console.print("After a forget request:", highlight=False)
        print_table(sets.drop("method", "what"), whole="--json")
        for effect, meaning in sets.select("effect", "what").unique(maintain_order=True).iter_rows():
            console.print(f"{effect}: {escape(meaning)}", highlight=False)


def _of_owner(w: Any, name: str, subject: str | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Assets made from any of an owner's examples, and what a request does to the curated sets.

    Raises:
        NotReady: no stored example is the owner's.
    """
    from contracts.identity import owner_token, spellings
    from pipelines.after_erasure import effects

    for spelled in spellings(name):
        token = owner_token(spelled, salt=w.salt())
        if (mine := w.owned(token, subject)).height:
            break
    else:
        raise NotReady(f"no stored example belongs to {name!r}" + (f" in {subject}" if subject else ""))
    parts = []
    for (of,), rows in mine.group_by("subject", maintain_order=True):
        held = w.lineage.holding(str(of), rows["example_id"].to_numpy())
        own = pl.DataFrame({"asset": "data.examples", "num_examples": rows.height}, schema=held.schema)
        parts.append(pl.concat([own, held]).select(pl.lit(of).alias("subject"), where="asset", examples="num_examples"))
    return pl.concat(parts), effects(w.curated(owner=token, subject=subject))


_TRACE_WORDS = {"made_from": "was used to make", "derived": "behind", "row": "is a row of"}
