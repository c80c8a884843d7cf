"""Taste: against the definition by a loop, the sketch, lists that say nothing, and planted noise in lists of unequal
length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from recipes.recsys_lists import Lists
from scoring.personal_loss import ranks_within
from scoring.taste import ItemProfiles, noise_odds, taste_z


def profiles_of(scores: np.ndarray, *, width: int = 10_000, seed: int = 0, block: int = 7) -> ItemProfiles:
    found = ItemProfiles(num_users=len(scores), num_items=scores.shape[1], width=width, seed=seed)
    for users in torch.arange(len(scores)).split(block):
        found.add(users, torch.from_numpy(scores)[users])
    return found


def lists_of(listed: np.ndarray) -> Lists:
    users, items = np.nonzero(listed)
    return Lists(users, items, num_users=len(listed), num_items=listed.shape[1])


@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_z_against_a_loop_over_the_definition(num_users: int, num_items: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, listed = rng.normal(size=(num_users, num_items)) * 3, rng.random((num_users, num_items)) < rng.random()
    profile = ((scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)).T
    lists = lists_of(listed)
    found = taste_z(profiles_of(scores), lists)
    for value, u, i in zip(found, lists.users.tolist(), lists.items.tolist(), strict=True):
        mine, others = np.flatnonzero(listed[u]), np.flatnonzero(~listed[u])
        if not len(others):
            assert np.isnan(value)
            continue
        outside = np.array([sum(profile[j] @ profile[k] for j in mine) for k in others]) * (1 - 1 / len(mine))
        if len(mine) == 1 or np.std(outside) < 1e-6:
            assert value == 0.0 or len(mine) > 1
            continue
        affinity = sum(profile[j] @ profile[i] for j in mine if j != i)
        exact = np.clip((affinity - outside.mean()) / outside.std(), -100, 100)
        assert value == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_the_sketch_is_near_and_the_blocks_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    scores, listed = rng.normal(size=(3000, 8)) @ rng.normal(size=(8, 60)), rng.random((3000, 60)) < 0.2
    exact = taste_z(profiles_of(scores), lists_of(listed))
    near = taste_z(profiles_of(scores, width=512), lists_of(listed))
    assert np.corrcoef(exact, near)[0, 1] > 0.95
    again = profiles_of(scores, width=512, block=500)
    assert np.array_equal(taste_z(again, lists_of(listed)), near)
    other = taste_z(profiles_of(scores, width=512, seed=1), lists_of(listed))
    assert not np.array_equal(other, near)


def test_odds_are_those_of_two_normals() -> None:
    """With a long list the user's own mean is d: the odds are the logarithm of the ratio of the two densities."""
    rng = np.random.default_rng(1)
    z = rng.normal(1.5, 1, 200_000)
    d = z.mean()
    expected = -0.5 * z**2 + 0.5 * (z - d) ** 2
    np.testing.assert_allclose(noise_odds(z, np.zeros(len(z), np.int64)), expected, atol=1e-6)


def test_what_says_nothing_has_odds_of_zero() -> None:
    z = np.array([-2.0, -1.0, 3.0, 3.0])  # the first user's items go together worse than random ones
    odds = noise_odds(np.concatenate([z, -np.ones(50)]), np.concatenate([[0, 0, 1, 1], np.full(50, 2)]))
    assert (odds[:2] == 0).all() and len(noise_odds(np.empty(0), np.empty(0, np.int64))) == 0
    flat = taste_z(profiles_of(np.ones((2, 5))), lists_of(np.eye(2, 5, dtype=bool) | np.eye(2, 5, 1, dtype=bool)))
    assert (flat == 0).all()


def test_it_ranks_noise_over_lists_of_unequal_length() -> None:
    """200 users with one of 4 tastes, 4 to 80 items, a fifth of them random; the model has also learnt every listed
    item by heart."""
    rng = np.random.default_rng(2)
    kind_U, kind_K = rng.integers(0, 4, 200), np.arange(400) % 4
    scores = 1.5 * (kind_U[:, None] == kind_K) + rng.normal(size=(200, 400)) * 0.3
    listed, noise = np.zeros((200, 400), bool), np.zeros((200, 400), bool)
    count = np.exp(rng.uniform(np.log(4), np.log(80), 200)).round().astype(int)
    for u in range(200):
        liked = rng.permutation(np.flatnonzero(kind_K == kind_U[u]))[: count[u]]
        random = rng.permutation(np.flatnonzero(kind_K != kind_U[u]))[: max(1, count[u] // 5)]
        listed[u, liked] = listed[u, random] = noise[u, random] = True
    memorised = scores + listed * (3.0 + rng.normal(size=listed.shape))
    lists = lists_of(listed)
    users, truth = lists.users.numpy(), noise[lists.users, lists.items]
    odds = noise_odds(taste_z(profiles_of(memorised), lists), users)
    loss = -memorised[lists.users, lists.items]
    short = lists.count.numpy()[users] < 32
    for part, least in ((np.ones(len(users), bool), 0.95), (short, 0.9)):
        by_odds, by_rank = (roc_auc_score(truth[part], v[part]) for v in (odds, ranks_within(loss, users)))
        assert by_odds > least and by_odds > by_rank + 0.1, (by_odds, by_rank)
