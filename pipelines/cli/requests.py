"""``palimpsest request``: the register of forget requests, and running one.

A request is resolved to rows when it is registered: they are shown, counted and pinned. It is run on those rows or not
at all.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import polars as pl
import typer
from rich import box
from rich.table import Table

from contracts.digests import plain
from contracts.errors import ConfigError, NotReady, PalimpsestError, StateError, UnknownName
from contracts.requests import MAX_MONTHS, NOT_RUN, OPEN, Concept, ForgetRequest, RequestState, due_date, next_state
from pipelines.cli.show import what_next
from pipelines.cli.terminal import console, print_data, state_to_read, state_to_write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from assets import Workspace
    from contracts.subject import Subject

_WIDE = 100  # columns of a terminal in which the day of receipt has room beside a request's whole id
app = typer.Typer(help="Forget requests: from registering to closing.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="the audited subject")]
RequestId = Annotated[str, typer.Argument(help="id of the request")]
Why = Annotated[str, typer.Option("--why", help="the reason, kept in the register")]


def _warehouse() -> Any:
    """To write to.

    Raises:
        NotReady: there is no register: nothing was ever put on record in this state folder.
    """
    from warehouse import Warehouse

    home = state_to_write()
    if not Warehouse.existing(home).database.exists():
        raise NotReady(f"no forget request is on record in {home}: palimpsest request add SUBJECT registers one")
    return Warehouse.open(home)


def _published() -> Any:
    """To read only: as of the last step that anybody took."""
    from warehouse import Warehouse

    return Warehouse.existing(state_to_read())


@app.command("add")
def add(
    subject: Name,
    ids: Annotated[str | None, typer.Option("--ids", help="example ids, separated by commas")] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="whose examples; stored as a salted token only")] = None,
    class_name: Annotated[str | None, typer.Option("--class", help="all examples of a class")] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", help="SQL predicate over data.examples and the columns that the source keeps"),
    ] = None,
    score: Annotated[
        str | None, typer.Option("--score", help="one end of a score of the plan, with --fraction or --count")
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option("--fraction", help="share of the training examples, for --score; 0.01 when not given"),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", help="number of examples, for --score")] = None,
    end: Annotated[str, typer.Option("--end", help="highest or lowest of --score")] = "highest",
    neighbourhood: Annotated[
        int | None, typer.Option("--neighbourhood", help="a node of a graph, by its id, and all around it; with --hops")
    ] = None,
    hops: Annotated[int | None, typer.Option("--hops", help="edges around --neighbourhood; 1 when not given")] = None,
    edge: Annotated[
        str | None, typer.Option("--edge", help="the edge between two nodes of a graph, by their ids, like 3,17")
    ] = None,
    concept: Annotated[
        str | None,
        typer.Option("--concept", help="a concept in place of rows, by its name; with --alias, --anchor, --keep"),
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option("--alias", help="another word for --concept; may be repeated")
    ] = None,
    anchor: Annotated[
        str | None, typer.Option("--anchor", help="what the model is to answer in place of --concept")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="a neighbour of --concept that must stay; may be repeated")
    ] = None,
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
    """Register a forget request: its rows are looked up, shown and pinned; or an edge or a concept is named in place of
    rows. A verified one is run by the sensor under 'make ui', or by 'palimpsest request run'."""
    from pipelines.cli.audit import workspace_of
    from pipelines.subjects import load_subject

    home = state_to_write()
    plan = load_subject(subject, home)
    listed, ends = _numbers("--ids", ids, "3,17,42"), _numbers("--edge", edge, "3,17")
    made = register(
        plan,
        workspace_of(home),
        ids=listed,
        owner=owner,
        class_name=class_name,
        where=where,
        score=score,
        fraction=fraction,
        count=count,
        end=end,
        neighbourhood=neighbourhood,
        hops=hops,
        edge=ends,
        concept=concept,
        alias=alias or (),
        anchor=anchor,
        keep=keep or (),
        due=due,
        request_id=request_id,
        unverified=unverified,
    )
    console.print(f"request [bold]{made.request_id}[/] registered, due {made.due}")
    for line in made.said:
        console.print(f"  {line}", highlight=False, markup=False)
    if unverified:
        console.print(f"Next: verify the requester, then palimpsest request verify {subject} {made.request_id}")
    elif ends is None and _lacking(plan, concept is not None) == "":
        console.print(f"Next: palimpsest request run {subject} {made.request_id}")


def _numbers(option: str, text: str | None, like: str) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(i) for i in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not a list of whole numbers like {like}") from None


class Registered(NamedTuple):
    """A request on record: of which subject, due on YYYY-MM-DD, the rows it names, and what their number means in
    sentences."""

    subject: str
    request_id: str
    due: str
    example_id: tuple[int, ...]
    said: tuple[str, ...]


def register(
    plan: Subject,
    workspace: Workspace,
    *,
    ids: Sequence[int] | None = None,
    owner: str | None = None,
    class_name: str | None = None,
    where: str | None = None,
    score: str | None = None,
    fraction: float | None = None,
    count: int | None = None,
    end: str = "highest",
    neighbourhood: int | None = None,
    hops: int | None = None,
    edge: Sequence[int] | None = None,
    concept: str | None = None,
    alias: Sequence[str] = (),
    anchor: str | None = None,
    keep: Sequence[str] = (),
    due: str | None = None,
    request_id: str | None = None,
    unverified: bool = False,
) -> Registered:
    """Look up the rows that a request names, pin them, and put it on record. Arguments as the options of ``request
    add``.

    Raises:
        ConfigError: not exactly one way of choosing rows, one edge or one concept, or a date that is none.
        UnknownName: the plan does not list the score.
        DataError, InvalidInput, NotReady: see ``assets.request_rows.resolve``.
    """
    from assets.request_edges import how_to_remove, refuse_no_edge
    from assets.request_owner import owner_in
    from assets.request_rows import pins, resolve
    from contracts.identity import owner_token

    subject = plan.subject
    if score is not None and score.partition(".")[0] not in (planned := [choice.name for choice in plan.scores]):
        raise UnknownName(f"score of {subject}'s plan", score, planned)
    if score is None and (fraction is not None or count is not None):
        raise ConfigError("--fraction and --count go with --score")
    if concept is None and (alias or anchor is not None or keep):
        raise ConfigError("--alias, --anchor and --keep go with --concept")
    if neighbourhood is None and hops is not None:
        raise ConfigError("--hops goes with --neighbourhood")
    w = workspace.warehouse
    now = datetime.now(UTC).replace(microsecond=0)
    chosen: dict[str, Any] = {}
    if ids is not None:
        chosen["ids"] = tuple(int(i) for i in ids)
    if owner is not None:
        chosen["owner"] = owner
    if neighbourhood is not None:
        chosen["around"] = neighbourhood
    if edge is not None:
        chosen["edge"] = tuple(int(i) for i in edge)
    chosen |= {k: v for k, v in {"class_name": class_name, "where": where, "score": score}.items() if v is not None}
    if concept is not None:
        chosen["concept"] = Concept(name=concept, aliases=tuple(alias), anchor=anchor or "", keep=tuple(keep))
    if len(chosen) != 1:
        raise ConfigError(
            "give exactly one of --ids, --owner, --class, --where, --score, --neighbourhood, --edge, --concept"
        )
    whose = None if owner is None else owner_in(workspace.examples(plan), owner)
    if whose is not None:
        chosen["owner"] = owner_token(whose.name, salt=w.salt())
    field = next(iter(chosen))
    request = ForgetRequest(
        request_id=request_id or f"r{now:%Y%m%d-%H%M%S}",
        subject=subject,
        selector={"class_name": "class", "around": "neighbourhood"}.get(field, field),  # type: ignore[arg-type]
        fraction=0.01 if score is not None and fraction is None and count is None else fraction or 0.0,
        count=count or 0,
        end=end,
        hops=1 if hops is None else hops,
        received_at=now.isoformat(),
        due_at=_due(due, now).isoformat(),
        **chosen,
    )
    ids_named: tuple[int, ...] = ()
    if request.names_rows:
        data = workspace.examples(plan)
        try:
            found = resolve(request, data, w)
        except UnknownName as error:
            if error.kind != "stored score":
                raise
            raise NotReady(
                f"score {score} of {subject} has not been computed yet; run: palimpsest audit {subject}"
            ) from None
        w.requests.add(request, pins=pins(data, found, w.salt()))
        said = [*(whose.said if whose else ()), *_what_it_names(plan, data, found)]
        ids_named = tuple(found.tolist())
    elif request.edge:
        refuse_no_edge(request, workspace.examples(plan))
        w.requests.add(request)
        said = ["It names no rows of the data, but one edge.", how_to_remove(request)]
    else:
        w.requests.add(request)
        said = _what_it_means(plan, request)
    if not unverified:
        w.requests.advance(request.request_id, RequestState.VERIFIED, note="verified by the operator who registered it")
    w.publish()
    return Registered(subject, request.request_id, request.due_at[:10], ids_named, tuple(said))


def _examples(num: int) -> str:
    return f"{num:,} example" + "s" * (num != 1)


def _what_it_names(plan: Any, data: Any, ids: Any) -> list[str]:
    """Rows by split, class and owner, and what their number means for the verdict."""
    from collections import Counter

    from assets import in_use
    from assets.expected import against_retrainings

    at = data.positions(ids)
    splits = Counter(data.split[at].tolist())
    said = [
        f"{_examples(len(ids))}: " + ", ".join(f"{n:,} in {name}" for name, n in sorted(splits.items(), reverse=True))
    ]
    if data.task.gives("classes"):
        classes = Counter(data.class_names[k] for k in data.y[at].tolist()).most_common(8)
        said.append("classes: " + ", ".join(f"{name} {n:,}" for name, n in classes))
    if (owners := {name for name in data.owner[at].tolist() if name}) and len(owners) > 1:
        said.append(f"they belong to {len(owners):,} owners")
    if not splits["train"]:
        said.append("No model under audit was trained on them: there is nothing to unlearn, and a run says so.")
    elif plan.unlearning is None:
        said.append("The plan has no unlearning: it is registered, and cannot be run before the plan has one.")
    else:
        said.append(against_retrainings(plan, splits["train"]))
        said += [*in_use.sentences(plan), "Where it is inconclusive, " + _grounds(plan)]
    return said


def _lacking(plan: Subject, concept: bool) -> str:
    """What the plan lacks to run a request, of a concept or of rows; "" where nothing is."""
    from assets.request_concepts import lacking

    return lacking(plan) if concept else "" if plan.unlearning is not None else "the plan has no unlearning"


def _what_it_means(plan: Subject, request: ForgetRequest) -> list[str]:
    """A concept in words, and what the plan lacks to remove it."""
    said = [f"{name} {text}" for name, text in _concept_in_words(request).items()]
    why = _lacking(plan, True)
    return [*said, f"It is registered, and cannot be run yet: {why}." if why else "It names no rows of the data."]


def _concept_in_words(request: ForgetRequest) -> dict[str, str]:
    found = request.concept
    if found is None:
        return {}
    shown = {
        "concept": found.name,
        "aliases": ", ".join(found.aliases),
        "anchor": found.anchor,
        "keep": ", ".join(found.keep),
    }
    return {name: text for name, text in shown.items() if text}


def _grounds(plan: Any) -> str:
    """What closes a request whose audit is inconclusive, as half a sentence."""
    a_person = "a person closes it with a reason (request close)"
    if plan.unlearning.closing != "retrained":
        return f"{a_person}."
    return f"{a_person}, or its rows are taken out of the data and all is trained again (request close --retrained)."


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
def refuse(subject: Name, request_id: RequestId, why: Why) -> None:
    """Refuse a request, with the reason."""
    _advance(subject, request_id, RequestState.REFUSED, why)


@app.command("hold")
def hold(subject: Name, request_id: RequestId, why: Why) -> None:
    """Put a request on hold: nothing is run until it is verified again."""
    _advance(subject, request_id, RequestState.ON_HOLD, why)
    console.print(f"To take it up again: palimpsest request verify {subject} {request_id}")


@app.command("withdraw")
def withdraw(subject: Name, request_id: RequestId, why: Why = "withdrawn by the person who asked") -> None:
    """The person has taken the request back: what its runs made is removed, so that all but the register is as
    before."""
    from pipelines.cli.audit import workspace_of
    from pipelines.erasure import withdraw as undo
    from pipelines.subjects import load_subject

    workspace = workspace_of(state_to_write())
    w = workspace.warehouse
    next_state(_of(w, subject, request_id).state, RequestState.WITHDRAWN)
    undo(load_subject(subject, workspace.home), workspace, request_id)
    w.requests.advance(request_id, RequestState.WITHDRAWN, note=why)
    w.publish()
    console.print(f"request {request_id} is now withdrawn")


@app.command("extend")
def extend(
    subject: Name,
    request_id: RequestId,
    why: Why,
    to: Annotated[
        str | None,
        typer.Option("--to", help="YYYY-MM-DD; by default three months after receipt, the most (GDPR Art. 12(3))"),
    ] = None,
) -> None:
    """Give a request a later due date, with the reason that the person is told."""
    w = _warehouse()
    entry = _of(w, subject, request_id)
    received = datetime.fromisoformat(entry.request.received_at)
    due = due_date(received, months=MAX_MONTHS) if to is None else _due(to, datetime.now(UTC))
    w.requests.extend(request_id, due, note=why)
    w.publish()
    console.print(f"request {request_id} is now due {due:%Y-%m-%d}")


@app.command("close")
def close(
    subject: Name,
    request_id: RequestId,
    by: Annotated[str, typer.Option("--by", help="who closes it: a name, kept in the register")] = "",
    why: Annotated[str, typer.Option("--why", help="the reason, kept in the register")] = "",
    retrained: Annotated[
        bool,
        typer.Option(
            "--retrained",
            help="on exact retraining, where the plan accepts it: its rows are taken out of the data, everything is "
            "trained again, and it is shown that they are in no data and no model",
        ),
    ] = False,
) -> None:
    """Close a request that its audit could not close: under a person's name, or on exact retraining. A failed audit
    cannot be closed."""
    if retrained and why.strip():
        raise ConfigError("--retrained is the reason: leave --why out")
    if not retrained and not (by.strip() and why.strip()):
        raise ConfigError("a request is closed by a named person with a reason: --by NAME --why REASON; or --retrained")
    if retrained:
        _close_on_retraining(subject, request_id, by.strip())
        return
    w = _warehouse()
    entry = _of(w, subject, request_id)
    if entry.state is not RequestState.AUDITED:
        then = what_next(subject, request_id, entry.state)
        raise StateError(
            f"request {request_id} is {entry.state.value}: only an audited one is closed by a person; {then}"
        )
    verdict = _refuse_failed(w, subject, request_id)
    _refuse_live(w, subject, request_id)
    w.requests.advance(
        request_id, RequestState.CLOSED, note=f"closed by {by.strip()}: {why.strip()} (audit: {verdict})"
    )
    w.publish()
    console.print(f"request {request_id} is now closed by {by.strip()}; its audit said {verdict}")


def _refuse_failed(w: Any, subject: str, request_id: str) -> str:
    """The word of a request's audit; of one whose examples no model under audit was trained on, that.

    Raises:
        StateError: it failed.
    """
    if w.requests.get(request_id).num_examples == 0:
        return "nothing to unlearn"
    from contracts.verdicts import Verdict
    from reports.summary import judgement_of

    facts = json.loads(w.artifacts.load_bytes(f"{subject}/request_reports/{request_id}/audit.json"))
    judgement, _ = judgement_of(facts)
    if judgement.verdict in (Verdict.FAIL, Verdict.BROKEN):
        raise StateError(
            f"the audit of request {request_id} says {judgement.verdict.value}: {judgement.sentence} Name another "
            "method under 'unlearning' in the plan (exact retraining: retrain) and run it again"
        )
    return judgement.verdict.value


def _refuse_live(w: Any, subject: str, request_id: str) -> None:
    """Raise :class:`StateError` while anything of a request's examples may still be there."""
    from pipelines.erasure import finished

    if not finished(w, request_id):
        raise StateError(
            f"request {request_id} is closed when nothing of its examples is left; first: palimpsest erase {subject} "
            f"{request_id} --execute"
        )


