"""What audited models say of single tokens, for the attacks on language models that read more than a mean.

    target (T, N, L, 3)  log p of the token, and mean and standard deviation of log p over the model's own next token;
                         NaN where a token does not count (``tasks.signals.token_statistics``), float32
    zlib_bytes (N,)      the text packed by zlib

    lowest_mean(v, k)    mean of the max(1, floor(k |C|)) lowest values among the counted tokens C of an example

In an audit they are read at each model's own temperature on the population points (``temperature``), so that a
temperature on all logits of an audited model moves none of these attacks. They are on no scale of reference models.

Shapes: T audited models, N examples, L tokens of the longest.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError, NotApplicable
from sources.example_set import ExampleSet
from tasks.base import require

Float = NDArray[np.float64]
ZLIB_BYTES = "zlib_bytes"


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenReadings:
    """See the module."""

    target: NDArray[np.float32]
    zlib_bytes: NDArray[np.int64]

    def check(self, *, models: int, ids: NDArray[np.int64]) -> None:
        """Raise :class:`DataError` unless these are readings of that many models on these examples, each with a token
        that counts; names the examples."""
        num = len(ids)
        if self.target.ndim != 4 or self.target.shape[:2] != (models, num) or self.target.shape[3] != 3:
            raise DataError(f"tokens: target is {self.target.shape}, not ({models}, {num}, tokens, 3)")
        if self.zlib_bytes.shape != (num,) or (self.zlib_bytes < 1).any():
            raise DataError(f"tokens: zlib_bytes must be ({num},), each >= 1")
        nothing = ~self.counted.any(axis=1)
        if nothing.any():
            raise DataError("tokens: no token counts", example_ids=ids[nothing])
        broken = (np.isnan(self.target).any(axis=3) == self.counted).any(axis=(0, 2))
        if broken.any():
            raise DataError("tokens: models were read on different tokens", example_ids=ids[broken])

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(N, L) the tokens that count."""
        return ~np.isnan(self.target[0, :, :, 0])

    @property
    def loss(self) -> Float:
        """(T, N) mean NLL of the counted tokens, nats."""
        log_p = self.target[..., 0].astype(np.float64)
        mean: Float = -np.nansum(log_p, axis=2) / self.counted.sum(axis=1)
        return mean

    def lowest_mean(self, values: Float, share: float) -> Float:
        """(N,) mean of the lowest ``share`` of the values (N, L) of each example, NaN where nothing counts.

        Args:
            share: in (0, 1]; at least one value is taken.
        """
        many = np.maximum(1, (share * self.counted.sum(axis=1)).astype(np.int64))
        sums = np.cumsum(np.nan_to_num(np.sort(values, axis=1)), axis=1)  # NaN is sorted to the end
        mean: Float = sums[np.arange(len(sums)), many - 1] / many
        return mean

    def take(self, rows: NDArray[np.int64]) -> TokenReadings:
        """The examples at these positions, in this order."""
        return TokenReadings(target=self.target[:, rows], zlib_bytes=self.zlib_bytes[rows])


def zlib_bytes(data: ExampleSet) -> NDArray[np.int64]:
    """(N,) how many bytes zlib needs for each text: the column ``zlib_bytes`` of the data, which a source makes of the
    characters; without it, of the token numbers, in two or four bytes each, as the characters are not kept.

    Raises:
        NotApplicable: the examples are no sequences of tokens.
        DataError: the column holds something else than numbers >= 1.
    """
    require(data, "the zlib ratio", "tokens")
    known = data.columns.get(ZLIB_BYTES)
    if known is not None:
        if known.dtype != np.int64 or (known < 1).any():
            raise DataError(f"{data.name}: column {ZLIB_BYTES!r} must hold whole numbers >= 1")
        return known
    if not hasattr(data.x, "texts"):
        raise NotApplicable(f"{data.name} holds no flat tokens that could be packed")
    width = "<u2" if data.x.vocab_size <= 2**16 else "<u4"
    found = np.empty(len(data), np.int64)
    for rows in data.x.blocks():
        flat, _, lengths = data.x.texts(rows)
        ends = np.cumsum(lengths)
        parts = np.split(flat.astype(width), ends[:-1])
        found[rows] = [len(zlib.compress(part.tobytes())) for part in parts]
    return found
