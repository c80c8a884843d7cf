"""Dagster assets and checks: thin wiring of the libraries to the warehouse, one file a stage. No maths, no SQL.

The names below are imported when they are first used: a run that has nothing to do needs none of the libraries behind
them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assets.dagster_view import to_asset
    from assets.graph import subject_stages
    from assets.stage import Stage, materialize
    from assets.workspace import Launcher, Workspace

_MODULES = {
    "subject_stages": "graph",
    "Stage": "stage",
    "materialize": "stage",
    "to_asset": "dagster_view",
    "Launcher": "workspace",
    "Workspace": "workspace",
}
__all__ = ["Launcher", "Stage", "Workspace", "materialize", "subject_stages", "to_asset"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
