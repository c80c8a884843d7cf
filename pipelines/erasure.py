"""The deletion cascade of a forget request: audit, then erase, then audit what is left.

    preview   what would be done, item by item; changes nothing
    execute   does it, with a journal (``requests.erasures``): killed anywhere, the same command goes on where it was

Order: jobs and artefacts go first, so that nothing can be served or trained on; then, in one transaction, rows,
completions, lineage, the request's predicate and the journal; then Dagster's records and logs; then the databases are
written anew, which is when the bytes of deleted rows are gone; at last it is looked whether anything is left, and only
then may the request be closed. A request that is closed has no live artefact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from contracts import schema
from contracts.erasure import DONE, OPEN, Action, Item
from contracts.errors import NotReady, StateError, UnknownName
from contracts.requests import NOT_RUN, ForgetRequest, RequestState
from contracts.requests import OPEN as UNDER_WAY
from contracts.subject import IMPORTED, Subject
from contracts.verdicts import Verdict
from pipelines import dagster_records
from pipelines.erasure_plan import Beside, closure_of, plan, withdrawn
from pipelines.export import known_exports
from pipelines.subjects import imported_for
from warehouse import sqlite
from warehouse.erasure import item_of
from warehouse.faults import fault

if TYPE_CHECKING:
    from assets import Workspace
    from warehouse import Warehouse

_ERASED_FROM = (RequestState.AUDITED, RequestState.CLOSED)
_WEIGHTS = re.compile(r"\d+\.")
_AXIS = {
    "example_id": 0,
    "reading": 1,
    "logits": 1,
    "signal": 1,
}  # of a request's results: which axis counts the examples
_IN_DATABASE = ("table", "lineage", "request")


def preview(subject: Subject, workspace: Workspace, request_id: str, *, retrained: bool = False) -> list[Item]:
    """What an erasure would do, in order; of one that was begun, what it does.

    Args:
        retrained: its rows were taken out of the source and everything was trained again, which needs no audit first.

    Raises:
        StateError: the request has not been audited, names no rows, or work on the subject is under way.
        UnknownName: there is no such request.
    """
    w = workspace.warehouse
    begun = w.erasures.journal(request_id)
    if begun.height:
        return [item_of(row) for row in begun.iter_rows(named=True)]
    entry = w.requests.get(request_id)
    _refuse(subject, entry.request, entry.state, retrained=retrained)
    ids = ids_of(w, request_id)
    in_use, verdict = _audited(w, subject.subject, request_id)
    return plan(
        request_id,
        w.erasures.found(subject.subject, ids),
        _beside(subject, workspace.home, w),
        in_use=in_use,
        keeps_model=verdict in (Verdict.PASS, Verdict.INCONCLUSIVE),
        selector=entry.request.selector,
    )


def execute(subject: Subject, workspace: Workspace, request_id: str, *, retrained: bool = False) -> pl.DataFrame:
    """Erase what a request names; the journal. Again, it does what is left to do, and nothing when all is done.

    Raises:
        StateError: as :func:`preview`; or something was made from the examples meanwhile; or a database is in use.
    """
    w, home = workspace.warehouse, workspace.home
    entry = w.requests.get(request_id)
    _refuse(subject, entry.request, entry.state, retrained=retrained)
    if not finished(w, request_id):
        _refuse_work(subject, home)
    if not w.erasures.journal(request_id).height:
        items = preview(subject, workspace, request_id, retrained=retrained)
        w.erasures.begin(w.requests.get(request_id).request, items)
    _carry_out(subject.subject, workspace, request_id, ids_of(w, request_id))
    _refuse_left(w, subject.subject, request_id)
    _close(w, subject.subject, request_id)
    w.publish()
    return w.erasures.journal(request_id)


def withdraw(subject: Subject, workspace: Workspace, request_id: str) -> int:
    """Remove what the runs of a request that is taken back have left, so that all but the register is as before; the
    number of items.

    Raises:
        StateError: work on the subject is under way, or its examples were erased already.
    """
    w, home = workspace.warehouse, workspace.home
    refuse_erased(w, request_id)
    found = w.erasures.found(subject.subject, np.empty(0, np.int64))
    items = withdrawn(request_id, found)
    if not any(item.asset for item in items):
        return 0
    _refuse_work(subject, home)
    _files(subject.subject, workspace, request_id, dict(enumerate(items)), np.empty(0, np.int64), told=False)
    w.erasures.apply(
        request_id,
        np.empty(0, np.int64),
        items=dict(enumerate(items)),
        files={},
        removed=_removed(items),
        affected=closure_of(items),
    )
    return len(items)


def refuse_erased(w: Warehouse, request_id: str) -> None:
    """Nothing, where no erasure of the request was begun.

    Raises:
        StateError: it was: there is no way back.
    """
    if w.erasures.journal(request_id).height:
        raise StateError(
            f"the examples of request {request_id} are erased, or their erasure was begun: it can only be finished "
            "(palimpsest erase SUBJECT REQUEST --execute) and closed"
        )


def finished(w: Warehouse, request_id: str) -> bool:
    """Whether the erasure of a request was carried out to its end."""
    journal = w.erasures.journal(request_id)
    return bool(journal.height) and bool(journal["state"].is_in([DONE, OPEN]).all())


def ids_of(w: Warehouse, request_id: str) -> np.ndarray:
    """Ids (int64, ascending) of the examples that leave: those that the request named, and those that its scope added
    (near duplicates, where the plan says so)."""
    subject = w.requests.get(request_id).request.subject
    ids = w.requests.pins(request_id)["example_id"].to_numpy()
    try:
        scope, _ = w.artifacts.load(f"{subject}/request_curation/{request_id}/split/result")
    except NotReady:
        return np.unique(ids)
    return np.union1d(ids, scope["forget"])


def _refuse(subject: Subject, request: ForgetRequest, state: RequestState, *, retrained: bool) -> None:
    name = request.request_id
    if request.subject != subject.subject:
        raise UnknownName(f"request of {subject.subject}", name, [])
    if not request.names_rows:
        raise StateError(f"request {name} names {request.selector}, not rows: there is no row to erase")
    if state not in _ERASED_FROM and not retrained:
        if state not in UNDER_WAY:
            raise StateError(f"request {name} is {state.value}: nothing is erased for it")
        step = "verify" if state in NOT_RUN else "run"
        raise StateError(
            f"request {name} is {state.value}: first the audit, then the erasure: palimpsest request {step} "
            f"{subject.subject} {name}"
        )


def _refuse_work(subject: Subject, home: Path) -> None:
    """Raise :class:`StateError` while a job or run of the subject is under way: it would make again what is erased."""
    from pipelines.launchers import process_of

    alive = [folder.name for folder in _jobs(home, subject.subject) if process_of(folder)]
    running = dagster_records.unfinished(home, subject.subject)
    if alive or running:
        raise StateError(
            f"work on {subject.subject} is under way ({', '.join([*alive, *running])}): erase when it has ended"
        )


def _audited(w: Warehouse, subject: str, request_id: str) -> tuple[str, Verdict]:
    """The removal method of a request's audit, and its verdict; ("", inconclusive) where there was nothing to audit."""
    try:
        facts = w.artifacts.load_json(f"{subject}/request_reports/{request_id}/audit.json")
    except NotReady:
        return "", Verdict.INCONCLUSIVE
    return str(facts["decides"]), Verdict(facts["verdict"])


