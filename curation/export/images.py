"""Images as files: lossless PNG in folders of classes, in WebDataset tars, or in a column (``columns``); with a mask
each, a PNG of class indexes, where there is a class for every pixel: in folders beside them (what
``sources.image_masks`` reads), as ``ID.seg.png`` in tars, in a column.

Source: WebDataset: Aizman, Maltby, Breuel, "High Performance I/O For Large Scale Deep Learning" (IEEE Big Data 2019):
the files of an example stand one after the other in a tar and share their name up to the first dot.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from contracts.errors import NotApplicable
from contracts.progress import Progress
from sources.example_set import ExampleSet
from sources.rows import Rows

_BLOCK = 1024
_SHARD_BYTES = 2**28
_UNSAFE = re.compile(r"[^\w.+-]+")


def pictures(data: ExampleSet) -> Iterator[tuple[slice, list[bytes]]]:
    """Rows and their PNG files, block after block.

    Raises:
        NotApplicable: see :func:`refuse_unless_pictures`.
    """
    refuse_unless_pictures(data)
    for start in range(0, len(data), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(data)))
        yield rows, [_png(image) for image in np.asarray(data.x[rows])]


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
    files: list[str] = []
    for split in np.unique(data.split):
        for name in folders:
            (folder / split / name).mkdir(parents=True)
    for rows, images in pictures(data):
        for at, image in enumerate(images, rows.start):
            files.append(f"{data.split[at]}/{folders[int(data.y[at])]}/{data.example_id[at]}.png")
            (folder / files[-1]).write_bytes(image)
        progress(rows.stop, len(data), "pictures")
    pl.DataFrame({"file": files, **_facts(data)}).write_csv(folder / "examples.csv")


def _mask_folders(data: ExampleSet, folder: Path, progress: Progress) -> None:
    files: list[str] = []
    for split in np.unique(data.split):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
    for rows, images in pictures(data):
        for at, image, mask in zip(range(rows.start, rows.stop), images, masks(data, rows), strict=True):
            files.append(f"{data.split[at]}/images/{data.example_id[at]}.png")
            (folder / files[-1]).write_bytes(image)
            (folder / str(data.split[at]) / "masks" / f"{data.example_id[at]}.png").write_bytes(mask)
        progress(rows.stop, len(data), "pictures")
    facts = {name: values for name, values in _facts(data).items() if not name.startswith("label")}
    pl.DataFrame({"file": files, **facts}).write_csv(folder / "examples.csv")


def masks(data: ExampleSet, rows: slice) -> list[bytes]:
    """PNG files of the class indexes of these masks.

    Raises:
        NotApplicable: more classes than a byte tells apart.
    """
    if data.num_classes > 256:
        raise NotApplicable(f"{data.name} has {data.num_classes} classes a pixel; PNG masks hold 256")
    return [_png(mask[None].astype(np.uint8)) for mask in data.targets(rows)]


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
    done, segmented = 0, data.task.gives("pixels")
    for split in np.unique(data.split):
        part = data.part(str(split))
        facts = _facts(part)
        every = ((at, image) for rows, images in pictures(part) for at, image in enumerate(images, rows.start))
        number, at_hand = 0, next(every, None)
        while at_hand is not None:
            with tarfile.open(folder / f"{split}-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                while at_hand is not None and tar.offset < _SHARD_BYTES:
                    at, image = at_hand
                    row, key = {name: values[at] for name, values in facts.items()}, f"{part.example_id[at]:016d}"
                    target = (
                        ("seg.png", masks(part, slice(at, at + 1))[0])
                        if segmented
                        else ("cls", str(row["label"]).encode())
                    )
                    for end, content in (("png", image), target, ("json", json.dumps(row).encode())):
                        _add(tar, f"{key}.{end}", content)
                    done += 1
                    progress(done, len(data), "pictures")
                    at_hand = next(every, None)
            number += 1


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # time 0, nobody's: the same set gives the same bytes
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


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
