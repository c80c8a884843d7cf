"""Taste: does an item go with the rest of its user's list, as the model sees items?

    profile of an item k    c_k in R^r, what the model's users think of it: every user's scores, standardised over the
                            items
    affinity                a_ui = sum_{j in list of u, j != i} c_j . c_i             the item itself is left out
    z_ui                    (a_ui - mean) / sd, over the items outside the list, (n - 1) / n of their affinity to the
                            whole list; cut to -100..100: where all items outside are nearly alike it says no more
    d_u                     max(0, (sum of z over u's items + 5 z_mean) / (n_u + 5)), z_mean over all interactions
    noise_odds_ui           d_u^2 / 2 - d_u z_ui

noise_odds is log P(z | noise) / P(z | taste) in nats if z were normal with variance 1 and mean 0 for noise (a random
item) and d_u for taste. It is 0 where a user's list says nothing, as short and incoherent ones do, so that it ranks
over users, which a rank within the user cannot. A loss cannot either way: a model fits the noise of a short list too,
and the loss of an interaction contains what was learnt from itself.

With more than r users the profiles are a sketch: each user is added to one of r coordinates with a random sign
(Charikar et al., "Finding frequent items in data streams", 2002); inner products keep their expectation. Not a
calibrated probability, and a rare taste is still taken for noise: the popularity of the item is part of what a model
knows.
Source: definition; item-to-item similarity as in Sarwar et al. (WWW 2001), the model's in place of co-occurrence.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from contracts.digests import derive_seed
from recipes.recsys_lists import Lists
from recipes.rng import generator

Floats = NDArray[np.float64]
_USERS = 256  # users whose affinities to all items are held at a time
_MOST = 100.0  # of |z|
_PRIOR = 5.0  # interactions that the mean of all users counts for in a user's own


class ItemProfiles:
    """Profiles of K items, made of the scores of users that arrive in blocks.

    Args:
        num_users, num_items: U and K.
        width: r, coordinates of a profile; exact where U <= r.
        seed: of the sketch.

    Attributes:
        table: float64 (r, K).
    """

    def __init__(self, *, num_users: int, num_items: int, width: int, seed: int) -> None:
        draw = generator(derive_seed("item profiles", seed))
        exact = num_users <= width
        self.table = torch.zeros((min(width, num_users), num_items), dtype=torch.float64)
        self._slot = torch.arange(num_users) if exact else torch.randint(width, (num_users,), generator=draw)
        sign = torch.ones(num_users) if exact else torch.randint(2, (num_users,), generator=draw) * 2 - 1
        self._sign = sign.double()

    def add(self, users: Tensor, scores: Tensor) -> None:
        """Take in the scores (B, K), float64 on the CPU, of ``users``, int64 (B,); a user without preferences adds
        nothing."""
        centred = scores - scores.mean(1, keepdim=True)
        spread = centred.square().mean(1, keepdim=True).sqrt()
        flat = spread <= 1e-12 * scores.abs().amax(1, keepdim=True)
        standard = torch.where(flat, 0.0, centred / torch.where(flat, 1.0, spread))
        self.table.index_add_(0, self._slot[users], standard * self._sign[users, None])


def taste_z(profiles: ItemProfiles, lists: Lists) -> Floats:
    """z of every interaction, by position in ``lists``.

    Returns:
        float64 (N,) in [-100, 100], higher = goes better with the rest of the list. 0 for the only item of a user and
        where all items outside are alike; NaN for a user without an item outside the list.
    """
    table_RK, out = profiles.table.numpy(), np.full(len(lists), np.nan)
    own_K = np.square(table_RK).sum(0)
    start_U, count_U, items = lists.start.numpy(), lists.count.numpy(), lists.items.numpy()
    for first in range(0, len(lists.active), _USERS):
        users = lists.active[first : first + _USERS].numpy()
        count = count_U[users]
        row = np.repeat(np.arange(len(users)), count)
        at = np.repeat(start_U[users] - np.concatenate([[0], count.cumsum()[:-1]]), count) + np.arange(count.sum())
        item = items[at]
        listed = csr_array((np.ones(len(at)), (row, item)), shape=(len(users), table_RK.shape[1]))
        affinity_BK = (listed @ table_RK.T) @ table_RK
        left_out = affinity_BK[row, item] - own_K[item]
        affinity_BK[row, item] = 0.0
        outside = table_RK.shape[1] - count
        mean = affinity_BK.sum(1) / outside
        affinity_BK -= mean[:, None]
        affinity_BK[row, item] = 0.0
        sd = np.sqrt(np.square(affinity_BK).sum(1) / outside)
        share = (count - 1) / count
        none = sd * share <= 1e-9 * own_K.max()
        scale = np.where(none, 1.0, sd * share)
        out[at] = np.where(none[row], 0.0, (left_out - (mean * share)[row]) / scale[row]).clip(-_MOST, _MOST)
    return out


def noise_odds(z: Floats, users: NDArray[np.int64]) -> Floats:
    """Log odds of noise against taste, nats: float64 (N,) in [-5,000, 15,000], higher = more likely noise.

    Args:
        z: (N,) of :func:`taste_z`, in [-100, 100].
        users: int64 (N,), >= 0.

    >>> noise_odds(np.array([2.0, 2.0, -1.0]), np.array([0, 0, 0])).round(1).tolist()
    [-1.5, -1.5, 1.5]
    """
    count, total = np.bincount(users), np.bincount(users, weights=z)
    d = np.maximum((total + _PRIOR * (z.mean() if len(z) else 0.0)) / (count + _PRIOR), 0.0)[users]
    odds: Floats = d * (d / 2 - z)
    return odds
