"""Many forget requests worked off in one process: the data are read once, the audit is brought up to date once, and
every request has its own unlearning, audit, certificate and run of Dagster's.

    order     deadline class (past its day, due within WARN_DAYS, later), then receipt, then id
    failure   a request that cannot be run, or whose run fails, is noted in the register; the others go on

A run of its own, for the events of a run are erased with its request: of one run for many requests, what is on record
of the others would go with the first. Unlearning all their rows together, once, is not done: each request is unlearned
from the audited model as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from contracts.errors import PalimpsestError
from contracts.requests import CONCEPT
from pipelines.build import TO_RUN, WARN_DAYS

if TYPE_CHECKING:
    from assets import Workspace
    from contracts.subject import Subject

FAILED = "failed"


class Worked(NamedTuple):
    """What became of a request: the verdict of its audit, "failed", or "" where there was nothing to unlearn; and a
    sentence."""

    request_id: str
    ended: str
    sentence: str


def deadline_class(due_at: datetime, *, now: datetime) -> int:
    """0 past its day, 1 due within ``WARN_DAYS`` days, 2 later."""
    left_s = (due_at - now).total_seconds()
    return 0 if left_s < 0 else 1 if left_s < 86_400 * WARN_DAYS else 2


def waiting(requests: pl.DataFrame, *, now: datetime) -> list[str]:
    """Ids of the requests that a run is to be made for, in the order of the module.

    Args:
        requests: of ``Requests.list``.
    """
    rows = requests.filter(
        pl.col("state").is_in([state.value for state in TO_RUN]), pl.col("selector") != CONCEPT
    ).iter_rows(named=True)
    ordered = sorted((deadline_class(r["due_at"], now=now), r["received_at"], r["request_id"]) for r in rows)
    return [request_id for _, _, request_id in ordered]


def work_off(
    plan: Subject,
    workspace: Workspace,
    request_ids: Sequence[str],
    *,
    done: Callable[[Worked], None] = lambda _: None,
) -> list[Worked]:
    """Run these requests, in this order.

    Args:
        done: told of each as it ends.

    Raises:
        JobFailed: the audit that all of them stand on failed; none of them was run.
    """
    from assets.request_rows import answer_unseen
    from pipelines.cli.audit import run_subject
    from pipelines.cli.requests import runnable

    found: list[Worked] = []

    def ended(request_id: str, how: str, sentence: str) -> None:
        found.append(Worked(request_id, how, sentence))
        done(found[-1])

    w, to_run = workspace.warehouse, []
    for request_id in request_ids:
        try:
            if runnable(plan, workspace, request_id).num_examples == 0:
                ended(request_id, "", answer_unseen(w, request_id))
            else:
                to_run.append(request_id)
        except PalimpsestError as error:
            w.requests.note(request_id, f"not run: {type(error).__name__}")
            ended(request_id, FAILED, str(error))
    if to_run:
        run_subject(plan, workspace.home, job="audit", workspace=workspace)
    for request_id in to_run:
        try:
            run_subject(plan, workspace.home, job="forget", request=request_id, workspace=workspace)
        except PalimpsestError as error:
            w.requests.note(request_id, f"its run failed: {type(error).__name__}")
            ended(request_id, FAILED, str(error))
        else:
            facts = w.artifacts.load_json(f"{plan.subject}/request_reports/{request_id}/audit.json")
            ended(request_id, str(facts["verdict"]), str(facts["sentence"]))
    w.publish()
    return found
