"""SIGKILL at random moments of ``palimpsest audit``: readers see a whole old or new state, the next run ends in the
same digests."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
import yaml

from contracts.digests import digest
from warehouse import Warehouse

pytestmark = pytest.mark.chaos
KILLS = int(os.environ.get("PALIMPSEST_KILLS", "20"))
PLAN = {
    "subject": "crash",
    "source": {"name": "sklearn", "config": {"dataset": "digits", "test_fraction": 0.5}},
    "model": {"name": "mlp", "config": {"hidden": [32]}},
    "recipe": {"name": "supervised", "config": {"lr": 0.1, "batch": 64, "epochs": 15}},
    "early": {"seeds": 2, "epoch": 1},
    "ensemble": {"num_models": 8, "block": 2},
    "scores": ["el2n", "grand", "memorization"],
    "splits": [{"name": "random", "method": "random_fraction", "config": {"fraction": 0.2}}],
    "unlearning": {"split": "random", "methods": [{"name": "finetune", "config": {"epochs": 1}}], "seeds": 1},
    "attacks": ["loss", "lira_online"],
}


def _home(folder: Path) -> Path:
    subject = folder / "subjects" / "crash"
    subject.mkdir(parents=True)
    document = {"type": "pipelines.components.AuditedModel", "attributes": PLAN}
    (subject / "defs.yaml").write_text(yaml.safe_dump(document))
    return folder


def _start(home: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PALIMPSEST_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-c", "from pipelines.cli import main; main()", "audit", "crash"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _finish(home: Path) -> None:
    process = _start(home)
    out, _ = process.communicate(timeout=600)
    assert process.returncode in (0, 1), out.decode()


def _content(home: Path) -> dict[str, str]:
    """Digest of every table's rows (without clocks and run ids) and of every finished stage's data version."""
    w = Warehouse.open(home)
    assert w.ledger.verify().ok and w.verify_tables() == []
    last = {}
    for text in w.ledger.entries(kind="stage")["body"]:
        body = json.loads(text)
        last[body["asset"]] = body["data_version"]
    last.pop("crash/reports/audit", None)  # carries the time it was made
    return {asset: digest(version) for asset, version in sorted(last.items())}


def _readable(home: Path) -> None:
    """A stranger's connection: the published file is whole, and a table is empty or complete."""
    path = home / "warehouse" / "palimpsest.read.duckdb"
    if not path.exists():
        return
    with duckdb.connect(str(path), read_only=True) as con:
        for table, size in (("data.examples", 1797), ("scores.el2n", None)):
            schema, name = table.split(".")
            known = con.execute(
                "SELECT 1 FROM duckdb_tables() WHERE schema_name = ? AND table_name = ?", [schema, name]
            ).fetchone()
            rows = con.execute(f"SELECT count(*) FROM {table}").fetchone() if known else (0,)
            assert rows is not None and (size is None or rows[0] in (0, size)), (table, rows)


@pytest.mark.timeout(3600)
@pytest.mark.promise("A3")
def test_killed_at_random_moments(tmp_path: Path) -> None:
    golden = _home(tmp_path / "golden")
    started = time.monotonic()
    _finish(golden)
    whole_s = time.monotonic() - started
    expected = _content(golden)
    assert len(expected) > 10
    rng = random.Random(20)
    killed = 0
    home = _home(tmp_path / "killed-0")
    for attempt in range(KILLS):
        process = _start(home)
        time.sleep(rng.uniform(0.2, whole_s))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL) if attempt % 2 else process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait(60)
        _readable(home)
        if process.returncode in (0, 1) or attempt % 4 == 3:
            _finish(home)
            assert _content(home) == expected
            home = _home(tmp_path / f"killed-{attempt + 1}")
    assert killed >= KILLS // 2
