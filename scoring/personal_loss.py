"""Personal loss: how badly the model ranks one of a user's interactions, compared with the user's others, and whether
it is noise.

    l_ui = mean_m softplus(s_un_m - s_ui)       m = 1..M items n_m outside the user's list, the same for all of the
                                                user's items (bpr)
         = softplus(-s_ui)
             (bce)
    personal_z    = (l_ui - mean_u) / std_u                  std over the user's items, 0 where all are alike
    personal_rank = (rank of l_ui among the user's - 1) / (n_u - 1)      in [0, 1]; ties share; higher = more likely
                                                                         noise
    global_rank   = the same over all interactions
    noise_odds    = log odds that the item is a random one rather than of the taste of the rest of the list
                  (``scoring.taste``)

The value is noise_odds. A rank within the user does not rank over users (the highest of 5 and the highest of 100 are
both 1), and no other scale of the same losses does better: mid-ranks, z and shrunken locations are within 0.01 of it.
AUROC for planted noise (30%), plain training / PLD:
                                                        noise_odds      personal_rank   global_rank     rarity of the
                                                                        item
    synthetic process, 32 of each user, 6 seeds         0.840 / 0.855   0.724 / 0.834   0.704 / 0.828   0.64
    the same, lists of 4 to 100, 5 seeds                0.725 / 0.697   0.660 / 0.649   0.633 / 0.642   0.59
    of these, lists of fewer than 32                    0.650 / 0.630   0.578 / 0.585   0.568 / 0.583   0.58
    MovieLens-100k cut to lists of 5 to 80, 5 seeds     0.839 / 0.838   0.649 / 0.786   0.619 / 0.763   0.80
    of these, lists of fewer than 32                    0.859 / 0.858   0.630 / 0.766   0.610 / 0.751   0.82
A rank within the user beats one over all users in every one of these runs, by 0.02 to 0.03 after plain training; after
PLD by 0.005 on the process and 0.02 on MovieLens. On MovieLens most of what noise_odds finds is that random items are
rare ones.

n_pool and n_selected: in ``rounds`` rounds every user draws one pool of k of its items and one of them with probability
softmax(-l / tau); how often an interaction was in a pool, and how often it was drawn. This is what a step of PLD would
do with the model as it stands, not what its training has done: the steps are not on record. On the synthetic process
(600 users, three draws) the AUROC of n_selected / n_pool for planted noise was 0.68 with 50 rounds, 0.80 with 500, 0.82
with 2,000, that of the counts of the training itself 0.81, and that of personal_rank 0.83.
Losses are the final model's: the paper averages them over the last 5 epochs too, which raised the AUROC by 0.001.
``selection_probability`` is the exact probability behind it.

Source: Zhang et al., "Personalized Denoising Implicit Feedback for Robust Recommender System" (WWW 2025, arXiv
    2502.00348),
sections 3 and 4. Losses of noisy and honest interactions overlap over the whole data set and much less within one user.
Says "unlike the rest of this user", not "wrong": a rare taste looks like noise. Interactions a model was not trained on
(validation) rank high for that reason alone.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import DataError, InvalidInput, NotApplicable
from contracts.methods import Call, ScoreSpec, score
from contracts.params import Config, param
from contracts.tables import Column
from recipes.inputs import model_device
from recipes.predict import eval_mode
from recipes.recsys import choose, pool_losses
from recipes.recsys_lists import Lists
from recipes.rng import generator
from scoring.taste import ItemProfiles, noise_odds, taste_z
from sources.example_set import ExampleSet
from sources.planted import planted_interactions
from tasks.base import require

_PAIRS = 4096  # interactions whose losses against all negatives are held at a time
_MAX_POOLS = 2_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class PersonalLossConfig(Config):
    """The loss, and the pools in which selection is counted."""

    loss: str = param("bpr", choices=("bpr", "bce"), doc="bpr compares with sampled negatives, bce does not")
    negatives: int = param(32, ge=20, le=100_000, doc="M, sampled items a user, with replacement")
    pool: int = param(5, ge=1, le=1000, doc="k, candidates in a pool")
    tau: float = param(0.1, gt=0, le=1e6, unit="nats", doc="temperature of the selection")
    rounds: int = param(500, ge=1, le=1_000_000, doc="pools each user draws from the model as it is")
    profile: int = param(
        512, ge=1, le=1_000_000, doc="numbers that describe an item for noise_odds; exact from the number of users on"
    )
    batch: int = param(
        256, ge=1, le=1_000_000, unit="users", doc="users a forward pass; bounds memory, changes nothing"
    )


@score(
    ScoreSpec(
        name="personal_loss",
        version=3,
        doc="Personal loss: is an interaction noise, by the rest of its user's list and by its loss among the user's "
        "losses.",
        source="Zhang et al., Personalized Denoising Implicit Feedback, WWW 2025 (arXiv 2502.00348)",
        config=PersonalLossConfig,
        needs=("model",),
        wants=("interactions",),
        columns=(
            Column(
                name="mean_loss",
                dtype="float64",
                low=0,
                nullable=True,
                unit="nats",
                direction="higher = worse ranked",
                doc="loss, mean over the sampled negatives; null when the user has every item, so that there is no "
                "negative",
            ),
            Column(
                name="loss_stderr",
                dtype="float64",
                low=0,
                nullable=True,
                unit="nats",
                doc="standard error of mean_loss over the sampled negatives; 0 for bce",
            ),
            Column(
                name="personal_z",
                dtype="float64",
                nullable=True,
                direction="higher = more likely noise",
                doc="mean_loss in standard deviations of the user's from the user's mean",
            ),
            Column(
                name="personal_rank",
                dtype="float64",
                low=0,
                high=1,
                nullable=True,
                direction="higher = more likely noise",
                doc="rank of mean_loss within the user, 0 = lowest, 1 = highest; 0 when it is the only one",
            ),
            Column(
                name="global_rank",
                dtype="float64",
                low=0,
                high=1,
                nullable=True,
                direction="higher = more likely noise",
                doc="rank of mean_loss over all users",
            ),
            Column(
                name="taste_z",
                dtype="float64",
                low=-100,
                high=100,
                nullable=True,
                direction="higher = goes with the list",
                doc="affinity of the item to the rest of the user's list, in standard deviations of a random item's "
                "from its mean",
            ),
            Column(
                name="noise_odds",
                dtype="float64",
                low=-5000,
                high=15_000,
                nullable=True,
                unit="nats",
                direction="higher = more likely noise",
                doc="log odds of a random item against the user's taste, from taste_z; comparable over users, 0 = no "
                "evidence",
            ),
            Column(name="n_interactions", dtype="int64", low=1, doc="different training items of the user"),
            Column(name="n_pool", dtype="int64", low=0, doc="times it was in a drawn pool"),
            Column(name="n_selected", dtype="int64", low=0, doc="times it was selected out of one"),
            Column(
                name="is_noise", dtype="bool", nullable=True, doc="planted noise; null when nothing is known of any"
            ),
        ),
        value="noise_odds",
        higher_means="likely noise",
        calls=Call("noisy"),
    )
)
def personal_loss(data: ExampleSet, *, config: PersonalLossConfig, seed: int, model: nn.Module) -> pl.DataFrame:
    """Losses and ranks of every interaction of ``data``, which are taken for all that is known of its users.

    Args:
        data: N interactions (the training split).
        config: loss and pools.
        seed: of the sampled negatives and pools.
        model: user indexes (B, 1) -> scores of all items (B, K); put into eval mode and back.

    Returns:
        One row an interaction, in the order of ``data``; columns as declared.

    Raises:
        NotApplicable: another task, or a model that gives no scores (B, K).
        DataError: users or items out of range, scores that are not finite; names the examples.
    """
    require(data, "personal_loss", "interactions")
    pair, pair_of_row = _pairs(data)
    users, items = np.divmod(pair, max(data.num_classes, 1))
    lists = Lists(users, items, num_users=data.num_users, num_items=data.num_classes)
    draw = generator(derive_seed("personal loss", seed))
    negatives = lists.draw_negatives(lists.active.repeat_interleave(config.negatives), generator=draw)
    profiles = ItemProfiles(
        num_users=data.num_users, num_items=data.num_classes, width=config.profile, seed=derive_seed("taste", seed)
    )
    s_pos, s_neg = _scores(model, data, lists, negatives.view(-1, config.negatives), profiles, batch=config.batch)
    loss, stderr = _mean_losses(config, lists, s_pos, s_neg)
    n_pool, n_selected = _count_selections(config, lists, s_pos, s_neg, draw)
    known = ~np.isnan(loss)
    z, within, among_all = (np.full(len(loss), np.nan) for _ in range(3))
    z[known] = _standardise(loss[known], users[known])
    within[known] = ranks_within(loss[known], users[known])
    among_all[known] = ranks_within(loss[known], np.zeros(int(known.sum()), np.int64))
    taste = taste_z(profiles, lists)
    told = ~np.isnan(taste)
    odds = np.full(len(loss), np.nan)
    odds[told] = noise_odds(taste[told], users[told])
    planted = planted_interactions(data)
    frame = {
        "mean_loss": loss,
        "loss_stderr": stderr,
        "personal_z": z,
        "personal_rank": within,
        "global_rank": among_all,
        "taste_z": taste,
        "noise_odds": odds,
        "n_interactions": lists.count.numpy()[users],
        "n_pool": n_pool,
        "n_selected": n_selected,
    }
    return pl.DataFrame(
        {
            "example_id": data.example_id,
            **{name: values[pair_of_row] for name, values in frame.items()},
            "is_noise": pl.Series([None] * len(data), dtype=pl.Boolean) if planted is None else planted,
        },
        nan_to_null=True,
    )


def selection_probability(losses: ArrayLike, *, pool: int, tau: float) -> NDArray[np.float64]:
    """Exact probability that PLD selects each of one user's interactions, by enumeration of all pools.

        p_i = E_pool[ exp(-l_i / tau) [i in pool] / sum_{j in pool} exp(-l_j / tau) ]

    The pool is a uniform k-subset, or k draws with replacement where the user has fewer than k. The sum of p over the
    noisy ones is the share of the user's updates that noise gets: the noise share itself for k = 1 or tau -> infinity.

    Args:
        losses: (n,) finite, n >= 1, small enough that there are at most two million pools.
        pool: k >= 1.
        tau: > 0.

    Returns:
        float64 (n,), sums to 1.

    Raises:
        InvalidInput: out of range, or too many pools.

    >>> selection_probability([0.0, 5.0, 1.0], pool=1, tau=0.1).round(3).tolist()
    [0.333, 0.333, 0.333]
    """
    loss = np.asarray(losses, np.float64)
    if loss.ndim != 1 or not len(loss) or not np.isfinite(loss).all() or pool < 1 or not tau > 0:
        raise InvalidInput(f"losses {loss.shape} must be finite and not empty, pool = {pool} >= 1, tau = {tau} > 0")
    num = len(loss)
    count = math.comb(num, pool) if num >= pool else num**pool
    if count > _MAX_POOLS:
        raise InvalidInput(f"{count:,} pools of {pool} out of {num} are too many to enumerate (at most {_MAX_POOLS:,})")
    subsets = itertools.combinations(range(num), pool) if num >= pool else itertools.product(range(num), repeat=pool)
    members = np.fromiter(itertools.chain.from_iterable(subsets), np.int64, count * pool).reshape(count, pool)
    weight = -loss[members] / tau
    weight = np.exp(weight - weight.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    return np.bincount(members.ravel(), weights=weight.ravel(), minlength=num) / count


def ranks_within(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """(average rank - 1) / (n - 1) of each value among those of its group, in [0, 1]; 0 in a group of one.

    >>> ranks_within(np.array([3.0, 1.0, 2.0, 7.0]), np.array([0, 0, 0, 1])).tolist()
    [1.0, 0.0, 0.5, 0.0]
    """
    order = np.lexsort((values, groups))
    v, g = values[order], groups[order]
    new_group = np.diff(g, prepend=g[:1] - 1) != 0
    new_value = new_group | (np.diff(v, prepend=v[:1]) != 0)
    run = np.cumsum(new_value) - 1
    first = np.flatnonzero(new_value)
    middle = (first + np.diff(first, append=len(v)) / 2 - 0.5)[run]  # mean place of the equal values
    group = np.cumsum(new_group) - 1
    start = np.flatnonzero(new_group)
    size = np.diff(start, append=len(v))[group]
    ranks: NDArray[np.float64] = np.empty(len(v))
    ranks[order] = (middle - start[group]) / np.maximum(size - 1, 1)
    return ranks


def _pairs(data: ExampleSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct (user, item) codes, ascending, and which one each row is. A repeated pair has one loss, in every row."""
    users = np.asarray(data.x)[:, 0]
    bad = (users < 0) | (users >= data.num_users) | (data.y < 0) | (data.y >= data.num_classes)
    if bad.any():
        raise DataError(
            f"personal_loss: users outside 0..{data.num_users - 1} or items outside 0..{data.num_classes - 1}",
            example_ids=data.example_id[bad],
        )
    pair, pair_of_row = np.unique(users * data.num_classes + data.y, return_inverse=True)
    return pair.astype(np.int64), pair_of_row


