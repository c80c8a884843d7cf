"""``type: pipelines.components.AuditedModel``: one YAML file makes a subject's whole audit graph."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Annotated, Any

import dagster as dg
from pydantic import Field, create_model

from contracts.digests import plain
from contracts.migrations import FIELD as SCHEMA_VERSION
from contracts.params import Config
from contracts.subject import Choice, Subject
from pipelines.build import subject_definitions

MODEL = "architecture"  # "model" in YAML; in Python that is the name of a method of every Dagster component


class AuditedModelScaffolder(dg.Scaffolder):
    """``dg scaffold defs pipelines.components.AuditedModel NAME``: a plan that loads as it is, on data that are at
    hand."""

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


def _as_yaml(hint: Any) -> Any:
    """What YAML may say for a field of the plan: a method by its name or as a mapping, a list for a tuple."""
    if isinstance(hint, type) and issubclass(hint, Choice):
        return str | dict[str, Any]
    if isinstance(hint, type) and issubclass(hint, Config):
        return dict[str, Any]
    if typing.get_origin(hint) is tuple:
        return list[_as_yaml(typing.get_args(hint)[0])]  # type: ignore[misc]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.Union[tuple(_as_yaml(arm) for arm in typing.get_args(hint))]  # noqa: UP007
    return hint


def _fields() -> dict[str, Any]:
    """The component's fields are the plan's: one declaration, with its defaults and its words."""
    hints, found = typing.get_type_hints(Subject), {}
    for field in dataclasses.fields(Subject):
        kind, name = _as_yaml(hints[field.name]), field.name
        if name == "model":
            as_is = dg.Resolver(
                lambda context, value: context.resolve_value(value), model_field_name=name, model_field_type=kind
            )
            kind, name = Annotated[kind, as_is], MODEL
        default = ... if field.default is dataclasses.MISSING else plain(field.default)
        if name == "recipe":
            default = ""
        if name == SCHEMA_VERSION:
            default = 0  # as a plan is read that does not say it
        found[name] = (kind, Field(default, description=field.metadata.get("doc") or None))
    return found


_Plan: Any = create_model("_Plan", __base__=(dg.Model, dg.Resolvable), **_fields())


@dg.scaffold_with(AuditedModelScaffolder)
class AuditedModel(dg.Component, _Plan):
    """One data set + model + recipe under audit: its assets, checks, jobs, schedule and sensor.

    A method is named by its registered name, or by ``{name: ..., config: {...}}``; every field is checked against its
    allowed range when the definitions load, before any work starts.
    """

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        plan = self.model_dump()
        plan["model"] = plan.pop(MODEL)
        return subject_definitions(Subject.from_mapping(plan))
