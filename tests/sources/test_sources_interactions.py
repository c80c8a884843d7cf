"""Interactions: tables read back by hand, planted noise counted, every refusal; the synthetic process against its
definition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigError, DataError, NotApplicable
from contracts.methods import Asked
from sources.loading import detect, load
from sources.planted import plant_interactions, plant_label_noise, planted_interactions, without_planted
from sources.splits import largest_remainders
from sources.synthetic_interactions import SyntheticInteractionsConfig, draw_interactions

SMALL = {"num_users": 40, "num_items": 60, "per_user": 15, "noise": 0.0}


def _log(num_users: int = 12, per_user: int = 14, num_items: int = 40, seed: int = 0) -> pd.DataFrame:
    """Distinct pairs in random order, with times."""
    rng = np.random.default_rng(seed)
    items = np.concatenate([rng.permutation(num_items)[:per_user] for _ in range(num_users)])
    users = np.repeat(np.arange(num_users), per_user)
    frame = pd.DataFrame({"user": [f"u{u}" for u in users], "item": items * 3, "time": rng.permutation(len(users))})
    return frame.sample(frac=1, random_state=seed).reset_index(drop=True)


def _load(tmp_path, frame, *, seed=0, suffix="csv", **config):
    path = tmp_path / f"log.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path, index=False)
    return load("interactions", {"root": str(tmp_path), "file": path.name, **config}, seed=seed)


def _items(data):
    """The item of each row as it is called in the file, a whole number."""
    return np.array(data.class_names)[data.y].astype(int)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_every_row_is_read_back(tmp_path, suffix):
    frame = _log()
    data = _load(tmp_path, frame, suffix=suffix, time="time")
    assert data.task.name == "ranking" and data.num_users == 12 and data.num_classes == frame["item"].nunique()
    assert data.x.dtype == data.y.dtype == np.int64 and data.input_shape == (1,)
    assert list(zip(data.owner, _items(data), strict=True)) == list(zip(frame["user"], frame["item"], strict=True))
    assert list(data.class_names) == [str(i) for i in sorted(frame["item"].unique())]  # as numbers, not as text
    users = sorted(frame["user"].unique())
    np.testing.assert_array_equal(data.x[:, 0], [users.index(o) for o in data.owner])
    np.testing.assert_array_equal(data.inputs(np.array([3, 1])), data.x[[3, 1]])
    assert data.inputs(slice(0, 4)).dtype == np.int64
    assert data.provenance["duplicates_removed"] == data.provenance["users_dropped"] == 0
    assert len(set(data.content_hash)) == len(data)


def test_test_split_is_a_fifth_of_every_user_and_seeded(tmp_path):
    data, other = (_load(tmp_path, _log(per_user=15), seed=s) for s in (0, 1))
    for u in range(12):
        assert (data.split[data.x[:, 0] == u] == "test").sum() == 3
    assert (data.split != other.split).any() and (data.content_hash == other.content_hash).all()


def test_with_a_time_the_last_of_every_user_are_tested(tmp_path):
    frame = _log(per_user=15)
    frame.loc[frame["user"] == "u3", "time"] = 7  # ties: the later items
    data = _load(tmp_path, frame, time="time")
    for user, own in frame.groupby("user"):
        last = own.sort_values(["time", "item"])["item"].to_numpy()[-3:]
        assert set(_items(data)[(data.owner == user) & (data.split == "test")]) == set(last)
    assert data.provenance["split"] == "the last of each user by time, test_fraction 0.2"
    drawn = _load(tmp_path, frame, time="time", holdout="random")
    assert (drawn.split != data.split).any() and "stratified by user" in drawn.provenance["split"]
    assert (drawn.split == _load(tmp_path, frame.drop(columns="time")).split).all()


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20), fraction=st.floats(0.01, 0.99))
def test_largest_remainders(sizes, fraction):
    counts = largest_remainders(np.array(sizes), fraction)
    assert counts.sum() == min(round(fraction * sum(sizes)), sum(sizes) - len(sizes))
    assert (counts < np.array(sizes)).all()
    if (np.ceil(fraction * np.array(sizes)) < np.array(sizes)).all():
        assert (np.abs(counts - fraction * np.array(sizes)) < 1).all()


def test_ratings_count_from_min_rating_on(tmp_path):
    frame = _log(per_user=20).assign(rating=lambda f: (np.arange(len(f)) % 5) + 0.5)
    everything = _load(tmp_path, frame, rating="rating", min_interactions=2)
    assert len(everything) == len(frame) and everything.provenance["rated_lower"] == 0
    high = _load(tmp_path, frame, rating="rating", min_rating=2.5, min_interactions=2)
    rated = frame[frame["rating"].to_numpy() >= 2.5]
    assert set(zip(high.owner, _items(high), strict=True)) == set(zip(rated["user"], rated["item"], strict=True))
    assert high.provenance["rated_lower"] == len(frame) - len(high)
    with pytest.raises(ConfigError, match="needs the column"):
        _load(tmp_path, frame, min_rating=2.5)
    with pytest.raises(DataError, match="ratings are numbers"):
        _load(tmp_path, frame.assign(rating="good"), rating="rating", min_rating=1.0)
    with pytest.raises(DataError, match="'rating' is missing"):
        _load(tmp_path, frame.assign(rating=frame["rating"].where(frame.index != 4)), rating="rating", min_rating=1.0)


@pytest.mark.parametrize("header", ["userId,movieId,rating,timestamp", "user_id,item_id,rating,timestamp"])
def test_published_rating_files_are_interactions(tmp_path, header):
    frame = _log().assign(rating=3.5)[["user", "item", "rating", "time"]]
    frame.columns = header.split(",")
    frame.to_csv(tmp_path / "ratings.csv", index=False)
    name, config, _ = detect(tmp_path / "ratings.csv")
    assert name == "interactions" and "min_rating" not in config
    roles = dict(zip(("user", "item", "rating", "time"), header.split(","), strict=True))
    assert {role: config[role] for role in roles} == roles
    assert len(load(name, config)) == len(frame)


def test_repeated_pairs_are_kept_once_the_earliest(tmp_path):
    frame = _log()
    again = frame.iloc[:30].assign(time=frame["time"][:30] - 1000)
    both = pd.concat([frame, again]).assign(id=range(len(frame) + 30))
    data = _load(tmp_path, both, time="time", id="id")
    assert data.provenance["duplicates_removed"] == 30 and len(data) == len(frame)
    assert set(data.example_id) == set(range(30, len(frame) + 30))
    first = _load(tmp_path, both, id="id")  # without a time: the first row
    assert set(first.example_id) == set(range(len(frame)))


def test_sparse_users_are_dropped_and_their_items_with_them(tmp_path):
    frame = pd.concat([_log(), pd.DataFrame({"user": ["rare"] * 9, "item": range(1000, 1009), "time": 0})])
    data = _load(tmp_path, frame)
    assert "rare" not in data.owner and "1000" not in data.class_names
    assert (data.provenance["users_dropped"], data.provenance["rows_of_dropped_users"]) == (1, 9)
    assert data.num_users == 12 and data.x.max() == 11
    assert "rare" in _load(tmp_path, frame, min_interactions=9).owner
    doubled = pd.concat([frame, frame[frame["user"] == "rare"]])  # 18 rows, still 9 pairs
    assert "rare" not in _load(tmp_path, doubled).owner
    with pytest.raises(DataError, match="no user has 50"):
        _load(tmp_path, frame, min_interactions=50)


def test_ids_come_from_their_column(tmp_path):
    frame = _log().assign(id=lambda f: np.arange(len(f)) * 7 + 2)
    data = _load(tmp_path, frame, id="id")
    by_id = frame.set_index("id")
    assert all(data.owner[r] == by_id["user"][i] for r, i in enumerate(data.example_id))


def test_detection_by_column_names(tmp_path):
    _log().rename(columns={"user": "userId", "item": "item_id", "time": "timestamp"}).to_csv(
        tmp_path / "a.csv", index=False
    )
    name, config, _ = detect(tmp_path / "a.csv")
    assert name == "interactions"
    assert {k: config[k] for k in ("user", "item", "time")} == {
        "user": "userId",
        "item": "item_id",
        "time": "timestamp",
    }
    assert load(name, config).task.name == "ranking"
    _log().drop(columns="time").to_parquet(tmp_path / "a.parquet", index=False)
    assert detect(tmp_path / "a.parquet", Asked(owner="user"))[0] == "interactions"
    for more, option in (({"label": "item_id"}, "--label"), ({"owner": "item_id"}, "--owner")):
        with pytest.raises(ConfigError, match=option):
            detect(tmp_path / "a.csv", Asked(**more))
    _log().assign(label=1).to_csv(tmp_path / "b.csv", index=False)  # somebody's table about users and items
    assert detect(tmp_path / "b.csv")[0] == "table"


def test_refusals(tmp_path):
    frame = _log()
    with pytest.raises(DataError, match=r"'item' is missing .*\(log.csv row 5\)"):
        _load(tmp_path, frame.assign(item=frame["item"].where(frame.index != 4)))
    with pytest.raises(DataError, match="no column 'who'"):
        _load(tmp_path, frame, user="who")
    with pytest.raises(DataError, match="whole numbers or text"):
        _load(tmp_path, frame.assign(item=frame["item"] + 0.5))
    with pytest.raises(ConfigError, match="different columns"):
        _load(tmp_path, frame, user="item")


def test_a_ranking_set_is_validated():
    data = load("synthetic_interactions", SMALL)
    other = dataclasses.replace(data, y=np.where(np.arange(len(data)) == 1, data.y[0], data.y))
    with pytest.raises(DataError, match="repeat a pair") as error:
        other.validate()
    assert error.value.example_ids == (int(data.example_id[1]),)
    with pytest.raises(DataError, match=r"outside 0\.\.9") as error:
        dataclasses.replace(data, provenance={**data.provenance, "num_users": 10}).validate()
    assert error.value.example_ids[0] == int(data.example_id[data.x[:, 0] >= 10][0])
    with pytest.raises(DataError, match="ranking needs user indexes"):
        dataclasses.replace(data, x=data.x.astype(np.float32)).validate()
    with pytest.raises(DataError, match="label 99"):
        dataclasses.replace(data, y=np.where(np.arange(len(data)) == 5, 99, data.y)).validate()


def test_parts_of_a_ranking_set_remember_all_users():
    data = load("synthetic_interactions", SMALL)
    few = data.subset(data.example_id[data.x[:, 0] < 2])
    assert few.num_users == data.num_users == 40 and few.num_classes == data.num_classes
    order = np.random.default_rng(0).permutation(len(data))
    assert data.take(order).digest == data.digest != few.digest


# ---- planted noise -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_planted_interactions(seed):
    clean = load("synthetic_interactions", SMALL, seed=seed)
    noisy, ids = plant_interactions(clean, ratio=0.3, seed=seed)
    train = clean.x[clean.split == "train", 0]
    added = noisy.subset(ids)
    np.testing.assert_array_equal(np.bincount(added.x[:, 0], minlength=40), np.floor(0.3 * np.bincount(train)))
    assert set(added.split) == {"train"} and ids.min() == clean.example_id.max() + 1
    pairs = set(zip(clean.x[:, 0].tolist(), clean.y.tolist(), strict=True))
    assert not pairs & set(zip(added.x[:, 0].tolist(), added.y.tolist(), strict=True))
    owner_of = dict(zip(clean.x[:, 0].tolist(), clean.owner, strict=True))
    assert all(owner_of[u] == o for u, o in zip(added.x[:, 0].tolist(), added.owner, strict=True))
    np.testing.assert_array_equal(planted_interactions(noisy), np.isin(noisy.example_id, ids))
    assert planted_interactions(clean) is None and without_planted(clean) is clean
    assert without_planted(noisy).digest == clean.digest
    shuffled = clean.take(np.random.default_rng(seed).permutation(len(clean)))
    again, same = plant_interactions(shuffled, ratio=0.3, seed=seed)
    assert again.digest == noisy.digest and (same == ids).all()
    assert plant_interactions(clean, ratio=0.3, seed=seed + 1)[0].digest != noisy.digest


def test_planted_items_are_uniform_over_the_others(monkeypatch):
    """One user, one item planted, many draws: every item that is not the user's is as likely."""
    clean = load("synthetic_interactions", {**SMALL, "num_users": 2000, "num_items": 30, "per_user": 10})
    monkeypatch.setattr("sources.planted._BLOCK", 30 * 64)  # many blocks
    added = plant_interactions(clean, ratio=0.125, seed=1)[0]
    added = added.take(np.flatnonzero(planted_interactions(added)))
    free = 2000 - np.bincount(clean.y, minlength=30)  # users to whom an item may be planted
    expected = free / 20  # each of a user's 20 other items with probability 1/20
    found = np.bincount(added.y, minlength=30)
    assert found.sum() == 2000
    assert ((found - expected) ** 2 / expected).sum() < 65  # chi-squared, 30 cells: 1 - 2e-4


