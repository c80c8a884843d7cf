"""Image folders: pixels as Pillow wrote them, ids by sorted path, and images that are too large, broken or
elsewhere."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from contracts.errors import DataError, UnsafeFile
from sources.loading import load


def _load(root, **config):
    return load("image_folder", {"root": str(root)} | config)


def _grey(seed=0, shape=(5, 4)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def tree(tmp_path, image_tree):
    files = {f"{c}/{i}.png": _grey(i + 10 * k) for k, c in enumerate(("cat", "ant")) for i in range(6)}
    return image_tree(tmp_path / "pets", files), files


def test_grey_images_in_order_of_their_paths(tree):
    root, files = tree
    data = _load(root)
    names = sorted(files)
    assert data.input_shape == (1, 5, 4) and data.class_names == ("ant", "cat")
    np.testing.assert_array_equal(data.x[:, 0], np.stack([files[n] for n in names]))
    assert data.y.tolist() == [0] * 6 + [1] * 6
    assert len(set(data.example_id)) == 12
    assert data.provenance["num_files"] == 12 and data.name == "pets"
    (root / "README.txt").write_text("not an image, but not in a class either")
    (root / "cat" / ".DS_Store").write_bytes(b"\0")
    (root / "cat" / "Thumbs.db").write_bytes(b"\0")
    assert _load(root).digest == data.digest


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_own_split(tmp_path, image_tree, test):
    files = {f"{s}/{c}/{i}.png": _grey(i) for s in ("train", test) for c in "ab" for i in range(4)}
    data = _load(image_tree(tmp_path, files))
    assert data.split.tolist() == ["train"] * 8 + ["test"] * 8
    assert data.class_names == ("a", "b") and data.provenance["split"] == "the data's own"


def test_colour_palette_and_transparency(tmp_path, image_tree):
    colour = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    root = image_tree(tmp_path, {f"{c}/{i}.png": colour for c in "ab" for i in range(3)})
    Image.fromarray(_grey()).save(root / "a" / "x.bmp")
    Image.fromarray(np.dstack([colour, _grey(3)])).save(root / "a" / "y.png")
    Image.fromarray(colour).convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(root / "b" / "p.gif")
    data = _load(root)
    assert data.input_shape == (3, 5, 4)
    np.testing.assert_array_equal(data.x[0], colour.transpose(2, 0, 1))
    np.testing.assert_array_equal(data.x[3], np.stack([_grey()] * 3))
    np.testing.assert_array_equal(data.x[4], colour.transpose(2, 0, 1))  # transparency is dropped
    np.testing.assert_array_equal(data.x[-1], colour.transpose(2, 0, 1))  # 20 colours fit a palette
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    np.testing.assert_array_equal(_load(root, channels="grey").x[0, 0], luma)


def test_resize_is_pillows(tmp_path, image_tree):
    files = {f"{c}/{i}.png": _grey(i, (8 + i, 6)) for c in "ab" for i in range(4)}
    root = image_tree(tmp_path, files)
    with pytest.raises(DataError, match=r"ragged: 6 images are not 6 x 8, the first is a/1.png with 6 x 9") as error:
        _load(root)
    assert error.value.where == tuple(f"{c}/{i}.png" for c in "ab" for i in (1, 2, 3))
    data = _load(root, size=[4, 3])
    want = [Image.fromarray(files[n]).resize((3, 4), Image.Resampling.BILINEAR) for n in sorted(files)]
    np.testing.assert_array_equal(data.x[:, 0], np.stack([np.asarray(w) for w in want]))


def test_nested_folders_belong_to_their_class(tmp_path, image_tree):
    data = _load(image_tree(tmp_path, {f"{c}/deep/er/{i}.png": _grey(i) for c in "ab" for i in range(3)}))
    assert data.y.tolist() == [0, 0, 0, 1, 1, 1]


def _png(width, height) -> bytes:
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(10**5, 10**4), (12_000, 12_000), (2**31 - 1, 1)])
def test_images_of_a_billion_pixels_are_refused_unread(tree, width, height, peak_below):
    root, _ = tree
    (root / "cat" / "bomb.png").write_bytes(_png(width, height))
    with peak_below(5e6), pytest.raises(UnsafeFile, match=r"bomb.png.*pixels"):
        _load(root)


def test_the_whole_array_is_checked_too(tmp_path, image_tree, peak_below):
    root = image_tree(tmp_path, {f"{c}/{i}.png": np.zeros((500, 500), np.uint8) for c in "ab" for i in range(4)})
    with peak_below(1.5e6), pytest.raises(UnsafeFile, match="2,000,000 bytes"):
        _load(root, max_bytes=1_500_000)
    with pytest.raises(UnsafeFile, match="max_bytes"):
        _load(root, max_file_bytes=100)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cat/t.png", None, "t.png cannot be read"),
        ("cat/e.png", b"", "e.png cannot be read"),
        ("cat/notes.txt", b"hello", "notes.txt cannot be read"),
        ("cat/x.jpg", b"\xff\xd8\xff\xe0" + b"junk" * 20, "x.jpg cannot be read"),
        ("cat/p.png", b"\x80\x04\x95" + b"p" * 40, "p.png cannot be read"),
    ],
)
def test_files_that_are_no_images_are_named(tree, name, content, message):
    root, _ = tree
    good = (root / "cat" / "0.png").read_bytes()
    (root / name).write_bytes(good[: len(good) - 30] if content is None else content)
    with pytest.raises(DataError, match=message):
        _load(root)


def test_frames_and_deep_pixels_are_refused(tree):
    root, _ = tree
    frames = [Image.fromarray(_grey(i)) for i in range(3)]
    frames[0].save(root / "cat" / "f.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="3 frames"):
        _load(root)
    (root / "cat" / "f.gif").unlink()
    Image.fromarray(np.zeros((5, 4), np.uint16)).save(root / "cat" / "d.png")
    with pytest.raises(DataError, match="8 bits"):
        _load(root)


def test_links_must_stay_inside(tree, tmp_path):
    root, _ = tree
    digest = _load(root).digest
    (tmp_path / "away").mkdir()
    Image.fromarray(_grey(99)).save(tmp_path / "away" / "z.png")
    for link, target in (("cat/z.png", "away/z.png"), ("zoo", "away"), ("cat/deep", "away")):
        (root / link).symlink_to(tmp_path / target)
        with pytest.raises(UnsafeFile, match=r"leads out|linked folder"):
            _load(root)
        (root / link).unlink()
    (root / "cat" / "round").symlink_to(root)
    with pytest.raises(UnsafeFile, match="linked folder"):
        _load(root)
    (root / "cat" / "round").unlink()
    assert _load(root).digest == digest


def test_classes_without_images_are_refused(tree, tmp_path, image_tree):
    root, _ = tree
    (root / "yak").mkdir()
    with pytest.raises(DataError, match="'yak' holds no images"):
        _load(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images in class folders"):
        _load(tmp_path / "empty")
    other = image_tree(tmp_path / "o", {"train/a/1.png": _grey(), "train/b/1.png": _grey(), "test/c/1.png": _grey()})
    with pytest.raises(DataError, match=r"'c' \(index 2\)"):
        _load(other)
    single = image_tree(tmp_path / "s", {f"a/{i}.png": _grey() for i in range(4)})
    with pytest.raises(DataError, match="all pictures lie in the folder"):
        _load(single)


def test_names_that_are_not_text_are_refused(tree):
    root, _ = tree
    good = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "new\nline.png").write_bytes(good)
    with pytest.raises(DataError, match="not printable"):
        _load(root)
