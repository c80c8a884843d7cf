"""Blocks every network connection that leaves this machine, for the test run and for the processes it starts.

``tests/conftest.py`` calls :func:`install` and puts this folder on ``PYTHONPATH``, where Python imports a module of
this name at start-up: a child process is therefore guarded too. Unix sockets and the loopback stay open (Dagster
talks to its own servers over them). Only Python sockets can be seen from here, not those of C libraries.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

attempts: list[str] = []
_LOCAL_NAMES = {"", "localhost", "ip6-localhost"}


class NetworkBlocked(RuntimeError):
    """Not an OSError on purpose: libraries swallow those as 'no network today'."""


def is_local(host: Any) -> bool:
    """Whether ``host`` is this machine: loopback or unspecified address, localhost, or our own name."""
    if host is None:
        return True
    name = host.decode() if isinstance(host, (bytes, bytearray)) else str(host)
    if name.lower() in _LOCAL_NAMES | {socket.gethostname().lower()}:
        return True
    try:
        address = ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse(what: str) -> None:
    attempts.append(what)
    raise NetworkBlocked(f"network access from the test run: {what}")


def install() -> None:
    """Patch the socket module, once a process."""
    if getattr(socket, "_palimpsest_guard", False):
        return
    socket._palimpsest_guard = True  # type: ignore[attr-defined]
    for name in ("connect", "connect_ex", "sendto"):
        _guard_method(name)
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        _guard_lookup(name)


def _guard_method(name: str) -> None:
    original = getattr(socket.socket, name)

    def guarded(self: socket.socket, *args: Any) -> Any:
        target = args[-1]
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(target, tuple) and not is_local(target[0]):
            _refuse(f"{name} to {target[0]}:{target[1]}")
        return original(self, *args)

    setattr(socket.socket, name, guarded)


def _guard_lookup(name: str) -> None:
    original = getattr(socket, name)

    def guarded(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_local(host):
            _refuse(f"look-up of {host}")
        return original(host, *args, **kwargs)

    setattr(socket, name, guarded)


if __name__ == "sitecustomize":
    install()
