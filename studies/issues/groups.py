"""Groups of examples that the audited model answers worse than the rest, on examples it was not trained on.

    group    a value of a given column, a class, or a cluster by k-means of what the examples hold
    gap      mean quality of all others - mean quality of the group
    p        right or wrong: Fisher's exact test, one-sided; other qualities: Wilcoxon's rank sum, one-sided
    called   Holm's adjusted p at most alpha over all groups of all columns, and a gap of at least ``least_gap``
    interval Newcombe's of the difference (too wide for qualities that are not 0 or 1)

Clusters are found without a look at the answers, so their p-values hold. A group of fewer than ``smallest`` test
examples is not tested: nothing could be told of it.

Sources: Fisher (1935); Holm (1979); Newcombe (1998); the idea of looking over clusters as in cleanlab's Datalab.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import fisher_exact, mannwhitneyu
from sklearn.cluster import KMeans

from explain.neighbours import Floats, Ints
from stats import holm
from stats.proportions import newcombe

_FITTED = 20_000  # vectors that the clusters are fitted to


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Attributes:
    name: "column = value". ``rows``: positions of its examples.
    quality, others: means of the group and of all other examples, in [0, 1].
    gap, low, high: others - quality, and its interval. ``p_value``: adjusted over all groups.
    """

    name: str
    rows: Ints
    quality: float
    others: float
    gap: float
    low: float
    high: float
    p_value: float


def tested_groups(
    quality: Floats, columns: Mapping[str, NDArray[np.str_]], *, smallest: int, alpha: float
) -> list[Group]:
    """Every group of every column that is large enough, in the order of columns and values.

    Args:
        quality: (N,) in [0, 1], higher = better.
        columns: name -> (N,) the group of each example.
    """
    found = []
    for column, values in columns.items():
        for value in np.unique(values):
            inside = values == value
            if min(int(inside.sum()), int((~inside).sum())) >= smallest:
                found.append((f"{column} = {value}", inside))
    binary = bool(np.isin(quality, (0.0, 1.0)).all())
    adjusted = holm([_p_value(quality[inside], quality[~inside], binary=binary) for _, inside in found])
    groups = []
    for (name, inside), p_value in zip(found, adjusted.tolist(), strict=True):
        own, others = float(quality[inside].mean()), float(quality[~inside].mean())
        low, high = newcombe(others, (~inside).sum(), own, inside.sum(), level=1 - alpha / max(len(found), 1))
        ends = {"low": float(low), "high": float(high), "p_value": p_value}
        groups.append(
            Group(name=name, rows=np.flatnonzero(inside), quality=own, others=others, gap=others - own, **ends)
        )
    return groups


def _p_value(own: Floats, others: Floats, *, binary: bool) -> float:
    """Of a group that is no worse than the others."""
    if binary:
        right, other = int(own.sum()), int(others.sum())
        table = [[right, len(own) - right], [other, len(others) - other]]
        return float(fisher_exact(table, alternative="less").pvalue)
    return float(mannwhitneyu(own, others, alternative="less").pvalue)


def clusters(train: NDArray[np.float32], test: NDArray[np.float32], *, num: int, seed: int) -> NDArray[np.str_]:
    """The cluster of each test vector, by k-means of the training vectors: text (N_test,)."""
    rng = np.random.default_rng(seed)
    some = train if len(train) <= _FITTED else train[np.sort(rng.permutation(len(train))[:_FITTED])]
    distinct = len(np.unique(some, axis=0))
    fitted = KMeans(n_clusters=min(num, distinct), n_init=3, random_state=seed % 2**32).fit(some.astype(np.float64))
    found: NDArray[np.str_] = fitted.predict(test.astype(np.float64)).astype(str)
    return found
