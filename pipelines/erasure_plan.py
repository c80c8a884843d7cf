"""What an erasure does to every thing that holds, or was made from, the examples of a forget request: a pure function
of what was found.

    made from them, or from what was made from them     the closure of lineage; each of its assets has an item
    of the plan's own stages                            artefacts go, rows about the examples leave, figures go
    of curated sets                                     what their method declares (``after_erasure``)
    of this request                                     its evidence stays as readings that hold no content
    of other requests                                   what they say of these examples leaves, the rest stays
    beside the warehouse                                jobs, Dagster's records, logs, the free blocks of databases
    outside the state folder                            named, for a person to do; looked at again when data are loaded

The model in use that the audit of the request found without the examples stays (``keeps_model``): it is the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assets.read_closely import TOKENS
from contracts import schema
from contracts.erasure import Action, Item, in_order
from contracts.methods import maker
from pipelines.after_erasure import declared
from warehouse.erasure import Found, Held

OF_REQUESTS = "request_"  # how the second part of the path of a request's assets begins
_REGISTER = {schema.REGISTER.full_name, schema.REQUEST_EVENTS.full_name, schema.ERASURES.full_name}
_SETS = {t.full_name for t in (schema.MEMBERS, schema.DATASETS, schema.WEIGHTS, schema.DRAWN_FROM)}
_EVIDENCE_TABLES = {schema.ATTACK_SCORES.full_name}
_GONE = "made from them; the next audit makes it anew"


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What lies beside the warehouse and outside the state folder.

    Attributes:
        subject: whose examples leave.
        jobs: folders of its finished jobs. ``outlines``: files that remember its data's digest.
        runs: Dagster runs of the subject. ``databases``: Dagster's SQLite files. ``logs``: folders of its runs' logs.
        source: the source in words. ``checkpoint``: the given model, "" where it was trained here.
        imported: the checkpoints that were imported into the state -> the subjects whose plans name them.
        retains: what the recipe keeps of its data besides the weights.
        methods: curated set -> its method. ``roles``: curated set -> the roles that it assigns.
        others: subjects that read the same source.
        exports: files and folders outside to which the subject was exported. ``exports_here``: below the state folder.
    """

    subject: str = ""
    jobs: Sequence[str] = ()
    outlines: Sequence[str] = ()
    runs: Sequence[str] = ()
    databases: Sequence[str] = ()
    logs: Sequence[str] = ()
    source: str = ""
    checkpoint: str = ""
    imported: Mapping[str, Sequence[str]] = field(default_factory=dict)
    retains: Sequence[str] = ()
    methods: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, Sequence[str]] = field(default_factory=dict)
    others: Sequence[str] = ()
    exports: Sequence[str] = ()
    exports_here: Sequence[str] = ()


def plan(
    request_id: str, found: Found, beside: Beside, *, in_use: str = "", keeps_model: bool = False, selector: str = ""
) -> list[Item]:
    """The items of an erasure, in the order in which they are carried out; equal states give equal plans.

    Args:
        in_use: the removal method of the request's audit; "" where there was none.
        keeps_model: the audit did not find the examples in what it left.
        selector: of the request.
    """
    items: list[Item] = []
    assets = found.affected
    by_asset: dict[str, list[Held]] = {}
    for held in found.held:
        by_asset.setdefault(held.asset, []).append(held)
    for asset in sorted(assets):
        mine = by_asset.get(asset, [])
        if _request_of(asset):
            items += _evidence(asset, request_id, found, mine, in_use=in_use, keeps_model=keeps_model)
        elif (dataset := _set_of(asset)) in beside.methods:
            items += _curated(asset, dataset, found, mine, beside)
        else:
            items += _own(asset, found, mine, beside)
        items.append(
            Item(
                kind="lineage",
                where=asset,
                asset=asset,
                action=Action.CUT,
                why="it is made from them no more",
                examples=found.assets.get(asset, 0),
            )
        )
    items += [
        Item(kind="table", where=h.table, part=dict(h.part), action=Action.CUT, why="rows about them", examples=h.num)
        for h in by_asset.get("", [])
        if h.num and h.table not in _REGISTER and h.table != schema.REQUEST_PINS.full_name
    ]
    items += [
        Item(
            kind="table",
            where=h.table,
            part=dict(h.part),
            action=Action.KEEP,
            examples=h.num,
            why="ids and HMACs under the salt, by which the data are compared at the next load",
        )
        for h in by_asset.get("", [])
        if h.num and h.table == schema.REQUEST_PINS.full_name
    ]
    items += [
        Item(kind="table", where=table, action=Action.REMOVE, why="of an earlier version; nothing reads it")
        for table in found.archived
    ]
    items.append(
        Item(
            kind="request",
            where=request_id,
            action=Action.CUT if selector == "where" else Action.KEEP,
            why="an SQL predicate is text and may name a person; its rows are pinned"
            if selector == "where"
            else f"selector {selector or 'ids'}: ids, a salted token, or a name of the data",
        )
    )
    return in_order(items + _beside(beside))


