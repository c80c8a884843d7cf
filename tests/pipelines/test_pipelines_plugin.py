"""README's score in one file works as it is printed: as a package of its own, found by its entry point, named in a
plan."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recorded_state import PLAN

import palimpsest
from contracts.subject import Subject
from pipelines.subjects import write_subject

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def printed(tmp_path: Path) -> Path:
    """A folder with the installed package of README's section: its module and the entry point that the text names."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## A new score in one file")[2]
    code = re.search(r"```python\n# (\S+)\n(.*?)```", section, re.DOTALL)
    group = re.search(r"`\[project\.entry-points\.\"([\w.]+)\"\]`", section)
    point = re.search(r"`(\w+) = \"([\w.]+)\"`", section)
    assert code and group and point
    site = tmp_path / "site"
    module = site / code[1]
    module.parent.mkdir(parents=True)
    (module.parent / "__init__.py").touch()
    module.write_text(code[2], encoding="utf-8")
    info = site / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group[1]}]\n{point[1]} = {point[2]}\n")
    return site


@pytest.mark.journey
def test_the_printed_score_is_a_table_of_an_audit(printed: Path, tmp_path: Path) -> None:
    home = tmp_path / "state"
    home.mkdir()
    write_subject(Subject.from_mapping({**PLAN, "scores": ["final_loss"], "attacks": []}), home, comment="a test")
    done = subprocess.run(
        [sys.executable, "-c", "from pipelines.cli import main; main()", "audit", "wine"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(printed)]), "PALIMPSEST_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stored = palimpsest.query("SELECT * FROM scores.latest WHERE score = 'final_loss'", home=home)
    assert stored.height == 89 and set(stored["calls"]) == {"hard"} and (stored["value"] >= 0).all()
    mean = palimpsest.query("SELECT train_loss FROM models.checkpoints", home=home).item()
    np.testing.assert_allclose(stored["value"].mean(), mean, rtol=1e-5)