# ------------------------------------------------------------------- what there is beside the warehouse


def _jobs(home: Path, subject: str) -> list[Path]:
    """Folders of the jobs of a subject."""
    found = []
    for path in sorted((home / "jobs").glob("*/job.json")):
        try:
            whose = json.loads(path.read_bytes())["subject"]["subject"]
        except (OSError, ValueError, KeyError, TypeError):
            whose = subject  # nobody can tell whose it was: nothing reads it any more
        if whose == subject:
            found.append(path.parent)
    return found


def _beside(subject: Subject, home: Path, w: Warehouse) -> Beside:
    from contracts.methods import curator as curators
    from contracts.methods import recipe

    name = subject.subject
    outline, exports = home / "outlines" / f"{name}.json", known_exports(home, name)
    runs = dagster_records.runs_of(home, name)
    sets = w.read(schema.DATASETS, subject=name)
    methods = dict(sets.select("dataset_id", "method").iter_rows())
    named = recipe.get(subject.recipe.name).spec.retains if subject.recipe.name in recipe.names() else ()

    def below(paths: list[Path]) -> list[str]:
        return [path.relative_to(home).as_posix() for path in paths]

    artifacts = [place for place in w.artifacts.names() if place.startswith(IMPORTED)]
    users, _ = imported_for(home) if artifacts else ({}, [])
    return Beside(
        subject=name,
        imported={place: users.get(place, []) for place in artifacts},
        jobs=below(_jobs(home, name)),
        outlines=below([outline] if outline.exists() else []),
        runs=runs,
        databases=below(dagster_records.databases(home)),
        logs=below(dagster_records.logs_of(home, runs)),
        source=_in_words(subject),
        checkpoint=subject.model.checkpoint,
        retains=named,
        methods=methods,
        roles={
            dataset: curators.get(method).spec.roles
            for dataset, method in methods.items()
            if method in curators.names()
        },
        others=_same_source(subject, home),
        exports=[path for path in exports if not Path(path).is_relative_to(home)],
        exports_here=below([Path(path) for path in exports if Path(path).is_relative_to(home)]),
    )


