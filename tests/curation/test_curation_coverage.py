"""Selections by coverage are the plain greedy ones, choose what they claim to, and keep the proportions of classes."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from contracts.errors import DataError, NotApplicable
from contracts.methods import curator
from curation.coverage.choosing import CoverageConfig, choose, nearest_kept, shares
from curation.coverage.facility_location import FacilityConfig, greedy, similarities
from curation.coverage.herding import herded
from curation.coverage.k_center import farthest_first
from palimpsest.testing.worlds import class_examples

GROUPS = st.tuples(st.integers(2, 40), st.integers(1, 4), st.integers(0, 2**31), st.booleans())


def points(num: int, dim: int, seed: int, whole: bool) -> np.ndarray:
    """Random points; whole numbers have many ties."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 3, (num, dim)) if whole else rng.normal(size=(num, dim))
    return drawn.astype(np.float32)


def facility(near: np.ndarray, chosen: list[int]) -> float:
    return float(near[:, chosen].max(1).sum(dtype=np.float64)) if chosen else 0.0


@settings(max_examples=60, deadline=None)
@given(GROUPS, st.data())
def test_facility_location_is_the_plain_greedy(group: tuple[int, int, int, bool], draw: st.DataObject) -> None:
    phi = points(*group)
    num = draw.draw(st.integers(1, len(phi)))
    near, found = similarities(phi), greedy(phi, num).tolist()
    assert len(set(found)) == num
    for t, chosen in enumerate(found):  # two examples may gain as much but for rounding
        value = [facility(near, [*found[:t], j]) for j in range(len(phi)) if j not in found[:t]]
        assert facility(near, [*found[:t], chosen]) == pytest.approx(max(value), rel=1e-6)


@pytest.mark.parametrize("whole", [False, True])
def test_lazy_looks_change_nothing(whole: bool) -> None:
    phi = points(300, 3, 0, whole)
    near, best, wanted = similarities(phi), np.zeros(len(phi), np.float32), []
    for _ in range(60):  # every gain anew; among equals the first
        gain = np.maximum(near - best, 0).sum(1, dtype=np.float64)
        gain[wanted] = -1
        wanted.append(int(gain.argmax()))
        best = np.maximum(best, near[wanted[-1]])
    assert greedy(phi, 60).tolist() == wanted


