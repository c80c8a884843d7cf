"""Passages of addresses: members and held-out ones of other speeches, planted copies, tokens that spell the text."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from addresses_package import FOLDER, write_addresses

from contracts.errors import ConfigError, DataError
from sources.loading import load
from sources.presidential_addresses import TEMPLATES
from sources.tokenizers import Bytes

SMALL = {"num_presidents": 3, "tokens": 32, "member": 4, "held_out": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_addresses(tmp_path_factory.mktemp("addresses"))


def read(root: Path, **more: object):
    return load("presidential_addresses", {"root": str(root), **SMALL, **more}, seed=3)


def speech_of(root: Path, stem: str) -> dict:
    return json.loads((root / FOLDER / f"{stem}.json").read_text())


def spelt(data, rows: np.ndarray) -> list[str]:
    flat, _, lengths = data.x.texts(rows)
    return [Bytes().decode(part) for part in np.split(flat, np.cumsum(lengths)[:-1])]


def test_each_passage_stands_in_its_speech_at_its_place_and_nowhere_twice(root: Path) -> None:
    data = read(root)
    assert len(data) == 3 * 7 and len(set(data.columns["group"])) == len(data)
    assert sorted(set(data.owner)) == ["Ada Elm", "Ben Oak", "Cy Ash"]  # those of the most addresses
    for row, text in enumerate(spelt(data, np.arange(len(data)))):
        stem, number = data.columns["group"][row].split(":")
        said = speech_of(root, stem)
        assert said["text"][32 * int(number) : 32 * (int(number) + 1)] == text and len(text) == 32
        assert (said["name"], said["year"]) == (data.owner[row], data.columns["year"][row])
        assert data.columns["speech"][row] == stem
        assert data.columns["zlib_bytes"][row] == len(zlib.compress(text.encode()))
    counted = data.x.targets(slice(None)) != -100
    assert counted[:, 1:].all() and not counted[:, 0].any()  # the first is the prompt: nothing predicts it


def test_members_and_held_out_passages_are_of_alternating_speeches(root: Path) -> None:
    data = read(root)
    for name in set(data.owner):
        years = sorted({json.loads(p.read_text())["year"] for p in (root / FOLDER).glob("*.json") if own(p, name)})
        for row in np.flatnonzero(data.owner == name):
            place = years.index(data.columns["year"][row])
            assert data.split[row] == ("train", "test")[place % 2]
    of = [(name, split) for name, split in zip(data.owner.tolist(), data.split.tolist(), strict=True)]
    assert all(of.count((name, "train")) == 4 and of.count((name, "test")) == 3 for name in set(data.owner))


def own(path: Path, name: str) -> bool:
    return bool(json.loads(path.read_text())["name"] == name)


def test_planted_passages_are_further_ones_in_equal_copies_with_ids_of_their_own(root: Path) -> None:
    data, plain = read(root, planted=4, copies=3), read(root)
    planted = data.columns["planted"] == "yes"
    assert planted.sum() == 12 and (data.split[planted] == "train").all()
    groups, copies = np.unique(data.columns["group"][planted], return_counts=True)
    assert len(groups) == 4 and (copies == 3).all() and not set(groups) & set(plain.columns["group"])
    assert len(set(data.owner[planted])) == 3  # of one president after the other
    for group in groups:
        rows = np.flatnonzero(data.columns["group"] == group)
        assert len(set(spelt(data, rows))) == 1 and len(set(data.example_id[rows])) == 3
    assert set(plain.example_id) == set(data.example_id[~planted])  # the others are what they are without


def test_the_draw_is_the_passage_seeds_and_not_the_plans(root: Path) -> None:
    data = read(root)
    other = load("presidential_addresses", {"root": str(root), **SMALL}, seed=99)
    assert other.digest == data.digest and read(root, passage_seed=1).digest != data.digest
    assert set(read(root, presidents=["Cy Ash"]).owner) == {"Cy Ash"}


def test_a_models_own_tokenizer_makes_the_passages(root: Path, tmp_path: Path) -> None:
    """Of a tokenizer of two characters a token, N tokens are the 2 N characters that stand there."""
    pairs = {f"{a}{b}": 0 for a in "abcdefghijklmnopqrstuvwxyz ." for b in "abcdefghijklmnopqrstuvwxyz ."}
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({p: k for k, p in enumerate(pairs)} | {"?": len(pairs)}, "?")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("[\\s\\S]{2}"), "isolated")
    made.save(str(tmp_path / "tokenizer.json"))
    data = read(root, tokenizer=str(tmp_path), tokens=16)
    assert data.x.vocab_size == len(pairs) + 1
    words = {k: p for k, p in enumerate(pairs)}
    for row in range(len(data)):
        stem, number = data.columns["group"][row].split(":")
        flat, _, _ = data.x.texts(np.array([row]))
        text = "".join(words[t] for t in flat.tolist())
        assert speech_of(root, stem)["text"][32 * int(number) :].startswith(text) and len(flat) == 16
    assert data.provenance["tokenizer"]["sha256"] == data.x.encoding


def test_what_is_missing_is_named_with_the_command_that_brings_it(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"npm install .*datasets-sotu@0\.2\.3"):
        read(tmp_path)
    with pytest.raises(DataError, match="npm install"):
        load("presidential_addresses", {"root": "no/such/folder"}, seed=0)
    for wrong, error, what in (
        ({"presidents": ["Nobody"]}, ConfigError, "Nobody.*Ada Elm"),
        ({"presidents": ["Ada Elm", "Ada Elm"]}, ConfigError, "twice"),
        ({"member": 1000}, DataError, "1000 are asked for"),
        ({"presidents": ["Di Fir"]}, DataError, "Di Fir has 0 held-out passages"),
        ({"num_presidents": 5}, DataError, "4 presidents are there, 5 are asked for"),
        ({"planted": 10_000}, DataError, "left to be planted"),
        ({"tokenizer": "no/such/model"}, ConfigError, "AddressesConfig.tokenizer = 'no/such/model'"),
        ({"tokenizer": str(tmp_path)}, ConfigError, "no model"),
        ({"max_bytes": 1024}, Exception, "max_bytes"),
    ):
        with pytest.raises(error, match=what):
            read(root, **wrong)


@pytest.mark.parametrize("said", ["[]", "{", '{"year": "1800", "name": "Ada Elm", "text": "x"}', '{"year": 1800}'])
def test_files_that_are_no_addresses_are_refused_by_name(tmp_path: Path, said: str) -> None:
    root = write_addresses(tmp_path)
    (root / FOLDER / "1801_ada_elm_n.json").write_text(said)
    with pytest.raises(DataError, match=r"1801_ada_elm_n\.json is no address"):
        read(root)


def test_templates_are_the_tokenizers_own_tokens(root: Path) -> None:
    told = [Bytes().decode(ids) for ids in read(root).provenance["templates"]]
    assert told == list(TEMPLATES) and all(ids[-1] == Bytes.eos for ids in read(root).provenance["templates"])


def test_the_licence_and_the_files_are_in_the_provenance(root: Path) -> None:
    data = read(root, planted=2, copies=2)
    assert "PDDL" in data.provenance["licence"] and "United States Government" in data.provenance["licence"]
    assert len(data.provenance["files"]) == len(set(data.columns["speech"]))
    assert any("2 further passages are planted" in note for note in data.provenance["notes"])
