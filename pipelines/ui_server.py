"""Dagster's web server behind :class:`pipelines.ui_guard.Guard`, and ``dagster dev`` with it.

``python -m pipelines.ui_server`` takes the options of ``dagster-webserver``; ``PALIMPSEST_UI_HOSTS`` holds further
names under which it is reached, with commas between. ``dagster dev`` has no place for that: it starts
``python -m dagster_webserver`` as a child. :func:`serve` runs it with another child, and stops where it starts none
that it knows: then a new version of Dagster would show the interface without a guard.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contracts.errors import ConfigError
from pipelines.ui_guard import App, Guard

HOSTS = "PALIMPSEST_UI_HOSTS"
_BARE, _DAEMON = "dagster_webserver", "dagster._daemon"


def guarded_app(*args: Any, **kwargs: Any) -> App:
    """``dagster_webserver.app.create_app_from_workspace_process_context`` behind the guard; same arguments."""
    from dagster_webserver.app import create_app_from_workspace_process_context

    hosts = filter(None, (name.strip() for name in os.environ.get(HOSTS, "").split(",")))
    return Guard(create_app_from_workspace_process_context(*args, **kwargs), hosts)


def serve(*, port: int, root: Path) -> None:
    """Run ``dagster dev`` over the definitions of ``root`` on 127.0.0.1, its web server behind the guard, until it is
    interrupted."""
    from dagster._cli import dev

    warnings.filterwarnings(
        "ignore", message="Function `dev_command` is superseded"
    )  # by one without a place for the guard
    dev.open_ipc_subprocess = _guarding(dev.open_ipc_subprocess)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    asked = ["-m", "pipelines.definitions", "-d", str(root), "--host", "127.0.0.1", "--port", str(port)]
    dev.dev_command.main(asked, standalone_mode=False)


def _guarding(start: Any) -> Any:
    def started(parts: Sequence[str], **kwargs: Any) -> Any:
        module = parts[2] if len(parts) > 2 and parts[1] == "-m" else ""
        if module == _DAEMON:
            return start(parts, **kwargs)
        if module != _BARE:
            raise ConfigError(f"this version of Dagster starts {' '.join(parts[:3])!r}, which has no guard around it")
        return start([*parts[:2], __name__, *parts[3:]], **kwargs)

    return started


def main() -> None:
    """``dagster-webserver`` with the guard around its application."""
    from dagster_webserver import cli

    cli.create_app_from_workspace_process_context = guarded_app  # type: ignore[assignment]
    cli.main()


if __name__ == "__main__":
    main()
