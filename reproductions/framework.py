"""A paper's claims, measured again at small scale: one function a method card, one verdict a claim.

@reproduction(card=26)
def data_diet(seed: int, progress: Progress) -> list[Claim]:
    ...
    return [at_least("AUROC of EL2N for planted label noise, epoch 3", auroc, 0.97)]

run(26, seed=3)   # {"card": 26, "seed": 3, "passed": True, "wall_s": 41.2, "claims": [{...}]}

A claim is met by the method on any seed; what needs a lucky one is not a claim.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from contracts.errors import InvalidInput, NameTaken, UnknownName
from contracts.progress import Progress, silent

Reproduction = Callable[[int, Progress], Sequence["Claim"]]


@dataclass(frozen=True, slots=True)
class Claim:
    """One measured figure against its threshold.

    Attributes:
        name: what was measured, in words, unique within the card.
        measured: the figure.
        threshold: what it has to reach (``>=``) or not to exceed (``<=``).
        direction: ">=" or "<=".
    """

    name: str
    measured: float
    threshold: float
    direction: Literal[">=", "<="]

    def __post_init__(self) -> None:
        if self.direction not in (">=", "<="):
            raise InvalidInput(f"claim {self.name!r}: direction {self.direction!r} is not '>=' or '<='")
        if not math.isfinite(self.threshold):
            raise InvalidInput(f"claim {self.name!r}: threshold {self.threshold} is not finite")

    @property
    def passed(self) -> bool:
        """False as well when the figure is NaN: what could not be measured is not met."""
        return self.measured >= self.threshold if self.direction == ">=" else self.measured <= self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; a figure that is not finite becomes null."""
        return {
            "name": self.name,
            "measured": self.measured if math.isfinite(self.measured) else None,
            "threshold": self.threshold,
            "direction": self.direction,
            "passed": self.passed,
        }


def at_least(name: str, measured: float, threshold: float) -> Claim:
    """The claim ``measured >= threshold``.

    >>> at_least("AUROC", 0.98, 0.97).passed
    True
    """
    return Claim(name, float(measured), float(threshold), ">=")


def at_most(name: str, measured: float, threshold: float) -> Claim:
    """The claim ``measured <= threshold``.

    >>> at_most("error", float("nan"), 0.1).passed
    False
    """
    return Claim(name, float(measured), float(threshold), "<=")


_CARDS: dict[int, Reproduction] = {}


def reproduction(*, card: int) -> Callable[[Reproduction], Reproduction]:
    """Decorator: register ``function(seed, progress) -> claims`` as the reproduction of a method card."""

    def register(function: Reproduction) -> Reproduction:
        if card in _CARDS:
            raise NameTaken(f"card {card} is already reproduced by {_CARDS[card].__module__}")
        _CARDS[card] = function
        return function

    return register


def cards() -> tuple[int, ...]:
    """The cards that have a reproduction, ascending."""
    return tuple(sorted(_CARDS))


def run(card: int, seed: int, progress: Progress = silent) -> dict[str, Any]:
    """Measure the claims of one card.

    Args:
        card: number of the method card.
        seed: root of every random choice of the run, 0 <= seed < 2**31.
        progress: told how far the run is.

    Returns:
        ``{card, seed, passed, wall_s, claims: [{name, measured, threshold, direction, passed}]}``, JSON-able;
        ``passed`` is True only when there is a claim and every claim passed.

    Raises:
        UnknownName: no reproduction of that card; lists those there are.
        InvalidInput: seed out of range.
    """
    if card not in _CARDS:
        raise UnknownName("reproduction of card", card, map(str, _CARDS))
    if not 0 <= seed < 2**31:
        raise InvalidInput(f"seed = {seed} is outside its allowed range: >= 0 and < 2**31")
    start = time.perf_counter()
    claims = list(_CARDS[card](seed, progress))
    return {
        "card": card,
        "seed": seed,
        "passed": bool(claims) and all(claim.passed for claim in claims),
        "wall_s": round(time.perf_counter() - start, 3),
        "claims": [claim.to_dict() for claim in claims],
    }
