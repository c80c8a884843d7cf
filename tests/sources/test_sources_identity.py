"""Ids that the data do not bring: they follow the row wherever it stands and whatever else is in the file."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sources.identity
from contracts.errors import DataError
from sources.identity import Content
from sources.loading import load

ROW = st.tuples(
    st.sampled_from([0.0, -0.0, 1.5]), st.sampled_from("uv"), st.sampled_from("ab"), st.sampled_from(["", "ann", "bo"])
)


def _ids(rows: list[tuple[float, str, str, str]]) -> list[int]:
    value, text, label, owner = (list(column) for column in zip(*rows, strict=True))
    content = Content(np.array(value, np.float32)[:, None], pl.Series(text))
    return content.ids(np.array(label), np.array(owner)).tolist()


@settings(max_examples=200)
@given(rows=st.lists(ROW, min_size=2, max_size=30), data=st.data())
def test_any_row_may_be_moved_or_taken_out(rows, data):
    ids = _ids(rows)
    assert len(set(ids)) == len(ids) and all(0 <= i < 2**53 for i in ids)
    order = data.draw(st.permutations(range(len(rows))))
    moved = _ids([rows[i] for i in order])
    of = {row: {i for r, i in zip(rows, ids, strict=True) if r == row} for row in set(rows)}
    assert all({i for r, i in zip((rows[k] for k in order), moved, strict=True) if r == row} == of[row] for row in of)
    gone = data.draw(st.integers(0, len(rows) - 1))
    left = _ids(rows[:gone] + rows[gone + 1 :])
    assert not Counter(left) - Counter(ids), "a row got another id because one was taken out"
    (lost,) = set(ids) - set(left)
    assert lost in of[rows[gone]], "another row than the one that was taken out lost its id"


def test_what_makes_another_example():
    one = _ids([(0.0, "u", "a", "ann")])
    assert _ids([(-0.0, "u", "a", "ann")]) == one, "-0.0 is 0.0"
    others = [(1.5, "u", "a", "ann"), (0.0, "v", "a", "ann"), (0.0, "u", "b", "ann"), (0.0, "u", "a", "bo")]
    assert len({*one, *(i for row in others for i in _ids([row]))}) == 5


def test_many_rows_of_few_kinds_are_told_apart():
    content = Content(np.random.default_rng(0).integers(0, 3, (200_000, 2)).astype(np.uint8))
    assert len(np.unique(content.ids())) == 200_000


def test_ids_are_no_hash_of_the_stored_content_hash():
    """Whoever has the tables alone cannot try owners until an id fits."""
    content = Content(np.arange(4, dtype=np.float32)[None])
    (stored,), (made,) = content.hashes(), content.ids(np.array(["ann"]))
    for start in (stored.encode(), bytes.fromhex(stored)):
        for join in (b"", b"\0"):
            digest = hashlib.blake2b(start + join + b"ann", digest_size=8, person=b"example id").digest()
            assert int.from_bytes(digest, "little") >> 11 != made


def test_two_examples_with_one_id_are_refused(monkeypatch):
    monkeypatch.setattr(sources.identity, "_BITS", 3)
    with pytest.raises(DataError, match="give the data a column of ids"):
        Content(np.arange(40, dtype=np.uint8)[:, None]).ids()


# ----------------------------------------------------------------- each source, walked through a file


def _table(path: Path, keep: np.ndarray, *, suffix: str) -> dict[str, object]:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "height": rng.normal(size=60).round(2),
            "town": [["ulm", "bonn", "kiel"][i % 3] if i != 7 else "jena" for i in range(60)],  # one row of its level
            "person": [f"p{i % 9}" for i in range(60)],
            "label": [["yes", "no"][i % 2] for i in range(60)],
        }
    )[keep]
    frame.write_csv(path / "d.csv") if suffix == "csv" else frame.write_parquet(path / "d.parquet")
    return {"root": str(path), "file": f"d.{suffix}", "label": "label", "owner": "person"}


def _interactions(path: Path, keep: np.ndarray, *, time: str = "") -> dict[str, object]:
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", int(i)) for u in range(6) for i in rng.choice(40, 14, replace=False)]
    frame = pl.DataFrame(rows, schema=["user", "item"], orient="row").with_columns(time=pl.int_range(pl.len()))
    frame[keep].write_csv(path / "log.csv")
    return {"root": str(path), "file": "log.csv", "time": time}


def _npz(path: Path, keep: np.ndarray) -> dict[str, object]:
    rng = np.random.default_rng(0)
    np.savez(path / "d.npz", x=rng.normal(size=(60, 3)).astype(np.float32)[keep], y=(np.arange(60) % 2)[keep])
    return {"root": str(path), "file": "d.npz"}


def _pictures(path: Path, keep: np.ndarray) -> dict[str, object]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 4, 4), dtype=np.uint8)
    for place, row in enumerate(keep):
        folder = path / "pets" / ("cat", "dog")[row % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[row]).save(
            folder / f"{place:03d}.png"
        )  # the name goes with the place, not with the picture
    return {"root": str(path / "pets")}


def _idx(path: Path, keep: np.ndarray) -> dict[str, object]:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 4, 4), dtype=np.uint8)[keep], (np.arange(60) % 2).astype(np.uint8)[keep]
    for name, values in (("train-images-idx3-ubyte.gz", x), ("train-labels-idx1-ubyte.gz", y)):
        with gzip.open(path / name, "wb") as out:
            out.write(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())
    return {"root": str(path)}


SOURCES = {
    "csv": ("table", lambda p, k: _table(p, k, suffix="csv"), 60),
    "parquet": ("table", lambda p, k: _table(p, k, suffix="parquet"), 60),
    "interactions": ("interactions", _interactions, 84),
    "interactions by time": ("interactions", lambda p, k: _interactions(p, k, time="time"), 84),
    "npz": ("npz", _npz, 60),
    "pictures": ("image_folder", _pictures, 60),
    "idx": ("idx", _idx, 60),
}


@pytest.mark.parametrize("kind", list(SOURCES))
def test_a_file_whose_rows_moved_and_lost_one_keeps_every_other_id(tmp_path, kind):
    name, write, num = SOURCES[kind]
    before, after = tmp_path / "before", tmp_path / "after"
    keep = np.random.default_rng(1).permutation(np.delete(np.arange(num), 7))
    for folder in (before, after):
        folder.mkdir()
    first, second = load(name, write(before, np.arange(num))), load(name, write(after, keep))
    assert len(first) == num and len(second) == num - 1 and first.example_id.max() < 2**53
    assert not set(second.example_id) - set(first.example_id)
    same = first.subset(second.example_id)
    for column in ("content_hash", "owner"):
        assert (getattr(same, column) == getattr(second, column)).all()
    assert np.array_equal(np.array(same.class_names)[same.y], np.array(second.class_names)[second.y])
    moved = int((same.split != second.split).sum())
    assert moved <= 2, "a drawn split may move one example a stratum for the one that left"
