"""Pictures with a mask each, in two folders of equal names: what segmentation is trained on.

    root/images/a.jpg, root/masks/a.png                      equal but for the suffix; folders below them likewise
    root/images/train/a.jpg, root/masks/train/a.png          the split, where every picture lies in a folder of one
    root/train/images/a.jpg, root/train/masks/a.png          the same

A mask is grey, black and white, or a palette (its indexes count): one value a pixel, mapped to the classes 0..K-1 in
the order of ``values``, or of the values that the masks hold. 0 and 255 are two classes, the background and the other.
Where pictures are resized, masks are too, without new values between the old (nearest pixel). JPEG changes values and
is refused.

Owner and columns come from a table of the column ``file`` and others. Ids come from pixels, mask, owner and given
split.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from contracts.errors import ConfigError, DataError
from contracts.methods import Asked, Reading, SourceSpec, source
from contracts.params import param
from sources.assemble import assemble
from sources.columns import BesideConfig, as_column
from sources.example_set import ExampleSet
from sources.files import check_size, files_below, inside, root_folder
from sources.given_splits import VAL, settle, split_of, without_splits
from sources.image_folder import columns_of
from sources.loading import only
from sources.mask_folders import mask_folders
from sources.pictures import PictureConfig, as_they_are, opened, read_headers, read_pictures

_MODES = ("1", "L", "P")
_SHOWN = 10
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True, kw_only=True)  # no slots: two bases have fields
class ImageMasksConfig(BesideConfig, PictureConfig):
    """Fields of two folders of pictures and masks."""

    images: str = param("", doc="folder of the pictures; images, image, imgs or img when empty")
    masks: str = param("", doc="folder of the masks; masks, mask, labels, annotations or segmentation when empty")
    values: tuple[int, ...] = param((), ge=0, le=255, doc="value of a mask of each class; those there are when empty")
    class_names: tuple[str, ...] = param((), doc="names of the classes in that order; their values when empty")
    owner_table: str = param("", doc="table inside the root with the column file, owner and what is kept beside")
    val: str = param("auto", choices=VAL, doc="validation pictures: auto leaves them out where there are test pictures")

    def check(self) -> None:
        if len(set(self.values)) < len(self.values):
            raise ConfigError(f"ImageMasksConfig.values = {list(self.values)} names a value twice")
        if self.values and self.class_names and len(self.values) != len(self.class_names):
            raise ConfigError(
                f"ImageMasksConfig: {len(self.values)} values and {len(self.class_names)} class_names; one name a value"
            )
        if self.beside() and not self.owner_table:
            raise ConfigError("ImageMasksConfig: step, domain, client, group and keep name columns of owner_table")


class _Found(NamedTuple):
    """Pictures and masks, side by side, as paths relative to the root; the split that each one's folders speak of."""

    images: list[str]
    masks: list[str]
    words: list[str | None]


def _from_path(path: Path, asked: Asked) -> Reading:
    only(
        asked,
        "a folder of pictures and masks",
        label="the masks are the labels",
        id="ids are made from the pictures",
        split="train, test and val folders say it",
        task="it is segmentation",
        drop="move what is not wanted out of the folder",
    )
    config: dict[str, object] = {"root": str(path)}
    if asked.owner is not None:
        if not (path / asked.owner).is_file():
            raise ConfigError(f"--owner {asked.owner!r} is no table in {path}; one with the columns file and owner is")
        config["owner_table"] = asked.owner
    if asked.val is not None:
        config["val"] = asked.val
    found = _found(path.resolve(), ImageMasksConfig(root=str(path)))
    headers, _ = read_headers(found.images, lambda at: (path / found.images[at]).open("rb"), PictureConfig(root="."))
    size, notes = as_they_are(headers)
    return Reading(config | size, tuple(notes))


