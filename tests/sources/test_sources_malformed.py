"""Every kind of data that is read, spoiled in every way: an error of ours that names the file and what is wrong."""

from __future__ import annotations

import os
import stat
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import malformed
import numpy as np
import pytest
from PIL import Image

from contracts.errors import ConfigError, DataError, PalimpsestError, UnsafeFile, in_words
from sources.loading import detect, load

EVERY = [
    (name, way)
    for name in malformed.KINDS
    for way in ("truncated", "cut to a few bytes", "empty", "wrong magic", "swapped", "pickle", "zeros", "wrong schema")
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> a root with good files."""
    roots = {}
    for name, kind in malformed.KINDS.items():
        roots[name] = tmp_path_factory.mktemp("good")
        kind.write(roots[name])
    return roots


@pytest.mark.parametrize("name", malformed.KINDS)
def test_the_good_file_is_read_and_is_the_same_again(good: dict[str, Path], name: str, tmp_path: Path) -> None:
    kind = malformed.KINDS[name]
    data = load(kind.source, {"root": str(good[name]), **kind.config})
    assert len(data) >= 40
    kind.write(tmp_path)
    assert (tmp_path / kind.file).read_bytes() == (good[name] / kind.file).read_bytes(), "seeded"
    assert [way for way, _ in malformed.ways(kind, tmp_path)] == [way for of, way in EVERY if of == name]


@pytest.mark.promise("B2")
@pytest.mark.parametrize(("name", "way"), EVERY, ids=lambda v: str(v).replace(" ", "-"))
def test_a_malformed_file_is_an_error_of_ours_that_names_it(good: dict[str, Path], name: str, way: str) -> None:
    kind, root = malformed.KINDS[name], good[name]
    path = root / kind.file
    whole = path.read_bytes()
    try:
        content = dict(malformed.ways(kind, root))[way]
        path.write_bytes(content)
        with pytest.raises((DataError, UnsafeFile, ConfigError)) as refused:
            load(kind.source, {"root": str(root), **kind.config})
        said = str(refused.value)
        assert Path(kind.file).name in said or Path(kind.file).stem in said, said
        assert "Traceback" not in in_words(refused.value) and len(said.split()) > 3
    finally:
        path.write_bytes(whole)


@pytest.mark.promise("B2")
@pytest.mark.parametrize("name", malformed.KINDS)
def test_what_a_person_gives_to_init_is_looked_at_as_carefully(
    good: dict[str, Path], name: str, tmp_path: Path
) -> None:
    """No kind is guessed from a name: what a spoiled file is not, it is not called."""
    kind = malformed.KINDS[name]
    for way, content in malformed.ways(kind, good[name]):
        path = tmp_path / way.replace(" ", "-") / Path(kind.file).name
        path.parent.mkdir()
        path.write_bytes(content)
        try:
            found = detect(path)
            load(found.name, found.config)
        except PalimpsestError as error:
            assert "Traceback" not in in_words(error)
        else:
            assert way in ("wrong schema", "truncated", "swapped"), way  # a whole file of its own kind


# ------------------------------------------------------------------ outside


_opened: list[str] | None = None


def _note_open(event: str, args: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(args[0], (str, bytes, os.PathLike)):
        _opened.append(os.fsdecode(args[0]))


sys.addaudithook(_note_open)  # Python knows no way to take one away: it does nothing outside the tests below


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Path]:
    """A root in a folder whose every other inode must be neither read nor changed."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    (outside / "deep").mkdir(parents=True)
    for name in ("secret.csv", "secret.npz", "secret.png", "deep/secret.csv"):
        (outside / name).write_bytes(b"a,label\n" + b"1,x\n2,y\n" * 40)
    before = inodes(outside)
    for path in outside.rglob("*"):  # read long ago: most file systems note another reading, by a library too
        os.utime(path, ns=(10**18, path.stat().st_mtime_ns))
    global _opened
    _opened = []
    yield root
    opened, _opened = _opened, None
    assert not [path for path in opened if "secret" in Path(os.path.realpath(path)).name], "opened"
    read = [str(p) for p in outside.rglob("*") if p.is_file() and p.stat().st_atime_ns != 10**18]
    assert read == [], "read"
    assert inodes(outside) == before and sorted(p.name for p in tmp_path.iterdir()) == ["outside", "root"], "written"


def inodes(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(p.relative_to(folder)): (p.lstat().st_ino, p.lstat().st_size, p.lstat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
    }


HOSTILE = (
    "../outside/secret.csv",
    "sub/../../outside/secret.csv",
    "{outside}/secret.csv",
    "file://{outside}/secret.csv",
    "file:{outside}/secret.csv",
    "linked.csv",
    "folder/secret.csv",
    "chain.csv",
    "..\\outside\\secret.csv",
    "C:\\secret.csv",
    "\\\\server\\share\\secret.csv",
    "linked.csv\0.csv",
    "~/secret.csv",
    "/proc/self/environ",
    "/dev/stdin",
)


@pytest.mark.promise("B8")
@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_reads_or_writes_outside_the_root(watched: Path, name: str) -> None:
    outside = watched.parent / "outside"
    (watched / "linked.csv").symlink_to(outside / "secret.csv")
    (watched / "folder").symlink_to(outside)
    (watched / "between.csv").symlink_to("linked.csv")
    (watched / "chain.csv").symlink_to("between.csv")
    name = name.format(outside=outside)
    asked = {
        "table": {"file": name, "label": "label"},
        "npz": {"file": name},
        "text": {"file": name, "text": "a"},
        "interactions": {"file": name},
        "outputs": {"file": name, "outputs": ["a", "b"]},
        "idx": {"images": name, "labels": name},
        "image_folder": {"folder": name},
    }
    for source, config in asked.items():
        with pytest.raises((UnsafeFile, DataError, ConfigError)):
            load(source, {"root": str(watched), **config})


@pytest.mark.promise("B8")
def test_no_archive_and_no_folder_of_pictures_leads_outside(watched: Path) -> None:
    """Names inside an archive, links among pictures, links to folders, and what is no file at all."""
    outside = watched.parent / "outside"
    with zipfile.ZipFile(watched / "slip.npz", "w") as archive:
        for name in ("../outside/x.npy", f"{outside}/y.npy", "..\\outside\\z.npy", "x.npy"):
            archive.writestr(name, b"\x93NUMPY")
        link = zipfile.ZipInfo("y.npy")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, f"{outside}/secret.npz")
    with pytest.raises((UnsafeFile, DataError)):
        load("npz", {"root": str(watched), "file": "slip.npz"})
    for k in range(40):
        (watched / "p" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 3 * k, np.uint8)).save(watched / "p" / "ab"[k % 2] / f"{k}.png")
    assert len(load("image_folder", {"root": str(watched), "folder": "p"})) == 40
    (watched / "p" / "a" / "z.png").symlink_to(outside / "secret.png")
    with pytest.raises((UnsafeFile, DataError)):
        load("image_folder", {"root": str(watched), "folder": "p"})
    (watched / "p" / "a" / "z.png").unlink()
    (watched / "p" / "c").symlink_to(outside)
    with pytest.raises((UnsafeFile, DataError)):
        load("image_folder", {"root": str(watched), "folder": "p"})
