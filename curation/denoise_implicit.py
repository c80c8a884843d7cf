"""Drop the interactions that a score calls the most noise-like of their user's.

    rank_ui = (rank of the score among user u's interactions - 1) / (n_u - 1)    in [0, 1], ties share, 0 for an only one
    drop    = rank_ui > 1 - noise_rate

Every user loses about the same share, so a diffuse user is not silenced because the model ranks everything of theirs badly.
``scope: all`` ranks over all users instead (a global threshold): the comparator, which takes most from diffuse users.
An interaction without a value is kept, and the reason says so; so is every user's lowest-scored one (rank 0).

Source: Zhang et al., "Personalized Denoising Implicit Feedback for Robust Recommender System" (WWW 2025, arXiv 2502.00348),
section 3. PLD itself drops nothing: it resamples while it trains, and needs no noise rate (recipe ``bpr``, denoise ``pld``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from contracts.errors import DataError, NotApplicable
from contracts.methods import CuratorSpec, curator
from contracts.params import Config, param
from curation.members import training_ids
from sources.example_set import ExampleSet


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiseImplicitConfig(Config):
    """Which score, and how much of it is taken for noise."""

    score: str = param("personal_loss", doc="name of a stored score, higher = more likely noise")
    noise_rate: float = param(0.2, gt=0, lt=1, doc="share of each user's interactions that is taken for noise")
    scope: str = param("user", choices=("user", "all"), doc="rank within the user, or over all users")


@curator(
    CuratorSpec(
        name="denoise_implicit",
        doc="Drops the interactions whose score is highest among their user's.",
        source="Zhang et al., WWW 2025 (arXiv 2502.00348)",
        config=DenoiseImplicitConfig,
        needs=("scores",),
        tasks=("ranking",),
        roles=("keep", "drop"),
    )
)
def denoise_implicit(
    data: ExampleSet, *, config: DenoiseImplicitConfig, seed: int, scores: Callable[[str], pl.DataFrame]
) -> pl.DataFrame:
    """(example_id, role "keep" or "drop", reason) over the training split, ordered by id; ``seed`` is not used.

    Args:
        data: the training split, or a set whose training split is meant.
        config: score, rate, scope.
        scores: gives the frame (example_id, value) of a stored score by its name.

    Raises:
        NotApplicable: another task than ranking.
        DataError: the score has ids twice or of other data (a stale score), or no value at all.
    """
    if data.task != "ranking":
        raise NotApplicable(f"denoise_implicit ranks the interactions of one user; {data.name} is a {data.task} task")
    train = training_ids(data)
    stored = scores(config.score)
    ids = stored.get_column("example_id").to_numpy()
    doubled, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"score {config.score!r} has examples twice", example_ids=doubled[counts > 1])
    other = ids[~np.isin(ids, train)]
    if len(other):
        raise DataError(
            f"score {config.score!r} is about examples that are not in the training split of {data.name}",
            example_ids=other,
        )
    users = pl.DataFrame({"example_id": train, "user": np.asarray(data.x)[data.positions(train), 0]})
    if config.scope == "all":
        users = users.with_columns(user=pl.lit(0))
    frame = users.join(
        stored.select("example_id", value=pl.col("value").cast(pl.Float64).fill_nan(None)), on="example_id", how="left"
    ).with_columns(
        rank=(pl.col("value").rank("average").over("user") - 1)
        / pl.max_horizontal(pl.col("value").count().over("user") - 1, 1)
    )
    if len(frame) and frame["value"].null_count() == len(frame):
        raise DataError(f"score {config.score!r} has no value for any training interaction of {data.name}")
    cut = 1 - config.noise_rate
    drop = pl.col("rank").fill_null(0.0) > cut
    whose = "of the user's" if config.scope == "user" else "of all"
    reason = pl.format(
        "{} {}, rank {} " + whose + ", {} " + f"{cut:.6g}",
        pl.lit(config.score),
        pl.col("value").round_sig_figs(6),
        pl.col("rank").round(4),
        pl.when(drop).then(pl.lit("above")).otherwise(pl.lit("at most")),
    )
    return frame.sort("example_id").select(
        "example_id",
        role=pl.when(drop).then(pl.lit("drop")).otherwise(pl.lit("keep")),
        reason=pl.when(pl.col("value").is_null()).then(pl.lit(f"{config.score} has no value")).otherwise(reason),
    )
