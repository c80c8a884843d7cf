"""Exports, read back by programs that know nothing of this one, to the byte; and by our own sources."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import struct
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image

from contracts.errors import ConfigError, DataError, IntegrityError, NotApplicable, UnknownName
from contracts.methods import Asked
from contracts.methods import source as registered
from contracts.progress import silent
from curation.export.blocks import row_blocks
from curation.export.columns import as_arrow, as_lists
from curation.export.formats import FORMATS, MANIFEST, export_set, verify_export
from curation.export.images import folder_names, tar_header
from palimpsest.testing.worlds import class_examples, images, items, numbers, texts
from palimpsest.testing.worlds import masks as mask_world
from sources.example_set import ExampleSet
from sources.loading import load
from sources.rows import BLOCK_BYTES, Rows


def export(data: ExampleSet, to: Path, format: str) -> Path:
    about = {"subject": "s"}
    export_set(data, to, format=format, made=about, documents=lambda files: {"README.md": "# s\n"}, progress=silent)
    return to


@pytest.fixture(scope="module")
def pictures() -> ExampleSet:
    return images().examples


@pytest.fixture(scope="module")
def colour(pictures: ExampleSet) -> ExampleSet:
    x = np.random.default_rng(0).integers(0, 256, (len(pictures), 3, 6, 9), dtype=np.uint8)
    return dataclasses.replace(pictures, x=x)


def by_id(data: ExampleSet) -> dict[int, np.ndarray]:
    return dict(zip(data.example_id.tolist(), np.asarray(data.x), strict=True))


@pytest.mark.parametrize("which", ["pictures", "colour"])
def test_datasets_reads_pictures_and_class_names(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    import datasets

    data = request.getfixturevalue(which)
    folder = export(data, tmp_path / "out", "parquet")
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("parquet", data_dir=str(folder / "data"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "test"}
    assert loaded["train"].features["label"].names == list(data.class_names)
    wanted = by_id(data)
    for split in loaded:
        part = data.part(split)
        assert loaded[split]["example_id"] == part.example_id.tolist() and loaded[split]["label"] == part.y.tolist()
        for row in loaded[split]:
            pixels = np.asarray(row["image"])
            shown = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
            assert np.array_equal(shown, wanted[row["example_id"]])


def test_webdataset_reads_the_tars(colour: ExampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import webdataset

    monkeypatch.setattr("curation.export.images._SHARD_BYTES", 20_000)
    folder = export(colour, tmp_path / "out", "webdataset")
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    assert len(shards) > 4, "more than one shard a split"
    wanted, seen = by_id(colour), []
    for row in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("rgb8"):
        about = row["json"]
        seen.append(about["example_id"])
        assert np.array_equal(row["png"].transpose(2, 0, 1), wanted[about["example_id"]])
        assert int(row["cls"]) == about["label"] == colour.y[colour.positions([about["example_id"]])][0]
    assert sorted(seen) == sorted(colour.example_id.tolist())
    again = export(colour, tmp_path / "again", "webdataset")
    assert (again / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes(), "the same set, the same bytes"


def test_pillow_reads_the_folders(pictures: ExampleSet, tmp_path: Path) -> None:
    folder, wanted = export(pictures, tmp_path / "out", "folder"), by_id(pictures)
    with (folder / "examples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(pictures) == len(list(folder.rglob("*.png")))
    for row in rows:
        split, name, _ = row["file"].split("/")
        with Image.open(folder / row["file"]) as image:
            assert np.array_equal(np.asarray(image)[None], wanted[int(row["example_id"])])
        assert (split, name) == (row["split"], row["label_name"])


@pytest.mark.parametrize("format", ["folder", "npz", "idx", "parquet"])
def test_our_own_sources_read_the_same_examples(format: str, pictures: ExampleSet, tmp_path: Path) -> None:
    folder = export(pictures, tmp_path / "out", format)
    source, config = {
        "folder": ("image_folder", {"root": str(folder)}),
        "npz": ("npz", {"root": str(folder), "file": "data.npz"}),
        "idx": ("idx", {"root": str(folder)}),
        "parquet": ("image_table", {}),
    }[format]
    if format == "parquet":
        read = registered.get("image_table").spec.from_path
        config = read(folder / "data/train-00000-of-00001.parquet", Asked(id="example_id", label="label")).config
    back = load(source, config, seed=0)
    wanted = pictures.part("train") if format == "parquet" else pictures
    assert sorted(back.content_hash) == sorted(wanted.content_hash)
    names = {h: pictures.class_names[k] for h, k in zip(wanted.content_hash, wanted.y, strict=True)}
    told = {h: back.class_names[k] for h, k in zip(back.content_hash, back.y, strict=True)}
    if format in ("folder", "parquet"):
        assert told == names
    else:
        assert {h: pictures.class_names[int(name)] for h, name in told.items()} == names
    if format in ("npz", "parquet"):
        assert set(back.example_id) == set(wanted.example_id)


def test_idx_files_are_those_of_mnist(pictures: ExampleSet, tmp_path: Path) -> None:
    folder, test = export(pictures, tmp_path / "out", "idx"), pictures.part("test")
    content = (folder / "t10k-images-idx3-ubyte").read_bytes()
    assert struct.unpack(">IIII", content[:16]) == (0x0803, len(test), 8, 8) and content[16:] == test.x.tobytes()
    labels = (folder / "t10k-labels-idx1-ubyte").read_bytes()
    assert struct.unpack(">II", labels[:8]) == (0x0801, len(test)) and list(labels[8:]) == test.y.tolist()
    assert pl.read_csv(folder / "t10k-ids.csv")["example_id"].to_list() == test.example_id.tolist()


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_vectors_keep_names_numbers_and_what_stands_beside_them(format: str, tmp_path: Path) -> None:
    data = numbers().examples
    data = dataclasses.replace(data, columns={"step": np.arange(len(data)), "domain": data.split.astype(str)})
    folder, part = export(data, tmp_path / "out", format), data.part("train")
    if format == "parquet":
        rows = pq.read_table(folder / "data/train-00000-of-00001.parquet")
        assert str(rows.schema.field("f0").type) == "float"
        frame = rows.to_pydict()
    else:
        lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        frame = {name: [row[name] for row in lines] for name in lines[0]}
    assert frame["example_id"] == part.example_id.tolist() and frame["label"] == part.y.tolist()
    values = np.column_stack([np.array(frame[name], np.float32) for name in part.feature_names])
    assert np.array_equal(values, part.x)
    assert frame["step"] == part.columns["step"].tolist() and frame["domain"] == part.columns["domain"].tolist()


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_texts_are_tokens_with_what_counts(format: str, tmp_path: Path) -> None:
    data = texts().examples
    folder, part = export(data, tmp_path / "out", format), data.part("train")
    flat, counted, lengths = part.x.texts(slice(None))
    if format == "parquet":
        frame = pq.read_table(folder / "data/train-00000-of-00001.parquet").to_pydict()
    else:
        lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        frame = {name: [row[name] for row in lines] for name in lines[0]}
    assert [len(t) for t in frame["tokens"]] == lengths.tolist()
    assert [v for t in frame["tokens"] for v in t] == flat.tolist()
    assert [v for t in frame["counts"] for v in t] == counted.tolist()
    assert "label" not in frame


def test_float_images_and_interactions_as_arrays(tmp_path: Path) -> None:
    data = images().examples
    bright = dataclasses.replace(data, x=data.x.astype(np.float32) / 255, center=np.zeros((1, 1, 1), np.float32))
    frame = pq.read_table(export(bright, tmp_path / "a", "parquet") / "data/test-00000-of-00001.parquet").to_pydict()
    assert np.array_equal(np.array(frame["values"], np.float32), bright.part("test").x)
    with np.load(export(bright, tmp_path / "b", "npz") / "data.npz") as archive:
        assert np.array_equal(archive["x"], bright.x) and archive["y"].tolist() == bright.y.tolist()
    met = items().examples
    with np.load(export(met, tmp_path / "c", "npz") / "data.npz") as archive:
        assert np.array_equal(archive["x"], met.x)


def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = class_examples()
    whole = {f: (export(data, tmp_path / f, f) / MANIFEST).read_text() for f in ("npz", "jsonl")}
    monkeypatch.setattr("curation.export.blocks._MOST", 7)
    for format, manifest in whole.items():
        assert (export(data, tmp_path / f"{format}-small", format) / MANIFEST).read_text() == manifest


@pytest.mark.parametrize("side", [1, 40, 3000])
def test_a_block_is_bounded_in_bytes_with_its_masks(side: int) -> None:
    """Every example once, in order; no block above the bound but one example that is larger than it."""
    num = 5 if side == 3000 else 40_000
    x = np.broadcast_to(np.zeros((1, 1, side, side), np.uint8), (num, 1, side, side))
    y = np.broadcast_to(np.zeros((1, side, side), np.int64), (num, side, side))
    data = type("Sized", (SimpleNamespace,), {"__len__": lambda own: num})(x=x, y=y)
    cut = list(row_blocks(data))  # type: ignore[arg-type]
    assert [row for part in cut for row in (part.start, part.stop)][1:-1:2] == [part.start for part in cut[1:]]
    assert cut[0].start == 0 and cut[-1].stop == num
    held = [(part.stop - part.start) * 9 * side**2 for part in cut]
    assert max(held) <= BLOCK_BYTES or max(part.stop - part.start for part in cut) == 1
    assert max(part.stop - part.start for part in cut) <= 4096


@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 3, 4), (0, 2), (4, 0)])
def test_arrow_holds_the_lists_that_python_would(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert as_arrow(values).to_pylist() == values.tolist() == as_lists(values)
    assert as_arrow(values[::-1]).to_pylist() == values[::-1].tolist()


@pytest.mark.parametrize("size", [0, 1, 511, 512, 12_345, 8 * 2**30 - 1])
def test_headers_of_tars_are_those_of_tarfile(size: int) -> None:
    for name in ("0000000000000007.png", "9" * 19 + ".seg.png"):
        info = tarfile.TarInfo(name)
        info.size = size
        assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_tars_are_to_the_byte_those_of_tarfile(colour: ExampleSet, tmp_path: Path, monkeypatch) -> None:
    """Written anew by the library, file by file."""
    monkeypatch.setattr("curation.export.images._SHARD_BYTES", 20_000)
    folder = export(colour, tmp_path / "out", "webdataset")
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar, tarfile.open(tmp_path / "again.tar", "w", format=tarfile.USTAR_FORMAT) as again:
            for member in tar:
                info = tarfile.TarInfo(member.name)
                info.size = member.size
                again.addfile(info, tar.extractfile(member))
        assert (tmp_path / "again.tar").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("format", ["npz", "idx", "parquet", "jsonl", "folder", "webdataset"])
def test_memory_is_of_a_block_not_of_the_set(format: str, pictures: ExampleSet, tmp_path: Path, monkeypatch) -> None:
    """A mapped file is never gathered beyond a block, and no split's columns are copied as a whole."""
    monkeypatch.setattr("curation.export.blocks._MOST", 8)
    np.save(tmp_path / "x.npy", np.asarray(pictures.x))
    data = dataclasses.replace(pictures, x=np.load(tmp_path / "x.npy", mmap_mode="r"))
    data = data.take(np.flatnonzero(np.arange(len(data)) % 5 != 2))
    gathered, taken = [], []
    gather, take = Rows._gather, ExampleSet.take
    with monkeypatch.context() as seen:
        seen.setattr(Rows, "_gather", lambda own, rows: gathered.append(len(rows)) or gather(own, rows))
        seen.setattr(ExampleSet, "take", lambda own, rows: taken.append(len(rows)) or take(own, rows))
        export(data, tmp_path / "out", format)
    assert sum(gathered) >= len(data) - 2 * 8 and max(gathered) <= 8 and max(taken, default=0) <= 8
    plain = dataclasses.replace(data, x=np.asarray(data.x[:]))
    assert (tmp_path / "out" / MANIFEST).read_bytes() == (export(plain, tmp_path / "b", format) / MANIFEST).read_bytes()


