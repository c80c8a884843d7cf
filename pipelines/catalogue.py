"""Every registered method as plain data: what it is, what it wants and needs, its fields with their ranges, its tables.

Everything is read off the declarations (``contracts.methods``), so what is shown is what the program goes by.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from contracts.digests import plain
from contracts.errors import UnknownName
from contracts.methods import NEEDS, REGISTRIES, VIEWS
from contracts.params import REFERENCES, Config, allowed_range
from contracts.registry import Method
from contracts.tables import Column, TableSpec

_COMMON = {"name", "doc", "source", "version", "config", "needs", "wants", "columns", "tables"}


def every() -> dict[str, list[dict[str, Any]]]:
    """Kind -> its methods, short, by name; the architectures that a plan may name come last."""
    found = {registry.kind: [short(method) for method in registry] for registry in REGISTRIES}
    common = ("name", "doc", "source", "version", "wants", "needs")
    return {**found, "model": [{name: model[name] for name in common} for model in _models()]}


def find(name: str) -> list[dict[str, Any]]:
    """All that is known of the methods of a name; ``kind/name`` asks for one kind.

    Raises:
        UnknownName: there is none; lists the known, and those that are spelt alike.
    """
    kind, _, bare = name.rpartition("/")
    found = [
        whole(registry.kind, registry.get(bare))
        for registry in REGISTRIES
        if bare in registry and kind in ("", registry.kind)
    ]
    found += [model for model in _models() if model["name"] == bare and kind in ("", "model")]
    if not found:
        listed = every()
        groups = [listed[kind]] if kind in listed else listed.values()
        raise UnknownName(kind if kind in listed else "method", bare, {known["name"] for g in groups for known in g})
    return found


def short(method: Method[Any]) -> dict[str, Any]:
    """Name, one line, paper, version, and what it wants of a task and needs of the pipeline."""
    spec = method.spec
    return {
        "name": spec.name,
        "doc": spec.doc,
        "source": spec.source,
        "version": spec.version,
        "wants": list(getattr(spec, "wants", ())),
        "needs": list(getattr(spec, "needs", ())),
    }


def whole(kind: str, method: Method[Any]) -> dict[str, Any]:
    """As :func:`short`, with the words behind ``wants`` and ``needs``, fields, tables and what else the kind
    declares."""
    spec = method.spec
    config = getattr(spec, "config", None)
    return {
        "kind": kind,
        **short(method),
        "wants": {word: VIEWS[word] for word in getattr(spec, "wants", ())},
        "needs": {word: NEEDS[word] for word in getattr(spec, "needs", ())},
        "fields": list(fields(config)) if config is not None else [],
        "tables": [_table(table) for table in _tables(spec)],
        "declares": dict(_declares(spec)),
        "defined_in": f"{method.function.__module__}.{method.function.__qualname__}",
    }


def fields(config: type[Config], path: str = "") -> Iterator[dict[str, Any]]:
    """The fields of a configuration, those of one inside it under ``outer.inner``."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        hint, where = hints[field.name], f"{path}{field.name}"
        if isinstance(hint, type) and issubclass(hint, Config):
            yield from fields(hint, f"{where}.")
            continue
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = field.default_factory() if callable(field.default_factory) else field.default
        ref = field.metadata.get("ref")
        yield {
            "name": where,
            "type": in_words(hint),
            "required": required,
            "default": None if required else plain(default),
            "range": allowed_range(field).removesuffix(f" {field.metadata.get('unit')}"),
            "unit": field.metadata.get("unit", ""),
            "doc": field.metadata.get("doc", ""),
            "names": REFERENCES[ref.kind] if ref else "",
        }


def in_words(hint: Any) -> str:
    """A type as YAML says it.

    >>> in_words(tuple[float, ...]), in_words(int | None), in_words(dict[str, Any])
    ('list of float', 'int or null', 'mapping')
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is tuple:
        inside = args[:1] if args[1:] == (Ellipsis,) else args
        return f"list of {' and '.join(dict.fromkeys(map(in_words, inside)))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(in_words, args))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is dict or hint is dict:
        return "mapping"
    return getattr(hint, "__name__", str(hint))


def _models() -> Iterator[dict[str, Any]]:
    """The built-in architectures: no registry holds them, and a plan may name any module:callable in their place."""
    from recipes.models import MODELS, model_version

    for name, (built, config) in sorted(MODELS.items()):
        yield {
            "kind": "model",
            "name": name,
            "doc": (built.__doc__ or "").partition("\n")[0],
            "source": "",
            "version": model_version(name),
            "wants": {},
            "needs": {},
            "fields": list(fields(config)),
            "tables": [],
            "declares": {},
            "defined_in": f"{built.__module__}.{built.__qualname__}",
        }


def _tables(spec: Any) -> list[TableSpec]:
    own = getattr(spec, "table", None)
    return [own] if isinstance(own, TableSpec) else list(getattr(spec, "tables", ()))


def _table(table: TableSpec) -> dict[str, Any]:
    return {
        "name": table.full_name,
        "doc": table.doc,
        "version": table.version,
        "key": list(table.key),
        "columns": [_column(column) for column in table.columns],
    }


def _column(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "type": column.dtype,
        "unit": column.unit,
        "nullable": column.nullable,
        "doc": column.doc,
    } | {
        "range": ", ".join(column.choices)
        or " and ".join(
            f"{sign} {end:g}" for sign, end in ((">=", column.low), ("<=", column.high)) if end is not None
        ),
        "direction": column.direction,
    }


def _declares(spec: Any) -> Iterator[tuple[str, Any]]:
    """What a kind declares beyond the common part; of a function, whether there is one."""
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if field.name not in _COMMON:
            if field.name == "pictures":
                value = [picture.title for picture in value]
            yield field.name, value is not None if "Callable" in str(field.type) else plain(value)
