from __future__ import annotations
from typing import Any
import dagster as dg

class AuditedModel(dg.Component, dg.Model, dg.Resolvable):
    """x"""
    subject: str
    source: str | dict[str, Any]
    unlearning: dict[str, Any] | None = None
    scores: list[str | dict[str, Any]] = []

    def build_defs(self, context):
        print(self)
        return dg.Definitions()
