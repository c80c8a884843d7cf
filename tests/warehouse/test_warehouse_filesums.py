"""A file that was read before is not read again, unless anything happened to it; the memory of it may be lost."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import IntegrityError
from warehouse import ArtifactStore, filesums, fsio
from warehouse.filesums import FileSums
from warehouse.verify_files import Files, check_artifacts


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read, as they are."""
    seen: list[str] = []
    read = fsio.sha256_of

    def spy(path: Path) -> str:
        seen.append(path.name)
        return read(path)

    monkeypatch.setattr(fsio, "sha256_of", spy)
    return seen


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the clock of the file system: what a test writes counts as old at once."""
    monkeypatch.setattr(filesums, "_tick", lambda _: -1)


def made(folder: Path, name: str = "a", data: bytes = b"one") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def flipped(path: Path) -> None:
    """One bit, in place, with the time of the last change set back."""
    before = path.stat()
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


def test_a_file_is_read_once_and_again_after_any_change(tmp_path: Path, reads: list[str], quick: None) -> None:
    path, sums = made(tmp_path), FileSums()
    first = hashlib.sha256(b"one").hexdigest()
    assert [sums.sha256(path) for _ in range(3)] == [first] * 3 and len(reads) == 1
    flipped(path)
    assert sums.sha256(path) == hashlib.sha256(b"nne").hexdigest() and len(reads) == 2, "ctime tells"
    path.unlink()
    made(tmp_path)
    assert sums.sha256(path) == first
    path.unlink()
    with pytest.raises(FileNotFoundError):
        sums.sha256(path)


def test_two_names_of_one_file_are_read_once(tmp_path: Path, reads: list[str], quick: None) -> None:
    path, sums = made(tmp_path), FileSums()
    (tmp_path / "b").hardlink_to(path)
    assert sums.sha256(path) == sums.sha256(tmp_path / "b") and len(reads) == 1


def test_what_changed_a_moment_ago_is_not_remembered(tmp_path: Path, reads: list[str]) -> None:
    """Two changes within a tick of the file system's clock look like one."""
    path, sums = made(tmp_path), FileSums()
    sums.sha256(path)
    sums.sha256(path)
    assert len(reads) == 2
    time.sleep(2 * filesums._TICK_NS / 1e9)
    sums.sha256(path)
    sums.sha256(path)
    assert len(reads) == 3
    assert filesums._tick(1_700_000_000_000_000_000) > 2e9 > filesums._tick(1_700_000_000_000_000_001) * 10


def test_what_is_kept_serves_the_next_process_and_others_keep_beside_it(
    tmp_path: Path, reads: list[str], quick: None
) -> None:
    kept = tmp_path / "sums.json"
    one, two = made(tmp_path, "one"), made(tmp_path, "two")
    mine, other = FileSums(kept), FileSums(kept)
    mine.sha256(one)
    other.sha256(two)
    mine.keep()
    other.keep()
    reads.clear()
    third = FileSums(kept)
    assert third.sha256(one) and third.sha256(two) and reads == []
    two.unlink()
    changed = kept.read_bytes()
    third.keep()
    assert kept.read_bytes() == changed, "nothing is new"
    third.sha256(made(tmp_path, "three"))
    third.keep()
    assert b"three" in kept.read_bytes() and b"two" not in kept.read_bytes(), "what is gone is left out"
    looking = FileSums(kept, keeps=False)
    looking.sha256(made(tmp_path, "four"))
    looking.keep()
    assert b"four" not in kept.read_bytes()


def test_a_large_file_is_remembered_as_it_is_written(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sums = made(tmp_path), FileSums()
    sums.note(path, "small: read again")
    assert sums.sha256(path) == hashlib.sha256(b"one").hexdigest()
    monkeypatch.setattr(filesums, "_LARGE", 1)
    sums.note(path, "known")
    reads.clear()
    assert sums.sha256(path) == "known" and reads == []
    flipped(path)
    assert sums.sha256(path) != "known"


@pytest.mark.promise("B1")
def test_a_memory_that_was_changed_cut_or_lost_is_made_anew(tmp_path: Path, quick: None) -> None:
    """Any bit of it: either it is not believed, or it says what is so."""
    path, kept = made(tmp_path), tmp_path / "sums.json"
    true = hashlib.sha256(b"one").hexdigest()
    first = FileSums(kept)
    first.sha256(path)
    first.keep()
    whole = kept.read_bytes()
    for place in range(0, 8 * len(whole), 11):
        bad = bytearray(whole)
        bad[place // 8] ^= 1 << place % 8
        kept.write_bytes(bytes(bad))
        assert set(FileSums(kept)._all().values()) <= {(true, str(path))}
    for bad in (b"", whole[:-9], b"[]", b"{}", b"[" * 100_000, b"\xff", whole.replace(true.encode(), b"0" * 64)):
        kept.write_bytes(bad)
        assert FileSums(kept).sha256(path) == true
    kept.unlink()
    kept.mkdir()  # cannot be written
    again = FileSums(kept)
    assert again.sha256(path) == true
    again.keep()
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


@pytest.mark.promise("B1")
def test_a_flipped_bit_in_place_is_trouble_and_no_memory_makes_it_whole(tmp_path: Path, quick: None) -> None:
    sums = FileSums(tmp_path / "sums.json")
    store = ArtifactStore(tmp_path / "artifacts", sums=sums)
    weights = store.save("m/weights", {"w": np.arange(9.0)}, {"a": 1})
    page = store.save_bytes("m/page.html", b"<h1>a page</h1>")
    assert store.trouble("m/weights", weights.sha256) == "" == store.trouble("m/page.html", page.sha256)
    flipped(page.path)
    assert str(page.path.parent) in store.trouble("m/page.html", page.sha256)
    assert "damaged" in store.trouble("m/page.html", page.sha256) and not store.holds("m/page.html", page.sha256)
    assert "replaced" in store.trouble("m/weights", page.sha256)
    good = weights.path.read_bytes()
    flipped(weights.path)
    # somebody, or an error of ours, writes down that the damaged file is whole
    said, _ = filesums._said(weights.path)
    sums._all()[said] = (weights.sha256, str(weights.path))
    assert store.holds("m/weights", weights.sha256), "what is known is believed here"
    with pytest.raises(IntegrityError, match="damaged"):
        store.load("m/weights")
    with pytest.raises(IntegrityError, match="damaged"):
        store.verified("m/weights")
    found = Files()
    check_artifacts(found, store, None, lambda *_: None)
    assert any("m/weights" in problem.sentence for problem in found.problems), "and nowhere else"
    weights.path.write_bytes(good)
    assert store.trouble("m/weights", weights.sha256) == ""
    weights.path.unlink()
    assert "cannot be read" in store.trouble("m/weights", weights.sha256)
    store._manifest_path("m/page.html").write_bytes(b"{}")
    assert "manifest" in store.trouble("m/page.html", page.sha256)
    assert "no artefact" in store.trouble("m/none", page.sha256)
