"""Bytes on disk: every file of the state folder is written here, whole or not at all.

A file is written beside its final name, synced, renamed over it, and the folder is synced; a reader sees the old file
or the new one. What a killed writer left is swept by the next one, under a kernel lock that both take: the writer's
lock for ``home/warehouse``, :func:`locked_folder` for a folder of artefacts. Each operation passes a fault point, so
that tests can fail the n-th one. Paths are built from checked components only and never leave their root.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from contracts.errors import IllegalName, UnsafeFile
from warehouse.faults import fault

_CHUNK = 8 << 20
_COMPONENT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_SUFFIX = re.compile(r"(\.[a-z0-9]{1,8}){0,2}")
_counter = itertools.count()


def confined(root: Path, name: str) -> Path:
    """The path of ``name`` ("digits/models/target", "digits/report.html") under ``root``.

    Raises:
        IllegalName: a component is not ``[a-z0-9][a-z0-9_-]{0,63}`` (the last may add up to two suffixes).
        UnsafeFile: a symbolic link on the way leads out of ``root``.
    """
    parts = str(name).split("/")
    stem, dot, rest = parts[-1].partition(".")
    legal = all(_COMPONENT.fullmatch(p) for p in (*parts[:-1], stem)) and _SUFFIX.fullmatch(dot + rest)
    if not isinstance(name, str) or not legal or len(name) > 400:
        raise IllegalName(
            f"artefact name {str(name)[:120]!r} is not allowed: components of a-z, 0-9, '_' and '-', joined by '/', "
            "the last with up to two suffixes"
        )
    path = root.joinpath(*parts)
    home = root.resolve()
    if not path.parent.resolve().is_relative_to(home) or (
        path.is_symlink() and not path.resolve().is_relative_to(home)
    ):
        raise UnsafeFile(f"{path} leads out of {root} through a symbolic link")
    return path


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``data``, durably and atomically.

    Raises:
        OSError: naming ``path``; the old file is untouched and the temporary one removed.
    """
    make_folder(path.parent)
    temp = _temporary(path)
    try:
        with _naming(path):
            fault("fsio.create", path)
            descriptor = os.open(temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                _write(descriptor, data, path)
                fault("fsio.fsync", path)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            _rename(temp, path)
    except BaseException:
        with suppress(OSError):
            temp.unlink()
        raise


def write_cache(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` at once for readers, without waiting for the disk: for what may be lost, and whose
    readers notice when it was cut.

    Raises:
        OSError: nothing can be written there; the old file is untouched.
    """
    temp = _temporary(path)
    try:
        temp.write_bytes(data)
        temp.rename(path)
    finally:
        with suppress(OSError):
            temp.unlink()


def make_folder(folder: Path) -> None:
    """Create ``folder`` and what is missing above it, durably."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a free temporary name beside ``path``; the file that the block makes there becomes ``path``, durably.

    For files that a library writes by name.
    """
    temp = _temporary(path)
    try:
        with _naming(path):
            yield temp
            _sync(temp, path)
            _rename(temp, path)
    except BaseException:
        for left in path.parent.glob(temp.name + "*"):
            with suppress(OSError):
                left.unlink()
        raise


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a free temporary name beside ``path`` for a file whose own name is not known yet; :func:`adopt` gives it
    one, and what is not adopted is removed."""
    temp = _temporary(path)
    try:
        with _naming(path):
            fault("fsio.create", path)
            yield temp
    finally:
        with suppress(OSError):
            temp.unlink()


def adopt(temp: Path, path: Path) -> None:
    """Make a staged file ``path``, durably and atomically.

    Raises:
        OSError: naming ``path``; the old file is untouched.
    """
    with _naming(path):
        _sync(temp, path)
        _rename(temp, path)


def _rename(temp: Path, path: Path) -> None:
    fault("fsio.rename", path)
    temp.rename(path)
    sync_folder(path.parent)


def _sync(temp: Path, path: Path) -> None:
    fault("fsio.fsync", path)
    descriptor = os.open(temp, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes, path: Path) -> None:
    """Write all of ``data``; a short write is continued."""
    view = memoryview(data)
    while view:
        fault("fsio.write", path)
        view = view[os.write(descriptor, view[:_CHUNK]) :]


def sync_folder(folder: Path) -> None:
    """Make renames and creations in ``folder`` durable."""
    fault("fsio.fsync_folder", folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_over(source: Path, path: Path) -> None:
    """Give the content of ``source`` the second name ``path`` (replacing it), without copying where links exist."""
    temp = _temporary(path)
    try:
        with _naming(path):
            fault("fsio.link", path)
            temp.hardlink_to(source)
            temp.rename(path)
            sync_folder(path.parent)
    except (PermissionError, NotImplementedError):  # a file system without hard links
        write_bytes(path, source.read_bytes())
    finally:
        with suppress(OSError):
            temp.unlink()


def remove(path: Path) -> None:
    """Delete a file that may already be gone."""
    fault("fsio.unlink", path)
    path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(folder: Path) -> None:
    """Remove the temporary files in ``folder``. The caller holds its lock, so whoever made them is dead."""
    for temp in folder.glob(".*.tmp*"):
        with suppress(OSError):
            temp.unlink()


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the kernel lock of an existing folder for the block; waits for another holder, dies with its process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """A folder of one's own below ``root`` (the system's temporary folder where ``root`` cannot be written), gone after
    the block. What a killed process leaves there is removed by :func:`sweep_scratch`."""
    try:
        root.mkdir(exist_ok=True)
        folder, descriptor = _own_folder(root)
    except OSError:
        folder, descriptor = _own_folder(Path(tempfile.gettempdir()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _own_folder(root: Path) -> tuple[Path, int]:
    """A new folder, locked by this process; made again if a sweeper came between the two."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=root, prefix="palimpsest-"))
        with suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return folder, descriptor
            os.close(descriptor)


def sweep_scratch(root: Path) -> None:
    """Remove scratch folders whose process is dead: their lock is free."""
    for folder in root.glob("*/"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_counter)}-{os.urandom(4).hex()}.tmp")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Operating-system errors on a descriptor carry no name; add it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