@source(
    SourceSpec(
        name="image_masks",
        doc="Folders images/ and masks/ of equal names: one class a pixel; with or without train/ and test/.",
        source="definition",
        config=ImageMasksConfig,
        detects=lambda path: bool(mask_folders(path)),
        from_path=_from_path,
    )
)
def image_masks(*, config: ImageMasksConfig, seed: int) -> ExampleSet:
    """Every picture that has a mask.

    Raises:
        UnsafeFile: links that leave the root, images above ``max_pixels``, arrays above ``max_bytes``.
        DataError: pictures without mask and masks without picture, files that cannot be read, masks of another size
            than their picture or with values that are no class (all of them named).
    """
    root = root_folder(config.root)
    found = _found(root, config)
    kept, split, notes = np.ones(len(found.images), bool), None, without_splits(config.val)
    if None not in found.words and "train" in found.words and len(set(found.words)) > 1:
        kept, split, notes = settle(np.array(found.words, "<U5"), val=config.val, what="pictures")
    rows = np.flatnonzero(kept).tolist()
    images, masks = ([names[row] for row in rows] for names in (found.images, found.masks))
    record = hashlib.sha256()

    def read(name: str) -> bytes:
        path = inside(root, name)
        check_size(path.stat().st_size, config.max_file_bytes, name)
        data = path.read_bytes()
        record.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\n".encode())
        return data

    def peek(row: int) -> IO[bytes]:
        path = inside(root, images[row])
        check_size(path.stat().st_size, config.max_file_bytes, images[row])
        return path.open("rb")

    headers, _ = read_headers(images, peek, config)
    x = read_pictures(images, peek=peek, content=lambda row: read(images[row]), config=config, what=root.name)
    sizes = [header.size for header in headers if header is not None]
    raw = read_masks(masks, read, sizes, (x.shape[2], x.shape[3]), max_bytes=config.max_bytes)
    y, values = _classes(raw, masks, config)
    origin = np.array(images, dtype=str)
    owner, columns = None, {}
    if config.owner_table:
        owner, more = columns_of(root, config.owner_table, images, root, config.beside())
        columns = {name: as_column(v, origin, name=config.beside()[name]) for name, v in more.items()}
    if not config.values:
        said = ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")
        notes.append(f"the masks hold the values {said}: classes 0 to {len(values) - 1}")
    return assemble(
        x,
        y,
        name=config.name or root.name,
        task="segmentation",
        class_names=config.class_names or tuple(map(str, values)),
        seed=seed,
        test_fraction=config.test_fraction,
        split=split,
        owner=owner,
        origin=origin,
        standardise=config.standardise,
        columns=columns,
        provenance={
            "source": "image_masks",
            "num_files": 2 * len(images),
            "files_sha256": record.hexdigest(),
            "licence": config.licence,
            "notes": notes,
        },
    )


def _found(root: Path, config: ImageMasksConfig) -> _Found:
    """Pairs of picture and mask.

    Raises:
        DataError: no such folders; pictures or masks without the other, or two of one name, all of them named.
    """
    if config.images or config.masks:
        if not (config.images and config.masks):
            raise ConfigError("ImageMasksConfig: images and masks are given together or not at all")
        bases = [(inside(root, config.images, folder=True), inside(root, config.masks, folder=True))]
    else:
        bases = mask_folders(root)
    if not bases:
        raise DataError(f"{root} has no folders images and masks; name them with images and masks")
    pairs: list[tuple[str, str, str | None]] = []
    alone: list[str] = []
    doubled: list[str] = []
    for image_base, mask_base in bases:
        sides = []
        for base in (image_base, mask_base):
            names = sorted(files_below(root, base))
            stems = {name: name.relative_to(base).with_suffix("").as_posix() for name in names}
            counts = Counter(stems.values())
            doubled += [n.relative_to(root).as_posix() for n, stem in stems.items() if counts[stem] > 1]
            sides.append({stem: name.relative_to(root).as_posix() for name, stem in stems.items()})
        one, other = sides
        alone += [
            name for side, against in ((one, other), (other, one)) for s, name in side.items() if s not in against
        ]
        above = split_of(image_base.parent.name) if image_base.parent != root else None
        for stem in sorted(one.keys() & other.keys()):
            below = split_of(stem.split("/")[0]) if "/" in stem else None
            pairs.append((one[stem], other[stem], above or below))
    for bad, what in ((doubled, "are two files of one name"), (alone, "have no mask, or no picture, of that name")):
        if bad:
            raise DataError(f"{root.name}: {len(bad)} files {what}", where=sorted(bad))
    if not pairs:
        raise DataError(f"{root} holds no pictures with masks")
    images, masks, words = zip(*pairs, strict=True)
    return _Found(list(images), list(masks), list(words))


