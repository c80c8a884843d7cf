"""The code location. Loads without data, GPU, network or secrets."""

from __future__ import annotations

import logging
from pathlib import Path

import dagster as dg

from assets import Workspace
from contracts.errors import PalimpsestError
from pipelines.components import AuditedModel
from pipelines.home import state_home
from pipelines.launchers import PipesLauncher
from pipelines.operations.definitions import operations_definitions
from pipelines.subjects import attributes_of, subject_files


@dg.resource(description="State folder, data in memory, job launcher.")
def workspace(_: dg.InitResourceContext) -> Workspace:
    return Workspace(state_home(), launcher=PipesLauncher())


def executor() -> dg.ExecutorDefinition:
    """A process a step, forked from one that has imported the heavy modules."""
    return dg.multiprocess_executor.configured(
        {"max_concurrent": 2, "start_method": {"forkserver": {"preload_modules": ["torch", "polars", "assets.graph"]}}}
    )


def subject_or_error(name: str, path: Path, home: Path) -> dg.Definitions:
    """A subject's definitions. Of a plan that cannot be loaded (a module of the user's that is gone, a field out of
    range) an asset that says why: the other subjects keep their schedules and sensors."""
    try:
        return dg.build_defs_for_component(AuditedModel.resolve_from_dict(attributes_of(path, home)))
    except (PalimpsestError, dg.DagsterError, ValueError, OSError) as error:
        why = f"{path} cannot be loaded: {error}"
        logging.getLogger("palimpsest").error(why)
        key = dg.AssetKey([name, "plan", "cannot_be_loaded"])
        return dg.Definitions(assets=[dg.AssetSpec(key, description=why, group_name=f"{name.replace('-', '_')}_plan")])


@dg.definitions
def defs() -> dg.Definitions:
    home = state_home()
    parts = [subject_or_error(name, path, home) for name, path in subject_files(home).items()]
    parts.append(operations_definitions())
    return dg.Definitions.merge(*parts, dg.Definitions(resources={"workspace": workspace}, executor=executor()))
