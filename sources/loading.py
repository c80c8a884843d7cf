"""``load``: a source by name, configured and validated. ``detect``: which source a user's file or folder needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from contracts.errors import ConfigError, DataError, PalimpsestError
from contracts.methods import Asked, source
from sources.example_set import ExampleSet
from sources.files import refuse_pickle
from sources.unknown import cause


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
    if not (examples.split == "test").any():
        raise DataError(
            f"{examples.name} has no test example; leave the split out (--drop its column) to have one drawn"
        )
    return examples


class Detected(NamedTuple):
    """The source that reads a user's data, its configuration, and for people what is left out or guessed, and why."""

    name: str
    config: dict[str, Any]
    notes: tuple[str, ...]


def detect(path: Path, asked: Asked | None = None) -> Detected:
    """How to read a user's file or folder, by content.

    Args:
        path: file or folder.
        asked: which columns are what, as far as a person said so; a label is guessed where one is called label, target,
            class or y.

    Raises:
        DataError: nothing fits (the message says what the data look like), or more than one source does.
        ConfigError: the label is needed, or something is named that the data does not have.
        UnsafeFile: a pickle.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist")
    path = path.resolve()
    refuse_pickle(path)
    known = [m for m in source if m.spec.detects is not None and m.spec.from_path is not None]
    fits = [m for m in known if m.spec.detects(path)]
    if not fits:
        raise DataError(
            f"{path} is no known kind of data: {cause(path)} (known kinds: {', '.join(m.spec.name for m in known)})"
        )
    if len(fits) > 1:
        raise DataError(
            f"{path} looks like {' and '.join(m.spec.name for m in fits)}; give a folder or file of one kind"
        )
    method = fits[0]
    try:
        config, notes = method.spec.from_path(path, asked or Asked())
        method.spec.config.from_mapping(config)
    except PalimpsestError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path} looks like {method.spec.name} but cannot be read: {error}") from error
    return Detected(method.spec.name, dict(config), tuple(notes))


def only(asked: Asked, kind: str, **where: str) -> None:
    """Refuse what a person asks for and this kind of data does not have.

    Args:
        where: for options that name nothing here, what says so instead; options that are not among them are allowed.

    Raises:
        ConfigError: one of them was given.
    """
    for option, instead in where.items():
        value = getattr(asked, option)
        if value:
            raise ConfigError(f"--{option} {value!r} names nothing in {kind}: {instead}")
