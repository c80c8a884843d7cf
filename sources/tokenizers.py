"""Texts to tokens: UTF-8 bytes, words, or a Hugging Face tokenizer that lies in a folder.

    bytes   4 special tokens, then the 256 bytes: token 4 + b is byte b; no text is unknown
    words   5 special tokens, then the words of the training split, sorted; a word is a run of letters, digits and _,
            or one other character that is no blank; a word that training does not hold is <unk>
    folder  tokenizer.json, and beside it, where there are any, the names of the special tokens in tokenizer_config.json
    GGUF    the tokenizer that a model's GGUF file holds, read by transformers (``stored_tokenizer``)

A text is framed as <bos> text <eos>, a prompt with its answer as <bos> prompt <sep> answer <eos>; a folder's tokenizer
adds those of the special tokens that it names (sep: none). ``encode`` says where in the text each token ends, so that a
text can be cut between tokens and every piece is known by its characters. Nothing is downloaded, no code of a tokenizer
is run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.digests import canonical_json
from contracts.errors import ConfigError, DataError
from sources.files import check_size, inside
from sources.stored_models import locate, need_extra

BYTES, WORDS = "bytes", "words"
_WORD = re.compile(r"\w+|[^\w\s]")
_MAX_FILE = 256 * 2**20
_SPECIAL = ("bos_token", "eos_token", "pad_token")


class Encoded(NamedTuple):
    """Tokens of a text, int32 (T,), and the place behind the character that each ends in, int64 (T,), not falling."""

    ids: NDArray[np.int32]
    ends: NDArray[np.int64]


class Tokenizer(ABC):
    """Texts to tokens and back.

    Attributes:
        pad: fills up a batch.
        bos, sep, eos: begin, between prompt and answer, end; None where there is no such token.
        fits: its vocabulary is that of the training split.
    """

    pad: int = 0
    bos: int | None = 1
    eos: int | None = 2
    sep: int | None = 3
    fits: bool = False

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Tokens lie in [0, vocab_size)."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of everything that decides which tokens a text has."""

    @abstractmethod
    def encode(self, text: str) -> Encoded:
        """Without special tokens."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text; special tokens are left out."""

    def fitted(self, counts: NDArray[np.int64]) -> tuple[Tokenizer, NDArray[np.int32]]:
        """The tokenizer as the training split has it, and the token there of each of its own, int32 (vocab_size,);
        asked where it ``fits``.

        Args:
            counts: int64 (vocab_size,), how often the training split holds each token, as ``encode`` numbered them.
        """
        return self, np.arange(self.vocab_size, dtype=np.int32)


class Bytes(Tokenizer):
    """UTF-8."""

    first = 4
    vocab_size = 260  # type: ignore[assignment]

    @property
    def digest(self) -> str:
        return hashlib.sha256(b"utf-8 bytes behind 4 special tokens").hexdigest()

    def encode(self, text: str) -> Encoded:
        raw = np.frombuffer(text.encode("utf-8"), np.uint8)
        starts = (raw & 0xC0) != 0x80  # of a character
        return Encoded(raw.astype(np.int32) + self.first, np.cumsum(starts, dtype=np.int64))

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i - self.first for i in ids if i >= self.first).decode("utf-8", errors="replace")


class Words(Tokenizer):
    """Words in the order in which they are met, until ``fitted`` keeps those of the training split.

    Args:
        min_count: a word that training holds less often is <unk>.
        max_words: the most frequent are kept, the first by the alphabet of equals.
        words: the vocabulary, where it is known.
    """

    unk = 4
    first = 5

    def __init__(self, *, min_count: int = 1, max_words: int = 50_000, words: Sequence[str] | None = None) -> None:
        self.min_count, self.max_words = min_count, max_words
        self.words: list[str] = list(words or ())
        self._place = {word: at for at, word in enumerate(self.words, start=self.first)}
        self._open = self.fits = words is None

    @property
    def vocab_size(self) -> int:
        return self.first + len(self.words)

    @property
    def digest(self) -> str:
        return hashlib.sha256(canonical_json({"words": self.words, "special": self.first}).encode()).hexdigest()

    def encode(self, text: str) -> Encoded:
        ids, ends = [], []
        for found in _WORD.finditer(text):
            word = found.group()
            if self._open and word not in self._place:
                self._place[word] = self.first + len(self.words)
                self.words.append(word)
            ids.append(self._place.get(word, self.unk))
            ends.append(found.end())
        return Encoded(np.array(ids, np.int32), np.array(ends, np.int64))

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(self.words[i - self.first] if i >= self.first else "<unk>" for i in ids if i >= self.unk)

    def fitted(self, counts: NDArray[np.int64]) -> tuple[Tokenizer, NDArray[np.int32]]:
        counts = counts[self.first :]
        known = [at for at in np.flatnonzero(counts >= self.min_count).tolist()]
        known.sort(key=lambda at: (-counts[at], self.words[at]))
        kept = sorted(known[: self.max_words], key=lambda at: self.words[at])
        now = np.full(self.vocab_size, self.unk, np.int32)
        now[: self.first] = np.arange(self.first)
        now[self.first + np.array(kept, np.int64)] = self.first + np.arange(len(kept))
        vocabulary = [self.words[at] for at in kept]
        return Words(min_count=self.min_count, max_words=self.max_words, words=vocabulary), now