def test_refusals_of_planting():
    clean = load("synthetic_interactions", SMALL)
    noisy, _ = plant_interactions(clean, ratio=0.3, seed=0)
    with pytest.raises(DataError, match="already"):
        plant_interactions(noisy, ratio=0.1, seed=0)
    with pytest.raises(DataError, match="left to be planted") as error:
        plant_interactions(clean, ratio=5.0, seed=0)
    assert set(error.value.example_ids) <= set(clean.example_id.tolist())
    with pytest.raises(ConfigError, match="ratio"):
        plant_interactions(clean, ratio=0.0, seed=0)
    with pytest.raises(NotApplicable, match="ranking"):
        plant_label_noise(clean, fraction=0.1, seed=0)
    with pytest.raises(NotApplicable, match="classification"):
        plant_interactions(load("sklearn", {"dataset": "wine"}), ratio=0.1, seed=0)


# ---- the synthetic process ---------------------------------------------------------------------------------------


def test_the_process_is_its_seed_and_the_split_is_the_sources():
    a, b = (load("synthetic_interactions", SMALL, seed=s) for s in (0, 1))
    assert (a.y == b.y).all() and (a.split != b.split).any()
    assert (load("synthetic_interactions", {**SMALL, "process_seed": 1}).y != a.y).any()
    np.testing.assert_array_equal(np.bincount(a.x[:, 0]), np.full(40, 15))
    with pytest.raises(ConfigError, match="per_user"):
        load("synthetic_interactions", {**SMALL, "per_user": 60})


