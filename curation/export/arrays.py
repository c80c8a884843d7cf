"""Arrays as they are: a NumPy archive, and the IDX files of MNIST.

npz   data.npz with x (N, *shape), y (class indexes or numbers), ids, split, and the columns under their names; written
      block after block
idx   SPLIT-images-idx3-ubyte, SPLIT-labels-idx1-ubyte and SPLIT-ids.csv; one channel of uint8, at most 256 classes
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from contracts.errors import NotApplicable
from contracts.progress import Progress
from curation.export.blocks import blocks_of, row_blocks, splits
from sources.example_set import ExampleSet
from sources.rows import Rows

_NAMES = {"train": "train", "test": "t10k"}  # as MNIST calls its files
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def npz(data: ExampleSet, folder: Path, progress: Progress) -> None:
    """See the module.

    Raises:
        NotApplicable: examples that are no arrays of numbers.
    """
    if not isinstance(data.x, (np.ndarray, Rows)):
        raise NotApplicable(f"{data.name}: {type(data.x).__name__} are no arrays; formats for them: parquet, jsonl")
    with zipfile.ZipFile(folder / "data.npz", "w", zipfile.ZIP_STORED) as archive:
        with _member(archive, "x") as file:
            _header(file, (len(data), *data.input_shape), data.x.dtype)
            for rows in row_blocks(data):
                file.write(np.ascontiguousarray(data.x[rows]).data.cast("B"))
                progress(rows.stop, len(data), "rows")
        own = {"y": data.y, "ids": data.example_id, "split": data.split}
        beside = {name if name not in own else f"{name}_": column for name, column in sorted(data.columns.items())}
        for name, values in {**own, **beside}.items():
            with _member(archive, name) as file:
                npy.write_array(file, np.asarray(values), allow_pickle=False)


def idx(data: ExampleSet, folder: Path, progress: Progress) -> None:
    """See the module.

    Raises:
        NotApplicable: other values, more channels or more classes than IDX files of MNIST hold.
    """
    fits = (
        isinstance(data.x, (np.ndarray, Rows))
        and data.x.dtype == np.uint8
        and len(data.input_shape) == 3
        and data.input_shape[0] == 1
    )
    if not fits or not data.task.gives("classes") or data.num_classes > 256:
        raise NotApplicable(
            f"{data.name}: IDX files hold uint8 images of one channel in at most 256 classes. Formats for other "
            "values: npz, parquet, jsonl"
        )
    done = 0
    for split, rows in splits(data):
        name = _NAMES[split]
        with (
            (folder / f"{name}-images-idx3-ubyte").open("wb") as images,
            (folder / f"{name}-labels-idx1-ubyte").open("wb") as labels,
            (folder / f"{name}-ids.csv").open("w", encoding="ascii") as ids,
        ):
            images.write(struct.pack(">IIII", 0x0803, len(rows), *data.input_shape[1:]))
            labels.write(struct.pack(">II", 0x0801, len(rows)))
            ids.write("example_id,label\n")
            for part in blocks_of(data, rows):
                images.write(np.ascontiguousarray(part.x[:]).data.cast("B"))
                labels.write(part.y.astype(np.uint8).tobytes())
                pairs = zip(part.example_id.tolist(), part.y.tolist(), strict=True)
                ids.writelines(f"{example},{label}\n" for example, label in pairs)
                done += len(part)
                progress(done, len(data), "images")


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(zipfile.ZipInfo(f"{name}.npy", _ZIP_TIME), "w", force_zip64=True)


def _header(file: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    npy.write_array_header_2_0(file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
