"""IDX files: MNIST, Fashion-MNIST, KMNIST, EMNIST and whatever else kept Yann LeCun's format.

    00 00 type ndim | ndim big-endian uint32 sizes | values, C order, big-endian
    images  type 08 (uint8), (N, H, W) -> (N, 1, H, W); (N, C, H, W) or (N, H, W, C) with C in {1, 3}
    labels  type 08, 09, 0B or 0C (whole numbers), (N,), class indexes from 0

A folder with the four usual names (``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte``, ``.gz`` or not, and
``t10k-...``) needs no more than its ``root``; other names are given one by one. Without test files the test split is
drawn. Plain files are memory-mapped; ``.gz`` ones are decompressed straight into one array of the size that the header
declares, which must be possible for a deflate stream of that length, and exactly that many bytes must come out.

Ids come from pixels, label and split.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, UnsafeFile
from contracts.methods import Asked, Reading, SourceSpec, source
from contracts.params import param
from sources.assemble import assemble
from sources.example_set import ExampleSet
from sources.files import DEFLATE_RATIO, ImageConfig, check_size, inside, manifest, refuse_pickle, root_folder
from sources.labels import encode_labels
from sources.loading import only
from sources.rows import Rows, select

_GZIP = b"\x1f\x8b"
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 2**20
_ROLES = {
    "images": ("train-images", 3),
    "labels": ("train-labels", 1),
    "test_images": ("t10k-images", 3),
    "test_labels": ("t10k-labels", 1),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class IdxConfig(ImageConfig):
    images: str = param("", doc="training images; found by the usual name when empty")
    labels: str = param("", doc="training labels")
    test_images: str = param("", doc="test images; without them a test split is drawn")
    test_labels: str = param("", doc="test labels")
    class_names: tuple[str, ...] = param((), doc="names of the classes; their numbers when empty")
    white: int = param(255, ge=1, le=255, doc="raw value that becomes 1.0")
    train_per_class: int | None = param(
        None,
        ge=1,
        le=10_000_000,
        unit="images",
        doc="training images of each class that are kept, drawn by the seed; all when null",
    )
    test_per_class: int | None = param(
        None, ge=1, le=10_000_000, unit="images", doc="likewise of the test files; all when null"
    )

    def check(self) -> None:
        if bool(self.images) != bool(self.labels) or bool(self.test_images) != bool(self.test_labels):
            raise ConfigError("IdxConfig: images and labels are given in pairs")
        if self.test_images and not self.images:
            raise ConfigError("IdxConfig: test_images are given without images")


@dataclass(frozen=True, slots=True)
class _Header:
    """What an IDX file declares, checked against the bytes that are there."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    zipped: bool

    @property
    def offset(self) -> int:
        return 4 + 4 * len(self.shape)

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _detects(path: Path) -> bool:
    if path.is_dir():
        return all(_usual(path, role) for role in ("images", "labels"))
    try:
        return path.is_file() and len(_read_header(path, max_bytes=2**62).shape) >= 3
    except (DataError, UnsafeFile):
        return False


def _from_path(path: Path, asked: Asked) -> Reading:
    only(
        asked,
        "IDX files",
        label="labels come from the labels file",
        owner="they hold no owners",
        id="they hold no ids",
        split="training and test files are of their own",
        task="it is classification",
        val="there are no validation files",
        drop="they hold no columns",
    )
    if path.is_dir():
        return Reading({"root": str(path)})
    stem = path.name.replace("images", "labels").replace("idx3", "idx1")
    names = [stem, stem.removesuffix(".gz"), stem.removesuffix(".gz") + ".gz"]
    labels = next((n for n in names if n != path.name and (path.parent / n).is_file()), None)
    if labels is None:
        raise DataError(
            f"{path.name} holds images, but no labels lie beside it; tried {', '.join(names[:1] + names[2:])}"
        )
    return Reading({"root": str(path.parent), "images": path.name, "labels": labels})