def test_clicks_follow_the_popularity():
    """Without tastes two items are drawn by Gumbel-top-2: first by softmax, then by softmax over the rest."""
    config = SyntheticInteractionsConfig(num_users=4000, num_items=6, per_user=2, dim=2, strength=0.0, popularity=1.0)
    users, items = draw_interactions(config)
    assert len(set(zip(users.tolist(), items.tolist(), strict=True))) == 8000
    popularity = np.random.default_rng(0).spawn(4)[2].gumbel(size=6)
    p = np.exp(popularity) / np.exp(popularity).sum()
    second = sum(np.where(np.arange(6) == first, 0, p[first] * p / (1 - p[first])) for first in range(6))
    found = np.bincount(items, minlength=6) / 4000
    assert np.abs(found - p - second).max() < 4.5 * np.sqrt(0.25 / 4000)


def test_strength_of_odd_users():
    config = SyntheticInteractionsConfig(
        num_users=300, num_items=200, per_user=20, popularity=0.0, strength=0.0, odd_strength=30.0
    )
    users, items = draw_interactions(config)
    drawn = [rng.normal(size=(n, 8)) for rng, n in zip(np.random.default_rng(0).spawn(4), (300, 200), strict=False)]
    tastes, qualities = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in drawn)
    match = (tastes[users] * qualities[items]).sum(1)
    assert abs(match[users % 2 == 0].mean()) < 0.03  # 3000 cosines in R^8: standard deviation 0.006
    best = np.sort(tastes[1::2] @ qualities.T, axis=1)[:, -20:].mean()
    assert match[users % 2 == 1].mean() > 0.9 * best
