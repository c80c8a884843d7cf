"""Nearest neighbours by cosine similarity, behind one function: exact, or HNSW for sets too large for N^2.

    similarity(a, b) = <a, b>,  |a| = |b| = 1,  rounded to 1e-6        points (N, d) float32, queries (Q, d) float32

faiss proposes candidates in single precision; they are measured again in double precision and ranked by (similarity,
smaller position first). An answer counts only when no point outside the candidates could belong to it; the rows where
that is not sure (many equal similarities) are searched wider, at last against every point. So the exact answer depends
neither on faiss' blocking, nor on threads, nor on which of two equal points it met first. Rounding makes copies equal
whose activations differ in the last bits because they went through the network in different batches.

Source: Johnson, Douze, Jegou, "Billion-scale similarity search with GPUs" (arXiv 1702.08734); Malkov & Yashunin, HNSW
(arXiv 1603.09320). Exact search runs on the GPU when this faiss is the GPU build and finds one. HNSW is approximate,
and is built by one thread, because the graph depends on the order in which threads insert.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from torch import nn

from contracts.errors import InvalidInput
from contracts.progress import Progress, silent
from recipes.streaming import check_outputs
from sources.example_set import ExampleSet
from tasks.base import require

METHODS = ("exact", "hnsw")
CELLS = "cells"  # explain.cells, for those who keep no vectors
DECIMALS = 6
_SLACK = 4  # candidates beyond k of the first search
_WIDER, _WIDEST = 8, 600  # factor of the next search, and where searching ends and comparing with everything begins
_CELLS = 4_000_000  # similarities, or coordinates of candidates, held at a time
_QUERIES = 16_384  # rows a call of faiss
_HNSW_LINKS, _HNSW_BUILD, _HNSW_SEARCH = 12, 40, 24  # recall above 0.99 on the embeddings of trained models

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest points of Q queries, nearest first, equals by position.

    Attributes:
        position: int64 (Q, k), rows of the points.
        similarity: float64 (Q, k), at most 1 up to rounding.
    """

    position: Ints
    similarity: Floats


def by_id(name: str, data: ExampleSet, model: nn.Module) -> ExampleSet:
    """The examples ordered by id, so that nothing after this depends on the order of the rows, once they fit the model.

    Raises:
        NotApplicable: a ranking task, or a model without logits.
        DataError: ids used twice, labels outside the model's outputs.
    """
    require(data, name, "features")
    ordered = data.by_id()
    if data.task.gives("classes"):
        check_outputs(name, ordered, model)
    return ordered


def unit_vectors(vectors: NDArray[np.float32], *, always_more: bool = False) -> NDArray[np.float32]:
    """Directions of (N, d) vectors, float32 (N, d).

    A vector of zeros (no unit fires) has none: when there are any, all get one more coordinate, 1 for these and 0 for
    the others, so that they are like one another and unlike the rest. ``always_more`` gives it to vectors without zeros
    too, for those who see the vectors in parts.

    >>> unit_vectors(np.array([[3, 4], [0, 0]], np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929, 0.0], [0.0, 0.0, 1.0]]
    """
    out = np.empty(vectors.shape, np.float32)
    length = np.empty(len(vectors))
    for rows in blocks_of(len(vectors), vectors.shape[1]):
        block = vectors[rows].astype(np.float64)
        length[rows] = np.sqrt(np.square(block).sum(1))
        out[rows] = block / np.where(length[rows] > 0, length[rows], 1.0)[:, None]
    if (length > 0).all() and not always_more:
        return out
    return np.column_stack([out, (length == 0).astype(np.float32)])


def nearest(
    points: NDArray[np.float32],
    *,
    k: int,
    queries: NDArray[np.float32] | None = None,
    method: str = "exact",
    progress: Progress = silent,
) -> Neighbours:
    """The k most similar points of each query.

    Args:
        points: (N, d) float32, unit length.
        k: >= 1; at most N (N - 1 without ``queries``) are given.
        queries: (Q, d) float32, unit length; without them every point is asked for its neighbours other than itself.
        method: "exact" or "hnsw".
        progress: called with (queries done, in all, "nearest neighbours").

    Raises:
        InvalidInput: k < 1, an unknown method, arrays that are not float32 or do not fit.
    """
    if k < 1 or method not in METHODS:
        raise InvalidInput(f"k = {k} must be >= 1 and method = {method!r} one of {', '.join(METHODS)}")
    asked = points if queries is None else queries
    for name, array in (("points", points), ("queries", asked)):
        if array.dtype != np.float32 or array.ndim != 2 or array.shape[1] != points.shape[1]:
            raise InvalidInput(f"{name} are {array.dtype} {array.shape}; float32 (*, {points.shape[-1]}) are needed")
    itself = queries is None
    k = max(0, min(k, len(points) - itself))
    position, similarity = np.empty((len(asked), k), np.int64), np.empty((len(asked), k))
    if position.size:
        index = _flat(points) if method == "exact" else _hnsw(points, search=max(_HNSW_SEARCH, 2 * k))
        for start in range(0, len(asked), _QUERIES):
            rows = np.arange(start, min(start + _QUERIES, len(asked)))
            for done, p, s in _search(index, points, asked, rows, k, itself=itself, exact=method == "exact"):
                position[done], similarity[done] = p, s
            progress(int(rows[-1]) + 1, len(asked), "nearest neighbours")
    return Neighbours(position, similarity)