def _in_words(subject: Subject) -> str:
    config = subject.source.config
    place = "/".join(str(config[key]) for key in ("root", "file") if config.get(key))
    return f"{subject.source.name} {place}".strip()


def _same_source(subject: Subject, home: Path) -> list[str]:
    from contracts.errors import PalimpsestError
    from pipelines.subjects import load_subject, subject_files

    found = []
    for name in subject_files(home):
        try:
            other = load_subject(name, home)
        except PalimpsestError:
            continue
        if name != subject.subject and other.source == subject.source:
            found.append(name)
    return found


# ------------------------------------------------------------------- carrying out


def _carry_out(subject: str, workspace: Workspace, request_id: str, ids: np.ndarray) -> None:
    w, home = workspace.warehouse, workspace.home
    journal = w.erasures.journal(request_id)
    items = {row["seq"]: item_of(row) for row in journal.iter_rows(named=True)}
    left = set(journal.filter(pl.col("state") == "planned")["seq"])
    if not left:
        return
    if any(items[seq].kind in _IN_DATABASE and items[seq].action is not Action.KEEP for seq in left):
        files, proofs = _files(subject, workspace, request_id, items, ids)
        every = list(items.values())
        w.erasures.apply(
            request_id,
            ids,
            items=items,
            files=files,
            removed=_removed(every),
            affected=closure_of(every) | _removed(every).keys(),
            kept=_untouched(every),
            done=proofs,
        )
    for item in items.values():
        if item.kind in ("job", "log", "file", "export") and item.action is Action.REMOVE:
            dagster_records.remove_path(home / item.where)
    dagster_records.remove(home, subject, [item.where for item in items.values() if item.kind == "dagster"])
    fault("erasure.after_records")
    told: dict[int, tuple[str, str]] = {}
    for seq, item in items.items():
        if item.kind == "database" and not item.where.startswith("warehouse/"):
            path = home / item.where
            told[seq] = (DONE, sqlite.rewrite(path) if path.exists() else "gone")
        elif item.action is Action.YOURS:
            told[seq] = (OPEN, "")
        elif item.kind in ("job", "log", "file", "dagster", "export"):
            told[seq] = (DONE, "gone")
        elif item.action is Action.KEEP:
            told[seq] = (DONE, "kept")
    w.compact()
    head = w.ledger.head()
    told |= {
        seq: (DONE, f"written anew at ledger entry {head.seq}")
        for seq, item in items.items()
        if item.kind == "database" and item.where.startswith("warehouse/")
    }
    fault("erasure.before_settle")
    w.erasures.settle(request_id, told)
    fault("erasure.after_settle")


def _files(
    subject: str,
    workspace: Workspace,
    request_id: str,
    items: Mapping[int, Item],
    ids: np.ndarray,
    *,
    told: bool = True,
) -> tuple[dict[str, str], dict[int, tuple[str, str]]]:
    """Remove and rewrite artefacts: SHA-256 of those that were written anew, and what became of each item. Again, it
    changes nothing."""
    w = workspace.warehouse
    at = datetime.now(UTC).isoformat(timespec="seconds")
    files: dict[str, str] = {}
    proofs: dict[int, tuple[str, str]] = {}
    for seq, item in items.items():
        if item.kind != "artifact":
            continue
        if item.action is Action.REMOVE:
            if w.artifacts.exists(item.where):
                w.artifacts.remove(item.where, erased_for=request_id if told else "", at=at)
            proofs[seq] = (DONE, "gone")
            fault("erasure.after_artifact")
        elif item.action is Action.CUT and w.artifacts.exists(item.where):
            files[item.where] = _cut(w, subject, item, ids)
            proofs[seq] = (DONE, f"SHA-256 {files[item.where]}")
            fault("erasure.after_artifact")
        elif item.action is Action.KEEP and w.artifacts.exists(item.where):
            proofs[seq] = (DONE, f"kept, SHA-256 {w.artifacts.sha256(item.where)}")
    return files, proofs


