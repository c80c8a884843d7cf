"""Tokens: padding and targets against a naive loop, any order and subset, hostile arrays, bounded memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sources.rows
from contracts.errors import DataError
from sources.identity import Content
from sources.payloads.base import Affine
from sources.payloads.files import open_payload, write_payload
from sources.payloads.tokens import NOT_COUNTED, Tokens

TEXT = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 1)), min_size=0, max_size=9)
AFFINE = Affine(np.zeros((), np.float32), np.ones((), np.float32))


def _tokens(texts, **more):
    ids = [np.array([t for t, _ in text], np.int32) for text in texts]
    marks = [np.array([m for _, m in text], np.uint8) for text in texts]
    return Tokens.of(ids, marks, vocab_size=20, pad=3, **more)


def _naive(texts):
    width = max([1, *map(len, texts)])
    ids = [[t for t, _ in text] + [3] * (width - len(text)) for text in texts]
    there = [[1] * len(text) + [0] * (width - len(text)) for text in texts]
    labels = [[t if m else NOT_COUNTED for t, m in text] + [NOT_COUNTED] * (width - len(text)) for text in texts]
    return [np.array(v, np.int64).reshape(len(texts), width) for v in (ids, there, labels)]


@given(texts=st.lists(TEXT, min_size=1, max_size=12), data=st.data())
def test_any_rows_of_any_subset_are_the_padded_texts(texts, data):
    tokens = _tokens(texts)
    for _ in range(3):  # subsets of subsets
        rows = np.array(data.draw(st.lists(st.sampled_from(range(len(texts))), unique=True, min_size=1)), np.int64)
        tokens, texts = tokens.take(rows), [texts[r] for r in rows]
        assert tokens.shape == (len(texts), max(map(len, texts)))
        some = data.draw(st.lists(st.sampled_from(range(-len(texts), len(texts)))))
        start, stop = sorted(data.draw(st.tuples(st.integers(0, len(texts)), st.integers(0, len(texts)))))
        mask = np.isin(np.arange(len(texts)), some)
        for chosen, meant in (
            (np.array(some, np.int64), [texts[i] for i in some]),
            (slice(start, stop), texts[start:stop]),
            (slice(None, None, 2), texts[::2]),
            (mask, [text for text, m in zip(texts, mask, strict=True) if m]),
        ):
            ids, there, labels = _naive(meant)
            got = tokens.inputs(chosen)
            np.testing.assert_array_equal(got["input_ids"], ids)
            np.testing.assert_array_equal(got["attention_mask"], there)
            np.testing.assert_array_equal(tokens.targets(chosen), labels)
            assert got["input_ids"].dtype == got["attention_mask"].dtype == np.int64
        assert tokens.num_tokens == sum(map(len, texts))


@given(texts=st.lists(TEXT, min_size=1, max_size=20), size=st.integers(1, 400))
def test_blocks_cover_every_row_once_and_stay_below_their_size(texts, size):
    tokens = _tokens(texts).take(np.arange(len(texts))[::-1])
    before, sources.rows.BLOCK_BYTES = sources.rows.BLOCK_BYTES, size
    try:
        blocks = list(tokens.blocks())
    finally:
        sources.rows.BLOCK_BYTES = before
    assert [r for b in blocks for r in range(b.start, b.stop)] == list(range(len(texts)))
    for block in blocks:
        held = sum(16 * (len(text) + 1) for text in texts[::-1][block])
        assert held <= size or block.stop - block.start == 1


@given(texts=st.lists(TEXT, min_size=2, max_size=15), data=st.data())
def test_hashes_and_ids_follow_the_text_wherever_it_stands(texts, data):
    whole = Content(_tokens(texts))
    by_text = dict(zip(map(tuple, texts), whole.hashes().tolist(), strict=True))
    assert len(set(by_text.values())) == len(by_text), "two different texts have one hash"
    order = np.array(data.draw(st.permutations(range(len(texts)))))
    moved = Content(_tokens(texts).take(order))
    assert moved.hashes().tolist() == [by_text[tuple(texts[i])] for i in order]
    gone = data.draw(st.integers(0, len(texts) - 1))
    left = Content(_tokens(texts[:gone] + texts[gone + 1 :]))
    assert set(left.ids().tolist()) <= set(whole.ids().tolist())
    assert sorted(moved.ids().tolist()) == sorted(whole.ids().tolist())


def test_marks_and_length_are_part_of_a_text():
    same = [(1, 1), (2, 1)]
    others = [same, [(1, 0), (2, 1)], [(1, 1)], [(1, 1), (2, 1), (0, 0)]]
    assert len(set(Content(_tokens(others)).hashes().tolist())) == 4


def test_faults_name_the_texts():
    texts = [[(1, 1), (2, 1)], [(1, 1)], [(1, 1), (2, 0)], [], [(19, 0), (19, 1)]]
    faults = {f.message: f.rows.tolist() for f in _tokens(texts).faults()}
    assert faults["no token counts behind the first: there is nothing to predict"] == [False, True, True, True, False]
    assert {m: r for m, r in faults.items() if any(r)}.keys() == {
        "no token counts behind the first: there is nothing to predict"
    }
    labelled = {f.message: f.rows.tolist() for f in _tokens(texts).faults(labelled=True)}
    assert labelled["texts without a token"] == [False, False, False, True, False]
    small = Tokens.of([np.array([0, 4, 1], np.int32), np.array([0, 5, -1], np.int32)], vocab_size=5)
    assert [f.rows.tolist() for f in small.faults() if f.rows.any()] == [[False, True]]
    odd = Tokens(np.arange(6, dtype=np.int32), small.offsets, np.array([0, 1, 0, 0, 2, 0], np.uint8), vocab_size=9)
    assert [(f.message[:5], f.rows.tolist()) for f in odd.faults() if f.rows.any()] == [("marks", [False, True])]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"flat": np.zeros(4, np.int64)}, "flat is int64"),
        ({"offsets": np.array([0, 4], np.int32)}, "offsets is int32"),
        ({"counted": np.ones(4, bool)}, "counted is bool"),
        ({"counted": np.ones(3, np.uint8)}, "3 marks for 4 tokens"),
        ({"offsets": np.empty(0, np.int64)}, "offsets is empty"),
        ({"pad": 9}, r"pad = 9 is outside 0\.\.8"),
        ({"offsets": np.array([0, 5], np.int64)}, "run from 0 to 5, there are 4"),
        ({"offsets": np.array([-1, 4], np.int64)}, "run from -1"),
        ({"offsets": np.array([0, 3, 2, 4], np.int64)}, "fall behind text 1: 3, 2"),
    ],
)
def test_arrays_that_are_no_texts_are_refused(change, says):
    good = {
        "flat": np.zeros(4, np.int32),
        "offsets": np.array([0, 4]),
        "counted": np.ones(4, np.uint8),
        "vocab_size": 9,
    }
    Tokens(**good).check()
    with pytest.raises(DataError, match=says):
        Tokens(**(good | change)).check()


def test_rows_out_of_range_are_refused():
    tokens = _tokens([[(1, 1)], [(2, 1)]])
    for rows in (np.array([2]), np.array([-3]), np.ones(3, bool)):
        with pytest.raises(IndexError):
            tokens.inputs(rows)


def _file(folder, num_tokens, per_text=100):
    """A payload file of so many tokens, written from texts of equal length."""
    rng = np.random.default_rng(0)
    flat = rng.integers(0, 500, num_tokens).astype(np.int32)
    offsets = np.arange(0, num_tokens + 1, per_text, dtype=np.int64)
    path = folder / f"{num_tokens}.safetensors"
    tokens = Tokens(flat, offsets, np.ones(num_tokens, np.uint8), vocab_size=500)
    write_payload(path, tokens, example_id=np.arange(len(tokens)))
    return path


@pytest.mark.promise("D5")
def test_peak_memory_of_a_pass_does_not_grow_with_the_file(tmp_path):
    """Inputs and targets of 10**5 and 10**7 tokens, batch by batch: +10% at most."""
    peaks = {}
    for size in (10**5, 10**7):
        path = _file(tmp_path, size)
        tokens = open_payload(path).x
        tracemalloc.start()
        total = 0
        for start in range(0, len(tokens), 64):
            rows = slice(start, min(start + 64, len(tokens)))
            total += int(tokens.inputs(rows)["attention_mask"].sum())
            total += int((tokens.targets(rows) != NOT_COUNTED).sum())
        peaks[size] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == 2 * size
    assert peaks[10**7] <= 1.1 * peaks[10**5], peaks


_CHILD = """
import resource, sys
from pathlib import Path
import numpy as np
from sources.payloads.files import open_payload

def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))

tokens = open_payload(Path(sys.argv[1])).x
most, before = 0, anonymous()
rng = np.random.default_rng(0)
for _ in range(100):
    tokens.inputs(rng.integers(0, len(tokens), 64))
    most = max(most, anonymous() - before)
print(most)
"""


def test_a_process_that_reads_at_random_holds_a_batch_and_not_the_file(tmp_path):
    """Memory of its own (not the pages of the file, which the system may drop): under 4 MB with 10**7 tokens of 40
    MB.
    """
    out = subprocess.run(
        [sys.executable, "-c", _CHILD, str(_file(tmp_path, 10**7))], capture_output=True, text=True, check=True
    )
    assert int(out.stdout) < 4096
