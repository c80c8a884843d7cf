"""Texts for language models: a table with a column of texts, or of prompts and answers; or a folder of .txt files.

    text              <bos> text <eos>                       every token counts in the loss
    prompt, answer    <bos> prompt <sep> answer <eos>        the answer and <eos> count, the prompt does not

How texts become tokens: ``sources.tokenizers``. A text of more than ``max_tokens`` is cut into pieces, each an example
of its own; the document that it is of is its column ``group``, and pieces of one group are never split between training
and testing. A prompt that is too long for its answer loses its beginning; an answer that is too long is refused by row.

Ids come from the characters of the piece (or of prompt and answer), owner, split and columns, not from the tokens:
another tokenizer leaves the ids as they are, but for where long texts are cut.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import polars as pl

from contracts.errors import ConfigError, DataError
from contracts.methods import Asked, Reading, SourceSpec, source
from contracts.params import param
from sources.assemble import assemble, made_ids
from sources.columns import BesideConfig
from sources.example_set import ExampleSet
from sources.features import refuse_missing
from sources.files import FileConfig, check_size, manifest, root_folder
from sources.given_splits import VAL, settle, split_of, without_splits
from sources.identity import Content
from sources.loading import only
from sources.payloads.tokens import Tokens
from sources.splits import stratified_split
from sources.spool import Spool, Texts
from sources.table import beside_columns, column_ids, column_texts, given_split
from sources.table_files import SEPARATORS, Table, column_names, read_table
from sources.text_files import PROMPTS, ROLES, TEXTS, is_text_folder, is_texts, read_texts
from sources.tokenizers import Tokenizer, tokenizer


@dataclass(frozen=True, kw_only=True)  # no slots: two bases have none
class TextConfig(FileConfig, BesideConfig):
    file: str = param("", doc="table inside the root, or folder of shards; empty: the .txt files of the root")
    text: str = param("", doc="column of texts; the one called text, content, document or body when empty")
    prompt: str = param("", doc="column of what comes before the answer; it does not count in the loss")
    answer: str = param("", doc="column of answers; given together with prompt")
    owner: str = param("", doc="column of whose data a row is; for .txt files the level of folders, 1 is the topmost")
    id: str = param("", doc="column of whole, unique ids; made from the text when empty; not with texts that are cut")
    split: str = param(
        "", doc="column of 'train', 'test' and 'val'; the names of shards or folders, or drawn, when empty"
    )
    val: str = param("auto", choices=VAL, doc="validation rows: auto leaves them out where there are test rows")
    separator: str = param("", choices=("", *SEPARATORS), doc="of a CSV; found in the header when empty")
    tokenizer: str = param("bytes", doc="bytes, words, or a folder inside the root with a Hugging Face tokenizer.json")
    min_count: int = param(1, ge=1, le=1_000_000, doc="words that training holds less often are unknown (words)")
    max_words: int = param(50_000, ge=1, le=10_000_000, doc="most words of the vocabulary (words)")
    max_tokens: int = param(512, ge=4, le=2**20, doc="tokens of the longest example, special ones included")

    def check(self) -> None:
        if bool(self.prompt) != bool(self.answer):
            raise ConfigError("TextConfig: prompt and answer are given together or not at all")
        if self.text and self.prompt:
            raise ConfigError("TextConfig: text is given, and prompt and answer; one or the other is read")
        roles = [r for r in (self.text, self.prompt, self.answer, self.id, self.split) if r]
        doubled = sorted({r for r in roles if roles.count(r) > 1})
        if doubled:
            raise ConfigError(
                f"TextConfig: column {doubled[0]!r} has two roles among text, prompt, answer, id and split"
            )
        if not self.file and (roles or self.prompt):
            raise ConfigError("TextConfig: columns are named, and no file that has them")
        self.beside()


class _Documents(NamedTuple):
    """D texts, or prompts with their answers, as they are found."""

    name: str
    texts: Texts
    prompts: Texts | None
    owner: np.ndarray | None
    ids: np.ndarray | None
    split: np.ndarray | None
    columns: dict[str, np.ndarray]
    names: np.ndarray  # of the documents, the same wherever they stand: what pieces of one belong to
    origin: np.ndarray
    files: list[Path]
    notes: list[str]


class _Said(Sequence[str]):
    """The characters of each piece as JSON, with its prompt where it has one; made as they are asked for.

    Attributes:
        document: int64 (N,), not falling, the text that each piece is of.
        places: int64 (N, 2), its first character there, and the one behind its last.
    """

    def __init__(self, found: _Documents, document: np.ndarray, places: np.ndarray) -> None:
        self.found, self.document, self.places = found, document, places

    def __len__(self) -> int:
        return len(self.document)

    @overload
    def __getitem__(self, rows: int) -> str: ...
    @overload
    def __getitem__(self, rows: slice) -> list[str]: ...
    def __getitem__(self, rows: int | slice) -> str | list[str]:
        if not isinstance(rows, slice):
            return self[rows : rows + 1][0]
        of, places = self.document[rows], self.places[rows].tolist()
        if not len(of):
            return []
        some = slice(int(of[0]), int(of[-1]) + 1)
        texts = self.found.texts[some]
        parts = [texts[at][a:b] for at, (a, b) in zip((of - some.start).tolist(), places, strict=True)]
        if self.found.prompts is None:
            return [json.dumps([part], ensure_ascii=False) for part in parts]
        prompts = self.found.prompts[some]
        ahead = [prompts[at] for at in (of - some.start).tolist()]
        return [json.dumps(pair, ensure_ascii=False) for pair in zip(ahead, parts, strict=True)]


class _Pieces(NamedTuple):
    """N examples: int32 (L,) tokens and uint8 (L,) marks, mapped, lengths, the document of each, and its characters."""

    flat: np.ndarray
    counted: np.ndarray
    lengths: np.ndarray
    document: np.ndarray
    said: _Said
    notes: list[str]


def _detects(path: Path) -> bool:
    return is_texts(path)


def _from_path(path: Path, asked: Asked) -> Reading:
    only(
        asked,
        "texts",
        label="the next token is what is predicted (a label column makes a table)",
        task="it is language",
    )
    if is_text_folder(path):
        only(asked, "a folder of .txt files", id="ids are made from the texts", split="train and test folders say it")
        owner = {"owner": asked.owner} if asked.owner else {}
        return Reading({"root": str(path), **owner} | ({"val": asked.val} if asked.val else {}))
    names = column_names(path)
    given = {role: value for role in ("owner", "id", "split", "val") if (value := getattr(asked, role)) is not None}
    for role, name in given.items():
        if role != "val" and name not in names:
            raise ConfigError(f"--{role} {name!r} is not a column of {path.name}; columns are: {', '.join(names)}")
    lower = {name.lower(): name for name in names}
    notes = []
    pair = next(((lower[p], lower[a]) for p, a in PROMPTS if p in lower and a in lower), None)
    if pair:
        config = {"prompt": pair[0], "answer": pair[1]}
        notes.append(
            f"column {pair[1]!r} is the answer and counts, {pair[0]!r} is the prompt and does not, by their names"
        )
    else:
        config = {"text": next(lower[t] for t in TEXTS if t in lower)}
    for role, called in ROLES.items():
        name = next((lower[c] for c in called if c in lower), None)
        if role not in given and name is not None and name not in asked.drop:
            given[role] = name
            notes.append(f"column {name!r} is taken as {role}, by its name")
    used = {*config.values(), *given.values()}
    left = [n for n in names if n not in used]
    notes += [f"columns left out: {', '.join(left)}"] if left else []
    return Reading({"root": str(path.parent), "file": path.name, **config, **given}, tuple(notes))


@source(
    SourceSpec(
        name="text",
        doc="Texts, or prompts with answers, in JSON lines, Parquet or CSV, or a folder of .txt files; as bytes, words "
        "or by a Hugging Face tokenizer.",
        source="definition",
        config=TextConfig,
        detects=_detects,
        from_path=_from_path,
    )
)
def text(*, config: TextConfig, seed: int) -> ExampleSet:
    """The texts of one table or folder as tokens.

    Raises:
        UnsafeFile: outside the root, or more than ``max_bytes`` of tokens.
        DataError: no texts, empty ones, files that are no UTF-8 (all named), answers that are too long (by row).
    """
    root = root_folder(config.root)
    made = tokenizer(root, config.tokenizer, min_count=config.min_count, max_words=config.max_words)
    found = _from_table(root, config) if config.file else _from_folder(root, config)
    _refuse_empty(found)
    pieces = _pieces(found, made, config)
    cut = len(pieces.said) > len(found.texts)
    columns = {name: values[pieces.document] for name, values in found.columns.items()}
    notes = [*found.notes, *pieces.notes]
    if cut:
        if found.ids is not None:
            raise DataError(
                f"{found.name}: texts are cut into pieces of max_tokens = {config.max_tokens}, and a piece cannot "
                "have the id of its document: leave id out (its column can be kept as group), or raise max_tokens"
            )
        columns.setdefault("group", found.names[pieces.document])
    owner = None if found.owner is None else found.owner[pieces.document]
    content = Content(texts=pieces.said)
    y = np.zeros(len(pieces.said), np.int64)
    given = None if found.split is None else found.split[pieces.document]
    if found.ids is not None:
        ids = found.ids
    else:
        ids = made_ids(content, y, (), owner, given, *(columns[name] for name in sorted(columns)))
    split, how = given, {}
    if split is None:
        split = _drawn(columns.get("group"), ids, config.test_fraction, seed)
        by = " by group" if "group" in columns else ""
        how = {"split": f"drawn{by}, test_fraction {config.test_fraction:g}, seed {seed}"}
    offsets = np.append(0, np.cumsum(pieces.lengths)).astype(np.int64)
    if made.fits:
        made = _renumbered(made, pieces.flat, offsets, split == "train")
    tokens = Tokens(
        pieces.flat,
        offsets,
        pieces.counted,
        vocab_size=made.vocab_size,
        pad=made.pad,
        encoding=made.digest,
    )
    return assemble(
        tokens,
        y,
        name=config.name or Path(found.name).stem,
        task="language",
        class_names=(),
        seed=seed,
        test_fraction=config.test_fraction,
        example_id=ids,
        split=split,
        owner=owner,
        origin=found.origin[pieces.document],
        content=content,
        columns=columns,
        provenance={
            "source": "text",
            **how,
            "tokenizer": {"name": config.tokenizer, "sha256": made.digest, "vocab_size": made.vocab_size},
            "files": manifest(root, found.files),
            "licence": config.licence,
            "notes": notes,
        },
    )


def _from_table(root: Path, config: TextConfig) -> _Documents:
    data = read_table(root, config.file, separator=config.separator, max_bytes=config.max_bytes)
    data, split, notes = given_split(data, config)
    text = config.answer or config.text or next((n for n in data.schema if n.lower() in TEXTS), "")
    if not text:
        raise DataError(
            f"{data.name}: none of the columns {', '.join(map(repr, data.schema))} is called {', '.join(TEXTS)}; "
            "set text, or prompt and answer"
        )
    texts = _strings(data, text)
    prompts = _strings(data, config.prompt) if config.prompt else None
    owner = column_texts(data, config.owner, max_bytes=config.max_bytes) if config.owner else None
    ids = column_ids(data, config.id) if config.id else None
    whole = zip(repeat("", len(texts)) if prompts is None else prompts, texts, strict=True)
    names = np.array([hashlib.sha256(json.dumps(pair).encode()).hexdigest()[:16] for pair in whole], dtype=str)
    columns = beside_columns(data, config)
    return _Documents(data.name, texts, prompts, owner, ids, split, columns, names, data.origin(), data.paths, notes)


def _strings(data: Table, name: str) -> Texts:
    series = data.column(name)
    refuse_missing(series, data, role="text")
    if series.dtype != pl.String:
        raise DataError(f"{data.name}: column {name!r} is {series.dtype}, not text")
    # In blocks: polars' own walk through a column makes 25,000 texts at a time.
    return Texts(itertools.chain.from_iterable(series[rows].to_list() for rows in _blocks(len(series))))


def _from_folder(root: Path, config: TextConfig) -> _Documents:
    if config.beside():
        raise ConfigError("TextConfig: step, domain, client, group and keep name columns, and .txt files have none")
    paths, names, texts = read_texts(root, max_bytes=config.max_bytes)
    spoken = [split_of(Path(name).parts[0]) if "/" in name else None for name in names]
    split: np.ndarray | None = None
    if None not in spoken and "train" in spoken and len(set(spoken)) > 1:
        kept, split, notes = settle(np.array(spoken, "<U5"), val=config.val, what="texts")
        rows = np.flatnonzero(kept).tolist()
        paths, names, texts = [paths[r] for r in rows], [names[r] for r in rows], [texts[r] for r in rows]
        below = [Path(name).parts[1:-1] for name in names]
    else:
        notes = without_splits(config.val)
        below = [Path(name).parts[:-1] for name in names]
    owner = None
    if config.owner:
        if not config.owner.isdecimal() or not int(config.owner):
            raise ConfigError(
                f"TextConfig.owner = {config.owner!r}: of .txt files it is a level of folders, 1 is the topmost"
            )
        level = int(config.owner)
        shallow = [name for name, parts in zip(names, below, strict=True) if len(parts) < level]
        if shallow:
            raise DataError(f"{len(shallow)} texts lie in no folder of level {level}, the owner's", where=shallow)
        owner = np.array([parts[level - 1] for parts in below], dtype=str)
    of = np.array(names, dtype=str)
    return _Documents(root.name, Texts(texts), None, owner, None, split, {}, of, of, paths, notes)


def _refuse_empty(found: _Documents) -> None:
    empty = [not text.strip() for text in found.texts]
    if any(empty):
        raise DataError(f"{found.name}: {sum(empty)} texts are empty", where=found.origin[np.array(empty)].tolist())


def _pieces(found: _Documents, made: Tokenizer, config: TextConfig) -> _Pieces:
    """Every document as one example, or several where it is too long.

    Raises:
        UnsafeFile: the tokens would take more than ``max_bytes``.
        DataError: answers that are too long.
    """
    flat, counted = Spool(np.int32), Spool(np.uint8)
    lengths: list[int] = []
    document: list[int] = []
    places: list[tuple[int, int]] = []
    too_long, shortened = [], 0
    bos, sep, eos = (_one(token) for token in (made.bos, made.sep, made.eos))
    prompts = repeat(None) if found.prompts is None else found.prompts
    for at, (text, ahead) in enumerate(zip(found.texts, prompts, strict=False)):
        body = made.encode(text)
        most = config.max_tokens - len(bos)
        front, cuts = bos, _cuts(body.ends, text, most, behind=len(eos), least=2 - len(bos))
        if ahead is not None:
            prompt = made.encode(ahead).ids
            room = config.max_tokens - len(bos) - len(sep) - len(body.ids) - len(eos)
            if room < 0:
                too_long.append(at)
                continue
            shortened += len(prompt) > room
            front = np.concatenate([bos, prompt[max(0, len(prompt) - room) :], sep])
            cuts = [(0, len(body.ids), (0, len(text)))]
        for start, stop, place in cuts:
            tail = eos if stop == len(body.ids) else eos[:0]
            part = np.concatenate([front, body.ids[start:stop], tail])
            flat.put(part)
            counted.put(np.arange(len(part)) >= len(front))
            lengths.append(len(part))
            document.append(at)
            places.append(place)
        check_size(5 * len(flat), config.max_bytes, f"{found.name}: tokens")
    if too_long:
        raise DataError(
            f"{found.name}: {len(too_long)} answers are longer than max_tokens = {config.max_tokens}, "
            "special tokens included",
            where=found.origin[too_long].tolist(),
        )
    notes = []
    if shortened:
        notes.append(f"{shortened:,} prompts lose their beginning, so that {config.max_tokens} tokens hold the answer")
    if num := int((np.bincount(document) > 1).sum()):
        what = f"{num:,} of {len(found.texts):,} texts are cut into pieces of at most {config.max_tokens} tokens"
        notes.append(f"{what}: {len(document):,} examples")
    of = np.array(document)
    said = _Said(found, of, np.array(places, np.int64).reshape(-1, 2))
    return _Pieces(flat.array(), counted.array(), np.array(lengths, np.int64), of, said, notes)


def _renumbered(made: Tokenizer, flat: np.ndarray, offsets: np.ndarray, train: np.ndarray) -> Tokenizer:
    """The tokenizer as the training texts have it; ``flat`` is put into its numbering in place.

    Args:
        flat: int32 (L,), tokens of all texts as ``made`` numbers them.
        offsets: int64 (N + 1,), where each text begins. ``train``: (N,) bool, it is in the training split.
    """
    counts = np.zeros(made.vocab_size, np.int64)
    for some in _blocks(len(train)):
        own = np.repeat(train[some], np.diff(offsets[some.start : some.stop + 1]))
        counts += np.bincount(flat[offsets[some.start] : offsets[some.stop]][own], minlength=len(counts))
    fitted, now = made.fitted(counts)
    for some in _blocks(len(train)):
        part = flat[offsets[some.start] : offsets[some.stop]]
        part[:] = now[part]
    return fitted


def _blocks(num: int) -> Iterator[slice]:
    """Slices of some hundred texts each."""
    return (slice(start, min(start + _TEXTS, num)) for start in range(0, num, _TEXTS))


_TEXTS = 512


def _cuts(ends: np.ndarray, text: str, most: int, *, behind: int, least: int) -> list[tuple[int, int, tuple[int, int]]]:
    """Where a text is cut: of each piece the first token and the one behind the last, and the same of its characters.

    A character is cut in two only where it has more tokens than a piece.

    Args:
        ends: int64 (T,), the place behind the character that each token ends in.
        text: of these tokens.
        most: tokens that a piece holds besides what stands before it.
        behind: tokens that stand behind the last piece.
        least: tokens that the last piece has, so that there is one to predict: 1 where one stands before it.
    """
    cuts, start = [], 0
    while len(ends) - start + behind > most:
        stop = min(start + most, len(ends) - least)
        whole = stop
        while whole > start and ends[whole - 1] == ends[whole]:
            whole -= 1
        stop = whole if whole > start else stop
        cuts.append((start, stop))
        start = stop
    cuts.append((start, len(ends)))
    places = [0, *(int(ends[stop - 1]) for _, stop in cuts[:-1]), len(text)]
    return [(*cut, place) for cut, place in zip(cuts, itertools.pairwise(places), strict=True)]


def _one(token: int | None) -> np.ndarray:
    return np.array([] if token is None else [token], np.int32)


def _drawn(group: np.ndarray | None, ids: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(N,) "train" or "test", drawn by example, or by group where there are groups.

    Raises:
        DataError: one group, or one example, which cannot be on both sides.
    """
    if group is None:
        return stratified_split(np.zeros(len(ids), np.int64), ids, test_fraction=fraction, seed=seed)
    names, of = np.unique(group, return_inverse=True)
    if len(names) < 2:
        raise DataError(
            f"all {len(ids)} examples are of the group {str(names[0])!r}: none is left for a test split; give a split "
            "column, or a group column of several values"
        )
    keys = Content(texts=pl.Series(names.astype(str))).ids()
    return stratified_split(np.zeros(len(names), np.int64), keys, test_fraction=fraction, seed=seed)[of]
