"""Dagster components of this project."""

from pipelines.components.audited_model import AuditedModel

__all__ = ["AuditedModel"]
