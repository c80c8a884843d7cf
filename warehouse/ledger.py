"""The ledger of a warehouse: what was recorded, the chain checked against whatever knows a head of it, and losses
accepted.

``warehouse.chain`` says what an entry is and how entries are bound to each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from contracts.errors import IntegrityError, LockTimeout, NotReady
from warehouse.chain import Anchor, Head, LedgerReport, entries_of, examine, head_of, read_mirror
from warehouse.connection import fetch
from warehouse.session import Open, Session


class Ledger:
    """The ledger of an open warehouse (``w.ledger``)."""

    def __init__(self, session: Session) -> None:
        self._s = session

    def head(self) -> Head:
        with self._s.reading() as con:
            return head_of(con)

    def append(self, kind: str, body: Mapping[str, Any]) -> Head:
        """Add an entry of your own; ``at`` is added to the body. The new head."""
        with self._s.writing(Open) as t:
            return t.note(kind, body)

    def entries(self, *, kind: str | None = None, after: int = 0) -> pl.DataFrame:
        """``(seq, prev_hash, hash, kind, body)`` in order; ``body`` is JSON text."""
        with self._s.reading() as con:
            return fetch(
                con,
                "SELECT * FROM ledger.entries WHERE seq > ? AND (? IS NULL OR kind = ?) ORDER BY seq",
                [after, kind, kind],
            )

    def before(self, asset: str, *, request: str | None = None) -> Head:
        """The head as the last completion of ``asset`` began to be put on record: the one that a report names.

        Args:
            request: the forget request that the asset is of; its register is told with it.

        Raises:
            NotReady: it was never completed.
        """
        with self._s.reading() as con:
            entries = entries_of(con)
        bodies = [(seq, hash_, kind, json.loads(body)) for seq, _, hash_, kind, body in entries]
        done = [k for k, (_, _, kind, body) in enumerate(bodies) if kind == "stage" and body["asset"] == asset]
        if not done:
            raise NotReady(f"no entry of the ledger records {asset}")
        place = done[-1] - 1
        while place >= 0 and _is_of(asset, request, *bodies[place][2:]):
            place -= 1
        return Head(bodies[place][0], bodies[place][1]) if place >= 0 else Head()

    def verify(self, *, anchors: Sequence[Head] = ()) -> LedgerReport:
        """Recompute the chain and compare it with the mirrored head, the published snapshot and ``anchors``.

        Detects a changed, deleted, swapped, inserted or truncated entry; a whole chain rewritten with fresh hashes is
        detected only through an anchor. Tables and artefacts are not looked at: see ``warehouse.verify``.

        The writer's file is read, with what has not been published yet. While a writer is at work, a warehouse opened
        for looking only reads the published snapshot, in which no later head is looked for.

        Raises:
            LockTimeout: a writer is at work, and the warehouse was opened for writing.
            NotReady: opened for looking only, and nothing has been published.
        """
        known = self._anchors(anchors)
        if self._s.database.exists():
            try:
                with self._s.looking() as con:
                    return examine(entries_of(con), known)
            except LockTimeout:
                if not self._s.looks:
                    raise
                known = known[len(known) - len(anchors) :]
        with self._s.reading() as con:
            return examine(entries_of(con), known)

    def accept_loss(self, reason: str) -> Head:
        """Put on record that committed entries are gone, and let writing go on from what is left."""
        with self._s.writing(Open, guarded=False) as t:
            try:
                mirrored = read_mirror(self._s.head_file)
            except IntegrityError:
                mirrored = None
            known = {"seq": mirrored.seq, "hash": mirrored.hash} if mirrored else None
            return t.note("accepted_loss", {"reason": reason, "known_head": known, "left": t.head.seq})

    def _anchors(self, given: Sequence[Head]) -> list[Anchor]:
        out: list[Anchor] = [("ledger.head", lambda: read_mirror(self._s.head_file))]
        if self._s.snapshot.exists():
            out.append(("the published snapshot", self._s.published_head))
        return out + [(f"the given head {h.seq}", lambda h=h: h) for h in given]  # type: ignore[misc]


def _is_of(asset: str, request: str | None, kind: str, body: Mapping[str, Any]) -> bool:
    """Whether an entry is one that a completion of this asset writes before its own: lineage, and the register."""
    part = body.get("partition", {})
    if str(body.get("table", "")).startswith("lineage."):
        return asset in (part.get("asset"), part.get("child"))
    return request is not None and request in (part.get("request_id"), body.get("request_id"))
