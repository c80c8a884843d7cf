"""Arrays and texts in a file without a name: they are what was put in, and the file is gone with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.loading import load
from sources.spool import Spool, Texts


@given(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=50), max_size=20))
def test_an_array_is_its_pieces_one_behind_the_other(pieces: list[list[int]]) -> None:
    spool = Spool(np.int32)
    for piece in pieces:
        spool.put(np.array(piece, np.int64))
    found = spool.array()
    assert found.dtype == np.int32 and len(found) == len(spool)
    np.testing.assert_array_equal(found, np.concatenate([*map(np.array, pieces), np.empty(0)]).astype(np.int32))
    found[:] = 7
    assert (found == 7).all()


@given(st.lists(st.text(max_size=20), max_size=20), st.integers(-25, 25), st.integers(-25, 25))
def test_texts_are_a_sequence_as_a_list_of_them_is(texts: list[str], start: int, stop: int) -> None:
    texts = [text for text in texts if text.isprintable()]
    found = Texts(texts)
    assert list(found) == texts and len(found) == len(texts) and found[start:stop] == texts[start:stop]
    for at in range(-len(texts), len(texts)):
        assert found[at] == texts[at]
    with pytest.raises(IndexError):
        found[len(texts)]


def test_the_file_has_no_name_and_goes_with_the_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spool = Spool(np.float64)
    spool.put(np.arange(10_000.0))
    array = spool.array()
    assert list(tmp_path.iterdir()) == [] and array.sum() == 10_000 * 9_999 / 2
    mapped = f"{tmp_path}/"
    assert mapped in Path("/proc/self/maps").read_text()
    del array, spool
    assert mapped not in Path("/proc/self/maps").read_text() and not list(tmp_path.iterdir())


@pytest.mark.journey
def test_what_texts_take_of_memory_is_their_columns_and_a_block(tmp_path: Path, peak_below) -> None:
    """Four million tokens: 20 MB of arrays, as many texts as large, and as much again as JSON, are never in memory."""
    rng, num = np.random.default_rng(0), 8_000
    with (tmp_path / "t.jsonl").open("w") as file:
        for row in range(num):
            text = rng.integers(97, 102, 500).astype(np.uint8).tobytes().decode()
            file.write(json.dumps({"text": text, "split": "test" if row % 2 else "train"}) + "\n")
    config = {"root": str(tmp_path), "file": "t.jsonl", "split": "split"}
    with peak_below(19e6):
        data = load("text", config)
    assert data.x.num_tokens == num * 502
