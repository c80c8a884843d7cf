"""NPZ: numpy's own files read back, channel order, and archives that explode, lie or hold objects."""

from __future__ import annotations

import contextlib
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import DataError, UnsafeFile
from sources.example_set import ExampleSet
from sources.loading import load


def _load(path, **config) -> ExampleSet:
    return load("npz", {"root": str(path.parent), "file": path.name} | config)


def _npy(values, version=None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(values), version=version, allow_pickle=True)
    return stream.getvalue()


def _zip(path, members, *, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int16", "uint8", "bool", ">f8", "float16"])
def test_features(tmp_path, save, dtype):
    x = np.random.default_rng(0).integers(0, 2, (40, 5)).astype(dtype)
    y = np.arange(40) % 3
    save(
        tmp_path / "d.npz",
        x=x,
        y=y,
        ids=np.arange(40)[::-1] * 2,
        owner=np.array(["ann", "bob"] * 20),
        split=np.array(["Train", "TEST", "train", "train", "train"] * 8),
    )
    data = _load(tmp_path / "d.npz")
    assert data.x.dtype == np.float32
    np.testing.assert_array_equal(data.x, x.astype(np.float32))
    np.testing.assert_array_equal(data.y, y)
    np.testing.assert_array_equal(data.example_id, np.arange(40)[::-1] * 2)
    assert data.owner[1] == "bob" and (data.split == "test").sum() == 8
    assert data.provenance["split"] == "the data's own" and data.name == "d"


@given(
    shape=st.tuples(st.integers(4, 9), st.integers(2, 4), st.integers(2, 4)),
    channels=st.sampled_from([None, 1, 3]),
    first=st.booleans(),
    fortran=st.booleans(),
    dtype=st.sampled_from(["uint8", "float32", "float64"]),
)
def test_images_arrive_channel_first(tmp_path_factory, shape, channels, first, fortran, dtype):
    num, height, width = shape[0], shape[1] + 4, shape[2] + 4
    full = (
        (num, height, width)
        if channels is None
        else ((num, channels, height, width) if first else (num, height, width, channels))
    )
    x = np.random.default_rng(1).integers(0, 256, full).astype(dtype)
    x = np.asfortranarray(x) if fortran else x
    path = tmp_path_factory.mktemp("npz") / "d.npz"
    np.savez(path, x=x, y=np.arange(num)[:, None] % 2)
    data = _load(path)
    want = x[:, None] if channels is None else (x if first else x.transpose(0, 3, 1, 2))
    assert data.x.dtype == (np.uint8 if dtype == "uint8" else np.float32) and data.x.flags.c_contiguous
    np.testing.assert_array_equal(data.x, want)


def test_blocks_do_not_change_what_is_read(tmp_path, monkeypatch):
    x = np.random.default_rng(1).normal(size=(50, 6, 5, 3))
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(50) % 2)
    monkeypatch.setattr("sources.npz.BLOCK_BYTES", 3000)
    np.testing.assert_array_equal(_load(tmp_path / "d.npz").x, x.transpose(0, 3, 1, 2).astype(np.float32))


def test_keras_convention(tmp_path):
    x = np.random.default_rng(2).integers(0, 256, (50, 8, 8), dtype=np.uint8)
    y = (np.arange(50) % 4).astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    data = _load(tmp_path / "mnist.npz", white=51)
    np.testing.assert_array_equal(data.x[:, 0], x)
    assert data.split.tolist() == ["train"] * 40 + ["test"] * 10
    np.testing.assert_allclose(data.inputs(slice(0, 5)), x[:5, None] / 51, rtol=1e-6)
    arrays = {"x_train": x[:40], "y_train": y[:40], "x_test": x[40:], "y_test": y[40:]}
    np.savez(tmp_path / "m.npz", **arrays, ids=np.arange(50) + 7, owner=np.array([b"ann", "Jörg".encode()] * 25))
    data = _load(tmp_path / "m.npz")
    assert data.example_id.tolist() == list(range(7, 57)) and data.owner.tolist() == ["ann", "Jörg"] * 25
    np.savez(tmp_path / "m.npz", **arrays, split=np.array(["train"] * 50))
    with pytest.raises(DataError, match="says twice"):
        _load(tmp_path / "m.npz")


