"""Where state lives and where Dagster finds its configuration."""

from __future__ import annotations

import os
from pathlib import Path

from contracts.errors import ConfigError, NotReady

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ".palimpsest"
DISTRIBUTION = "palimpsest-audit"

# Read by OpenMP once, when torch is loaded: threads that wait must sleep, or two processes on two cores fight.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def state_home(*, make: bool = True) -> Path:
    """The state folder: ``$PALIMPSEST_HOME``, by default ``.palimpsest`` in the working folder.

    Args:
        make: make it when it is missing. Without it a folder that the environment names may be missing.

    Raises:
        ConfigError: it is a file, or lies below one.
        NotReady: the environment names none, there is none in the working folder, and none may be made.
    """
    named = os.environ.get("PALIMPSEST_HOME")
    home = Path(named or DEFAULT).expanduser().resolve()
    where = f"PALIMPSEST_HOME={named}" if named else str(home)
    try:
        if make:
            home.mkdir(parents=True, exist_ok=True)
        elif not named and not home.exists():
            raise NotReady(_nothing_here(home))
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{where} is not a folder, so no state can be kept there; name a folder") from None
    if home.exists() and not home.is_dir():
        raise ConfigError(f"{where} is not a folder, so no state can be kept there; name a folder")
    os.environ["PALIMPSEST_HOME"] = str(home)
    return home


def _nothing_here(home: Path) -> str:
    other = ROOT / DEFAULT
    meant = other if other.is_dir() else Path("/path/to") / DEFAULT
    return (
        f"there is no state in this folder: {home} does not exist, and PALIMPSEST_HOME is not set. Name the state that "
        f"you mean (export PALIMPSEST_HOME={meant}), or make one here (palimpsest audit)"
    )


def dagster_home() -> Path:
    """The folder whose ``dagster.yaml`` this program's runs are recorded by; their storage is under the state folder.

    It is this project's folder, or the one that ``$DAGSTER_HOME`` names if its ``dagster.yaml`` keeps anything under
    ``PALIMPSEST_HOME`` (a copy of this project's, edited). Another Dagster's folder is left alone: see
    :func:`foreign_dagster_home`.
    """
    named = os.environ.get("DAGSTER_HOME")
    home = Path(named).expanduser().resolve() if named and foreign_dagster_home() is None else ROOT
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    return home


def foreign_dagster_home() -> Path | None:
    """The folder that ``$DAGSTER_HOME`` names if it is another Dagster's; None if it names none, or one of this
    program."""
    named = os.environ.get("DAGSTER_HOME")
    if not named:
        return None
    home = Path(named).expanduser().resolve()
    try:
        ours = "PALIMPSEST_HOME" in (home / "dagster.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        ours = False
    return None if ours or home == ROOT else home


def install_command(what: str) -> str:
    """The command that brings a package, or an extra of this distribution (".[notebook]"), here: in a checkout or
    installed."""
    if (ROOT / "pyproject.toml").exists():
        return f"cd {ROOT} && .venv/bin/pip install -c constraints.txt {'-e ' if what.startswith('.') else ''}'{what}'"
    return f"pip install '{what.replace('.', DISTRIBUTION, 1) if what.startswith('.') else what}'"
