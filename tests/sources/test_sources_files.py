"""Paths stay inside their root, sizes are checked first, pickles are known by content. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import socket
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import DataError, PalimpsestError, UnsafeFile
from sources.files import check_size, inside, manifest, refuse_pickle, root_folder
from sources.loading import detect, load


@pytest.fixture
def house(tmp_path):
    """root/{a.csv, sub/b.csv} beside a secret that must stay unread."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.csv").write_text("x,label\n1,a\n")
    (root / "sub" / "b.csv").write_text("x,label\n1,a\n")
    (tmp_path / "secret.csv").write_text("x,label\n1,a\n")
    return root_folder(root)


def test_plain_names_are_found(house):
    assert inside(house, "a.csv") == house / "a.csv"
    assert inside(house, "sub/b.csv") == house / "sub" / "b.csv"
    assert inside(house, "sub", folder=True) == house / "sub"
    (house / "sub" / "link.csv").symlink_to(house / "a.csv")
    assert inside(house, "sub/link.csv") == house / "a.csv"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.csv",
        "sub/../../secret.csv",
        "sub/../a.csv",
        "/etc/passwd",
        "file:///etc/passwd",
        "C:\\a.csv",
        "C:a.csv",
        "sub\\b.csv",
        "\\\\server\\share",
        "a.csv\0.png",
        "",
        "https://example.org/a.csv",
    ],
)
def test_names_that_are_not_plain_are_refused(house, name):
    with pytest.raises(UnsafeFile):
        inside(house, name)


@given(
    st.lists(
        st.sampled_from(["..", ".", "sub", "a.csv", "secret.csv", "", "\\", "/", "C:", "link"]), min_size=1, max_size=6
    )
)
@pytest.mark.promise("B8")
def test_no_name_leads_out(house_once, parts):
    try:
        found = inside(house_once, "/".join(parts))
    except PalimpsestError:
        return
    assert found.is_relative_to(house_once) and found.is_file()


@pytest.fixture(scope="module")
def house_once(tmp_path_factory):
    top = tmp_path_factory.mktemp("top").resolve()
    (top / "root" / "sub").mkdir(parents=True)
    (top / "root" / "a.csv").write_text("x")
    (top / "secret.csv").write_text("x")
    (top / "root" / "sub" / "link").symlink_to(top)
    return top / "root"


@pytest.mark.promise("B8")
def test_links_and_odd_files_are_refused(house):
    (house / "out.csv").symlink_to(house.parent / "secret.csv")
    (house / "up").symlink_to(house.parent)
    (house / "loop").symlink_to("loop")
    os.mkfifo(house / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(house / "sock"))
    for name in ("out.csv", "up/secret.csv", "fifo", "sock", "sub"):
        with pytest.raises(UnsafeFile):
            inside(house, name)
    for name in ("loop", "missing.csv", "a.csv/b"):
        with pytest.raises(DataError):
            inside(house, name)
    with pytest.raises(UnsafeFile):
        inside(house, "a.csv", folder=True)


@pytest.mark.promise("B8")
def test_every_source_refuses_a_file_outside_its_root(house, tmp_path):
    (house / "out.csv").symlink_to(tmp_path / "secret.csv")
    for name in ("../secret.csv", str(tmp_path / "secret.csv"), "out.csv"):
        for source, config in (
            ("table", {"file": name, "label": "label"}),
            ("npz", {"file": name}),
            ("idx", {"images": name, "labels": "a.csv"}),
        ):
            with pytest.raises(UnsafeFile, match=r"out of|not a plain name"):
                load(source, {"root": str(house), **config})


def test_root_must_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "none", tmp_path / "file", "a\0b"):
        with pytest.raises(DataError):
            root_folder(root)


def test_manifest_and_sizes(house):
    entry = manifest(house, [house / "sub" / "b.csv"])[0]
    content = (house / "sub" / "b.csv").read_bytes()
    assert entry == {"name": "sub/b.csv", "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    assert check_size(10, 10, "it") == 10
    with pytest.raises(UnsafeFile, match="11 bytes"):
        check_size(11, 10, "it")


class _Canary:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def _pickles(marker):
    canary = _Canary(marker)
    plain = io.BytesIO()
    pickle.dump(canary, plain)
    objects = io.BytesIO()
    np.save(objects, np.array([canary], object), allow_pickle=True)
    archive = io.BytesIO()
    np.savez(archive, x=np.zeros((4, 2)), y=np.array([canary] * 4, object))
    torch_file = io.BytesIO()
    with zipfile.ZipFile(torch_file, "w") as z:
        z.writestr("model/data.pkl", plain.getvalue())
        z.writestr("model/version", "3")
    return {"plain": plain, "objects": objects, "archive": archive, "torch": torch_file}


@pytest.mark.parametrize("kind", ["plain", "objects", "archive", "torch"])
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".pt", ".csv", ".parquet", "-images-idx3-ubyte"])
@pytest.mark.promise("B3")
def test_pickles_are_refused_by_content_and_never_run(tmp_path, kind, suffix):
    marker = tmp_path / "it-ran"
    path = tmp_path / f"data{suffix}"
    path.write_bytes(_pickles(marker)[kind].getvalue())
    with pytest.raises((UnsafeFile, DataError)):
        detect(path)
    root = str(tmp_path)
    attempts = [
        ("npz", {"root": root, "file": path.name}),
        ("table", {"root": root, "file": path.name, "label": "y"}),
        ("idx", {"root": root, "images": path.name, "labels": path.name}),
    ]
    for name, config in attempts:
        with pytest.raises((UnsafeFile, DataError)):
            load(name, config)
    with pytest.raises(UnsafeFile, match="pickle"):
        load("npz", {"root": root, "file": path.name})
    assert not marker.exists()


@pytest.mark.promise("B3")
def test_the_canary_would_have_sung(tmp_path):
    marker = tmp_path / "it-ran"
    pickle.loads(_pickles(marker)["plain"].getvalue())
    assert marker.exists()
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\0")
    refuse_pickle(tmp_path / "a.npy")
