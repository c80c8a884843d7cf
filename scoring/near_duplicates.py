"""Near duplicates among the training examples, as the audited model sees them.

    s_ij = cos(h(x_i), h(x_j)),   h = penultimate activations;   i ~ j when s_ij >= threshold (mutual, s is symmetric)
    group of i = connected component of i in that graph, named by its smallest id;   similarity_i = max over j != i of s_ij

Duplicates share memorisation: with the twin left in, an example is predicted whether or not it was trained on, and its
memorization looks like that of a typical one. An erased example is not gone while its twin is there. Hence the groups.

Source: definition; the graph of near duplicates of Lee et al., "Deduplicating Training Data Makes Language Models Better"
(ACL 2022, arXiv 2107.06499), section 4, on embeddings. Components chain (a ~ b ~ c makes one group of a and c): a threshold low
enough to join whole classes says nothing, so look at the largest groups first. Not a test of identity: what the model does
not tell apart counts as equal; ``num_copies`` counts what is equal byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from contracts.errors import InvalidInput
from contracts.methods import Call, ScoreSpec, score
from contracts.params import Config, param
from contracts.tables import Column
from recipes.embeddings import embeddings
from scoring.cells import in_cells, vectors_of
from scoring.neighbours import CELLS, METHODS, Ints, Neighbours, by_id, nearest, unit_vectors, whole_rows
from sources.example_set import ExampleSet

_EDGES = 250_000  # pairs held before they are joined
_HASHES = 16_384  # hashes read at a time
_LIST = 4  # neighbours asked for; an example with more at the threshold is compared with everything


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicatesConfig(Config):
    """What counts as a near duplicate, and how neighbours are found."""

    threshold: float = param(0.995, gt=0, le=1, doc="smallest cosine similarity of near duplicates")
    index: str = param(
        "exact",
        choices=(*METHODS, CELLS),
        doc="exact search; the approximate hnsw for more than some 10^5; cells for more than memory holds",
    )
    batch: int = param(1024, ge=1, le=1_000_000, doc="examples a forward pass; bounds memory")


@score(
    ScoreSpec(
        name="near_duplicates",
        doc="Near duplicates: cosine similarity to the nearest other training example in the model's penultimate layer.",
        source="definition; Lee et al., ACL 2022 (arXiv 2107.06499), section 4",
        config=NearDuplicatesConfig,
        needs=("model",),
        tasks=("classification", "regression"),
        columns=(
            Column(
                name="similarity", dtype="float64", low=-1, high=1, nullable=True, direction="higher = more duplicated",
                doc="cosine similarity to the nearest other training example; null when there is no other",
            ),
            Column(
                name="nearest_id", dtype="int64", low=0, nullable=True,
                doc="id of that example, the smaller one of equals; null when there is no other",
            ),
            Column(
                name="same_label", dtype="bool", nullable=True,
                doc="the nearest example has the same label (regression: the same target)",
            ),
            Column(name="group_id", dtype="int64", low=0, doc="smallest id of the group; its own when it is alone"),
            Column(name="group_size", dtype="int64", low=1, doc="members of the group; 1 = no near duplicate"),
            Column(name="group_labels", dtype="int64", low=1, doc="different labels (targets) in the group; above 1 = they conflict"),
            Column(name="num_copies", dtype="int64", low=0, doc="other training examples with the same values, byte for byte"),
        ),
        value="similarity",
        higher_means="duplicated",
        calls=Call("duplicate", column="group_size", above=1),
    )
)  # fmt: skip
def near_duplicates(data: ExampleSet, *, config: NearDuplicatesConfig, seed: int, model: nn.Module) -> pl.DataFrame:
    """Nearest example and near-duplicate group of every example.

    Args:
        data: N training examples, classification or regression.
        config: threshold, index and batch.
        seed: of the cells; not used otherwise.
        model: the audited model; left as it is.

    Returns:
        One row an example, ordered by id; columns as declared.

    Raises:
        NotApplicable: a ranking task, or a model without penultimate activations.
        DataError: ids used twice, labels outside the model's outputs, activations that are not finite.
    """
    ordered = by_id("near_duplicates", data, model)
    # One column after the other, and first what needs most room: a long table exists once and not also as arrays.
    columns = [pl.Series("num_copies", _copies(ordered.content_hash))]
    if config.index == CELLS:
        group, near, similarity = _in_cells(ordered, model, config, seed)
    else:
        points = unit_vectors(embeddings(model, ordered, batch=config.batch))
        group, found = duplicate_groups(points, threshold=config.threshold, method=config.index)
        alone = not found.position.shape[1]  # at most one example: nobody has a neighbour
        near = np.full(len(ordered), -1) if alone else found.position[:, 0]
        similarity = np.full(len(ordered), np.nan) if alone else found.similarity[:, 0]
    ids = ordered.example_id
    columns.append(pl.Series("similarity", similarity.clip(-1, 1, out=similarity), nan_to_null=True))
    del similarity
    columns.append(pl.Series("group_labels", _labels_in(group, ordered.y)))
    columns.append(pl.Series("group_size", np.bincount(group, minlength=len(group))[group]))
    columns.append(pl.Series("group_id", ids[group]))
    del group
    known = pl.Series("known", near >= 0)
    columns.append(pl.Series("same_label", ordered.y[near] == ordered.y))
    columns.append(pl.Series("nearest_id", ids[near]))  # of those who have none the last, which is taken back below
    del near
    frame = pl.DataFrame([pl.Series("example_id", ids), *columns])
    if known.all():
        return frame
    return frame.with_columns(pl.when(known).then(pl.col("similarity", "nearest_id", "same_label")))


def _in_cells(
    ordered: ExampleSet, model: nn.Module, config: NearDuplicatesConfig, seed: int
) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """(group, nearest, similarity) of every example, (N,) each, nothing kept but these."""
    num, vectors = len(ordered), vectors_of(ordered, model, batch=config.batch)
    groups, near, similarity = Groups(num, config.threshold), np.full(num, -1), np.full(num, np.nan)
    for found in in_cells(vectors, num, k=1, seed=seed, alike=groups) if num else ():
        alone = np.isneginf(found.similarity[:, 0])
        near[found.rows] = found.position[:, 0]
        similarity[found.rows] = np.where(alone, np.nan, found.similarity[:, 0])
    return groups.settled(), near, similarity


def _labels_in(group: Ints, labels: NDArray[np.int64] | NDArray[np.float64]) -> Ints:
    """Different labels in the group of each example."""
    kinds = np.unique(labels)
    num = max(len(kinds), 1)
    pairs = group * num
    pairs += np.searchsorted(kinds, labels)
    pairs.sort()
    pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]] // num
    count: Ints = np.bincount(pairs, minlength=len(group))[group]
    return count


class Groups:
    """Connected components of a graph that is told edge by edge; memory is bounded by the points, not by the edges.

    Attributes:
        threshold: similarity at which two points are joined, in (0, 1].

    >>> groups = Groups(4, 0.9)
    >>> groups.join(np.array([3]), np.array([1]))
    >>> groups.settled().tolist()
    [0, 1, 2, 1]
    """

    def __init__(self, num: int, threshold: float) -> None:
        self.threshold = threshold
        self._group = np.arange(num)
        self._edges: list[Ints] = []

    def join(self, a: Ints, b: Ints) -> None:
        """Points a (E,) and b (E,) are alike, pair by pair."""
        edges = np.stack([self._group[a], self._group[b]])
        edges = edges[:, edges[0] != edges[1]]
        if edges.size:
            self._edges.append(edges)
        if sum(e.shape[1] for e in self._edges) > _EDGES:
            self.settled()

    def settled(self) -> Ints:
        """The smallest position in each point's component, int64 (N,)."""
        if not self._edges:
            return self._group
        edges, self._edges = np.concatenate(self._edges, axis=1), []
        names, code = np.unique(edges, return_inverse=True)
        left, right = code.reshape(2, -1)
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(len(names), len(names)))
        component = connected_components(graph, directed=False)[1]
        _, first = np.unique(component, return_index=True)  # names ascend: the first of a component is its smallest
        renamed = np.arange(len(self._group))
        renamed[names] = names[first][component]
        self._group = renamed[self._group]
        return self._group


