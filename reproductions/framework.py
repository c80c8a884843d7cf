"""A paper's claims, measured again at small scale: one function a paper, one verdict a claim.

@reproduction(card=26, name="data_diet", paper="Paul et al. 2021")
def data_diet(seed: int, progress: Progress) -> list[Claim]:
    ...
    return [at_least("AUROC of EL2N for planted label noise, epoch 3", auroc, 0.97)]

run("data_diet", seed=3)   # {"card": 26, "name": "data_diet", "seed": 3, "passed": True, "wall_s": 41.2, "claims":
                           [{...}]}

A claim is met by the method on any seed; what needs a lucky one is not a claim.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from contracts.errors import InvalidInput, NameTaken, UnknownName
from contracts.identity import check_name
from contracts.progress import Progress, silent

Measure = Callable[[int, Progress], Sequence["Claim"]]


@dataclass(frozen=True, slots=True)
class Claim:
    """One measured figure against its threshold.

    Attributes:
        name: what was measured, in words, unique within the paper.
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


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A registered function that measures a paper's claims.

    Attributes:
        name: short name of the paper or of its method, which is the name of the file.
        paper: authors and year.
        card: the number under which it is also known.
        function: ``(seed, progress) -> claims``.
    """

    name: str
    paper: str
    card: int
    function: Measure


_KNOWN: dict[str, Reproduction] = {}
_NOT_ONE = {"framework", "__main__"}


def mean_of(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every figure over runs that have the same ones.

    >>> mean_of([{"ua": 1.0}, {"ua": 2.0}])
    {'ua': 1.5}
    """
    return {name: float(np.mean([figures[name] for figures in each])) for name in each[0]}


def reproduction(*, card: int, name: str, paper: str) -> Callable[[Measure], Measure]:
    """Decorator: register ``function(seed, progress) -> claims`` as the reproduction of a paper.

    Raises:
        NameTaken: its name or number is another's.
    """
    check_name(name, kind="reproduction")

    def register(function: Measure) -> Measure:
        for known in _KNOWN.values():
            if known.name == name or known.card == card:
                raise NameTaken(f"{name} ({card}) is already reproduced by {known.function.__module__}")
        _KNOWN[name] = Reproduction(name, paper, card, function)
        return function

    return register


def reproductions() -> tuple[Reproduction, ...]:
    """All that are in this folder, by number."""
    for found in pkgutil.iter_modules(importlib.import_module(__package__ or "").__path__):
        if found.name not in _NOT_ONE:
            importlib.import_module(f"{__package__}.{found.name}")
    return tuple(sorted(_KNOWN.values(), key=lambda known: known.card))


def find(which: str | int) -> Reproduction:
    """The reproduction of that short name ("memorization") or number (15, "15", "03").

    Raises:
        UnknownName: there is none; lists those there are.
    """
    every, asked = reproductions(), str(which).strip()
    number = int(asked) if asked.isdecimal() else None
    for known in every:
        if asked == known.name or number == known.card:
            return known
    raise UnknownName("reproduction", asked, [f"{known.name} ({known.card})" for known in every])


def run(which: str | int, seed: int, progress: Progress = silent) -> dict[str, Any]:
    """Measure the claims of one paper.

    Args:
        which: short name or number, as :func:`find` takes it.
        seed: root of every random choice of the run, 0 <= seed < 2**31.
        progress: called with how far the run is.

    Returns:
        ``{card, name, seed, passed, wall_s, claims: [{name, measured, threshold, direction, passed}]}``, JSON-able;
        ``passed`` is True only when there is a claim and every claim passed.

    Raises:
        UnknownName: no such reproduction; lists those there are.
        InvalidInput: seed out of range.
    """
    known = find(which)
    if not 0 <= seed < 2**31:
        raise InvalidInput(f"seed = {seed} is outside its allowed range: >= 0 and < 2**31")
    start = time.perf_counter()
    claims = list(known.function(seed, progress))
    return {
        "card": known.card,
        "name": known.name,
        "seed": seed,
        "passed": bool(claims) and all(claim.passed for claim in claims),
        "wall_s": round(time.perf_counter() - start, 3),
        "claims": [claim.to_dict() for claim in claims],
    }
