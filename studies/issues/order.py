"""Rows that lie near one another in the file are alike: the order says something, so they are no independent draws.

    D      max_d  F(d) - T(d),   F the share of pairs (i, neighbour j) with |place i - place j| <= d,
           T(d) = d (2 N - d - 1) / (N (N - 1)) the same of two rows drawn at random
    p      (1 + #{permutations of the places with D at least as large}) / (1 + B)
    label  the same question of labels: Kruskal-Wallis of the places by class, or Spearman of place and target

Drift, sorting, batches, and frames of one recording all bring neighbours together. A split into the first and the last
rows then trains and tests on different things, and a fold is no held-out set.

Source: the idea of cleanlab's Datalab (Kuan & Mueller, "A Statistical Test for Violations of the IID Assumption", ICML
2022 workshop), here with the exact distribution of |i - j| and a permutation test. Places are ranks 0 .. N - 1.
"""

from __future__ import annotations

import re

import numpy as np
from scipy.stats import kruskal, spearmanr

from explain.neighbours import Floats, Ints
from sources.example_set import ExampleSet

_NUMBERS = re.compile(r"(\d+)")


def places(data: ExampleSet) -> Ints:
    """Place of every example in its source, int64 (N,): by its origin, file by file and numbers as numbers, or by id
    where it has none."""
    if data.origin is None:
        return np.argsort(np.argsort(data.example_id, kind="stable"), kind="stable")
    keys = [[int(part) if part.isdecimal() else part for part in _NUMBERS.split(text)] for text in data.origin.tolist()]
    order = sorted(range(len(keys)), key=lambda row: keys[row])
    place = np.empty(len(keys), np.int64)
    place[order] = np.arange(len(keys))
    return place


def nearness(place: Ints, position: Ints) -> float:
    """D in [0, 1] of neighbours (N, k); larger = neighbours lie nearer in the order than chance."""
    num = len(place)
    apart = np.bincount(np.abs(place[:, None] - place[position]).ravel(), minlength=num)
    d = np.arange(num)
    at_random = d * (2 * num - d - 1) / (num * (num - 1))
    return float((np.cumsum(apart) / position.size - at_random).max())


def order_test(place: Ints, position: Ints, *, permutations: int, rng: np.random.Generator) -> tuple[float, float]:
    """(D, p) of the order against permutations of it."""
    if not position.size:
        return 0.0, 1.0
    found = nearness(place, position)
    as_large = sum(nearness(rng.permutation(place), position) >= found - 1e-12 for _ in range(permutations))
    return found, (1 + as_large) / (1 + permutations)


def label_test(place: Ints, y: Floats | Ints, *, classes: bool) -> tuple[float, float]:
    """(strength in [0, 1], p): eta squared of Kruskal-Wallis over classes, or |Spearman| of a number to predict."""
    if len(np.unique(y)) < 2:
        return 0.0, 1.0
    if not classes:
        found = spearmanr(place, y)
        return abs(float(found.statistic)), float(found.pvalue)
    groups = [place[y == k] for k in np.unique(y)]
    found = kruskal(*groups)
    spread = (float(found.statistic) - len(groups) + 1) / max(len(y) - len(groups), 1)
    return float(np.clip(spread, 0, 1)), float(found.pvalue)
