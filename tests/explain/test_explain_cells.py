"""Neighbours in cells: exact where every cell is compared with every other, nearly so otherwise, whatever the
blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import explain.cells as module
from explain.cells import in_cells
from explain.neighbours import nearest, unit_vectors


def clustered(seed: int, num: int, dim: int = 8, centres: int = 20) -> np.ndarray:
    """Unit vectors about some centres, every third one an exact copy of another."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(centres, dim))[rng.integers(0, centres, num)] + 0.3 * rng.normal(size=(num, dim))
    x[::3] = x[rng.integers(0, num, len(x[::3]))]
    return unit_vectors(x.astype(np.float32))


def gathered(points: np.ndarray, **settings: object) -> tuple[np.ndarray, np.ndarray]:
    k = settings["k"]
    position, similarity = np.full((len(points), k), -9), np.full((len(points), k), np.nan)
    for found in in_cells(lambda rows: points[rows], len(points), **settings):
        assert (position[found.rows] == -9).all()  # every point once
        position[found.rows], similarity[found.rows] = found.position, found.similarity
    assert (position > -9).all()
    return position, similarity


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 90), st.integers(1, 6), st.integers(1, 20))
def test_with_all_cells_compared_it_is_exact_search(seed: int, num: int, k: int, members: int) -> None:
    points = clustered(seed, num)
    position, similarity = gathered(points, k=k, seed=seed, members=members, probes=num)
    exact = nearest(points, k=k)
    there = exact.position.shape[1]
    np.testing.assert_array_equal(position[:, :there], exact.position)
    np.testing.assert_array_equal(similarity[:, :there], exact.similarity)
    assert (position[:, there:] == -1).all() and np.isneginf(similarity[:, there:]).all()


@pytest.mark.parametrize("size", [7, 100])
def test_blocks_and_what_is_remembered_change_nothing(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    points = clustered(1, 400)
    plain = gathered(points, k=5, seed=3, members=30, probes=4)
    monkeypatch.setattr(module, "_CHUNK", size)
    monkeypatch.setattr(module, "_CACHE", 1000)
    again = gathered(points, k=5, seed=3, members=30, probes=4)
    np.testing.assert_array_equal(plain[0], again[0])
    np.testing.assert_array_equal(plain[1], again[1])


@pytest.mark.parametrize("seed", range(3))
def test_few_neighbours_are_missed(seed: int) -> None:
    """5,000 points in 50 cells, each compared with 12 of them: copies are always found, neighbours nearly always."""
    points = clustered(seed, 5000, dim=16, centres=200)
    position, similarity = gathered(points, k=5, seed=seed, members=100)
    exact = nearest(points, k=5)
    recall = (exact.position[:, :, None] == position[:, None, :]).any(2).mean()
    assert recall >= 0.97
    copied = exact.similarity[:, 0] == 1.0
    np.testing.assert_array_equal(similarity[copied, 0], 1.0)


def test_vectors_are_computed_a_few_times_each_and_never_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    points, asked = clustered(0, 3000, centres=60), []
    monkeypatch.setattr(module, "_CHUNK", 256)
    monkeypatch.setattr(module, "_CACHE", 40_000)

    def vectors(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return points[rows]

    list(in_cells(vectors, 3000, k=3, seed=0, members=50, probes=6))
    sample, *later = asked
    assert sample == 16 * 60 and max(later) <= 256
    assert sum(later) <= 10 * 3000
