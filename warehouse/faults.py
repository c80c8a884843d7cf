"""Named points at which a test stops this process or fails an operation. Outside a test they do nothing.

``PALIMPSEST_FAULT`` arms one point: ``name`` kills the process (SIGKILL) at its first passage, ``name:n`` at the n-th;
``name=EIO``, ``name:n=ENOSPC`` raise that OSError instead. A prefix arms every point below it: ``fsio:7=EIO`` fails
the seventh file operation, whichever it is. ``tests/chaos/points.txt`` lists every name.
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

VARIABLE = "PALIMPSEST_FAULT"
_passages: dict[str, int] = {}


def fault(name: str, path: Path | None = None) -> None:
    """Pass the point ``name``; ``path`` is named in the error that an armed point raises."""
    armed = os.environ.get(VARIABLE)
    if armed:
        _strike(armed, name, path)


def _strike(armed: str, name: str, path: Path | None) -> None:
    point, _, error = armed.partition("=")
    wanted, _, nth = point.partition(":")
    if name != wanted and not name.startswith(wanted + "."):
        return
    _passages[armed] = _passages.get(armed, 0) + 1
    if _passages[armed] != int(nth or 1):
        return
    if error:
        code = getattr(errno, error)
        raise OSError(code, f"{os.strerror(code)} (armed at {name})", None if path is None else str(path))
    os.kill(os.getpid(), signal.SIGKILL)
