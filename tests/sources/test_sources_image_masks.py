"""Pictures and masks: values become classes, pairs are found by name, what does not fit is named; masks as targets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from contracts.errors import ConfigError, DataError, UnsafeFile
from contracts.methods import Asked
from sources.loading import detect, load
from sources.payloads.files import open_payload, write_payload
from sources.rows import Rows, on_disk


def _scene(num=12, size=(6, 8), values=(0, 255), seed=0, channels=3):
    rng = np.random.default_rng(seed)
    shape = (num, *size, channels) if channels > 1 else (num, *size)
    pictures = rng.integers(0, 256, shape, dtype=np.uint8)
    masks = np.array(values, np.uint8)[rng.integers(0, len(values), (num, *size))]
    return pictures, masks


def _write(root, pictures, masks, *, where=("images", "masks"), suffix=".png", mode=None, names=None):
    names = names or [f"p{i:02d}" for i in range(len(pictures))]
    for base, arrays, ending in ((where[0], pictures, suffix), (where[1], masks, ".png")):
        for name, pixels in zip(names, arrays, strict=True):
            path = root / base / f"{name}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels)
            if mode and base == where[1]:
                image = image.convert(mode)
            image.save(path)
    return root


def test_values_become_classes_and_pictures_stay(tmp_path):
    pictures, masks = _scene(values=(0, 100, 255))
    found = detect(_write(tmp_path / "scene", pictures, masks))
    assert (found.name, found.config) == ("image_masks", {"root": str(tmp_path / "scene")})
    data = load(found.name, found.config, seed=2)
    np.testing.assert_array_equal(data.x, pictures.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.y, np.searchsorted([0, 100, 255], masks))
    assert data.y.dtype == np.uint8 and data.class_names == ("0", "100", "255") and data.task.name == "segmentation"
    assert data.origin[3] == "images/p03.png"
    assert any("values 0, 100, 255: classes 0 to 2" in note for note in data.provenance["notes"])
    got = data.targets(np.array([4, 1]))
    assert got.dtype == np.int64 and (got == data.y[[4, 1]]).all()
    told = load(found.name, found.config | {"values": [255, 0, 100], "class_names": ["sky", "road", "car"]})
    np.testing.assert_array_equal(told.y, np.array([1, 2, 0])[data.y])
    assert told.class_names == ("sky", "road", "car")


@pytest.mark.parametrize("layout", ["below", "above"])
def test_folders_say_the_split(tmp_path, layout):
    pictures, masks = _scene()
    for split, rows in (("train", slice(0, 8)), ("test", slice(8, 12))):
        where = ("images", "masks") if layout == "below" else (f"{split}/images", f"{split}/masks")
        names = [f"{split}/{i}" if layout == "below" else str(i) for i in range(len(pictures[rows]))]
        _write(tmp_path, pictures[rows], masks[rows], where=where, names=names)
    found = detect(tmp_path)
    assert found.name == "image_masks"
    data = load(found.name, found.config)
    assert sorted(data.split.tolist()) == ["test"] * 4 + ["train"] * 8
    for at, origin in enumerate(data.origin):
        assert data.split[at] in origin


def test_palettes_and_black_and_white_are_read_by_their_values(tmp_path):
    pictures, masks = _scene(values=(0, 1, 2))
    folder = tmp_path / "palette"
    _write(folder, pictures, masks)
    for at, mask in enumerate(masks):
        image = Image.fromarray(mask)
        image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0] + [0] * 759)
        assert image.mode == "P"
        image.save(folder / "masks" / f"p{at:02d}.png")
    np.testing.assert_array_equal(load("image_masks", {"root": str(folder)}).y, masks)
    black = _write(tmp_path / "black", pictures, np.where(masks > 0, 255, 0).astype(np.uint8), mode="1")
    np.testing.assert_array_equal(load("image_masks", {"root": str(black)}).y, masks > 0)


def test_resizing_makes_no_new_values(tmp_path):
    pictures, masks = _scene(values=(0, 7, 255))
    data = load("image_masks", {"root": str(_write(tmp_path / "s", pictures, masks)), "size": [5, 4]})
    assert data.y.shape == (12, 5, 4) and set(np.unique(data.y)) <= {0, 1, 2} and data.input_shape == (3, 5, 4)


def test_owners_and_columns_come_from_a_table(tmp_path):
    pictures, masks = _scene()
    root = _write(tmp_path / "s", pictures, masks)
    table = pd.DataFrame(
        {"file": [f"p{i:02d}.png" for i in range(12)], "owner": list("abc") * 4, "site": np.arange(12) % 2}
    )
    table.sample(frac=1, random_state=1).to_csv(root / "who.csv", index=False)
    found = detect(root, Asked(owner="who.csv"))
    data = load("image_masks", found.config | {"domain": "site"})
    assert data.owner.tolist() == list("abc") * 4 and data.columns["domain"].tolist() == [0, 1] * 6


def test_moved_and_removed_pictures_change_no_other_id(tmp_path):
    pictures, masks = _scene()
    order = np.random.default_rng(1).permutation(12)
    one = load("image_masks", {"root": str(_write(tmp_path / "a", pictures, masks))})
    other = load("image_masks", {"root": str(_write(tmp_path / "b", pictures[order], masks[order]))})
    assert other.example_id.tolist() == one.example_id[order].tolist() and other.digest == one.digest
    few = load("image_masks", {"root": str(_write(tmp_path / "c", pictures[1:], masks[1:]))})
    assert few.example_id.tolist() == one.example_id[1:].tolist()
    changed = masks.copy()
    changed[5, 0, 0] ^= 255
    third = load("image_masks", {"root": str(_write(tmp_path / "d", pictures, changed))})
    assert (third.example_id != one.example_id).tolist() == [at == 5 for at in range(12)]
    assert third.content_hash.tolist() == one.content_hash.tolist() and third.digest != one.digest


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda r: (r / "masks" / "p03.png").unlink(), r"1 files have no mask, or no picture.*images/p03\.png"),
        (lambda r: (r / "images" / "p03.png").unlink(), r"no picture.*masks/p03\.png"),
        (lambda r: (r / "images" / "p03.bmp").write_bytes(b"BM"), r"2 files are two files of one name"),
        (
            lambda r: [Image.new("L", (5, 5)).save(r / "masks" / f"p0{i}.png") for i in (2, 4)],
            r"2 of 12 masks cannot be used: masks/p02\.png is 5 x 5, its picture 8 x 6; masks/p04\.png",
        ),
        (lambda r: Image.new("RGB", (8, 6)).save(r / "masks" / "p02.png"), r"p02\.png has pixels of mode RGB"),
        (lambda r: Image.new("L", (8, 6)).save(r / "masks" / "p02.png", "JPEG"), r"p02\.png is a JPEG"),
        (
            lambda r: (r / "masks" / "p02.png").write_bytes((r / "masks" / "p02.png").read_bytes()[:60]),
            r"p02\.png cannot be read",
        ),
        (lambda r: (r / "images" / "p02.png").write_bytes(b"\x89PNGx"), r"images/p02\.png cannot be read"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, spoil, says):
    root = _write(tmp_path / "s", *_scene())
    spoil(root)
    with pytest.raises(DataError, match=says):
        load("image_masks", {"root": str(root)})


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ({"values": [0, 1]}, DataError, r"12 masks hold 255, and values are 0, 1"),
        ({"values": [0, 0]}, ConfigError, "twice"),
        ({"values": [0, 255], "class_names": ["a"]}, ConfigError, "one name a value"),
        ({"class_names": ["a", "b", "c"]}, DataError, "set values"),
        ({"values": [0, 255, 9]}, DataError, r"1 of 3 classes have no pixel in a training example: '9'"),
        ({"images": "../x", "masks": "masks"}, UnsafeFile, "plain name"),
        ({"images": "images"}, ConfigError, "together"),
        ({"images": "images", "masks": "nowhere"}, DataError, "nowhere"),
        ({"domain": "site"}, ConfigError, "owner_table"),
        ({"max_pixels": 10}, UnsafeFile, "more than max_pixels"),
        ({"max_bytes": 1024}, UnsafeFile, "declares"),
    ],
)
def test_fields_that_do_not_fit_the_masks_are_refused(tmp_path, config, error, says):
    root = _write(tmp_path / "s", *_scene())
    with pytest.raises(error, match=says):
        load("image_masks", {"root": str(root), **config})


def test_one_value_is_no_segmentation(tmp_path):
    with pytest.raises(DataError, match="1 class; segmentation needs at least 2"):
        load("image_masks", {"root": str(_write(tmp_path / "s", *_scene(values=(0,))))})


# ----------------------------------------------------------------- masks as the targets of a set


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    pictures, masks = _scene(values=(0, 1, 2), seed=5)
    return load("image_masks", {"root": str(_write(tmp_path_factory.mktemp("m") / "s", pictures, masks))})


@given(data=st.data())
def test_masks_go_with_their_pictures(scenes, data):
    rows = np.array(data.draw(st.lists(st.sampled_from(range(12)), unique=True, min_size=1)), np.int64)
    part = scenes.take(rows)
    again = np.array(data.draw(st.lists(st.sampled_from(range(len(rows))), unique=True)), np.int64)
    np.testing.assert_array_equal(part.take(again).y, scenes.y[rows[again]])
    np.testing.assert_array_equal(scenes.subset(part.example_id).y, scenes.y[rows])
    order = np.array(data.draw(st.permutations(range(12))))
    assert scenes.take(order).digest == scenes.digest


def test_masks_on_disk_stay_there_and_are_the_same_set(scenes, tmp_path):
    path = tmp_path / "scenes.safetensors"
    write_payload(path, scenes.x, example_id=scenes.example_id, y=scenes.y)
    stored = open_payload(path)
    there = dataclasses.replace(scenes, x=stored.x, y=stored.y).validate()
    assert there.digest == scenes.digest
    part = there.take(np.array([7, 2, 9]))
    assert on_disk(part.y) and isinstance(part.y, Rows)
    np.testing.assert_array_equal(part.targets(slice(None)), scenes.y[[7, 2, 9]])
    assert part.digest == scenes.take(np.array([7, 2, 9])).digest
    wide = dataclasses.replace(scenes, y=scenes.y.astype(np.int64)).validate()
    assert wide.digest == scenes.digest


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda y: y[:-1], "11 masks for 12 ids"),
        (lambda y: y[:, :-1], r"masks are \(5, 8\), examples \(3, 6, 8\)"),
        (lambda y: y.astype(np.float32), "masks are float32"),
        (lambda y: y[:, 0, 0].astype(np.int64), "not uint8 or int64"),
        (
            lambda y: np.where(np.arange(12)[:, None, None] == 4, 3, y).astype(np.uint8),
            r"1 masks hold values outside 0\.\.2.*p04",
        ),
        (lambda y: np.minimum(y, 1), r"1 of 3 classes have no pixel"),
    ],
)
def test_masks_that_are_none_are_refused(scenes, change, says):
    with pytest.raises(DataError, match=says):
        dataclasses.replace(scenes, y=change(scenes.y)).validate()


def test_a_mask_for_another_task_is_refused(scenes):
    with pytest.raises(DataError, match=r"y has shape \(12, 6, 8\)"):
        dataclasses.replace(scenes, task="classification").validate()
