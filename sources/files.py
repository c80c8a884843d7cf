"""Safe access to files that somebody else made: where they may lie, how large they may be, what they may be.

A source is given a ``root`` folder and file names inside it. Nothing outside the resolved root is opened, whatever
``..``, absolute names or symbolic links say; nothing but regular files is opened (a FIFO would block for ever); no
array is allocated before its declared size has been compared with a limit and with the bytes that are there.
Nothing here unpickles: a pickle is recognised by content only so that the refusal can say what it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from contracts.errors import DataError, UnsafeFile
from contracts.params import Config, param

MAX_BYTES = 4 * 2**30
BAD_ZIP = (zipfile.BadZipFile, NotImplementedError, OSError, ValueError)  # what zipfile raises on a bad file
JUNK = (
    "__MACOSX",
    "Thumbs.db",
    "desktop.ini",
    "@eaDir",
)  # what systems leave beside people's files; hidden files are, too
PICTURES = (  # how the pictures begin that are read: PNG, JPEG, BMP, GIF, TIFF, WebP, PPM
    *(b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"RIFF"),
    *(b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
)
DATA = "/usr/share/datasets"  # where Debian's packages put data sets
DEFLATE_RATIO = 1032  # the most that a deflate stream can expand (RFC 1951: 258 bytes out of 2 bits)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileConfig(Config):
    """Fields that every source of files has."""

    root: str = param(
        doc="folder that holds the data; no file outside it is read; a relative one lies below a folder of "
        "$PALIMPSEST_DATA"
    )
    name: str = param("", doc="name of the data set; taken from the file or folder when empty")
    test_fraction: float = param(0.25, gt=0, lt=1, doc="share of the test split when the data brings none")
    max_bytes: int = param(MAX_BYTES, ge=1024, le=2**40, unit="bytes", doc="largest array or file accepted")
    licence: str = param("", doc="licence of the data, kept in the provenance")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig(FileConfig):
    """Fields that every source of images has besides."""

    standardise: bool = param(
        False,
        doc="uint8 images with mean 0 and standard deviation 1 over the training split, channel by channel, in place "
        "of 0 to 1; networks fit such inputs in fewer epochs",
    )


def data_folders() -> list[Path]:
    """Where relative roots are looked for, in this order: the folders of ``$PALIMPSEST_DATA`` (separated as in
    ``$PATH``), then ``/usr/share/datasets``.
    """
    named = os.environ.get("PALIMPSEST_DATA", "").split(os.pathsep)
    return [Path(name).expanduser() for name in (*filter(None, named), DATA)]


def root_folder(root: str | Path) -> Path:
    """The resolved root. ``~`` is expanded; a relative one is the first of that name below ``data_folders()``.

    Raises:
        DataError: it is not an existing folder.
    """
    places = [Path(root).expanduser()] if str(root).startswith("~") else [folder / root for folder in data_folders()]
    try:
        found = next((place for place in places if place.is_dir()), places[0])  # an absolute root is every place
        folder = found.resolve(strict=True)
    except FileNotFoundError:
        where = "" if Path(root).is_absolute() else f" below {' or '.join(map(str, data_folders()))} (PALIMPSEST_DATA)"
        raise DataError(f"root {str(root)!r} does not exist{where}") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"root {str(root)!r} cannot be opened: {error}") from None
    if not folder.is_dir():
        raise DataError(f"root {str(root)!r} is not a folder")
    return folder


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; hidden files and ``JUNK`` passed over.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        return sorted(entry for entry in folder.iterdir() if not is_junk(entry))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from None


def files_below(root: Path, folder: Path) -> Iterator[Path]:
    """Every file of a folder and of those in it, in the order of ``entries``; lazily.

    Raises:
        UnsafeFile: a linked folder, or a folder that leads out of ``root``.
        DataError: a folder that cannot be listed.
    """
    inside(root, folder.relative_to(root), folder=True)
    for entry in entries(folder):
        if not entry.is_dir():
            yield entry
        elif entry.is_symlink():
            raise UnsafeFile(f"{entry.relative_to(root)} is a linked folder: it could lead round in a circle")
        else:
            yield from files_below(root, entry)


def is_junk(path: Path) -> bool:
    """True for hidden files and ``JUNK``."""
    return path.name.startswith(".") or path.name in JUNK


def inside(root: Path, name: str | Path, *, folder: bool = False) -> Path:
    """The resolved path of ``name`` under the resolved ``root``: a regular file, or a folder when asked for one.

    Raises:
        UnsafeFile: the name is absolute, climbs with ``..``, is a Windows name or URL, leaves the root through a
            symbolic link, or is not a regular file.
        DataError: there is no such file.
    """
    text = str(name)
    windows = PureWindowsPath(text)
    if (
        not text
        or "\0" in text
        or "\\" in text
        or "://" in text
        or windows.drive
        or PurePosixPath(text).is_absolute()
        or ".." in PurePosixPath(text).parts
    ):
        raise UnsafeFile(f"{text!r} is not a plain name inside {root}: no absolute path, '..', drive, '\\' or URL")
    try:
        path = (root / text).resolve(strict=True)
        mode = path.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise DataError(f"{text!r} cannot be opened in {root}: {getattr(error, 'strerror', None) or error}") from None
    if not path.is_relative_to(root):
        raise UnsafeFile(f"{text!r} leads out of {root} (to {path})")
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        raise UnsafeFile(f"{text!r} in {root} is not a {'folder' if folder else 'regular file'}")
    return path


def head(path: Path, size: int = 64) -> bytes:
    """The first bytes of a regular file; empty when it cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as stream:
            return stream.read(size)
    except OSError:
        return b""


def refuse_pickle(path: Path) -> None:
    """Refuse by content, whatever the suffix says: a pickle stream (``pickle``, ``joblib``, old ``torch.save``), a zip
    that holds one (``torch.save``), a ``.npy`` of Python objects.

    Raises:
        UnsafeFile: the file is one of these.
    """
    start = head(path, 256)
    pickled = len(start) >= 2 and start[0] == 0x80 and 2 <= start[1] <= 5
    if start.startswith(b"PK"):
        with contextlib.suppress(*BAD_ZIP), zipfile.ZipFile(path) as archive:
            pickled = any(name.endswith((".pkl", ".pickle")) for name in archive.namelist())
    if start.startswith(b"\x93NUMPY"):
        pickled = b"'|O'" in start
    if pickled:
        raise UnsafeFile(f"{path.name} is or holds a pickle: loading one can run any code, so none is ever loaded")


def check_size(declared: int, limit: int, what: str) -> int:
    """Return ``declared`` if it may be allocated.

    Raises:
        UnsafeFile: more than ``limit`` bytes.
    """
    if declared > limit:
        raise UnsafeFile(f"{what} declares {declared:,} bytes, more than max_bytes = {limit:,}")
    return declared


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def manifest(root: Path, paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Name relative to the root, SHA-256 and size of each file, for the provenance."""
    return [
        {"name": path.relative_to(root).as_posix(), "sha256": sha256(path), "size_bytes": path.stat().st_size}
        for path in paths
    ]
