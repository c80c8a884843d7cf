"""A small audit without Dagster: a state folder in a second, for tests that read, break or copy it."""

from __future__ import annotations

from pathlib import Path

from assets import Workspace, subject_stages
from assets.stage import materialize
from contracts.subject import Subject
from warehouse import Warehouse

PLAN = {
    "subject": "wine",
    "source": {"name": "sklearn", "config": {"dataset": "wine", "test_fraction": 0.5}},
    "model": {"name": "mlp", "config": {"hidden": [4]}},
    "recipe": {"name": "supervised", "config": {"lr": 0.1, "batch": 32, "epochs": 3}},
    "early": {"seeds": 1, "epoch": 1},
    "ensemble": {"num_models": 4, "block": 4},
    "scores": ["el2n", "label_quality"],
    "attacks": ["loss"],
}


def run(home: Path, plan: Subject, run_id: str = "r1") -> Warehouse:
    """Every stage of the plan, in this process."""
    workspace = Workspace(home, launcher=None)  # type: ignore[arg-type]  # nothing is unlearned
    for stage in subject_stages(plan):
        materialize(stage, workspace, run_id=run_id, request=None, context=None)
    return workspace.warehouse
