"""Forget requests: who asks for which examples, which edge or which concept to be forgotten, and where the request
stands."""

from __future__ import annotations

import dataclasses
import enum
from calendar import monthrange
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Self

from contracts import digests
from contracts.errors import ConfigError, StateError
from contracts.identity import MAX_EXAMPLE_ID, check_name
from contracts.params import Config, param

Selector = Literal["ids", "owner", "class", "where", "score", "neighbourhood", "edge", "concept"]
ERASED_TEXT = "erased"  # in place of an SQL predicate whose rows are erased
CONCEPT, EDGE = "concept", "edge"  # the selectors that name no rows


class RequestState(enum.StrEnum):
    RECEIVED = "received"
    VERIFIED = "verified"
    SCOPED = "scoped"
    EXECUTED = "executed"
    AUDITED = "audited"
    CLOSED = "closed"
    REFUSED = "refused"
    ON_HOLD = "on_hold"
    WITHDRAWN = "withdrawn"


_R = RequestState
TRANSITIONS: dict[RequestState, frozenset[RequestState]] = {
    _R.RECEIVED: frozenset({_R.VERIFIED, _R.REFUSED, _R.ON_HOLD, _R.WITHDRAWN}),
    _R.VERIFIED: frozenset({_R.SCOPED, _R.REFUSED, _R.ON_HOLD, _R.WITHDRAWN}),
    _R.SCOPED: frozenset({_R.EXECUTED, _R.REFUSED, _R.ON_HOLD, _R.WITHDRAWN}),
    _R.EXECUTED: frozenset({_R.AUDITED, _R.SCOPED, _R.ON_HOLD, _R.WITHDRAWN}),
    _R.AUDITED: frozenset({_R.CLOSED, _R.SCOPED, _R.ON_HOLD, _R.WITHDRAWN}),
    _R.ON_HOLD: frozenset({_R.RECEIVED, _R.VERIFIED, _R.REFUSED, _R.WITHDRAWN}),
    _R.CLOSED: frozenset(),
    _R.REFUSED: frozenset(),
    _R.WITHDRAWN: frozenset(),
}
OPEN = tuple(state for state in RequestState if TRANSITIONS[state])
NOT_RUN = (_R.RECEIVED, _R.ON_HOLD, _R.REFUSED, _R.WITHDRAWN)  # in these states no work starts
MAX_MONTHS = 3  # one, extended by two where a request is complex: GDPR Art. 12(3)


def next_state(current: RequestState, wanted: RequestState) -> RequestState:
    """``wanted`` if it may follow ``current``.

    Raises:
        StateError: naming the states that may follow.
    """
    if wanted not in TRANSITIONS[current]:
        allowed = ", ".join(sorted(TRANSITIONS[current])) or "none: it is final"
        raise StateError(f"a request that is {current.value} cannot become {wanted.value}; allowed: {allowed}")
    return wanted


