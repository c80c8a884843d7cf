"""The register of forget requests and their events: one transaction a step, only transitions that the contract allows.

Order within a request is ``seq``; the clock only says when. The ledger is told id, state and digest of the request,
never ids or owners of examples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from contracts.digests import canonical_json, digest
from contracts.errors import ConfigError, StateError, UnknownName
from contracts.requests import MAX_MONTHS, OPEN, ForgetRequest, RequestState, due_date, next_state
from contracts.schema import REGISTER, REQUEST_BATCHES, REQUEST_EVENTS, REQUEST_PINS
from warehouse import ddl
from warehouse.connection import Connection, fetch, first
from warehouse.session import Session
from warehouse.writer import Transaction, read_partition, transaction

_WRITER = "requests"
_MAIN_LINE = (
    RequestState.RECEIVED,
    RequestState.VERIFIED,
    RequestState.SCOPED,
    RequestState.EXECUTED,
    RequestState.AUDITED,
    RequestState.CLOSED,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestRecord:
    """A request as it stands.

    Attributes:
        request: as it was received.
        state: where it stands.
        due_at: when it is due, extensions included.
        num_examples: training examples in scope; None before its rows are known.
        events: (seq, state, note, at), oldest first.
    """

    request: ForgetRequest
    state: RequestState
    due_at: datetime
    num_examples: int | None
    events: pl.DataFrame


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The requests with which one is removed.

    Attributes:
        name: of the batch; "" of a request that is removed by itself.
        others: their ids, ascending, without its own.
    """

    name: str = ""
    others: tuple[str, ...] = ()


