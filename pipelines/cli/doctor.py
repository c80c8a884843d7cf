"""``palimpsest doctor``: versions, devices, state folder; what is missing and the command that fixes it."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import typer
from rich.table import Table

from pipelines.cli.terminal import console
from pipelines.home import dagster_home, state_home

FASHION = Path("/usr/share/datasets/fashion-mnist")
NEEDED = (
    "torch",
    "numpy",
    "polars",
    "duckdb",
    "dagster",
    "dagster-webserver",
    "great-expectations",
    "scikit-learn",
    "captum",
    "faiss-cpu",
    "safetensors",
    "matplotlib",
)


def doctor() -> None:
    """What works here, what is missing, and the command that fixes it. Exit 0 when nothing needed is missing."""
    table = Table("what", "found", "fix", title_justify="left")
    ok = True

    def line(what: str, found: str, fix: str = "", *, needed: bool = True) -> None:
        nonlocal ok
        ok &= not fix or not needed
        table.add_row(what, found, fix)

    for name in NEEDED:
        try:
            line(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            line(name, "missing", f"pip install -c constraints.txt {name}")
    import torch

    line("CUDA", torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none; the CPU path is used")
    line("threads", str(torch.get_num_threads()))
    line("faiss build", _faiss())
    home = state_home()
    free = shutil.disk_usage(home).free / 2**30
    line("state folder", f"{home} ({free:.0f} GiB free)", "" if free > 1 else "set PALIMPSEST_HOME to a disk with room")
    line(
        "DAGSTER_HOME",
        str(dagster_home()),
        "" if (dagster_home() / "dagster.yaml").exists() else "export DAGSTER_HOME=<folder with dagster.yaml>",
    )
    line("ledger", *_ledger(home))
    found = (FASHION / "train-images-idx3-ubyte.gz").exists()
    line(
        "Fashion-MNIST",
        str(FASHION) if found else "missing",
        "" if found else "apt-get install dataset-fashion-mnist",
        needed=False,
    )
    chromium = shutil.which("chromium")
    line("Chromium (tests)", chromium or "missing", "" if chromium else "apt-get install chromium", needed=False)
    console.print(table)
    raise typer.Exit(0 if ok else 1)


def _faiss() -> str:
    try:
        import faiss
    except ImportError:
        return "missing"
    return "GPU" if hasattr(faiss, "StandardGpuResources") else "CPU"


def _ledger(home: Path) -> tuple[str, str]:
    from warehouse import Warehouse

    result = Warehouse.open(home).ledger.verify()
    return str(result), "" if result.ok else "restore the warehouse from a backup; then palimpsest verify --ledger"
