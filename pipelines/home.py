"""Where state lives and where Dagster finds its configuration."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Read by OpenMP once, when torch is loaded: threads that wait must sleep, or two processes on two cores fight.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def state_home() -> Path:
    """``$PALIMPSEST_HOME``, by default ``.palimpsest`` in the working folder; made when it is missing."""
    home = Path(os.environ.get("PALIMPSEST_HOME") or ".palimpsest").expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PALIMPSEST_HOME"] = str(home)
    return home


def dagster_home() -> Path:
    """``$DAGSTER_HOME``, by default the folder with this project's ``dagster.yaml``; its storage is under the state folder."""
    home = Path(os.environ.get("DAGSTER_HOME") or ROOT).resolve()
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    return home
