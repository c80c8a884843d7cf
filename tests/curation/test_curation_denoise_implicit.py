"""Dropping noise-like interactions: against a loop over users, the global comparator, refusals."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from contracts.errors import DataError, NotApplicable
from curation import apply_split
from curation.denoise_implicit import DenoiseImplicitConfig, denoise_implicit
from sources import load


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
    for u in range(6):
        mine = train.x[:, 0] == u
        rank = (rankdata(values[mine]) - 1) / (mine.sum() - 1)
        for example_id, r in zip(train.example_id[mine].tolist(), rank, strict=True):
            assert role[example_id] == ("drop" if r > 1 - rate else "keep")


def test_a_user_rank_as_the_score_is_cut_where_it_stands(clicks):
    train = clicks.part("train")
    n = np.bincount(train.x[:, 0])
    rank = np.concatenate([np.linspace(0, 1, m) for m in n])
    order = np.argsort(train.x[:, 0], kind="stable")
    values = np.empty(len(train))
    values[order] = rank
    found = _run(train, values, noise_rate=0.25).join(_scores(train, values)("x"), on="example_id")
    assert ((found["value"] > 0.75) == (found["role"] == "drop")).all()


def test_a_global_cut_takes_from_the_users_it_ranks_badly(clicks):
    train = clicks.part("train")
    values = train.x[:, 0] * 100.0 + np.arange(len(train)) % 7
    dropped = {}
    for scope in ("user", "all"):
        parts = apply_split(train, _run(train, values, noise_rate=0.2, scope=scope), roles=("keep", "drop"))
        dropped[scope] = np.bincount(parts["drop"].x[:, 0], minlength=20)
        assert len(parts["drop"]) + len(parts["keep"]) == len(train)
    assert dropped["user"].min() >= 1 and np.ptp(dropped["user"]) <= 3
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
    assert kept.startswith("personal_loss ") and "of the user's, above 0.5" in kept
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
