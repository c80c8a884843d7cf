"""The rows that a forget request names: resolved and pinned when it is registered, compared with the data when it is
run.

    pin(example) = HMAC-SHA256(salt, id | owner | label | content hash)

A row that has changed or got another owner since has another pin; the split is kept beside it. Where anything differs
the request is refused by name, and nothing is removed: never are other rows unlearned than those the person who
registered it was shown. Without the salt, a pin cannot be linked to a row.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from assets.request_edges import graph_of
from contracts.errors import DataError, InvalidInput, NotReady
from contracts.identity import owner_token
from contracts.methods import curator
from contracts.requests import ForgetRequest, RequestState
from sources.payloads.masks import labels_of, taken

if TYPE_CHECKING:
    from sources.example_set import ExampleSet
    from warehouse import Warehouse


def resolve(
    request: ForgetRequest,
    data: ExampleSet,
    warehouse: Warehouse,
    *,
    scores: Callable[[str], pl.DataFrame] | None = None,
) -> np.ndarray:
    """Ids (int64, ascending) of the examples that a request names: of an owner or by id in both splits, else in
    training.

    Args:
        scores: (example_id, value) of a stored score by its name; the warehouse's latest when not given.

    Raises:
        DataError: it names no example, unknown ids, a class that there is not, or every training example.
        NotApplicable: a class is asked for, and the data have none; a neighbourhood, and the data are no graph.
        NotReady: the score or the examples that it selects by are not on record, or not current.
        InvalidInput: the SQL predicate is not one boolean expression.
    """
    if not request.names_rows:
        raise InvalidInput(f"request {request.request_id} names no rows but {said(request)}")
    named = _NAMED[request.selector](request, data, warehouse) if request.selector in _NAMED else np.empty(0, np.int64)
    train = data.part("train")
    method, chosen = selection(request, named[np.isin(named, train.example_id)])
    choose = curator.get(method)
    provided = {
        "scores": scores or (lambda name: warehouse.latest_score(request.subject, name)),
        "select_where": lambda predicate: warehouse.select_where(request.subject, predicate),
    }
    members = choose(
        train,
        config=choose.spec.config.from_mapping({**chosen, "allow_empty": True}),
        seed=0,
        **{need: provided[need] for need in choose.spec.needs},
    )
    ids = np.union1d(named, members.filter(pl.col("role") == "forget")["example_id"].to_numpy())
    if not len(ids):
        raise DataError(f"request {request.request_id} names no example: {said(request)}")
    return ids


def selection(request: ForgetRequest, ids: np.ndarray) -> tuple[str, dict[str, object]]:
    """The curator that a request's selector stands for, with its configuration.

    Args:
        ids: the training examples among those that it names one by one.
    """
    how_many = {"count": request.count} if request.count else {"fraction": request.fraction}
    by_ids: tuple[str, dict[str, object]] = ("by_ids", {"ids": ids.tolist()})
    return {
        "class": ("by_class", {"class_name": request.class_name}),
        "where": ("by_predicate", {"where": request.where}),
        "score": ("top_score", {"score": request.score, "end": request.end, **how_many}),
    }.get(request.selector, by_ids)


def said(request: ForgetRequest) -> str:
    """What was asked, in a few words, without the name of a person."""
    if request.concept is not None:
        return f"the concept {request.concept.name!r}"
    return {
        "ids": f"{len(request.ids)} ids",
        "owner": "the examples of one owner",
        "class": f"class {request.class_name!r}",
        "where": f"where {request.where}",
        "neighbourhood": f"node {request.around} and all within {request.hops} edges of it",
        "edge": "an edge",
        "score": f"{request.end} {request.count or f'{request.fraction:.3g}'} of score {request.score!r}",
    }[request.selector]


def pins(data: ExampleSet, ids: np.ndarray, salt: bytes) -> pl.DataFrame:
    """``(example_id, split, pin)`` of these examples, by id; pin is 64 hex digits."""
    at = data.positions(ids)
    label = labels_of(taken(data.y, at), data.class_names)
    columns = (data.example_id[at], data.owner[at], label, data.content_hash[at])
    texts = ["\0".join(map(str, row)) for row in zip(*(c.tolist() for c in columns), strict=True)]
    made = [hmac.new(salt, text.encode("utf-8"), hashlib.sha256).hexdigest() for text in texts]
    return pl.DataFrame({"example_id": data.example_id[at], "split": data.split[at], "pin": made}).sort("example_id")


def refuse_changed(
    request: ForgetRequest,
    pinned: pl.DataFrame,
    data: ExampleSet,
    warehouse: Warehouse,
    *,
    scores: Callable[[str], pl.DataFrame] | None = None,
) -> None:
    """Nothing, when the request still names the rows that were pinned, unchanged.

    Raises:
        DataError: rows are gone, have changed, are in the other split, have come since, or are named no longer (by a
            score that was computed anew); says which.
    """
    ids = pinned["example_id"].to_numpy()
    here = ids[np.isin(ids, data.example_id)]
    now = pinned.join(pins(data, here, warehouse.salt()), on="example_id", suffix="_now")
    changed = now.filter(pl.col("pin") != pl.col("pin_now"))["example_id"].to_numpy()
    moved = now.filter(pl.col("split") != pl.col("split_now"))["example_id"].to_numpy()
    try:
        named = resolve(request, data, warehouse, scores=scores)
    except (InvalidInput, NotReady):  # it names nothing any more: what is gone is said below
        named = here
    found = {
        "gone": np.setdiff1d(ids, here),
        "changed": changed,
        "in the other split": moved,
        "new": np.setdiff1d(named, ids),
        "named no longer": np.setdiff1d(np.setdiff1d(here, changed), named),
    }
    differences = [f"{len(those)} {word} ({_some(those.tolist())})" for word, those in found.items() if len(those)]
    if differences:
        raise DataError(
            f"request {request.request_id} named {len(ids)} examples when it was registered; since then "
            f"{', '.join(differences)}. Nothing was removed. Look at the data; then withdraw it and register it again: "
            f"palimpsest request withdraw {request.subject} {request.request_id} --why 'the data changed'"
        )


def answer_unseen(warehouse: Warehouse, request_id: str) -> str:
    """Bring a verified request none of whose examples is in the training split up to its erasure; the answer, which is
    also on record."""
    num = warehouse.requests.pins(request_id).height
    answer = (
        f"No example of request {request_id} is in the training split ({num} in the test split): the audited model was "
        "not trained on them, so there is nothing to unlearn. The audit's reference models draw from both splits: "
        f"palimpsest erase {warehouse.requests.get(request_id).request.subject} {request_id} --execute"
    )
    notes = {
        RequestState.SCOPED: f"0 training examples, {num} in the test split",
        RequestState.EXECUTED: "nothing to unlearn",
        RequestState.AUDITED: answer,
    }
    for state, note in notes.items():
        warehouse.requests.reach(request_id, state, note=note)
    warehouse.publish()
    return answer


def refuse_erased(subject: str, data: ExampleSet, warehouse: Warehouse) -> None:
    """Nothing, when no row is in the data that was erased for a forget request.

    Raises:
        DataError: some are, as they were when they were pinned; says of which requests.
    """
    left = []
    for request_id in warehouse.erasures.erased(subject):
        pinned = warehouse.requests.pins(request_id)
        here = pinned.filter(pl.col("example_id").is_in(data.example_id.tolist()))
        if not here.height:
            continue
        now = pins(data, here["example_id"].to_numpy(), warehouse.salt())
        same = here.join(now, on=["example_id", "pin"], how="semi")["example_id"].to_list()
        if same:
            left.append((request_id, same))
    if left:
        named = "; ".join(f"{len(ids)} of request {name}" for name, ids in left)
        raise DataError(
            f"the source of {subject} still holds rows that were erased: {named}. Take them out of it, or, where it "
            f"cannot be changed, list their ids under 'without' in the plan: nothing is trained on them again",
            example_ids=[i for _, ids in left for i in ids],
        )


def _some(ids: list[int], most: int = 5) -> str:
    return ", ".join(map(str, ids[:most])) + (", ..." if len(ids) > most else "")


def _by_ids(request: ForgetRequest, data: ExampleSet, _: Warehouse) -> np.ndarray:
    ids = np.array(request.ids, np.int64)
    unknown = np.setdiff1d(ids, data.example_id)
    if len(unknown):
        raise DataError(f"{len(unknown)} ids are not of {request.subject}: {_some(unknown.tolist())}")
    return ids


def _by_owner(request: ForgetRequest, data: ExampleSet, warehouse: Warehouse) -> np.ndarray:
    salt = warehouse.salt()
    names = np.unique(data.owner)
    matching = [name for name in names.tolist() if owner_token(name, salt=salt) == request.owner]
    if not matching:
        owners = int((names != "").sum())
        raise DataError(
            f"request {request.request_id}: no example of {request.subject} belongs to this owner; the data have "
            + (f"{owners} owners" if owners else "no owners: give --owner COLUMN to 'palimpsest init'")
        )
    return data.example_id[np.isin(data.owner, matching)]  # type: ignore[no-any-return]


def _around(request: ForgetRequest, data: ExampleSet, _: Warehouse) -> np.ndarray:
    assert request.around is not None
    return graph_of(data, "a neighbourhood").neighbourhood(request.around, request.hops)


# the selectors that name examples one by one, in whichever split they are
_NAMED: dict[str, Callable[[ForgetRequest, ExampleSet, Warehouse], np.ndarray]] = {
    "ids": _by_ids,
    "owner": _by_owner,
    "neighbourhood": _around,
}
