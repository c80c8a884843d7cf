"""``palimpsest import-checkpoint``: a legacy ``.pt`` file into a safetensors artifact, through a child process; which
there are, and taking out one that nothing needs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from contracts.errors import ConfigError, StateError, UnknownName
from contracts.identity import check_name
from contracts.subject import IMPORTED
from pipelines.cli.terminal import console, state_to_read, state_to_write

if TYPE_CHECKING:
    import numpy as np

    from warehouse import Artifact, ArtifactStore


def import_checkpoint(
    file: Annotated[Path | None, typer.Argument(help="a .pt or .pth file with a state dict")] = None,
    name: Annotated[str | None, typer.Option("--name", help="name of the stored checkpoint")] = None,
    list_: Annotated[bool, typer.Option("--list", help="what was imported, and which plans name it")] = False,
    remove: Annotated[
        str | None, typer.Option("--remove", metavar="NAME", help="take out one that no plan names")
    ] = None,
) -> None:
    """Import a legacy checkpoint. It is read with weights_only=True in a child process; there is no other way in.

    Or list what was imported, or remove one of them.
    """
    if [file is not None or name is not None, list_, remove is not None].count(True) != 1:
        raise ConfigError("give FILE with --name NAME, or --list, or --remove NAME")
    if list_:
        _list(state_to_read())
        return
    if remove is not None:
        _remove(remove.removeprefix(IMPORTED), state_to_write())
        return
    if file is None or name is None:
        raise ConfigError("FILE and --name NAME go together: which file, and under which name it is kept")
    check_name(name, kind="checkpoint")
    arrays = read_legacy(file)
    artifact = store(arrays, name, file=file, home=state_to_write())
    size = sum(a.size for a in arrays.values())
    console.print(
        f"{len(arrays)} arrays with {size:,} numbers stored as {artifact.name} (sha256 {artifact.sha256[:16]}...)",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"Next: [bold]palimpsest init NAME --data PATH --model MODULE:CALLABLE --checkpoint {artifact.name}[/]",
        soft_wrap=True,
    )


def read_legacy(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a ``.pt`` file, read by the guarded child process.

    Raises:
        InvalidInput, UnsafeFile, JobFailed: as ``recipes.import_checkpoint``.
    """
    from recipes.import_checkpoint import import_checkpoint as read

    with tempfile.TemporaryDirectory(prefix="palimpsest-import-") as folder:
        return read(file, output=Path(folder) / "arrays.safetensors")


def store(arrays: Mapping[str, np.ndarray], name: str, *, file: Path, home: Path) -> Artifact:
    """Keep imported arrays as ``imported/NAME`` in the state, on record in the ledger.

    Raises:
        ConfigError: as :func:`refuse_taken`.
    """
    from warehouse import Warehouse

    w = Warehouse.open(home)
    refuse_taken(w.artifacts, name, arrays)
    artifact = w.artifacts.save(f"{IMPORTED}{name}", arrays, {"imported_from": file.name})
    w.ledger.append("import", {"outputs": [artifact.output()]})
    return artifact


def refuse_taken(artifacts: ArtifactStore, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Nothing, where ``imported/NAME`` is free or holds these very arrays: plans name it, and must not find another
    model there.

    Raises:
        ConfigError: it holds others.
    """
    from recipes.checkpoints import arrays_digest

    place = f"{IMPORTED}{name}"
    if artifacts.exists(place) and arrays_digest(artifacts.load(place)[0]) != arrays_digest(arrays):
        raise ConfigError(
            f"{place} is another checkpoint already: give another name, or first palimpsest import-checkpoint "
            f"--remove {name}"
        )


def _list(home: Path) -> None:
    from pipelines.subjects import imported_for
    from warehouse import Warehouse

    artifacts = Warehouse.existing(home).artifacts
    found = [place for place in artifacts.names() if place.startswith(IMPORTED)]
    if not found:
        console.print("nothing was imported", highlight=False)
        return
    named, unread = imported_for(home)
    table = Table("checkpoint", "bytes", "sha256", "named by the plan of", box=None)
    for place in found:
        stored = artifacts.describe(place)
        table.add_row(place, f"{stored.size_bytes:,}", stored.sha256[:16], ", ".join(named.get(place, [])) or "none")
    console.print(table)
    for subject in unread:
        console.print(f"The plan of {subject} cannot be read: palimpsest audit {subject} says why.", highlight=False)
    console.print("One that no plan names: palimpsest import-checkpoint --remove NAME", highlight=False)


def _remove(name: str, home: Path) -> None:
    """Take an imported checkpoint out of the state, on record in the ledger.

    Raises:
        UnknownName: nothing of that name was imported.
        StateError: a plan names it, or cannot be read, so that nobody can tell.
    """
    from pipelines.subjects import imported_for
    from warehouse import Warehouse

    check_name(name, kind="checkpoint")
    place, stored = f"{IMPORTED}{name}", Warehouse.existing(home).artifacts
    if not stored.exists(place):
        known = [other.removeprefix(IMPORTED) for other in stored.names() if other.startswith(IMPORTED)]
        raise UnknownName("imported checkpoint", name, known)
    named, unread = imported_for(home)
    if users := named.get(place):
        raise StateError(f"{place} is audited by {', '.join(users)}: name another model.checkpoint in that plan first")
    if unread:
        raise StateError(
            f"the plan of {', '.join(unread)} cannot be read, so it may name {place}: correct it, or take it away"
        )
    w = Warehouse.open(home)
    sha256 = w.artifacts.sha256(place)
    w.ledger.append("remove", {"removed": [place], "sha256": sha256})  # first: killed here, the same command goes on
    w.artifacts.remove(place)
    w.publish()
    console.print(f"{place} is removed (sha256 {sha256[:16]}...)", highlight=False, soft_wrap=True)
