"""Linear CKA: what it does not see, what it does, and the two ways to compute it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group

from contracts.errors import InvalidInput
from explain.similarity import linear_cka


def data(seed: int, num: int = 40, dim: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, dim)) * np.arange(1, dim + 1)


@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.sampled_from([(40, 6), (8, 20)]))
def test_rotation_and_scale_are_not_seen(seed, scale, shape):
    x = data(seed, *shape)
    q = ortho_group.rvs(shape[1], random_state=seed)
    assert linear_cka(x, scale * x @ q + 3.0) == pytest.approx(1.0, abs=1e-9)


@given(st.integers(0, 1000), st.sampled_from([(40, 6, 4), (8, 20, 5), (8, 5, 20)]))
def test_it_is_symmetric_in_the_unit_interval_and_both_ways_agree(seed, shape):
    x, y = data(seed, *shape[:2]), data(seed + 1, shape[0], shape[2])
    found = linear_cka(x, y)
    assert found == pytest.approx(linear_cka(y, x), abs=1e-12) and 0 <= found <= 1
    h = np.eye(shape[0]) - 1 / shape[0]
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    assert found == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()), rel=1e-9)


def test_independent_features_are_unlike_and_a_stretch_is_seen():
    x = data(0, 20_000, 3)
    assert linear_cka(x, data(1, 20_000, 3)) < 0.01
    assert linear_cka(x, x * [10.0, 1.0, 0.1]) < 0.9


def test_what_says_the_same_of_everybody_has_no_cka_and_shapes_must_fit():
    assert np.isnan(linear_cka(np.ones((4, 2)), data(0, 4, 2)))
    for wrong in (data(0, 5, 2), np.full((4, 2), np.nan)):
        with pytest.raises(InvalidInput):
            linear_cka(data(0, 4, 2), wrong)
    with pytest.raises(InvalidInput):
        linear_cka(data(0, 1, 2), data(0, 1, 2))
