"""Images turned by a known angle: the turning against SciPy, the draw against its promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import rotate

from contracts.errors import ConfigError, DataError
from sources.example_set import ExampleSet
from sources.loading import load
from sources.rotated_images import rotated


def write(folder: Path, name: str, values: np.ndarray) -> None:
    head = b"\x00\x00\x08" + bytes([values.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in values.shape)
    (folder / name).write_bytes(head + values.astype(np.uint8).tobytes())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, num in (("train", 60), ("t10k", 24)):
        write(tmp_path, f"{split}-images-idx3-ubyte", rng.integers(0, 256, (num, 10, 10)))
        write(tmp_path, f"{split}-labels-idx1-ubyte", np.arange(num) % 3)
    return tmp_path


def read(root: Path, *, seed: int = 0, **fields: Any) -> ExampleSet:
    return load("rotated_images", {"root": str(root), **fields}, seed=seed)


@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (5, 3, 7, 12)])
def test_turning_is_scipys(shape):
    rng = np.random.default_rng(1)
    images, degrees = rng.uniform(0, 255, shape), np.array([10.0, -33.0, 90.0, 0.0, 170.0])
    expected = [
        [rotate(channel, angle, reshape=False, order=1, mode="grid-constant", cval=0) for channel in image]
        for image, angle in zip(images, degrees, strict=True)
    ]
    np.testing.assert_allclose(rotated(images, degrees), expected, atol=1e-9)


def test_turning_keeps_the_type_and_turns_counter_clockwise():
    image = np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3)
    for quarters in (-1, 0, 1, 2):
        turned = rotated(image, np.array([90.0 * quarters]))
        assert turned.dtype == np.uint8 and np.array_equal(turned[0, 0], np.rot90(image[0, 0], quarters))
    assert np.array_equal(rotated(rotated(image, np.array([90.0])), np.array([-90.0])), image)
    bright = np.full((1, 1, 9, 9), 255, np.uint8)
    assert rotated(bright, np.array([45.0]))[0, 0, 0, 0] == 0  # nothing lies outside


def test_the_angle_is_the_target_and_the_images_are_those_of_the_class(root):
    data = read(root, label=1, most_degrees=30.0)
    assert data.task.name == "regression" and len(data) == 28 and np.abs(data.y).max() <= 30
    assert (data.split == "train").sum() == 20 and np.ptp(data.y) > 30
    base = load("idx", {"root": str(root)}, seed=0)
    by_place = dict(zip(base.origin, range(len(base)), strict=True))
    places = [by_place[where] for where in data.origin]
    assert (base.y[places] == 1).all() and len(set(places)) == len(places)
    assert np.array_equal(data.x[:], rotated(np.asarray(base.x[places]), data.y))


def test_the_draw_follows_from_seed_and_sizes(root):
    data = read(root, num_train=12, num_test=5)
    assert [(data.split == split).sum() for split in ("train", "test")] == [12, 5]
    again, other = read(root, num_train=12, num_test=5), read(root, seed=1, num_train=12, num_test=5)
    assert np.array_equal(again.y, data.y) and np.array_equal(again.example_id, data.example_id)
    assert set(other.origin) != set(data.origin)
    # angles are spread over the range, to either side
    every = read(root)
    assert every.y.min() < -40 and every.y.max() > 40 and abs(every.y.mean()) < 20


def test_what_there_is_not_is_refused(root):
    with pytest.raises(DataError, match="20 train images of class 2; 21"):
        read(root, label=2, num_train=21)
    with pytest.raises(DataError, match="24 test images; 25"):
        read(root, num_test=25)
    with pytest.raises(ConfigError, match="most_degrees"):
        read(root, most_degrees=181.0)
