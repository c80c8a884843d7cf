"""Many forget requests worked off in one process: the data are read once, the audit is brought up to date once, what
many of them name is removed at once; every request is audited on its own rows, and has its own certificate and run of
Dagster's.

    order     deadline class (past its day, due within a week, later), then receipt; the sensor starts runs in it too
    batch     in that order, requests are put together while they name at most a fifth of the training examples: one
              unlearning and one set of retrainings removes what all of them name (``assets.batch``), as it would be
              done for whoever uses the model. A request stays with those it was removed with
    failure   a request that cannot be run, or whose run fails, is noted in the register; the others go on

A run of its own, for the events of a run are erased with its request: of one run for many requests, what is on record
of the others would go with the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from contracts.errors import PalimpsestError
from contracts.requests import CONCEPT
from pipelines.build import to_run

if TYPE_CHECKING:
    import polars as pl

    from assets import Workspace
    from contracts.subject import Subject

FAILED = "failed"


class Worked(NamedTuple):
    """What became of a request: the verdict of its audit, "failed", or "" where there was nothing to unlearn; and a
    sentence."""

    request_id: str
    ended: str
    sentence: str


def waiting(requests: pl.DataFrame, *, now: datetime) -> list[str]:
    """Ids of the requests that name rows and wait for a run, in the order of the module.

    Args:
        requests: of ``Requests.list``.
    """
    return [row["request_id"] for row in to_run(requests, now=now) if row["selector"] != CONCEPT]


def work_off(
    plan: Subject,
    workspace: Workspace,
    request_ids: Sequence[str],
    *,
    each: bool = False,
    done: Callable[[Worked], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> list[Worked]:
    """Run these requests, in this order.

    Args:
        each: remove what every request names by itself.
        done: told of each as it ends.
        note: called with a sentence for every batch.

    Raises:
        JobFailed: the audit that all of them stand on failed; none of them was run.
    """
    from assets.batch import put_together
    from assets.request_rows import answer_unseen
    from pipelines.cli.audit import recording, run_subject
    from pipelines.cli.requests import runnable

    found: list[Worked] = []

    def ended(request_id: str, how: str, sentence: str) -> None:
        found.append(Worked(request_id, how, sentence))
        done(found[-1])

    w, fit = workspace.warehouse, []
    for request_id in request_ids:
        try:
            if runnable(plan, workspace, request_id).num_examples == 0:
                ended(request_id, "", answer_unseen(w, request_id))
            else:
                fit.append(request_id)
        except PalimpsestError as error:
            w.requests.note(request_id, f"not run: {type(error).__name__}")
            ended(request_id, FAILED, str(error))
    with recording(workspace.home) if fit else nullcontext():
        if fit:
            run_subject(plan, workspace.home, job="audit", workspace=workspace)
            for batch in put_together(w.requests, fit, num_train=w.num_training(plan.subject), each=each):
                if len(batch) > 1:
                    note(f"{len(batch)} requests are removed together, each is judged by itself: {', '.join(batch)}")
        try:
            for request_id in fit:
                try:
                    run_subject(plan, workspace.home, job="forget", request=request_id, workspace=workspace, more=True)
                except PalimpsestError as error:
                    w.requests.note(request_id, f"its run failed: {type(error).__name__}")
                    ended(request_id, FAILED, str(error))
                else:
                    facts = w.artifacts.load_json(f"{plan.subject}/request_reports/{request_id}/audit.json")
                    ended(request_id, str(facts["verdict"]), str(facts["sentence"]))
        finally:
            w.publish()
    return found
