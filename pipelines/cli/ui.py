"""``palimpsest ui``: Dagster's web interface on this machine, and nowhere else."""

from __future__ import annotations

import os
import socket
from typing import Annotated

import typer

from contracts.errors import ConfigError
from pipelines.cli.terminal import console, state_to_write
from pipelines.home import ROOT, dagster_home


def ui(
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="of 127.0.0.1")] = 3000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="a name under which a proxy on this machine is reached; may be repeated"),
    ] = None,
) -> None:
    """The Dagster interface of this state folder, with its daemon. It has no log-in: it listens on 127.0.0.1 only and
    refuses what other pages in the same browser ask of it. For others put a proxy with a log-in before it
    (docs/nginx.conf)."""
    from pipelines.ui_server import HOSTS, serve

    for name in allow_host or ():
        if not name or "," in name or "/" in name or (":" in name and not name.startswith("[")):
            raise ConfigError(f"--allow-host {name!r} is not a name: write audit.example.org, without scheme and port")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"--port {port} cannot be listened on: {error.strerror}; give another") from None
    os.environ[HOSTS] = ",".join(allow_host or ())
    state_to_write()
    dagster_home()
    console.print(f"http://127.0.0.1:{port}  (Ctrl-C ends it)", highlight=False)
    serve(port=port, root=ROOT)
