"""What an erasure does, item by item: the words that plan, journal, command and tests share."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


class Action(enum.StrEnum):
    """What is done with one thing that holds, or was made from, the examples of a forget request."""

    CUT = "cut"
    EMPTY = "empty"
    REMOVE = "remove"
    REWRITE = "rewrite"
    KEEP = "keep"
    YOURS = "yours"


ACTIONS = {
    Action.CUT: "what is the person's leaves; the rest stays as it is",
    Action.EMPTY: "all rows leave: they are figures of something that is removed; the next audit writes them anew",
    Action.REMOVE: "it is deleted, and whoever asks for it is told so by name; the next audit makes it anew",
    Action.REWRITE: "the file is written anew from what is left, so that no deleted byte stays in it",
    Action.KEEP: "it stays, for the reason given",
    Action.YOURS: "it lies outside the state folder: it is named here, and done by you",
}
"""What each action means, in words for people."""

# what an item is about, in the order in which an erasure goes: first nothing can be served or trained on any more,
# then rows, then what tells of them, then the bytes that deletion leaves
KINDS = ("job", "artifact", "table", "lineage", "request", "dagster", "log", "file", "database", "source", "export")
PLANNED, DONE, OPEN = "planned", "done", "open"
STATES = (PLANNED, DONE, OPEN)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing and what becomes of it.

    Attributes:
        kind: a word of ``KINDS``.
        where: name of the artefact, table, file or folder (below the state folder unless it is yours).
        part: of a table, the partition.
        asset: the asset whose result it is; "" of what no asset made.
        action: see ``ACTIONS``.
        why: a sentence, for people.
        examples: how many of the request's examples it holds by id; 0 where nobody can count them.
        note: what the executor has to know besides, plain data.
    """

    kind: str
    where: str
    action: Action
    why: str
    part: dict[str, Any] = field(default_factory=dict)
    asset: str = ""
    examples: int = 0
    note: dict[str, Any] = field(default_factory=dict)


def in_order(items: list[Item]) -> list[Item]:
    """Items in the order in which they are carried out; equal plans give equal lists."""
    return sorted(items, key=lambda i: (KINDS.index(i.kind), i.asset, i.where, sorted(i.part.items()), i.action.value))
