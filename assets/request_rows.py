"""The rows that a forget request names: resolved and pinned when it is registered, compared with the data when it is run.

    pin(example) = HMAC-SHA256(salt, id | split | owner | label | content hash)

A row that has changed, went to another split or got another owner since has another pin. Then the request is refused by
name, and nothing is removed: never are other rows unlearned than those the person who registered it was shown. Without the
salt, a pin cannot be linked to a row.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from contracts.errors import DataError, NotApplicable, NotReady, UnknownName
from contracts.identity import owner_token
from contracts.requests import ForgetRequest, RequestState

if TYPE_CHECKING:
    from sources import ExampleSet
    from warehouse import Warehouse


def resolve(request: ForgetRequest, data: ExampleSet, warehouse: Warehouse) -> np.ndarray:
    """Ids (int64, ascending) of the examples that a request names: of an owner or by id in both splits, else in training.

    Raises:
        DataError: it names no example, unknown ids, or every training example.
        UnknownName: the class is not one of the data's; the known ones are listed.
        NotApplicable: a class is asked for, and the data have none.
        NotReady: the score or the examples that it selects by are not on record, or not current.
        InvalidInput: the SQL predicate is not one boolean expression.
    """
    train = data.split == "train"
    ids = _RESOLVERS[request.selector](request, data, warehouse)
    if not len(ids):
        raise DataError(f"request {request.request_id} names no example: {said(request)}")
    if len(np.intersect1d(ids, data.example_id[train])) == train.sum():
        raise DataError(
            f"request {request.request_id} names all {train.sum()} training examples ({said(request)}): nothing would be left "
            "to train on. To forget everything, delete the model"
        )
    return np.unique(ids)


def said(request: ForgetRequest) -> str:
    """What was asked, in a few words, without the name of a person."""
    return {
        "ids": f"{len(request.ids)} ids",
        "owner": "the examples of one owner",
        "class": f"class {request.class_name!r}",
        "where": f"where {request.where}",
        "score": f"{request.end} {request.count or f'{request.fraction:.3g}'} of score {request.score!r}",
    }[request.selector]


def pins(data: ExampleSet, ids: np.ndarray, salt: bytes) -> pl.DataFrame:
    """``(example_id, split, pin)`` of these examples, by id; pin is 64 hex digits."""
    at = data.positions(ids)
    label = np.asarray(data.class_names)[data.y[at]] if data.class_names else data.y[at]
    columns = (data.example_id[at], data.split[at], data.owner[at], label, data.content_hash[at])
    texts = ["\0".join(map(str, row)) for row in zip(*(c.tolist() for c in columns), strict=True)]
    made = [hmac.new(salt, text.encode("utf-8"), hashlib.sha256).hexdigest() for text in texts]
    return pl.DataFrame({"example_id": data.example_id[at], "split": data.split[at], "pin": made}).sort("example_id")


def refuse_changed(request: ForgetRequest, pinned: pl.DataFrame, data: ExampleSet, warehouse: Warehouse) -> None:
    """Nothing, when the request still names the rows that were pinned, unchanged.

    Raises:
        DataError: rows are gone, have changed or have come since; says which.
    """
    ids = pinned["example_id"].to_numpy()
    here = np.isin(ids, data.example_id)
    now = pinned.join(pins(data, ids[here], warehouse.salt()), on="example_id", suffix="_now")
    changed = now.filter(pl.col("pin") != pl.col("pin_now"))["example_id"].to_list()
    new: list[int] = []
    if request.selector not in ("ids", "score"):  # these name rows once; a person or a class may get new ones
        try:
            new = np.setdiff1d(resolve(request, data, warehouse), ids).tolist()
        except (DataError, NotReady):  # it names nothing any more: what is gone is said below
            new = []
    differences = [
        f"{len(found)} {word} ({_some(found)})"
        for word, found in (("gone", ids[~here].tolist()), ("changed", changed), ("new", new))
        if found
    ]
    if differences:
        raise DataError(
            f"request {request.request_id} named {len(ids)} examples when it was registered; since then "
            f"{', '.join(differences)}. Nothing was removed. Look at the data; then withdraw it and register it again: "
            f"palimpsest request withdraw {request.subject} {request.request_id} --why 'the data changed'"
        )


def answer_unseen(warehouse: Warehouse, request_id: str) -> str:
    """Close a verified request none of whose examples is in the training split; the answer, which is also on record."""
    num = warehouse.requests.pins(request_id).height
    answer = (
        f"All {num} examples of request {request_id} are in the test split: the audited model was not trained on them, so there "
        "is nothing to unlearn. The audit's reference models draw from both splits: remove the rows from the data and audit again."
    )
    notes = {
        RequestState.SCOPED: f"0 training examples, {num} in the test split",
        RequestState.EXECUTED: "nothing to unlearn",
        RequestState.AUDITED: "no membership in the audited model",
        RequestState.CLOSED: answer,
    }
    for state, note in notes.items():
        warehouse.requests.reach(request_id, state, note=note)
    warehouse.publish()
    return answer


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


def _by_class(request: ForgetRequest, data: ExampleSet, _: Warehouse) -> np.ndarray:
    if not data.class_names:
        raise NotApplicable(f"request {request.request_id}: {request.subject} has no classes to select by")
    if request.class_name not in data.class_names:
        raise UnknownName(f"class of {request.subject}", request.class_name, list(data.class_names))
    wanted = data.y == data.class_names.index(request.class_name)
    return data.example_id[wanted & (data.split == "train")]  # type: ignore[no-any-return]


def _where(request: ForgetRequest, data: ExampleSet, warehouse: Warehouse) -> np.ndarray:
    return np.asarray(warehouse.select_where(request.subject, request.where))


def _by_score(request: ForgetRequest, data: ExampleSet, warehouse: Warehouse) -> np.ndarray:
    from curation.top_score import TopScoreConfig, top_score

    config = TopScoreConfig(
        score=request.score, end=request.end, count=request.count or None, fraction=request.fraction or None
    )
    members = top_score(
        data.part("train"), config=config, seed=0, scores=lambda name: warehouse.latest_score(request.subject, name)
    )
    return members.filter(pl.col("role") == "forget")["example_id"].to_numpy()


_RESOLVERS: dict[str, Callable[[ForgetRequest, ExampleSet, Warehouse], np.ndarray]] = {
    "ids": _by_ids,
    "owner": _by_owner,
    "class": _by_class,
    "where": _where,
    "score": _by_score,
}