def test_regression_and_text(tmp_path):
    rng = np.random.default_rng(3)
    np.savez(tmp_path / "r.npz", x=rng.normal(size=(60, 2)), y=rng.normal(size=60))
    data = _load(tmp_path / "r.npz")
    assert data.task.name == "regression" and data.y.dtype == np.float64
    np.savez(tmp_path / "t.npz", x=rng.normal(size=(60, 2)), y=np.array(["b", "a"] * 30))
    assert _load(tmp_path / "t.npz").class_names == ("a", "b")
    np.savez(tmp_path / "b.npz", x=rng.normal(size=(60, 2)), y=np.array(["ä".encode(), b"a"] * 30))
    assert _load(tmp_path / "b.npz").class_names == ("a", "ä")
    np.savez(tmp_path / "b.npz", x=rng.normal(size=(60, 2)), y=np.array([b"\xff", b"a"] * 30))
    with pytest.raises(DataError, match="UTF-8"):
        _load(tmp_path / "b.npz")


X, Y = np.arange(24.0).reshape(12, 2), np.arange(12) % 2


def _nan():
    x = X.copy()
    x[5, 0], x[7, 1] = np.nan, np.inf
    return x


@pytest.mark.parametrize(
    ("arrays", "config", "message", "ids"),
    [
        ({"x": _nan(), "y": Y}, {}, "NaN or infinite", None),
        ({"x": np.where(X == 4, 1e300, X), "y": Y}, {}, "infinite", None),
        ({"x": X, "y": Y, "ids": np.arange(12) % 11}, {}, "more than once", [0]),
        ({"x": X, "y": Y, "ids": np.arange(12) - 1}, {}, "must lie in 0", []),
        ({"x": X, "y": Y, "ids": np.arange(12) / 2}, {}, "whole numbers", []),
        ({"x": X, "y": Y - 1}, {}, "negative", [0, 2, 4, 6, 8, 10]),
        ({"x": X, "y": np.where(Y, np.nan, 0.5)}, {}, "missing", [1, 3, 5, 7, 9, 11]),
        ({"x": X, "y": Y[:5]}, {}, "has shape", []),
        ({"x": X, "y": Y, "owner": np.array(["a"])}, {}, "has shape", []),
        ({"x": X, "y": Y, "split": np.array(["train", "odd"] * 6)}, {}, "'odd'", [1, 3, 5, 7, 9, 11]),
        ({"x": X, "y": Y, "split": np.array(["train"] * 12)}, {}, "no test example", []),
        ({"x": X[:, 0], "y": Y}, {}, "values are numbers", []),
        ({"x": X.astype(str), "y": Y}, {}, "values are numbers", []),
        ({"x": X + 1j, "y": Y}, {}, "neither numbers nor text", []),
        ({"x": X[:, :0], "y": Y}, {}, "allowed are images", []),
        ({"x": X[:0], "y": Y[:0]}, {}, "no examples|leave none|holds no", []),
        ({"x": np.zeros((12, 3, 5, 3)), "y": Y}, {}, "set layout", []),
        ({"x": np.zeros((12, 5, 5, 5)), "y": Y}, {}, "set layout", []),
        ({"data": X, "y": Y}, {}, "no array x", []),
        ({"x": X, "y": Y}, {"owner": "who"}, "no array who", []),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :1], "y_test": Y}, {}, "ragged", []),
        ({"x_train": X, "y_train": Y, "x_test": X}, {}, "no array y_test", []),
    ],
)
def test_data_errors(tmp_path, arrays, config, message, ids):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message) as error:
        _load(tmp_path / "d.npz", **config)
    if ids is not None:  # rows are named as numpy counts them, and ids where the ids themselves are wrong
        assert list(error.value.where or map(str, error.value.example_ids)) == [
            f"x[{row}]" if error.value.where else str(row) for row in ids
        ]


def test_objects_anywhere_are_refused(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y, meta=np.array([{"a": 1}], object))
    with pytest.raises(UnsafeFile, match="Python objects"):
        _load(tmp_path / "d.npz")


