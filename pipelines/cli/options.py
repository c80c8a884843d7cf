"""The options of a command as keyword arguments of a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from contracts.errors import ConfigError


def checked(command: Callable[..., Any], given: Mapping[str, Any], *, besides: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments, which are all parameters of ``command``.

    Args:
        besides: parameters that are given otherwise.

    Raises:
        ConfigError: one is not; lists those that are.
    """
    known = [name for name in inspect.signature(command).parameters if name not in besides]
    if unknown := [name for name in given if name not in known]:
        raise ConfigError(f"{command.__name__} has no option {', '.join(unknown)}; it has: {', '.join(known)}")
    return dict(given)
