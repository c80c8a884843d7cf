"""Which folders hold pictures beside masks: two folders of known names, in the root or in a folder for each split."""

from __future__ import annotations

from pathlib import Path

from contracts.errors import DataError, UnsafeFile
from sources.files import PICTURES, entries, files_below, head
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
        return any(head(file, 4).startswith(PICTURES) for file in sorted(files_below(folder, folder))[:50])
    except (DataError, UnsafeFile):
        return False
