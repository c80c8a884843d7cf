"""``type: pipelines.components.AuditedModel``: one YAML file makes a subject's whole audit graph."""

from __future__ import annotations

from typing import Any

import dagster as dg

from contracts.subject import Subject
from pipelines.build import subject_definitions


class AuditedModel(dg.Component, dg.Model, dg.Resolvable):
    """One data set + model + recipe under audit: its assets, checks, jobs, schedule and sensor.

    A method is named by its registered name, or by ``{name: ..., config: {...}}``; every field is checked against its
    allowed range when the definitions load, before any work starts.
    """

    subject: str
    title: str = ""
    source: str | dict[str, Any]
    model: str | dict[str, Any]
    recipe: str | dict[str, Any] = ""
    seed: int = 0
    device: str = "auto"
    early: dict[str, Any] = {}
    ensemble: dict[str, Any] = {}
    scores: list[str | dict[str, Any]] = []
    analyses: list[str | dict[str, Any]] = []
    splits: list[dict[str, Any]] = []
    unlearning: dict[str, Any] | None = None
    attacks: list[str | dict[str, Any]] = []
    thresholds: dict[str, Any] = {}
    budget_min: float | None = None
    schedule: str | None = "0 6 * * 1"
    owners: list[str] = ["team:privacy"]

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return subject_definitions(Subject.from_mapping(self.model_dump()))
