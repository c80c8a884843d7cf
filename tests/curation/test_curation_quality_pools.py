"""Pools of a score against a plain loop: equal sizes, ties by id, classes cut by themselves, nobody lost."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigError, DataError
from contracts.methods import curator
from curation.members import training_ids
from curation.split import apply_split

METHOD = curator.get("quality_pools")


def run(data, values, **config):
    frame = pl.DataFrame({"example_id": training_ids(data), "value": values}, schema_overrides={"value": pl.Float64})
    frame = frame.sample(fraction=1.0, shuffle=True, seed=1)
    return METHOD(data, config=METHOD.spec.config.from_mapping(config), seed=0, scores=lambda name: frame)


def loop(ids, values, classes, *, num_pools, fraction, best):
    role = dict.fromkeys(ids, "outside")
    for k in sorted(set(classes)):
        own = [
            (v if best == "lowest" else -v, i)
            for i, v, c in zip(ids, values, classes, strict=True)
            if c == k and v is not None
        ]
        size = int(fraction * len(own) / num_pools + 1e-9)
        for rank, (_, i) in enumerate(sorted(own)):
            if size and rank // size < num_pools:
                role[i] = f"pool_{rank // size + 1}"
    return [role[i] for i in ids]


@given(
    values=st.lists(st.one_of(st.none(), st.integers(-3, 3).map(float)), min_size=60, max_size=60),
    num_pools=st.integers(2, 5),
    fraction=st.floats(0.2, 1.0),
    best=st.sampled_from(("lowest", "highest")),
    stratified=st.booleans(),
)
def test_equals_the_loop(data, values, num_pools, fraction, best, stratified):
    ids = training_ids(data).tolist()
    classes = data.y[data.positions(np.array(ids))].tolist() if stratified else [0] * len(ids)
    want = loop(ids, values, classes, num_pools=num_pools, fraction=fraction, best=best)
    config = {"num_pools": num_pools, "fraction": fraction, "best": best, "stratified": stratified}
    if set(want) == {"outside"}:
        with pytest.raises(DataError, match="cannot be cut"):
            run(data, values, **config)
        return
    members = run(data, values, **config)
    assert members.schema == {"example_id": pl.Int64, "role": pl.String, "reason": pl.String}
    assert members["example_id"].to_list() == ids and members["role"].to_list() == want
    if not stratified:
        assert len({want.count(f"pool_{p + 1}") for p in range(num_pools)}) == 1


def test_reasons_name_value_and_rank(data):
    values = np.arange(60.0)
    values[3] = np.nan
    members = run(data, values, best="highest", num_pools=2, score="el2n", stratified=False)
    assert members["reason"][59] == "el2n 59, rank 1 of 59 from the highest"
    assert members["reason"][3] == "el2n has no value" and members["role"][3] == "outside"
    assert members["role"].value_counts().sort("role").rows() == [("outside", 2), ("pool_1", 29), ("pool_2", 29)]


def test_roles_are_sets_again(data):
    members = run(data, np.arange(60.0), num_pools=3, stratified=False)
    sets = apply_split(data, members, roles=METHOD.spec.roles)
    assert [len(sets[f"pool_{p}"]) for p in (1, 2, 3, 4)] == [20, 20, 20, 0] and len(sets["outside"]) == 0
    assert sets["pool_1"].example_id.tolist() == training_ids(data)[:20].tolist()


def test_stratified_pools_have_the_shares_of_the_classes(data):
    ids = training_ids(data)
    labels = data.y[data.positions(ids)]
    members = run(data, labels.astype(float), num_pools=3, stratified=True)
    for p in (1, 2, 3):
        inside = data.y[data.positions(members.filter(pl.col("role") == f"pool_{p}")["example_id"].to_numpy())]
        assert np.bincount(inside).tolist() == [5, 5, 5, 5]


def test_what_is_refused(data, regression):
    ids = training_ids(regression)
    part = regression.subset(ids)
    bins = part.task.strata(part.x, part.y, part.example_id).tolist()
    want = loop(ids.tolist(), np.arange(60.0).tolist(), bins, num_pools=4, fraction=1.0, best="lowest")
    assert run(regression, np.arange(60.0))["role"].to_list() == want  # no classes: bins of the target
    test = data.part("test").example_id
    for frame, what in (
        (pl.DataFrame({"example_id": test[:2], "value": [0.0, 1.0]}), "not in the training split"),
        (pl.DataFrame({"example_id": training_ids(data)[[0, 0]], "value": [0.0, 1.0]}), "twice"),
    ):
        with pytest.raises(DataError, match=what):
            METHOD(data, config=METHOD.spec.config(), seed=0, scores=lambda name, frame=frame: frame)
    with pytest.raises(ConfigError, match="num_pools"):
        METHOD.spec.config.from_mapping({"num_pools": 17})
