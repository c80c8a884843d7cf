"""Subjects as YAML: the built-in ones under ``pipelines/defs``, a user's own under ``$PALIMPSEST_HOME/subjects``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from contracts.errors import ConfigError, UnknownName
from contracts.migrations import migrated
from contracts.subject import IMPORTED, OUTPUTS, Subject

COMPONENT = "pipelines.components.AuditedModel"
BUILT_IN = Path(__file__).resolve().parent / "defs"
_IMPORTED = "imported.yaml"


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


def twin_of(name: str, others: Iterable[str]) -> str:
    """The one of ``others`` whose name differs from this one in - and _ alone: Dagster, whose jobs know no -, would
    refuse both and all other subjects with them. "" where there is none."""
    return next((o for o in others if o != name and o.replace("-", "_") == name.replace("-", "_")), "")


def attributes_of(path: Path, home: Path | None = None) -> dict[str, Any]:
    """The ``attributes`` of a subject's file; given a state folder, with the scores that were imported for it there.

    Raises:
        ConfigError: not YAML, or not of this component's type.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from None
    if not isinstance(document, dict) or document.get("type") != COMPONENT:
        raise ConfigError(f"{path} must start with 'type: {COMPONENT}'")
    attributes = migrated(document.get("attributes") or {}, where=str(path))
    brought = _imported(path.parent.name, home) if home else {}
    if brought:
        own = [s for s in attributes.get("scores") or () if (s if isinstance(s, str) else s.get("name")) not in brought]
        attributes["scores"] = [*own, *({"name": name, "config": config} for name, config in brought.items())]
    return attributes


def import_score(subject: str, score: str, config: dict[str, Any], home: Path) -> Path:
    """Add a score that was imported to the subject's plan, in a file of its own beside it; another import replaces
    it."""
    from warehouse import fsio

    path = home / "subjects" / subject / _IMPORTED
    text = "# Scores imported for this subject: they are part of its plan, after its own scores.\n"
    text += yaml.safe_dump({**_imported(subject, home), score: config})
    fsio.make_folder(path.parent)
    fsio.write_bytes(path, text.encode("utf-8"))
    return path


def _imported(subject: str, home: Path) -> dict[str, dict[str, Any]]:
    """score -> its configuration, of the scores that were imported for a subject."""
    path = home / "subjects" / subject / _IMPORTED
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(config, dict) for config in found.values()):
        raise ConfigError(f"{path} must give each imported score its configuration; it is written by import_issues")
    return found


def imported_for(home: Path) -> tuple[dict[str, list[str]], list[str]]:
    """``imported/NAME`` -> the subjects whose plans name that checkpoint; and the subjects whose plans cannot be
    read."""
    named: dict[str, list[str]] = {}
    unread = []
    for subject, path in subject_files(home).items():
        try:
            model = attributes_of(path).get("model")
        except (ConfigError, OSError):
            unread.append(subject)
            continue
        place = model.get("checkpoint") if isinstance(model, dict) else None
        if isinstance(place, str) and place.startswith(IMPORTED):
            named.setdefault(place, []).append(subject)
    return named, unread


def load_subject(name: str, home: Path) -> Subject:
    """The subject of that name, checked.

    Raises:
        UnknownName: with the known subjects.
        ConfigError: a field is unknown, missing or out of range, or the name differs from its folder's.
    """
    files = subject_files(home)
    if name not in files:
        raise UnknownName("subject", name, files)
    subject = Subject.from_mapping(attributes_of(files[name], home))
    if subject.subject != name:
        raise ConfigError(f"{files[name]} declares subject {subject.subject!r}; its folder is named {name!r}")
    return subject


def write_subject(subject: Subject, home: Path, *, comment: str, replace: bool = False) -> Path:
    """Write a subject's file and return its path.

    Args:
        replace: it may take the place of the user's own subject of that name, never of a built-in one.

    Raises:
        ConfigError: a subject of that name, or of one that differs in - and _ alone, exists.
    """
    files = subject_files(home)
    if twin := twin_of(subject.subject, files):
        raise ConfigError(
            f"subject {subject.subject!r} and {twin!r} differ in - and _ alone, which names of jobs do not"
        )
    if subject.subject in files and not (replace and files[subject.subject].is_relative_to(home)):
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