class FromFolder(Tokenizer):
    """A Hugging Face tokenizer, read by the ``tokenizers`` library when it is asked for.

    Args:
        root: resolved folder of the data.
        name: of the tokenizer's folder inside it.

    Raises:
        UnsafeFile: outside the root, or larger than a tokenizer is.
        DataError: no tokenizer.json, or none that can be read.
    """

    sep = None

    def __init__(self, root: Path, name: str) -> None:
        inside(root, name, folder=True)
        path = inside(root, f"{name}/tokenizer.json")
        check_size(path.stat().st_size, _MAX_FILE, path.name)
        special: dict[str, Any] = {}
        beside = root / name / "tokenizer_config.json"
        if beside.exists():
            special = _read_json(inside(root, f"{name}/tokenizer_config.json"))
        self._read(path.read_bytes(), special, name)

    @classmethod
    def of_gguf(cls, folder: Path, file: str) -> FromFolder:
        """The tokenizer in a GGUF file; nothing is written.

        Raises:
            NotReady: the extra ``hf`` is not installed.
            DataError: the file holds none that can be read.
        """
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        with need_extra("hf", f"the tokenizer in {file}"):
            import gguf  # noqa: F401 - transformers asks for it only in the middle of its work
            from transformers import AutoTokenizer
        try:
            found: Any = AutoTokenizer.from_pretrained(folder, gguf_file=file, local_files_only=True)
            raw = found.backend_tokenizer.to_str(pretty=False).encode("utf-8")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f"{file}: its tokenizer cannot be read: {' '.join(str(error).split())[:300]}") from error
        made = cls.__new__(cls)
        made._read(raw, {word: getattr(found, word) for word in _SPECIAL}, file)
        return made

    def _read(self, raw: bytes, special: dict[str, Any], name: str) -> None:
        import tokenizers

        self._raw = raw
        try:
            self._made = tokenizers.Tokenizer.from_buffer(self._raw)
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{name}/tokenizer.json cannot be read as a tokenizer: {error}") from None
        self._made.no_padding()
        self._made.no_truncation()
        self.bos, self.eos, pad = (self._special(special, word, name) for word in _SPECIAL)
        self.pad = next((token for token in (pad, self.eos, self.bos) if token is not None), 0)

    def _special(self, config: dict[str, Any], word: str, name: str) -> int | None:
        token = config.get(word)
        token = token.get("content") if isinstance(token, dict) else token
        if not isinstance(token, str):
            return None
        found: int | None = self._made.token_to_id(token)
        if found is None:
            raise DataError(f"{name}/tokenizer_config.json names {word} {token!r}, which is no token of tokenizer.json")
        return found

    @property
    def vocab_size(self) -> int:
        vocab = self._made.get_vocab(with_added_tokens=True)
        return max(vocab.values(), default=-1) + 1

    @property
    def digest(self) -> str:
        about = canonical_json({"bos": self.bos, "eos": self.eos, "pad": self.pad})
        return hashlib.sha256(about.encode() + b"\0" + self._raw).hexdigest()

    def encode(self, text: str) -> Encoded:
        found = self._made.encode(text, add_special_tokens=False)
        ends = np.array([end for _, end in found.offsets], np.int64)
        return Encoded(np.array(found.ids, np.int32), np.maximum.accumulate(ends) if len(ends) else ends)

    def decode(self, ids: Iterable[int]) -> str:
        text: str = self._made.decode([int(i) for i in ids], skip_special_tokens=True)
        return text


def stored_tokenizer(path: str, *, field: str) -> Tokenizer:
    """``bytes``, or the tokenizer of a stored language model: of its folder, or of its GGUF file.

    Args:
        path: as of ``sources.stored_models.locate``.
        field: that names it, for messages.

    Raises:
        ConfigError, UnsafeFile: as ``locate``; a folder of safetensors without tokenizer.json.
        NotReady, DataError: see :class:`FromFolder`.
    """
    if path == BYTES:
        return Bytes()
    there = locate(path, field=field)
    if there.gguf:
        return FromFolder.of_gguf(there.folder, there.gguf)
    if not (there.folder / "tokenizer.json").exists():
        raise ConfigError(f"{field} = {path!r} holds no tokenizer.json: the model's own tokenizer is needed beside it")
    return FromFolder(there.folder, ".")


def tokenizer(root: Path, name: str, *, min_count: int = 1, max_words: int = 50_000) -> Tokenizer:
    """The tokenizer of a plan: ``bytes``, ``words``, or the name of a folder inside ``root``."""
    if name == BYTES:
        return Bytes()
    return Words(min_count=min_count, max_words=max_words) if name == WORDS else FromFolder(root, name)


def _read_json(path: Path) -> dict[str, Any]:
    check_size(path.stat().st_size, _MAX_FILE, path.name)
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path.name} is no JSON object")
    return found
