"""Export of a memory-mapped set, format by format: memory that does not grow with it, and time beside the bare writer.

    python -m benchmarks.export [--gb 1.0] [--encoded-gb 0.2] [--formats npz idx numbers parquet webdataset]
                                [--folder /tmp] [--seed 0] [--json]

Images 1 x 64 x 64 in a mapped file, of which nine in ten are exported (an index into the file, as a curated set is) by
``export_set`` with the index that the product writes beside them; ``numbers`` are rows of 1,024 float32 as Parquet.
The formats that encode pictures take ten times as long a byte, and have a size of their own.

    memory   most anonymous resident memory during the export above what there was before it (interpreter, libraries,
             columns of the examples), in MiB, of the whole set; pages of the mapped file are the page cache's. Beside
             it that of a tenth of the set, and the speed
    time     of the export / of the bare side, in turns, median of the paired ratios:
        npz, idx                wall time, until all of it is on the disk (fsync), against the same rows of the mapped
                                file, block after block, into one plain file that is on the disk
        numbers                 CPU time of the process, the system's included, on a tenth of the set: pyarrow's own
                                arrays and writer
        parquet, webdataset     the same: Pillow's PNG of each image, and all of them into one plain file

What the product does besides is in its time: the SHA-256 of every file, the digest of the examples, the index. CPU time
of a stored format is 1.5 to 1.8 times that of the plain write with its SHA-256, which no manifest can do without. Of
10 GB (``--gb 10``), npz and idx held 58 and 60 MiB.

Linux only; two and a half times the sizes have to be free in --folder. Exit 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks._common import Row, in_child, options, report
from benchmarks.streaming import Peak, anonymous
from contracts.progress import silent
from curation.export.formats import export_set
from curation.export.index import INDEX, index_csv
from sources.example_set import ExampleSet
from sources.rows import blocks

SHAPE, FEATURES, CLASSES, CHUNK = (1, 64, 64), 1024, 10, 4096
NUMBERS = "numbers"
STORED, ENCODED = ("npz", "idx"), ("parquet", "webdataset")
FORMATS = (*STORED, NUMBERS, *ENCODED)
MEMORY_BOUND, TIME_BOUND = 128.0, 1.5
REPEATS, TENTH = 5, 10


def write(path: Path, num: int, seed: int) -> None:
    """Smooth pictures under a little noise, which PNG shortens as it does photographs."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as file:
        for start in range(0, num, CHUNK):
            coarse = rng.integers(0, 240, (min(CHUNK, num - start), *(side // 8 for side in SHAPE[1:])), dtype=np.uint8)
            smooth = np.repeat(np.repeat(coarse, 8, 1), 8, 2)
            (smooth + rng.integers(0, 16, smooth.shape, dtype=np.uint8)).tofile(file)


def examples(path: Path, num: int, format: str) -> ExampleSet:
    """Nine in ten of the first ``num`` examples of a mapped file."""
    floats = format == NUMBERS
    data = ExampleSet(
        name="mapped",
        task="classification",
        x=np.memmap(path, np.float32 if floats else np.uint8, "r", shape=(num, FEATURES) if floats else (num, *SHAPE)),
        y=np.arange(num) % CLASSES,
        example_id=np.arange(num),
        split=np.where(np.arange(num) < num - num // 5, "train", "test").astype("<U5"),
        owner=np.full(num, ""),
        content_hash=np.full(num, "0" * 64, "<U64"),
        class_names=tuple(map(str, range(CLASSES))),
        center=np.zeros(1, np.float32),
        scale=np.ones(1, np.float32),
    )
    return data.take(np.flatnonzero(np.arange(num) % 10 != 3))


def export(data: ExampleSet, to: Path, format: str) -> None:
    export_set(
        data,
        to,
        format="parquet" if format == NUMBERS else format,
        made={"asset": "benchmark"},
        documents=lambda files: {INDEX: index_csv(data)},
        progress=silent,
    )


def bare(data: ExampleSet, to: Path, format: str) -> None:
    """What cannot be left out: see the module. Stored formats end on the disk, as an export does."""
    to.mkdir()
    if format == NUMBERS:
        schema = pa.schema([("values", pa.list_(pa.float32()))])
        with pq.ParquetWriter(to / "bare.parquet", schema) as writer:
            for rows in blocks(data.x):
                values = data.x[rows]
                ends = np.arange(len(values) + 1, dtype=np.int32) * FEATURES
                writer.write_table(pa.table([pa.ListArray.from_arrays(ends, values.ravel())], schema=schema))
        return
    with (to / "bare").open("wb") as file:
        for rows in blocks(data.x):
            values = data.x[rows]
            if format in STORED:
                file.write(values.data.cast("B"))
                continue
            for image in values:
                png = io.BytesIO()
                Image.fromarray(image[0]).save(png, "PNG")
                file.write(png.getvalue())
        if format in STORED:
            file.flush()
            os.fsync(file.fileno())


def spent(work: Callable[[ExampleSet, Path, str], None], data: ExampleSet, folder: Path, format: str) -> float:
    """Seconds of one write, which is taken away again: of the wall for a stored format, else of CPU."""
    to, clock = folder / "out", time.perf_counter if format in STORED else time.process_time
    start = clock()
    work(data, to, format)
    used = clock() - start
    shutil.rmtree(to)
    return used


def timed(path: str, folder: str, num: int, format: str) -> float:
    """Median of the paired ratios of time to the bare side's."""

    def turn() -> float:
        # examples anew for each turn: their digest is remembered
        used = [spent(work, examples(Path(path), num, format), Path(folder), format) for work in (export, bare)]
        return used[0] / used[1]

    turn()
    return statistics.median(turn() for _ in range(REPEATS))


def measured(path: str, folder: str, num: int, format: str) -> tuple[int, float]:
    """(bytes of memory at the peak of one export above those before it, seconds)."""
    small = examples(Path(path), 1000, format)
    spent(export, small, Path(folder), format)  # what is loaded on first use is not the format's
    data = examples(Path(path), num, format)
    before, start = anonymous(), time.perf_counter()
    peak = Peak()
    peak.start()
    export(data, Path(folder) / "out", format)
    most, wall = peak.stop() - before, time.perf_counter() - start
    shutil.rmtree(Path(folder) / "out")
    return most, wall


def rows(o: argparse.Namespace) -> Iterator[Row]:
    free, most = shutil.disk_usage(o.folder).free, max(o.gb, o.encoded_gb)
    if free < 2.5e9 * most:
        raise SystemExit(f"{o.folder} has {free / 1e9:.1f} GB free; {2.5 * most:.1f} are needed. Name another --folder")
    example = SHAPE[1] * SHAPE[2]
    with tempfile.TemporaryDirectory(dir=o.folder) as folder:
        path = Path(folder) / "examples"
        write(path, int(most * 1e9) // example, o.seed)
        for format in o.formats:
            num = int((o.encoded_gb if format in ENCODED else o.gb) * 1e9) // example
            (few, _), (many, wall) = (in_child(measured, str(path), folder, n, format) for n in (num // TENTH, num))
            said = f"{few >> 20} -> {many >> 20} MiB, {0.9e-6 * num * example / wall:.0f} MB/s"
            yield Row(format, f"memory of {num:,} examples: {said}", many / 2**20, MEMORY_BOUND)
            against = in_child(timed, str(path), folder, num if format in STORED else num // TENTH, format)
            what = "to the disk / a plain write to the disk" if format in STORED else "CPU time / the bare encoder's"
            yield Row(format, what, against, TIME_BOUND)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--encoded-gb", type=float, default=0.2)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    o = parser.parse_args()
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