@source(
    SourceSpec(
        name="idx",
        version=2,
        doc="IDX images and labels (MNIST, Fashion-MNIST): a folder with train-images-idx3-ubyte[.gz] and "
        "train-labels-..., or an images file with its labels file beside it.",
        source="LeCun, Cortes, Burges, the MNIST database: file format",
        config=IdxConfig,
        detects=_detects,
        from_path=_from_path,
    )
)
def idx(*, config: IdxConfig, seed: int) -> ExampleSet:
    """One or two pairs of IDX files as uint8 images.

    Raises:
        UnsafeFile: a file outside the root, a pickle, or one that declares more than ``max_bytes`` or more than its
            bytes can hold.
        DataError: wrong magic, truncated or longer than declared, images and labels that do not belong together.
    """
    root = root_folder(config.root)
    pairs = [_pair(config, root, "images", "labels"), _pair(config, root, "test_images", "test_labels")]
    headers = [[_read_header(path, max_bytes=config.max_bytes) for path in pair] for pair in pairs if pair]
    for images, labels in headers:
        _check_pair(images, labels, first=headers[0][0])
    check_size(sum(images.size_bytes for images, _ in headers), config.max_bytes, f"IDX images in {root}")
    x = _stack([images for images, _ in headers])
    raw = np.concatenate([_array(labels) for _, labels in headers])
    origin = np.array([f"{images.path.name}[{i}]" for images, _ in headers for i in range(images.shape[0])], dtype=str)
    task, y, names, notes = encode_labels(raw, origin, task="classification", class_names=config.class_names)
    first = np.arange(len(raw)) < headers[0][0].shape[0]
    kept = np.sort(
        np.concatenate(
            [
                _drawn(y, first, config.train_per_class, seed=derive_seed("train", seed)),
                _drawn(y, ~first, config.test_per_class, seed=derive_seed("test", seed)),
            ]
        )
    )
    if len(kept) < len(raw):
        notes = (*notes, f"{len(kept):,} of {len(raw):,} images are kept, drawn within each class")
        x, y, origin, first = select(x, kept), y[kept], origin[kept], first[kept]
    own = np.where(first, "train", "test") if len(headers) > 1 else None
    return assemble(
        x,
        y,
        name=config.name or root.name,
        task=task,
        class_names=names,
        seed=seed,
        test_fraction=config.test_fraction,
        split=own,
        origin=origin,
        white=config.white,
        standardise=config.standardise,
        provenance={
            "source": "idx",
            "files": manifest(root, [h.path for pair in headers for h in pair]),
            "licence": config.licence,
            "notes": list(notes),
        },
    )


def _drawn(y: np.ndarray, there: np.ndarray, per_class: int | None, *, seed: int) -> np.ndarray:
    """Positions of the images ``there`` (a mask) that are kept: all, or at most ``per_class`` of each class."""
    rows = np.flatnonzero(there)
    if per_class is None:
        return rows
    rows = np.random.default_rng(seed).permutation(rows)
    return np.concatenate([rows[:0], *(rows[y[rows] == label][:per_class] for label in np.unique(y[rows]))])


def _usual(root: Path, role: str) -> str:
    stem, ndim = _ROLES[role]
    names = [f"{stem}{dot}idx{ndim}-ubyte{gz}" for gz in ("", ".gz") for dot in ("-", ".")]
    return next((n for n in names if (root / n).exists()), "")


def _pair(config: IdxConfig, root: Path, images: str, labels: str) -> tuple[Path, Path] | None:
    if config.images:
        names = (getattr(config, images), getattr(config, labels))
    else:
        names = (_usual(root, images), _usual(root, labels))
        if bool(names[0]) != bool(names[1]):
            raise DataError(f"{root} holds {names[0] or names[1]} without its {labels if names[0] else images}")
    if names[0]:
        return inside(root, names[0]), inside(root, names[1])
    if images == "images":
        raise DataError(f"{root} holds no {_ROLES[images][0]}-idx3-ubyte[.gz]; name the files in 'images' and 'labels'")
    return None


