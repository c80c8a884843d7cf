"""Artefacts: what was written is what is read, or an error says so; nothing is executed, nothing leaves the root."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings

from contracts.digests import canonical_json, digest
from contracts.errors import DataError, IllegalName, IntegrityError, NotReady, PalimpsestError, UnsafeFile
from contracts.stores import CheckpointStore
from warehouse import ArtifactStore, fsio
from warehouse.artifacts import check_header

TENSORS = {
    "weights": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "keep": np.array([True, False, True]),
    "ids": np.array([3, 1, 2**62], dtype=np.int64),
    "empty": np.zeros((0, 5), dtype=np.float64),
    "scalar": np.float64(0.25),
}
META = {"epoch": 3, "names": ["a", "é"], "lr": 0.1, "none": None}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def files(store: ArtifactStore) -> dict[str, bytes]:
    return {p.relative_to(store.root).as_posix(): p.read_bytes() for p in store.root.rglob("*") if p.is_file()}


def test_arrays_and_meta_come_back_bit_for_bit(store: ArtifactStore) -> None:
    artifact = store.save("digits/models/target", TENSORS, META)
    arrays, meta = store.load("digits/models/target")
    assert meta == META and arrays.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert arrays[name].dtype == value.dtype and arrays[name].shape == value.shape
        assert arrays[name].tobytes() == np.asarray(value).tobytes()
    assert (
        store.describe("digits/models/target") == artifact and store.sha256("digits/models/target") == artifact.sha256
    )
    assert artifact.path.stat().st_size == artifact.size_bytes and fsio.sha256_of(artifact.path) == artifact.sha256


def test_the_digest_depends_on_content_alone(store: ArtifactStore) -> None:
    one = store.save("a", TENSORS, META).sha256
    shuffled = dict(reversed(TENSORS.items()))
    assert store.save("b", shuffled, dict(reversed(META.items()))).sha256 == one
    strided = {**TENSORS, "weights": np.asfortranarray(TENSORS["weights"]), "ids": TENSORS["ids"].astype(">i8")}
    assert store.save("c", strided, META).sha256 == one
    assert store.save("d", TENSORS, {**META, "epoch": 4}).sha256 != one


def test_saving_again_replaces_and_leaves_nothing_behind(store: ArtifactStore) -> None:
    store.save("m", TENSORS, META)
    store.save("m", {"w": np.ones(3)}, {})
    assert store.load("m")[0]["w"].tolist() == [1, 1, 1]
    assert len(files(store)) == 2


def test_saving_the_same_again_writes_nothing(store: ArtifactStore) -> None:
    store.save("m", TENSORS, META)
    store.save_bytes("r.html", b"<p>", meta={"a": 1})
    before = {p: p.stat().st_mtime_ns for p in store.root.rglob("*")}
    store.save("m", TENSORS, META)
    store.save_bytes("r.html", b"<p>", meta={"a": 1})
    assert {p: p.stat().st_mtime_ns for p in store.root.rglob("*")} == before


def test_saving_the_same_again_mends_damage(store: ArtifactStore) -> None:
    artifact = store.save("m", TENSORS, META)
    artifact.path.write_bytes(b"x")
    store.save("m", TENSORS, META)
    assert store.load("m")[1] == META


def test_files_for_people_are_found_under_their_name(store: ArtifactStore) -> None:
    artifact = store.save_bytes("digits/report.html", b"<h1>one</h1>")
    assert artifact.path == store.root / "digits/report.html" and artifact.path.read_bytes() == b"<h1>one</h1>"
    store.save_bytes("digits/report.html", b"<h1>two</h1>")
    assert artifact.path.read_bytes() == store.load_bytes("digits/report.html") == b"<h1>two</h1>"
    store.save_json("digits/shown", {"b": [1, None], "a": "é"})
    assert store.load_json("digits/shown") == {"b": [1, None], "a": "é"}
    assert store.names() == ["digits/report.html", "digits/shown.json"] == store.names("digits")
    store.remove("digits/report.html")
    assert store.names() == ["digits/shown.json"] and not artifact.path.exists()


def test_someone_editing_the_file_for_people_is_found(store: ArtifactStore) -> None:
    artifact = store.save_bytes("report.html", b"<h1>fail</h1>")
    artifact.path.write_bytes(b"<h1>pass</h1>")
    with pytest.raises(IntegrityError, match="damaged"):
        store.load_bytes("report.html")


def test_what_is_not_there_is_not_ready(store: ArtifactStore) -> None:
    for ask in (store.load, store.describe, store.load_bytes, store.sha256):
        with pytest.raises(NotReady, match="'digits/none'"):
            ask("digits/none")
    assert not store.exists("digits/none") and not store.holds("digits/none", "0" * 64)


def test_the_checkpoint_store_of_a_training(store: ArtifactStore) -> None:
    checkpoints: CheckpointStore = store.store("digits/resume-1a")
    assert checkpoints.load("block_0") is None
    sha = checkpoints.save("block_0", {"w": np.array([np.nan, np.inf])}, {"epoch": 1})
    loaded = checkpoints.load("block_0")
    assert loaded is not None and np.isnan(loaded[0]["w"][0]) and loaded[1] == {"epoch": 1}
    assert store.sha256("digits/resume-1a/block_0") == sha


def test_nan_is_refused_unless_it_is_meant(store: ArtifactStore) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(DataError, match="artefact m: tensor w holds NaN or Inf"):
            store.save("m", {"w": np.array([1.0, bad])}, {})
    store.save("m", {"w": np.array([np.nan])}, {}, finite=False)
    assert np.isnan(store.load("m")[0]["w"][0])
    with pytest.raises(IntegrityError, match="tensor w holds NaN"):
        store.load("m", finite=True)


@pytest.mark.parametrize(
    "bad", [np.array([object()]), np.array(["text"]), np.array([1j]), np.array(["2026"], "M8[D]"), np.zeros(1, "i4,f4")]
)
def test_arrays_without_a_plain_form_are_refused(store: ArtifactStore, bad: Any) -> None:
    with pytest.raises(DataError, match="tensor w has type"):
        store.save("m", {"w": bad}, {})
    assert store.names() == []


class Canary:
    """Unpickling it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.promise("B3")