def _close_on_retraining(subject: str, request_id: str, by: str) -> None:
    from assets.request_closing import RETRAINED, close_on_retraining, refuse_left_in_source
    from pipelines.cli.audit import run_subject, workspace_of
    from pipelines.erasure import execute as erase
    from pipelines.subjects import load_subject

    home = state_to_write()
    plan = load_subject(subject, home)
    workspace = workspace_of(home)
    entry = _of(workspace.warehouse, subject, request_id)
    edge = bool(entry.request.edge)  # which nothing else removes
    if not edge and (plan.unlearning is None or plan.unlearning.closing != RETRAINED):
        raise ConfigError(
            f"the plan of {subject} does not accept exact retraining as a ground: set unlearning.closing to "
            "'retrained' in it"
        )
    if entry.state in NOT_RUN or entry.state not in OPEN:
        raise StateError(f"request {request_id} is {entry.state.value}; only a verified request is closed")
    if entry.state is RequestState.AUDITED:
        _refuse_failed(workspace.warehouse, subject, request_id)
    refuse_left_in_source(request_id, plan, workspace)
    run_subject(plan, home, job="audit", workspace=workspace)
    current: frozenset[str] = frozenset()
    if edge:  # no table and no file of ours holds one: what was made with it is gone when all is made anew
        current = _current(plan, workspace)
    else:
        erase(plan, workspace, request_id, retrained=True)
    ground = close_on_retraining(request_id, plan, workspace, by=by, current=current)
    console.print(f"request {request_id} is now closed. {ground}")
    console.print(f"The proof: palimpsest report {request_id}")


