"""Images as files: lossless PNG in folders of classes, in WebDataset tars, or in a column (``columns``); with a mask
each, a PNG of class indexes, where there is a class for every pixel: in folders beside them (what
``sources.image_masks`` reads), as ``ID.seg.png`` in tars, in a column.

Source: WebDataset: Aizman, Maltby, Breuel, "High Performance I/O For Large Scale Deep Learning" (IEEE Big Data 2019):
the files of an example stand one after the other in a tar and share their name up to the first dot.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from contracts.errors import NotApplicable
from contracts.progress import Progress
from curation.export.blocks import blocks_of, splits
from sources.example_set import ExampleSet
from sources.rows import Rows

_SHARD_BYTES = 2**28
_UNSAFE = re.compile(r"[^\w.+-]+")


def pictures(part: ExampleSet) -> list[bytes]:
    """PNG files of a block of examples.

    Raises:
        NotApplicable: see :func:`refuse_unless_pictures`.
    """
    refuse_unless_pictures(part)
    return [_png(image) for image in np.asarray(part.x[:])]


def refuse_unless_pictures(data: ExampleSet) -> None:
    """Raise :class:`NotApplicable` unless PNG keeps the values: uint8 (1, 3 or 4 channels, height, width)."""
    kind, shape = data.x.dtype if isinstance(data.x, (np.ndarray, Rows)) else "other", data.input_shape
    if kind != np.uint8 or len(shape) != 3 or shape[0] not in (1, 3, 4):
        raise NotApplicable(
            f"{data.name} has {kind} values of shape {' x '.join(map(str, shape))}; pictures are uint8 of 1, 3 or 4 "
            "channels. Formats for other values: npz, parquet, jsonl"
        )


def class_folders(data: ExampleSet, folder: Path, progress: Progress) -> None:
    """``SPLIT/CLASS/ID.png``, or ``SPLIT/images/ID.png`` and ``SPLIT/masks/ID.png``; and ``examples.csv`` with file,
    id, split, label and label name."""
    if data.task.gives("pixels"):
        _mask_folders(data, folder, progress)
        return
    folders = folder_names(data)
    for split, _ in splits(data):
        for name in folders:
            (folder / split / name).mkdir(parents=True)

    def put(part: ExampleSet) -> list[str]:
        files = [
            f"{split}/{folders[label]}/{example}.png"
            for split, label, example in zip(part.split, part.y.tolist(), part.example_id.tolist(), strict=True)
        ]
        for name, image in zip(files, pictures(part), strict=True):
            (folder / name).write_bytes(image)
        return files

    _put(data, folder, put, progress)


def _mask_folders(data: ExampleSet, folder: Path, progress: Progress) -> None:
    for split, _ in splits(data):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)

    def put(part: ExampleSet) -> list[str]:
        names = list(zip(part.split, part.example_id.tolist(), strict=True))
        for (split, example), image, mask in zip(names, pictures(part), masks(part), strict=True):
            (folder / split / "images" / f"{example}.png").write_bytes(image)
            (folder / split / "masks" / f"{example}.png").write_bytes(mask)
        return [f"{split}/images/{example}.png" for split, example in names]

    _put(data, folder, put, progress)


def _put(data: ExampleSet, folder: Path, put: Callable[[ExampleSet], list[str]], progress: Progress) -> None:
    """Every block by ``put``, which says the file of each example, and ``examples.csv`` with these."""
    done = 0
    with (folder / "examples.csv").open("wb") as table:
        for part in blocks_of(data, np.arange(len(data))):
            pl.DataFrame({"file": put(part), **_facts(part)}).write_csv(table, include_header=done == 0)
            done += len(part)
            progress(done, len(data), "pictures")


def masks(data: ExampleSet) -> list[bytes]:
    """PNG files of the class indexes of the masks of a block of examples.

    Raises:
        NotApplicable: more classes than a byte tells apart.
    """
    if data.num_classes > 256:
        raise NotApplicable(f"{data.name} has {data.num_classes} classes a pixel; PNG masks hold 256")
    return [_png(mask[None].astype(np.uint8)) for mask in data.targets(slice(0, len(data)))]


def folder_names(data: ExampleSet) -> list[str]:
    """A folder a class, its name as far as a path may hold it; a number before it where two would be the same.

    Raises:
        NotApplicable: the examples have no classes.
    """
    if not data.class_names or not data.task.gives("classes"):
        raise NotApplicable(f"{data.name} is a {data.task} task: folders are of classes")
    plain = [_UNSAFE.sub("_", name).strip("._") or "class" for name in data.class_names]
    alike = len({name.lower() for name in plain}) < len(plain)
    return [f"{k:04d}_{name}" for k, name in enumerate(plain)] if alike else plain


def webdataset(data: ExampleSet, folder: Path, progress: Progress) -> None:
    """``SPLIT-NNNNNN.tar`` of ``ID.png``, ``ID.cls`` (the class index; of masks ``ID.seg.png``) and ``ID.json`` (id,
    split, label name)."""
    done = 0
    for split, rows in splits(data):
        with _Shards(folder, split) as shards:
            for part in blocks_of(data, rows):
                for files in _files(part):
                    shards.add(files)
                done += len(part)
                progress(done, len(data), "pictures")


def _files(part: ExampleSet) -> Iterator[list[tuple[str, bytes]]]:
    """Names and contents of the files of every example of a block."""
    facts, images = _facts(part), pictures(part)
    segments = masks(part) if part.task.gives("pixels") else None
    rows = zip(*facts.values(), strict=True)
    for at, (example, row, image) in enumerate(zip(part.example_id.tolist(), rows, images, strict=True)):
        about = dict(zip(facts, row, strict=True))
        target = ("cls", str(about["label"]).encode()) if segments is None else ("seg.png", segments[at])
        yield [
            (f"{example:016d}.{end}", content)
            for end, content in (("png", image), target, ("json", json.dumps(about).encode()))
        ]


class _Shards(contextlib.AbstractContextManager["_Shards"]):
    """``SPLIT-NNNNNN.tar`` one after the other, each begun when the last has grown to ``_SHARD_BYTES``. Time 0,
    nobody's: the same set gives the same bytes."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split, self._number, self._size = folder, split, 0, 0
        self._file: IO[bytes] | None = None

    def add(self, files: list[tuple[str, bytes]]) -> None:
        """The files of one example, which are not parted."""
        if self._file is None:
            self._file = (self._folder / f"{self._split}-{self._number:06d}.tar").open("wb")
            self._number, self._size = self._number + 1, 0
        for name, content in files:
            header = tar_header(name, len(content))
            self._file.write(header + content + b"\0" * (-len(content) % tarfile.BLOCKSIZE))
            self._size += len(header) + -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if self._size >= _SHARD_BYTES:
            self._end()

    def _end(self) -> None:
        if self._file is not None:
            end = self._size + 2 * tarfile.BLOCKSIZE
            self._file.write(b"\0" * (2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
            self._file.close()
            self._file = None

    def __exit__(self, *_: object) -> None:
        self._end()


def tar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a plain file of a tar: what ``tarfile`` writes (USTAR), in a tenth of its time.

    Args:
        name: ASCII, at most 100 characters. size: bytes of the file, below 8 GiB.
    """
    header = bytearray(_HEADER)
    header[: len(name)] = name.encode("ascii")
    header[124:135] = b"%011o" % size
    header[148:156] = b"%06o\0 " % (sum(header) + 8 * ord(" "))  # of which the sum itself counts as spaces
    return bytes(header)


def _empty_header() -> bytes:
    header = bytearray(tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT))
    header[148:156] = bytes(8)
    return bytes(header)


_HEADER = _empty_header()


def _facts(data: ExampleSet) -> dict[str, list[object]]:
    facts: dict[str, list[object]] = {"example_id": data.example_id.tolist(), "split": data.split.tolist()}
    if data.y.ndim > 1:  # masks are files of their own
        return facts
    names = [data.class_names[k] for k in data.y] if data.class_names else [""] * len(data)
    return {**facts, "label": data.y.tolist(), "label_name": names}


def _png(image: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))).save(out, "PNG")
    return out.getvalue()
