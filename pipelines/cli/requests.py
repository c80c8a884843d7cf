"""``palimpsest request``: the register of forget requests, and running one."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from contracts.errors import ConfigError, UnknownName
from contracts.requests import ForgetRequest, RequestState, due_date
from pipelines.cli.terminal import console
from pipelines.home import state_home

app = typer.Typer(help="Forget requests: register, list, show, run, refuse.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="the audited subject")]
RequestId = Annotated[str, typer.Argument(help="id of the request")]


def _warehouse() -> Any:
    from warehouse import Warehouse

    return Warehouse.open(state_home())


@app.command("add")
def add(
    subject: Name,
    ids: Annotated[str | None, typer.Option("--ids", help="example ids, separated by commas")] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="whose examples; stored as a salted token only")] = None,
    class_name: Annotated[str | None, typer.Option("--class", help="all examples of a class")] = None,
    where: Annotated[str | None, typer.Option("--where", help="SQL predicate over data.examples")] = None,
    score: Annotated[
        str | None, typer.Option("--score", help="one end of a score of the plan, with --fraction or --count")
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option("--fraction", help="share of the training examples, for --score; 0.01 when not given"),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", help="number of examples, for --score")] = None,
    end: Annotated[str, typer.Option("--end", help="highest or lowest of --score")] = "highest",
    due: Annotated[
        str | None, typer.Option("--due", help="YYYY-MM-DD; by default one month after today (GDPR Art. 12(3))")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option("--id", help="id of the request; made from the clock when not given")
    ] = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="the requester's identity is not yet verified: nothing is run")
    ] = False,
) -> None:
    """Register a forget request. A verified one is run by the sensor under 'make ui', or by 'palimpsest request run'."""
    from contracts.identity import owner_token
    from pipelines.subjects import load_subject

    plan = load_subject(subject, state_home())
    if score is not None and score.partition(".")[0] not in (planned := [choice.name for choice in plan.scores]):
        raise UnknownName(f"score of {subject}'s plan", score, planned)
    if score is None and (fraction is not None or count is not None):
        raise ConfigError("--fraction and --count go with --score")
    w = _warehouse()
    now = datetime.now(UTC).replace(microsecond=0)
    chosen: dict[str, Any] = {}
    if ids is not None:
        try:
            chosen["ids"] = tuple(int(i) for i in ids.split(","))
        except ValueError:
            raise ConfigError(f"--ids {ids!r} is not a list of whole numbers like 3,17,42") from None
    if owner is not None:
        chosen["owner"] = owner_token(owner, salt=w.salt())
    chosen |= {k: v for k, v in {"class_name": class_name, "where": where, "score": score}.items() if v is not None}
    if len(chosen) != 1:
        raise ConfigError("give exactly one of --ids, --owner, --class, --where, --score")
    field = next(iter(chosen))
    request = ForgetRequest(
        request_id=request_id or f"r{now:%Y%m%d-%H%M%S}",
        subject=subject,
        selector={"class_name": "class"}.get(field, field),  # type: ignore[arg-type]
        fraction=0.01 if score is not None and fraction is None and count is None else fraction or 0.0,
        count=count or 0,
        end=end,
        received_at=now.isoformat(),
        due_at=_due(due, now).isoformat(),
        **chosen,
    )
    w.requests.add(request)
    if not unverified:
        w.requests.advance(request.request_id, RequestState.VERIFIED, note="verified by the operator who registered it")
    w.publish()
    console.print(f"request [bold]{request.request_id}[/] registered, due {request.due_at[:10]}")
    console.print(
        f"Next: palimpsest request run {subject} {request.request_id}"
        if not unverified
        else f"Next: verify the requester, then palimpsest request verify {subject} {request.request_id}"
    )


def _due(text: str | None, now: datetime) -> datetime:
    if text is None:
        return due_date(now)
    try:
        due = datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        raise ConfigError(f"--due {text!r} is not a date like 2026-12-31") from None
    if due <= now:
        raise ConfigError(f"--due {text} is not in the future")
    return due


@app.command("verify")
def verify(
    subject: Name, request_id: RequestId, note: Annotated[str, typer.Option("--note")] = "requester verified"
) -> None:
    """Say that the requester's identity has been verified."""
    _advance(subject, request_id, RequestState.VERIFIED, note)