def due_date(received: datetime, *, months: int = 1) -> datetime:
    """The same day ``months`` later, or that month's last day (Regulation 1182/71 Art. 3; GDPR Art. 12(3)).

    >>> due_date(datetime(2027, 1, 31)).date().isoformat()
    '2027-02-28'
    """
    month = received.month - 1 + months
    year, month = received.year + month // 12, month % 12 + 1
    return received.replace(year=year, month=month, day=min(received.day, monthrange(year, month)[1]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Concept(Config):
    """Something that a model is to know no more, in the words by which it is asked for."""

    name: str = param(doc="the concept")
    aliases: tuple[str, ...] = param((), doc="other words for it: they are to be forgotten too")
    anchor: str = param(
        "", doc="what the model is to answer in its place, a neighbour that stays; the method's own when empty"
    )
    keep: tuple[str, ...] = param((), doc="neighbours that must stay as they are")

    def check(self) -> None:
        words = [self.name, *self.aliases, *([self.anchor] if self.anchor else []), *self.keep]
        if blank := [word for word in words if not word.strip() or word != word.strip()]:
            raise ConfigError(f"concept {self.name!r}: {blank[0]!r} is empty, or has spaces around it")
        gone = [word.casefold() for word in (self.name, *self.aliases)]
        stays = [word.casefold() for word in self.keep]
        for what, listed in (("name and aliases", gone), ("keep", stays)):
            if len(set(listed)) < len(listed):
                raise ConfigError(f"concept {self.name!r}: {what} hold a word twice")
        if both := sorted(set(gone) & {*stays, self.anchor.casefold()}):
            raise ConfigError(
                f"concept {self.name!r}: {both[0]!r} is to be forgotten, and cannot be kept or be the anchor"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetRequest(Config):
    """Which examples of a subject, which edge of its graph, or which concept, are to be forgotten, and by when.

    Exactly one selector is given: ids, an owner (its salted token), a class name, an SQL predicate over
    ``data.examples``, one end of a stored score (a fraction or a count of the training examples), a node of a graph
    with all around it, two nodes whose edge is meant, or a concept.
    """

    request_id: str = param(doc="legal name; also the Dagster partition key")
    subject: str = param(doc="the audited subject")
    selector: Selector = param(doc="how the examples are selected")
    ids: tuple[int, ...] = param((), ge=0, le=MAX_EXAMPLE_ID, doc="example ids, for selector ids")
    owner: str = param("", doc="owner token, for selector owner")
    class_name: str = param("", doc="class name, for selector class")
    where: str = param("", doc="SQL predicate over data.examples, for selector where")
    score: str = param("", doc="name of a stored score, for selector score", ref="score")
    fraction: float = param(0.0, ge=0, lt=1, doc="share of the training examples, for selector score")
    count: int = param(0, ge=0, doc="number of training examples instead of a share, for selector score")
    end: str = param("highest", choices=("highest", "lowest"), doc="which end of the score, for selector score")
    around: int | None = param(
        None, ge=0, le=MAX_EXAMPLE_ID, doc="id of a node of the graph, for selector neighbourhood", added=True
    )
    hops: int = param(1, ge=1, le=16, doc="how far around it, for selector neighbourhood", added=True)
    edge: tuple[int, ...] = param(
        (), ge=0, le=MAX_EXAMPLE_ID, doc="ids of the two nodes, for selector edge: no rows are named", added=True
    )
    concept: Concept | None = param(None, doc="for selector concept: no rows are named")
    legal_basis: str = param("GDPR Art. 17(1)", doc="as stated by the requester")
    received_at: str = param(doc="ISO 8601 in UTC")
    due_at: str = param(doc="ISO 8601 in UTC; one month after receipt unless extended (GDPR Art. 12(3))")

    def check(self) -> None:
        check_name(self.request_id, kind="request id")
        check_name(self.subject, kind="subject")
        given = {
            "ids": bool(self.ids),
            "owner": bool(self.owner),
            "class": bool(self.class_name),
            "where": bool(self.where),
            "score": bool(self.score),
            "neighbourhood": self.around is not None,
            EDGE: bool(self.edge),
            CONCEPT: self.concept is not None,
        }
        chosen = [k for k, v in given.items() if v]
        if chosen != [self.selector]:
            raise ConfigError(
                f"request {self.request_id}: selector {self.selector!r} needs its own value and no other; given: "
                f"{', '.join(chosen) or 'nothing'}"
            )
        if (self.selector == "score") != bool(self.fraction) + bool(self.count):
            raise ConfigError(
                f"request {self.request_id}: fraction {self.fraction:g} and count {self.count}: selector score needs "
                "one of them, no other selector any"
            )
        if self.edge and (len(self.edge) != 2 or self.edge[0] == self.edge[1]):
            raise ConfigError(f"request {self.request_id}: an edge is between two nodes, not {list(self.edge)}")
        if self.hops != 1 and self.around is None:
            raise ConfigError(f"request {self.request_id}: hops go with selector neighbourhood")
        if len(set(self.ids)) != len(self.ids):
            raise ConfigError(f"request {self.request_id}: example ids are listed twice")

    @property
    def names_rows(self) -> bool:
        """It names examples of the data; else an edge between two of them, or a concept."""
        return self.selector not in (CONCEPT, EDGE)

    def recorded(self) -> dict[str, Any]:
        """As it is put on record, plain data. One that names rows says nothing of a concept, so that requests have the
        record, and the digest, that they had before there were concepts."""
        found: dict[str, Any] = digests.plain(self)
        return found if self.concept is not None else {k: v for k, v in found.items() if k != CONCEPT}

    def resolved(self) -> Self:
        """As it is kept once its rows are erased: without the text of an SQL predicate, which may name a person."""
        return dataclasses.replace(self, where=ERASED_TEXT) if self.where else self

    def digest(self) -> str:
        """SHA-256 of :meth:`recorded`."""
        return digests.digest(self.recorded())
