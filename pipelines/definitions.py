"""The code location. Loads without data, GPU, network or secrets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from assets import Workspace
from contracts.errors import ConfigError, PalimpsestError
from pipelines.components import AuditedModel
from pipelines.home import state_home
from pipelines.launchers import PipesLauncher
from pipelines.operations.definitions import operations_definitions
from pipelines.subjects import BUILT_IN, attributes_of, subject_files, twin_of


@dg.resource(description="State folder, data in memory, job launcher.")
def workspace(_: dg.InitResourceContext) -> Workspace:
    return Workspace(state_home(), launcher=PipesLauncher())


def executor() -> dg.ExecutorDefinition:
    """A process a step, forked from one that has imported the heavy modules."""
    return dg.multiprocess_executor.configured(
        {"max_concurrent": 2, "start_method": {"forkserver": {"preload_modules": ["torch", "polars", "assets.graph"]}}}
    )


def subject_or_error(name: str, path: Path, home: Path, *, before: Sequence[str] = ()) -> dg.Definitions:
    """A subject's definitions. Of a plan that cannot be loaded (a module of the user's that is gone, a field out of
    range, a name too much like one of those ``before``) an asset that says why: the other subjects keep their
    schedules and sensors."""
    try:
        if twin := twin_of(name, before):
            raise ConfigError(f"it and {twin!r} differ in - and _ alone, which names of jobs do not; rename its folder")
        return dg.build_defs_for_component(AuditedModel.resolve_from_dict(attributes_of(path, home)))
    except (PalimpsestError, dg.DagsterError, ValueError, OSError) as error:
        why = f"{path} cannot be loaded: {error}"
        logging.getLogger("palimpsest").error(why)
        key = dg.AssetKey([name, "plan", "cannot_be_loaded"])
        return dg.Definitions(assets=[dg.AssetSpec(key, description=why, group_name=f"{name.replace('-', '_')}_plan")])


@dg.definitions
def defs() -> dg.Definitions:
    home = state_home()
    files = subject_files(home)
    names = sorted(files, key=lambda name: (not files[name].is_relative_to(BUILT_IN), name))
    parts = [subject_or_error(name, files[name], home, before=names[:at]) for at, name in enumerate(names)]
    parts.append(operations_definitions())
    return dg.Definitions.merge(*parts, dg.Definitions(resources={"workspace": workspace}, executor=executor()))
