"""Subjects as YAML: the built-in ones under ``pipelines/defs``, a user's own under ``$PALIMPSEST_HOME/subjects``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from contracts.errors import ConfigError, UnknownName
from contracts.subject import OUTPUTS, Subject

COMPONENT = "pipelines.components.AuditedModel"
BUILT_IN = Path(__file__).resolve().parent / "defs"


def subject_files(home: Path) -> dict[str, Path]:
    """name -> ``defs.yaml``, in the order of the names; a user's subject of a built-in name is refused.

    Raises:
        ConfigError: two files for one name.
    """
    found: dict[str, Path] = {}
    for folder in (BUILT_IN, home / "subjects"):
        for path in sorted(folder.glob("*/defs.yaml")):
            if path.parent.name in found:
                raise ConfigError(
                    f"subject {path.parent.name!r} is declared twice: {found[path.parent.name]} and {path}"
                )
            found[path.parent.name] = path
    return dict(sorted(found.items()))


def attributes_of(path: Path) -> dict[str, Any]:
    """The ``attributes`` of a subject's file.

    Raises:
        ConfigError: not YAML, or not of this component's type.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from None
    if not isinstance(document, dict) or document.get("type") != COMPONENT:
        raise ConfigError(f"{path} must start with 'type: {COMPONENT}'")
    return dict(document.get("attributes") or {})


def load_subject(name: str, home: Path) -> Subject:
    """The subject of that name, checked.

    Raises:
        UnknownName: with the known subjects.
        ConfigError: a field is unknown, missing or out of range, or the name differs from its folder's.
    """
    files = subject_files(home)
    if name not in files:
        raise UnknownName("subject", name, files)
    subject = Subject.from_mapping(attributes_of(files[name]))
    if subject.subject != name:
        raise ConfigError(f"{files[name]} declares subject {subject.subject!r}; its folder is named {name!r}")
    return subject


def write_subject(subject: Subject, home: Path, *, comment: str) -> Path:
    """Write a new subject's file and return its path.

    Raises:
        ConfigError: a subject of that name exists.
    """
    files = subject_files(home)
    if subject.subject in files:
        raise ConfigError(f"subject {subject.subject!r} exists already: {files[subject.subject]}")
    from contracts.digests import plain
    from warehouse import fsio

    attributes = {k: v for k, v in plain(subject).items() if v not in (None, [], {})}
    attributes["model"] = {k: v for k, v in attributes["model"].items() if v not in ("", {})}
    if subject.outputs_only:
        attributes = {k: v for k, v in attributes.items() if k not in ("recipe", "early")} | {"model": OUTPUTS}
    text = f"# {comment}\n" + yaml.safe_dump(
        {"type": COMPONENT, "attributes": attributes}, sort_keys=False, allow_unicode=True, width=100
    )
    path = home / "subjects" / subject.subject / "defs.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    fsio.write_bytes(path, text.encode("utf-8"))
    return path
