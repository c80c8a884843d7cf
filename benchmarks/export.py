"""Export of a memory-mapped set, format by format: memory that does not grow with it, and time beside the bare writer.

    python -m benchmarks.export [--gb 1.0] [--encoded-gb 0.2] [--formats npz idx numbers parquet webdataset]
                                [--folder /tmp] [--seed 0] [--json]

Images 1 x 64 x 64 in a mapped file, of which nine in ten are exported (an index into the file, as a curated set is) by
``export_set`` with the index that the product writes beside them; ``numbers`` are rows of 1,024 float32 as Parquet.
The formats that encode pictures take ten times as long a byte, and have a size of their own.

    memory   most anonymous resident memory during the export above what there was before it (interpreter, libraries,
             columns of the examples), in MiB, of the whole set; pages of the mapped file are the page cache's. Beside
             it that of a tenth of the set, and the speed
    time     CPU time of the process, the system's included, / that of the bare side, on a tenth of the set, in turns,
             median of the paired ratios:
        npz, idx, plain         the same rows of the mapped file, block after block, into one plain file
        npz, idx                the same, and the SHA-256 of the file, which the manifest holds
        numbers                 pyarrow's own arrays and writer
        parquet, webdataset     Pillow's PNG of each image, and all of them into one plain file

What the product does besides is in its time: the SHA-256 of every file, the digest of the examples, the index.
Measured on a busy machine, 1 GB: numbers 1.29, webdataset 1.18, parquet 1.03; idx 1.51 and 1.9, npz 1.78 twice (its
CRC). Of 4 KiB an example the digest and the index take a third as long as the write with its SHA-256, so that stored
formats are bounded at 2.2 and not at 1.5; against a plain write that keeps no digest they measured 3.0 to 5.0, as
SHA-256 alone takes as long as a write into the page cache. Memory of 244,140 examples was 67 to 78 MiB. Sizes above
1 GB were not measured.

Linux only; two and a half times the sizes have to be free in --folder. Exit 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
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
MEMORY_BOUND, TIME_BOUND, STORED_BOUND, PLAIN_BOUND = 128.0, 1.5, 2.2, 6.0
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
    """What cannot be left out: see the module."""
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


def kept(data: ExampleSet, to: Path, format: str) -> None:
    """The bare write, and the digest of what was written."""
    bare(data, to, format)
    with (to / "bare").open("rb") as file:
        hashlib.file_digest(file, "sha256")


def spent(work: Callable[[ExampleSet, Path, str], None], data: ExampleSet, folder: Path, format: str) -> float:
    """CPU seconds of one write, which is taken away again."""
    to = folder / "out"
    start = time.process_time()
    work(data, to, format)
    used = time.process_time() - start
    shutil.rmtree(to)
    return used


def timed(path: str, folder: str, num: int, format: str) -> list[float]:
    """Median of the paired ratios of CPU time to the bare side's; of stored formats also to the digested one's."""
    place, sides = Path(folder), (export, bare, kept) if format in STORED else (export, bare)

    def turn() -> dict[Callable[[ExampleSet, Path, str], None], float]:
        # examples anew for each turn: their digest is remembered
        return {work: spent(work, examples(Path(path), num, format), place, format) for work in sides}

    turn()
    ratios = [[used[export] / used[other] for other in sides[1:]] for used in (turn() for _ in range(REPEATS))]
    return [statistics.median(column) for column in zip(*ratios, strict=True)]


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
            against, *digested = in_child(timed, str(path), folder, num // TENTH, format)
            if digested:
                yield Row(format, "CPU time / a plain write's", against, PLAIN_BOUND)
                yield Row(format, "CPU time / a plain write's with its SHA-256", digested[0], STORED_BOUND)
            else:
                yield Row(format, "CPU time / the bare encoder's", against, TIME_BOUND)


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
