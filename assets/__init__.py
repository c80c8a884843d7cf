"""Dagster assets and checks: thin wiring of the libraries to the warehouse, one file a stage. No maths, no SQL."""

from assets.graph import subject_stages
from assets.stage import Stage, materialize, to_asset
from assets.workspace import Launcher, Workspace

__all__ = ["Launcher", "Stage", "Workspace", "materialize", "subject_stages", "to_asset"]
