"""Plans of earlier versions: each is brought to the next one by a function of plain data, until it is of this
version's.

    schema_version   absent in plans written before there was one: 0
    0 -> 1           nothing changes but the number

A version of the schema comes with the release that has its number: version N is read by palimpsest 0.N and later.
Whoever changes what a plan may say raises ``CURRENT``, adds the step to ``MIGRATIONS`` and a test of it, and says so in
the changelog. A method that has gone is not put in another's place unasked: whoever names it is told what to write
(``GONE``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from contracts.errors import ConfigError

CURRENT = 1
FIELD = "schema_version"
Plan = dict[str, Any]


def _named(plan: Plan) -> Plan:
    """A plan of version 0 says the same in version 1."""
    return plan


MIGRATIONS: dict[int, Callable[[Plan], Plan]] = {0: _named}
"""From each version to the next: plain data in, plain data out, the field ``schema_version`` left out."""
GONE: dict[tuple[str, str], str] = {
    ("analyses", "qualification"): "leaderboard does its work; its field sets was splits, and seeds (3 or more) was "
    "trials; without methods it takes every registered one, so name those of unlearning.methods to keep to them",
}
"""(field of a plan, name of a method that has gone) -> what to write instead."""


def reader_of(version: int) -> str:
    """The first release that reads plans of a version.

    >>> reader_of(1)
    '0.1'
    """
    return f"0.{max(version, 1)}"


def migrated(plan: Mapping[str, Any], *, where: str = "") -> Plan:
    """The plan in this version's words, its ``schema_version`` among them; a current one as it is.

    Args:
        plan: attributes of a subject, plain data as YAML says them.
        where: the file, for messages.

    Raises:
        ConfigError: it is of a later version; says which release reads it. Or its version is no whole number from 0, or
            it names a method that has gone; says what to write instead.
    """
    version = plan.get(FIELD, 0)
    at = f"{where}: " if where else ""
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise ConfigError(f"{at}{FIELD} = {version!r} is not a whole number from 0 to {CURRENT}")
    if version > CURRENT:
        raise ConfigError(
            f"{at}the plan has {FIELD} {version}, and this palimpsest{_installed()} reads up to {CURRENT}; palimpsest "
            f"{reader_of(version)} or later reads it: pip install --upgrade palimpsest-audit"
        )
    body = {name: value for name, value in plan.items() if name != FIELD}
    for step in range(version, CURRENT):
        try:
            body = MIGRATIONS[step](body)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"{at}the plan of {FIELD} {version} cannot be brought to {step + 1}: {error}") from error
    _refuse_gone(body, at)
    return {FIELD: CURRENT, **body}


def _refuse_gone(body: Plan, at: str) -> None:
    for (where, name), instead in GONE.items():
        listed = body.get(where)
        for i, entry in enumerate(listed if isinstance(listed, list | tuple) else ()):
            if name == (entry.get("name") if isinstance(entry, Mapping) else entry):
                raise ConfigError(f"{at}{where}[{i}]: {name} is gone: {instead}")


def _installed() -> str:
    try:
        return f" {metadata.version('palimpsest-audit')}"
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        return ""
