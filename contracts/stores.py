"""What a long training needs of a disk, without knowing one. ``warehouse.artifacts`` implements it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class CheckpointStore(Protocol):
    """Named sets of arrays with a JSON-able ``meta``; ``save`` is atomic and durable, ``load`` verifies the digest."""

    def save(self, name: str, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
        """Store numpy arrays under ``name`` (replacing an earlier one) and return their SHA-256."""
        ...

    def load(self, name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The arrays and meta of ``name``, or None if there is none. A damaged one raises IntegrityError."""
        ...


class NoStore:
    """Keeps nothing: a training without checkpoints."""

    def save(self, name: str, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
        return ""

    def load(self, name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        return None
