"""What the web interface refuses before Dagster sees it.

Dagster's web server has no log-in and answers whatever reaches it: a mutation sent by GET, a request that a foreign
page makes in the person's own browser, and one under a foreign name that was made to point to this machine (DNS
rebinding). Any page that the person has open could start and delete runs. :class:`Guard` stands around the application
and lets through only

    Host     one, and a name that was allowed: localhost, 127.0.0.1, [::1] and those given
    Origin   the page that asks is one of this server's own, for every method and for web sockets
    Fetch    what a browser says came from another site is let through only where a person follows a link to a page
    GraphQL  by POST with the media type application/json, which no foreign page can send without being asked first

and forbids others to frame a page (a click that a person is led to make is made under this server's own origin).
Programs send neither Origin nor Sec-Fetch-Site and are let through: they act for whoever started them.

It is no log-in. Who reaches the port from this machine, or through a proxy that lets them, may do everything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_PORTS = {"http": 80, "https": 443}
_HEADERS = {
    b"x-frame-options": b"DENY",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"x-content-type-options": b"nosniff",
}


class Guard:
    """An ASGI application that answers 403 in the place of another one where :func:`refusal` finds a reason.

    Args:
        app: the application behind it.
        hosts: names besides those of this machine under which it is reached, as a proxy sends them (no port).
    """

    def __init__(self, app: App, hosts: Iterable[str] = ()) -> None:
        self.app, self.hosts = app, LOCAL | {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        why = refusal(scope, self.hosts)
        if not why:
            await self.app(scope, receive, _hardened(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": why})
        else:
            body = f"refused: {why}\n".encode()
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers + list(_HEADERS.items())})
            await send({"type": "http.response.body", "body": body})


def refusal(scope: Scope, hosts: Iterable[str]) -> str:
    """Why a request is not let through, in words; "" if it is.

    Args:
        scope: ASGI scope of an HTTP request or of the opening of a web socket.
        hosts: the names that are allowed, in lower case.
    """
    given: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        given.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip())
    if any(len(given.get(name, ())) > 1 for name in ("host", "origin", "sec-fetch-site", "content-type")):
        return "a header that may be given once is given twice"
    one = {name: values[0] for name, values in given.items()}
    scheme = {"ws": "http", "wss": "https"}.get(scope.get("scheme", "http"), scope.get("scheme", "http"))
    here = _origin(f"{scheme}://{one.get('host', '')}")
    if here is None or here[1] not in hosts:
        return f"the name {one.get('host', '')!r} is not one of this server's: palimpsest ui --allow-host NAME adds one"
    if "origin" in one and _origin(one["origin"]) != here:
        return f"a page of {one['origin']!r} may not ask {scheme}://{one['host']} (a proxy sends X-Forwarded-Proto)"
    method = scope.get("method", "GET")
    runs = scope["path"].rstrip("/").endswith("/graphql")
    if one.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        followed = (one.get("sec-fetch-mode"), one.get("sec-fetch-dest")) == ("navigate", "document")
        if not followed or method not in ("GET", "HEAD") or runs:
            return "another site's page asks"
    if runs and scope["type"] == "http":
        if method in ("GET", "HEAD") and parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True):
            return "GraphQL is answered by POST only"
        if method == "POST" and one.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return "GraphQL is answered to application/json only"
    return ""


def _origin(text: str) -> tuple[str, str, int] | None:
    """(scheme, host, port) of an origin; None if it is none, such as "null"."""
    try:
        parts = urlsplit(text)
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None
    if not parts.hostname or port is None or parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.scheme, parts.hostname.rstrip("."), port


def _hardened(send: Send) -> Send:
    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", ())}
            more = [(name, value) for name, value in _HEADERS.items() if name not in there]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return sent
