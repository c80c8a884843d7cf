"""Which groups of a hierarchy of totals must not be shown, so that no small group can be read off or subtracted.

    primary        a group of fewer than k people, or one that is refused for another reason
    subtree        whatever lies below a hidden group: its parts would add up to it
    complementary  where parts of a shown total are hidden, total - shown parts = r is what is hidden of it; so further
                   parts are hidden, the smallest first, until these hold a group that could be shown by itself, r is 2k
                   or more, and k / 2 sizes remain possible for the small ones

The last two are against a reader who knows these rules. Of p small groups and j others that are no larger than the
smallest one shown, m people, the small ones have between max(p, r - j m) and min(p (k - 1), r - j k) people together:
with r = k + 1, p = j = 1, it would be 1. Cell suppression as in Hundepool et al., Statistical Disclosure Control
(2012), section 4.4, and minimality as in Wong et al. (VLDB 2007), for trees of totals, in which each family of parts
can be treated by itself. It is not for tables with totals in two directions, and says nothing of what two publications
tell together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from contracts.errors import InvalidInput

SMALLEST_K = 5  # below it, a group is hardly a crowd


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A group that a table would show.

    Attributes:
        key: its own, unique.
        parent: key of the group that it is a part of; None for a whole.
        family: of several ways to divide the parent, which: parts of one family do not overlap and are all of it.
        units: people in it (1 or more).
    """

    key: int
    parent: int | None
    family: str
    units: int


def hidden(groups: Sequence[Group], k: int, refused: Collection[int] = ()) -> frozenset[int]:
    """Keys of the groups that must not be shown.

    Args:
        k: the fewest people that a shown group may have, 5 or more.
        refused: keys of groups that must not be shown, nor be had by subtraction, whatever their size.

    Raises:
        InvalidInput: k is below 5, a key is there twice, or a parent is not among the groups.
    """
    if k < SMALLEST_K:
        raise InvalidInput(f"k = {k}: groups below {SMALLEST_K} people are never shown; use {SMALLEST_K} or more")
    keys = {group.key for group in groups}
    if len(keys) < len(groups) or any(g.parent is not None and g.parent not in keys for g in groups):
        raise InvalidInput("groups need keys of their own, and parents among them")
    primary = {group.key for group in groups if group.units < k} | (keys & set(refused))
    families: dict[tuple[int, str], list[Group]] = defaultdict(list)
    for group in groups:
        if group.parent is not None:
            families[group.parent, group.family].append(group)
    out = set(primary)
    while True:
        before = len(out)
        for (parent, _), parts in families.items():
            out |= {part.key for part in parts} if parent in out else _complement(parts, out, primary, k)
        if len(out) == before:
            return frozenset(out)


def _complement(parts: Sequence[Group], out: set[int], primary: set[int], k: int) -> set[int]:
    """Keys of further parts to hide, where some of a family are hidden under a total that is shown."""
    gone = [part for part in parts if part.key in out]
    left = sorted((part for part in parts if part.key not in out), key=lambda part: (part.units, part.key))
    added: set[int] = set()
    while gone and left and _tells(gone, left[0].units, primary, k):
        gone.append(left.pop(0))
        added.add(gone[-1].key)
    return added


def _tells(gone: Sequence[Group], next_units: int, primary: set[int], k: int) -> bool:
    """Whether the people in the hidden parts together say too much of the small ones among them."""
    total = sum(part.units for part in gone)
    others = [part for part in gone if part.key not in primary]
    if not others or total < 2 * k:
        return True
    small = [part for part in gone if part.units < k]
    if len(small) + len(others) < len(gone):
        return False  # a large one that was refused: of no known size
    fewest = max(len(small), total - len(others) * next_units)
    most = min(len(small) * (k - 1), total - len(others) * k)
    return most - fewest + 1 < k / 2
