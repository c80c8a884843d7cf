from __future__ import annotations

import numpy as np
import pytest
from emoji_packages import CATEGORIES, write_packages
from PIL import Image

from contracts.errors import ConfigError, DataError
from sources.loading import load


@pytest.fixture
def root(tmp_path):
    return write_packages(tmp_path)


def read(root, **more):
    return load("emoji", {"root": str(root), "fewest": 2, **more}, seed=3)


def test_every_emoji_once_a_style_with_its_category_style_and_code(root):
    data = read(root)
    assert len(data) == 2 * 17 and data.class_names == tuple(sorted(CATEGORIES)) and data.x.shape[1:] == (3, 16, 16)
    domain, group = data.columns["domain"], data.columns["group"]
    assert sorted(set(domain)) == ["google", "twitter"] and (domain == "google").sum() == 17
    for code in set(group):
        pair = group == code
        assert pair.sum() == 2 and len(set(data.y[pair])) == 1 and len(set(data.split[pair])) == 1
    assert set(data.split) == {"train", "test"} and any("1 of 18" in note for note in data.provenance["notes"])
    assert "CC-BY-4.0" in data.provenance["licence"] and len(data.provenance["files"]) == 2
    number = int(group[0].removeprefix("1F")) - 600
    assert data.class_names[data.y[0]] == CATEGORIES[number // 6]


def test_what_is_transparent_is_white_and_the_rest_as_it_is_drawn(root):
    data = read(root)
    for row in (0, 20):
        drawn = np.asarray(Image.open(root / data.origin[row])).transpose(2, 0, 1)
        picture = np.asarray(data.x[np.array([row])])[0]
        assert (picture[:, :8] == 255).all() and np.array_equal(picture[:, 8:], drawn[:3, 8:])


def test_styles_and_categories_are_chosen(root):
    one = read(root, styles=["twitter"], categories=["Food", "Animals"])
    assert one.class_names == ("Food", "Animals") and len(one) == 12 and set(one.columns["domain"]) == {"twitter"}
    assert read(root, size=[8, 8]).x.shape[1:] == (3, 8, 8)
    assert read(root).digest == read(root).digest
    for wrong in ({"styles": []}, {"styles": ["google", "google"]}, {"categories": ["Cars", "Food"]}, {"fewest": 50}):
        with pytest.raises(ConfigError):
            read(root, **wrong)


def test_a_missing_picture_or_a_list_of_something_else_is_refused(root):
    (root / "emoji-datasource-google" / "img" / "google" / "64" / "1f600.png").unlink()
    with pytest.raises(DataError):
        read(root)
    (root / "emoji-datasource-google" / "emoji.json").write_text('[{"unified": "1F600"}]')
    with pytest.raises(DataError, match="no list of emoji"):
        read(root)