def _scores(
    model: nn.Module, data: ExampleSet, lists: Lists, negatives: torch.Tensor, profiles: ItemProfiles, *, batch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 scores of every pair (N,) and of every active user's negatives (A, M), and all into ``profiles``; users
    are streamed."""
    device = model_device(model)
    s_pos = torch.empty(len(lists), dtype=torch.float64)
    s_neg = torch.empty(negatives.shape, dtype=torch.float64)
    row_of = _active_rows(lists)
    present = torch.nonzero(lists.count > 0).flatten()
    with eval_mode(model), torch.no_grad():
        for users in present.split(batch) if len(present) else ():
            scores = model(users[:, None].to(device))
            if not isinstance(scores, torch.Tensor) or scores.shape != (len(users), lists.num_items):
                shape = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
                raise NotApplicable(
                    f"personal_loss: the model gives {shape} for {len(users)} users; ({len(users)}, {lists.num_items}) "
                    "is needed"
                )
            scores = scores.double().cpu()
            broken = users[~scores.isfinite().all(1)]
            if len(broken):
                mine = np.isin(np.asarray(data.x)[:, 0], broken.numpy())
                raise DataError("personal_loss: NaN or infinite scores", example_ids=data.example_id[mine])
            profiles.add(users, scores)
            at = slice(int(lists.start[users[0]]), int(lists.start[users[-1]] + lists.count[users[-1]]))
            s_pos[at] = scores[torch.searchsorted(users, lists.users[at]), lists.items[at]]
            active = row_of[users] >= 0
            rows = row_of[users[active]]
            s_neg[rows] = scores[active].gather(1, negatives[rows])
    return s_pos, s_neg


def _active_rows(lists: Lists) -> torch.Tensor:
    """Place of each user among the active ones, int64 (U,); -1 for the others."""
    rows = torch.full((lists.num_users,), -1)
    rows[lists.active] = torch.arange(len(lists.active))
    return rows


def _mean_losses(
    config: PersonalLossConfig, lists: Lists, s_pos: torch.Tensor, s_neg: torch.Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard error over the negatives, (N,) each; NaN where there is no negative."""
    if config.loss == "bce":
        return torch.nn.functional.softplus(-s_pos).numpy(), np.zeros(len(s_pos))
    mean, stderr = np.full(len(s_pos), np.nan), np.full(len(s_pos), np.nan)
    row_of = _active_rows(lists)
    known = torch.nonzero(row_of[lists.users] >= 0).flatten()
    for at in known.split(_PAIRS) if len(known) else ():
        losses = torch.nn.functional.softplus(s_neg[row_of[lists.users[at]]] - s_pos[at, None])
        mean[at.numpy()] = losses.mean(1).numpy()
        stderr[at.numpy()] = losses.std(1).numpy() / math.sqrt(config.negatives)
    return mean, stderr


def _count_selections(
    config: PersonalLossConfig, lists: Lists, s_pos: torch.Tensor, s_neg: torch.Tensor, draw: torch.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How often each pair was in a pool and was selected, int64 (N,) each. A pool with a pair twice counts it twice."""
    in_pool, selected = (torch.zeros(len(lists), dtype=torch.int64) for _ in range(2))
    if not len(lists.active):
        return in_pool.numpy(), selected.numpy()
    for _ in range(config.rounds):
        pools = lists.draw_pools(lists.active, config.pool, generator=draw)
        shared = torch.randint(config.negatives, (len(lists.active), 1), generator=draw)
        losses = pool_losses(config.loss, s_pos[pools], s_neg.gather(1, shared).squeeze(1))
        chosen = pools.gather(0, choose(losses, tau=config.tau, generator=draw)[None])
        in_pool += torch.bincount(pools.flatten(), minlength=len(lists))
        selected += torch.bincount(chosen.flatten(), minlength=len(lists))
    return in_pool.numpy(), selected.numpy()


def _standardise(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """(value - mean) / standard deviation within its group; 0 where the group has no spread beyond rounding."""
    _, group = np.unique(groups, return_inverse=True)
    size = np.bincount(group)
    mean = np.bincount(group, weights=values) / np.maximum(size, 1)
    deviation = values - mean[group]
    std = np.sqrt(np.bincount(group, weights=deviation**2) / np.maximum(size, 1))
    flat = std <= 1e-12 * np.maximum(np.abs(mean), 1e-300)
    z: NDArray[np.float64] = np.where(flat[group], 0.0, deviation / np.where(flat, 1.0, std)[group])
    return z
