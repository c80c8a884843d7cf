"""Dropping noise-like interactions: against a loop over users, the global comparator, refusals."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import DataError, NotApplicable
from curation.denoise_implicit import DenoiseImplicitConfig, denoise_implicit
from curation.split import apply_split
from sources.loading import load


@pytest.fixture(scope="module")
def clicks():
    return load("synthetic_interactions", {"num_users": 20, "num_items": 40, "per_user": 12})


def _scores(data, values):
    frame = pl.DataFrame({"example_id": data.example_id, "value": values})
    return lambda name: frame


def _run(data, values, **config):
    return denoise_implicit(data, config=DenoiseImplicitConfig(**config), seed=0, scores=_scores(data, values))


@given(rate=st.floats(0.01, 0.99), seed=st.integers(0, 1000), distinct=st.sampled_from([4, 10_000]))
def test_against_a_loop_over_the_users(rate, seed, distinct):
    clicks = load("synthetic_interactions", {"num_users": 6, "num_items": 40, "per_user": 12})
    train = clicks.part("train")
    values = np.random.default_rng(seed).integers(0, distinct, len(train)).astype(float)
    found = _run(train, values, noise_rate=rate)
    assert found["example_id"].to_list() == sorted(train.example_id.tolist())
    role = dict(zip(found["example_id"], found["role"], strict=True))
    sizes = np.bincount(train.x[:, 0])
    wanted = min(round(rate * len(train)), int((sizes - 1).sum()))
    assert list(role.values()).count("drop") == wanted  # the share asked for, however short the lists are
    for u in range(6):
        mine = sorted(zip(-values[train.x[:, 0] == u], train.example_id[train.x[:, 0] == u], strict=True))
        dropped = [role[example_id] == "drop" for _, example_id in mine]
        assert sum(dropped) in {min(int(rate * sizes[u] + more), sizes[u] - 1) for more in (0, 1 - 1e-9, 1)}
        assert dropped == sorted(dropped, reverse=True)  # the highest, ties to the smaller id


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("scope", ["user", "all"])
def test_the_share_is_honoured_on_short_lists(rate, scope):
    """Eight interactions a user: a rank within the user cannot be a share of one in a hundred."""
    train = load("synthetic_interactions", {"num_users": 200, "num_items": 60, "per_user": 10, "noise": 0.0}).part(
        "train"
    )
    assert set(np.bincount(train.x[:, 0])) == {8}
    found = _run(train, np.random.default_rng(0).normal(size=len(train)), noise_rate=rate, scope=scope)
    assert (found["role"] == "drop").sum() == round(rate * 1600)


def test_a_global_cut_takes_from_the_users_it_ranks_badly(clicks):
    train = clicks.part("train")
    values = train.x[:, 0] * 100.0 + np.arange(len(train)) % 7
    dropped = {}
    for scope in ("user", "all"):
        parts = apply_split(train, _run(train, values, noise_rate=0.2, scope=scope), roles=("keep", "drop"))
        dropped[scope] = np.bincount(parts["drop"].x[:, 0], minlength=20)
        assert len(parts["drop"]) + len(parts["keep"]) == len(train)
    share = 0.2 * np.bincount(train.x[:, 0])
    assert (np.abs(dropped["user"] - share) < 1).all() and dropped["user"].sum() == dropped["all"].sum() == round(
        0.2 * len(train)
    )
    assert (dropped["all"][:15] == 0).all() and dropped["all"][18:].min() >= 11


def test_missing_values_are_kept_and_say_so(clicks):
    train = clicks.part("train")
    values = np.arange(len(train), dtype=float)
    values[5] = np.nan
    some = pl.DataFrame({"example_id": train.example_id, "value": values}).filter(pl.Series(train.x[:, 0] > 0))
    found = denoise_implicit(train, config=DenoiseImplicitConfig(noise_rate=0.5), seed=0, scores=lambda name: some)
    unknown = found.filter(
        pl.col("example_id").is_in(train.example_id[(train.x[:, 0] == 0) | np.isnan(values)].tolist())
    )
    assert set(unknown["role"]) == {"keep"} and set(unknown["reason"]) == {"personal_loss has no value"}
    kept = found.filter(pl.col("role") == "drop")["reason"][0]
    assert kept.startswith("personal_loss ") and "of the user's from the highest; the first" in kept
    assert not any(owner in reason for owner in set(train.owner) for reason in found["reason"].to_list())


def test_an_only_interaction_is_kept(clicks):
    train = clicks.part("train")
    first = np.unique(train.x[:, 0], return_index=True)[1]
    found = _run(train.take(first), np.arange(len(first), dtype=float), noise_rate=0.99)
    assert set(found["role"]) == {"keep"}


def test_refusals(clicks):
    train = clicks.part("train")
    values = np.arange(len(train), dtype=float)
    with pytest.raises(NotApplicable, match="classification"):
        _run(load("sklearn", {"dataset": "wine"}).part("train"), np.zeros(134))
    stale = pl.DataFrame({"example_id": [*train.example_id[:3], 10**6], "value": [0.0] * 4})
    doubled = pl.DataFrame({"example_id": [train.example_id[0]] * 2, "value": [0.0] * 2})
    for frame, message in ((stale, "not in the training split"), (doubled, "twice")):
        with pytest.raises(DataError, match=message):
            denoise_implicit(train, config=DenoiseImplicitConfig(), seed=0, scores=lambda name, f=frame: f)
    with pytest.raises(DataError, match="no value"):
        _run(train, np.full(len(values), np.nan))
