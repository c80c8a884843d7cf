"""SIGKILL at random moments of ``palimpsest audit``: readers see a whole old or new state, and the run that goes on
after the kills ends in the digests of one that was never killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import audit_server
import duckdb
import pytest
import yaml

from contracts.digests import digest
from warehouse import Warehouse

pytestmark = [pytest.mark.chaos, pytest.mark.promise("A3")]
ROWS = 178
PLAN = {
    "subject": "crash",
    "source": {"name": "sklearn", "config": {"dataset": "wine", "test_fraction": 0.5}},
    "model": {"name": "mlp", "config": {"hidden": [8]}},
    "recipe": {"name": "supervised", "config": {"lr": 0.1, "batch": 32, "epochs": 3}},
    "early": {"seeds": 2, "epoch": 1},
    "ensemble": {"num_models": 8, "block": 2},
    "scores": ["el2n", "memorization"],
    "splits": [{"name": "random", "method": "random_fraction", "config": {"fraction": 0.2}}],
    "attacks": ["loss", "lira_online"],
}
UNLEARNING = {"split": "random", "methods": [{"name": "finetune", "config": {"epochs": 1}}], "seeds": 1}
MODULES = """
import sys
_, here, home, names = sys.argv
sys.path.insert(0, here)
import audit_server
status = audit_server.audit(home)
open(names, "w").write("\\n".join(sorted(name for name in sys.modules if name != "__main__")))
sys.exit(status)
"""


def _home(folder: Path, plan: dict[str, Any]) -> Path:
    subject = folder / "subjects" / "crash"
    subject.mkdir(parents=True)
    document = {"type": "pipelines.components.AuditedModel", "attributes": plan}
    (subject / "defs.yaml").write_text(yaml.safe_dump(document))
    return folder


class Server:
    """Starts audits that are already loaded."""

    def __init__(self, modules: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(audit_server.__file__)), str(modules)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._said("ready") == ""

    def _said(self, word: str) -> str:
        assert self.process.stdout is not None
        first, _, rest = self.process.stdout.readline().strip().partition(" ")
        assert first == word, (first, rest)
        return rest

    def audit(self, home: Path, *, kill_after_s: float | None = None, alone: bool = True) -> int:
        """Exit status of one audit; -9 when it was killed first.

        Args:
            alone: the audit's own process is killed; otherwise those that it started too.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(f"{home}\n")
        self.process.stdin.flush()
        pid = int(self._said("started"))
        timer = threading.Timer(kill_after_s or 0, _kill, (pid, alone))
        if kill_after_s is not None:
            timer.start()
        try:
            return int(self._said("ended"))
        finally:
            timer.cancel()


def _kill(pid: int, alone: bool) -> None:
    with suppress(ProcessLookupError):
        (os.kill if alone else os.killpg)(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the modules that an audit loads, by an audit that then names them."""
    folder = tmp_path_factory.mktemp("modules")
    home, names = _home(folder / "home", PLAN), folder / "modules.txt"
    here = str(Path(audit_server.__file__).parent)
    done = subprocess.run([sys.executable, "-c", MODULES, here, str(home), str(names)], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return names


@pytest.fixture(scope="module")
def server(modules: Path) -> Iterator[Server]:
    found = Server(modules)
    yield found
    assert found.process.stdin is not None
    found.process.stdin.close()
    found.process.wait(60)


def _content(home: Path) -> dict[str, str]:
    """Digest of the data version of every finished stage; tables, artefacts and ledger are whole."""
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
        for table, size in (("data.examples", ROWS), ("scores.el2n", None)):
            schema, name = table.split(".")
            known = con.execute(
                "SELECT 1 FROM duckdb_tables() WHERE schema_name = ? AND table_name = ?", [schema, name]
            ).fetchone()
            rows = con.execute(f"SELECT count(*) FROM {table}").fetchone() if known else (0,)
            assert rows is not None and (size is None or rows[0] in (0, size)), (table, rows)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("plan", "kills"),
    [(PLAN, 90), ({**PLAN, "unlearning": UNLEARNING}, 10)],
    ids=["scores and attacks", "unlearning too"],
)
def test_a_hundred_kills_at_random_moments(server: Server, tmp_path: Path, plan: dict[str, Any], kills: int) -> None:
    golden = _home(tmp_path / "golden", plan)
    started = time.monotonic()
    assert server.audit(golden) in (0, 1)
    whole_s = time.monotonic() - started
    expected = _content(golden)
    assert len(expected) > 8
    rng = random.Random(20)
    killed = finished = 0
    home = _home(tmp_path / "home-0", plan)
    while killed < kills:
        status = server.audit(home, kill_after_s=rng.uniform(0.02, 0.9) * whole_s, alone=killed % 2 == 0)
        _readable(home)
        if status == -signal.SIGKILL:
            killed += 1
            if killed < kills:
                continue
            status = server.audit(home)
        assert status in (0, 1), Path(f"{home}.log").read_text()
        assert _content(home) == expected
        finished += 1
        home = _home(tmp_path / f"home-{finished}", plan)
    assert finished >= 1