def test_every_file_is_read_once_for_its_digest(pictures: ExampleSet, tmp_path: Path, monkeypatch) -> None:
    read: list[str] = []
    file_digest = hashlib.file_digest

    def counted(file, name):  # type: ignore[no-untyped-def]
        read.append(Path(file.name).name)
        return file_digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    folder = export(pictures, tmp_path / "out", "npz")
    assert sorted(read) == ["README.md", "data.npz"]
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    for name, facts in listed.items():
        content = (folder / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


@pytest.mark.parametrize(
    ("make", "format", "says"),
    [
        (class_examples, "folder", "float32 values of shape 5"),
        (class_examples, "webdataset", "float32 values"),
        (class_examples, "idx", "IDX files hold uint8 images"),
        (lambda: texts().examples, "npz", "no arrays"),
        (lambda: texts().examples, "folder", "a language task: folders are of classes"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_left(
    make: object, format: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(NotApplicable, match=says):
        export(make(), tmp_path / "out", format)  # type: ignore[operator]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_one_example_is_a_data_set_and_none_is_not(format: str, pictures: ExampleSet, tmp_path: Path) -> None:
    export(pictures.take(np.array([3])), tmp_path / "one", format)
    assert verify_export(tmp_path / "one") >= 2
    with pytest.raises(DataError, match="there is no example to export"):
        export(pictures.subset([]), tmp_path / "none", format)
    assert not (tmp_path / "none").exists()


def test_nothing_is_overwritten_and_nothing_half_written(
    pictures: ExampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownName, match="parquet"):
        export(pictures, tmp_path / "out", "tfrecord")
    folder = export(pictures, tmp_path / "out", "npz")
    with pytest.raises(ConfigError, match="is there already"):
        export(pictures, folder, "npz")
    with pytest.raises(ConfigError, match="no folder"):
        export(pictures, tmp_path / "no" / "such", "npz")
    (tmp_path / "empty").mkdir()
    export(pictures, tmp_path / "empty", "idx")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("curation.export.formats.json.dumps", full)
    with pytest.raises(OSError, match="No space"):
        export(pictures, tmp_path / "half", "npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "out"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_changed_export_is_refused(format: str, pictures: ExampleSet, tmp_path: Path) -> None:
    folder = export(pictures, tmp_path / "out", format)
    num = verify_export(folder)
    assert num == len([p for p in folder.rglob("*") if p.is_file()]) - 1
    victim = max((p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(IntegrityError, match="was changed"):
        verify_export(folder)
    victim.unlink()
    (folder / "more.txt").write_text("x")
    with pytest.raises(IntegrityError, match=r"is missing.*more.txt is not listed"):
        verify_export(folder)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(IntegrityError, match="no whole export"):
        verify_export(folder)


@pytest.fixture(scope="module")
def segmented() -> ExampleSet:
    return mask_world().examples


def test_masks_leave_in_folders_that_the_source_of_masks_reads(segmented: ExampleSet, tmp_path: Path) -> None:
    folder = export(segmented, tmp_path / "out", "folder")
    again = load("image_masks", {"root": str(folder), "class_names": list(segmented.class_names)})
    assert (again.split == "train").sum() == (segmented.split == "train").sum() and again.class_names == (
        "ground",
        "ring",
    )
    place = {int(Path(origin).stem): row for row, origin in enumerate(again.origin)}
    rows = [place[i] for i in segmented.example_id.tolist()]
    assert np.array_equal(again.x[rows], segmented.x) and np.array_equal(again.y[rows], segmented.y)
    listed = pl.read_csv(folder / "examples.csv")
    assert set(listed["example_id"]) == set(segmented.example_id.tolist()) and "label" not in listed.columns


def test_masks_stand_beside_their_pictures_in_tars_columns_and_arrays(segmented: ExampleSet, tmp_path: Path) -> None:
    import io
    import tarfile

    wanted = {i: (x, y) for i, x, y in zip(segmented.example_id.tolist(), segmented.x, segmented.y, strict=True)}

    def opened(content: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(content)))

    tars = export(segmented, tmp_path / "tars", "webdataset")
    found = 0
    for path in tars.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, _, end = member.name.partition(".")
                if end == "seg.png":
                    assert np.array_equal(opened(tar.extractfile(member).read()), wanted[int(key)][1])  # type: ignore[union-attr]
                    found += 1
    assert found == len(segmented)
    table = pq.read_table(export(segmented, tmp_path / "parquet", "parquet") / "data").to_pylist()
    assert len(table) == len(segmented) and "label" not in table[0]
    for row in table:
        image, mask = wanted[row["example_id"]]
        assert np.array_equal(opened(row["image"]["bytes"]), image[0])
        assert np.array_equal(opened(row["mask"]["bytes"]), mask)
    lines = export(segmented, tmp_path / "lines", "jsonl") / "train.jsonl"
    first = json.loads(lines.read_text().splitlines()[0])
    assert np.array_equal(first["mask"], wanted[first["example_id"]][1])
    arrays = np.load(export(segmented, tmp_path / "arrays", "npz") / "data.npz")
    assert np.array_equal(arrays["y"], segmented.y)


def test_folders_of_classes_are_safe_and_distinct(pictures: ExampleSet) -> None:
    odd = dataclasses.replace(pictures, class_names=("../up", "a/b", "..."))
    assert folder_names(odd) == ["up", "a_b", "class"]
    alike = dataclasses.replace(pictures, class_names=("Cat", "cat", "dog"))
    assert folder_names(alike) == ["0000_Cat", "0001_cat", "0002_dog"]
