"""Every kind of file of a state folder, spoiled in every way: an error of ours that names it, whoever reads it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from warehouse_helpers import COMMON, EL2N, score_frame

from contracts.errors import IntegrityError, InvalidInput, PalimpsestError, UnsafeFile, in_words
from warehouse import Head, Warehouse, anchors, chain, publish, signing
from warehouse.filesums import FileSums
from warehouse.verify import verify

pytestmark = pytest.mark.journey

OURS = (IntegrityError, UnsafeFile, InvalidInput)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a file of every kind."""
    home = tmp_path_factory.mktemp("whole") / "home"
    w = Warehouse.open(home)
    w.replace(EL2N, score_frame(list(range(300))), **COMMON)
    one = w.artifacts.save("digits/one", {"w": np.arange(90.0)}, {"a": 1})
    other = w.artifacts.save("digits/two", {"w": np.ones(90)}, {"a": 2})
    page = w.artifacts.save_bytes("digits/page.html", b"<h1>" + b"a page " * 40)
    facts = w.artifacts.save_json("digits/facts", {"figures": list(range(40))})
    w.artifacts.save("digits/gone", {"w": np.ones(2)}, {})
    w.artifacts.remove("digits/gone", erased_for="r1", at="2026-01-01T00:00:00+00:00")
    signed = signing.sign({"what": "said"}, w.signer(), payload_type="t")
    certificate = w.artifacts.save_bytes("digits/1.dsse.json", signed)
    w.complete("digits/made", "key", outputs=[one, other, page, facts, certificate])
    w.salt()
    w.publish()
    (home / "heads").write_text(f"{w.ledger.head()} 2026-01-01T00:00:00+00:00\n" * 3)
    assert verify(Warehouse.existing(home)).whole
    return home


def content(home: Path, name: str) -> Path:
    """The file of an artefact's bytes."""
    (found,) = (home / "artifacts").glob(f"{name}.{'[0-9a-f]' * 16}.*")
    return found


def key_of(home: Path) -> object:
    return signing.key_of(signing.public_file(home).read_bytes(), where=str(signing.public_file(home)))


FILES: dict[str, tuple[Callable[[Path], Path], Callable[[Warehouse], object]]] = {
    "database": (lambda h: h / "warehouse/palimpsest.duckdb", lambda w: w.ledger.entries()),
    "snapshot": (
        lambda h: h / "warehouse/palimpsest.read.duckdb",
        lambda w: publish.refuse_damaged(w.snapshot, FileSums()),
    ),
    "sums": (
        lambda h: publish.sums_file(h / "warehouse/palimpsest.read.duckdb"),
        lambda w: publish.refuse_damaged(w.snapshot, FileSums()),
    ),
    "head": (lambda h: h / "warehouse/ledger.head", lambda w: chain.read_mirror(w.head_file)),
    "salt": (lambda h: h / "warehouse/salt", lambda w: w.salt()),
    "manifest": (lambda h: h / "artifacts/digits/one.manifest.json", lambda w: w.artifacts.load("digits/one")),
    "weights": (lambda h: content(h, "digits/one"), lambda w: w.artifacts.load("digits/one")),
    "page": (lambda h: h / "artifacts/digits/page.html", lambda w: w.artifacts.verified("digits/page.html")),
    "facts": (lambda h: content(h, "digits/facts.json"), lambda w: w.artifacts.load_json("digits/facts")),
    "tombstone": (lambda h: h / "artifacts/digits/gone.erased.json", lambda w: w.artifacts.load("digits/gone")),
    "certificate": (
        lambda h: content(h, "digits/1.dsse.json"),
        lambda w: signing.opened(
            content(w.home, "digits/1.dsse.json").read_bytes(), [key_of(w.home)], payload_type="t"
        ),
    ),
    "signing key": (lambda h: h / "keys/signing.pem", lambda w: w.signer()),
    "public key": (lambda h: h / "keys/signing.pub.pem", lambda w: key_of(w.home)),
    "heads": (lambda h: h / "heads", lambda w: anchors.heads_in(w.home / "heads")),
}
NOT_IN_MESSAGE = {"certificate"}  # its reader is given bytes; the command says which file
# A file of heads that was cut, or is empty, has fewer heads: what a crash leaves while one is appended.
FEWER = {("heads", way) for way in ("truncated", "cut to a few bytes", "empty", "zeros")}