class Requests:
    """Forget requests of an open warehouse (``w.requests``). Request ids are unique over all subjects."""

    def __init__(self, session: Session) -> None:
        self._s = session

    def add(self, request: ForgetRequest, *, note: str = "", pins: pl.DataFrame | None = None) -> RequestRecord:
        """Enter a request in state received. The same request again changes nothing.

        Args:
            pins: ``(example_id, split, pin)`` of the rows that it names, kept with it in the same transaction.

        Raises:
            ConfigError: another request has that id, or a date is not ISO 8601 with a time zone.
        """
        received, due = _utc(request.received_at, "received_at"), _utc(request.due_at, "due_at")
        if due <= received:
            raise ConfigError(f"request {request.request_id}: due_at {request.due_at} is not after receipt")
        with transaction(self._s) as t:
            stored = _find(t.con, request.request_id)
            if stored is not None:
                if stored.request != request:
                    raise ConfigError(f"request id {request.request_id} is taken by another request")
                return stored
            row = {
                "state": RequestState.RECEIVED.value,
                "selector": request.selector,
                "request": canonical_json(request.recorded()),
                "legal_basis": request.legal_basis,
                "received_at": received,
                "due_at": due,
                "num_examples": None if pins is None else pins.filter(pl.col("split") == "train").height,
            }
            _enter(t, request, row, seq=0, note=note)
            if pins is not None:
                t.replace(REQUEST_PINS, pins, **_common(request))
            return _get(t.con, request.request_id)

    def pin(self, request_id: str, pins: pl.DataFrame) -> None:
        """Keep the rows of a request that was registered without them: ``(example_id, split, pin)``."""
        with transaction(self._s) as t:
            record = _get(t.con, request_id)
            t.replace(REQUEST_PINS, pins, **_common(record.request))

    def pins(self, request_id: str) -> pl.DataFrame:
        """``(example_id, split, pin)`` of the rows that a request named when it was registered, by id; none if not
        known."""
        with self._s.reading() as con:
            record = _get(con, request_id)
            stored = read_partition(con, REQUEST_PINS, record.request.subject, {"request_id": request_id})
        return stored.select("example_id", "split", "pin").sort("example_id")

    def together(self, request_ids: Sequence[str]) -> None:
        """Put on record that these requests of one subject are removed together, in place of what was on record of
        them; one alone is removed by itself.

        Raises:
            UnknownName: one of them is not known.
        """
        ids = sorted(set(request_ids))
        name = digest(ids) if len(ids) > 1 else ""
        if not name and not any(self.batch(request_id).name for request_id in ids):
            return  # it was alone
        with transaction(self._s) as t:
            for request_id in ids:
                record = _get(t.con, request_id)
                row = pl.DataFrame({"batch": [name]})
                t.replace(REQUEST_BATCHES, row, **_common(record.request))

    def batch(self, request_id: str) -> Batch:
        """The requests with which a request is removed."""
        with self._s.reading() as con:
            rows = fetch(
                con,
                f"SELECT b.batch, b.request_id FROM {ddl.table(REQUEST_BATCHES)} AS mine "
                f"JOIN {ddl.table(REQUEST_BATCHES)} AS b USING (batch) WHERE mine.request_id = ? AND mine.batch <> '' "
                "ORDER BY b.request_id",
                [request_id],
            )
        others = tuple(name for name in rows["request_id"].to_list() if name != request_id)
        return Batch(name=rows["batch"][0], others=others) if rows.height else Batch()

    def get(self, request_id: str) -> RequestRecord:
        """A request with its events.

        Raises:
            UnknownName: with the list of the known ids.
        """
        with self._s.reading() as con:
            return _get(con, request_id)

    def list(self, subject: str | None = None) -> pl.DataFrame:
        """``(subject, request_id, state, selector, legal_basis, received_at, due_at, num_examples)``, oldest first."""
        with self._s.reading() as con:
            return fetch(
                con,
                f"SELECT subject, request_id, state, selector, legal_basis, received_at, due_at, num_examples "
                f"FROM {ddl.table(REGISTER)} WHERE ?::VARCHAR IS NULL OR subject = ? ORDER BY received_at, request_id",
                [subject, subject],
            )

    def advance(
        self, request_id: str, state: RequestState | str, *, note: str = "", num_examples: int | None = None
    ) -> RequestRecord:
        """Move a request to ``state``, on record.

        Raises:
            StateError: ``state`` may not follow the present one; names those that may.
        """
        with transaction(self._s) as t:
            return _advance(t, _get(t.con, request_id), RequestState(state), note=note, num_examples=num_examples)

    def reach(
        self, request_id: str, state: RequestState | str, *, note: str = "", num_examples: int | None = None
    ) -> RequestRecord:
        """As :meth:`advance`, but a request that is already there, or further, is left as it is (a repeated run)."""
        wanted = RequestState(state)
        with transaction(self._s) as t:
            record = _get(t.con, request_id)
            on_line = record.state in _MAIN_LINE and wanted in _MAIN_LINE
            if record.state == wanted or (on_line and _MAIN_LINE.index(record.state) > _MAIN_LINE.index(wanted)):
                return record
            return _advance(t, record, wanted, note=note, num_examples=num_examples)

    def extend(self, request_id: str, due_at: datetime, *, note: str) -> RequestRecord:
        """Move the day on which an open request is due, with the reason, on record. The state stays.

        Raises:
            StateError: the request is closed, refused or withdrawn.
            ConfigError: not later than it is due now, or more than three months after receipt (GDPR Art. 12(3)).
        """
        with transaction(self._s) as t:
            record = _get(t.con, request_id)
            if record.state not in OPEN:
                raise StateError(f"request {request_id} is {record.state.value}: there is nothing left to extend")
            latest = due_date(_utc(record.request.received_at, "received_at"), months=MAX_MONTHS)
            if not record.due_at < due_at <= latest:
                raise ConfigError(
                    f"request {request_id} is due {record.due_at:%Y-%m-%d} and can be extended to a day after that, up "
                    f"to {latest:%Y-%m-%d} ({MAX_MONTHS} months after receipt, GDPR Art. 12(3)); not to "
                    f"{due_at:%Y-%m-%d}"
                )
            row = _row(t.con, record.request) | {"due_at": due_at}
            _enter(t, record.request, row, seq=record.events.height, note=f"due {due_at:%Y-%m-%d}: {note}")
            return _get(t.con, request_id)

    def note(self, request_id: str, note: str) -> RequestRecord:
        """Put a sentence on record with the state as it is: a failed run, a call to the person."""
        with transaction(self._s) as t:
            remark(t, request_id, note)
            return _get(t.con, request_id)


