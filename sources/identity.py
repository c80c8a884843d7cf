"""Who an example is: the hash of its content, and its id where the data bring none.

    content hash = SHA-256(row)
    id           = first 53 bits of BLAKE2b(row | label | owner | given split), 53 so that JSON and JavaScript keep them
                 whole

So an id does not depend on where a row stands or on what else is in the file: it stays when rows are moved, added or
taken out, and another label, owner or split makes another example. Rows alike in all four are numbered, and the number
of the second and later ones enters their ids; any of them may be taken out for any other.
An id is a hash of the raw row, not of its stored content hash: whose data a row is cannot be guessed from the tables
alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import polars as pl

from contracts.errors import DataError
from sources.payloads.arrays import payload_of
from sources.payloads.base import Payload
from sources.rows import Rows

_BITS = 53
_PERSON = b"example id"
_BLOCK_ROWS = 512


@dataclass(frozen=True, slots=True)
class Content:
    """What each example is, said without the other examples.

    Attributes:
        values: (N, *) numbers, of any dtype, or another payload; None when texts say it all.
        texts: (N,) str, what is not a number (the categories of a row, joined), or a sequence that makes them as they
            are asked for; None when there is nothing.
    """

    values: np.ndarray | Rows | Payload | None = None
    texts: pl.Series | Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.texts if self.values is None else self.values)  # type: ignore[arg-type]

    def rows(self) -> Iterator[bytes]:
        """Each row's bytes: those of its payload (numbers in C order, little-endian, -0.0 as 0.0); then the text in
        UTF-8."""
        values = None if self.values is None else payload_of(self.values)
        for rows in _slices(len(self)) if values is None else values.blocks():
            numbers = [b""] * (rows.stop - rows.start) if values is None else values.row_bytes(rows)
            if self.texts is None:
                yield from numbers
            else:
                texts = self.texts[rows]
                yield from (n + t.encode("utf-8") for n, t in zip(numbers, texts, strict=True))

    def hashes(self) -> np.ndarray:
        """(N,) "<U64": SHA-256 of each row, in hex."""
        out = np.empty(len(self), "<U64")
        for at, row in enumerate(self.rows()):
            out[at] = hashlib.sha256(row).hexdigest()
        return out

    def ids(self, *also: np.ndarray) -> np.ndarray:
        """(N,) int64 in [0, 2**53), unique; see the module.

        Args:
            also: (N,) each, what makes an example another one besides its content: label, owner, given split.

        Raises:
            DataError: two different examples got one id: once in 10,000 data sets of a million examples.
        """
        columns = [column.astype(str).tolist() for column in also]
        rests = ("\0".join(rest).encode("utf-8") for rest in zip(*columns, strict=True)) if also else repeat(b"")
        first = _numbers(row + b"\0" + rest for row, rest in zip(self.rows(), rests, strict=False))
        order = np.argsort(first, kind="stable")
        new = np.r_[True, first[order][1:] != first[order][:-1]] if len(order) else np.empty(0, bool)
        count = np.arange(len(order)) - np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
        again = order[~new]
        ids = first.copy()
        ids[again] = _numbers(
            f"{i}:{k}".encode() for i, k in zip(first[again].tolist(), count[~new].tolist(), strict=True)
        )
        if len(np.unique(ids)) != len(ids):
            raise DataError("two different examples got the same id by chance: give the data a column of ids")
        return ids


def _numbers(texts: Iterator[bytes]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(t, digest_size=8, person=_PERSON).digest() for t in texts)
    return (np.frombuffer(digests, "<u8") >> np.uint64(64 - _BITS)).astype(np.int64)


def _slices(num: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK_ROWS, num)) for start in range(0, num, _BLOCK_ROWS))
