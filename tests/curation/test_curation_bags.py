"""Made data sets of bags: what is in them, what is not, and what they spend."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

from contracts.errors import ConfigError, DataError, NotApplicable
from contracts.methods import maker
from contracts.progress import silent
from curation.bags import RELEASE, BagsConfig
from palimpsest.testing.worlds import class_examples, images, numbers
from sources.bags import Bags, on_simplex
from sources.example_set import ExampleSet
from sources.made import Made, made_from

SECRET = b"a secret of a test, 16 or longer"
NOISY = {"epsilon": 1.0, "clip": 20.0, "center": 40.0}


def put(data: ExampleSet, *, seed: int = 0, secret: bytes = SECRET, **config: object) -> Made:
    settings = BagsConfig.from_mapping({"bag_size": 4, **config})
    return maker.get("bags")(data, config=settings, seed=seed, progress=silent, secret=secret)


def test_every_example_has_its_features_and_the_mean_of_its_bag() -> None:
    train = numbers().train.by_id()
    made = put(train)
    table = made.tables[RELEASE.name]
    own = train.positions(table["example_id"].to_numpy())
    assert (made.examples.x == np.asarray(train.x)[own]).all() and sorted(own) == list(range(90))
    bag = made.examples.columns["bag"]
    assert (bag == table["bag_id"].to_numpy()).all()
    for number in np.unique(bag):
        rows = bag == number
        assert np.allclose(made.examples.y[rows], train.y[own[rows]].mean())
        assert table.filter(pl.Series(rows))["position"].sort().to_list() == list(range(rows.sum()))
        assert set(table.filter(pl.Series(rows))["size"]) == {int(rows.sum())}
    assert np.allclose(table["mean_response"].list.first(), made.examples.y)
    assert table["epsilon"].null_count() == table["epsilon_total"].null_count() == 90
    assert sorted(np.bincount(bag).tolist()) == [4] * 21 + [6], "two are left over of 90"


def test_a_made_example_is_from_all_of_its_bag_under_an_id_of_its_own() -> None:
    train = numbers().train
    made = put(train)
    table = made.tables[RELEASE.name]
    assert not np.isin(made.examples.example_id, train.example_id).any()
    mates = table.select("made_id", "bag_id").join(table.select("bag_id", "example_id"), on="bag_id")
    wanted = mates.select("made_id", "example_id").sort("made_id", "example_id")
    assert made.drawn_from.equals(wanted)


def test_it_is_kept_with_its_bags() -> None:
    made = put(numbers().train, **NOISY)
    again = made_from(*made.kept())
    assert again.digest == made.examples.digest and (again.columns["bag"] == made.examples.columns["bag"]).all()
    text = dataclasses.replace(made.examples, columns={"bag": made.examples.columns["bag"].astype(str)})
    with pytest.raises(NotApplicable, match="'bag' is text"):
        dataclasses.replace(made, examples=text).kept()


def test_no_response_is_in_what_is_kept() -> None:
    """Neither the bits of a raw value in an array or table nor its digits in a text of it."""
    train = numbers().train
    for config in ({}, NOISY, {**NOISY, "releases": 3}):
        made = put(train, **config)
        arrays, meta = made.kept()
        content = b"".join(array.tobytes() for array in arrays.values()) + repr(meta).encode()
        texts = [frame.write_json() for frame in made.tables.values()]
        for value in train.y:
            assert np.float64(value).tobytes() not in content and np.float32(value).tobytes() not in content
            assert not any(f"{value:.6g}" in text or repr(float(value)) in text for text in texts)
        assert not any(
            np.isin(frame.select(pl.col(pl.Float64)).to_numpy(), train.y).any() for frame in made.tables.values()
        )


def test_noise_has_the_stated_scale_and_is_of_the_secret() -> None:
    train = numbers().train
    exact, noisy = put(train, clip=20.0, center=40.0), put(train, **NOISY)
    table = noisy.tables[RELEASE.name]
    assert np.allclose(table["noise_scale"], 2 * 20.0 / (table["size"] * 1.0))
    bags = Bags(noisy.examples.columns["bag"])
    drawn = (noisy.examples.y - exact.examples.y)[bags.order][np.cumsum(bags.sizes) - 1] / (40.0 / bags.sizes)
    assert 0.5 < np.abs(drawn).mean() < 1.7, "of Laplace(1) it is 1"
    assert (put(train, **NOISY).examples.y == noisy.examples.y).all(), "the same release spends nothing anew"
    assert not np.isin(put(train, secret=b"another secret of a test", **NOISY).examples.y, noisy.examples.y).any()


def test_no_two_releases_share_noise_that_could_be_subtracted() -> None:
    """With the same draws under another epsilon, or for one changed label, the noise would be known to a factor."""
    train = numbers().train.by_id()
    exact = put(train, clip=20.0, center=40.0).examples.y
    unit = []
    other = dataclasses.replace(train, y=np.append(train.y[:-1], train.y[-1] + 1))
    for data, config in ((train, {}), (train, {"epsilon": 2.0}), (train, {"clip": 21.0}), (other, {})):
        made = put(data, **{**NOISY, **config})
        unit.append((made.examples.y - exact) / made.tables[RELEASE.name]["noise_scale"].to_numpy())
    apart = [np.median(np.abs(unit[0] - u)) for u in unit[1:]]
    assert min(apart) > 0.2, "fresh Laplace draws are apart by 1.5 in the mean"


def test_releases_bag_anew_and_their_epsilons_add() -> None:
    made = put(numbers().train, **NOISY, releases=3)
    table = made.tables[RELEASE.name]
    assert len(made.examples) == 270 and table["bag_id"].n_unique() == 66
    assert set(table["epsilon"]) == {1.0} and set(table["epsilon_total"]) == {3.0}
    assert made.examples.provenance["epsilon_total"] == 3.0
    mates = [
        {tuple(sorted(ids)) for ids in part.group_by("bag_id").agg("example_id")["example_id"].to_list()}
        for _, part in table.sort("release").group_by("release", maintain_order=True)
    ]
    assert not mates[0] & mates[1] and not mates[1] & mates[2]
    printed = put(numbers().train, **NOISY, paper_scale=True).tables[RELEASE.name]
    assert set(printed["epsilon"]) == {2.0}, "half the noise spends twice as much"
    assert np.allclose(printed["noise_scale"], 20.0 / printed["size"])


def test_classes_are_dealt_within_their_bag() -> None:
    train = class_examples(150).part("train").by_id()
    made = put(train, bag_size=6)
    table = made.tables[RELEASE.name]
    own = train.positions(table["example_id"].to_numpy())
    bag, moved = made.examples.columns["bag"], 0
    for number in np.unique(bag):
        rows = bag == number
        counts = np.bincount(train.y[own[rows]], minlength=3)
        assert np.bincount(made.examples.y[rows], minlength=3).tolist() == counts.tolist()
        assert np.allclose(table.filter(pl.Series(rows))["mean_response"].to_list(), counts / rows.sum())
    moved = float((made.examples.y != train.y[own]).mean())
    assert 0.4 < moved < 0.8, "who had which is not in it: by chance a third stays"


def test_dealt_labels_of_a_noisy_release_are_a_function_of_it() -> None:
    train = class_examples(150).part("train").by_id()
    made = put(train, bag_size=6, epsilon=1.0)
    table = made.tables[RELEASE.name].sort("bag_id")
    for (_,), part in table.group_by("bag_id"):
        size = part["size"][0]
        shares = on_simplex(np.array([part["mean_response"][0].to_list()]))[0] * size
        labels = made.examples.y[made.examples.positions(part["made_id"].to_numpy())]
        counts = np.bincount(labels, minlength=3)
        assert counts.sum() == size and (np.abs(counts - shares) < 1).all()
    assert np.allclose(table["noise_scale"], 2 / table["size"])


def test_natural_bags_have_their_own_sizes() -> None:
    train = numbers().train
    train = dataclasses.replace(train, columns={"block": (train.example_id % 11) ** 2 // 30})
    table = put(train, column="block", **NOISY).tables[RELEASE.name]
    sizes = {int(v): int((train.columns["block"] == v).sum()) for v in np.unique(train.columns["block"])}
    found = {int(b): int(n) for b, n in table.group_by("bag_id").agg(pl.col("size").first()).iter_rows()}
    assert list(sizes.values()) == [found[number] for number in range(len(sizes))]
    cut = put(train, column="block", largest=5, **NOISY).tables[RELEASE.name]
    assert cut["size"].max() <= 5 and cut["bag_id"].n_unique() == sum(-(-n // 5) for n in sizes.values())


def test_what_would_show_a_response_or_is_no_bag_is_refused() -> None:
    train = numbers().train
    with pytest.raises(DataError, match="exact mean is the response itself") as error:
        put(dataclasses.replace(train, columns={"block": (np.arange(90) > 0).astype(np.int64)}), column="block")
    assert error.value.example_ids == (int(train.example_id[0]),)
    lone = dataclasses.replace(train, columns={"block": (np.arange(90) > 0).astype(np.int64)})
    assert len(put(lone, column="block", **NOISY).examples) == 90, "with noise it may be released"
    for config, says in (
        ({"column": "absent"}, "no column of"),
        ({"epsilon": 1.0}, "needs clip"),
        ({"largest": 3}, "cuts the groups of a column"),
        ({"column": "block", "releases": 2}, "the same every time"),
        ({"paper_scale": True}, "asks for none"),
    ):
        with pytest.raises(ConfigError, match=says):
            put(train, **config)


def test_pictures_go_in_bags_too() -> None:
    made = put(images().train)
    own = images().train.positions(made.tables[RELEASE.name]["example_id"].to_numpy())
    assert made.examples.x.dtype == np.uint8 and (made.examples.x == images().train.x[own]).all()
