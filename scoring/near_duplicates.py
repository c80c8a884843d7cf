"""Near duplicates among the training examples, in what they hold and not in what a model makes of them.

    r_i       = distance to the 10th nearest example of other content, at least half its median over all examples
    i ~ j     when d(i, j) <= rho min(r_i, r_j), or when they are equal byte for byte
    group     = connected component of that graph, named by its smallest id
    similarity_i = 1 - d(i, j) / min(r_i, r_j), cut at 0, j the nearest of i;   a near duplicate from 1 - rho

d is Euclidean on standardised columns, and on images the least RMS difference over small shifts (``explain.payloads``);
rho is ``ratio``, or less where the data have few dimensions (``explain.twins``). Duplicates share memorisation: with
the twin left in, an example is predicted whether or not it was trained on, and its memorization looks like that of a
typical one. An erased example is not gone while its twin is there. Hence the groups. Components chain (a ~ b ~ c makes
one group of a and c): where groups reach the size of a class, what is near is no copy, and the run is refused.

Source: definition; the graph of near duplicates of Lee et al., "Deduplicating Training Data Makes Language Models
    Better"
(ACL 2022, arXiv 2107.06499), section 4.

Measured with the defaults, 5% of copies planted among the others, over 3 seeds: recall 1.00 of copies byte for byte and
of noise of 2% of white (digits, Fashion-MNIST) or of 5% of each column's spread (wine, breast cancer, diabetes); noise
of 4%: 0.94 to 0.99 (digits), 0.98 to 1.00 (Fashion-MNIST); moved by 1 or 2 of 28 pixels (Fashion-MNIST): 1.00; by 1 of
8 (digits): 0.94 to 1.00. Precision: 0.99 to 1.00 in all. Without plants: 0 of 1,797 digits and 2 of 6,000 garments are
    called. A zoom or a rotation is not found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contracts.methods import Call, Gate, ScoreSpec, score
from contracts.params import Config, param
from contracts.tables import Column
from explain.neighbours import CELLS, METHODS, Ints
from explain.payloads import PayloadSpace
from explain.twins import twins
from sources.example_set import ExampleSet
from tasks.base import require

_HASHES = 16_384  # hashes read at a time
_SMALL = 20  # a class of fewer counts as so many: a pair in a class of two is no crowd


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicatesConfig(Config):
    """What counts as a near duplicate, and how neighbours are found."""

    ratio: float = param(
        0.3, gt=0, lt=1, doc="largest distance of near duplicates, as a share of that to the tenth neighbour of either"
    )
    chance: float = param(
        0.002,
        gt=0,
        lt=1,
        doc="share of examples that may have a near duplicate by accident; in few dimensions it lowers the ratio",
    )
    index: str = param(
        "exact",
        choices=(*METHODS, CELLS),
        doc="exact search; the approximate hnsw for more than some 10^5; cells for more than memory holds",
    )


@score(
    ScoreSpec(
        name="near_duplicates",
        doc="Near duplicates: closeness to the nearest other training example, against what is usual among its "
        "neighbours.",
        source="definition; Lee et al., ACL 2022 (arXiv 2107.06499), section 4",
        config=NearDuplicatesConfig,
        version=2,
        wants=("features",),
        columns=(
            Column(
                name="similarity",
                dtype="float64",
                low=0,
                high=1,
                nullable=True,
                direction="higher = more duplicated",
                doc="1 - distance to the nearest other training example / distance to the tenth, cut at 0; null when "
                "there is no other",
            ),
            Column(
                name="nearest_id",
                dtype="int64",
                low=0,
                nullable=True,
                doc="id of that example, the smaller one of equals; null when there is no other",
            ),
            Column(
                name="same_label",
                dtype="bool",
                nullable=True,
                doc="the nearest example has the same label (regression: the same target)",
            ),
            Column(name="group_id", dtype="int64", low=0, doc="smallest id of the group; its own when it is alone"),
            Column(name="group_size", dtype="int64", low=1, doc="members of the group; 1 = no near duplicate"),
            Column(
                name="group_labels",
                dtype="int64",
                low=1,
                doc="different labels (targets) in the group; above 1 = they conflict",
            ),
            Column(
                name="class_margin",
                dtype="float64",
                low=0,
                high=1,
                direction="lower = less to be trusted",
                doc="1 - group_size / examples of its label (of all for regression; of 20 where there are fewer), cut "
                "at 0",
            ),
            Column(
                name="num_copies",
                dtype="int64",
                low=0,
                doc="other training examples with the same values, byte for byte",
            ),
        ),
        value="similarity",
        higher_means="duplicated",
        calls=Call("duplicate", column="group_size", above=1),
        gates=(
            Gate(
                column="class_margin",
                at_least=0.5,
                statistic="min",
                why="a group of near duplicates is larger than half a class, so what is near is no copy here; "
                "a smaller ratio may tell them apart.",
            ),
        ),
    )
)
def near_duplicates(data: ExampleSet, *, config: NearDuplicatesConfig, seed: int) -> pl.DataFrame:
    """Nearest example and near-duplicate group of every example.

    Args:
        data: N training examples, classification or regression.
        config: ratio, chance and index.
        seed: of the cells; not used otherwise.

    Returns:
        One row an example, ordered by id; columns as declared.

    Raises:
        NotApplicable: a ranking task.
        DataError: ids used twice, labels outside the classes, values that are not finite.
    """
    ordered = comparable("near_duplicates", data)
    # One column after the other, and first what needs most memory: a long table exists once and not also as arrays.
    first, copies = same_content(ordered.content_hash)
    columns = [pl.Series("num_copies", copies)]
    if copies.any():
        own = np.flatnonzero(first == np.arange(len(first)))
        among = _among(ordered.take(own), config, seed)
        group, near, similarity = _with_copies(own, first, copies, *among)
        del own, first, copies, among
    else:
        del first, copies
        group, near, similarity = _among(ordered, config, seed)
    ids = ordered.example_id
    columns.append(pl.Series("similarity", similarity, nan_to_null=True))
    del similarity
    keys = ordered.target_keys
    columns.append(pl.Series("group_labels", _labels_in(group, keys)))
    size = np.bincount(group, minlength=len(group))[group]
    columns.append(pl.Series("class_margin", _margin(size, ordered)))
    columns.append(pl.Series("group_size", size))
    del size
    columns.append(pl.Series("group_id", ids[group]))
    del group
    known = pl.Series("known", near >= 0)
    columns.append(pl.Series("same_label", keys[near] == keys))
    columns.append(pl.Series("nearest_id", ids[near]))  # of those who have none the last, which is taken back below
    del near
    frame = pl.DataFrame([pl.Series("example_id", ids), *columns])
    if known.all():
        return frame
    return frame.with_columns(pl.when(known).then(pl.col("similarity", "nearest_id", "same_label")))


def comparable(name: str, data: ExampleSet) -> ExampleSet:
    """The examples ordered by id, so that nothing after this depends on the order of the rows.

    Raises:
        NotApplicable: a ranking task.
        DataError: ids used twice, targets that are none of the task's.
    """
    require(data, name, "features")
    data.check_targets()
    return data.by_id()


def same_content(content_hash: NDArray[np.str_]) -> tuple[Ints, Ints]:
    """Position of the first example of the same content, and how many others have it: int64 (N,) each.

    An unknown hash ("") is nobody's copy. The last 128 bits of the SHA-256 stand for it: as text, sorting the hashes
    would take eight times the memory.

    >>> [a.tolist() for a in same_content(np.array(["a" * 64, "", "a" * 64]))]
    [[0, 1, 0], [1, 0, 1]]
    """
    unknown = content_hash == ""
    high, low = np.zeros(len(content_hash), np.uint64), np.zeros(len(content_hash), np.uint64)
    for start in range(0, len(content_hash), _HASHES):
        some = content_hash[start : start + _HASHES]
        digits = "".join(np.where(unknown[start : start + len(some)], "0" * 64, some).tolist())
        words = np.frombuffer(bytes.fromhex(digits), np.uint64).reshape(-1, 4)
        high[start : start + len(some)], low[start : start + len(some)] = words[:, 2], words[:, 3]
    order = np.lexsort((low, high))
    starts = np.ones(len(order), bool)
    high, low = high[order], low[order]
    starts[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    starts |= unknown[order]
    del high, low
    size = np.diff(np.flatnonzero(starts), append=len(order))
    first, copies = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    first[order] = np.repeat(order[starts], size)  # the sort is stable: the smallest position comes first
    copies[order] = np.repeat(size - 1, size)
    return first, copies


def _among(distinct: ExampleSet, config: NearDuplicatesConfig, seed: int) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """(group, nearest, similarity) of examples of which no two are known to be equal."""
    num = len(distinct)
    if not num:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    space = PayloadSpace(distinct.x, distinct.example_id)
    found = twins(space, num, ratio=config.ratio, chance=config.chance, index=config.index, seed=seed)
    return found.group, found.near, found.similarity


def _with_copies(
    own: Ints, first: Ints, copies: Ints, group: Ints, near: Ints, similarity: NDArray[np.float64]
) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """(group, nearest, similarity) of all examples from those of the first of each content, at positions ``own``."""
    at = np.searchsorted(own, first)
    nearest, alike = np.where(near[at] >= 0, own[near[at]], -1), similarity[at]
    copied = copies > 0
    alike[copied] = 1.0
    nearest[copied] = first[copied]
    leads = np.flatnonzero(copied & (first == np.arange(len(first))))
    order = np.argsort(first, kind="stable")
    nearest[leads] = order[np.searchsorted(first[order], leads) + 1]  # the second of its content
    return own[group[at]], nearest, alike


def _margin(size: Ints, data: ExampleSet) -> NDArray[np.float64]:
    """1 - size / members of the class, cut at 0."""
    count = np.bincount(data.y)[data.y] if data.task.gives("classes") else np.full(len(size), len(size))
    margin: NDArray[np.float64] = np.maximum(1.0 - size / np.maximum(count, _SMALL), 0.0)
    return margin


def _labels_in(group: Ints, labels: NDArray[Any]) -> Ints:
    """Different labels in the group of each example."""
    kinds = np.unique(labels)
    num = max(len(kinds), 1)
    pairs = group * num
    pairs += np.searchsorted(kinds, labels)
    pairs.sort()
    pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]] // num
    count: Ints = np.bincount(pairs, minlength=len(group))[group]
    return count