def test_similarities_are_distances_turned_over() -> None:
    phi = points(20, 3, 1, False)
    apart = np.linalg.norm(phi[:, None] - phi[None], axis=2)
    assert np.abs(similarities(phi) - (apart.max() - apart)).max() < 2e-3 and (similarities(phi) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(GROUPS, st.data())
def test_k_center_is_farthest_first_and_within_two_of_the_best(
    group: tuple[int, int, int, bool], draw: st.DataObject
) -> None:
    phi = points(*group)
    num = draw.draw(st.integers(1, len(phi)))
    found = farthest_first(phi, num)
    assert len(set(found.tolist())) == num
    apart = np.linalg.norm(phi[:, None].astype(float) - phi[None], axis=2)
    for t in range(1, num):
        before = apart[:, found[:t]].min(1)
        before[found[:t]] = -1
        assert before[found[t]] == pytest.approx(before.max(), abs=1e-6)
    radius = apart[:, found].min(1).max()
    if num < len(phi) <= 12:
        from itertools import combinations

        best = min(apart[:, list(some)].min(1).max() for some in combinations(range(len(phi)), num))
        assert radius <= 2 * best + 1e-6


def test_herding_keeps_the_mean_better_than_chance() -> None:
    phi = points(200, 6, 3, False) + 1
    unit = phi / np.linalg.norm(phi, axis=1, keepdims=True)
    missed = lambda rows: np.linalg.norm(unit[rows].mean(0) - unit.mean(0))  # noqa: E731
    found, rng = herded(phi, 50), np.random.default_rng(0)
    random = [missed(rng.permutation(200)[:50]) for _ in range(200)]
    assert missed(found) < min(random) / 3 and len(set(found.tolist())) == 50
    assert missed(found[:10]) < np.quantile([missed(rng.permutation(200)[:10]) for _ in range(200)], 0.05)
    assert np.array_equal(herded(phi, 10), found[:10]), "every beginning is itself a selection"


def test_planted_clusters_are_all_covered() -> None:
    """Ten clusters of unequal size: each is met before any is met twice; a random choice of ten misses some."""
    rng = np.random.default_rng(0)
    sizes = [200, 100, 50, 40, 30, 20, 20, 15, 15, 10]
    cluster = np.repeat(np.arange(10), sizes)
    phi = (10 * np.eye(10)[cluster] + 0.1 * rng.normal(size=(500, 10))).astype(np.float32)
    for rule in (farthest_first, greedy):
        assert len(set(cluster[rule(phi, 10)])) == 10
    assert np.mean([len(set(cluster[rng.permutation(500)[:10]])) for _ in range(50)]) < 8
    outlier = np.vstack([phi, np.full((1, 10), 100, np.float32)])
    assert 500 in farthest_first(outlier, 3) and 500 not in greedy(outlier, 3)


def test_classes_keep_their_proportion_and_reasons_are_said() -> None:
    train = class_examples().part("train").by_id()
    phi = np.asarray(train.x)
    members = choose(train, phi, CoverageConfig(fraction=0.3), farthest_first, name="k_center")
    kept = members.filter(pl.col("role") == "keep")["example_id"].to_numpy()
    assert len(kept) == 27 and np.bincount(train.y[train.positions(kept)]).tolist() == [9, 9, 9]
    assert members["example_id"].to_list() == train.example_id.tolist()
    assert members["reason"].str.contains("k_center").all()
    whole = choose(train, phi, CoverageConfig(count=10, stratified=False), greedy, name="facility_location")
    assert (whole["role"] == "keep").sum() == 10
    with pytest.raises(DataError, match="90 of 90 training examples would be kept"):
        choose(train, phi, CoverageConfig(count=90), greedy, name="x")


@settings(max_examples=60, deadline=None)
@given(GROUPS, st.data())
def test_weights_are_the_sizes_of_what_is_nearest(group: tuple[int, int, int, bool], draw: st.DataObject) -> None:
    """Against a loop; and the weighted gradients miss the sum of all by no more than CRAIG's bound."""
    phi = points(*group)
    chosen = greedy(phi, draw.draw(st.integers(1, len(phi))))
    near, apart = nearest_kept(phi, chosen)
    for i, row in enumerate(phi.astype(float)):
        distance = np.sqrt(np.square(phi[chosen].astype(float) - row).sum(1))
        first = i if i in chosen.tolist() else int(chosen[int(np.flatnonzero(distance <= distance.min() + 1e-12)[0])])
        assert near[i] == first and apart[i] == pytest.approx(distance.min(), abs=1e-9)
    weight = np.bincount(near, minlength=len(phi))
    assert weight.sum() == len(phi) and (weight[chosen] >= 1).all()
    missed = np.linalg.norm((weight[:, None] * phi.astype(float)).sum(0) - phi.astype(float).sum(0))
    assert missed <= apart.sum() + 1e-6


def test_weighted_gradients_stand_for_all_better_than_equal_ones() -> None:
    """Kinds of unequal size: each kept one counts as many as it covers."""
    rng = np.random.default_rng(1)
    phi = (rng.normal(size=(6, 4))[np.repeat(np.arange(6), [150, 60, 40, 20, 20, 10])] * 5).astype(np.float32)
    phi += 0.1 * rng.normal(size=phi.shape).astype(np.float32)
    chosen = greedy(phi, 12)
    weight = np.bincount(nearest_kept(phi, chosen)[0], minlength=len(phi))[chosen]
    missed = [
        np.linalg.norm((np.asarray(w)[:, None] * phi[chosen]).sum(0) - phi.sum(0))
        for w in (weight, np.full(12, len(phi) / 12))
    ]
    assert missed[0] < 0.2 * missed[1]


def test_every_dropped_example_says_which_kept_one_stands_for_it() -> None:
    train = class_examples().part("train").by_id()
    phi = np.asarray(train.x)
    members = choose(train, phi, CoverageConfig(fraction=0.3), greedy, name="facility_location")
    rows = {row["example_id"]: row for row in members.to_dicts()}
    counted = dict.fromkeys((e for e, row in rows.items() if row["role"] == "keep"), 1)
    for example, row in rows.items():
        if row["role"] == "drop":
            of = int(row["reason"].split()[2])
            at, other = train.positions([example])[0], train.positions([of])[0]
            assert rows[of]["role"] == "keep" and train.y[at] == train.y[other] and row["weight"] is None
            counted[of] += 1
    assert counted == {e: row["weight"] for e, row in rows.items() if row["role"] == "keep"}
    assert all(f"stands for {n}" in rows[e]["reason"] for e, n in counted.items())
    few = choose(train, phi, CoverageConfig(count=2), greedy, name="facility_location")
    left = few.filter(pl.col("reason").str.contains("none was left for its small group"))
    assert left.height == 30 and few["weight"].sum() == 60


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.data())
def test_shares_are_whole_fair_and_never_too_many(sizes: list[int], draw: st.DataObject) -> None:
    wanted = draw.draw(st.integers(1, sum(sizes)))
    found = shares(np.array(sizes), wanted)
    assert found.sum() == wanted and (found >= 0).all() and (found <= sizes).all()
    if wanted >= len(sizes):
        assert (found >= 1).all()


def test_craig_reads_gradients_and_refuses_what_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    train = class_examples().part("train")
    logits = np.random.default_rng(0).normal(size=(len(train), 3)).astype(np.float32)
    by_id = dict(zip(train.example_id.tolist(), logits, strict=True))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).eval()
    method = curator.get("facility_location")

    def run(said=lambda data: np.stack([by_id[i] for i in data.example_id.tolist()]), **config: object) -> pl.DataFrame:
        chosen = FacilityConfig.from_mapping({"fraction": 0.3, **config})
        return method(train, config=chosen, seed=0, encoder=model, outputs=said)

    ordered = train.by_id()
    z = np.stack([by_id[i] for i in ordered.example_id.tolist()]).astype(np.float64)
    share = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    share[np.arange(len(z)), ordered.y] -= 1
    kept = set(run().filter(pl.col("role") == "keep")["example_id"])
    wanted = {
        int(ordered.example_id[np.flatnonzero(ordered.y == k)][j])
        for k in range(3)
        for j in greedy(share[ordered.y == k].astype(np.float32), 9)
    }
    assert kept == wanted != set(run(features="embedding").filter(pl.col("role") == "keep")["example_id"])
    with pytest.raises(DataError, match="outputs are not finite"):
        run(said=lambda data: np.full((len(data), 3), np.nan))
    monkeypatch.setattr("curation.coverage.facility_location.MOST", 20)
    with pytest.raises(NotApplicable, match="at most 20 examples; there are 30: choose within classes"):
        run()
