"""``type: pipelines.components.AuditedModel``: one YAML file makes a subject's whole audit graph."""

from __future__ import annotations

from typing import Annotated, Any

import dagster as dg

from contracts.subject import Subject
from pipelines.build import subject_definitions


class AuditedModelScaffolder(dg.Scaffolder):
    """``dg scaffold defs pipelines.components.AuditedModel NAME``: a plan that loads as it is, on data that are at hand."""

    def scaffold(self, request: dg.ScaffoldRequest) -> None:
        dg.scaffold_component(
            request,
            {
                "subject": request.target_path.name,
                "title": "Handwritten digits: put your own source, model and recipe here",
                "source": {"name": "sklearn", "config": {"dataset": "digits"}},
                "model": {"name": "mlp", "config": {"hidden": [128]}},
                "recipe": {"name": "supervised", "config": {"lr": 0.1, "momentum": 0.9, "batch": 64, "epochs": 40}},
                "scores": ["el2n", "near_duplicates"],
                "attacks": ["loss", "lira_online"],
            },
        )


_MODEL = dg.Resolver(
    lambda context, value: context.resolve_value(value), model_field_name="model", model_field_type=str | dict[str, Any]
)


@dg.scaffold_with(AuditedModelScaffolder)
class AuditedModel(dg.Component, dg.Model, dg.Resolvable):
    """One data set + model + recipe under audit: its assets, checks, jobs, schedule and sensor.

    A method is named by its registered name, or by ``{name: ..., config: {...}}``; every field is checked against its
    allowed range when the definitions load, before any work starts.
    """

    subject: str
    title: str = ""
    source: str | dict[str, Any]
    # "model" in YAML; in Python that is the name of a method of every Dagster component
    architecture: Annotated[str | dict[str, Any], _MODEL]
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
        plan = self.model_dump()
        plan["model"] = plan.pop("architecture")
        return subject_definitions(Subject.from_mapping(plan))
