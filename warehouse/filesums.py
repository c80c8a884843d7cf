"""SHA-256 of files that were read before: they are not read again while the file system says that nothing happened to
them.

    told by   size, time of the last change of its content (mtime), of any change to it (ctime), inode, device; in ns
    kept in   ``home/warehouse/filesums.json``: lost, cut or changed, it is made anew by reading the files

``os.utime`` sets mtime back, not ctime. What changed only a moment ago is not remembered: the clock of a file system
ticks, every few ms or (where its times have no fraction of a second) every two seconds, and two changes within a tick
look like one. What no file system tells is a disk that gives back other bytes than were written: whoever loads an
artefact, and ``palimpsest verify``, read the file itself.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from contracts.digests import canonical_json, digest
from warehouse import fsio

NAME = "filesums.json"
_TICK_NS, _COARSE_NS, _SECOND_NS = 50_000_000, 2_500_000_000, 1_000_000_000
_LARGE = 64 << 20  # bytes


class FileSums:
    """See the module. Without a path, what was read is remembered by this object alone.

    Args:
        path: the file of sums that were found before.
        keeps: :meth:`keep` writes it; else it is read only.
    """

    def __init__(self, path: Path | None = None, *, keeps: bool = True) -> None:
        self._path, self._keeps = path, keeps
        self._known: dict[str, tuple[str, str]] | None = None  # what the file system says -> SHA-256, where it lies
        self._is_new = False

    def sha256(self, file: Path) -> str:
        """SHA-256 (64 hex digits) of a file's content.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        said, changed_ns = _said(file)
        known = self._all()
        if said in known:
            return known[said][0]
        started_ns = time.time_ns()
        found = fsio.sha256_of(file)
        if _said(file)[0] == said and started_ns - changed_ns > _tick(changed_ns):
            known[said] = (found, str(file))
            self._is_new = True
        return found

    def note(self, file: Path, sha256: str) -> None:
        """Remember the SHA-256 of a file that was just written. Only of a large one, since the clock has to tick first:
        a small one is read again in less time."""
        said, changed_ns = _said(file)
        if file.stat().st_size < _LARGE:
            return
        wait_ns = changed_ns + _tick(changed_ns) - time.time_ns()
        if wait_ns > _COARSE_NS:  # the clock was set back: its times tell nothing
            return
        time.sleep(max(0, wait_ns) / _SECOND_NS)
        if _said(file)[0] == said:
            self._all()[said] = (sha256, str(file))
            self._is_new = True

    def keep(self) -> None:
        """Write down what was read since, beside what others wrote down meanwhile; files that are gone are left out.

        A place that cannot be written changes nothing: the files are read again.
        """
        if self._path is None or not self._keeps or not self._is_new:
            return
        merged = {**_read(self._path), **self._all()}
        files = {said: list(told) for said, told in merged.items() if _still(said, Path(told[1]))}
        text = canonical_json({"files": files, "check": digest(files)})
        with suppress(OSError):
            fsio.write_cache(self._path, text.encode("utf-8"))
        self._known, self._is_new = {said: (told[0], told[1]) for said, told in files.items()}, False

    def _all(self) -> dict[str, tuple[str, str]]:
        if self._known is None:
            self._known = _read(self._path) if self._path is not None else {}
        return self._known


def _said(file: Path) -> tuple[str, int]:
    """What the file system says of a file, as one text, and when anything of it changed last (ns since 1970)."""
    found = file.stat()
    parts = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)
    return ":".join(map(str, parts)), found.st_ctime_ns


def _tick(changed_ns: int) -> int:
    """How long after a change another one surely gets another time."""
    return _COARSE_NS if changed_ns % _SECOND_NS == 0 else _TICK_NS


def _still(said: str, file: Path) -> bool:
    with suppress(OSError):
        return _said(file)[0] == said
    return False


def _read(path: Path) -> dict[str, tuple[str, str]]:
    try:
        kept = json.loads(path.read_bytes())
        if kept["check"] != digest(kept["files"]):
            return {}
        return {str(said): (str(sha256), str(file)) for said, (sha256, file) in kept["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}  # not there, or not whole: the files are read
