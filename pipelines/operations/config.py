"""``operations.yaml`` of a state folder."""

from __future__ import annotations

from pathlib import Path

import yaml

from contracts.errors import ConfigError
from contracts.operations import FILE, Operations


def operations_of(home: Path) -> Operations:
    """How this state folder is operated; the defaults where it says nothing.

    Raises:
        ConfigError: the file is not readable YAML, or names a field or a value that there is not; names the file.
    """
    path = home / FILE
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Operations()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if said is not None and not isinstance(said, dict):
        raise ConfigError(f"{path} must hold fields: anchors, alerts, drift, pruning, auditors")
    try:
        return Operations.from_mapping(said or {})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