@app.command("refuse")
def refuse(
    subject: Name,
    request_id: RequestId,
    why: Annotated[str, typer.Option("--why", help="the reason, kept in the register")],
) -> None:
    """Refuse a request, with the reason."""
    _advance(subject, request_id, RequestState.REFUSED, why)


def _advance(subject: str, request_id: str, state: RequestState, note: str) -> None:
    w = _warehouse()
    _of(w, subject, request_id)
    w.requests.advance(request_id, state, note=note)
    w.publish()
    console.print(f"request {request_id} is now {state.value}")


def _of(w: Any, subject: str, request_id: str) -> Any:
    entry = w.requests.get(request_id)
    if entry.request.subject != subject:
        raise ConfigError(f"request {request_id} belongs to subject {entry.request.subject!r}, not to {subject!r}")
    return entry


@app.command("list")
def list_(subject: Name) -> None:
    """All requests of a subject, the most urgent first."""
    now = datetime.now(UTC)
    table = Table(
        "request",
        "state",
        "selector",
        "examples",
        "received",
        "due",
        "days left",
        title=f"Forget requests of {subject}",
        title_justify="left",
    )
    rows = _warehouse().requests.list(subject).sort("due_at")
    for r in rows.iter_rows(named=True):
        examples = "" if r["num_examples"] is None else str(r["num_examples"])
        left = str((r["due_at"].replace(tzinfo=UTC) - now).days)
        table.add_row(
            r["request_id"], r["state"], r["selector"], examples, f"{r['received_at']:%F}", f"{r['due_at']:%F}", left
        )
    console.print(
        table
        if rows.height
        else f"no forget request of {subject} yet; register one: palimpsest request add {subject} --ids 3,17"
    )


@app.command("show")
def show(subject: Name, request_id: RequestId) -> None:
    """One request: what it selects, where it stands, its history and its verdicts."""
    from contracts.digests import plain
    from contracts.schema import FINDINGS, REQUEST_EVENTS

    w = _warehouse()
    entry = _of(w, subject, request_id)
    for key, value in plain(entry.request).items():
        if value:
            console.print(f"{key:>12}  {value}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{'state':>12}  [bold]{entry.state.value}[/]")
    for row in (
        w.read(REQUEST_EVENTS, subject=subject, partition={"request_id": request_id}).sort("seq").iter_rows(named=True)
    ):
        console.print(f"  {row['at']:%Y-%m-%d %H:%M}  {row['state']:<10} {row['note']}", markup=False, highlight=False)
    findings = w.read(FINDINGS, subject=subject, partition={"stage": f"{subject}/request_audits/{request_id}/findings"})
    for row in findings.sort("judged", descending=True).iter_rows(named=True):
        note = "" if row["judged"] else " (does not count)"
        console.print(f"  {row['verdict']:<12} {row['about']}{note}: {row['sentence']}", markup=False, highlight=False)


@app.command("run")
def run(subject: Name, request_id: RequestId) -> None:
    """Execute a verified request: scope, unlearning jobs, attacks, verdict, report."""
    from pipelines.cli.audit import finish, run_subject
    from pipelines.subjects import load_subject

    home = state_home()
    plan = load_subject(subject, home)
    entry = _of(_warehouse(), subject, request_id)
    if entry.state in (RequestState.RECEIVED, RequestState.REFUSED, RequestState.ON_HOLD):
        raise ConfigError(f"request {request_id} is {entry.state.value}; only a verified request is run")
    if plan.unlearning is None:
        raise ConfigError(f"subject {subject} has no unlearning plan, so it cannot honour a forget request")
    started = time.perf_counter()
    run_subject(plan, home, job="audit")
    workspace, records = run_subject(plan, home, job="forget", request=request_id)
    finish(workspace, plan, f"{subject}/request_reports/{request_id}/audit", records, time.perf_counter() - started)