def ways(path: Path, others: list[Path]) -> dict[str, bytes]:
    good = path.read_bytes()
    swapped = next(other.read_bytes() for other in others if other.suffix != path.suffix)
    return {
        "truncated": good[: len(good) * 2 // 3],
        "cut to a few bytes": good[:7],
        "empty": b"",
        "wrong magic": b"\x7fELF" + good[4:],
        "swapped": swapped,
        "pickle": pickle.dumps({"x": 1}),
        "zeros": bytes(len(good)),
        "other fields": json.dumps({"format": 1, "name": "digits/one", "of": "another kind"}).encode() + b"\n",
    }


@pytest.mark.promise("B2")
@pytest.mark.parametrize("kind", FILES)
def test_a_malformed_file_is_an_error_of_ours_that_names_it(whole: Path, tmp_path: Path, kind: str) -> None:
    home = Path(shutil.copytree(whole, tmp_path / "home"))
    where, read = FILES[kind]
    path = where(home)
    good = path.read_bytes()
    others = [place(home) for place, _ in FILES.values()]
    read_before = kind == "tombstone"  # reading that raises in any case: it says that it was erased
    if not read_before:
        read(Warehouse.open(home))
    for way, spoiled in ways(path, others).items():
        path.write_bytes(spoiled)
        w = Warehouse.existing(home)
        if (kind, way) in FEWER:
            assert len(anchors.heads_in(path)) < 3
        else:
            with pytest.raises(OURS) as refused:
                _read(w, kind, read)
            said = in_words(refused.value)
            assert "Traceback" not in said and (path.name in said or kind in NOT_IN_MESSAGE), (way, said)
            if kind not in ("heads", "public key"):  # those are given to whoever verifies, and not of the state itself
                found = verify(Warehouse.existing(home))
                assert not found.whole and "Traceback" not in str(found.problems), way
        path.write_bytes(good)
    assert verify(Warehouse.existing(home)).whole


def _read(w: Warehouse, kind: str, read: Callable[[Warehouse], object]) -> None:
    if kind == "database":
        with w.looking() as con:
            con.execute("SELECT * FROM ledger.entries").fetchall()
            con.execute("SELECT * FROM scores.el2n").fetchall()
        return
    read(w)


@pytest.mark.promise("B2")
@pytest.mark.parametrize("pair", [("digits/one", "digits/two"), ("digits/page.html", "digits/facts.json")])
def test_two_whole_files_that_were_swapped_are_found(whole: Path, tmp_path: Path, pair: tuple[str, str]) -> None:
    """With their manifests and without them."""
    home = Path(shutil.copytree(whole, tmp_path / "home"))
    store = Warehouse.existing(home).artifacts
    one, two = (content(home, name) for name in pair)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    for name in pair:
        with pytest.raises(PalimpsestError, match=r"damaged|changed"):
            store.verified(name)
    assert not verify(Warehouse.existing(home)).whole
    one.write_bytes(first)
    two.write_bytes(second)
    here, there = (store._manifest_path(name) for name in pair)
    texts = here.read_bytes(), there.read_bytes()
    here.write_bytes(texts[1])
    there.write_bytes(texts[0])
    with pytest.raises(IntegrityError, match="not the manifest of"):
        store.verified(pair[0])
    assert not verify(Warehouse.existing(home)).whole


def test_the_heads_that_are_left_in_a_cut_file_are_heads(whole: Path) -> None:
    assert anchors.heads_in(whole / "heads") == [Head.parse((whole / "heads").read_text().split()[0])] * 3
