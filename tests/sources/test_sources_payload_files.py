"""Payload files: round trips, other readers, physical erasure that a crash leaves whole, hostile files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from contracts.errors import DataError, IntegrityError, PalimpsestError, UnsafeFile
from sources.files import sha256
from sources.payloads.arrays import payload_of
from sources.payloads.base import Affine
from sources.payloads.files import erase_examples, open_payload, write_payload
from sources.payloads.graph import Graph
from sources.payloads.pairs import Pairs
from sources.payloads.tokens import Tokens
from sources.rows import Rows

NUM = 12
IDS = np.arange(NUM, dtype=np.int64) * 5 + 1
ONE = Affine(np.zeros((), np.float32), np.ones((), np.float32))


def _tokens(seed=0):
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 30, n).astype(np.int32) for n in rng.integers(2, 9, NUM)]
    return Tokens.of(
        texts, [rng.integers(0, 2, len(t)).astype(np.uint8) for t in texts], vocab_size=30, pad=2, encoding="ab"
    )


def _graph():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(NUM, 3)).astype(np.float32)
    edges = np.array([(a, b) for a in range(NUM) for b in range(a + 1, NUM) if rng.random() < 0.4]).T
    return Graph(features, edges, IDS)


PAYLOADS = {
    "images": lambda: np.random.default_rng(2).integers(0, 256, (NUM, 3, 4, 5), dtype=np.uint8),
    "rows": lambda: Rows([np.random.default_rng(3).normal(size=(30, 4)).astype(np.float32)], np.arange(NUM) * 2),
    "tokens": _tokens,
    "graph": _graph,
    "pairs": lambda: Pairs(
        np.random.default_rng(4).normal(size=(NUM, 1, 4, 4)).astype(np.float32),
        np.random.default_rng(5).normal(size=(NUM, 1, 4, 4)).astype(np.float32),
        names=("noisy", "clean"),
        target=True,
    ),
    "pairs of tokens": lambda: Pairs(_tokens(6), _tokens(7), names=("chosen", "rejected")),
}


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _same(one, other):
    one, other = payload_of(one), payload_of(other)
    assert one.row_bytes(slice(0, len(one))) == other.row_bytes(slice(0, len(other)))
    assert one.shape == other.shape and one.kind == other.kind and dict(one.shared) == dict(other.shared)
    for a, b in ((one.inputs(slice(None), ONE), other.inputs(slice(None), ONE)),):
        if not isinstance(a, dict):
            a, b = {"": a}, {"": b}
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("kind", list(PAYLOADS))
def test_what_is_written_is_read_and_erased_rows_are_gone(tmp_path, kind):
    x = PAYLOADS[kind]()
    masks = np.random.default_rng(8).integers(0, 3, (NUM, 4, 5), dtype=np.uint8)
    path = tmp_path / "data.safetensors"
    digest = write_payload(path, x, example_id=IDS, y=masks)
    assert digest == sha256(path)
    found = open_payload(path, sha256=digest)
    _same(x, found.x)
    np.testing.assert_array_equal(found.y, masks)
    np.testing.assert_array_equal(found.example_id, IDS)
    path.chmod(0o640)
    gone = [2, 3, 11]
    kept = np.setdiff1d(np.arange(NUM), gone)
    erased = erase_examples(path, [*IDS[gone].tolist(), 999_999])
    assert (erased.num_erased, erased.sha256) == (3, sha256(path))
    assert path.stat().st_mode & 0o777 == 0o640 and _names(tmp_path) == ["data.safetensors"]
    left = open_payload(path, sha256=erased.sha256)
    _same(payload_of(x).only(kept), left.x)
    np.testing.assert_array_equal(left.y, masks[kept])
    np.testing.assert_array_equal(left.example_id, IDS[kept])
    assert erase_examples(path, IDS[gone]).num_erased == 0
    _same(x, found.x)  # a map that was open still shows the old file
    everything = erase_examples(path, IDS)
    assert everything.num_erased == NUM - 3 and len(open_payload(path).example_id) == 0


def test_the_bytes_of_erased_examples_are_in_no_file_of_the_folder(tmp_path):
    secret = np.frombuffer(b"the secret of an owner, word by word..", np.uint8).astype(np.int32)
    texts = [np.arange(20, dtype=np.int32), secret, np.arange(5, dtype=np.int32)]
    path = tmp_path / "t.safetensors"
    write_payload(path, Tokens.of(texts, vocab_size=300), example_id=np.arange(3))
    assert secret.tobytes() in path.read_bytes()
    erase_examples(path, [1])
    assert all(secret.tobytes() not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_another_reader_finds_the_arrays(tmp_path):
    path = tmp_path / "t.safetensors"
    tokens = _tokens()
    write_payload(path, tokens.take(np.array([5, 1, 7])), example_id=IDS[[5, 1, 7]])
    arrays = safetensors.numpy.load_file(path)
    assert arrays.keys() == {"x/flat", "x/offsets", "x/counted", "example_id"}
    for at, row in enumerate([5, 1, 7]):
        own = arrays["x/flat"][arrays["x/offsets"][at] : arrays["x/offsets"][at + 1]]
        np.testing.assert_array_equal(own, tokens.flat[tokens.offsets[row] : tokens.offsets[row + 1]])


@pytest.mark.parametrize("fails", ["fsync", "replace", "write"])
def test_after_a_crash_there_is_the_old_file_or_the_new_one(tmp_path, monkeypatch, fails):
    path = tmp_path / "t.safetensors"
    before = write_payload(path, _tokens(), example_id=IDS)

    class Crash(BaseException):
        pass

    def crash(*_args, **_kwargs):
        raise Crash

    with monkeypatch.context() as patch:
        if fails == "fsync":
            patch.setattr(os, "fsync", crash)
        elif fails == "replace":
            patch.setattr(Path, "replace", crash)
        else:
            patch.setattr(Tokens, "texts", crash)
        with pytest.raises(Crash):
            erase_examples(path, IDS[:2])
    assert sha256(path) == before and _names(tmp_path) == ["t.safetensors"]
    assert erase_examples(path, IDS[:2]).num_erased == 2


def test_what_a_killed_process_left_beside_it_is_taken_away(tmp_path):
    path = tmp_path / "t.safetensors"
    write_payload(path, _tokens(), example_id=IDS)
    beside = tmp_path / ".t.safetensors.rewritten"
    beside.write_bytes(b"half of it")
    erase_examples(path, [999])
    assert not beside.exists()


def test_flush_comes_before_the_name_and_the_folder_after_it(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("flush"), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("name"), replace(self, target))[1])
    write_payload(tmp_path / "t.safetensors", _tokens(), example_id=IDS)
    assert done == ["flush", "name", "flush"]


def test_links_do_not_keep_what_is_erased(tmp_path):
    path, link, hard = (tmp_path / name for name in ("t.safetensors", "link", "hard"))
    write_payload(path, _tokens(), example_id=IDS)
    link.symlink_to(path)
    assert erase_examples(link, IDS[:1]).num_erased == 1
    assert link.is_symlink() and len(open_payload(path).example_id) == NUM - 1
    os.link(path, hard)
    with pytest.raises(UnsafeFile, match="hard links"):
        erase_examples(path, IDS[1:2])


def test_peak_memory_of_erasure_is_a_block(tmp_path, peak_below):
    num = 40_000
    flat = np.arange(num * 100, dtype=np.int32) % 500
    tokens = Tokens(flat, np.arange(0, len(flat) + 1, 100), np.ones(len(flat), np.uint8), vocab_size=500)
    path = tmp_path / "t.safetensors"
    write_payload(path, tokens, example_id=np.arange(num))
    with peak_below(12e6):  # the file has 20 MB
        assert erase_examples(path, np.arange(0, num, 7)).num_erased == len(range(0, num, 7))


def test_what_cannot_be_written_is_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    for ids in (IDS[:-1], IDS.astype(np.int32), np.zeros(NUM, np.int64)):
        with pytest.raises(DataError, match="unique int64"):
            write_payload(path, _tokens(), example_id=ids)
    with pytest.raises(DataError, match="11 targets for 12"):
        write_payload(path, _tokens(), example_id=IDS, y=np.zeros((11, 2, 2), np.uint8))
    with pytest.raises(DataError, match="y is int16"):
        write_payload(path, _tokens(), example_id=IDS, y=np.zeros((NUM, 2, 2), np.int16))
    assert not _names(tmp_path)


def _header(path: Path, change) -> None:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


HOSTILE = {
    "empty": lambda p: p.write_bytes(b""),
    "no header": lambda p: p.write_bytes(b"\x00" * 40),
    "a pickle": lambda p: p.write_bytes(b"\x80\x04\x95" + b"." * 90),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-3]),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"x"),
    "no json": lambda p: p.write_bytes((4).to_bytes(8, "little") + b"{{{{" + b"x" * 50),
    "a list": lambda p: p.write_bytes((2).to_bytes(8, "little") + b"[]" + b"x" * 50),
    "deep": lambda p: p.write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000),
    "huge header": lambda p: p.write_bytes((2**40).to_bytes(8, "little") + b"x" * 50),
    "large header": lambda p: p.write_bytes((2**21).to_bytes(8, "little") + b" " * 2**21),
    "another format": lambda p: _header(p, lambda h: h["__metadata__"].update(format="pt")),
    "unknown kind": lambda p: _header(p, lambda h: h["__metadata__"].update(settings='{"kind": "video"}')),
    "settings": lambda p: _header(p, lambda h: h["__metadata__"].update(settings='{"kind": "tokens"}')),
    "settings no map": lambda p: _header(p, lambda h: h["__metadata__"].update(settings="[]")),
    "negative shape": lambda p: _header(p, lambda h: h["x/flat"].update(shape=[-1])),
    "other shape": lambda p: _header(p, lambda h: h["x/flat"].update(shape=[2**60])),
    "overlap": lambda p: _header(p, lambda h: h["x/flat"].update(data_offsets=h["example_id"]["data_offsets"])),
    "other type": lambda p: _header(p, lambda h: h["x/flat"].update(dtype="F32")),
    "strange type": lambda p: _header(p, lambda h: h["x/flat"].update(dtype="O")),
    "no ids": lambda p: _header(p, lambda h: h.update(renamed=h.pop("example_id"))),
    "no offsets": lambda p: _header(p, lambda h: h.update({"x/other": h.pop("x/offsets")})),
}


@pytest.mark.parametrize("what", list(HOSTILE))
@pytest.mark.promise("B2")
def test_hostile_files_are_refused_by_name(tmp_path, what):
    path = tmp_path / "t.safetensors"
    write_payload(path, _tokens(), example_id=IDS)
    HOSTILE[what](path)
    with pytest.raises(PalimpsestError, match=r"t\.safetensors|tokens: ") as error:
        open_payload(path)
    assert isinstance(error.value, (DataError, UnsafeFile))


def test_a_file_that_changed_is_not_what_was_recorded(tmp_path):
    path = tmp_path / "t.safetensors"
    digest = write_payload(path, _tokens(), example_id=IDS)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(IntegrityError, match=digest):
        open_payload(path, sha256=digest)


_KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from sources.payloads import files

if sys.argv[2] == "before the name":
    files.os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
else:
    replace = Path.replace
    Path.replace = lambda self, target: (replace(self, target), os.kill(os.getpid(), signal.SIGKILL))
files.erase_examples(Path(sys.argv[1]), [1])
"""


@pytest.mark.parametrize(("when", "num"), [("before the name", NUM), ("after it", NUM - 1)])
def test_a_killed_process_leaves_one_whole_file(tmp_path, when, num):
    path = tmp_path / "t.safetensors"
    write_payload(path, _tokens(), example_id=IDS)
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(path), when], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(open_payload(path).example_id) == num
    assert erase_examples(path, [1]).num_erased == num - NUM + 1
    assert _names(tmp_path) == ["t.safetensors"]
