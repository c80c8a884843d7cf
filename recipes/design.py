"""Which example trains which model of the reference ensemble (Carlini et al. 2022), and which examples are in the pool.

    keep = rand(M, N).argsort(axis=0) < M/2        every example is in exactly M/2 of the M models

Balanced by construction, so every example has M/2 IN and M/2 OUT models; subset sizes differ by O(sqrt N).
Not the paired design (models 2i and 2i+1 complementary): there, one model of a pair gives the other's members away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError
from contracts.subject import Ensemble
from sources.example_set import ExampleSet

_BLOCK = 65_536


@dataclass(frozen=True, eq=False)
class Halves:
    """What M reference models are trained and read on.

    Attributes:
        view: pool and population, N examples in the order of the data set.
        pool: (N,) bool; False marks the population.
        keep: (M, N) bool; a pool column sums to M/2, a population column to 0.
        seeds: one a model.
    """

    view: ExampleSet
    pool: np.ndarray
    keep: np.ndarray
    seeds: list[int]

    def members(self, models: Iterable[int]) -> list[np.ndarray]:
        """For each of these models the positions in ``view`` that it is trained on."""
        return [np.flatnonzero(self.keep[m]) for m in models]


def halves(data: ExampleSet, *, ensemble: Ensemble, seed: int) -> Halves:
    """The random halves of the pool of ``data``, and the seeds of the models that are trained on them.

    Raises:
        DataError, ConfigError: see :func:`pool_and_population`.
    """
    pool, population = pool_and_population(data, ensemble=ensemble, seed=seed)
    rows = np.sort(np.concatenate([pool, population]))
    in_pool = np.isin(rows, pool)
    keep = np.zeros((ensemble.num_models, len(rows)), bool)
    keep[:, in_pool] = balanced_design(ensemble.num_models, len(pool), seed=derive_seed("design", seed))
    seeds = [derive_seed("reference", seed, m) for m in range(ensemble.num_models)]
    return Halves(data.take(rows), in_pool, keep, seeds)


def balanced_design(num_models: int, num_examples: int, *, seed: int) -> np.ndarray:
    """Membership of N examples in M models: bool (M, N), every column sums to M/2.

    Args:
        num_models: M, even, >= 2.
        num_examples: N.
        seed: >= 0; column j depends on (seed, M, j) only, not on N.

    Raises:
        ConfigError: M odd or below 2.
    """
    if num_models < 2 or num_models % 2:
        raise ConfigError(f"num_models = {num_models} must be even and >= 2: each example is in exactly half of them")
    rng = np.random.default_rng(seed)
    keep = np.empty((num_models, num_examples), bool)
    for start in range(0, num_examples, _BLOCK):
        # Example by example (rows), so that neither N nor the block decides which number an example gets.
        ranks = rng.random((min(_BLOCK, num_examples - start), num_models)).argsort(axis=1)
        keep[:, start : start + len(ranks)] = (ranks < num_models // 2).T
    return keep


def pool_and_population(data: ExampleSet, *, ensemble: Ensemble, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split ``data`` into the pool, which models train on, and the population, which none sees.

    Candidates for the pool are the training split and a share ``1 - population_fraction`` of the test split, drawn
    within classes; all of them, or ``pool_size`` drawn within (split, class). The population is the rest of the test
    split.

    Returns:
        Positions in ``data``, ascending: (pool, population).

    Raises:
        DataError: the test split is too small to give both sides an example.
        ConfigError: ``pool_size`` exceeds the candidates.
    """
    labels = data.task.strata(data.x, data.y, data.example_id)
    test = np.flatnonzero(data.split == "test")
    wanted = round(len(test) * ensemble.population_fraction)
    if not 0 < wanted < len(test):
        raise DataError(
            f"{data.name}: a test split of {len(test)} examples cannot give a population_fraction of "
            f"{ensemble.population_fraction:g}: both the population and the pool need one at least"
        )
    drawn = _stratified(labels[test], wanted, seed=derive_seed("population", seed))
    population = test[drawn]
    pool = np.setdiff1d(np.arange(len(data)), population)
    if ensemble.pool_size is not None:
        if ensemble.pool_size > len(pool):
            raise ConfigError(f"Ensemble.pool_size = {ensemble.pool_size} exceeds the {len(pool)} examples there are")
        strata = 2 * labels[pool] + (data.split[pool] == "test")
        pool = pool[_stratified(strata, ensemble.pool_size, seed=derive_seed("pool", seed))]
    return pool, population


def _stratified(strata: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """``count`` positions, ascending, drawn at random with each stratum's share (largest remainders get the rest)."""
    rng = np.random.default_rng(seed)
    values, code, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    share = sizes * (count / len(strata))
    quota = np.floor(share).astype(np.int64)
    # Equal remainders are ordered at random, so that no class is favoured.
    order = np.lexsort((rng.random(len(values)), quota - share))
    quota[order[: count - quota.sum()]] += 1
    shuffled = np.lexsort((rng.random(len(strata)), code))
    rank = np.empty(len(strata), np.int64)
    rank[shuffled] = np.arange(len(strata)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.flatnonzero(rank < quota[code])
