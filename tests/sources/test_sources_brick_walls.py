"""Brick walls: the figures that their paper's generator is known by, labels of three qualities, groups and splits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from contracts.errors import ConfigError, InvalidInput
from sources.brick_wall import GROUPS, brick_wall
from sources.brick_walls import BrickWallsConfig, brick_walls

EIGHT = np.ones((3, 3))


@pytest.fixture(scope="module")
def walls():
    return [brick_wall(seed, size=128) for seed in range(40)]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_mortar_is_one_piece_with_as_many_holes_as_bricks(walls) -> None:
    masks = [wall.masks["accurate"] for wall in walls]
    assert all(ndimage.label(mask, EIGHT)[1] == 1 for mask in masks)
    holes = [ndimage.label(~np.pad(mask, 1))[1] - 1 for mask in masks]
    assert 11 <= np.median(holes) <= 21 and np.quantile(holes, 0.05) >= 5 and np.quantile(holes, 0.95) <= 45
    assert 0.25 <= np.median([mask.mean() for mask in masks]) <= 0.31


def test_labels_are_as_bad_as_the_papers(walls) -> None:
    """Medians of the paper's generator: Dice 0.66 of noisy and 0.83 of pseudo labels."""
    noisy, pseudo = (np.median([dice(w.masks["accurate"], w.masks[k]) for w in walls]) for k in ("noisy", "pseudo"))
    assert 0.60 <= noisy <= 0.70 and 0.76 <= pseudo <= 0.89
    thin = np.median([w.masks["noisy"].mean() / w.masks["accurate"].mean() for w in walls])
    assert thin < 0.75  # one pen, whatever the mortar's width


def test_image_and_label_agree(walls) -> None:
    """Mortar is less saturated than brick in every wall, and a fragment that left the label is drawn as brick."""
    for wall in walls:
        rgb = wall.image.astype(float)
        saturation = 1 - rgb.min(0) / np.maximum(rgb.max(0), 1)
        inner = ndimage.binary_erosion(wall.masks["accurate"])
        outer = ~ndimage.binary_dilation(wall.masks["accurate"])
        assert np.median(saturation[inner]) < 0.7 * np.median(saturation[outer])


def test_each_group_is_what_its_name_says() -> None:
    for seed in range(6):
        plain = brick_wall(seed, size=96)
        with pytest.raises(InvalidInput, match="group"):
            brick_wall(seed, group="colour")
        for group in GROUPS[1:]:
            wall = brick_wall(seed, size=96, group=group)
            label, same = wall.masks["accurate"], plain.masks["accurate"]
            if group in ("objects", "occlusion"):  # what is covered is no mortar to be seen
                assert not (label & ~same).any() and label.sum() < same.sum()
                changed = (np.abs(wall.image.astype(int) - plain.image).max(0) > 60) & same
                assert (~label[changed]).mean() > 0.9
            elif group != "angles":
                np.testing.assert_array_equal(label, same)
            else:
                assert dice(label, same) < 0.6
        dark = brick_wall(seed, size=96, group="shadows").image.astype(float) / np.maximum(plain.image, 1)
        assert np.quantile(dark, 0.02) < 0.5


def test_a_seed_has_its_wall() -> None:
    one, again, other = brick_wall(5, size=64), brick_wall(5, size=64), brick_wall(6, size=64)
    np.testing.assert_array_equal(one.image, again.image)
    assert all((one.masks[k] == again.masks[k]).all() for k in one.masks)
    assert not np.array_equal(one.image, other.image)
    with pytest.raises(InvalidInput, match="size"):
        brick_wall(0, size=31)


def test_the_data_set_has_its_groups_labels_and_owners() -> None:
    config = BrickWallsConfig(size=32, num_train=6, num_test=3, num_other=2, owners=3)
    data = brick_walls(config=config, seed=1).validate()
    assert data.input_shape == (3, 32, 32) and data.class_names == ("brick", "mortar")
    assert (data.split == "train").sum() == 6 and len(data) == 6 + 3 + 2 * 6
    domain = data.columns["domain"]
    assert set(domain[data.split == "train"]) == {"id"} and {g: (domain == g).sum() for g in GROUPS} == {
        "id": 9,
        **dict.fromkeys(GROUPS[1:], 2),
    }
    assert sorted(data.owner[data.split == "train"]) == sorted([f"site_{n % 3}" for n in range(6)])
    assert set(data.owner[data.split == "test"]) == {""}
    better = brick_walls(config=dataclasses.replace(config, labels="accurate"), seed=1)
    by_origin = {o: (x, y) for o, x, y in zip(better.origin, better.x, better.y, strict=True)}
    for origin, x, y, split in zip(data.origin, data.x, data.y, data.split, strict=True):
        np.testing.assert_array_equal(x, by_origin[origin][0])
        assert np.array_equal(y, by_origin[origin][1]) == (split == "test")


def test_a_larger_set_holds_the_smaller_one() -> None:
    small = brick_walls(config=BrickWallsConfig(size=32, num_train=3, num_test=1, num_other=1), seed=0)
    large = brick_walls(config=BrickWallsConfig(size=32, num_train=5, num_test=2, num_other=1), seed=0)
    assert set(small.content_hash) < set(large.content_hash)
    assert not set(small.content_hash) & set(
        brick_walls(config=BrickWallsConfig(size=32, num_train=3, num_test=1, num_other=1), seed=1).content_hash
    )


def test_fields_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="labels"):
        BrickWallsConfig(labels="sloppy")
    with pytest.raises(ConfigError, match="size"):
        BrickWallsConfig(size=16)
