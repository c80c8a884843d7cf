"""``load``: a source by name, configured and validated. ``detect``: which source a user's file or folder needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contracts.errors import ConfigError, DataError, NotApplicable, PalimpsestError
from contracts.methods import source
from sources.example_set import ExampleSet
from sources.files import refuse_pickle


def load(name: str, config: Mapping[str, Any], *, seed: int = 0) -> ExampleSet:
    """Read a data set and refuse it unless it can be audited.

    Args:
        name: registered source ("sklearn", "idx", "npz", "table", "image_folder", or a plugin's).
        config: fields of the source's configuration.
        seed: of the test split, where the data brings none of its own.

    Raises:
        UnknownName: no such source; the known ones are listed.
        ConfigError: a field is unknown, missing or out of range.
        DataError, UnsafeFile: the data are refused; see ``ExampleSet.validate`` and the source.
    """
    method = source.get(name)
    examples = method(config=method.spec.config.from_mapping(config), seed=seed).validate()
    if examples.task not in method.spec.tasks:
        raise NotApplicable(f"source {name!r} gave {examples.task}, but declares {', '.join(method.spec.tasks)}")
    if not (examples.split == "test").any():
        raise DataError(f"{examples.name} has no test example; leave the split out to have one drawn")
    return examples


def detect(path: Path, *, label: str | None = None, owner: str | None = None) -> tuple[str, dict[str, Any]]:
    """The source and its configuration for a user's file or folder, by content.

    Args:
        path: file or folder.
        label: name of the label column or array; guessed when one is called label, target, class or y.
        owner: name of the owner column or array.

    Raises:
        DataError: nothing fits (the message lists what was tried and what each needs), or more than one does.
        ConfigError: the label is needed, or is named where the data has no such thing.
        UnsafeFile: a pickle.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist")
    path = path.resolve()
    refuse_pickle(path)
    known = [m for m in source if m.spec.detects is not None and m.spec.from_path is not None]
    fits = [m for m in known if m.spec.detects(path)]
    if len(fits) != 1:
        tried = "; ".join(f"{m.spec.name}: {m.spec.doc}" for m in known)
        found = " and ".join(m.spec.name for m in fits) or "no known kind of data"
        raise DataError(f"{path} looks like {found}. Tried: {tried}")
    method = fits[0]
    try:
        config = dict(method.spec.from_path(path, label, owner))
        method.spec.config.from_mapping(config)
    except PalimpsestError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path} looks like {method.spec.name} but cannot be read: {error}") from error
    return method.spec.name, config


def no_columns(kind: str, where: str, *, label: str | None, owner: str | None) -> None:
    """Refuse --label and --owner where the data has no named columns.

    Raises:
        ConfigError: one of them was given.
    """
    for option, value in (("--label", label), ("--owner", owner)):
        if value is not None:
            raise ConfigError(f"{option} {value!r} names nothing in {kind}: {where}")
