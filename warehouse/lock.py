"""One writer at a time: a kernel lock (flock) held only while a transaction lasts.

The kernel drops the lock with the process that held it, however it died: no stale lock, nothing to clean up by hand.
The file's existence means nothing; its content (process id and time of the last holder) only serves messages. Each
acquisition opens its own descriptor, so threads of one process exclude each other too. Not re-entrant.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contracts.errors import LockTimeout, StateError

_held = threading.local()


@contextmanager
def exclusive(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold the lock on ``path`` for the block.

    Raises:
        LockTimeout: another writer held it for longer than ``timeout_s`` seconds; names that writer.
        StateError: this thread holds it already; waiting for itself it would wait for ever.
    """
    held: set[Path] = _held.__dict__.setdefault("paths", set())
    if path in held:
        raise StateError("the warehouse is already open in this thread: use the transaction you are in")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(descriptor, path, timeout_s)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        held.add(path)
        yield
    finally:
        held.discard(path)
        os.close(descriptor)  # releases the lock


def _acquire(descriptor: int, path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    pause_s = 0.001
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() >= deadline:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise LockTimeout(
                f"the warehouse lock {path} was held by process {holder} for more than {timeout_s:g} s; wait for it to "
                "end, or try again"
            )
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.02)
