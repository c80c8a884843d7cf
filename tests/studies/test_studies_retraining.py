"""The validation part: of the training examples alone, class by class, by the seed alone; too few are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_data import make_examples

from contracts.errors import NotApplicable
from studies.retraining import FEWEST_HELD_OUT, hold_out


@settings(max_examples=50)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**31 - 1),
)
def test_each_class_gives_its_share_and_keeps_an_example(counts, share, seed):
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    values = np.arange(len(y)) / 7
    data = make_examples(values[:, None].astype(np.float32), y, num_classes=len(counts), ids=np.arange(len(y)) * 3)
    want = [min(max(round(share * n), 1), n - 1) for n in counts]
    if sum(want) < FEWEST_HELD_OUT:
        with pytest.raises(
            NotApplicable, match=rf"it chooses on .* are {sum(want)}, at least 20 are needed: about \d+ examples"
        ):
            hold_out(data, values, share, seed=seed, name="it")
        return
    left, their_values, validation = hold_out(data, values, share, seed=seed, name="it")
    assert np.bincount(validation.y, minlength=len(counts)).tolist() == want
    assert sorted([*left.example_id, *validation.example_id]) == data.example_id.tolist()
    np.testing.assert_array_equal(their_values, left.example_id / 3 / 7)
    again = hold_out(data, values, share, seed=seed, name="it")
    assert np.array_equal(again[2].example_id, validation.example_id)


def test_another_seed_is_another_part():
    data = make_examples(np.zeros((200, 1), np.float32), np.arange(200) % 2, num_classes=2)
    parts = {tuple(hold_out(data, np.zeros(200), 0.2, seed=seed, name="it")[2].example_id) for seed in range(5)}
    assert len(parts) == 5
