"""Numbers and images of one shape: an ndarray, a memory map, or ``Rows``; and what makes a payload of anything.

    images (N, C, H, W) uint8 or float32, features (N, D) float32     -> float32 (B, *shape), through the affine
    indexes of users (N, 1) int64                                     -> as they are: they name rows and are no numbers

``ExampleSet.x`` stays the plain array; ``payload_of`` wraps it where it is asked for something.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError
from sources.payloads.base import Affine, Fault, Part, Payload, Selection
from sources.rows import Rows, blocks, gather, select

_KINDS = {("uint8", 4), ("float32", 4), ("float32", 2)}


@dataclass(frozen=True, eq=False)
class Arrays(Payload):
    """One array (N, *shape), or rows of several."""

    kind: ClassVar[str] = "array"
    x: NDArray[Any] | Rows

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.x.dtype

    @property
    def nbytes(self) -> int:
        return int(self.x.nbytes)

    @property
    def numbers(self) -> NDArray[Any] | Rows:
        return self.x

    @property
    def _are_indexes(self) -> bool:
        return self.x.dtype == np.int64

    def take(self, rows: NDArray[Any]) -> NDArray[Any] | Rows:
        return select(self.x, rows)

    def inputs(self, rows: Selection, affine: Affine) -> NDArray[Any]:
        block = gather(self.x, rows)
        # Gathered positions are fresh memory already; a slice is a view and must not be written to.
        if self._are_indexes:
            return block.copy() if isinstance(rows, slice) else block
        return affine(block.astype(np.float32, copy=isinstance(rows, slice)))

    def blocks(self) -> Iterator[slice]:
        return blocks(self.x)

    def row_bytes(self, rows: slice) -> list[bytes]:
        """Numbers in C order, little-endian, -0.0 as 0.0."""
        block = np.ascontiguousarray(self.x[rows])
        if block.dtype.kind == "f":
            block = block + block.dtype.type(0)
        block = block.astype(block.dtype.newbyteorder("<"), copy=False)
        return [row.tobytes() for row in block]

    def check(self) -> None:
        kind = (self.x.dtype.name, self.x.ndim)
        if kind not in _KINDS or 0 in self.shape[1:]:
            raise DataError(
                f"x is {kind[0]} {self.shape}; "
                "allowed are images (N, C, H, W) uint8 or float32, and features (N, D) float32"
            )

    def faults(self, affine: Affine, *, labelled: bool = True) -> Iterator[Fault]:
        if self.x.dtype.kind in "iu":
            return
        bad = np.zeros(len(self), bool)
        for rows in self.blocks():
            with np.errstate(over="ignore", invalid="ignore"):
                # The scaled value is not finite when the raw one is not, and also when scaling overflows.
                bad[rows] = ~np.isfinite(self.inputs(rows, affine)).reshape(rows.stop - rows.start, -1).all(axis=1)
        yield Fault("values are NaN or infinite (as scaled float32)", bad)

    def parts(self) -> dict[str, Part]:
        return {"x": part_of(self.x)}

    @classmethod
    def from_parts(cls, arrays: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> Self:
        return cls(arrays["x"])


def part_of(x: NDArray[Any] | Rows) -> Part:
    """An array, or rows of several, as a part of a payload file."""
    return Part(x.dtype, tuple(x.shape), lambda: (np.asarray(x[rows]) for rows in blocks(x)))


def payload_of(x: Any) -> Payload:
    """What ``ExampleSet.x`` holds, as a payload.

    Raises:
        DataError: neither an array nor a payload.
    """
    if isinstance(x, Payload):
        return x
    if isinstance(x, (np.ndarray, Rows)):
        return Arrays(x)
    raise DataError(f"values of type {type(x).__name__} are no examples: arrays, Rows, Tokens, Graph and Pairs are")


def stored(payload: Payload) -> Any:
    """What ``ExampleSet.x`` holds of a payload: the array itself, or the payload."""
    return payload.x if isinstance(payload, Arrays) else payload
