"""A corpus of malformed files: one good file of every kind of data that is read, spoiled in every way; seeded."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

NUM = 120


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file.

    Attributes:
        source: that reads it. ``file``: its name below the root, the one that is spoiled. ``config``: of the source.
        write: writes the good files below a root.
        schema: the file with other fields than it should have.
        cut: where a text is cut so that it is no longer whole; 0: at two thirds.
    """

    source: str
    file: str
    config: Mapping[str, Any]
    write: Callable[[Path], None]
    schema: Callable[[Path], None]
    cut: Callable[[bytes], int] = lambda data: len(data) * 2 // 3


def _numbers(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(NUM, 3)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64)


def _frame(seed: int = 0) -> pl.DataFrame:
    x, y = _numbers(seed)
    return pl.DataFrame({f"f{i}": x[:, i] for i in range(3)} | {"label": [("no", "yes")[k] for k in y]})


def _pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (NUM, 6, 6), np.uint8)


def _idx(path: Path, kind: int, values: np.ndarray) -> None:
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, kind, values.ndim, *values.shape)
    packed = head + values.tobytes()
    path.write_bytes(gzip.compress(packed, mtime=0) if path.suffix == ".gz" else packed)


def _idx_pair(root: Path, end: str = "") -> None:
    _idx(root / f"train-images-idx3-ubyte{end}", 8, _pixels())
    _idx(root / f"train-labels-idx1-ubyte{end}", 8, _numbers(0)[1].astype(np.uint8))


def _pictures(root: Path) -> None:
    for k, image in enumerate(_pixels()):
        folder = root / ("even", "odd")[k % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{k}.png")


def _pairs(root: Path) -> None:
    rows = [(f"u{u}", f"i{(u + 3 * k) % 17}", k) for u in range(12) for k in range(12)]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(root / "pairs.csv")


def _said(path: Path, columns: tuple[str, str] = ("prob_no", "prob_yes")) -> None:
    p = np.random.default_rng(3).uniform(0.05, 0.95, NUM)
    y = _numbers(0)[1]
    pl.DataFrame({columns[0]: 1 - p, columns[1]: p, "label": y, "split": ["train", "test"] * (NUM // 2)}).write_parquet(
        path
    )


def _after_a_cell(data: bytes) -> int:
    """Behind the first cell of the last row but one."""
    lines = data.rstrip(b"\n").split(b"\n")
    return sum(len(line) + 1 for line in lines[:-2]) + lines[-2].index(b",")


def _jsonl(frame: pl.DataFrame) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in frame.to_dicts()).encode()


LABEL = {"label": "label"}
KINDS: dict[str, Kind] = {
    "csv": Kind(
        source="table",
        file="data.csv",
        config={"file": "data.csv", **LABEL},
        write=lambda root: _frame().write_csv(root / "data.csv"),
        schema=lambda root: _frame().rename({"label": "other"}).write_csv(root / "data.csv"),
        cut=_after_a_cell,
    ),
    "parquet": Kind(
        source="table",
        file="data.parquet",
        config={"file": "data.parquet", **LABEL},
        write=lambda root: _frame().write_parquet(root / "data.parquet"),
        schema=lambda root: _frame().drop("label").write_parquet(root / "data.parquet"),
    ),
    "json lines": Kind(
        source="table",
        file="data.jsonl",
        config={"file": "data.jsonl", **LABEL},
        write=lambda root: (root / "data.jsonl").write_bytes(_jsonl(_frame())) and None,
        schema=lambda root: (root / "data.jsonl").write_bytes(b'[[1, 2], "text"]\n' * 9) and None,
    ),
    "npz": Kind(
        source="npz",
        file="data.npz",
        config={"file": "data.npz"},
        write=lambda root: np.savez_compressed(root / "data.npz", x=_pixels(), y=_numbers(0)[1]),
        schema=lambda root: np.savez_compressed(root / "data.npz", a=_pixels(), b=_numbers(0)[1][:-1]),
    ),
    "idx": Kind(
        source="idx",
        file="train-images-idx3-ubyte",
        config={},
        write=_idx_pair,
        schema=lambda root: _idx(root / "train-images-idx3-ubyte", 8, _numbers(0)[1].astype(np.uint8)),
    ),
    "idx.gz": Kind(
        source="idx",
        file="train-labels-idx1-ubyte.gz",
        config={},
        write=lambda root: _idx_pair(root, ".gz"),
        schema=lambda root: _idx(root / "train-labels-idx1-ubyte.gz", 8, np.zeros(NUM - 1, np.uint8)),
    ),
    "png": Kind(
        source="image_folder",
        file="odd/7.png",
        config={},
        write=_pictures,
        schema=lambda root: Image.fromarray(np.zeros((4, 9, 3), np.uint8)).save(root / "odd" / "7.png"),
    ),
    "texts": Kind(
        source="text",
        file="texts.jsonl",
        config={"file": "texts.jsonl", "text": "text", "max_tokens": 64},
        write=lambda root: (
            (root / "texts.jsonl").write_bytes(
                _jsonl(pl.DataFrame({"text": [f"a text of number {k}" for k in range(60)]}))
            )
            and None
        ),
        schema=lambda root: (
            (root / "texts.jsonl").write_bytes(_jsonl(pl.DataFrame({"number": list(range(60))}))) and None
        ),
    ),
    "interactions": Kind(
        source="interactions",
        file="pairs.csv",
        config={"file": "pairs.csv", "time": "time"},
        write=_pairs,
        schema=lambda root: (root / "pairs.csv").write_text("user,thing,time\nu1,i1,3\n") and None,
        cut=_after_a_cell,
    ),
    "outputs": Kind(
        source="outputs",
        file="said.parquet",
        config={"file": "said.parquet", "outputs": ["prob_no", "prob_yes"], "label": "label", "split": "split"},
        write=lambda root: _said(root / "said.parquet"),
        schema=lambda root: _said(root / "said.parquet", ("a", "b")),
    ),
}


def ways(kind: Kind, root: Path) -> Iterator[tuple[str, bytes]]:
    """(what was done, content) of each spoiling of the good file below ``root``."""
    good = (root / kind.file).read_bytes()
    image = io.BytesIO()
    Image.fromarray(_pixels()[0]).save(image, "PNG")
    other = image.getvalue() if not kind.file.endswith(".png") else _jsonl(_frame())
    yield "truncated", good[: kind.cut(good)]
    yield "cut to a few bytes", good[:7]
    yield "empty", b""
    yield "wrong magic", b"\xff\xfe\x00\x01" + good[4:]
    yield "swapped", other
    yield "pickle", pickle.dumps({"x": [1, 2, 3], "y": [0, 1, 0]})
    yield "zeros", bytes(len(good))
    kind.schema(root)
    yield "wrong schema", (root / kind.file).read_bytes()
    (root / kind.file).write_bytes(good)


def write_all(folder: Path) -> None:
    """Every malformed file below a folder, for people: ``KIND/WAY/FILE`` beside the good files that it is read with."""
    for name, kind in KINDS.items():
        good = folder / name / "good"
        good.mkdir(parents=True)
        kind.write(good)
        for way, content in ways(kind, good):
            place = folder / name / way / kind.file
            place.parent.mkdir(parents=True)
            place.write_bytes(content)