def found(con: Connection, request_id: str) -> RequestRecord:
    """As :meth:`Requests.get`, inside a transaction."""
    return _get(con, request_id)


def remark(t: Transaction, request_id: str, note: str) -> None:
    """As :meth:`Requests.note`, inside a transaction."""
    record = _get(t.con, request_id)
    _enter(t, record.request, _row(t.con, record.request), seq=record.events.height, note=note)


def _advance(
    t: Transaction, record: RequestRecord, state: RequestState, *, note: str, num_examples: int | None
) -> RequestRecord:
    row = _row(t.con, record.request) | {"state": next_state(record.state, state).value}
    if num_examples is not None:
        row["num_examples"] = num_examples
    _enter(t, record.request, row, seq=record.events.height, note=note)
    return _get(t.con, record.request.request_id)


def forget_selector(t: Transaction, request_id: str) -> str:
    """Erase what a request's SQL predicate says: its rows were resolved and pinned, and text may name a person. What is
    left, in words."""
    record = _get(t.con, request_id)
    told = record.request.resolved()
    if told == record.request:
        return f"selector {told.selector} says nothing of the examples but ids, a token or a name of the data"
    row = _row(t.con, record.request) | {"request": canonical_json(told.recorded())}
    _enter(t, told, row, seq=record.events.height, note="the SQL predicate was erased; its rows are pinned")
    return f"request {told.digest()}, without its predicate"


def _common(request: ForgetRequest) -> dict[str, Any]:
    return {
        "subject": request.subject,
        "run_id": _WRITER,
        "config_digest": request.digest(),
        "partition": {"request_id": request.request_id},
    }


def _enter(t: Transaction, request: ForgetRequest, row: Mapping[str, Any], *, seq: int, note: str) -> None:
    common = _common(request)
    schema = {c.name: _DTYPES.get(c.dtype, pl.String) for c in REGISTER.columns if c.name != "request_id"}
    t.replace(REGISTER, pl.DataFrame([row], schema=schema), **common)
    event = {"seq": seq, "state": row["state"], "note": note, "at": t.now}
    t.append(REQUEST_EVENTS, pl.DataFrame([event]), **common)
    t.note(
        "request",
        {
            "request_id": request.request_id,
            "subject": request.subject,
            "state": row["state"],
            "request": request.digest(),
        },
    )


_DTYPES: Mapping[str, Any] = {"timestamp": pl.Datetime("us", "UTC"), "int64": pl.Int64}


def _find(con: Connection, request_id: str) -> RequestRecord | None:
    row = first(
        con,
        f"SELECT subject, request, state, num_examples, epoch_us(due_at) FROM {ddl.table(REGISTER)} WHERE request_id = "
        "?",
        [request_id],
    )
    if row is None:
        return None
    events = read_partition(con, REQUEST_EVENTS, row[0], {"request_id": request_id}).drop("request_id")
    return RequestRecord(
        request=ForgetRequest.from_mapping(json.loads(row[1])),
        state=RequestState(row[2]),
        num_examples=row[3],
        due_at=datetime.fromtimestamp(row[4] / 1e6, UTC),
        events=events,
    )


def _get(con: Connection, request_id: str) -> RequestRecord:
    record = _find(con, request_id)
    if record is None:
        known = con.execute(f"SELECT request_id FROM {ddl.table(REGISTER)}").fetchall()
        raise UnknownName("request", request_id, [row[0] for row in known])
    return record


def _row(con: Connection, request: ForgetRequest) -> dict[str, Any]:
    frame = read_partition(con, REGISTER, request.subject, {"request_id": request.request_id})
    if frame.height != 1:
        raise StateError(f"request {request.request_id} has {frame.height} rows in the register")
    return frame.drop("request_id").row(0, named=True)


def _utc(text: str, name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{name} = {text!r} is not an ISO 8601 date") from None
    if moment.tzinfo is None:
        raise ConfigError(f"{name} = {text!r} has no time zone; write it in UTC, e.g. 2026-01-31T00:00:00+00:00")
    return moment.astimezone(UTC)
