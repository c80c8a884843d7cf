"""Closing a forget request on exact retraining: every model was trained from scratch on data without its rows, and this
is the proof.

    1. none of the rows that the request named is in the source any more
    2. ``data.examples``, which the last audit wrote, holds the examples of that very source and no others
    3. no asset of the subject was made from any of them, by its lineage: no model, no score, no audit
       (what earlier runs of forget requests left, outputs and figures but no model, is their record and stays)

Who cannot show from one row that a removal worked can still show that there was nothing left to remove from.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from assets.request_edges import has_edge
from contracts import schema
from contracts.errors import StateError
from contracts.requests import RequestState
from contracts.subject import Subject

if TYPE_CHECKING:
    from assets.workspace import Workspace

RETRAINED = "retrained"
_EVIDENCE = "request_"  # first part of the path of what a run of a request made


def prove_edge_gone(
    request_id: str, plan: Subject, workspace: Workspace, *, current: Collection[str]
) -> list[dict[str, str]]:
    """As :func:`prove_gone`, of a request that names an edge.

    Args:
        current: assets of the plan whose results were made from the data as they are now (``assets.current``).

    Raises:
        StateError: the edge is still in the data, or results are left that were made before it was taken out.
    """
    w, subject = workspace.warehouse, plan.subject
    refuse_left_in_source(request_id, plan, workspace)
    made = w.read(schema.ARTIFACTS, subject=subject, columns=["asset"])["asset"].unique().sort()
    kept = made.str.split("/").list.get(1).str.starts_with(_EVIDENCE)
    if left := [asset for asset in made.filter(~kept) if asset not in current]:
        named = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
        raise StateError(
            f"request {request_id}: {len(left)} stored results were made before the edge was taken out: {named}. Audit "
            f"again: palimpsest audit {subject}; what the plan no longer lists stays as it was"
        )
    models, data = w.read(schema.CHECKPOINTS, subject=subject), workspace.examples(plan)
    return [
        {
            "what": f"the source, {len(data):,} nodes and {data.payload.edges.shape[1]:,} edges",  # type: ignore[attr-defined]
            "found": f"the edge is none of them; digest {data.digest}",
        },
        {
            "what": f"all {made.len() - int(kept.sum()):,} results, among them {models.height:,} trained models",
            "found": "made anew from the source as it is now",
        },
        {
            "what": "results of forget requests: outputs and figures, no model",
            "found": f"{int(kept.sum())} stay as the record of what was done; no table or file of these holds an edge",
        },
        {"what": "ledger", "found": "ends at {0.seq}:{0.hash}".format(w.ledger.head())},
    ]


def prove_gone(request_id: str, plan: Subject, workspace: Workspace) -> list[dict[str, str]]:
    """What was looked at and found, as ``{"what", "found"}``. The subject's audit must be current.

    Raises:
        StateError: its rows are still somewhere, and where; or they were never looked up.
    """
    w, subject = workspace.warehouse, plan.subject
    ids, data = refuse_left_in_source(request_id, plan, workspace), workspace.examples(plan)
    stored = w.read(schema.EXAMPLES, subject=subject, columns=["example_id"])["example_id"].to_numpy()
    if not np.array_equal(np.sort(stored), np.sort(data.example_id)):
        raise StateError(
            f"request {request_id}: data.examples is not what the source holds now, so no model was trained on it: "
            f"palimpsest audit {subject}"
        )
    holding = w.lineage.holding(subject, ids)
    kept = holding["asset"].str.split("/").list.get(1).str.starts_with(_EVIDENCE)
    if (left := holding.filter(~kept)).height:
        named = ", ".join(left["asset"].head(5)) + (", ..." if left.height > 5 else "")
        raise StateError(
            f"request {request_id}: {left.height} stored results were made from its rows: {named}. Audit again: "
            f"palimpsest audit {subject}; what the plan no longer lists stays as it was"
        )
    models = w.read(schema.CHECKPOINTS, subject=subject)
    return [
        {
            "what": f"the source, {len(data):,} examples",
            "found": f"none of the {len(ids):,} rows; digest {data.digest}",
        },
        {"what": f"data.examples, {len(stored):,} rows", "found": "the examples of the source and no others"},
        {
            "what": f"lineage of all results, among them {models.height:,} trained models",
            "found": f"none was made from any of the {len(ids):,} rows",
        },
        {
            "what": "results of forget requests: outputs and figures, no model",
            "found": f"{int(kept.sum())} saw the rows while they were there, and stay as the record of what was done",
        },
        {"what": "ledger", "found": "ends at {0.seq}:{0.hash}".format(w.ledger.head())},
    ]


def refuse_left_in_source(request_id: str, plan: Subject, workspace: Workspace) -> np.ndarray:
    """Ids (int64) of the rows that a request named, when none of them is in the source any more; of an edge, when it is
    not, those of no rows.

    Raises:
        StateError: some are, or they were never looked up.
    """
    request = workspace.warehouse.requests.get(request_id).request
    if request.edge:
        if has_edge(request, workspace.examples(plan)):
            raise StateError(
                f"request {request_id}: its edge is still in the data: take it out of the source, or list "
                f"{list(request.edge)} under without_edges in the plan"
            )
        return np.empty(0, np.int64)
    if not workspace.warehouse.requests.get(request_id).request.names_rows:
        raise StateError(f"request {request_id} names a concept, not rows: that rows are gone says nothing of it")
    ids = workspace.warehouse.requests.pins(request_id)["example_id"].to_numpy()
    if not len(ids):
        raise StateError(f"request {request_id} has no rows on record: run it once, then take its rows out of the data")
    left = int(np.isin(ids, workspace.examples(plan).example_id).sum())
    if left:
        raise StateError(
            f"request {request_id}: {left:,} of its {len(ids):,} rows are still in the data: take them out of the "
            "source first"
        )
    return ids


def close_on_retraining(
    request_id: str, plan: Subject, workspace: Workspace, *, by: str = "", current: Collection[str] = ()
) -> str:
    """Close a request on the ground that ``prove_gone`` shows; the sentence that is put on record, page and JSON beside
    it.

    Args:
        current: as of :func:`prove_edge_gone`, which shows it of an edge.

    Raises:
        StateError: as ``prove_gone``, or the request may not be closed from its state.
    """
    from reports import render_closing

    w = workspace.warehouse
    edge = bool(w.requests.get(request_id).request.edge)
    checks = (
        prove_edge_gone(request_id, plan, workspace, current=current)
        if edge
        else prove_gone(request_id, plan, workspace)
    )
    num = w.requests.pins(request_id).height
    what = "its edge" if edge else "its row" if num == 1 else f"its {num:,} rows"
    ground = (
        f"Exact retraining: every model of {plan.subject} was trained from scratch on data without {what}, which "
        f"{'is' if edge or num == 1 else 'are'} in no data and no model of this state."
    )
    facts: dict[str, Any] = {
        "format": "palimpsest-closing/1",
        "subject": plan.subject,
        "request": request_id,
        "closed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": by,
        "ground": ground,
        "checks": checks,
    }
    asset = closing_of(plan.subject, request_id)
    files = [
        w.artifacts.save_bytes(f"{asset}.html", render_closing(facts).encode()),
        w.artifacts.save_json(f"{asset}.json", facts),
    ]
    w.complete(asset, request_id, outputs=files)
    for state in (RequestState.SCOPED, RequestState.EXECUTED, RequestState.AUDITED):
        w.requests.reach(request_id, state, note=f"{'its edge is' if edge else 'its rows are'} in no data and no model")
    w.requests.advance(request_id, RequestState.CLOSED, note=ground + (f" Closed by {by}." if by else ""))
    w.publish()
    return ground


def closing_of(subject: str, request_id: str) -> str:
    """Asset of the page on which ground a request was closed."""
    return f"{subject}/request_reports/{request_id}/closing"
