"""What an installation needs once a day, besides its audits.

    certificates   those that expire soon or have expired, and no later one took their place
    requests       forget requests that are due soon, or were
    left behind    runs whose process died and jobs whose run has ended (``pipelines.reaper``)
    anchors        the ledger's head, where it has not been noted since
    event logs     of old runs, pruned

``palimpsest upkeep`` does it by hand, the job of that name once a day.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from contracts import schema
from contracts.requests import NOT_RUN, OPEN
from pipelines.operations.alerts import Alert, send
from pipelines.operations.anchoring import note_head
from pipelines.operations.config import operations_of
from pipelines.operations.pruning import prune
from pipelines.reaper import reap, reap_jobs

if TYPE_CHECKING:
    from warehouse import Warehouse

RUN_AGAIN = tuple(state.value for state in OPEN if state not in NOT_RUN)


def upkeep(home: Path, instance: dg.DagsterInstance, *, now: datetime) -> list[str]:
    """Do all of it; what was found and done, in sentences.

    Args:
        now: with a time zone.

    Raises:
        ConfigError: ``operations.yaml`` is not what it should be.
    """
    from pipelines.build import overdue
    from pipelines.subjects import subject_files
    from warehouse import Warehouse

    config = operations_of(home)
    w = Warehouse.open(home)
    alerts: list[Alert] = []
    for name in subject_files(home):
        alerts += expiring(w, name, now=now, warn_days=config.alerts.warn_days)
        alerts += [Alert(kind="request", subject=name, sentence=line) for line in overdue(w, name, now=now)]
    alerts += left_behind(home, instance, now=now)
    said = [alert.sentence for alert in alerts]
    failed, problems = note_head(w, config, now=now)
    alerts += failed
    if config.pruning.enabled:
        pruned = prune(instance, before=now - timedelta(days=config.pruning.after_days))
        if pruned.events:
            said.append(f"{pruned.events:,} events of old runs were pruned")
    return [*said, *problems, *send(alerts, config.alerts, now=now)]


def left_behind(home: Path, instance: dg.DagsterInstance, *, now: datetime) -> list[Alert]:
    """End runs of dead processes and jobs that nobody waits for; an alert for each."""
    found: list[str] = []
    reap(instance, note=found.append)
    reap_jobs(instance, home, now=now, note=found.append)
    return [Alert(kind="reaped", subject="", sentence=line) for line in found]


def expiring(w: Warehouse, subject: str, *, now: datetime, warn_days: int) -> list[Alert]:
    """An alert for the last certificate of each request that has expired, or will within ``warn_days`` days."""
    issued = w.read(schema.CERTIFICATES, subject=subject)
    states = dict(w.requests.list(subject).select("request_id", "state").iter_rows())
    last = issued.sort("serial").group_by("request_id", maintain_order=True).last()
    found = []
    for row in (
        last.filter(pl.col("expires_at") <= now + timedelta(days=warn_days)).sort("expires_at").iter_rows(named=True)
    ):
        until = row["expires_at"].astimezone(UTC).date().isoformat()
        state = f"expired on {until}" if row["expires_at"] <= now else f"expires on {until}"
        sentence = (
            f"certificate {row['serial']} of forget request {row['request_id']} of {subject} {state}: "
            f"{_renewed(w, subject, row['request_id'], states.get(row['request_id'], ''))}"
        )
        found.append(Alert(kind="certificate", subject=subject, sentence=sentence))
    return found


def _renewed(w: Warehouse, subject: str, request_id: str, state: str) -> str:
    """How a certificate is renewed, as commands. A request that is closed, or whose examples are erased, is not run
    again: there is nothing left to remove, and a new date is all that is missing.

    Args:
        state: of the request.
    """
    certify = f"palimpsest certify {subject} {request_id}"
    if state not in RUN_AGAIN or w.erasures.journal(request_id).height:
        return certify
    return f"palimpsest request run {subject} {request_id}, then {certify}"
