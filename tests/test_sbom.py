"""``make sbom``: tools in an environment of their own; what is installed is written, whatever is known against it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BOM = "cyclonedx-py"


def stub(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def sbom(folder: Path, audit: str) -> subprocess.CompletedProcess[str]:
    """Run the target in ``folder`` with stand-ins for both tools, which write down how they were called.

    Args:
        audit: what the stand-in for pip-audit does; ``$out`` is the file that it was told to write.
    """
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    log = folder / "calls"
    stub(
        folder / "tools/bin/cyclonedx-py",
        f'echo "$0 $*" >> {log}; while [ "$1" != --output-file ]; do shift; done; echo {{}} > "$2"',
    )
    stub(
        folder / "tools/bin/pip-audit",
        f'echo "$0 $*" >> {log}; while [ "$1" != --output ]; do shift; done; out="$2"; {audit}',
    )
    for stamp in ("venv/.stamp-runtime", "tools/.stamp"):
        (folder / stamp).parent.mkdir(exist_ok=True)
        (folder / stamp).touch()
    command = ["make", "--no-print-directory", "sbom", "VENV=venv", "SBOM_VENV=tools"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("audit", "ends", "said"),
    [
        ("exit 0", 0, "no weakness is known"),
        ('echo "| torch | CVE-2099-1 |" > "$out"; exit 1', 2, "CVE-2099-1"),
        (
            'echo "torch | not found on PyPI and could not be audited: torch" > "$out"',
            2,
            "could not be asked of 1 versions",
        ),
        ('echo "Temporary failure in name resolution" >&2; exit 1', 2, "could not be asked"),
    ],
)
def test_the_list_is_written_and_the_end_says_what_is_known(tmp_path: Path, audit: str, ends: int, said: str) -> None:
    done = sbom(tmp_path, audit)
    assert done.returncode == ends and said in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "sbom.cdx.json").read_text() == "{}\n"
    if said == "could not be asked":
        assert "name resolution" in (tmp_path / "tools" / "audit.log").read_text()
        assert done.stdout.count("\n") == 2, "one sentence, no trace"
    bom, audited = (tmp_path / "calls").read_text().splitlines()
    assert bom.startswith("tools/bin/cyclonedx-py environment ") and bom.endswith(" venv/bin/python")
    assert "--requirement constraints.txt" in audited and "--disable-pip" in audited


def test_the_tools_are_never_installed_where_the_program_runs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    installing = [line for line in makefile.splitlines() if "pip install" in line and "cyclonedx" in line]
    assert len(installing) == 1 and installing[0].lstrip("\t@").startswith("$(SBOM_VENV)/bin/python -m pip install")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    names = {
        re.split(r"[^a-z0-9]", line.lower().replace("_", "-").replace("-", ""), maxsplit=1)[0]
        for line in declared + pinned
    }
    assert not names & {"cyclonedxbom", "pipaudit", "rfc3987syntax"}
    assert "/.venv-sbom" in f"/{(ROOT / '.gitignore').read_text()}".replace("\n", "/")
