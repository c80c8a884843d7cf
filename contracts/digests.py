"""Canonical JSON and SHA-256: the digests by which configurations, code and results are recognised."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

from contracts.errors import InvalidInput

ADDED = "added"  # in the metadata of a field that is younger than what is stored; see ``contracts.params.param``


def plain(value: Any) -> Any:
    """Reduce dataclasses, enums, tuples, sets and paths to JSON's own types. Floats must be finite.

    A field marked ``ADDED`` is left out where it has its default.

    Raises:
        InvalidInput: a value that has no canonical JSON form (NaN, an object, bytes).
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput(f"{value!r} has no canonical JSON form; use None for 'not known'")
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if not _unused(value, f)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Set):
        return sorted((plain(v) for v in value), key=str)
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(v) for v in value]
    raise InvalidInput(f"a {type(value).__name__} has no canonical JSON form")


def _unused(value: Any, field: dataclasses.Field[Any]) -> bool:
    return bool(field.metadata.get(ADDED)) and getattr(value, field.name) == field.default


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, UTF-8 kept, no NaN.

    >>> canonical_json({"b": 1, "a": (1, 2.5)})
    '{"a":[1,2.5],"b":1}'
    """
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order; unrelated parts give unrelated seeds.

    >>> derive_seed("ensemble", 0, 1) == derive_seed("ensemble", 0, 1) != derive_seed("ensemble", 1, 0)
    True
    """
    return int.from_bytes(hashlib.sha256(canonical_json(list(parts)).encode()).digest()[:8], "big") >> 1
