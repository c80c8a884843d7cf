"""Of every group one is kept, as a plain loop over groups finds it; what is stored is what was found by content."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from near_copies import hashed
from sklearn.datasets import load_digits

from contracts.errors import DataError
from contracts.methods import curator, score
from curation.deduplicated import DeduplicatedConfig
from palimpsest.testing.worlds import class_examples
from scoring.near_duplicates import NearDuplicatesConfig


def run(data, groups: pl.DataFrame, **config: object) -> dict[int, tuple[str, str]]:
    asked = []

    def scores(name: str) -> pl.DataFrame:
        asked.append(name)
        return groups

    frame = curator.get("deduplicated")(data, config=DeduplicatedConfig.from_mapping(config), seed=0, scores=scores)
    assert asked == ["near_duplicates.group_id"] and frame["example_id"].is_sorted()
    return {e: (role, reason) for e, role, reason in frame.iter_rows()}


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 30)), min_size=90, max_size=90), st.sampled_from(["majority", "drop"])
)
@settings(max_examples=50, deadline=None)
def test_one_of_a_group_is_kept(group: list[int | None], conflicts: str) -> None:
    train = class_examples().part("train")
    found = run(train, pl.DataFrame({"example_id": train.example_id, "value": group}), conflicts=conflicts)
    members = defaultdict(list)
    for example, label, own in zip(train.example_id.tolist(), train.y.tolist(), group, strict=True):
        members[own if own is not None else ("alone", example)].append((example, label))
    for rows in members.values():
        votes = Counter(label for _, label in rows)
        best = min(votes, key=lambda k: (-votes[k], k))
        first = min(e for e, label in rows if label == best)
        for example, _ in rows:
            role, reason = found[example]
            if len(rows) == 1:
                assert (role, reason) == ("keep", "no near duplicate")
            elif len(votes) > 1 and conflicts == "drop":
                assert role == "drop" and f"{len(rows)} near duplicates with {len(votes)} labels" in reason
            else:
                assert role == ("keep" if example == first else "drop")
                assert (f"near duplicate of {first}," in reason) == (example != first)


def test_planted_copies_are_dropped_by_the_stored_score() -> None:
    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8)[:400, None], bunch.target.astype(np.int64)[:400]
    x[380:], y[380:] = x[:20], y[:20]
    data = hashed(x, y, num_classes=10)
    groups = score.get("near_duplicates")(data, config=NearDuplicatesConfig(), seed=0)
    found = run(data, groups.select("example_id", value="group_id"))
    dropped = {e for e, (role, _) in found.items() if role == "drop"}
    pairs = [set(data.example_id[[k, 380 + k]].tolist()) for k in range(20)]
    assert all(len(pair & dropped) == 1 for pair in pairs) and len(dropped) <= 22


def test_what_is_stale_or_leaves_nothing_is_refused() -> None:
    train = class_examples().part("train")
    ids = train.example_id
    with pytest.raises(DataError, match="not in the training split"):
        run(train, pl.DataFrame({"example_id": [int(ids.max()) + 1], "value": [1]}))
    with pytest.raises(DataError, match="has examples twice"):
        run(train, pl.DataFrame({"example_id": [ids[0], ids[0]], "value": [1, 1]}))
    with pytest.raises(DataError, match="all 90 training examples"):
        run(train, pl.DataFrame({"example_id": ids, "value": np.zeros(90, int)}), conflicts="drop")
    alone = dataclasses.replace(train, y=np.zeros(90, np.int64))
    kept = run(alone, pl.DataFrame({"example_id": ids, "value": np.zeros(90, int)}), conflicts="drop")
    assert [e for e, (role, _) in kept.items() if role == "keep"] == [int(ids.min())], "one label is no conflict"
