"""Folders of images, one sub-folder a class, with or without folders for the splits.

    root/CLASS/*.png                     the test split is drawn
    root/train/CLASS/*, root/test/CLASS/*  as it is ("val", "valid" or "validation" where there is no "test")

Images are decoded by Pillow into one uint8 array (N, C, H, W), grey (C = 1) when every file is grey, else RGB. Headers are
read first: pixel counts, sizes and the whole array are checked before anything is decoded. Images of different sizes are
refused unless ``size`` says what to resize to (bilinear, antialiased). Transparency is dropped, EXIF rotation is not
applied, files with several frames or more than 8 bits a channel are refused.

Ids: the position among the paths relative to the root, compared as UTF-8 text by code point, training folder before test
folder. Adding or removing a file shifts those behind it: add new images under names that sort last.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from contracts.errors import DataError, UnsafeFile
from contracts.methods import SourceSpec, source
from contracts.params import param
from sources.assemble import assemble
from sources.example_set import ExampleSet
from sources.files import ImageConfig, check_size, head, inside, root_folder
from sources.loading import no_columns

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_MAGIC = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"BM",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"RIFF",
    b"P1",
    b"P2",
    b"P3",
    b"P4",
    b"P5",
    b"P6",
)
_GREY = ("1", "L")
_COLOUR = ("P", "RGB", "RGBA", "RGBX", "LA", "PA", "CMYK", "YCbCr", "LAB", "HSV")
_TEST = ("test", "val", "valid", "validation")
_IGNORED = ("Thumbs.db", "desktop.ini")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolderConfig(ImageConfig):
    size: tuple[int, int] | None = param(
        None, ge=1, le=16_384, doc="height and width to resize to; as they are when not given"
    )
    channels: str = param("auto", choices=("auto", "grey", "rgb"), doc="auto: grey when every file is")
    max_pixels: int = param(64_000_000, ge=1, le=178_000_000, doc="largest image accepted")
    max_file_bytes: int = param(2**28, ge=1, le=2**34, unit="bytes", doc="largest image file accepted")


@dataclass(frozen=True, slots=True)
class _Found:
    name: str  # relative to the root, POSIX
    label: str
    split: str


@dataclass(frozen=True, slots=True)
class _Header:
    size: tuple[int, int]  # width, height
    mode: str


def _detects(path: Path) -> bool:
    if not path.is_dir():
        return False
    with contextlib.suppress(OSError, DataError, UnsafeFile):
        first = next(_walk(path), None)
        return first is not None and head(path / first.name, 4).startswith(_MAGIC)
    return False


def _from_path(path: Path, label: str | None, owner: str | None) -> dict[str, object]:
    no_columns("an image folder", "labels are the names of the sub-folders", label=label, owner=owner)
    found = list(_walk(path))
    headers = [_header(path, f.name, ImageFolderConfig(root=str(path))) for f in found]
    size = _common_size(headers)
    config: dict[str, object] = {"root": str(path)}
    return config if all(h.size == size for h in headers) else config | {"size": [size[1], size[0]]}


@source(
    SourceSpec(
        name="image_folder",
        version=2,
        doc="Folder with one sub-folder of images a class, or with train/ and test/ of such folders.",
        source="the layout of torchvision.datasets.ImageFolder",
        config=ImageFolderConfig,
        detects=_detects,
        from_path=_from_path,
        tasks=("classification",),
    )
)
def image_folder(*, config: ImageFolderConfig, seed: int) -> ExampleSet:
    """Every image below the class folders.

    Raises:
        UnsafeFile: links that leave the root, images above ``max_pixels``, arrays above ``max_bytes``.
        DataError: no classes, files that are no images or truncated, images of different sizes.
    """
    root = root_folder(config.root)
    found = list(_walk(root))
    if not found:
        raise DataError(f"{root} holds no images in class folders (root/CLASS/*.png or root/train/CLASS/*.png)")
    headers = [_header(root, f.name, config) for f in found]
    height, width = config.size or _one_size(found, headers)
    grey = config.channels == "grey" or (config.channels == "auto" and all(h.mode in _GREY for h in headers))
    shape = (len(found), 1 if grey else 3, height, width)
    check_size(int(np.prod(shape, dtype=object)), config.max_bytes, f"the decoded images of {root.name}")
    x = np.empty(shape, np.uint8)
    record = hashlib.sha256()
    for row, (file, header) in enumerate(zip(found, headers, strict=True)):
        content = inside(root, file.name).read_bytes()
        record.update(f"{file.name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        x[row] = _decode(content, file.name, header, grey=grey, size=(width, height))
    class_names = sorted({f.label for f in found})
    y = np.searchsorted(class_names, [f.label for f in found]).astype(np.int64)
    own = any(f.split == "test" for f in found)
    return assemble(
        x,
        y,
        name=config.name or root.name,
        task="classification",
        class_names=class_names,
        seed=seed,
        test_fraction=config.test_fraction,
        split=np.array([f.split for f in found]) if own else None,
        standardise=config.standardise,
        provenance={
            "source": "image_folder",
            "num_files": len(found),
            "files_sha256": record.hexdigest(),
            "licence": config.licence,
        },
    )


def _walk(root: Path) -> Iterator[_Found]:
    """Image files in the order of their ids. Hidden files and files beside the class folders are passed over."""
    top = _entries(root)
    folders = {e.name: e for e in top if e.is_dir()}
    test = next((n for n in _TEST if n in folders), None)
    if "train" in folders and test is not None:
        bases = [("train", "train"), (test, "test")]
    elif "train" in folders and len(folders) == 1:
        bases = [("train", "train")]
    else:
        bases = [("", "train")]
    for base, split in bases:
        inside(root, base or ".", folder=True)
        classes = [e for e in _entries(root / base) if e.is_dir()]
        names = []
        for folder in classes:
            files = [(p.relative_to(root).as_posix(), folder.name) for p in _files(root, folder)]
            if not files:
                raise DataError(f"class folder {folder.relative_to(root).as_posix()!r} holds no images")
            names += files
        for name, label in sorted(names):
            if not name.isprintable():  # also true of bytes that are not UTF-8
                raise DataError(f"file name {name!r} cannot be used: it is not printable text")
            yield _Found(name, label, split)


def _files(root: Path, folder: Path) -> Iterator[Path]:
    inside(root, folder.relative_to(root), folder=True)
    for entry in _entries(folder):
        if not entry.is_dir():
            yield entry
        elif entry.is_symlink():
            raise UnsafeFile(f"{entry.relative_to(root)} is a linked folder: it could lead round in a circle")
        else:
            yield from _files(root, entry)


def _entries(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from None
    return [e for e in entries if not e.name.startswith(".") and e.name not in _IGNORED]


def _header(root: Path, name: str, config: ImageFolderConfig) -> _Header:
    path = inside(root, name)
    check_size(path.stat().st_size, config.max_file_bytes, name)
    with path.open("rb") as stream, _open(stream, name) as image:
        width, height = image.size
        if width * height > config.max_pixels:
            raise UnsafeFile(f"{name} declares {width} x {height} pixels, more than max_pixels = {config.max_pixels:,}")
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # MPO: a camera's JPEG with previews behind it
            raise DataError(f"{name} has {image.n_frames} frames; an example is one image")
        if image.mode not in _GREY + _COLOUR:
            raise DataError(f"{name} has pixels of mode {image.mode}; only 8 bits a channel are read")
        return _Header((width, height), image.mode)


@contextlib.contextmanager
def _open(stream: io.BufferedIOBase, name: str) -> Iterator[Image.Image]:
    """Pillow's errors and warnings about the file, as ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=_FORMATS) as image:
                yield image
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise UnsafeFile(f"{name}: {error}") from None
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise DataError(f"{name} cannot be read as an image ({', '.join(_FORMATS)}): {error}") from None


def _decode(content: bytes, name: str, header: _Header, *, grey: bool, size: tuple[int, int]) -> np.ndarray:
    with _open(io.BytesIO(content), name) as image:
        if image.size != header.size:
            raise DataError(f"{name} changed while it was read")
        image.load()
        converted = image.convert("L" if grey else "RGB")
        if converted.size != size:
            converted = converted.resize(size, Image.Resampling.BILINEAR)
        pixels = np.asarray(converted)
        return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _common_size(headers: list[_Header]) -> tuple[int, int]:
    """The most frequent width and height; the smaller one on a tie."""
    counts = Counter(h.size for h in headers)
    return min(counts, key=lambda size: (-counts[size], size))


def _one_size(found: list[_Found], headers: list[_Header]) -> tuple[int, int]:
    width, height = _common_size(headers)
    odd = [row for row, h in enumerate(headers) if h.size != (width, height)]
    if odd:
        first = headers[odd[0]].size
        raise DataError(
            f"ragged: {len(odd)} images are not {width} x {height}, the first is {found[odd[0]].name} with "
            f"{first[0]} x {first[1]}; set size: [{height}, {width}] to resize",
            example_ids=odd,
        )
    return height, width
