"""Tables as data. One :class:`TableSpec` drives the DDL, the Great Expectations suite, the asset check and the docs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from contracts.errors import ConfigError

DType = Literal["int64", "float64", "bool", "str", "timestamp", "json", "floats"]  # floats: a list of float64 a row
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,62}")


def check_identifier(name: str, *, kind: str) -> str:
    """Identifiers that may appear in SQL: lower case, digits, underscore, at most 63, starting with a letter."""
    if not isinstance(name, str) or _IDENTIFIER.fullmatch(name) is None:
        raise ConfigError(
            f"{kind} name {name!r} is not allowed: use a-z, 0-9 and '_', starting with a letter, at most 63"
        )
    return name


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column: what it holds, in which unit, in which range, and what a high value means.

    A ``volatile`` column (a wall time, a clock reading) differs between equal runs and is left out of content digests.
    """

    name: str
    dtype: DType
    doc: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    nullable: bool = False
    direction: str = ""
    choices: tuple[str, ...] = ()
    volatile: bool = False

    def __post_init__(self) -> None:
        check_identifier(self.name, kind="column")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ConfigError(f"column {self.name}: low {self.low} > high {self.high}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSpec:
    """A table of the warehouse. ``key`` names the columns that are unique together within a ``partition``.

    Every stored table also carries ``COMMON`` (subject, run_id, config_digest), which a spec does not repeat.
    ``partition`` names the columns (besides subject) whose values a replace replaces as a whole.
    """

    schema: str
    name: str
    doc: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    partition: tuple[str, ...] = ()
    version: int = 1
    min_rows: int = 0

    def __post_init__(self) -> None:
        check_identifier(self.schema, kind="schema")
        check_identifier(self.name, kind="table")
        names = [c.name for c in self.columns]
        doubled = sorted(
            {n for n in names + [c.name for c in COMMON] if (names + [c.name for c in COMMON]).count(n) > 1}
        )
        if doubled:
            raise ConfigError(f"table {self.full_name}: column {', '.join(doubled)} declared twice")
        missing = sorted((set(self.key) | set(self.partition)) - set(names))
        if missing:
            raise ConfigError(f"table {self.full_name}: key or partition names unknown column {', '.join(missing)}")

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def all_columns(self) -> tuple[Column, ...]:
        return COMMON + self.columns

    def column(self, name: str) -> Column:
        return next(c for c in self.all_columns if c.name == name)


COMMON = (
    Column(name="subject", dtype="str", doc="data set + model + recipe under audit"),
    Column(name="run_id", dtype="str", doc="the run that wrote the row"),
    Column(name="config_digest", dtype="str", doc="SHA-256 of the configuration that made the row"),
)
