"""A long array, or many texts, in a file that nobody else sees: memory is bounded by the piece that is looked at.

The file has no name and is gone with the last reference to the array (``tempfile.TemporaryFile``, below ``$TMPDIR``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Spool:
    """Values of one dtype, one behind the other.

    Args:
        dtype: of the values; what is put in is cast to it.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self._dtype, self._size = np.dtype(dtype), 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - the array outlives every block

    def __len__(self) -> int:
        return self._size

    def put(self, values: NDArray[Any]) -> None:
        """Append values (n,)."""
        self._file.write(np.ascontiguousarray(values, self._dtype))
        self._size += len(values)

    def array(self) -> NDArray[Any]:
        """All of them, (L,), mapped and writable; nothing may be put in afterwards.

        >>> spool = Spool(np.int32)
        >>> spool.put(np.array([1, 2])), spool.put(np.array([3]))
        (None, None)
        >>> spool.array()
        array([1, 2, 3], dtype=int32)
        """
        self._file.flush()
        if not self._size:
            return np.empty(0, self._dtype)
        mapped = np.memmap(self._file, self._dtype, "r+", shape=(self._size,))
        self._file.close()  # the mapping holds the file
        return np.asarray(mapped)


class Texts(Sequence[str]):
    """Texts as UTF-8 in a spool; a slice of them is a list.

    >>> texts = Texts(["a", "", "bc"])
    >>> len(texts), texts[-1], texts[:2], list(texts)
    (3, 'bc', ['a', ''], ['a', '', 'bc'])
    """

    def __init__(self, texts: Iterable[str]) -> None:
        spool, ends = Spool(np.uint8), [0]
        for text in texts:
            spool.put(np.frombuffer(text.encode("utf-8"), np.uint8))
            ends.append(len(spool))
        self._bytes, self._ends = spool.array(), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, rows: int) -> str: ...
    @overload
    def __getitem__(self, rows: slice) -> list[str]: ...
    def __getitem__(self, rows: int | slice) -> str | list[str]:
        if isinstance(rows, slice):
            return [self[row] for row in range(*rows.indices(len(self)))]
        at = range(len(self))[rows]
        return self._bytes[self._ends[at] : self._ends[at + 1]].tobytes().decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))
