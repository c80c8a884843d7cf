"""Atomic files, fault points and scratch folders."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from warehouse import faults, fsio, lock


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    fsio.write_bytes(path, b"one", mode=0o600)
    assert path.read_bytes() == b"one" and stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open("rb") as old:
        fsio.write_bytes(path, b"two")
        assert old.read() == b"one" and path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    fsio.write_bytes(tmp_path / "file", bytes(range(100)))
    assert (tmp_path / "file").read_bytes() == bytes(range(100))


@pytest.mark.parametrize("call", ["write", "fsync", "open", "rename"])
def test_a_failing_call_names_the_file_and_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    fsio.write_bytes(path, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "rename":
        monkeypatch.setattr(Path, "rename", fail)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left") as caught:
        fsio.write_bytes(path, b"new")
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_block_that_fails_leaves_neither_file_nor_companions(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with pytest.raises(ZeroDivisionError), fsio.replacing(path) as temp:
        temp.write_bytes(b"half")
        temp.with_name(temp.name + ".wal").write_bytes(b"log")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_second_name_needs_no_second_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = tmp_path / "content", tmp_path / "report.html"
    source.write_bytes(b"x")
    path.write_bytes(b"old")
    fsio.link_over(source, path)
    assert path.samefile(source)

    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    fsio.link_over(source, tmp_path / "copy.html")
    assert (tmp_path / "copy.html").read_bytes() == b"x" and not (tmp_path / "copy.html").samefile(source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["content", "copy.html", "report.html"]


def test_fault_points_do_nothing_unless_armed_and_strike_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_passages", {})
    faults.fault("a.b")
    monkeypatch.setenv(faults.VARIABLE, "a.b:3=EIO")
    struck = []
    for i in range(6):
        for name in ("a.b", "a.bc", "a", "b"):
            try:
                faults.fault(name, tmp_path)
            except OSError as error:
                struck.append((i, name, error.errno, error.filename))
    assert struck == [(2, "a.b", errno.EIO, str(tmp_path))]
    monkeypatch.setenv(faults.VARIABLE, "a:2=ENOSPC")
    faults.fault("ab.c")
    faults.fault("a.x")
    with pytest.raises(OSError, match=r"armed at a\.y"):
        faults.fault("a.y")


def test_scratch_folders_go_with_their_block_and_dead_ones_are_swept(tmp_path: Path) -> None:
    root = tmp_path / "spill"
    with fsio.scratch_folder(root) as living:
        (living / "spilled").write_bytes(b"x")
        dead = root / "palimpsest-dead"
        dead.mkdir()
        (dead / "spilled").write_bytes(b"x")
        fsio.sweep_scratch(root)
        assert living.exists() and not dead.exists() and stat.S_IMODE(living.stat().st_mode) == 0o700
    assert list(root.iterdir()) == []


def test_where_the_state_folder_cannot_be_written_the_system_serves(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with fsio.scratch_folder(blocked / "spill") as folder:
        assert folder.is_dir() and not folder.is_relative_to(tmp_path / "file")
    assert not folder.exists()


def test_the_lock_file_says_who_holds_it(tmp_path: Path) -> None:
    with lock.exclusive(tmp_path / "lock", timeout_s=1):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    with lock.exclusive(tmp_path / "lock", timeout_s=1):
        pass