def _current(plan: Subject, workspace: Workspace) -> frozenset[str]:
    """Assets of the plan whose results a run of the audit would leave as they are."""
    from assets.current import current_stages
    from pipelines.outline import outline_of

    outline = outline_of(plan, workspace)
    return frozenset(
        current_stages(
            outline.stages,
            workspace.warehouse,
            request=None,
            outside=lambda what: outline.outside(plan, workspace, what),
        )
    )


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
    """All requests of a subject, the most urgent first.

    Raises:
        UnknownName: there is no such subject.
    """
    from pipelines.subjects import load_subject

    now = datetime.now(UTC)
    w = _published()
    rows = w.requests.list(subject).sort("due_at") if w.snapshot.exists() else pl.DataFrame()
    if not rows.height:
        load_subject(subject, w.home)  # none yet, or no such subject
    table = Table(
        title=f"Forget requests of {subject}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    wide = console.width >= _WIDE
    for name in ("request", "state", "selector", "examples", *(["received"] if wide else []), "due", "days left"):
        table.add_column(name, no_wrap=name != "request", overflow="fold")
    for r in rows.iter_rows(named=True):
        examples = "" if r["num_examples"] is None else str(r["num_examples"])
        days = (r["due_at"].replace(tzinfo=UTC) - now).days
        still = RequestState(r["state"]) in OPEN
        left = "" if not still else f"[bold red]{days}[/]" if days < 7 else str(days)
        received = [f"{r['received_at']:%F}"] if wide else []
        table.add_row(r["request_id"], r["state"], r["selector"], examples, *received, f"{r['due_at']:%F}", left)
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

    w = _published()
    entry = _of(w, subject, request_id)
    unused = () if entry.request.selector == "score" else ("end",)
    for key, value in (plain(entry.request) | {"concept": None} | _concept_in_words(entry.request)).items():
        if value and key not in unused:
            console.print(f"{key:>12}  {value}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{'for auditors':>12}  {w.request_token(request_id)}", highlight=False)
    console.print(f"{'state':>12}  [bold]{entry.state.value}[/]")
    for row in (
        w.read(REQUEST_EVENTS, subject=subject, partition={"request_id": request_id}).sort("seq").iter_rows(named=True)
    ):
        console.print(f"  {row['at']:%Y-%m-%d %H:%M}  {row['state']:<10} {row['note']}", markup=False, highlight=False)
    findings = w.read(FINDINGS, subject=subject, partition={"stage": f"{subject}/request_audits/{request_id}/findings"})
    for row in findings.sort("judged", descending=True).iter_rows(named=True):
        note = "" if row["judged"] else " (does not count)"
        console.print(f"  {row['verdict']:<12} {row['about']}{note}: {row['sentence']}", markup=False, highlight=False)
    if entry.state in OPEN:
        console.print(f"Next: {_next(w, entry)}", markup=False, highlight=False, soft_wrap=True)


def _next(w: Any, entry: Any) -> str:
    """What a person does with an open request."""
    from pipelines.erasure import finished

    request = entry.request
    if request.edge:
        from assets.request_edges import how_to_remove

        return how_to_remove(request)
    if entry.state is RequestState.AUDITED and (not request.names_rows or finished(w, request.request_id)):
        return f"palimpsest request close {request.subject} {request.request_id} --by NAME --why REASON"
    return what_next(request.subject, request.request_id, entry.state)


@app.command("run")
def run(
    subject: Name,
    request_id: Annotated[str | None, typer.Argument(metavar="[REQUEST]", help="id of the request")] = None,
    all_due: Annotated[
        bool, typer.Option("--all-due", help="all that wait for a run, the most urgent first, in one process")
    ] = False,
    each: Annotated[
        bool, typer.Option("--each", help="with --all-due: remove what every request names by itself, not together")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what would be trained and audited, and about how long; do nothing")
    ] = False,
) -> None:
    """Execute a verified request: scope, unlearning jobs, attacks, verdict, report, certificate. With --all-due: all of
    them, removed together by one unlearning, each judged on its own rows, with a report and certificate of its own."""
    from pipelines.cli.audit import finish, workspace_of
    from pipelines.subjects import load_subject

    if all_due == (request_id is not None):
        raise ConfigError("give the id of a request, or --all-due for all that wait")
    if each and not all_due:
        raise ConfigError("--each goes with --all-due: one request by its id is run by itself")
    home = state_to_write()
    plan = load_subject(subject, home)
    workspace = workspace_of(home)
    if request_id is None:
        _run_all(plan, workspace, each=each, dry_run=dry_run)
        return
    if dry_run:
        for line in would_run(plan, workspace, request_id):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    started = time.perf_counter()
    done = execute(plan, workspace, request_id)
    if isinstance(done, str):
        console.print(f"[bold]{done}[/]", highlight=False)
        return
    asset, wall_s = f"{subject}/request_reports/{request_id}/audit", time.perf_counter() - started
    by_a_person = f"palimpsest request close {subject} {request_id} --by NAME --why REASON"
    on_retraining = f"take its rows out of the data, then: palimpsest request close {subject} {request_id} --retrained"
    accepts = plan.unlearning is not None and plan.unlearning.closing == "retrained"
    others = [by_a_person, *([on_retraining] if accepts else [])]
    erase = f"palimpsest erase {subject} {request_id} --plan"
    finish(workspace, plan, asset, done, wall_s, undecided=others, then=[erase])


@app.command("remeasure")
def remeasure(
    subject: Name,
    request_id: Annotated[str | None, typer.Argument(metavar="[REQUEST]", help="one; all that were audited")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Is what was forgotten still forgotten, as it is measured and judged today? From what is kept of requests that
    were audited, their examples erased or not; nothing is trained or written. Exit 0 where all pass, 1 where one does
    not, 2 where one cannot be measured."""
    from assets.remeasure import Again, measured_again
    from pipelines.cli.audit import EXIT
    from pipelines.subjects import load_subject

    w, plan = _published(), load_subject(subject, state_to_read())
    if request_id is None:
        states = [RequestState.AUDITED.value, RequestState.CLOSED.value]
        listed = w.requests.list(subject)
        ids = listed.filter(pl.col("state").is_in(states) & (pl.col("num_examples") > 0))["request_id"].to_list()
    else:
        ids = [_of(w, subject, request_id).request.request_id]
    found: dict[str, list[Again] | str] = {}
    for name in ids:
        try:
            found[name] = measured_again(plan, w, name)
        except NotReady as error:
            found[name] = str(error)
    if as_json:
        print_data(json.dumps({name: plain(again) for name, again in found.items()}, indent=2))
    elif not found:
        console.print(f"no request of {subject} was audited", highlight=False)
    codes = [0]
    for name, again in found.items():
        if isinstance(again, str):
            codes.append(2)
            lines = [again]
        else:
            codes += [EXIT.get(one.now.verdict.value, 1) for one in again if one.method != "none"]
            lines = [
                f"{name}, {one.method}: {one.now.verdict.value} (recorded: {one.recorded.value}). {one.now.sentence}"
                for one in again
            ]
        for line in [] if as_json else lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(max(codes))


def _run_all(plan: Subject, workspace: Workspace, *, each: bool, dry_run: bool) -> None:
    """Work off what waits; exit 0 where all pass, 1 where one is not shown to pass, 2 where one could not be run."""
    from pipelines.batch import FAILED, waiting, work_off
    from pipelines.cli.audit import EXIT

    ids = waiting(workspace.warehouse.requests.list(plan.subject), now=datetime.now(UTC))
    if not ids:
        console.print(f"no verified forget request of {plan.subject} is waiting", highlight=False)
        return
    if dry_run:
        for request_id in ids:
            try:
                said = would_run(plan, workspace, request_id)
            except PalimpsestError as error:  # the others are told all the same
                said = [f"cannot be run: {error}"]
            for line in (f"{request_id}:", *said):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    worked = work_off(
        plan,
        workspace,
        ids,
        each=each,
        note=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
        done=lambda one: console.print(
            f"{one.request_id}: {one.ended or 'nothing to unlearn'}. {one.sentence}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        ),
    )
    console.print(f"Next, for each: palimpsest erase {plan.subject} REQUEST --plan", highlight=False)
    raise typer.Exit(max(2 if one.ended == FAILED else EXIT.get(one.ended, 0) for one in worked))


def execute(plan: Subject, workspace: Workspace, request_id: str) -> list[dict[str, Any]] | str:
    """Run a verified request, after the audit that it stands on; the state of each stage, or the answer in a sentence
    where none of its rows is in the training split.

    Raises:
        StateError: it is not verified. ConfigError: the plan has no unlearning. NotApplicable: it names a concept, and
            what is lacking.
        DataError: its rows have changed since it was registered. JobFailed: a stage failed.
    """
    from assets.batch import put_together
    from assets.request_rows import answer_unseen
    from pipelines.cli.audit import run_subject

    home = workspace.home
    if runnable(plan, workspace, request_id).num_examples == 0:
        return answer_unseen(workspace.warehouse, request_id)
    run_subject(plan, home, job="audit", workspace=workspace)
    put_together(workspace.warehouse.requests, [request_id], num_train=0, each=True)
    _, records = run_subject(plan, home, job="forget", request=request_id, workspace=workspace)
    return records


def runnable(plan: Subject, workspace: Workspace, request_id: str) -> Any:
    """The request, where a run may start. Raises as :func:`execute`, before any work."""
    from assets.request_concepts import refuse_concept
    from assets.request_edges import refuse_edge
    from assets.request_rows import refuse_changed
    from pipelines.erasure import refuse_erased

    w = workspace.warehouse
    entry = _of(w, plan.subject, request_id)
    if entry.state in NOT_RUN or entry.state not in OPEN:
        then = what_next(plan.subject, request_id, entry.state)
        raise StateError(f"request {request_id} is {entry.state.value}; only a verified request is run; {then}")
    refuse_erased(w, request_id)
    refuse_concept(entry.request, plan)
    refuse_edge(entry.request)
    if (pinned := w.requests.pins(request_id)).height:
        refuse_changed(entry.request, pinned, workspace.examples(plan), w)
    if plan.unlearning is None and entry.num_examples != 0:
        raise ConfigError(f"subject {plan.subject} has no unlearning plan, so it cannot honour a forget request")
    return entry


def would_run(plan: Subject, workspace: Workspace, request_id: str) -> list[str]:
    """What a run of a request would compute, in sentences; nothing is computed or recorded. Raises as
    :func:`execute`."""
    from assets.current import current_stages
    from pipelines.outline import outline_of

    if runnable(plan, workspace, request_id).num_examples == 0:
        return ["Nothing: none of its rows is in the training split."]
    outline = outline_of(plan, workspace)
    current = current_stages(
        outline.stages,
        workspace.warehouse,
        request=request_id,
        outside=lambda what: outline.outside(plan, workspace, what),
    )
    wanted = [stage for stage in outline.stages if stage.asset(request_id) not in current]
    last = workspace.warehouse.completions(_alike(stage) for stage in wanted)
    known = [float(last[_alike(stage)][0].get("wall_s", 0.0)) for stage in wanted if _alike(stage) in last]
    said = [f"{stage.asset(request_id)}" for stage in wanted]
    unknown = len(wanted) - len(known)
    return [
        f"{len(wanted)} of {len(outline.stages)} stages would be computed; the others are current:",
        *(f"  {asset}" for asset in said),
        f"The like of {len(known)} of them took {sum(known):.0f} s in the last audit"
        + (f"; of {unknown} nothing is known yet." if unknown else "."),
    ]


def _alike(stage: Any) -> str:
    """The asset of the plan's own audit that does what a stage of a request does; its own of any other stage."""
    return "/".join([stage.subject, stage.path[0].removeprefix("request_"), stage.path[1]])
