"""``palimpsest import-checkpoint``: a legacy ``.pt`` file into a safetensors artifact, through a child process."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contracts.identity import check_name
from contracts.subject import IMPORTED
from pipelines.cli.terminal import console, state_to_write

if TYPE_CHECKING:
    import numpy as np

    from warehouse import Artifact


def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="a .pt or .pth file with a state dict")],
    name: Annotated[str, typer.Option("--name", help="name of the stored checkpoint")],
) -> None:
    """Import a legacy checkpoint. It is read with weights_only=True in a child process; there is no other way in."""
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
    """Keep imported arrays as ``imported/NAME`` in the state, on record in the ledger."""
    from warehouse import Warehouse

    w = Warehouse.open(home)
    artifact = w.artifacts.save(f"{IMPORTED}{name}", arrays, {"imported_from": file.name})
    w.ledger.append("import", {"outputs": [artifact.output()]})
    return artifact
