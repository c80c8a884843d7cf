"""Plans of earlier versions: each is brought to the next one by a function of plain data, until it is of this
version's.

    schema_version   absent in plans written before there was one: 0
    0 -> 1           nothing changes but the number

A version of the schema comes with the release that has its number: version N is read by palimpsest 0.N and later.
Whoever changes what a plan may say raises ``CURRENT``, adds the step to ``MIGRATIONS`` and a test of it, and says so in
the changelog.
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
        ConfigError: it is of a later version; says which release reads it. Or its version is no whole number from 0.
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
    return {FIELD: CURRENT, **body}


def _installed() -> str:
    try:
        return f" {metadata.version('palimpsest-audit')}"
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        return ""
