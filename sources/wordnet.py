"""The nouns of WordNet as a graph: a synset is a node, its lexicographer file is the class, pointers are the edges.

    root/data.noun      Debian: apt-get install wordnet-base (root /usr/share/wordnet)
    line                offset lex_filenum n w_cnt words ... p_cnt (symbol offset pos source/target) ... | gloss
    node                offset, a whole number: the id of the example
    class               one of the 26 noun files (noun.Tops, noun.act, ..., noun.time)
    edges               hypernyms, hyponyms, instances, members, substances and parts (@ ~ @i ~i # %), both ways, once
    features            bag of words of the gloss, hashed to D columns: sqrt(count), each row of length 1

A connected part of the graph is taken, breadth first from ``entity`` and within a level by offset, so that it is the
same on every machine. Features of a node come from its own gloss and from nothing else: no word is weighted by how
often others have it. Labels of training nodes can be made wrong (``noise``); column ``true_class`` keeps the class.

Source: Fellbaum (ed.), "WordNet: An Electronic Lexical Database" (MIT Press, 1998), version 3.0; format: wndb(5WN).
Hashing: Weinberger et al., ICML 2009, without signs. Licence: WordNet 3.0 licence, Princeton University: use, copying
and distribution are free when the copyright notice goes along. Not a lexicon to look words up in.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from contracts.errors import ConfigError, DataError
from contracts.methods import Asked, Reading, SourceSpec, source
from contracts.params import param
from sources.assemble import assemble
from sources.example_set import ExampleSet
from sources.files import FileConfig, check_size, inside, manifest, root_folder
from sources.identity import Content
from sources.loading import only
from sources.payloads.graph import Graph
from sources.planted_poison import NOISE_KINDS, label_noise

FILE, ROOT = "data.noun", "/usr/share/wordnet"
CLASSES = (
    *("Tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling"),
    *("food", "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process"),
    *("quantity", "relation", "shape", "state", "substance", "time"),
)
_FIRST_FILE = 3  # noun.Tops
_POINTERS = frozenset({"@", "~", "@i", "~i", "#m", "#s", "#p", "%m", "%s", "%p"})
_WORD = re.compile(r"[a-z]+")
_COMMON = frozenset(
    (
        *("a", "an", "and", "as", "at", "be", "by", "for", "from", "in", "is", "it"),
        *("of", "on", "or", "that", "the", "to", "used", "was", "which", "with"),
    )
)
_LICENCE = (
    "WordNet 3.0 licence. WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. Provided as is, "
    "without warranty; this notice goes along with every copy"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WordNetConfig(FileConfig):
    """How much of the graph is taken, and what is made of glosses and labels."""

    root: str = param(ROOT, doc="folder with data.noun; that of Debian's wordnet-base when not given")
    num_nodes: int = param(12_000, ge=50, le=100_000, unit="nodes", doc="of the connected part that is taken")
    dim: int = param(256, ge=8, le=65_536, unit="columns", doc="that words are hashed to")
    noise: float = param(
        0.0, ge=0, lt=1, doc="share of the training labels of each class that is made wrong on purpose"
    )
    noise_everywhere: bool = param(
        False, doc="test labels too, so that seen and unseen nodes are alike, as membership is told by"
    )
    noise_kind: str = param(
        "symmetric", choices=NOISE_KINDS, doc="symmetric: to any other class; pair: to one other class of each class"
    )


@dataclass(frozen=True, slots=True)
class Synset:
    """One line of the file."""

    offset: int
    lexfile: int
    word: str
    links: tuple[int, ...]
    gloss: str


def _detects(path: Path) -> bool:
    file = path / FILE
    try:
        with file.open("rb") as stream:
            return b"WordNet" in stream.read(4096)
    except OSError:
        return False


def _from_path(path: Path, asked: Asked) -> Reading:
    only(
        asked,
        "the nouns of WordNet",
        label="the class is the lexicographer file",
        owner="they hold no owners",
        id="the id is the offset in the file",
        split="the test split is drawn",
        task="it is about nodes",
        val="there are no validation nodes",
        drop="they hold no columns",
    )
    return Reading({"root": str(path)})


@source(
    SourceSpec(
        name="wordnet",
        doc="Nouns of WordNet as a graph: glosses for features, 26 lexicographer files for classes; planted label "
        "noise if asked for.",
        source="Fellbaum (ed.), WordNet: An Electronic Lexical Database, 1998; version 3.0",
        config=WordNetConfig,
        detects=_detects,
        from_path=_from_path,
    )
)
def wordnet(*, config: WordNetConfig, seed: int) -> ExampleSet:
    """A connected part of the graph of nouns.

    Raises:
        DataError: no such folder or file (says how it is installed), a line that is none of the format (by its number),
            a pointer to no synset, or a part that is smaller than what is asked for.
        UnsafeFile: a file that is too large, or outside the root.
    """
    if not Path(config.root).expanduser().is_dir() and config.root == ROOT:
        raise DataError(f"{ROOT} does not exist: apt-get install wordnet-base, or name the folder of {FILE} (root)")
    root = root_folder(config.root)
    path = inside(root, FILE)
    check_size(path.stat().st_size, config.max_bytes, path.name)
    synsets = parse(path.read_bytes(), name=path.name)
    place = {synset.offset: k for k, synset in enumerate(synsets)}
    pairs = {
        (min(k, other), max(k, other))
        for k, synset in enumerate(synsets)
        for other in _places(synset, place, path.name)
        if other != k
    }
    edges = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    part = connected_part(edges, len(synsets), size=config.num_nodes, start=0)
    kept = [synsets[k] for k in part]
    number = np.full(len(synsets), -1, np.int64)
    number[part] = np.arange(len(part))
    inner = number[edges]
    inner = inner[:, (inner >= 0).all(axis=0)]
    label = np.array([synset.lexfile - _FIRST_FILE for synset in kept], np.int64)
    present = np.unique(label)
    if len(present) < 2:
        raise ConfigError(f"WordNetConfig.num_nodes = {config.num_nodes} nodes are all of one class; take more")
    names = tuple(f"noun.{CLASSES[k]}" for k in present)
    y = np.searchsorted(present, label)
    features = hashed_words([synset.gloss for synset in kept], dim=config.dim)
    ids = np.array([synset.offset for synset in kept], np.int64)
    texts = pl.Series([synset.gloss for synset in kept], dtype=pl.String)
    data = assemble(
        Graph(features, np.ascontiguousarray(inner), ids),
        y,
        name=config.name or "wordnet",
        task="nodes",
        class_names=names,
        seed=seed,
        test_fraction=config.test_fraction,
        example_id=ids,
        content=Content(features, texts),
        keep_columns=range(config.dim),
        origin=np.array([f"{path.name} offset {synset.offset:08d} ({synset.word})" for synset in kept]),
        columns={"true_class": np.array(names)[y]},
        provenance={
            "source": "wordnet",
            "files": manifest(root, [path]),
            "licence": config.licence or _LICENCE,
            "num_nodes": len(kept),
            "num_edges": inner.shape[1],
            "notes": [
                f"{len(kept):,} of {len(synsets):,} nouns, breadth first from {kept[0].word!r}; "
                f"{inner.shape[1]:,} of {edges.shape[1]:,} edges",
            ],
        },
    )
    if not config.noise:
        return data
    how = {"rate": config.noise, "kind": config.noise_kind, "everywhere": config.noise_everywhere}
    return label_noise(data, **how, seed=seed)[0]


def parse(content: bytes, *, name: str) -> list[Synset]:
    """The synsets of a file, in its order.

    Args:
        name: of the file, for messages.

    Raises:
        DataError: no synset, or a line that is none of the format; by its number.
    """
    found = []
    for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1):
        if line.startswith("  ") or not line:  # the licence
            continue
        try:
            found.append(_synset(line))
        except (ValueError, IndexError):
            raise DataError(
                f"{name} line {number} is no noun of WordNet's data files", where=[f"line {number}"]
            ) from None
    if not found:
        raise DataError(f"{name} holds no noun")
    offsets = [synset.offset for synset in found]
    if len(set(offsets)) < len(offsets):
        raise DataError(f"{name} holds an offset twice")
    return found


def _synset(line: str) -> Synset:
    data, bar, gloss = line.partition(" | ")
    fields = data.split()
    offset, lexfile, kind, num_words = int(fields[0]), int(fields[1]), fields[2], int(fields[3], 16)
    if not bar or kind != "n" or not 0 <= lexfile - _FIRST_FILE < len(CLASSES) or num_words < 1 or offset < 0:
        raise ValueError
    at = 4 + 2 * num_words
    pointers = fields[at + 1 :]
    if len(pointers) != 4 * int(fields[at]):
        raise ValueError
    links = tuple(
        int(pointers[p + 1]) for p in range(0, len(pointers), 4) if pointers[p] in _POINTERS and pointers[p + 2] == "n"
    )
    return Synset(offset, lexfile, fields[4], links, gloss.strip())


def _places(synset: Synset, place: dict[int, int], name: str) -> list[int]:
    unknown = [link for link in synset.links if link not in place]
    if unknown:
        raise DataError(f"{name}: offset {synset.offset:08d} points to {unknown[0]:08d}, which is no synset")
    return [place[link] for link in synset.links]


def connected_part(edges: np.ndarray, num_nodes: int, *, size: int, start: int) -> np.ndarray:
    """(size,) nodes that breadth-first search finds first, ascending; within a level the smallest numbers first.

    Args:
        edges: int64 (2, E), each counts both ways.

    Raises:
        DataError: fewer than ``size`` nodes are connected with ``start``.

    >>> connected_part(np.array([[0, 0, 2], [2, 3, 1]]), 5, size=3, start=0).tolist()
    [0, 2, 3]
    """
    seen = np.zeros(num_nodes, bool)
    seen[start] = True
    level, count = np.array([start]), 1
    while count < size:
        a, b = edges
        inside = np.zeros(num_nodes, bool)
        inside[level] = True
        near = np.unique(np.concatenate([b[inside[a]], a[inside[b]]]))
        level = near[~seen[near]][: size - count]
        if not len(level):
            raise DataError(f"{count} nodes are connected with the first; {size} were asked for (num_nodes)")
        seen[level] = True
        count += len(level)
    return np.flatnonzero(seen)


def hashed_words(texts: Sequence[str], *, dim: int) -> np.ndarray:
    """float32 (N, dim), rows of length 1: sqrt of how often words that hash to a column occur in each text.

    Words are runs of the letters a to z in lower case; a few of the commonest are left out. A text without words is a
    row of zeros.

    >>> (hashed_words(["the dog, a dog", ""], dim=8) > 0).sum(axis=1).tolist()
    [1, 0]
    """
    out = np.zeros((len(texts), dim), np.float32)
    for row, text in enumerate(texts):
        for word in _WORD.findall(text.lower()):
            if word not in _COMMON:
                out[row, zlib.crc32(word.encode()) % dim] += 1
    np.sqrt(out, out=out)
    norms = np.linalg.norm(out, axis=1, keepdims=True)
    return np.divide(out, norms, out=np.zeros_like(out), where=norms > 0)