def test_pickles_are_never_executed(store: ArtifactStore, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    payload = pickle.dumps(Canary(marker))
    with pytest.raises(DataError):
        store.save("m", {"w": np.array([Canary(marker)], dtype=object)}, {})
    store.save_bytes("m.bin", payload)
    assert store.load_bytes("m.bin") == payload
    artifact = store.save("m", TENSORS, META)
    artifact.path.write_bytes(payload)
    with pytest.raises(IntegrityError):
        store.load("m")
    forge(store, "m", payload)
    with pytest.raises(UnsafeFile):
        store.load("m")
    store._manifest_path("m").write_bytes(payload)
    with pytest.raises(IntegrityError):
        store.load("m")
    assert not marker.exists()
    pickle.loads(payload)
    assert marker.exists(), "the canary is alive: it would have sung"


def forge(store: ArtifactStore, name: str, data: bytes, **changed: Any) -> None:
    """Content with a manifest that fits it: what someone with write access can make."""
    import hashlib

    sha = hashlib.sha256(data).hexdigest()
    manifest = {
        "format": 1,
        "name": name,
        "kind": "safetensors",
        "sha256": sha,
        "size_bytes": len(data),
        "meta": {},
    } | changed
    path = store._content_path(name, manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    store._manifest_path(name).write_bytes(canonical_json({**manifest, "check": digest(manifest)}).encode() + b"\n")


def image(header: Any, body: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(first: int, last: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


BOMBS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "header of 2 GB": image(b"{}", length=2**31),
    "header of 2^63": image(b"{}", length=2**63),
    "header past the end": image(b"{}", length=3),
    "not json": image(b"\x80\x04pickle"),
    "a list": image([1, 2]),
    "deep": image(b'{"a":' + b"[" * 100_000),
    "overlap": image({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, b"\0" * 12),
    "hole": image({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, b"\0" * 12),
    "tail": image({"a": tensor(0, 4, [1])}, b"\0" * 12),
    "short": image({"a": tensor(0, 400, [100])}, b"\0" * 4),
    "huge shape": image({"a": tensor(0, 4, [2**40])}, b"\0" * 4),
    "product overflow": image({"a": tensor(0, 0, [2**32, 2**32, 0])} | {"b": tensor(0, 4, [2**62, 8])}, b"\0" * 4),
    "negative shape": image({"a": tensor(0, 4, [-1, -1])}, b"\0" * 4),
    "backwards": image({"a": tensor(4, 0, [1])}, b"\0" * 4),
    "unknown type": image({"a": tensor(0, 4, [1], "P4")}, b"\0" * 4),
    "no offsets": image({"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4),
    "zip": b"PK\x03\x04" + b"\0" * 40,
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.promise("B5")
def test_bombs_and_lies_are_refused_before_anything_is_allocated(store: ArtifactStore, name: str) -> None:
    import tracemalloc

    forge(store, "bomb", BOMBS[name])
    tracemalloc.start()
    with pytest.raises(UnsafeFile):
        store.load("bomb")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@given(
    st.dictionaries(
        st.text("abc", min_size=1),
        st.tuples(st.sampled_from(["F32", "I64", "BOOL", "F16"]), st.lists(st.integers(0, 4), max_size=3)),
        max_size=4,
    )
)
@settings(max_examples=40)
def test_the_header_check_accepts_whatever_the_library_writes(layout: dict[str, tuple[str, list[int]]]) -> None:
    dtypes = {"F32": np.float32, "I64": np.int64, "BOOL": np.bool_, "F16": np.float16}
    data = safetensors.numpy.save(
        {k: np.zeros(shape, dtypes[d]) for k, (d, shape) in layout.items()}, metadata={"m": "x"}
    )
    check_header(data, Path("x"))


@pytest.mark.parametrize("target", ["content", "manifest"])
@pytest.mark.promise("B1")
def test_one_flipped_bit_anywhere_is_found(store: ArtifactStore, target: str) -> None:
    artifact = store.save("digits/m", TENSORS, META)
    path = artifact.path if target == "content" else store._manifest_path("digits/m")
    good = path.read_bytes()
    rng = np.random.default_rng(7)
    places = rng.choice(len(good) * 8, size=200, replace=False)
    for place in places.tolist():
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(bad))
        with pytest.raises(IntegrityError, match="digits"):
            store.load("digits/m")
    path.write_bytes(good)
    assert store.load("digits/m")[1] == META


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 100, -1])
@pytest.mark.promise("B2")
def test_truncated_files_are_found(store: ArtifactStore, cut: int) -> None:
    artifact = store.save("m", TENSORS, META)
    for path in (artifact.path, store._manifest_path("m")):
        good = path.read_bytes()
        path.write_bytes(good[:cut])
        with pytest.raises(IntegrityError):
            store.load("m")
        assert not store.holds("m", artifact.sha256)
        path.write_bytes(good)
    artifact.path.unlink()
    with pytest.raises(IntegrityError, match="does not exist"):
        store.load("m")


def test_swapped_files_are_found(store: ArtifactStore) -> None:
    one, two = store.save("one", {"w": np.zeros(3)}, {}), store.save("two", {"w": np.ones(3)}, {})
    first, second = one.path.read_bytes(), two.path.read_bytes()
    one.path.write_bytes(second)
    with pytest.raises(IntegrityError):
        store.load("one")
    one.path.write_bytes(first)
    store._manifest_path("one").write_bytes(store._manifest_path("two").read_bytes())
    with pytest.raises(IntegrityError):
        store.load("one")
    store.save_bytes("page.html", b"x")
    with pytest.raises(IntegrityError, match="is html, expected safetensors"):
        store.load("page.html")


HOSTILE_NAMES = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../../x",
    "a//b",
    "a/",
    "./a",
    "a/.",
    ".hidden",
    "A",
    "a b",
    "a\x00b",
    "a\nb",
    "con:",
    "a\\b",
    "~",
    "é",
    "a" * 65,
    "/".join(["a" * 60] * 8),
    "a.b.c.d",
    "a..b",
    "a.",
    "a.HTML",
    "file://a",
    "a/b.c/d",
    None,
    7,
]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda n: repr(n)[:20])
@pytest.mark.promise("B8")
def test_names_that_are_not_plain_components_are_refused(store: ArtifactStore, tmp_path: Path, name: Any) -> None:
    before = sorted(tmp_path.rglob("*"))
    for attempt in (
        lambda: store.save(name, TENSORS, META),
        lambda: store.load(name),
        lambda: store.remove(name),
        lambda: store.store(name),
    ):
        with pytest.raises(IllegalName):
            attempt()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_manifest_is_no_artefact_name(store: ArtifactStore) -> None:
    with pytest.raises(PalimpsestError):
        store.save_bytes("m.manifest.json", b"{}")


@pytest.mark.promise("B8")
def test_symbolic_links_do_not_lead_out(store: ArtifactStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    store.root.mkdir()
    (store.root / "link").symlink_to(outside)
    (store.root / "page.html").symlink_to(outside / "page.html")
    for name in ("link/m", "link/deeper/m", "page.html"):
        with pytest.raises(UnsafeFile, match="symbolic link"):
            store.save_bytes(name if "." in name else name + ".html", b"x")
    assert list(outside.iterdir()) == []


def test_a_manifest_of_unreasonable_size_is_refused(store: ArtifactStore) -> None:
    store.save("m", TENSORS, META)
    with store._manifest_path("m").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UnsafeFile, match="a manifest has at most"):
        store.load("m")


def test_a_reader_beside_a_writer_sees_one_or_the_other(store: ArtifactStore) -> None:
    """Threads: the reader must never meet content and manifest of different versions."""
    import threading

    store.save("m", {"w": np.full(1000, 0.0)}, {"i": 0})
    done, problems = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            try:
                arrays, meta = store.load("m")
                if not (arrays["w"] == meta["i"]).all():
                    problems.append(meta)
            except PalimpsestError as error:
                problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(60):
        store.save("m", {"w": np.full(1000, float(i))}, {"i": i})
    done.set()
    reader.join()
    assert problems == []


def test_several_writers_in_one_folder_do_not_disturb_each_other(store: ArtifactStore) -> None:
    import threading

    problems: list[Exception] = []

    def write(writer: int) -> None:
        try:
            for i in range(12):
                store.save("jobs/shared", {"w": np.full(8, float(100 * writer + i))}, {"w": 100 * writer + i})
                store.save_bytes(f"jobs/page{writer}.html", f"{writer} {i}".encode())
        except Exception as error:
            problems.append(error)

    writers = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    arrays, meta = store.load("jobs/shared")
    assert problems == [] and (arrays["w"] == meta["w"]).all() and meta["w"] % 100 == 11
    assert [store.load_bytes(f"jobs/page{k}.html") for k in range(4)] == [f"{k} 11".encode() for k in range(4)]
    assert len(files(store)) == 2 + 4 * 3, "contents of earlier versions are gone"


def test_what_a_killed_writer_left_is_swept_by_the_next(store: ArtifactStore) -> None:
    store.save("m", {"w": np.zeros(2)}, {})
    (store.root / ".m.manifest.json.123-0-abcd.tmp").write_bytes(b"half")
    store.save("other", {"w": np.zeros(2)}, {})
    assert len(files(store)) == 4


@given(st.binary(max_size=300))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_in_place_of_a_manifest_or_content_give_a_typed_error(store: ArtifactStore, data: bytes) -> None:
    artifact = store.save("m", TENSORS, META)
    manifest = store._manifest_path("m").read_bytes()
    for path in (artifact.path, store._manifest_path("m")):
        path.write_bytes(data)
        with pytest.raises(PalimpsestError):
            store.load("m")
        store._manifest_path("m").write_bytes(manifest)
    forge(store, "m", data)
    with pytest.raises(PalimpsestError):
        store.load("m")


def _anonymous_mib() -> float:
    """Memory of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def test_large_arrays_are_written_and_read_without_a_copy_in_memory(store: ArtifactStore) -> None:
    """What is written to loaded arrays stays in memory: the file is as it was."""
    array = np.arange(8 * 2**20, dtype=np.float64)  # 64 MiB
    before = _anonymous_mib()
    stored = store.save("large", {"reading": array, "small": np.array([True])}, {})
    saved = _anonymous_mib() - before
    loaded, _ = store.load("large")
    assert float(loaded["reading"][-1]) == len(array) - 1 and np.array_equal(loaded["reading"], array)
    read = _anonymous_mib() - before
    assert saved < 16 and read < 16, (saved, read)
    loaded["reading"][:3] = -1
    loaded["small"][0] = False
    again, _ = store.load("large")
    assert again["reading"][:3].tolist() == [0, 1, 2] and again["small"].tolist() == [True]
    assert store.verified("large").sha256 == stored.sha256
