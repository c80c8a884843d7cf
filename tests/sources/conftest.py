"""Small data of every kind, written the way others write them: plain bytes, numpy, pandas and Pillow defaults."""

from __future__ import annotations

import contextlib
import gzip
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sources.assemble import assemble
from sources.example_set import ExampleSet


def idx_bytes(values: np.ndarray, kind: int = 0x08) -> bytes:
    big = values.astype({0x08: ">u1", 0x09: ">i1", 0x0C: ">i4", 0x0D: ">f4"}[kind])
    return bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + big.tobytes()


@pytest.fixture
def peak_below() -> Callable[[float], contextlib.AbstractContextManager[None]]:
    """Fails when the block allocates more than so many bytes at its peak (numpy's arrays included)."""

    @contextlib.contextmanager
    def measure(limit: float) -> Iterator[None]:
        tracemalloc.start()
        try:
            yield
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < limit, f"peak of {peak:,} bytes, at most {limit:,} expected"

    return measure


@pytest.fixture
def write_idx() -> Callable[..., Path]:
    def write(path: Path, values: np.ndarray, *, kind: int = 0x08) -> Path:
        data = idx_bytes(values, kind)
        path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
        return path

    return write


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    """60 uint8 images (60, 6, 5) of 3 classes, every class 20 times."""
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (60, 6, 5), dtype=np.uint8), (np.arange(60) % 3).astype(np.int64)


@pytest.fixture
def frame() -> pd.DataFrame:
    """60 rows: two numbers, a bool, a category, an owner, a label."""
    rng = np.random.default_rng(6)
    return pd.DataFrame(
        {
            "height": rng.normal(170, 10, 60),
            "visits": rng.integers(0, 30, 60),
            "smoker": rng.random(60) < 0.3,
            "town": rng.choice(["Ulm", "Bonn", "Köln"], 60),
            "person": [f"p{i % 7}" for i in range(60)],
            "label": np.array(["no", "yes"])[np.arange(60) % 2],
        }
    )


@pytest.fixture
def image_tree() -> Callable[..., Path]:
    """Writes root/CLASS/i.png from a mapping of relative names to arrays (H, W) or (H, W, 3)."""

    def write(root: Path, files: dict[str, np.ndarray]) -> Path:
        for name, pixels in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / name)
        return root

    return write


@pytest.fixture
def make_examples() -> Callable[..., ExampleSet]:
    """A valid small set; any field can be given."""

    def make(
        x: np.ndarray | None = None, *, num: int = 40, num_classes: int = 3, seed: int = 0, **more: object
    ) -> ExampleSet:
        rng = np.random.default_rng(seed)
        x = rng.normal(3, 2, (num, 4)).astype(np.float32) if x is None else x
        given = {
            "y": (np.arange(len(x)) % num_classes).astype(np.int64),
            "name": "small",
            "task": "classification",
            "class_names": tuple(f"c{k}" for k in range(num_classes)),
            "seed": seed,
            "test_fraction": 0.25,
            "example_id": np.arange(len(x), dtype=np.int64) * 7 + 3,
            "provenance": {"source": "test"},
        } | more
        return assemble(x, given.pop("y"), **given)

    return make
