"""What every curated set declares of an erasure is one of the words, and the words hold."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from contracts.methods import AFTER_ERASURE, curator, maker
from curation.by_class import ByClassConfig
from palimpsest.testing.worlds import class_examples
from pipelines.after_erasure import UNKNOWN, declared, effects


@pytest.mark.parametrize("name", [*curator.names(), *maker.names()])
def test_every_method_declares_a_known_word(name: str) -> None:
    word, what = declared(name)
    assert what == AFTER_ERASURE[word] and word in ("drop", "rebuild", "remake")


def test_where_a_row_is_dropped_the_roles_of_the_others_stay() -> None:
    """Of selectors by the example itself; a draw leaves others as they were drawn."""
    train = class_examples().part("train")
    method, config = curator.get("by_class"), ByClassConfig(class_name="red")
    before = method(train, config=config, seed=0)
    gone = before.filter(pl.col("role") == "forget")["example_id"][0]
    after = method(train.subset(train.example_id[train.example_id != gone]), config=config, seed=0)
    assert after.select("example_id", "role").equals(
        before.filter(pl.col("example_id") != gone).select("example_id", "role")
    )
    assert declared("by_class")[0] == "drop"


def test_a_method_that_is_not_here_is_not_known() -> None:
    found = pl.DataFrame(
        {
            "subject": ["s"] * 4,
            "dataset_id": ["a", "b", "b", "c"],
            "method": ["of_a_plugin", "keep_hardest", "keep_hardest", "cuda_unlearnable"],
            "role": ["keep", "drop", "keep", "unused"],
            "num_examples": [1, 2, 3, 1],
            "num_made": np.zeros(4, int),
        }
    )
    rows = {row["set"]: row for row in effects(found).to_dicts()}
    assert rows["a"]["effect"] == UNKNOWN and "of_a_plugin is not installed here" in rows["a"]["what"]
    assert (rows["b"]["effect"], rows["b"]["roles"]) == ("rebuild", "drop: 2, keep: 3")
    assert (rows["c"]["effect"], rows["c"]["what"]) == ("none", "nothing was made from it")
    assert effects(found.head(0)).height == 0