def whole_rows(points: NDArray[np.float32], queries: NDArray[np.float32], rows: Ints) -> Iterator[tuple[Ints, Floats]]:
    """(rows, similarities to every point float64 (b, N)) in blocks of bounded size: double precision, no index."""
    for block in blocks_of(len(rows), len(points)):
        query = queries[rows[block]].astype(np.float64)
        similarity = np.empty((len(query), len(points)))
        for columns in blocks_of(len(points), points.shape[1]):
            similarity[:, columns] = query @ points[columns].astype(np.float64).T
        yield rows[block], np.round(similarity, DECIMALS, out=similarity)


def _search(
    index: Any,
    points: NDArray[np.float32],
    queries: NDArray[np.float32],
    rows: Ints,
    k: int,
    *,
    itself: bool,
    exact: bool,
) -> Iterator[tuple[Ints, Ints, Floats]]:
    """(rows, positions, similarities) of the rows whose answer is sure, until all are."""
    # Single precision: d products of unit vectors, and the rounding of what they are compared with.
    margin = 10.0**-DECIMALS + 4 * np.sqrt(points.shape[1]) * float(np.finfo(np.float32).eps)
    wanted = fewest = k + itself + (_SLACK if exact else 0)
    while len(rows) and wanted <= max(_WIDEST, fewest):
        wanted = min(wanted, len(points))
        least, candidates = index.search(np.ascontiguousarray(queries[rows]), wanted)
        position, similarity = _ranked(points, queries, rows, candidates, k, itself=itself)
        sure = np.isfinite(similarity[:, -1])  # HNSW may have found fewer than k
        if exact and wanted < len(points):
            sure = similarity[:, -1] > least[:, -1] + margin
        yield rows[sure], position[sure], similarity[sure]
        rows, wanted = rows[~sure], wanted * _WIDER
    for block, whole in whole_rows(points, queries, rows):
        if itself:
            whole[np.arange(len(block)), block] = -np.inf
        yield block, *_largest(whole, k)


def _ranked(
    points: NDArray[np.float32],
    queries: NDArray[np.float32],
    rows: Ints,
    candidates: Ints,
    k: int,
    *,
    itself: bool,
) -> tuple[Ints, Floats]:
    """The best k candidates of each row, measured in double precision; absent ones (-1) and oneself come last."""
    candidates = np.sort(candidates.astype(np.int64), axis=1)
    similarity = np.empty(candidates.shape)
    for block in blocks_of(len(rows), candidates.shape[1] * points.shape[1]):
        near, query = points[candidates[block]].astype(np.float64), queries[rows[block]].astype(np.float64)
        similarity[block] = np.matmul(near, query[:, :, None])[..., 0]
    np.round(similarity, DECIMALS, out=similarity)
    similarity[(candidates < 0) | ((candidates == rows[:, None]) & itself)] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(candidates, order, 1), np.take_along_axis(similarity, order, 1)


def _largest(similarity: Floats, k: int) -> tuple[Ints, Floats]:
    """Positions and values of the k largest of each row; equals by position, without sorting the rows."""
    kth = np.partition(similarity, -k, axis=1)[:, -k, None]
    equal = similarity == kth
    room = k - (similarity > kth).sum(1, keepdims=True)
    chosen = (similarity > kth) | (equal & (equal.cumsum(1) <= room))
    position = np.nonzero(chosen)[1].reshape(-1, k)
    value = np.take_along_axis(similarity, position, 1)
    order = np.argsort(-value, axis=1, kind="stable")
    return np.take_along_axis(position, order, 1), np.take_along_axis(value, order, 1)


def _flat(points: NDArray[np.float32]) -> Any:
    index: Any = faiss.IndexFlatIP(points.shape[1])
    if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    index.add(np.ascontiguousarray(points))
    return index


def _hnsw(points: NDArray[np.float32], *, search: int) -> Any:
    index: Any = faiss.IndexHNSWFlat(points.shape[1], _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = _HNSW_BUILD, search
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.add(np.ascontiguousarray(points))
    finally:
        faiss.omp_set_num_threads(threads)
    return index


def blocks_of(num: int, width: int) -> Iterator[slice]:
    """Slices of so many rows that ``width`` float32 numbers a row stay within ``_CELLS``; a float64 counts as two."""
    step = max(1, _CELLS // max(width, 1))
    return (slice(start, min(start + step, num)) for start in range(0, num, step))
