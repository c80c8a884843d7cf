"""``palimpsest import-checkpoint``: a legacy ``.pt`` file into a safetensors artifact, through a child process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contracts.identity import check_name
from pipelines.cli.terminal import console, state_to_write


def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="a .pt file with a state dict")],
    name: Annotated[str, typer.Option("--name", help="name of the stored checkpoint")],
) -> None:
    """Import a legacy checkpoint. It is read with weights_only=True in a child process; there is no other way in."""
    from recipes import import_checkpoint as read_legacy
    from warehouse import Warehouse

    check_name(name, kind="checkpoint")
    arrays = read_legacy(file)
    w = Warehouse.open(state_to_write())
    artifact = w.artifacts.save(f"imported/{name}", arrays, {"imported_from": file.name})
    w.ledger.append("import", {"outputs": [artifact.output()]})
    console.print(f"{len(arrays)} arrays stored as {artifact.name} (sha256 {artifact.sha256[:16]}...)", highlight=False)
