"""Forget requests: one partition a request, from its scope to its report, on the same stages as the scheduled audit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from assets.curation import choose, store
from assets.request_concepts import refuse_concept
from assets.request_edges import refuse_edge
from assets.request_rows import pins, refuse_changed, resolve, selection
from assets.stage import Output, Run, Stage
from contracts import schema
from contracts.errors import DataError, NotReady, StateError
from contracts.methods import curator
from contracts.requests import NOT_RUN, ForgetRequest, RequestState
from contracts.subject import Subject
from curation.closure import closure

GROUPS = "near_duplicates"  # the score whose groups close a request


def scope_of_request(subject: Subject, upstream: Mapping[str, Stage], scores: Mapping[str, Stage]) -> Stage:
    """``[subject, request_curation, split]``: the examples that a request selects, and all others."""
    return Stage(
        subject=subject,
        path=("request_curation", "split"),
        doc="The examples a forget request selects (ids, owner, class, SQL predicate or score), and the rest to "
        "retain.",
        config={"seed": subject.seed, "closure": subject.unlearning is not None and subject.unlearning.closure},
        deps=(upstream["examples"], *scores.values()),
        tables=(schema.MEMBERS, schema.DATASETS),
        per_request=True,
        work=lambda run: _scope(run, upstream),
    )


def _scope(run: Run, upstream: Mapping[str, Stage]) -> Output:
    assert run.request is not None
    requests = run.warehouse.requests
    entry = requests.get(run.request)
    if entry.state in NOT_RUN:
        raise StateError(f"request {run.request} is {entry.state.value}: verify it before it is executed")
    refuse_concept(entry.request, run.subject)
    refuse_edge(entry.request)
    method, chosen = selection(entry.request, _pinned(run, entry.request))
    config = curator.get(method).spec.config.from_mapping(chosen)
    members = choose(run, run.request, method, config, upstream)
    members, twins = _closed(run, members)
    members, beside = _beside(run, members)
    if not (members["role"] == "retain").any():
        raise DataError(f"what is removed with request {run.request} is the whole training split: nothing is retained")
    output = store(run, run.request, method, config, members)
    forget = int(output.metadata["forget"])
    note = f"{forget} example{'s' * (forget != 1)} by {entry.request.selector}{twins}{beside}"
    requests.reach(run.request, RequestState.SCOPED, note=note, num_examples=forget)
    return output


def _closed(run: Run, members: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """The members with the near duplicates of the forget set added where the plan says so, and a clause for the
    register."""
    plan = run.subject.unlearning
    if GROUPS not in {c.name for c in run.subject.scores} or plan is None:
        return members, ""
    asked = members.filter(pl.col("role") == "forget")["example_id"].to_numpy()
    try:
        twins = _twins(run, asked)
    except NotReady as error:
        if plan.closure:
            raise
        return members, f"; near duplicates were not counted: {error}"  # a count must not hold up an erasure
    if not plan.closure:
        return members, f"; {twins.height} near duplicates of them stay"
    added = pl.col("why").is_not_null()
    members = members.join(twins, on="example_id", how="left").with_columns(
        role=pl.when(added).then(pl.lit("forget")).otherwise("role"),
        reason=pl.when(added).then("why").otherwise("reason"),
    )
    if (members["role"] == "forget").all():
        raise DataError("the near duplicates of what was named are the whole training split: nothing would be retained")
    return members.drop("why").sort("example_id"), f", {twins.height} of them near duplicates of what was named"


def _twins(run: Run, asked: np.ndarray) -> pl.DataFrame:
    """``(example_id, why)`` of the near duplicates of these examples that are none of them."""
    groups = run.stored_score(f"{GROUPS}.group_id").rename({"value": "group_id"})
    return closure(asked, groups).filter(pl.col("follows").is_not_null()).select("example_id", why="reason")


def _beside(run: Run, members: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """The members with what leaves for the other requests of the batch, role ``beside``, and a clause for the
    register: the method takes all of it out at once, and the request is judged on its own examples."""
    requests, plan = run.warehouse.requests, run.subject.unlearning
    with run.warehouse.reading():
        others = [name for name in requests.batch(run.request).others if requests.get(name).state not in NOT_RUN]
        pinned = [requests.pins(name) for name in others]
    named = [rows.filter(pl.col("split") == "train")["example_id"].to_numpy() for rows in pinned]
    ids = np.intersect1d(np.concatenate([np.empty(0, np.int64), *named]), members["example_id"].to_numpy())
    if plan is not None and plan.closure and len(ids):
        ids = np.union1d(ids, _twins(run, ids)["example_id"].to_numpy())
    leaves = pl.col("example_id").is_in(ids) & (pl.col("role") == "retain")
    members = members.with_columns(
        role=pl.when(leaves).then(pl.lit("beside")).otherwise("role"),
        reason=pl.when(leaves).then(pl.lit("named by another request of the batch")).otherwise("reason"),
    )
    num = int((members["role"] == "beside").sum())
    said = f"; removed with {num} examples of {len(others)} other request{'s' * (len(others) != 1)}"
    return members, said if num else ""


def _pinned(run: Run, request: ForgetRequest) -> np.ndarray:
    """Ids of the training examples that a request named when it was registered.

    Raises:
        DataError: its rows are gone or have changed, or none of them is a training example.
    """
    rows = run.warehouse.requests.pins(request.request_id)
    if not rows.height:  # registered by a program: pinned when it is first run
        ids = resolve(request, run.data, run.warehouse, scores=run.stored_score)
        rows = pins(run.data, ids, run.warehouse.salt())
        run.warehouse.requests.pin(request.request_id, rows)
    refuse_changed(request, rows, run.data, run.warehouse, scores=run.stored_score)
    train = rows.filter(pl.col("split") == "train")["example_id"].to_numpy()
    if not len(train):
        raise DataError(f"request {request.request_id}: none of its {rows.height} examples is in the training split")
    return train
