"""Pairs: one affine for both, inputs and targets, hashes that tell the two apart, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from contracts.errors import DataError
from sources.payloads.base import Affine
from sources.payloads.pairs import Pairs
from sources.payloads.tokens import Tokens
from sources.rows import Rows

AFFINE = Affine(np.float32([[[2.0]]]), np.float32([[[0.5]]]))


def _images(seed, num=9, channels=1):
    return np.random.default_rng(seed).integers(0, 256, (num, channels, 3, 4), dtype=np.uint8)


def _texts(seed, num=9):
    rng = np.random.default_rng(seed)
    return Tokens.of([rng.integers(0, 9, n).astype(np.int32) for n in rng.integers(1, 7, num)], vocab_size=9)


def test_restoration_sees_the_first_and_is_compared_with_the_second():
    noisy, clean = _images(0), _images(1)
    pairs = Pairs(noisy, Rows([clean]), names=("noisy", "clean"), target=True)
    pairs.check()
    rows = np.array([4, 0])
    np.testing.assert_array_equal(pairs.inputs(rows, AFFINE), (noisy[rows].astype(np.float32) - 2) / 2)
    np.testing.assert_array_equal(pairs.targets(rows, AFFINE), (clean[rows].astype(np.float32) - 2) / 2)
    part = pairs.take(np.array([7, 4, 1]))
    np.testing.assert_array_equal(part.targets(slice(1, 2), AFFINE), pairs.targets(np.array([4]), AFFINE))
    assert pairs.shape == noisy.shape and pairs.nbytes == noisy.nbytes + clean.nbytes


def test_two_inputs_go_under_their_names():
    pairs = Pairs(_images(0), _images(1), names=("left", "right"))
    got = pairs.inputs(slice(2, 5), AFFINE)
    assert got.keys() == {"left", "right"} and pairs.targets(slice(2, 5), AFFINE) is None
    np.testing.assert_array_equal(got["right"], (_images(1)[2:5].astype(np.float32) - 2) / 2)


def test_chosen_and_rejected_texts_are_padded_each_for_itself():
    chosen, rejected = _texts(0), _texts(1)
    pairs = Pairs(chosen, rejected, names=("chosen", "rejected"))
    rows = np.array([3, 8, 0])
    got, labels = pairs.inputs(rows, AFFINE), pairs.targets(rows, AFFINE)
    for name, texts in (("chosen", chosen), ("rejected", rejected)):
        for key, values in texts.inputs(rows).items():
            np.testing.assert_array_equal(got[f"{name}_{key}"], values)
        np.testing.assert_array_equal(labels[name], texts.targets(rows))
    assert len(got) == 4


def test_swapping_or_shifting_between_the_two_is_another_example():
    a, b = [np.array([1, 2], np.int32)], [np.array([3], np.int32)]
    c, d = [np.array([1], np.int32)], [np.array([2, 3], np.int32)]

    def made(one, other):
        return Pairs(Tokens.of(one, vocab_size=9), Tokens.of(other, vocab_size=9)).row_bytes(slice(0, 1))[0]

    assert len({made(a, b), made(b, a), made(c, d), made(d, c)}) == 4


def test_blocks_cover_every_row_once():
    pairs = Pairs(np.zeros((700, 3, 64, 64), np.uint8), _texts(0, 700))
    assert [r for b in pairs.blocks() for r in range(b.start, b.stop)] == list(range(700))
    assert max(b.stop - b.start for b in pairs.blocks()) * 3 * 64 * 64 <= 4 * 2**20


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (lambda: Pairs(_images(0), _images(1, 8)), "9 of first, 8 of second"),
        (lambda: Pairs(_images(0), _images(1), names=("a", "a")), "two different words"),
        (lambda: Pairs(_images(0), _images(1), names=("A b", "c")), "two different words"),
        (lambda: Pairs(_images(0), np.zeros((9, 1, 3, 5), np.uint8)), r"shape \(1, 3, 4\), second of \(1, 3, 5\)"),
        (lambda: Pairs(_images(0), np.zeros((9, 2))), "second: x is float64"),
        (lambda: Pairs(_images(0), [1, 2]), "values of type list are no examples"),
    ],
)
def test_what_is_no_pair_is_refused(pairs, says):
    with pytest.raises(DataError, match=says):
        pairs().check()


def test_faults_say_which_of_the_two():
    bad = np.zeros((9, 2), np.float32)
    bad[3] = np.nan
    pairs = Pairs(np.zeros((9, 2), np.float32), bad, names=("noisy", "clean"))
    affine = Affine(np.zeros(2, np.float32), np.ones(2, np.float32))
    found = [(f.message, np.flatnonzero(f.rows).tolist()) for f in pairs.faults(affine) if f.rows.any()]
    assert found == [("clean: values are NaN or infinite (as scaled float32)", [3])]
