"""The seeded, stratified test split of data that brings none.

Every example gets a key: the SplitMix64 finaliser (Steele, Lea, Flood, OOPSLA 2014, fig. 16), a bijection of 64-bit
words, of its id mixed with the seed. Within each stratum the n_c smallest keys are the test examples. So the split is
a function of (ids, labels, seed): it does not depend on the order of the rows, and an added example moves at most one
other per stratum.

Strata: the classes; for regression, bins of equal count of the target. Counts: n_c = floor(f N_c), the rest of
round(f N) goes to the largest remainders, and n_c <= N_c - 1, so that every class keeps a training example.

y (N,) int64 | float64; example_id (N,) int64; result (N,) "<U5".
"""

from __future__ import annotations

import numpy as np

from contracts.digests import derive_seed
from contracts.errors import DataError


def stratified_split(strata: np.ndarray, example_id: np.ndarray, *, test_fraction: float, seed: int) -> np.ndarray:
    """ "train" or "test" for each example.

    Args:
        strata: (N,) int64, the group of each example (``Task.strata``); every group keeps one for training.
        example_id: (N,) unique ids.
        test_fraction: wanted share f of the test split, in (0, 1).
        seed: root of the keys.

    Returns:
        (N,) "<U5".

    Raises:
        DataError: no example can be spared for the test split.
    """
    _, strata = np.unique(strata, return_inverse=True)
    sizes = np.bincount(strata)
    counts = largest_remainders(sizes, test_fraction, total=max(1, round(test_fraction * len(strata))))
    if not counts.sum():
        numbers = " (--task regression where labels are numbers to predict)" if len(strata) > 1 else ""
        raise DataError(
            f"{len(strata)} examples in {len(sizes)} classes leave none for a test split: every class keeps one for "
            f"training{numbers}"
        )
    order = np.lexsort((_keys(example_id, seed), strata))
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(strata), np.int64)
    rank[order] = np.arange(len(strata)) - starts[strata[order]]
    return np.where(rank < counts[strata], "test", "train").astype("<U5")


def largest_remainders(sizes: np.ndarray, fraction: float, *, total: int | None = None) -> np.ndarray:
    """How many to take of each group, int64: floor(fraction * size), the rest of ``total`` by largest remainders (ties
    to the first), never a whole group.

    Args:
        sizes: int64 (G,), members of each group, >= 1.
        fraction: share wanted of each.
        total: wanted of all; round(fraction * sum) when None. Fewer where all groups are down to one.

    >>> largest_remainders(np.array([9, 9, 9, 1]), 0.2).tolist()
    [2, 2, 2, 0]
    """
    total = round(fraction * sizes.sum()) if total is None else total
    quota = fraction * sizes
    counts = np.minimum(np.floor(quota).astype(np.int64), sizes - 1)
    by_remainder = np.argsort(counts - quota, kind="stable")
    while (left := total - int(counts.sum())) > 0:
        open_ = by_remainder[counts[by_remainder] < (sizes - 1)[by_remainder]][:left]
        if not len(open_):
            break
        counts[open_] += 1
    return counts


def _keys(example_id: np.ndarray, seed: int) -> np.ndarray:
    offset = np.array([derive_seed("test split", seed)], np.uint64)
    z = example_id.astype(np.uint64) * np.array([0x9E3779B97F4A7C15], np.uint64) + offset
    z = (z ^ (z >> np.uint64(30))) * np.array([0xBF58476D1CE4E5B9], np.uint64)
    z = (z ^ (z >> np.uint64(27))) * np.array([0x94D049BB133111EB], np.uint64)
    return z ^ (z >> np.uint64(31))