def _read_header(path: Path, *, max_bytes: int) -> _Header:
    with closing(_open(path)) as stream:
        zipped = isinstance(stream, gzip.GzipFile)
        start = _read(stream, 4, path)
        refuse_pickle(path)
        if start[:2] != b"\0\0" or start[2] not in _TYPES or not 1 <= start[3] <= 4:
            raise DataError(
                f"{path.name} is not an IDX file: it opens with {start.hex()}, not 0000, a type and 1 to 4 dimensions"
            )
        shape = struct.unpack(f">{start[3]}I", _read(stream, 4 * start[3], path))
    header = _Header(path, np.dtype(_TYPES[start[2]]), shape, zipped)
    check_size(header.size_bytes, max_bytes, path.name)
    there, wanted = path.stat().st_size, header.offset + header.size_bytes
    if zipped and wanted > there * DEFLATE_RATIO:
        raise UnsafeFile(f"{path.name} declares {wanted:,} bytes; {there:,} compressed bytes cannot hold as many")
    if not zipped and there != wanted:
        raise DataError(
            f"{path.name} has {there:,} bytes, its header declares {wanted:,}: truncated or not an IDX file"
        )
    return header


def _check_pair(images: _Header, labels: _Header, *, first: _Header) -> None:
    if images.dtype != np.uint8 or len(images.shape) not in (3, 4):
        raise DataError(f"{images.path.name} holds {images.dtype} {images.shape}; images are uint8 (N, H, W) or 4-D")
    if labels.dtype.kind not in "iu" or len(labels.shape) != 1:
        raise DataError(f"{labels.path.name} holds {labels.dtype} {labels.shape}; labels are whole numbers (N,)")
    if images.shape[0] != labels.shape[0]:
        raise DataError(f"{images.path.name} has {images.shape[0]} images, {labels.path.name} {labels.shape[0]} labels")
    if images.shape[1:] != first.shape[1:]:
        raise DataError(
            f"ragged: {images.path.name} has images {images.shape[1:]}, {first.path.name} {first.shape[1:]}"
        )


def _stack(headers: list[_Header]) -> np.ndarray | Rows:
    """All images as (N, C, H, W): maps where every file is plain, else one array filled file by file."""
    if not any(h.zipped for h in headers):
        parts = [_images(_array(h)) for h in headers]
        return parts[0] if len(parts) == 1 else Rows(parts)
    out = np.empty((sum(h.shape[0] for h in headers), *headers[0].shape[1:]), np.uint8)
    start = 0
    for header in headers:
        _array(header, out=out[start : start + header.shape[0]])
        start += header.shape[0]
    return _images(out)


def _images(raw: np.ndarray) -> np.ndarray:
    if raw.ndim == 3:
        return raw[:, None]
    first, last = raw.shape[1] in (1, 3), raw.shape[3] in (1, 3)
    if first == last:
        raise DataError(f"images of shape {raw.shape[1:]}: which axis holds the channels (1 or 3) cannot be told")
    return raw if first else raw.transpose(0, 3, 1, 2)


def _array(header: _Header, out: np.ndarray | None = None) -> np.ndarray:
    """The values; a read-only map of a plain file unless ``out`` is given."""
    if not header.zipped and header.size_bytes:
        values: np.ndarray = np.memmap(header.path, header.dtype, "r", header.offset, header.shape)
        if out is None:
            return values
        out[...] = values
        return out
    out = np.empty(header.shape, header.dtype) if out is None else out
    with closing(_open(header.path)) as stream:
        _read(stream, header.offset, header.path)
        flat = memoryview(out.reshape(-1).view(np.uint8))
        for start in range(0, len(flat), _CHUNK):
            piece = flat[start : start + _CHUNK]
            piece[:] = _read(stream, len(piece), header.path)
        try:
            if stream.read(1):
                raise DataError(f"{header.path.name} holds more than the {header.size_bytes:,} bytes that it declares")
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{header.path.name} is truncated or damaged: {error}") from None
    return out


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    stream = path.open("rb")
    zipped = stream.read(2) == _GZIP
    stream.seek(0)
    if not zipped:
        return stream
    stream.close()
    return gzip.open(path, "rb")


def _read(stream: BinaryIO | gzip.GzipFile, size: int, path: Path) -> bytes:
    """Exactly ``size`` bytes, decompressing no more than that."""
    pieces, left = [], size
    try:
        while left and (piece := stream.read(left)):
            pieces.append(piece)
            left -= len(piece)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} is truncated or damaged: {error}") from None
    if left:
        raise DataError(f"{path.name} is truncated: {left:,} bytes are missing")
    return b"".join(pieces)
