"""Nearest neighbours against all pairs in double precision, with ties, and whatever the order of the points."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import explain.neighbours as module
from contracts.errors import InvalidInput
from explain.neighbours import nearest, unit_vectors, whole_rows


def naive(points: np.ndarray, k: int, queries: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Positions and rounded similarities by sorting every row of the whole matrix; equals by position."""
    asked = points if queries is None else queries
    similarity = np.round(asked.astype(np.float64) @ points.astype(np.float64).T, 6)
    if queries is None:
        np.fill_diagonal(similarity, -np.inf)
    position = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return position, np.take_along_axis(similarity, position, 1)


def clustered(seed: int, num: int = 300, dim: int = 8) -> np.ndarray:
    """Unit vectors about 20 centres, every third one an exact copy of another."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20, dim))[rng.integers(0, 20, num)] + 0.3 * rng.normal(size=(num, dim))
    x[::3] = x[rng.integers(0, num, len(x[::3]))]
    return unit_vectors(x.astype(np.float32))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 12), st.integers(1, 3))
def test_against_all_pairs_with_ties(seed: int, num: int, k: int, values: int) -> None:
    """Few distinct coordinates, so that most similarities occur many times."""
    points = unit_vectors(np.random.default_rng(seed).integers(-values, values + 1, (num, 3)).astype(np.float32))
    found = nearest(points, k=k)
    position, similarity = naive(points, min(k, num - 1))
    np.testing.assert_array_equal(found.similarity, similarity)
    np.testing.assert_array_equal(found.position, position)


@pytest.mark.parametrize("cells", [50, 5000, 4_000_000])
def test_blocks_change_nothing(monkeypatch, cells: int) -> None:
    points, queries = clustered(0), clustered(1, num=70)
    monkeypatch.setattr(module, "_CELLS", cells)
    monkeypatch.setattr(module, "_QUERIES", 1 + cells % 97)
    for asked in (None, queries):
        found = nearest(points, k=9, queries=asked)
        position, similarity = naive(points, 9, asked)
        np.testing.assert_array_equal(found.position, position)
        np.testing.assert_array_equal(found.similarity, similarity)


def test_more_equals_than_any_search_returns() -> None:
    """900 copies of one point among 1000: no list of candidates holds them all."""
    x = np.random.default_rng(2).normal(size=(1000, 6)).astype(np.float32)
    x[100:] = x[0]
    found = nearest(unit_vectors(x), k=3)
    assert found.position[0].tolist() == [100, 101, 102] and found.position[500].tolist() == [0, 100, 101]
    np.testing.assert_array_equal(found.position, naive(unit_vectors(x), 3)[0])


def test_the_order_of_the_points_permutes_the_answer() -> None:
    x = unit_vectors(np.random.default_rng(3).normal(size=(400, 16)).astype(np.float32))
    order = np.random.default_rng(4).permutation(400)
    first, second = nearest(x, k=5), nearest(x[order], k=5)
    np.testing.assert_array_equal(second.similarity, first.similarity[order])
    np.testing.assert_array_equal(order[second.position], first.position[order])


def test_rounding_makes_copies_of_different_batches_equal() -> None:
    x = np.repeat(clustered(5)[1:40:3], 4, axis=0)
    noisy = x.copy()
    noisy[1::2] = np.nextafter(noisy[1::2], np.float32(1))  # every coordinate of every other copy off by its last bit
    found = nearest(noisy, k=3)
    assert (found.similarity == 1).all()
    np.testing.assert_array_equal(found.position, nearest(x, k=3).position)


def test_hnsw_finds_nearly_all_and_is_the_same_twice() -> None:
    points = clustered(6, num=3000, dim=24)
    exact, first, second = (nearest(points, k=5, method=m) for m in ("exact", "hnsw", "hnsw"))
    np.testing.assert_array_equal(first.position, second.position)
    # Similarities, not positions: a copy is as good as another.
    assert np.isclose(first.similarity, exact.similarity, atol=2e-6).mean() > 0.98
    assert (first.position != np.arange(3000)[:, None]).all() and np.isfinite(first.similarity).all()


def test_hnsw_leaves_the_number_of_threads_as_it_was() -> None:
    before = faiss.omp_get_max_threads()
    nearest(clustered(7), k=2, method="hnsw")
    assert faiss.omp_get_max_threads() == before


def test_a_vector_of_zeros_is_like_its_own_kind_only() -> None:
    points = unit_vectors(np.array([[0, 0], [1, 1], [0, 0], [2, 2.5]], np.float32))
    found = nearest(points, k=1)
    assert found.position[:, 0].tolist() == [2, 3, 0, 1] and found.similarity[0, 0] == 1
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-38, 1e30])
def test_directions_do_not_depend_on_length(scale: float) -> None:
    x = np.random.default_rng(8).normal(size=(20, 4))
    np.testing.assert_allclose(
        unit_vectors((x * scale).astype(np.float32)), unit_vectors(x.astype(np.float32)), atol=1e-6
    )


def test_few_points_give_few_neighbours() -> None:
    one = unit_vectors(np.ones((1, 3), np.float32))
    assert nearest(one, k=4).position.shape == (1, 0)
    assert nearest(one, k=4, queries=np.repeat(one, 3, 0)).position.tolist() == [[0]] * 3
    assert nearest(one[:0], k=4).position.shape == (0, 0)


def test_whole_rows_are_the_matrix(monkeypatch) -> None:
    monkeypatch.setattr(module, "_CELLS", 700)
    points, rows = clustered(9), np.array([5, 0, 17, 299])
    seen = [(at, block) for at, block in whole_rows(points, points, rows)]
    assert len(seen) > 1 and np.concatenate([at for at, _ in seen]).tolist() == rows.tolist()
    exact = np.round(points[rows].astype(float) @ points.astype(float).T, 6)
    np.testing.assert_allclose(np.concatenate([block for _, block in seen]), exact, atol=1.1e-6)


def test_the_gpu_is_used_when_this_faiss_has_one(monkeypatch) -> None:
    """The wiring, with a stand-in: the index is given before points are added, and the answer is the same."""
    moved = []
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(
        faiss, "index_cpu_to_gpu", lambda r, d, index: moved.append((r, d, index.ntotal)) or index, raising=False
    )
    points = clustered(10)
    assert nearest(points, k=3).position.tolist() == naive(points, 3)[0].tolist()
    assert moved == [("resources", 0, 0)]


def test_refusals() -> None:
    points = clustered(11)
    for bad in ({"k": 0}, {"k": 1, "method": "annoy"}, {"k": 1, "queries": points[:, :3]}):
        with pytest.raises(InvalidInput):
            nearest(points, **bad)
    with pytest.raises(InvalidInput, match="float64"):
        nearest(points.astype(np.float64), k=1)
