"""Configurations: frozen dataclasses whose fields carry their legal range, checked in this one place.

@dataclass(frozen=True, kw_only=True, slots=True)
class SgdConfig(Config):
    lr: float = param(0.05, gt=0, le=10, doc="learning rate")
    epochs: int = param(30, ge=1, le=100_000)
    schedule: str = param("cosine", choices=("cosine", "constant"))

SgdConfig.from_mapping({"lr": 0.1})     # unknown fields and wrong types are refused, naming what is allowed
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

from contracts import digests
from contracts.errors import ConfigError

_MISSING = dataclasses.MISSING
REFERENCES = {
    "score": "a stored score of the plan",
    "split": "a stored split of the plan",
    "analysis": "an analysis of the plan",
    "dataset": "a made data set of the plan",
    "unlearner": "a registered unlearner",
    "attack": "a registered attack",
    "curator": "a registered curator",
    "maker": "a registered maker of data sets",
    "source": "a registered source",
    "recipe": "a registered recipe",
}
"""What a field may name, whatever the field is called."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ref:
    """The type of a field whose value, or each of whose values, is a name of this kind; "" names nothing.

    Attributes:
        kind: a word of ``REFERENCES``.
    """

    kind: str

    def __post_init__(self) -> None:
        if self.kind not in REFERENCES:
            raise ConfigError(f"a field cannot refer to {self.kind!r}; it can to: {', '.join(REFERENCES)}")


class Reference(NamedTuple):
    """A name that a configuration gives: ``path`` is the field's, as ``search.unlearner`` or ``methods[1]``."""

    path: str
    kind: str
    name: str


def param(
    default: Any = _MISSING,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[Any, ...] | None = None,
    unit: str = "",
    doc: str = "",
    ref: str = "",
    search: tuple[float, float] | None = None,
    added: bool = False,
) -> Any:
    """A dataclass field with a legal range. Without a default the field is required.

    For tuple-valued fields the range applies to every element.

    Args:
        ref: what the field names, a word of ``REFERENCES``: a name that stands for nothing is refused when the plan
            loads.
        search: of the one number of a method that is tuned first: the range that its paper searched, on a logarithmic
            grid.
        added: the field is younger than what is stored: canonical JSON leaves it out where it has its default, so that
            the digest of a configuration which does not use it stays what it was.
    """
    meta: dict[str, Any] = {"ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices, "unit": unit, "doc": doc}
    meta |= {"ref": Ref(ref) if ref else None, "search": search, digests.ADDED: added}
    if isinstance(default, (list, dict, set)):
        factory = type(default)
        initial = default
        return dataclasses.field(default_factory=lambda: factory(initial), metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Base of every configuration: ranges are checked on construction, equality and digest are by value.

    As it stands it is the configuration of a method that has no fields.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _coerce(getattr(self, field.name), hints[field.name], f"{type(self).__name__}.{field.name}")
            _check_range(value, field, type(self).__name__)
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Rules between fields; a subclass raises :class:`ConfigError` here."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any] | None) -> Self:
        """Build from plain data (YAML, JSON). Unknown and missing fields are refused by name."""
        values = {} if values is None else values
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.__name__} takes a mapping of fields, not {type(values).__name__} {values!r}")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(map(str, values)) - set(fields))
        if unknown:
            raise ConfigError(
                f"{cls.__name__} has no field {', '.join(unknown)}; it has: {', '.join(fields) or '(none)'}"
            )
        required = [
            n for n, f in fields.items() if f.default is _MISSING and f.default_factory is _MISSING and n not in values
        ]
        if required:
            raise ConfigError(f"{cls.__name__} needs {', '.join(required)}")
        return cls(**{str(k): v for k, v in values.items()})

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of all fields."""
        return digests.digest(self)


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Accept what YAML and JSON can say for ``hint`` and nothing looser (no '3' for 3, no 1 for True)."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for arm in args:
            if arm is type(None) and value is None:
                return None
        arms = [arm for arm in args if arm is not type(None)]
        if len(arms) == 1:
            return _coerce(value, arms[0], where)
        for arm in arms:
            try:
                return _coerce(value, arm, where)
            except ConfigError:
                continue
        raise ConfigError(f"{where} = {value!r} is not one of {_name(hint)}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} = {value!r} is not a list")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_coerce(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) != len(args):
            raise ConfigError(f"{where} = {value!r} needs exactly {len(args)} elements")
        return tuple(_coerce(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, args, strict=True)))
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {value!r} is not a mapping")
        return dict(value)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{where} = {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if isinstance(hint, type) and issubclass(hint, Config):
        try:
            return value if isinstance(value, hint) else hint.from_mapping(value)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{where} = {value!r} is not a number")
        if not math.isfinite(value):
            raise ConfigError(f"{where} = {value!r} is not finite")
        return float(value)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{where} = {value!r} is not a whole number")
        return value
    if isinstance(hint, type) and not isinstance(value, hint):
        raise ConfigError(f"{where} = {value!r} is not a {hint.__name__}")
    return value


def _check_range(value: Any, field: dataclasses.Field[Any], owner: str) -> None:
    meta = field.metadata
    for item in value if isinstance(value, tuple) else (value,):
        if item is None:
            continue
        ok = (
            (meta.get("ge") is None or item >= meta["ge"])
            and (meta.get("gt") is None or item > meta["gt"])
            and (meta.get("le") is None or item <= meta["le"])
            and (meta.get("lt") is None or item < meta["lt"])
            and (meta.get("choices") is None or item in meta["choices"])
        )
        if not ok:
            raise ConfigError(f"{owner}.{field.name} = {item!r} is outside its allowed range: {allowed_range(field)}")


def references(config: Config, path: str = "") -> Iterator[Reference]:
    """Every name that a configuration, or one inside it, gives in a field that refers to something.

    Args:
        path: put before the path of each field.

    >>> list(references(_Names(score="el2n", inside=(_Names(score="grand"),))))
    [Reference(path='score', kind='score', name='el2n'), Reference(path='inside[0].score', kind='score', name='grand')]
    """
    for field in dataclasses.fields(config):
        ref, value = field.metadata.get("ref"), getattr(config, field.name)
        many = isinstance(value, tuple)
        for i, item in enumerate(value if many else (value,)):
            where = f"{path}{'.' if path else ''}{field.name}{f'[{i}]' if many else ''}"
            name = getattr(item, "name", None) if isinstance(item, Config) else item
            if ref is not None and isinstance(name, str) and name:
                yield Reference(where, ref.kind, name)
            if isinstance(item, Config):
                yield from references(item, where)


def allowed_range(field: dataclasses.Field[Any]) -> str:
    """The range of a field in words, for messages and for the generated documentation.

    >>> allowed_range(dataclasses.fields(_Example)[0])
    '> 0 and <= 10'
    """
    meta = field.metadata
    if meta.get("choices") is not None:
        return "one of " + ", ".join(map(repr, meta["choices"]))
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    text = " and ".join(f"{sign} {meta[key]:g}" for key, sign in signs if meta.get(key) is not None)
    return text + (f" {meta['unit']}" if meta.get("unit") else "") or "any"


def _name(hint: Any) -> str:
    return " | ".join(getattr(a, "__name__", str(a)) for a in typing.get_args(hint))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Example(Config):
    lr: float = param(0.05, gt=0, le=10)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Names(Config):
    score: str = param("", ref="score")
    inside: tuple[Config, ...] = param(())
