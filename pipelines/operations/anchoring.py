"""The ledger's head noted outside the state folder, after a run and once a day; an alert where that fails."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from contracts.operations import Operations
from pipelines.operations.alerts import Alert

if TYPE_CHECKING:
    from warehouse import Warehouse


def note_head(w: Warehouse, config: Operations, *, now: datetime) -> tuple[list[Alert], list[str]]:
    """Note the head wherever ``operations.yaml`` says: one alert if a place failed, and a sentence for each."""
    from warehouse import anchors

    problems = list(anchors.note(w.ledger.head(), w.home, config.anchors, now=now).problems)
    alerts = [Alert(kind="anchor", subject="", sentence="the ledger's head could not be noted") for _ in problems[:1]]
    return alerts, problems
