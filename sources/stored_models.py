"""Where a language model of one's own lies on this machine: a folder of safetensors, or a GGUF file.

    FOLDER             config.json, *.safetensors, and tokenizer.json where its tokenizer is wanted
    FOLDER or a file   NAME.gguf, weights, sizes and tokenizer in one file (llama.cpp); one in the folder, or named

A relative path lies below a folder of ``$PALIMPSEST_DATA``, as the roots of sources do. Nothing is downloaded. What
reads either is transformers, of the extra ``hf``: :func:`need_extra` says so where it is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from contracts.errors import ConfigError, DataError, NotReady
from sources.files import inside, root_folder

GGUF = ".gguf"


class StoredModel(NamedTuple):
    """A folder, and the GGUF file in it; "" where it holds safetensors."""

    folder: Path
    gguf: str

    @property
    def file(self) -> Path:
        """The GGUF file."""
        return inside(self.folder, self.gguf)


def locate(path: str, *, field: str) -> StoredModel:
    """The stored model at ``path``.

    Args:
        path: folder, or GGUF file; absolute, from ``~``, or below a folder of ``$PALIMPSEST_DATA``.
        field: that names it, for messages.

    Raises:
        ConfigError: nothing there, a folder with neither, or with several GGUF files.
        UnsafeFile: a GGUF file that leads out of its folder, or is none.
    """
    given = Path(path)
    if given.suffix == GGUF:
        folder = _folder(str(given.parent), path, field)
        try:
            inside(folder, given.name)
        except DataError as error:
            raise ConfigError(f"{field} = {path!r}: {error}") from None
        return StoredModel(folder, given.name)
    folder = _folder(path, path, field)
    if (folder / "config.json").exists() or (folder / "tokenizer.json").exists():
        return StoredModel(folder, "")
    found = sorted(entry.name for entry in folder.glob(f"*{GGUF}"))
    if len(found) == 1:
        return StoredModel(folder, found[0])
    what = f"{len(found)} GGUF files ({', '.join(found[:5])}): name one" if found else "no model"
    raise ConfigError(
        f"{field} = {path!r} holds {what}; a model is config.json with *.safetensors, or one file NAME{GGUF}"
    )


def _folder(folder: str, path: str, field: str) -> Path:
    try:
        return root_folder(folder)
    except DataError as error:
        raise ConfigError(f"{field} = {path!r}: {error}") from None


@contextmanager
def need_extra(extra: str, what: str) -> Iterator[None]:
    """Imports of an extra's packages, inside.

    Raises:
        NotReady: one of them is not installed; says what for, and the command that brings it.
    """
    try:
        yield
    except ImportError as error:
        missing = error.name or str(error)
        raise NotReady(
            f"{what} needs the package {missing}, which is not installed: pip install 'palimpsest-audit[{extra}]'"
        ) from error
