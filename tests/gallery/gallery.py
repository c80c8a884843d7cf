"""An audit of one small subject, stage by stage in this process, with any methods in its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from in_process import InProcess

from assets import Workspace, subject_stages
from assets.current import with_upstream
from assets.stage import materialize
from contracts.requests import ForgetRequest, RequestState
from contracts.subject import Subject


def plan(seed: int, methods: list[str], **changes: Any) -> Subject:
    return Subject.from_mapping(
        {
            "subject": "gallery",
            "source": {"name": "sklearn", "config": {"dataset": "digits", "test_fraction": 0.5}},
            "model": {"name": "mlp", "config": {"hidden": [64]}},
            "recipe": {
                "name": "supervised",
                "config": {"lr": 0.2, "momentum": 0.9, "batch": 64, "epochs": 60, "schedule": "cosine"},
            },
            "seed": seed,
            "ensemble": {"num_models": 48, "block": 16},
            "splits": [{"name": "random", "method": "random_fraction", "config": {"fraction": 0.3}}],
            "analyses": [
                {"name": "shadow_unlearning", "config": {"methods": methods, "relearn_steps": 1, "canaries": 10}}
            ],
            "unlearning": {"split": "random", "methods": methods, "seeds": 3, "decides": "retrain"},
            "attacks": ["loss", "lira_online", "rmia_online"],
            "thresholds": {},
            **changes,
        }
    )


def audit(home: Path, subject: Subject, *, only: str = "") -> Workspace:
    """All stages of the scheduled audit, without Dagster; or ``only`` one ("audits/findings") and what it stands on."""
    workspace = Workspace(home, launcher=InProcess(), publish_every_s=1e9)
    stages = [stage for stage in subject_stages(subject) if not stage.per_request]
    if only:
        wanted = with_upstream([s.declaration for s in stages], [tuple(only.split("/"))])
        stages = [stage for stage in stages if stage.declaration in wanted]
    for stage in stages:
        materialize(stage, workspace, run_id="r", request=None, context=None)
    return workspace


def run_request(workspace: Workspace, subject: Subject, name: str, **selector: Any) -> None:
    """A verified forget request through all of its stages."""
    now = {"received_at": "2026-01-01T00:00:00+00:00", "due_at": "2026-02-01T00:00:00+00:00"}
    workspace.warehouse.requests.add(ForgetRequest(request_id=name, subject=subject.subject, **now, **selector))
    workspace.warehouse.requests.advance(name, RequestState.VERIFIED, note="a test")
    for stage in subject_stages(subject):
        if stage.per_request:
            materialize(stage, workspace, run_id="r", request=name, context=None)