def _request_of(asset: str) -> str:
    """The request that an asset is of; "" of the plan's own."""
    parts = asset.split("/")
    return parts[2] if len(parts) > 3 and parts[1].startswith(OF_REQUESTS) else ""


def _set_of(asset: str) -> str:
    parts = asset.split("/")
    return parts[2] if len(parts) == 3 and parts[1] == "curation" else ""


def _own(asset: str, found: Found, held: Sequence[Held], beside: Beside) -> list[Item]:
    """A stage of the plan: artefacts go, rows about the examples leave, figures go."""
    num = found.assets.get(asset, 0)
    items = []
    for name in found.artifacts.get(asset, ()):
        what = name.rsplit("/", 1)[-1]
        kept = (
            f"what the recipe retains besides the weights ({', '.join(beside.retains)}), " if what == "retained" else ""
        )
        items.append(
            Item(kind="artifact", where=name, asset=asset, action=Action.REMOVE, why=kept + _GONE, examples=num)
        )
    for h in held:
        if h.by_example and h.num:
            items.append(_table(h, Action.CUT, "rows about them"))
        elif not h.by_example:
            items.append(_table(h, Action.EMPTY, "figures of what is removed"))
    return items


def _curated(asset: str, dataset: str, found: Found, held: Sequence[Held], beside: Beside) -> list[Item]:
    """A curated or made set, by what its method declares."""
    method = beside.methods[dataset]
    word, what = declared(method)
    mine = [h for h in held if h.num]
    names = list(found.artifacts.get(asset, ()))
    whole = [name for name in names if name.endswith("/result")]
    shown = [name for name in names if name not in whole]
    num = found.assets.get(asset, 0)
    items = [
        Item(
            kind="artifact",
            where=name,
            asset=asset,
            action=Action.REMOVE,
            why="shows some of its examples",
            examples=num,
        )
        for name in shown
    ]
    if word == "drop":
        made = method in maker.names()
        note: dict[str, Any] = {"how": "made", "dataset": dataset} if made else {"how": "roles"}
        items += [
            Item(
                kind="artifact",
                where=name,
                asset=asset,
                action=Action.CUT,
                why=f"{method}: {what}",
                examples=num,
                note=note,
            )
            for name in whole
        ]
        for h in held:
            if h.num:
                items.append(_table(h, Action.CUT, f"{method}: {what}"))
            elif h.table == schema.DATASETS.full_name and mine and not made:
                items.append(_table(h, Action.CUT, "counted anew", {"roles": list(beside.roles[dataset])}))
            elif h.table not in _SETS or h.table == schema.DATASETS.full_name:
                items.append(_table(h, Action.EMPTY, "figures of the set as it was"))
        return items
    items += [
        Item(kind="artifact", where=name, asset=asset, action=Action.REMOVE, why=f"{method}: {what}", examples=num)
        for name in whole
    ]
    return [*items, *(_table(h, Action.EMPTY, f"{method}: {what}") for h in held)]


def _evidence(
    asset: str, request_id: str, found: Found, held: Sequence[Held], *, in_use: str, keeps_model: bool
) -> list[Item]:
    """What a request's run left: its evidence without content."""
    own = _request_of(asset) == request_id
    stage, name = asset.split("/")[1], asset.split("/")[3]
    num = found.assets.get(asset, 0)
    items = []
    for artifact in found.artifacts.get(asset, ()):
        what = artifact.rsplit("/", 1)[-1]
        action, why, note = Action.KEEP, "names nothing but figures", {}
        if what == "shown.json":
            action, why = Action.REMOVE, "shows some of what it was made from"
        elif "/resume-" in artifact:
            action, why = Action.REMOVE, "weights of a training that saw them"
        elif stage == "request_curation" and own:
            why = "ids and no content, by which certificates name the set"
        elif stage == "request_curation":
            action, why, note = Action.CUT, "their ids leave", {"how": "roles"}
        elif stage == "request_unlearning" and what == "result":
            stays = not num or (own and name == in_use and keeps_model)
            action, note = Action.CUT, {"how": "readings", "weights": stays, "rows": not own}
            why = "readings of no content stay" + (
                ", and the weights, which " + ("never saw them" if not num else "the audit found without them")
                if stays
                else "; weights that saw them go"
            )
        elif stage == "request_audits" and name == TOKENS:
            action, why = Action.REMOVE, "what models say of every token of theirs"
        elif what in ("audit.html", "audit.json", "closing.html", "closing.json"):
            why = "a report of a request shows no example"
        elif stage == "request_certificates":
            why = "a certificate says how many, not who"
        items.append(
            Item(kind="artifact", where=artifact, asset=asset, action=action, why=why, examples=num, note=note)
        )
    for h in held:
        if h.by_example and h.num:
            kept = own and h.table in _EVIDENCE_TABLES
            items.append(
                _table(
                    h,
                    *(
                        (Action.KEEP, "scores by id and no content: what the removal was judged by")
                        if kept
                        else (Action.CUT, "rows about them")
                    ),
                )
            )
        elif h.table == schema.DATASETS.full_name and own:
            items.append(_table(h, Action.EMPTY, "its configuration names them"))
    return items


