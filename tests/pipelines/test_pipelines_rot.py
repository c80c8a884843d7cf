"""Bits that flip anywhere in the live evidence of a finished state: found by ``verify``, or nothing that is stored says
anything else. The state is that of ``erasure_world`` after its erasure: every kind of file is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import erasure_world as world
import numpy as np
import pytest

from contracts.errors import PalimpsestError
from warehouse import Warehouse
from warehouse.verify import verify

# What lies in a state folder and is no evidence: Dagster's own files, a lock, memories that are made anew, a person's
# plan, folders of jobs that have ended.
NO_EVIDENCE = (
    "history/",
    "schedules/",
    "compute_logs/",
    "jobs/",
    "outlines/",
    "exports/",
    "subjects/",
    "warehouse/filesums.json",
    "writer.lock",
)
# A flip here may change nothing that anybody reads: free blocks of the database, text around a key.
MAY_BE_HARMLESS = {"database", "keys"}


def kind_of(name: str) -> str:
    if name.startswith("artifacts/"):
        known = (".manifest.json", ".erased.json", ".dsse.json", ".safetensors", ".html", ".json")
        return next(ending for ending in known if name.endswith(ending))
    if name.startswith("keys/"):
        return "keys"
    return {
        "warehouse/palimpsest.duckdb": "database",
        "warehouse/palimpsest.read.duckdb": "snapshot",
        "warehouse/palimpsest.read.sums.json": "sums",
        "warehouse/ledger.head": "head",
        "warehouse/salt": "salt",
    }[name]


def evidence(home: Path) -> dict[str, list[Path]]:
    """Kind -> files. A file of an unknown kind is an error: it is evidence, or has to be named as none."""
    found: dict[str, list[Path]] = {}
    for path in sorted(p for p in home.rglob("*") if p.is_file()):
        name = path.relative_to(home).as_posix()
        if path.stat().st_size and not any(part in name for part in NO_EVIDENCE):
            found.setdefault(kind_of(name), []).append(path)
    return found


def flips(home: Path, count: int, seed: int, among: frozenset[str]) -> Iterator[tuple[str, Path]]:
    """Flip one bit in place, kind by kind, with the time of the last change set back; yield; put it back."""
    rng = np.random.default_rng(seed)
    kinds = {kind: files for kind, files in evidence(home).items() if not among or kind in among}
    for turn in range(count):
        kind = sorted(kinds)[turn % len(kinds)]
        path = kinds[kind][int(rng.integers(len(kinds[kind])))]
        good, before = path.read_bytes(), path.stat()
        place = int(rng.integers(8 * len(good)))
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        for content in (bytes(bad), good):
            with path.open("r+b") as file:
                file.write(content)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            if content != good:
                yield f"{kind}: {path.relative_to(home)}, bit {place}", path


def said(home: Path) -> dict[str, Any]:
    """Everything that is stored, as readers get it: rows of both databases, artefacts, the key."""
    w = Warehouse.existing(home)
    with w.looking() as main, w.looking_at_snapshot() as snapshot:
        rows: dict[str, Any] = {}
        for which, con in (("main", main), ("snapshot", snapshot)):
            for schema, name in con.execute(
                "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = current_database() ORDER "
                "BY ALL"
            ).fetchall():
                table = f'"{schema}"."{name}"'
                rows[f"{which} {table}"] = con.execute(f"SELECT * FROM {table} ORDER BY ALL").fetchall()
    files = {name: w.artifacts.verified(name).sha256 for name in w.artifacts.names()}
    return {**rows, "files": files, "key": w.signer().public_key.keyid, "salt": w.salt()}


def unnoticed(
    home: Path, count: int, seed: int, among: frozenset[str] = frozenset()
) -> tuple[dict[str, int], list[str]]:
    """How many flips of each kind (``among`` these; none: of all) were found, and where one was not although something
    says other things now."""
    before = said(home)
    found: dict[str, int] = {}
    silent = []
    for where, _ in flips(home, count, seed, among):
        kind = where.partition(":")[0]
        try:
            noticed = not verify(Warehouse.existing(home)).whole
            harmless = noticed or (kind in MAY_BE_HARMLESS and said(home) == before)
        except PalimpsestError:
            noticed = True
        found[kind] = found.get(kind, 0) + noticed
        if not (noticed or harmless):
            silent.append(where)
    assert verify(Warehouse.existing(home)).whole and said(home) == before, "every bit was put back"
    return found, silent


@pytest.fixture
def rotting(erased_once: tuple[Path, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = Path(shutil.copytree(erased_once[0], tmp_path / "state"))
    monkeypatch.setenv("PALIMPSEST_HOME", str(home))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    Warehouse.open(home).publish()
    return home


@pytest.mark.journey
def test_every_kind_of_file_is_among_the_evidence(rotting: Path) -> None:
    artefacts = {".manifest.json", ".erased.json", ".dsse.json", ".safetensors", ".html", ".json"}
    assert set(evidence(rotting)) == artefacts | {"database", "snapshot", "sums", "head", "salt", "keys"}
    assert world.MARKER not in "".join(map(str, evidence(rotting).values()))


@pytest.mark.journey
@pytest.mark.promise("B1")
def test_a_flipped_bit_in_evidence_is_found(rotting: Path) -> None:
    """The short form; of each kind alone: ``test_warehouse_malformed``."""
    found, silent = unnoticed(rotting, 4, seed=1, among=frozenset({"database", "snapshot", ".erased.json", ".json"}))
    assert silent == [] and sum(found.values()) >= 3
    assert {kind for kind, num in found.items() if num} >= set(found) - MAY_BE_HARMLESS, found


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.promise("B1")
@pytest.mark.parametrize("seed", [11, 12])
def test_two_hundred_flipped_bits_in_all_live_evidence(rotting: Path, seed: int) -> None:
    found, silent = unnoticed(rotting, 200, seed)
    assert silent == []
    whole = {kind: 200 // len(found) for kind in found if kind not in MAY_BE_HARMLESS}
    assert all(found[kind] >= num for kind, num in whole.items()), found


@pytest.mark.journey
def test_without_one_of_its_checks_flips_are_not_found(rotting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that finds everything whatever is looked at proves nothing."""
    from warehouse import publish, salt, verify_files

    spoiled = {
        "salt": (salt, "problem", lambda *_, **__: ""),
        "sums": (publish, "refuse_damaged", lambda *_: None),
        ".safetensors": (verify_files, "check_artifacts", lambda *_: None),
    }
    for kind, (module, name, nothing) in spoiled.items():
        with monkeypatch.context() as patch:
            patch.setattr(module, name, nothing)
            path = evidence(rotting)[kind][0]
            good = path.read_bytes()
            path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
            assert verify(Warehouse.existing(rotting)).whole, kind
            path.write_bytes(good)