def _cut(w: Warehouse, subject: str, item: Item, ids: np.ndarray) -> str:
    """Write an artefact anew without the examples; its SHA-256."""
    arrays, meta = w.artifacts.load(item.where)
    made = {
        "roles": lambda: {role: values[~np.isin(values, ids)] for role, values in arrays.items()},
        "readings": lambda: _readings(arrays, ids, item.note),
        "made": lambda: _made(w, subject, item.note, arrays, ids),
    }[item.note["how"]]()
    return w.artifacts.save(item.where, {k: np.array(v) for k, v in made.items()}, meta, finite=False).sha256


def _readings(arrays: Mapping[str, np.ndarray], ids: np.ndarray, note: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A request's result as evidence: readings, four numbers an example and none of its content. Whole outputs go; the
    weights too, unless they are free of the examples; of another request's result what it says of these examples."""
    kept = {k: v for k, v in arrays.items() if k != "logits" and (note["weights"] or not _WEIGHTS.match(k))}
    if note["rows"] and "example_id" in kept:
        gone = np.setdiff1d(ids, kept.get("forget", np.empty(0, np.int64)))
        stays = ~np.isin(kept["example_id"], gone)
        kept |= {k: np.compress(stays, kept[k], axis=axis) for k, axis in _AXIS.items() if k in kept}
    return kept


def _made(
    w: Warehouse, subject: str, note: Mapping[str, Any], arrays: Mapping[str, np.ndarray], ids: np.ndarray
) -> dict[str, np.ndarray]:
    """A made set without the examples that were made from these."""
    drawn = w.read(schema.DRAWN_FROM, subject=subject, partition={"dataset_id": note["dataset"]})
    gone = drawn.filter(pl.col("example_id").is_in(ids.tolist()))["made_id"].to_numpy()
    stays = ~np.isin(arrays["example_id"], gone)
    rows = {k for k in arrays if k in ("x", "y", "example_id") or k.startswith("columns/")}
    return {k: v[stays] if k in rows else v for k, v in arrays.items()}


def _removed(items: list[Item]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for item in items:
        if item.kind == "artifact" and item.action is Action.REMOVE:
            out.setdefault(item.asset, []).append(item.where)
    return out


def _untouched(items: list[Item]) -> set[str]:
    """Assets whose results stay as they were, but for what was shown of them."""
    touched = {
        item.asset
        for item in items
        if item.kind in ("artifact", "table")
        and item.action is not Action.KEEP
        and not item.where.endswith("/shown.json")
    }
    ours = {item.asset for item in items if item.kind in ("artifact", "table") and item.action is Action.KEEP}
    return (closure_of(items) & ours) - touched


def _refuse_left(w: Warehouse, subject: str, request_id: str) -> None:
    """Raise :class:`StateError` if anything was made from the examples while they were erased, or was left."""
    ids = ids_of(w, request_id)
    found = w.erasures.found(subject, ids)
    made = sorted(asset for asset, num in found.assets.items() if num)
    kept = {
        (item.where, json.dumps(item.part, sort_keys=True))
        for item in map(item_of, w.erasures.journal(request_id).iter_rows(named=True))
        if item.action is Action.KEEP
    }
    rows = [h.table for h in found.held if h.num and (h.table, json.dumps(dict(h.part), sort_keys=True)) not in kept]
    if made or rows:
        raise StateError(
            f"request {request_id}: {', '.join([*made, *rows][:5])} was made from its examples while they were erased; "
            "the request stays open"
        )


def _close(w: Warehouse, subject: str, request_id: str) -> None:
    """Close a request whose audit passed, now that nothing of its examples is left."""
    entry = w.requests.get(request_id)
    if entry.state is not RequestState.AUDITED:
        return
    in_use, verdict = _audited(w, subject, request_id)
    nothing_to_unlearn = not in_use and entry.num_examples == 0
    if verdict is Verdict.PASS or nothing_to_unlearn:
        said = "its audit passed" if in_use else "the audited model was not trained on them"
        w.requests.advance(request_id, RequestState.CLOSED, note=f"{said}, and its examples are erased")
