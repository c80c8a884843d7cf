"""Two payloads an example: a noisy picture and its clean one, a chosen answer and a rejected one.

    target = True    inputs are the first one's, targets the second one's: restoration, translation
    target = False   inputs are both, under their names: {"noisy": ..., "clean": ...} for arrays, for payloads that are
                     called with several arrays {"chosen_input_ids": ..., "rejected_input_ids": ...}; targets likewise

Center and scale are fitted to the first and used for both, so that the two are on one scale.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError
from sources.payloads import arrays as plain
from sources.payloads.base import Affine, Fault, Part, Payload, Selection, Values
from sources.rows import Rows

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, eq=False)
class Pairs(Payload):
    """N pairs.

    Attributes:
        first, second: an array, ``Rows`` or another payload, N examples each.
        names: of the two, lower case.
        target: whether the second is what an answer is compared with.
    """

    kind: ClassVar[str] = "pairs"
    first: Any
    second: Any
    names: tuple[str, str] = ("first", "second")
    target: bool = False

    def __repr__(self) -> str:
        return f"Pairs({len(self)} x {self.names[0]}, {self.names[1]})"

    @property
    def both(self) -> tuple[Payload, Payload]:
        """The two as payloads."""
        return plain.payload_of(self.first), plain.payload_of(self.second)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *shape of the first)."""
        return plain.payload_of(self.first).shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return plain.payload_of(self.first).dtype

    @property
    def nbytes(self) -> int:
        return sum(payload.nbytes for payload in self.both)

    @property
    def numbers(self) -> NDArray[Any] | Rows | None:
        return plain.payload_of(self.first).numbers

    @property
    def shared(self) -> Mapping[str, str]:
        pairs = zip(self.names, self.both, strict=True)
        return {f"{name}/{key}": value for name, payload in pairs for key, value in payload.shared.items()}

    def take(self, rows: NDArray[Any]) -> Pairs:
        first, second = (payload.take(rows) for payload in self.both)
        return Pairs(first, second, names=self.names, target=self.target)

    def only(self, rows: NDArray[Any]) -> Pairs:
        first, second = (payload.only(rows) for payload in self.both)
        return Pairs(first, second, names=self.names, target=self.target)

    def inputs(self, rows: Selection, affine: Affine) -> Values:
        first, second = self.both
        if self.target:
            return first.inputs(rows, affine)
        return self._named([first.inputs(rows, affine), second.inputs(rows, affine)])

    def targets(self, rows: Selection, affine: Affine) -> Any:
        if self.target:
            second = plain.payload_of(self.second)
            own = second.targets(rows, affine)
            return second.inputs(rows, affine) if own is None else own
        values = [payload.targets(rows, affine) for payload in self.both]
        return None if all(v is None for v in values) else self._named(values)

    def _named(self, values: list[Any]) -> dict[str, NDArray[Any]]:
        named: dict[str, NDArray[Any]] = {}
        for name, value in zip(self.names, values, strict=True):
            named |= {f"{name}_{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        return named

    def blocks(self) -> Iterator[slice]:
        """The blocks of both at once: wherever either ends one."""
        first, second = ([rows.stop for rows in payload.blocks()] for payload in self.both)
        start = 0
        for stop in sorted({*first, *second}):
            yield slice(start, stop)
            start = stop

    def row_bytes(self, rows: slice) -> list[bytes]:
        """Length of the first (8 bytes, little-endian), the first, the second."""
        first, second = (payload.row_bytes(rows) for payload in self.both)
        return [len(a).to_bytes(8, "little") + a + b for a, b in zip(first, second, strict=True)]

    def check(self) -> None:
        if len(set(self.names)) < 2 or not all(_NAME.fullmatch(name) for name in self.names):
            raise DataError(
                f"pairs: names {self.names!r} must be two different words of a-z, 0-9 and _, a letter first"
            )
        first, second = self.both
        if len(first) != len(second):
            raise DataError(f"pairs: {len(first)} of {self.names[0]}, {len(second)} of {self.names[1]}")
        for name, payload in zip(self.names, self.both, strict=True):
            try:
                payload.check()
            except DataError as error:
                raise DataError(f"pairs: {name}: {error}") from None
        if first.numbers is not None and second.numbers is not None and first.shape != second.shape:
            raise DataError(
                f"pairs: {self.names[0]} has examples of shape {first.shape[1:]}, "
                f"{self.names[1]} of {second.shape[1:]}; one center and scale serve both"
            )

    def faults(self, affine: Affine, *, labelled: bool = True) -> Iterator[Fault]:
        for name, payload in zip(self.names, self.both, strict=True):
            for fault in payload.faults(affine, labelled=labelled):
                yield Fault(f"{name}: {fault.message}", fault.rows)

    @property
    def settings(self) -> dict[str, Any]:
        kinds = [{"kind": payload.kind, **payload.settings} for payload in self.both]
        return {"names": list(self.names), "target": self.target, "payloads": kinds}

    def parts(self) -> dict[str, Part]:
        pairs = zip(self.names, self.both, strict=True)
        return {f"{name}/{key}": part for name, payload in pairs for key, part in payload.parts().items()}

    @classmethod
    def from_parts(cls, arrays: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> Self:
        names = tuple(map(str, settings["names"]))
        both = []
        for name, inner in zip(names, settings["payloads"], strict=True):
            own = {key.removeprefix(f"{name}/"): v for key, v in arrays.items() if key.startswith(f"{name}/")}
            both.append(plain.stored(Payload.kinds[inner["kind"]].from_parts(own, inner)))
        return cls(both[0], both[1], names=(names[0], names[1]), target=bool(settings["target"]))
