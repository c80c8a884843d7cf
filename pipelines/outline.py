"""The stages of a plan as plain data, remembered beside the state, so that a run with nothing to do loads no method.

``assets.subject_stages`` is a function of the plan and of the code. What it said is kept with a digest of both and is
believed only while they are what they were:

    code = every file of this program's packages (content), every installed distribution (name, version, time of its
           installation), the version of Python

It is not kept where something else has a say: a method of another package or of the running script, a model of the
user's own code. The digest of the data is kept for sources that say of themselves that they read nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from assets.current import Declaration
from contracts.digests import canonical_json, digest, plain
from contracts.errors import PalimpsestError
from contracts.subject import Subject
from pipelines.home import DISTRIBUTION, ROOT
from warehouse import fsio

if TYPE_CHECKING:
    from assets import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """What a plan comes to.

    Attributes:
        stages: every stage of the subject, upstream ones first.
        data_digest: of the data, where these cannot change without the plan or the code; "" where they have to be read.
    """

    stages: tuple[Declaration, ...]
    data_digest: str = ""

    def outside(self, plan: Subject, workspace: Workspace, what: str = "data") -> str | None:
        """Digest of the plan's "data", or of its given "model" or "references", as they are now; None when they cannot
        be read (the stage that reads them says why)."""
        if what == "data" and self.data_digest:
            return self.data_digest
        try:
            return workspace.outside(plan, what)
        except (PalimpsestError, OSError):
            return None


def outline_of(plan: Subject, workspace: Workspace) -> Outline:
    """The plan's stages: as remembered where that still holds, else from the methods themselves.

    Raises:
        UnknownName: the plan names a method that is not registered.
        ConfigError: a method's configuration is outside its range.
    """
    code = code_digest()
    path = workspace.home / "outlines" / f"{plan.subject}.json"
    remembered = _recalled(path, plan, code)
    if remembered is not None:
        return remembered
    workspace.progress(0, 0, f"loading the libraries for {plan.subject}")
    from assets import subject_stages

    made = Outline(stages=tuple(stage.declaration for stage in subject_stages(plan)))
    if _only_ours(plan):
        if _self_contained(plan) and (found := made.outside(plan, workspace)):
            made = dataclasses.replace(made, data_digest=found)
        _keep(path, plan, code, made)
    return made


def _recalled(path: Path, plan: Subject, code: str) -> Outline | None:
    try:
        kept = json.loads(path.read_bytes())
        body = kept["outline"]
        if kept["plan"] != digest(plan) or kept["code"] != code or kept["check"] != digest(body):
            return None
        stages = tuple(
            Declaration(**{**s, "path": tuple(s["path"]), "deps": tuple(tuple(d) for d in s["deps"])})
            for s in body["stages"]
        )
        return Outline(stages=stages, data_digest=str(body["data_digest"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or not whole: it is made anew


def _keep(path: Path, plan: Subject, code: str, made: Outline) -> None:
    """Remember it, unless the code on disk is no longer that which was loaded."""
    code_digest.cache_clear()
    if code_digest() != code:
        return
    body = plain(made)
    fsio.make_folder(path.parent)
    fsio.write_bytes(
        path,
        canonical_json({"plan": digest(plan), "code": code, "outline": body, "check": digest(body)}).encode("utf-8"),
    )


def _only_ours(plan: Subject) -> bool:
    """Whether every method there is belongs to this program, and the model too."""
    from contracts.methods import REGISTRIES

    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")} if _in_source_tree() else _top_level()
    methods = [method.function for registry in REGISTRIES for method in registry]
    return ":" not in plan.model.name and all(f.__module__.partition(".")[0] in ours for f in methods)


def _self_contained(plan: Subject) -> bool:
    from contracts.methods import source

    return source.get(plan.source.name).spec.self_contained


@cache
def code_digest() -> str:
    """64 hex digits that change with this program's files, the installed distributions and Python."""
    state = hashlib.sha256(sys.version.encode())
    for path in _code_files():
        state.update(f"\n{path}\n".encode())
        state.update(hashlib.sha256(path.read_bytes()).digest())
    for name, installed_ns in _distributions():
        state.update(f"\n{name} {installed_ns}".encode())
    return state.hexdigest()


def _in_source_tree() -> bool:
    return (ROOT / "pyproject.toml").is_file()


def _code_files() -> list[Path]:
    """Every file of this program's packages but the compiled ones, in a fixed order."""
    if _in_source_tree():
        packages = [path.parent for path in ROOT.glob("*/__init__.py")]
        found = [Path(folder) / name for package in packages for folder, _, names in os.walk(package) for name in names]
    else:
        found = [Path(str(file.locate())) for file in metadata.files(DISTRIBUTION) or ()]
    return sorted(path for path in found if path.suffix != ".pyc")


def _top_level() -> set[str]:
    return {file.parts[0] for file in metadata.files(DISTRIBUTION) or () if file.parts[-1] == "__init__.py"}


def _distributions() -> list[tuple[str, int]]:
    """(folder of its metadata, time of installation in ns) of every distribution on Python's path."""
    found: set[tuple[str, int]] = set()
    for place in {os.path.realpath(place) for place in sys.path}:
        try:
            with os.scandir(place) as entries:
                found |= {
                    (entry.path, entry.stat().st_mtime_ns)
                    for entry in entries
                    if entry.name.endswith((".dist-info", ".egg-info"))
                }
        except OSError:
            continue  # no folder: an archive, or not there
    return sorted(found)