def read_masks(
    names: Sequence[str],
    read: Callable[[str], bytes],
    sizes: Sequence[tuple[int, int]],
    shape: tuple[int, int],
    *,
    max_bytes: int,
) -> np.ndarray:
    """The raw values, uint8 (N, H, W).

    Args:
        names: of the files; ``read`` gives their bytes.
        sizes: (width, height) of the picture that each belongs to.
        shape: (H, W); a mask of another size is brought to it by its nearest pixels.
        max_bytes: largest array.

    Raises:
        DataError: masks that cannot be read or are not of their picture's size, all of them named.
    """
    check_size(len(names) * shape[0] * shape[1], max_bytes, "the masks")
    out = np.empty((len(names), *shape), np.uint8)
    bad = []
    for at, (name, size) in enumerate(zip(names, sizes, strict=True)):
        try:
            out[at] = _mask(read(name), name, size, shape)
        except DataError as error:
            bad.append(str(error))
    if bad:
        more = f"; ... {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(f"{len(bad)} of {len(names)} masks cannot be used: {'; '.join(bad[:_SHOWN])}{more}")
    return out


def _mask(data: bytes, name: str, size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    if data.startswith(_JPEG):
        raise DataError(f"{name} is a JPEG, which changes the values of a mask; save it as PNG")
    with opened(io.BytesIO(data), name) as image:
        if image.mode not in _MODES:
            raise DataError(
                f"{name} has pixels of mode {image.mode}; a mask has one value a pixel: {', '.join(_MODES)}"
            )
        if image.size != size:
            raise DataError(f"{name} is {image.size[0]} x {image.size[1]}, its picture {size[0]} x {size[1]}")
        image.load()
        whole = image.convert("L") if image.mode == "1" else image
        if whole.size != shape[::-1]:
            whole = whole.resize(shape[::-1], Image.Resampling.NEAREST)
        return np.asarray(whole)


def _classes(raw: np.ndarray, names: list[str], config: ImageMasksConfig) -> tuple[np.ndarray, list[int]]:
    """Class indexes, uint8 (N, H, W), and the value of each class.

    Raises:
        DataError: values that are no class, or a single one; names the masks.
    """
    held = np.zeros((len(raw), 256), bool)
    for at, mask in enumerate(raw):
        held[at, np.unique(mask)] = True
    values = list(config.values) or np.flatnonzero(held.any(axis=0)).tolist()
    if config.class_names and not config.values and len(config.class_names) != len(values):
        if max(values) >= len(config.class_names):
            raise DataError(
                f"the masks hold {len(values)} values up to {max(values)} for {len(config.class_names)} class_names; "
                "set values, one a class"
            )
        values = list(range(len(config.class_names)))
    other = held.copy()
    other[:, values] = False
    bad = np.flatnonzero(other.sum(axis=1))
    if len(bad):
        found = np.flatnonzero(other.any(axis=0))[:_SHOWN].tolist()
        raise DataError(
            f"{len(bad)} masks hold {', '.join(map(str, found))}, and values are {', '.join(map(str, values))}",
            where=[names[at] for at in bad],
        )
    place = np.zeros(256, np.uint8)
    place[values] = np.arange(len(values))
    return place[raw], values
