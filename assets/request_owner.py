"""Whose examples a request means: the owner as the data spell the name.

    exact spelling           that owner
    else one spelling that   that owner, and it is said how the data spell the name: the token is made of that
    reads the same           spelling, so tokens of earlier states stay
    else                     refused; names that are nearly it are listed, as are several that read the same

Names are never merged: what differs in more than Unicode's canonical forms and spaces around it may be somebody else.
Other spellings are named also where the owner is found, for the same person may stand in the data twice.
"""

from __future__ import annotations

import difflib
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from contracts.errors import DataError
from contracts.identity import nearly_same, same_text

if TYPE_CHECKING:
    from sources.example_set import ExampleSet

MOST = 3  # names that a sentence lists


class Owner(NamedTuple):
    """An owner: the name as the data spell it, and what the operator should know, in sentences."""

    name: str
    said: tuple[str, ...]


def owner_in(data: ExampleSet, asked: str) -> Owner:
    """The one owner of examples whom ``asked`` names.

    Raises:
        DataError: it names nobody, or several spellings in the data read the same and none is ``asked`` itself; says
            which names come near.
    """
    names, counts = np.unique(data.owner, return_counts=True)
    num = {str(name): int(n) for name, n in zip(names.tolist(), counts.tolist(), strict=True) if name}
    twins = [name for name in num if same_text(name) == same_text(asked)]
    if asked not in num and len(twins) > 1:
        raise DataError(
            f"{asked!a} is spelled in {len(twins)} ways in {data.name}: {_listed(twins, num)}; they read the same but "
            "are different owners there: register a request for each, spelled as here"
        )
    if asked not in num and not twins:
        raise DataError(f"no example of {data.name} belongs to {asked!r}; {_near(asked, list(num))}")
    name = asked if asked in num else twins[0]
    said = [] if name == asked else [f"the data spell this owner {name!a}"]
    others = [other for other in num if other != name and nearly_same(other) == nearly_same(name)]
    if others:
        said.append(
            f"not in this request, though spelled nearly so: {_listed(others, num)}. If it is the same person, "
            "register a request for each"
        )
    return Owner(name, tuple(said))


def _near(asked: str, names: list[str]) -> str:
    """Names that come near, as the end of a sentence."""
    number = _number(asked)
    if number is not None and (same := [name for name in names if _number(name) == number]):
        return f"did you mean {' or '.join(map(repr, same[:MOST]))}? The data spell the number so"
    folded = {nearly_same(name): name for name in names}
    close = [folded[found] for found in difflib.get_close_matches(nearly_same(asked), folded, n=MOST)]
    if not close:
        return f"the data have {len(names)} owners"
    return f"did you mean {' or '.join(map(repr, close))}?"


def _number(name: str) -> Decimal | None:
    """What a name of digits is as a number: 1.0 and 1, which a column of floats and whoever reads it spell apart."""
    try:
        number = Decimal(name)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _listed(names: list[str], num: dict[str, int]) -> str:
    """Names in ASCII, where what reads the same is told apart, with their numbers of examples."""
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(f"{name!a} ({num[name]:,} examples)" for name in names[:MOST]) + more