def duplicate_groups(
    points: NDArray[np.float32], *, threshold: float, method: str = "exact"
) -> tuple[Ints, Neighbours]:
    """Connected components of the graph of points at least ``threshold`` alike.

    Args:
        points: (N, d) float32, unit length.
        threshold: smallest similarity, in (0, 1].
        method: how the nearest neighbours are found; a point with a full list of them at the threshold is compared with
            every point either way, so with "exact" the components are those of the whole graph.

    Returns:
        (N,) int64, the smallest position in each point's component, and the neighbours found on the way (k <= 4).

    Raises:
        InvalidInput: a threshold out of range.

    >>> duplicate_groups(np.array([[1, 0], [0, 1], [1, 0]], np.float32), threshold=0.9)[0].tolist()
    [0, 1, 0]
    """
    if not 0 < threshold <= 1:
        raise InvalidInput(f"threshold = {threshold} is outside (0, 1]")
    found = nearest(points, k=_LIST, method=method)
    groups = Groups(len(points), threshold)
    if not found.position.size:
        return groups.settled(), found
    row, column = np.nonzero(found.similarity >= threshold)
    groups.join(row, found.position[row, column])
    for row, column in _crowded(points, found, threshold):
        groups.join(row, column)
        if not groups.settled().any():
            break  # all in the group of point 0
    return groups.settled(), found


def _crowded(points: NDArray[np.float32], found: Neighbours, threshold: float) -> Iterator[tuple[Ints, Ints]]:
    """Every edge of the points whose list of neighbours was too short to hold all of theirs."""
    if found.position.shape[1] >= len(points) - 1:
        return
    for rows, similarity in whole_rows(points, points, np.flatnonzero(found.similarity[:, -1] >= threshold)):
        row, column = np.nonzero(similarity >= threshold)
        yield rows[row], column


def _copies(content_hash: NDArray[np.str_]) -> Ints:
    """Other examples of the same content; none where the hash is not known.

    The last 128 bits of the SHA-256 stand for it: as text, sorting the hashes would take eight times the memory.
    """
    high, low = np.zeros(len(content_hash), np.uint64), np.zeros(len(content_hash), np.uint64)
    for start in range(0, len(content_hash), _HASHES):
        some = content_hash[start : start + _HASHES]
        digits = "".join(np.where(some == "", "0" * 64, some).tolist())
        words = np.frombuffer(bytes.fromhex(digits), np.uint64).reshape(-1, 4)
        high[start : start + len(some)], low[start : start + len(some)] = words[:, 2], words[:, 3]
    order = np.lexsort((low, high))
    first = np.ones(len(order), bool)
    high, low = high[order], low[order]
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    del high, low
    size = np.diff(np.flatnonzero(first), append=len(order))
    copies: Ints = np.empty(len(order), np.int64)
    copies[order] = np.repeat(size - 1, size)
    copies[content_hash == ""] = 0
    return copies
