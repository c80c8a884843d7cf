"""Cut examples into pools of equal size by a value, best end first.

    size_s = floor(fraction * N_s / num_pools) in each stratum s;  pool_p = ranks (p-1) size_s + 1 .. p size_s, ties by
                                                                   id

What does not divide, and what lies beyond ``fraction``, is in no pool.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError

Ints = NDArray[np.int64]


class Cut(NamedTuple):
    """Of each example, int64 (N,): its pool from 0 (``num_pools`` = in none), its rank from 0 in its stratum, the
    stratum's size."""

    pool: Ints
    rank: Ints
    of: Ints


def cut(
    values: NDArray[np.float64], ids: Ints, strata: Ints, *, num_pools: int, fraction: float, best: str, what: str
) -> Cut:
    """The pool of each example.

    Args:
        values, ids, strata: (N,), finite values, unique ids; each stratum is cut by itself.
        fraction: share from the best end that is cut into pools.
        best: "lowest" or "highest".
        what: name of the value, for the refusal.

    Raises:
        DataError: no stratum has an example for every pool.

    >>> values = np.array([3.0, 1.0, 2.0, 0.0, 9.0])
    >>> cut(values, np.arange(5), np.zeros(5, int), num_pools=2, fraction=1.0, best="lowest", what="x").pool.tolist()
    [1, 0, 1, 0, 2]
    """
    order = np.lexsort((ids, values if best == "lowest" else -values, strata))
    _, start, count = np.unique(strata[order], return_index=True, return_counts=True)
    size = np.floor(fraction * count / num_pools + 1e-9).astype(np.int64)
    if not size.sum():
        raise DataError(
            f"{fraction:g} of {len(ids)} examples with a value of {what!r} cannot be cut into {num_pools} pools"
        )
    rank = np.arange(len(ids)) - np.repeat(start, count)
    pool = np.minimum(rank // np.repeat(np.maximum(size, 1), count), num_pools)
    pool[np.repeat(size == 0, count)] = num_pools  # a class too small to be in every pool is in none
    found = Cut(*(np.empty(len(ids), np.int64) for _ in range(3)))
    for into, ordered in zip(found, (pool, rank, np.repeat(count, count)), strict=True):
        into[order] = ordered
    return found
