"""Nearest neighbours of more points than memory holds: cells of alike points, each point compared with the cells next
to it.

    cell(x) = argmax_c <h(x), m_c>,   m_c (C, d) spherical k-means of a sample;   candidates(x) = points of the P cells
                                      with the largest <h(x), m_c>

No vector is kept: a cell's vectors are computed when it is compared, and forgotten soon after, so that each is computed
some times and never stored. What stays is one cell number a point. Within the candidates the search is exact; a
neighbour that lies in none of the P cells is missed (benchmarks/neighbours.py measures how many), as with every
inverted file.

Source: Sivic & Zisserman, "Video Google" (ICCV 2003); Jegou, Douze, Schmid, "Product Quantization for Nearest Neighbor
    Search"
(PAMI 2011), the inverted file, without quantization. Not for sets that fit in memory: "exact" is exact, "hnsw" faster.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from torch import nn

from contracts.progress import Progress, silent
from explain.embeddings import embeddings
from explain.neighbours import Floats, Ints, nearest, unit_vectors
from sources.example_set import ExampleSet

Vectors = NDArray[np.float32]
_MEMBERS, _MOST = 250, 4_096  # points a cell should have on average, and the most cells
_PROBES = 24  # cells compared with a point
_SAMPLE = 16  # points a centre, of the sample that k-means sees
_CHUNK = 16_384  # points asked about at a time, and of a cell compared with them
_CACHE = 24 * 2**20  # bytes of vectors remembered


@dataclass(frozen=True, eq=False)
class Found:
    """The neighbours of some points.

    Attributes:
        rows: int64 (B,), positions of the points asked about.
        position, similarity: (B, k), nearest first, equals by position; position -1 and similarity -inf where a cell
            and those around it hold too few others.
    """

    rows: Ints
    position: Ints
    similarity: Floats


def in_cells(
    vectors: Callable[[Ints], Vectors],
    num: int,
    *,
    k: int,
    seed: int,
    members: int = _MEMBERS,
    probes: int = _PROBES,
    progress: Progress = silent,
) -> Iterator[Found]:
    """The k most similar others of every point, cell by cell, every point once.

    Args:
        vectors: ascending positions (B,) int64 -> unit vectors (B, d) float32, always the same for the same positions.
        num: points, >= 1.
        k: neighbours, >= 1.
        seed: of the sample and the centres.
        members: points a cell should have on average.
        probes: cells compared with a cell.
        progress: called with (points done, in all, "nearest neighbours").
    """
    centres = _centres(vectors, num, min(max(1, num // members), _MOST), seed)
    cell = _assigned(vectors, num, centres)
    order = np.argsort(cell, kind="stable").astype(np.int64 if num > np.iinfo(np.int32).max else np.int32)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=len(centres)))])
    del cell
    remembered = _Cells(vectors, order, bounds)
    done = 0
    for rows, queries in _together(part for cell in _tour(centres) for part in remembered(cell)):
        yield _among(remembered, centres, rows, queries, k, min(probes, len(centres)))
        done += len(rows)
        progress(done, num, "nearest neighbours")


def _together(parts: Iterable[tuple[Ints, Vectors]]) -> Iterator[tuple[Ints, Vectors]]:
    """Parts that follow one another, as many as hold at most ``_CHUNK`` points."""
    held: list[tuple[Ints, Vectors]] = []
    for part in parts:
        if held and sum(len(rows) for rows, _ in held) + len(part[0]) > _CHUNK:
            yield np.concatenate([rows for rows, _ in held]), np.concatenate([vectors for _, vectors in held])
            held = []
        held.append(part)
    if held:
        yield np.concatenate([rows for rows, _ in held]), np.concatenate([vectors for _, vectors in held])


def vectors_of(data: ExampleSet, model: nn.Module, *, batch: int) -> Callable[[Ints], Vectors]:
    """positions -> directions of the penultimate activations, computed anew at every call."""
    return lambda rows: unit_vectors(embeddings(model, data.take(rows), batch=batch), always_more=True)


def _centres(vectors: Callable[[Ints], Vectors], num: int, count: int, seed: int) -> Vectors:
    """(C, d) unit vectors; fewer than ``count`` when the points are."""
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(num, min(num, count * _SAMPLE), replace=False))
    points = vectors(sample)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # the sums of k-means depend on how they are shared among threads
    try:
        trained = faiss.Kmeans(
            points.shape[1],
            min(count, len(points)),
            niter=10,
            spherical=True,
            seed=int(rng.integers(2**31)),
            min_points_per_centroid=1,
            max_points_per_centroid=_SAMPLE,
        )
        trained.train(points)
    finally:
        faiss.omp_set_num_threads(threads)
    return np.ascontiguousarray(trained.centroids)


def _assigned(vectors: Callable[[Ints], Vectors], num: int, centres: Vectors) -> NDArray[np.int32]:
    cell = np.empty(num, np.int32)
    for start in range(0, num, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, num))
        cell[rows] = nearest(centres, k=1, queries=vectors(rows)).position[:, 0]
    return cell


def _tour(centres: Vectors) -> list[int]:
    """An order of the cells in which neighbours follow one another, so that their vectors are still remembered."""
    if len(centres) < 3:
        return list(range(len(centres)))
    left = np.ones(len(centres), bool)
    tour = np.empty(len(centres), np.int64)
    at = 0
    for step in range(len(centres)):
        tour[step] = at
        left[at] = False
        at = int(np.where(left, centres @ centres[at], -np.inf).argmax())
    return tour.tolist()  # type: ignore[no-any-return]


class _Cells:
    """(positions ascending (B,), vectors (B, d)) of a cell, in parts of bounded size; those asked for lately are
    remembered."""

    def __init__(self, vectors: Callable[[Ints], Vectors], order: NDArray[Any], bounds: Ints) -> None:
        self._vectors, self._order, self._bounds = vectors, order, bounds
        self._kept: OrderedDict[int, tuple[Ints, Vectors]] = OrderedDict()  # by where the part starts in the order
        self._bytes = 0

    def __call__(self, cell: int) -> Iterator[tuple[Ints, Vectors]]:
        for start in range(int(self._bounds[cell]), int(self._bounds[cell + 1]), _CHUNK):
            if start in self._kept:
                self._kept.move_to_end(start)
            else:
                rows = self._order[start : min(start + _CHUNK, self._bounds[cell + 1])].astype(np.int64)
                self._kept[start] = rows, self._vectors(rows)
                self._bytes += self._kept[start][1].nbytes
            part = self._kept[start]
            while self._bytes > _CACHE and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1][1].nbytes
            yield part


def _among(remembered: _Cells, centres: Vectors, rows: Ints, queries: Vectors, k: int, probes: int) -> Found:
    """The best of ``rows`` among the points of the cells next to each of them."""
    position, similarity = np.full((len(rows), k), -1, np.int64), np.full((len(rows), k), -np.inf)
    near = nearest(centres, k=probes, queries=queries).position
    asking = np.argsort(near, axis=None, kind="stable")
    cells, starts = np.unique(near.ravel()[asking], return_index=True)
    for cell, mine in zip(cells.tolist(), np.split(asking // probes, starts[1:]), strict=True):
        for candidates, points in remembered(cell):
            found = nearest(points, k=k + 1, queries=queries[mine])
            others = candidates[found.position]
            here = np.where(others == rows[mine, None], -np.inf, found.similarity)
            position[mine], similarity[mine] = _best(
                np.concatenate([position[mine], others], axis=1), np.concatenate([similarity[mine], here], axis=1), k
            )
    return Found(rows, position, similarity)


def _best(position: Ints, similarity: Floats, k: int) -> tuple[Ints, Floats]:
    """The k most similar of each row, equals by position, those that do not count last."""
    position = np.where(np.isneginf(similarity), -1, position)
    order = np.lexsort((position, -similarity), axis=1)[:, :k]
    return np.take_along_axis(position, order, 1), np.take_along_axis(similarity, order, 1)
