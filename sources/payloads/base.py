"""What an ``ExampleSet`` asks of its examples' values, whatever they are: one class a kind, one row an example.

    Arrays   numbers or images of one shape         float32 (B, *shape), int64 (B, 1) for indexes of users
    Tokens   texts of different lengths             {"input_ids": int64 (B, T), "attention_mask": int64 (B, T)}
    Graph    nodes that share one list of edges     {"x": float32 (V, D), "edge_index": int64 (2, E), "nodes": (B,)}
    Pairs    two payloads an example                the first one's inputs, or both of them under their names

Rows are positions (a slice, an int array or a bool mask), never ids. A payload is immutable: ``take`` gives another one
and reads nothing from disk. Every full pass goes by ``blocks``, so that its memory is bounded whatever the number of
examples. Not a loader: batches, shuffling and devices belong to the recipes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sources.rows import Rows

Values = NDArray[Any] | dict[str, NDArray[Any]]
Selection = slice | NDArray[Any]


@dataclass(frozen=True, eq=False)
class Affine:
    """How stored numbers become what a model sees: (values - center) * scale, in float32.

    Attributes:
        center, scale: float32, broadcast over one example.
    """

    center: NDArray[np.float32]
    scale: NDArray[np.float32]

    @cached_property
    def _moves(self) -> bool:
        return bool(np.any(self.center))

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The values, changed in place."""
        if self._moves:
            values -= self.center
        values *= self.scale
        return values


class Part(NamedTuple):
    """One array of a payload file, given block by block: type, shape, and what walks through it once."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[NDArray[Any]]]


class Fault(NamedTuple):
    """What makes examples unfit, and which: bool (N,)."""

    message: str
    rows: NDArray[np.bool_]


class Payload(ABC):
    """N examples of one kind.

    Attributes:
        kind: its word in payload files.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Payload]]] = {}

    def __init_subclass__(cls) -> None:
        Payload.kinds[cls.kind] = cls

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(N, *shape): what one example looks like to people and to a built-in network."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Of the stored values."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the examples would take in memory."""

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def take(self, rows: NDArray[Any]) -> Any:
        """These examples, in this order, as ``ExampleSet.x`` holds them."""

    def only(self, rows: NDArray[Any]) -> Any:
        """These examples and nothing of the others: what a model that must not see the others may be trained on."""
        return self.take(rows)

    def without(self, rows: NDArray[Any]) -> Any:
        """All examples but these, and nothing of these."""
        return self.take(np.delete(np.arange(len(self)), rows))

    def among(self, other: Payload | None) -> Payload:
        """These examples, and of what they share with others only what they share with those of ``other``; this very
        payload where they share nothing."""
        return self

    @abstractmethod
    def inputs(self, rows: Selection, affine: Affine) -> Values:
        """What a model sees of these rows, in fresh memory."""

    def targets(self, rows: Selection, affine: Affine) -> Any:
        """What an answer is compared with, in fresh memory; None where the payload holds no targets of its own."""
        return None

    @property
    def numbers(self) -> NDArray[Any] | Rows | None:
        """(N, ...) what center and scale are fitted to; None where there is nothing to standardise."""
        return None

    @property
    def shared(self) -> Mapping[str, str]:
        """SHA-256 by name of what examples share and no content hash covers; part of the data digest."""
        return {}

    @abstractmethod
    def blocks(self) -> Iterator[slice]:
        """Consecutive slices of bounded size that cover every row."""

    @abstractmethod
    def row_bytes(self, rows: slice) -> list[bytes]:
        """What each example is, byte for byte, for its content hash and its id; the same on every machine."""

    @abstractmethod
    def check(self) -> None:
        """Refuse what can be told from types and shapes alone.

        Raises:
            DataError: says what is allowed.
        """

    def faults(self, affine: Affine, *, labelled: bool) -> Iterator[Fault]:
        """What makes examples unfit, in one pass of bounded memory.

        Args:
            affine: of the inputs.
            labelled: labels are the targets, and not what ``targets`` gives.
        """
        return iter(())

    # -- files: see sources.payloads.files ------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """What is not an array of it, JSON-able."""
        return {}

    @abstractmethod
    def parts(self) -> dict[str, Part]:
        """Its arrays by name, of these examples alone."""

    @classmethod
    @abstractmethod
    def from_parts(cls, arrays: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> Self:
        """What ``parts`` and ``settings`` were of; the arrays are memory maps."""


def positions(rows: Selection, num: int) -> NDArray[np.int64]:
    """The rows meant, int64 (B,) in [0, num); negative ones count from the end.

    Raises:
        IndexError: out of range.
    """
    if isinstance(rows, slice):
        return np.arange(*rows.indices(num), dtype=np.int64)
    chosen = np.asarray(rows)
    if chosen.dtype == bool:
        if chosen.shape != (num,):
            raise IndexError(f"a mask of shape {chosen.shape} for {num} rows")
        return np.flatnonzero(chosen)
    chosen = chosen.astype(np.int64, copy=False)
    if chosen.size and not (-num <= chosen.min() and chosen.max() < num):
        raise IndexError(f"row {chosen.min()}..{chosen.max()} is out of range for {num} rows")
    return np.where(chosen < 0, chosen + num, chosen)
