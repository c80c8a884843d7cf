"""IDX: what is written is read, plain or zipped, joined or alone; what lies about itself is refused."""

from __future__ import annotations

import gzip
import hashlib
import struct

import numpy as np
import pytest

from contracts.errors import ConfigError, DataError, UnsafeFile
from sources.loading import load
from sources.rows import on_disk


@pytest.fixture
def folder(tmp_path, write_idx, images):
    """The four usual files, 45 training and 15 test images."""

    def make(suffix="", dot="-"):
        x, y = images
        for stem, rows in (("train", slice(0, 45)), ("t10k", slice(45, 60))):
            write_idx(tmp_path / f"{stem}-images{dot}idx3-ubyte{suffix}", x[rows])
            write_idx(tmp_path / f"{stem}-labels{dot}idx1-ubyte{suffix}", y[rows])
        return tmp_path

    return make


@pytest.mark.parametrize(("suffix", "dot"), [("", "-"), (".gz", "-"), ("", "."), (".gz", ".")])
def test_usual_folder(folder, images, suffix, dot):
    x, y = images
    data = load("idx", {"root": str(folder(suffix, dot)), "class_names": ["a", "b", "c"]})
    np.testing.assert_array_equal(np.asarray(data.x), x[:, None])
    np.testing.assert_array_equal(data.y, y)
    assert len(set(data.example_id)) == 60
    assert data.split.tolist() == ["train"] * 45 + ["test"] * 15
    assert data.class_names == ("a", "b", "c")
    assert on_disk(data.x) == (suffix == "")
    rows = np.array([59, 0, 44, 45])
    np.testing.assert_allclose(data.inputs(rows), x[rows][:, None] / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.part("test").inputs(slice(0, 3)), data.inputs(np.arange(45, 48)))
    assert data.content_hash[50] == hashlib.sha256(x[50].tobytes()).hexdigest()
    assert next(f["name"] for f in data.provenance["files"]) == f"train-images{dot}idx3-ubyte{suffix}"


def test_standardised_on_the_training_split(folder, images):
    data = load("idx", {"root": str(folder()), "standardise": True})
    train = images[0][:45].astype(np.float64)
    np.testing.assert_allclose(
        data.inputs(slice(None)), (images[0][:, None] - train.mean()) / train.std(), rtol=1e-5, atol=1e-6
    )
    assert data.x.dtype == np.uint8, "the images themselves stay as they are"


def test_zipped_and_plain_have_one_digest(folder):
    plain = load("idx", {"root": str(folder())}).digest
    for path in folder().iterdir():
        path.unlink()
    assert load("idx", {"root": str(folder(".gz"))}).digest == plain


def test_plain_files_stay_on_disk(tmp_path, write_idx, images):
    x, y = images
    write_idx(tmp_path / "i", x)
    write_idx(tmp_path / "l", y)
    data = load("idx", {"root": str(tmp_path), "images": "i", "labels": "l"}, seed=3)
    assert isinstance(data.x, np.ndarray) and on_disk(data.x)
    assert (data.split == "test").sum() == 15 and "seed 3" in data.provenance["split"]
    assert not data.x.flags.writeable


@pytest.mark.parametrize(
    ("shape", "expected"), [((3, 6, 5), (3, 6, 5)), ((6, 5, 3), (3, 6, 5)), ((6, 5, 1), (1, 6, 5))]
)
def test_channels(tmp_path, write_idx, shape, expected):
    x = np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)
    write_idx(tmp_path / "i", x)
    write_idx(tmp_path / "l", np.arange(8) % 2, kind=0x0C)
    data = load("idx", {"root": str(tmp_path), "images": "i", "labels": "l", "white": 1})
    assert data.input_shape == expected
    want = x if shape == expected else x.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(data.inputs(np.array([5, 2])), want[[5, 2]])


def _load(root, **more):
    return load("idx", {"root": str(root), "images": "i", "labels": "l"} | more)


def _pair(root, images, labels=None):
    (root / "i").write_bytes(images)
    (root / "l").write_bytes(struct.pack(">HBBI", 0, 8, 1, 4) + bytes([0, 1, 0, 1]) if labels is None else labels)


