"""The code location. Loads without data, GPU, network or secrets."""

from __future__ import annotations

import dagster as dg

from assets import Workspace
from pipelines.components import AuditedModel
from pipelines.home import state_home
from pipelines.launchers import PipesLauncher
from pipelines.subjects import attributes_of, subject_files


@dg.resource(description="State folder, data in memory, job launcher.")
def workspace(_: dg.InitResourceContext) -> Workspace:
    return Workspace(state_home(), launcher=PipesLauncher())


def executor() -> dg.ExecutorDefinition:
    """A process a step, forked from one that has imported the heavy modules."""
    return dg.multiprocess_executor.configured(
        {"max_concurrent": 2, "start_method": {"forkserver": {"preload_modules": ["torch", "polars", "assets.graph"]}}}
    )


@dg.definitions
def defs() -> dg.Definitions:
    home = state_home()
    parts = [
        dg.build_defs_for_component(AuditedModel.resolve_from_dict(attributes_of(path, home)))
        for path in subject_files(home).values()
    ]
    return dg.Definitions.merge(*parts, dg.Definitions(resources={"workspace": workspace}, executor=executor()))
