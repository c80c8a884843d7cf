"""A kind of task that nobody here knows, brought by another package with all that goes with it: the battery, and a
whole audit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ("tasks", "sources", "recipes", "scores", "unlearners", "attacks")

BATTERY = """
import dataclasses
import numpy as np
from my_counts import counts
from palimpsest.testing import check_method, make_world
from recipes.training import Trainer

def spoil(data, victim, end):
    y = data.y.copy()
    y[data.example_id == victim] = -1 if end == "below" else -2
    return dataclasses.replace(data, y=y)

config = counts.AdamConfig(epochs=20)
world = make_world(
    counts.make_counts(120, 0),
    trainer=Trainer(recipe="adam_all", build=counts.small_network, config=config),
    fitting=dataclasses.replace(config, epochs=150),
    spoil=spoil,
)
for method in (counts.Counts, counts.adam_all, counts.surprise, counts.there_and_back, counts.surprised_less):
    check_method(method, world)
check_method(counts.poisson_counts)

from contracts.methods import score, unlearner, attack
for registry, name in ((score, "memorization"), (score, "grand"), (score, "worst_case_forget"), (unlearner, "finetune"),
                       (unlearner, "gradient_ascent"), (attack, "lira_online"), (attack, "rmia_online")):
    check_method(registry.get(name), world)
"""

AUDIT = """
import sys
from pathlib import Path
from in_process import InProcess
from assets import Workspace, subject_stages
from assets.stage import materialize
from contracts.subject import Subject

home = Path(sys.argv[1])
subject = Subject.from_mapping({
    "subject": "counts",
    "source": {"name": "poisson_counts", "config": {"num": 160}},
    "model": {"name": "mlp", "config": {"hidden": [16]}},
    "recipe": {"name": "adam_all", "config": {"epochs": 200}},
    "early": {"seeds": 2, "epoch": 20},
    "ensemble": {"num_models": 8, "block": 4},
    "scores": ["surprise", "memorization", "grand", "worst_case_forget"],
    "splits": [{"name": "random", "method": "random_fraction", "config": {"fraction": 0.2}}],
    "analyses": [{"name": "exposure", "config": {"fpr_caps": [0.05]}}, "influence"],
    "unlearning": {"split": "random", "methods": ["there_and_back", "finetune"], "seeds": 1},
    "attacks": ["loss", "lira_online", "rmia_online", "surprised_less", "entropy"],
})
workspace = Workspace(home, launcher=InProcess())
for stage in subject_stages(subject):
    if not stage.per_request:
        materialize(stage, workspace, run_id="r", request=None, context=None)
w = workspace.warehouse
quality = w.query("SELECT train_quality, train_loss FROM models.checkpoints WHERE role = 'target'").row(0)
assert 0 < quality[0] < 1, quality
mean = w.query("SELECT avg(value) FROM scores.latest WHERE score = 'surprise'").item()
assert abs(mean - quality[1]) < 1e-6, (mean, quality)
assert w.query("SELECT count(*) FROM scores.worst_case_forget").item() == 80
assert w.query("SELECT count(*) FROM scores.grand WHERE grand > 0").item() == 80
attacks = set(w.query("SELECT DISTINCT attack FROM audits.attack_reports WHERE audited = 'target'")["attack"])
assert attacks == {"loss", "lira_online", "rmia_online", "surprised_less"}, attacks
refused = w.query("SELECT sentence FROM audits.findings WHERE what = 'attack/entropy'")["sentence"]
assert refused.str.contains("class logits").all() and len(refused), refused
runs = set(w.query("SELECT DISTINCT method FROM unlearning.runs")["method"])
assert runs == {"retrain", "none", "there_and_back", "finetune"}, runs
verdicts = set(w.query("SELECT verdict FROM audits.findings")["verdict"])
assert verdicts and verdicts <= {"pass", "fail", "inconclusive"}, verdicts
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder as pip would leave it: the package, and entry points for each kind of method."""
    site = tmp_path / "site"
    (site / "my_counts").mkdir(parents=True)
    (site / "my_counts" / "__init__.py").touch()
    shutil.copy(Path(__file__).parent / "counts_package" / "counts.py", site / "my_counts" / "counts.py")
    info = site / "my_counts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-counts\nVersion: 1.0\n")
    points = "".join(f"[palimpsest.{group}]\ncounts = my_counts.counts\n" for group in GROUPS)
    (info / "entry_points.txt").write_text(points)
    return site


def run(program: str, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(site)])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.journey
def test_everything_of_the_package_passes_the_battery_and_so_do_our_methods_on_its_task(site: Path) -> None:
    done = run(BATTERY, site)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.journey
def test_a_whole_audit_of_it_runs_through(site: Path, tmp_path: Path) -> None:
    home = tmp_path / "state"
    home.mkdir()
    done = run(AUDIT, site, str(home))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