def _header(shape, dtype="<f8") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.npy": _header((2**40, 2**10)), "y.npy": _npy(Y)}, "the archive lists"),
        ({"x.npy": _npy(X)[:-8], "y.npy": _npy(Y)}, "the archive lists"),
        ({"x.npy": _npy(X) + b"more", "y.npy": _npy(Y)}, "the archive lists"),
        ({"x.npy": _npy(X), "y.npy": _npy(Y), "run.sh": b"echo"}, "not an array"),
        ({"x.npy": _npy(X), "y.npy": _npy(Y), "../up.txt": b"slip"}, "not an array"),
        (
            {"x.npy": b"\x93NUMPY\x02\0" + (2**31).to_bytes(4, "little") + bytes(2_000_000), "y.npy": _npy(Y)},
            "header of",
        ),
    ],
)
def test_archives_that_lie(tmp_path, members, message):
    path = _zip(tmp_path / "d.npz", members)
    with pytest.raises(UnsafeFile, match=message):
        _load(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.npy": b"", "y.npy": _npy(Y)}, "not a .npy"),
        ({"x.npy": b"\x93NUMPY\x09\0" + bytes(200), "y.npy": _npy(Y)}, "not a .npy"),
        ({"x.npy": b"\x93NUMPY\x01\0\x10\0{'descr': os.sys}", "y.npy": _npy(Y)}, "unreadable header"),
        ({"x.npy": _npy(np.zeros(12, [("a", "f4")])), "y.npy": _npy(Y)}, "neither numbers nor text"),
    ],
)
def test_members_that_are_no_arrays(tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        _load(_zip(tmp_path / "d.npz", members))


@pytest.mark.promise("B5")
def test_bombs_are_refused_before_allocation(tmp_path, peak_below):
    num = 40_000_000
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x.npy", "w") as stream:  # honest zeros: 320 MB out of 1.4 MB
            stream.write(_header((num, 1)))
            for _ in range(40):
                stream.write(bytes(8_000_000))
        archive.writestr("y.npy", _npy(Y))
    assert path.stat().st_size < 2_000_000
    with peak_below(30e6), pytest.raises(UnsafeFile, match="more than max_bytes"):
        _load(path, max_bytes=50_000_000)
    with peak_below(30e6), pytest.raises(DataError, match=r"has shape|values are numbers"):
        _load(path, x="y", y="x")


def test_directory_that_promises_more_than_its_bytes(tmp_path):
    path = _zip(tmp_path / "d.npz", {"x.npy": _npy(X), "y.npy": _npy(Y)})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24  # uncompressed size in the first entry of the central directory
    data[at : at + 4] = (2**31).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UnsafeFile, match="cannot hold"):
        _load(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_without_a_known_bound_are_refused(tmp_path, method):
    with pytest.raises(UnsafeFile, match="compressed in a way"):
        _load(_zip(tmp_path / "d.npz", {"x.npy": _npy(X), "y.npy": _npy(Y)}, method=method))


def test_member_listed_twice(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        for _ in range(2):
            archive.writestr("x.npy", _npy(X))
    with pytest.raises(UnsafeFile, match="twice"):
        _load(tmp_path / "d.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.promise("B2")
def test_truncation_and_flipped_bits_are_typed_errors(tmp_path, method):
    rng = np.random.default_rng(0)
    whole = _zip(
        tmp_path / "d.npz", {"x.npy": _npy(rng.normal(size=(60, 4))), "y.npy": _npy(np.arange(60) % 2)}, method=method
    )
    content = whole.read_bytes()
    good = _load(whole).digest
    for cut in rng.integers(0, len(content), 40):
        whole.write_bytes(content[:cut])
        with pytest.raises((DataError, UnsafeFile)):
            _load(whole)
    silent = 0
    for at in rng.integers(0, len(content), 150):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(rng.integers(8))
        whole.write_bytes(flipped)
        with contextlib.suppress(DataError, UnsafeFile):
            silent += _load(whole).digest != good
    assert silent == 0  # the CRC is checked to the end of every member
