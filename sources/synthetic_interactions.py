"""A public random process of implicit feedback, with planted noise: tastes, popularity, and clicks that mean nothing.

    P_u, Q_i   uniform unit vectors in R^dim (num_users, num_items of them)
    S_ui     = strength_u * P_u . Q_i + popularity * G_i            G_i ~ Gumbel(0, 1), one an item
    items of u = the per_user items with the largest S_ui + Gumbel(0, 1)        (Gumbel-top-k: without replacement)
    strength_u = strength for users with an even index, odd_strength for the others (the same when null)

The process is a function of ``process_seed``; the source's own seed decides the test split and the planted noise
(``sources.planted.plant_interactions``), whose ids start at num_users * per_user. A stand-in that runs without a
download and where the truth is known; not a model of any real catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contracts.errors import ConfigError
from contracts.methods import SourceSpec, source
from contracts.params import Config, param
from sources.example_set import ExampleSet
from sources.interactions import ranking_set
from sources.planted import plant_interactions


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticInteractionsConfig(Config):
    """Size and temper of the process."""

    num_users: int = param(600, ge=2, le=1_000_000, doc="users")
    num_items: int = param(500, ge=2, le=1_000_000, doc="items")
    per_user: int = param(40, ge=2, le=100_000, doc="interactions of each user before noise; fewer than the items")
    dim: int = param(8, ge=1, le=1024, doc="of the taste vectors")
    strength: float = param(6.0, ge=0, le=1000, doc="how much tastes decide; small = diffuse users")
    odd_strength: float | None = param(
        None, ge=0, le=1000, doc="the same for users with an odd index; null: no difference"
    )
    popularity: float = param(0.5, ge=0, le=1000, doc="how much the item's popularity decides")
    noise: float = param(0.3, ge=0, le=10, doc="planted interactions per training interaction of each user; 0 for none")
    test_fraction: float = param(0.2, gt=0, lt=1, doc="share of each user's interactions in the test split")
    process_seed: int = param(0, ge=0, lt=2**31, doc="of tastes, popularity and clicks")

    def check(self) -> None:
        if self.per_user >= self.num_items:
            raise ConfigError(
                f"SyntheticInteractionsConfig.per_user = {self.per_user} must be < num_items = {self.num_items}"
            )


@source(
    SourceSpec(
        name="synthetic_interactions",
        doc="Synthetic implicit feedback with planted noisy interactions; needs no file.",
        source="definition; sampling by Gumbel-top-k, Kool et al., ICML 2019 (arXiv 1903.06059)",
        config=SyntheticInteractionsConfig,
        self_contained=True,
    )
)
def synthetic_interactions(*, config: SyntheticInteractionsConfig, seed: int) -> ExampleSet:
    """The interactions of one draw of the process; see the module.

    Raises:
        ConfigError: more interactions a user than items.
        DataError: more noise than items a user has left.
    """
    users, items = draw_interactions(config)
    data = ranking_set(
        np.char.add("u", users.astype(str)),
        np.char.add("i", items.astype(str)),
        users=users,
        items=items,
        example_id=np.arange(len(users), dtype=np.int64),
        name="synthetic_interactions",
        seed=seed,
        test_fraction=config.test_fraction,
        provenance={
            "source": "synthetic_interactions",
            "process": {n: getattr(config, n) for n in config.__dataclass_fields__},
            "licence": "public domain (random numbers)",
        },
    )
    return plant_interactions(data, ratio=config.noise, seed=seed)[0] if config.noise else data


def draw_interactions(config: SyntheticInteractionsConfig) -> tuple[np.ndarray, np.ndarray]:
    """Users and items, int64 (num_users * per_user,) each, ordered by user, then item. Memory: one block of users."""
    taste_rng, item_rng, popularity_rng, click_rng = np.random.default_rng(config.process_seed).spawn(4)
    tastes, qualities = (
        _unit(rng.normal(size=(n, config.dim)))
        for rng, n in ((taste_rng, config.num_users), (item_rng, config.num_items))
    )
    popularity = config.popularity * popularity_rng.gumbel(size=config.num_items)
    odd = config.strength if config.odd_strength is None else config.odd_strength
    strength = np.where(np.arange(config.num_users) % 2 == 0, config.strength, odd)
    chosen = np.empty((config.num_users, config.per_user), np.int64)
    block = max(1, 2**22 // config.num_items)
    for start in range(0, config.num_users, block):
        rows = slice(start, min(start + block, config.num_users))
        utility = strength[rows, None] * (tastes[rows] @ qualities.T) + popularity
        utility += click_rng.gumbel(size=utility.shape)
        chosen[rows] = np.sort(np.argpartition(-utility, config.per_user - 1, axis=1)[:, : config.per_user], axis=1)
    users = np.repeat(np.arange(config.num_users, dtype=np.int64), config.per_user)
    return users, chosen.ravel()


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
