"""Which folders hold pictures beside masks: two folders of known names, in the root or in a folder for each split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from contracts.errors import DataError, UnsafeFile
from sources.files import PICTURES, entries, head
from sources.given_splits import split_of

_IMAGES = ("images", "image", "imgs", "img")
_MASKS = ("masks", "mask", "labels", "annotations", "segmentation")


def mask_folders(path: Path) -> list[tuple[Path, Path]]:
    """The folders of pictures and of masks, a pair for the root or for each split; empty where there are none.

    Raises:
        DataError: a folder that cannot be listed.
    """
    if not path.is_dir():
        return []
    pair = _pair(path)
    if pair:
        return [pair]
    found = [(folder, _pair(folder)) for folder in entries(path) if folder.is_dir() and split_of(folder.name)]
    return [pair for _, pair in found if pair] if found and all(pair for _, pair in found) else []


def files_below(root: Path, folder: Path) -> list[Path]:
    """Every file below a folder, in the order of the paths.

    Raises:
        UnsafeFile: linked folders.
    """
    return sorted(_walk(root, folder))


def _walk(root: Path, folder: Path) -> Iterator[Path]:
    for entry in entries(folder):
        if not entry.is_dir():
            yield entry
        elif entry.is_symlink():
            raise UnsafeFile(f"{entry.relative_to(root)} is a linked folder: it could lead round in a circle")
        else:
            yield from _walk(root, entry)


def _pair(folder: Path) -> tuple[Path, Path] | None:
    """The two folders in this one, where both hold a picture."""
    named = {entry.name.lower(): entry for entry in entries(folder) if entry.is_dir() and not entry.is_symlink()}
    images = next((named[name] for name in _IMAGES if name in named), None)
    masks = next((named[name] for name in _MASKS if name in named), None)
    if images is None or masks is None or not (_has_picture(images) and _has_picture(masks)):
        return None
    return images, masks


def _has_picture(folder: Path) -> bool:
    try:
        return any(head(file, 4).startswith(PICTURES) for file in files_below(folder, folder)[:50])
    except (DataError, UnsafeFile):
        return False
