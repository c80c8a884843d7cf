"""Emoji masks: the drawing's transparency, a ground of its own, styles and splits."""

from __future__ import annotations

import numpy as np
import pytest
from emoji_packages import CATEGORIES, write_packages
from PIL import Image

from contracts.errors import DataError
from sources.emoji import EmojiConfig, emoji
from sources.emoji_masks import EmojiMasksConfig, emoji_masks


@pytest.fixture
def packages(tmp_path):
    return write_packages(tmp_path)


def read(root, *, seed: int = 0, **fields):
    return emoji_masks(config=EmojiMasksConfig(root=str(root), fewest=2, **fields), seed=seed).validate()


def test_the_mask_is_the_drawings_own(packages) -> None:
    data = read(packages)
    assert data.class_names == ("ground", "emoji") and data.y.shape == (34, 16, 16) and data.y.dtype == np.uint8
    for origin, mask, image in zip(data.origin, data.y, data.x, strict=True):
        drawn = np.asarray(Image.open(packages / origin).convert("RGBA"))
        np.testing.assert_array_equal(mask, drawn[..., 3] >= 128)
        covered = mask > 0
        np.testing.assert_array_equal(image.transpose(1, 2, 0)[covered], drawn[covered][:, :3])
        assert not (image.transpose(1, 2, 0)[~covered] == 255).all()


def test_every_picture_has_a_ground_of_its_own_by_the_seed(packages) -> None:
    data, same, other = read(packages), read(packages), read(packages, seed=1)
    grounds = [image[:, :8].tobytes() for image in data.x]  # the upper half is ground
    assert len(set(grounds)) == len(grounds)
    np.testing.assert_array_equal(data.x, same.x)
    assert set(data.content_hash).isdisjoint(other.content_hash)
    for image in data.x:  # a slope of colours: neighbours differ little
        assert np.abs(np.diff(image[:, :8].astype(int), axis=2)).max() <= 40


def test_an_emoji_is_in_one_split_in_both_styles(packages) -> None:
    data = read(packages)
    by_group: dict[str, set[str]] = {}
    for group, split in zip(data.columns["group"], data.split, strict=True):
        by_group.setdefault(group, set()).add(split)
    assert all(len(splits) == 1 for splits in by_group.values()) and len(by_group) == 17
    assert set(data.columns["domain"]) == {"google", "twitter"} and set(data.columns["category"]) == set(CATEGORIES)
    plain = emoji(config=EmojiConfig(root=str(packages), fewest=2), seed=0)
    assert set(plain.columns["group"]) == set(data.columns["group"])


def test_a_share_of_them_and_another_size(packages) -> None:
    some = read(packages, most=8, size=(8, 8))
    assert len(some) == 16 and some.input_shape == (3, 8, 8) and some.y.shape == (16, 8, 8)
    assert len(set(some.columns["group"])) == 8
    assert set(some.columns["group"]) != set(read(packages, most=8, seed=3).columns["group"])


def test_pictures_without_transparency_or_drawing_are_named(packages) -> None:
    victim = sorted((packages / "emoji-datasource-google" / "img" / "google" / "64").iterdir())[2]
    whole = Image.open(victim).copy()
    whole.convert("RGB").save(victim)
    with pytest.raises(DataError, match="no transparency"):
        read(packages)
    whole.putalpha(0)
    whole.save(victim)
    with pytest.raises(DataError, match="no pixel") as caught:
        read(packages)
    assert victim.name in str(caught.value)