def _table(h: Held, action: Action, why: str, note: dict[str, Any] | None = None) -> Item:
    return Item(
        kind="table",
        where=h.table,
        part=dict(h.part),
        asset=h.asset,
        action=action,
        why=why,
        examples=h.num,
        note=note or {},
    )


def _beside(beside: Beside) -> list[Item]:
    duckdb = ("warehouse/palimpsest.duckdb", "warehouse/palimpsest.read.duckdb")
    others = [f"subject {name}" for name in beside.others]
    return [
        *_each("job", beside.jobs, Action.REMOVE, "what a finished job was told and said"),
        *_each("file", beside.outlines, Action.REMOVE, "remembers the data's digest"),
        *_each("dagster", beside.runs, Action.REMOVE, "its events hold tables, previews and messages"),
        *_each("log", beside.logs, Action.REMOVE, "what its processes printed"),
        *_each("database", beside.databases, Action.REWRITE, "SQLite keeps deleted rows until VACUUM"),
        *_each("database", duckdb, Action.REWRITE, "DuckDB keeps deleted rows in free blocks"),
        *_each("source", [beside.source], Action.YOURS, _TAKE_OUT),
        *_given_models(beside),
        *_each("source", others, Action.YOURS, "reads the same source: register and erase the request there too"),
        *_each("export", beside.exports_here, Action.REMOVE, "exported from this subject"),
        *_each("export", beside.exports, Action.YOURS, "exported from this subject: delete it, or export it anew"),
    ]


_TAKE_OUT = "take their rows out of it; the next load is refused while they are there"


def _each(kind: str, places: Iterable[str], action: Action, why: str) -> list[Item]:
    return [Item(kind=kind, where=where, action=action, why=why) for where in places]


def _given_models(beside: Beside) -> list[Item]:
    """The given model of the subject, and what was imported: copies in the state folder of weights that nobody here
    trained."""
    given, items = beside.checkpoint, []
    anew = "a given model cannot be made anew here: give one that was trained without them"
    if given and given not in beside.imported:
        items.append(Item(kind="source", where=given, action=Action.YOURS, why=anew))
    for place, users in beside.imported.items():
        others = [name for name in users if name != beside.subject]
        if place == given and not others:
            items.append(Item(kind="artifact", where=place, asset=place, action=Action.REMOVE, why=anew))
        elif place == given or not users:
            also = (
                f"{anew}; {', '.join(others)} name it too"
                if others
                else ("imported, and no plan names it: nobody here knows what it was trained on")
            )
            todo = f"palimpsest import-checkpoint --remove {place.partition('/')[2]}"
            items.append(Item(kind="source", where=place, action=Action.YOURS, why=f"{also}; to take it out: {todo}"))
    return items


def withdrawn(request_id: str, found: Found) -> list[Item]:
    """The items by which what the runs of a request made goes, whatever it is: the request was taken back."""
    why = "a run of a request that was taken back made it"
    mine = {asset for asset in found.artifacts if _request_of(asset) == request_id}
    mine |= {h.asset for h in found.held if _request_of(h.asset) == request_id}
    items = [
        Item(kind="artifact", where=name, asset=asset, action=Action.REMOVE, why=why)
        for asset in mine
        for name in found.artifacts.get(asset, ())
    ]
    items += [_table(h, Action.EMPTY, why) for h in found.held if h.asset in mine]
    items += [Item(kind="lineage", where=asset, asset=asset, action=Action.CUT, why=why) for asset in mine]
    return in_order(items)


def closure_of(items: Sequence[Item]) -> set[str]:
    """The assets that a plan acts on."""
    return {item.asset for item in items if item.kind == "lineage"}