GOOD = struct.pack(">HBBIII", 0, 8, 3, 4, 2, 2) + bytes(range(16))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GOOD[:-1], None, "truncated"),
        (GOOD + b"x", None, "declares"),
        (GOOD[:9], None, "truncated"),
        (b"", None, "truncated"),
        (gzip.compress(GOOD, mtime=0)[:-9], None, "truncated or damaged"),
        (gzip.compress(GOOD[:-1], mtime=0), None, "1 bytes are missing"),
        (gzip.compress(GOOD + b"x", mtime=0), None, "more than the 16 bytes"),
        (gzip.compress(GOOD, mtime=0)[:-8] + b"\0" * 8, None, "damaged"),
        (b"\x1f\x8b" + b"junk" * 9, None, "truncated or damaged"),
        (b"\x89PNG" + GOOD, None, "89504e47"),
        (struct.pack(">HBBIII", 1, 8, 3, 4, 2, 2) + bytes(16), None, "not an IDX"),
        (struct.pack(">HBBIII", 0, 7, 3, 4, 2, 2) + bytes(16), None, "not an IDX"),
        (struct.pack(">HBBIII", 0, 0x0D, 3, 4, 2, 2) + bytes(64), None, "images are uint8"),
        (struct.pack(">HBBII", 0, 8, 2, 4, 4) + bytes(16), None, "images are uint8"),
        (struct.pack(">HBBIIII", 0, 8, 4, 4, 2, 2, 2) + bytes(32), None, "cannot be told"),
        (struct.pack(">HBBIIII", 0, 8, 4, 4, 3, 2, 3) + bytes(72), None, "cannot be told"),
        (GOOD, struct.pack(">HBBI", 0, 8, 1, 3) + bytes(3), "4 images.* 3 labels"),
        (GOOD, struct.pack(">HBBI", 0, 9, 1, 4) + bytes([0, 1, 255, 0]), "negative"),
        (GOOD, struct.pack(">HBBI", 0, 0x0D, 1, 4) + bytes(16), "labels are whole numbers"),
        (GOOD, struct.pack(">HBBI", 0, 8, 1, 4) + bytes(4), "at least 2"),
        (struct.pack(">HBBIII", 0, 8, 3, 0, 2, 2), struct.pack(">HBBI", 0, 8, 1, 0), "no examples|leave none|holds no"),
    ],
)
@pytest.mark.promise("B2")
def test_malformed(tmp_path, images, labels, message):
    _pair(tmp_path, images, labels)
    with pytest.raises(DataError, match=message):
        _load(tmp_path)


def test_labels_with_gaps_are_levels(tmp_path):
    _pair(tmp_path, GOOD, struct.pack(">HBBI", 0, 8, 1, 4) + bytes([0, 2, 0, 2]))
    data = _load(tmp_path)
    assert data.class_names == ("0", "2") and data.y.tolist() == [0, 1, 0, 1]
    assert data.provenance["notes"] == ["labels 0, 2 are classes 0, 1"]
    assert data.origin.tolist() == ["i[0]", "i[1]", "i[2]", "i[3]"]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.promise("B5")
def test_declared_sizes_are_refused_before_allocation(tmp_path, zipped, peak_below):
    header = struct.pack(">HBBIII", 0, 8, 3, 2**32 - 1, 2**16, 2**16)
    _pair(tmp_path, gzip.compress(header) if zipped else header)
    with peak_below(5e6), pytest.raises(UnsafeFile, match="more than max_bytes"):
        _load(tmp_path)
    within = struct.pack(">HBBIII", 0, 8, 3, 2**10, 2**10, 2**10)  # 1 GiB: allowed, but not in these few bytes
    _pair(tmp_path, gzip.compress(within) if zipped else within)
    with peak_below(5e6), pytest.raises((UnsafeFile, DataError), match=r"cannot hold|truncated"):
        _load(tmp_path)


@pytest.mark.promise("B5")
def test_zip_bomb_stops_at_the_declared_size(tmp_path, peak_below):
    bomb = gzip.compress(GOOD + bytes(300_000_000), compresslevel=1)
    _pair(tmp_path, bomb)
    with peak_below(20e6), pytest.raises(DataError, match="more than the 16 bytes"):
        _load(tmp_path)


def test_gz_peak_memory_is_one_array(tmp_path, write_idx, peak_below):
    x = np.random.default_rng(0).integers(0, 4, (20_000, 28, 28), dtype=np.uint8)
    write_idx(tmp_path / "i.gz", x)
    write_idx(tmp_path / "l.gz", np.arange(20_000) % 10)
    config = {"root": str(tmp_path), "images": "i.gz", "labels": "l.gz"}
    hashes = 256 * len(x)
    with peak_below(x.nbytes + 3 * hashes + 12e6):
        load("idx", config)


def test_files_come_in_pairs(folder, tmp_path):
    with pytest.raises(ConfigError, match="in pairs"):
        _load(tmp_path, labels="")
    root = folder()
    (root / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="without its test_labels"):
        load("idx", {"root": str(root)})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no train-images"):
        load("idx", {"root": str(tmp_path / "empty")})


def test_ragged_between_train_and_test(tmp_path, write_idx, images):
    x, y = images
    write_idx(tmp_path / "i", x)
    write_idx(tmp_path / "l", y)
    write_idx(tmp_path / "ti", x[:, 1:])
    with pytest.raises(DataError, match="ragged"):
        _load(tmp_path, test_images="ti", test_labels="l")


def test_a_drawn_part_keeps_so_many_of_each_class_with_the_ids_that_they_have_in_the_whole(folder):
    root = str(folder())
    whole = load("idx", {"root": root})
    part = load("idx", {"root": root, "train_per_class": 3, "test_per_class": 1}, seed=4)
    for split, most in (("train", 3), ("test", 1)):
        there = np.bincount(whole.y[whole.split == split], minlength=whole.num_classes)
        kept = np.bincount(part.y[part.split == split], minlength=whole.num_classes)
        assert kept.tolist() == np.minimum(there, most).tolist()
    same = whole.subset(part.example_id)
    assert np.array_equal(same.y, part.y) and np.array_equal(same.content_hash, part.content_hash)
    assert np.array_equal(same.x[np.arange(len(same))], part.x[np.arange(len(part))])
    assert np.array_equal(same.split, part.split) and np.array_equal(same.origin, part.origin)
    assert load("idx", {"root": root, "train_per_class": 3, "test_per_class": 1}, seed=4).digest == part.digest
    assert any("are kept" in note for note in part.provenance["notes"])
    assert load("idx", {"root": root, "train_per_class": 1000}).digest == whole.digest
