"""Texts as tokens, of different lengths, in three flat arrays that may be memory maps.

    flat    (L,)  int32    the tokens of all texts, one text behind the other
    offsets (N+1,) int64   text i is flat[offsets[i] : offsets[i + 1]]
    counted (L,)  uint8    1 where the token counts in the loss (an answer), 0 where it does not (a prompt)

    inputs   {"input_ids": int64 (B, T), "attention_mask": int64 (B, T)}, padded on the right to the batch's longest
    targets  int64 (B, T), the token itself, -100 where it does not count or is padding

The task shifts by one: a token is predicted from those before it, so the first of a text is never predicted, and a text
needs a counted token behind its first. ``take`` keeps an index; nothing is read but the rows that are asked for.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError
from sources import rows as row_arrays
from sources.payloads.base import Affine, Fault, Part, Payload, Selection, positions

NOT_COUNTED = -100  # the label that losses leave out, as in torch and transformers
_STEP = 4096  # rows whose lengths are looked at at a time
_TOKEN_BYTES = 16  # of one token in a block: a position, the token, the mark and its row


@dataclass(frozen=True, eq=False)
class Tokens(Payload):
    """N texts.

    Attributes:
        flat, offsets, counted: see the module.
        vocab_size: tokens lie in [0, vocab_size).
        pad: token that fills up a batch; it may be one that texts hold too, as attention_mask and targets leave it out.
        encoding: SHA-256 of the tokenizer and its vocabulary, "" when unknown; part of the data digest.
        index: int64 (N,), the texts of ``offsets`` that are meant; None for all of them.
    """

    kind: ClassVar[str] = "tokens"
    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]
    counted: NDArray[np.uint8]
    vocab_size: int
    pad: int = 0
    encoding: str = ""
    index: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        for name, dtype in (("flat", "int32"), ("offsets", "int64"), ("counted", "uint8")):
            given = getattr(self, name)
            if given.dtype != np.dtype(dtype) or given.ndim != 1:
                raise DataError(f"tokens: {name} is {given.dtype} {given.shape}, not {dtype} of one axis")
            object.__setattr__(self, name, np.asarray(given))  # drops the memmap subclass, not the mapping
        if len(self.counted) != len(self.flat):
            raise DataError(f"tokens: counted has {len(self.counted)} marks for {len(self.flat)} tokens")
        if not len(self.offsets):
            raise DataError("tokens: offsets is empty; N texts have N + 1 of them")
        if not 0 <= self.pad < self.vocab_size:
            raise DataError(f"tokens: pad = {self.pad} is outside 0..{self.vocab_size - 1} (vocab_size)")

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self.index is None else len(self.index)

    def __repr__(self) -> str:
        return f"Tokens({len(self)} texts, up to {self.shape[1]} of {self.vocab_size} tokens)"

    @cached_property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(N, tokens of the longest text)."""
        return len(self), max((int(lengths.max(initial=0)) for _, lengths in self._strides()), default=0)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.flat.dtype

    @property
    def nbytes(self) -> int:
        return 5 * self.num_tokens + 8 * (len(self) + 1)

    @cached_property
    def num_tokens(self) -> int:
        """Of all N texts together."""
        return sum(int(lengths.sum()) for _, lengths in self._strides())

    @property
    def shared(self) -> Mapping[str, str]:
        return {"encoding": self.encoding} if self.encoding else {}

    def take(self, rows: NDArray[Any]) -> Tokens:
        chosen = positions(rows, len(self))
        if self.index is not None:
            return dataclasses.replace(self, index=self.index[chosen])
        run = row_arrays.run_of(chosen)
        if run is not None and run.stop > run.start:
            return dataclasses.replace(self, offsets=self.offsets[run.start : run.stop + 1])
        return dataclasses.replace(self, index=chosen)

    def inputs(self, rows: Selection, affine: Affine | None = None) -> dict[str, NDArray[Any]]:
        flat, _, lengths = self.texts(rows)
        there = _within(lengths)
        ids = np.full(there.shape, self.pad, np.int64)
        ids[there] = flat
        return {"input_ids": ids, "attention_mask": there.astype(np.int64)}

    def targets(self, rows: Selection, affine: Affine | None = None) -> NDArray[np.int64]:
        flat, counted, lengths = self.texts(rows)
        there = _within(lengths)
        labels = np.full(there.shape, NOT_COUNTED, np.int64)
        labels[there] = np.where(counted != 0, flat.astype(np.int64), NOT_COUNTED)
        return labels

    def texts(self, rows: Selection) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.int64]]:
        """The tokens of these texts one behind the other, their marks, and the lengths: int32 (L,), uint8 (L,), int64
        (B,).
        """
        starts, lengths = self._spans(rows)
        if (starts[1:] == starts[:-1] + lengths[:-1]).all():
            run = slice(int(starts[0]), int(starts[-1] + lengths[-1])) if len(starts) else slice(0, 0)
            return self.flat[run], self.counted[run], lengths
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        at = np.repeat(starts, lengths) + within
        return self.flat[at], self.counted[at], lengths

    def blocks(self) -> Iterator[slice]:
        for start, lengths in self._strides():
            ends = np.cumsum(lengths + 1) * _TOKEN_BYTES
            begin, done = 0, 0
            while begin < len(lengths):
                stop = max(begin + 1, int(np.searchsorted(ends, done + row_arrays.BLOCK_BYTES, side="right")))
                yield slice(start + begin, start + stop)
                begin, done = stop, int(ends[stop - 1])

    def row_bytes(self, rows: slice) -> list[bytes]:
        """Number of tokens (8 bytes), tokens, marks; little-endian."""
        flat, counted, lengths = self.texts(rows)
        ends = np.cumsum(lengths).tolist()
        flat, counted = flat.astype("<i4"), counted.astype(np.uint8)
        return [
            (stop - start).to_bytes(8, "little") + flat[start:stop].tobytes() + counted[start:stop].tobytes()
            for start, stop in zip([0, *ends[:-1]], ends, strict=True)
        ]

    def check(self) -> None:
        first, last = int(self.offsets[0]), int(self.offsets[-1])
        if not 0 <= first <= last <= len(self.flat):
            raise DataError(f"tokens: offsets run from {first} to {last}, there are {len(self.flat)} tokens")
        for start in range(0, len(self.offsets) - 1, _STEP):
            some = self.offsets[start : start + _STEP + 1]
            if (some[1:] < some[:-1]).any():
                at = start + int(np.flatnonzero(some[1:] < some[:-1])[0])
                raise DataError(f"tokens: offsets fall behind text {at}: {self.offsets[at]}, {self.offsets[at + 1]}")

    def faults(self, affine: Affine | None = None, *, labelled: bool = False) -> Iterator[Fault]:
        outside, strange, read = (np.zeros(len(self), bool) for _ in range(3))
        for rows in self.blocks():
            flat, counted, lengths = self.texts(rows)
            of = np.repeat(np.arange(len(lengths)), lengths)
            first = np.zeros(len(flat), bool)
            first[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
            for found, bad in (
                (outside, (flat < 0) | (flat >= self.vocab_size)),
                (strange, counted > 1),
                (read, (counted != 0) & ~first),
            ):
                found[rows] = np.bincount(of[bad], minlength=len(lengths)) > 0
        yield Fault(f"tokens lie outside 0..{self.vocab_size - 1} (vocab_size)", outside)
        yield Fault("marks of what counts are neither 0 nor 1", strange)
        if labelled:
            yield Fault("texts without a token", np.concatenate([np.empty(0), *(n for _, n in self._strides())]) == 0)
        else:
            yield Fault("no token counts behind the first: there is nothing to predict", ~read)

    @property
    def settings(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "pad": self.pad, "encoding": self.encoding}

    def parts(self) -> dict[str, Part]:
        def offsets() -> Iterator[NDArray[Any]]:
            done = 0
            yield np.zeros(1, np.int64)
            for _, lengths in self._strides():
                yield done + np.cumsum(lengths)
                done += int(lengths.sum())

        def walk(which: int) -> Iterator[NDArray[Any]]:
            return (self.texts(rows)[which] for rows in self.blocks())

        size = (self.num_tokens,)
        return {
            "flat": Part(np.dtype(np.int32), size, lambda: walk(0)),
            "offsets": Part(np.dtype(np.int64), (len(self) + 1,), offsets),
            "counted": Part(np.dtype(np.uint8), size, lambda: walk(1)),
        }

    @classmethod
    def from_parts(cls, arrays: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> Self:
        return cls(
            arrays["flat"],
            arrays["offsets"],
            arrays["counted"],
            vocab_size=int(settings["vocab_size"]),
            pad=int(settings["pad"]),
            encoding=str(settings["encoding"]),
        )

    @classmethod
    def of(
        cls,
        texts: list[NDArray[np.int32]],
        counted: list[NDArray[np.uint8]] | None = None,
        *,
        vocab_size: int,
        pad: int = 0,
        encoding: str = "",
    ) -> Self:
        """From one array a text; every token counts where ``counted`` is not given.

        >>> texts = [np.array([5, 6, 7], np.int32), np.array([5], np.int32)]
        >>> Tokens.of(texts, vocab_size=9).inputs(slice(None))["input_ids"]
        array([[5, 6, 7],
               [5, 0, 0]])
        """
        lengths = [len(text) for text in texts]
        flat = np.concatenate(texts).astype(np.int32) if texts else np.empty(0, np.int32)
        marks = np.ones(len(flat), np.uint8) if counted is None else np.concatenate([*counted, np.empty(0, np.uint8)])
        offsets = np.array([0, *itertools.accumulate(lengths)], np.int64)
        return cls(flat, offsets, marks.astype(np.uint8), vocab_size=vocab_size, pad=pad, encoding=encoding)

    def _spans(self, rows: Selection) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Start and length of each of these texts in ``flat``."""
        if isinstance(rows, slice) and self.index is None and rows.step in (None, 1):
            start, stop, _ = rows.indices(len(self))
            ends = self.offsets[start : max(start, stop) + 1]
            return ends[:-1], np.diff(ends)
        chosen = positions(rows, len(self))
        chosen = chosen if self.index is None else self.index[chosen]
        return self.offsets[chosen], self.offsets[chosen + 1] - self.offsets[chosen]

    def _strides(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """First row and lengths of some thousand texts at a time."""
        for start in range(0, len(self), _STEP):
            yield start, self._spans(slice(start, start + _STEP))[1]


def _within(lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(B, T) where each text is, T the longest, at least 1."""
    return np.arange(max(1, int(lengths.max(initial=0)))) < lengths[:, None]
