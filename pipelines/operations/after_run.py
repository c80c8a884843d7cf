"""What follows every run of an audit or of a forget request: its lineage events, drift, the ledger's head noted
outside, alerts.

Nothing here changes what the run found or how it ends: what fails is said in a sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from contracts.errors import PalimpsestError, in_words
from contracts.operations import Operations
from pipelines.build import LATE
from pipelines.operations import openlineage
from pipelines.operations.alerts import Alert, send
from pipelines.operations.anchoring import note_head
from pipelines.operations.config import operations_of

if TYPE_CHECKING:
    from contracts.subject import Subject
    from warehouse import Warehouse


def after_run(
    home: Path,
    plan: Subject,
    *,
    instance: dg.DagsterInstance,
    run_id: str,
    succeeded: bool,
    interrupted: bool = False,
    request: str | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[str]:
    """Do what ``operations.yaml`` asks for after a run that has ended; sentences to say, with everything that failed.

    Args:
        interrupted: somebody ended it, who knows: nobody is told that it failed.
        request: the forget request that it was for; None: an audit of the subject.
    """
    from warehouse import Warehouse

    said: list[str] = []
    try:
        config, w = operations_of(home), Warehouse.open(home)
    except (PalimpsestError, OSError) as error:
        return [f"nothing was done after the run: {in_words(error)}"]
    alerts: list[Alert] = []
    if not interrupted:
        alerts = _alerts_of_run(w, plan.subject, instance, run_id, succeeded=succeeded, request=request)
    if openlineage.configured():
        said += _told(lambda: openlineage.emit(instance, w, run_id, subject=plan.subject, request=request))
    if succeeded and request is None and config.drift.enabled:
        said += _told(lambda: _drift(w, plan, config, run_id, alerts))
    said += _told(lambda: _anchor(w, config, alerts, now()))
    return said + send(alerts, config.alerts, now=now())


def _told(work: Callable[[], list[str]]) -> list[str]:
    try:
        return work()
    except (PalimpsestError, OSError) as error:
        return [in_words(error)]


def _alerts_of_run(
    w: Warehouse, subject: str, instance: dg.DagsterInstance, run_id: str, *, succeeded: bool, request: str | None
) -> list[Alert]:
    what = f"forget request {request}" if request else "the audit"
    if not succeeded:
        sentence = f"a run of {what} of {subject} failed (run {run_id[:8]})"
        return [Alert(kind="run_failed", subject=subject, sentence=sentence)]
    found = []
    run = instance.get_run_by_id(run_id)
    due = run.tags.get(LATE) if run else None
    if due:
        sentence = f"the audit of {subject} that was due at {due} was made up for: nothing ran at that time"
        found.append(Alert(kind="late", subject=subject, sentence=sentence))
    asset = f"{subject}/request_reports/{request}/audit" if request else f"{subject}/reports/audit"
    if w.last_complete(asset) is not None:
        verdict = str(w.artifacts.load_json(f"{asset}.json")["verdict"])
        if verdict in ("fail", "broken"):
            found.append(
                Alert(kind="verdict", subject=subject, sentence=f"the verdict of {what} of {subject}: {verdict}")
            )
    return found


def _drift(w: Warehouse, plan: Subject, config: Operations, run_id: str, alerts: list[Alert]) -> list[str]:
    from pipelines.operations.drift import drift

    rows = drift(w, plan, config.drift, run_id=run_id)
    w.publish()
    names = rows.filter("moved")["score"].to_list()
    if not names:
        return []
    sentence = f"{plan.subject}: moved since the last audit, on the same examples: {', '.join(names)} (audits.drift)"
    alerts.append(Alert(kind="drift", subject=plan.subject, sentence=sentence))
    return [sentence]


def _anchor(w: Warehouse, config: Operations, alerts: list[Alert], now: datetime) -> list[str]:
    failed, problems = note_head(w, config, now=now)
    alerts += failed
    return problems
