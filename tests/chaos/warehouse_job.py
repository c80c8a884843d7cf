"""A small job that writes through every door of the warehouse, for tests that stop it half way.

python warehouse_job.py HOME GENERATION      writes the data of a generation
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from contracts.digests import digest
from contracts.methods import EXAMPLE_ID, ScoreSpec
from contracts.requests import ForgetRequest
from contracts.schema import EXAMPLES, SCORE_RUNS
from contracts.tables import Column
from warehouse import Limits, Warehouse

SCORE = ScoreSpec(
    name="el2n",
    doc="a score",
    value="el2n",
    higher_means="harder",
    columns=(Column(name="el2n", dtype="float64", low=0, doc="the score"),),
)
ASSET = "digits/scores/el2n"
assert SCORE.table.columns[0] == EXAMPLE_ID


def open_warehouse(home: Path) -> Warehouse:
    return Warehouse.open(home, limits=Limits(memory="256MB", threads=1), lock_timeout_s=60)


def run(home: Path, generation: int) -> str:
    """What an audit does with its state, in small; running it again changes nothing. The digest of the state."""
    w = open_warehouse(home)
    key = f"generation {generation}"
    common: dict[str, Any] = {"subject": "digits", "run_id": "run", "config_digest": key}
    if w.completed(ASSET, key) is None:
        n = 40 + generation
        examples = pl.DataFrame(
            {
                "example_id": range(n),
                "split": ["train"] * n,
                "label": [generation] * n,
                "label_name": [key] * n,
                "target": pl.Series([None] * n, dtype=pl.Float64),
                "owner": [""] * n,
                "content_hash": [key] * n,
                "origin": [f"row {i}" for i in range(n)],
            }
        )
        scores = pl.DataFrame({"example_id": range(n), "el2n": np.arange(n) / 7 + generation})
        runs = {
            "score": "el2n",
            "num_examples": n,
            "passed": True,
            "reason": "",
            "higher_means": "harder",
            "wall_s": 1.0,
        }
        weights = w.artifacts.save(f"{ASSET}/weights", {"w": np.full(64, generation)}, {"generation": generation})
        page = w.artifacts.save_bytes("digits/report.html", f"<h1>{key}</h1>".encode())
        w.replace(EXAMPLES, examples, **common)
        with w.transaction() as t:
            t.replace(SCORE, scores, **common)
            t.replace(SCORE_RUNS, pl.DataFrame([runs]), partition={"score": "el2n"}, **common)
        w.record_lineage(
            ASSET, parents=["digits/data/examples"], artifacts=[weights, page], key=key, members=range(n), **common
        )
        request = ForgetRequest(
            request_id=f"r{generation}",
            subject="digits",
            selector="ids",
            ids=(generation,),
            received_at="2026-01-01T00:00:00+00:00",
            due_at="2026-02-01T00:00:00+00:00",
        )
        w.requests.add(request)
        w.requests.reach(request.request_id, "verified")
        outputs = [weights, page, w.receipt(SCORE.table, subject="digits"), w.receipt(EXAMPLES, subject="digits")]
        w.complete(ASSET, key, {"generation": generation}, outputs=outputs)
    w.publish()
    return state(w)


def state(w: Warehouse) -> str:
    """Digest of every partition's content (clock readings left out) and every artefact's content."""
    with w.reading() as con:
        tables = con.execute(
            "SELECT name, subject, part, num_rows, content FROM meta.partitions ORDER BY ALL"
        ).fetchall()
    return digest([tables, [[name, w.artifacts.sha256(name)] for name in w.artifacts.names()]])


def problems(w: Warehouse, generations: set[int]) -> list[str]:
    """What a reader at this moment would find wrong: anything but one whole generation, or none."""
    found = (
        []
        if not (w.head_file.exists() or w.snapshot.exists())
        else list(w.ledger.verify().problems) + w.verify_tables()
    )
    if w.snapshot.exists():
        seen = w.query(
            "SELECT count(*), min(label), max(label), (SELECT count(*) FROM scores.latest), (SELECT max(value) FROM "
            "scores.latest) FROM data.examples"
        ).row(0)
        whole = [(40 + g, g, g, 40 + g, (39 + g) / 7 + g) for g in generations]
        if seen not in whole:
            found.append(f"the snapshot shows {seen}")
    for name in w.artifacts.names():
        if name.endswith(".html"):
            if w.artifacts.load_bytes(name) not in {f"<h1>generation {g}</h1>".encode() for g in generations}:
                found.append(f"{name} is of no generation")
            if not w.artifacts.describe(name).path.exists():
                found.append(f"{name} has no file")
        else:
            arrays, meta = w.artifacts.load(name)
            if meta["generation"] not in generations or not (arrays["w"] == meta["generation"]).all():
                found.append(f"{name} is of no generation")
    return found


def leftovers(home: Path) -> list[str]:
    """Temporary files, write-ahead logs, spill folders and contents without a manifest."""
    w = open_warehouse(home)
    kept = set(w.artifacts.names())
    stray = [p.name for p in home.rglob("*") if p.is_file() and (".tmp" in p.name or p.suffix == ".wal")]
    stray += [p.name for p in (home / "warehouse" / "spill").glob("*")]
    for path in (home / "artifacts").rglob("*.safetensors"):
        name = path.relative_to(home / "artifacts").as_posix().split(".")[0]
        if name not in kept or w.artifacts.describe(name).path != path:
            stray.append(path.name)
    return stray


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
