"""What a person's example says is in the data store, and in reports as they say: in no log, event, metadata or alert.

Two subjects, a table with labels and owners and a table of texts, are audited by the command's own function, with
Dagster's records, lineage events and alerts, and a forget request of the person is run. Each marker is something else
that an example says of somebody.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import marker_search
import numpy as np
import polars as pl
import pytest
import yaml
from erasure_world import Here

from assets import Workspace
from contracts.subject import Subject
from pipelines.cli import audit
from pipelines.cli import requests as asked
from pipelines.home import dagster_home
from pipelines.subjects import write_subject
from warehouse import Warehouse

OWNER, LABEL, TEXT, COLUMN = "zqxowner", "zqxlabel", "zqxtext", "zqxcolumn"
TABLE = {
    "subject": "people",
    "model": {"name": "mlp", "config": {"hidden": [4]}},
    "recipe": {"name": "supervised", "config": {"lr": 0.1, "batch": 64, "epochs": 2}},
    "early": {"seeds": 1, "epoch": 1},
    "ensemble": {"num_models": 4, "block": 4},
    "scores": ["el2n"],
    "splits": [{"name": "random", "method": "random_fraction", "config": {"fraction": 0.2}}],
    "analyses": ["dataset_issues"],
    "unlearning": {"split": "random", "methods": [{"name": "finetune", "config": {"epochs": 1}}], "seeds": 1},
    "attacks": ["loss"],
}
TEXTS = {
    "subject": "texts",
    "model": {"name": "tiny_llama", "config": {"hidden": 8, "intermediate": 8, "layers": 1, "heads": 2}},
    "recipe": {"name": "causal_lm", "config": {"lr": 0.02, "batch": 32, "epochs": 1, "warmup_epochs": 0}},
    "attacks": ["loss"],
}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with _world(tmp_path_factory.mktemp("people"), _people) as found:
        return found


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with _world(tmp_path_factory.mktemp("texts"), _texts) as found:
        return found


@contextlib.contextmanager
def _world(root: Path, audited: Callable[[Path, Path], None]) -> Iterator[dict[str, Any]]:
    """The folder with the state and what was said outside it: alerts, lineage events, the terminal."""
    home, events, got = root / "state", root / "events.jsonl", []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    home.mkdir()
    hook = {
        "alerts": {"webhook": f"http://127.0.0.1:{server.server_port}"},
        "anchors": {"file": str(root / "no" / "a")},
    }
    (home / "operations.yaml").write_text(yaml.safe_dump(hook))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setenv("PALIMPSEST_HOME", str(home))
        patch.delenv("DAGSTER_HOME", raising=False)
        patch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "file")
        patch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(events))
        patch.setenv("OPENLINEAGE__TRANSPORT__APPEND", "true")
        patch.setattr(audit, "workspace_of", lambda home: Workspace(home, launcher=Here(), publish_every_s=30))
        try:
            audited(root, home)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
    yield {"root": root, "home": home, "events": events.read_text(), "alerts": got, "said": said.getvalue()}


def _people(root: Path, home: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 3)).astype(np.float32)
    person = np.arange(160) % 10 == 3
    pl.DataFrame(
        {f"f{i}": x[:, i] for i in range(3)}
        | {
            "kind": [LABEL if v > 0 else "other" for v in x[:, 0]],
            "who": [f"{OWNER}@example.org" if p else f"person{k % 10}" for k, p in enumerate(person)],
            "ward": [COLUMN if p else "ward" for p in person],
            "split": ["test" if k % 3 == 2 else "train" for k in range(160)],
        }
    ).write_csv(root / "people.csv")
    config = {"root": str(root), "file": "people.csv", "label": "kind", "owner": "who", "split": "split"}
    plan = Subject.from_mapping({**TABLE, "source": {"name": "table", "config": {**config, "keep": ["ward"]}}})
    write_subject(plan, home, comment="a test")
    workspace, _ = audit.run_subject(plan, home, job="audit")
    made = asked.register(plan, workspace, owner=f"{OWNER}@example.org", request_id="r1")
    assert len(made.example_id) == 16
    asked.execute(plan, workspace, "r1")


def _texts(root: Path, home: Path) -> None:
    texts = [f"{TEXT} says {k}" if k % 6 == 1 else f"somebody says {k}" for k in range(48)]
    whose = [f"{OWNER}@example.org" if k % 6 == 1 else f"person{k % 6}" for k in range(48)]
    pl.DataFrame({"text": texts, "who": whose}).write_csv(root / "texts.csv")
    config = {"root": str(root), "file": "texts.csv", "text": "text", "owner": "who", "max_tokens": 64}
    plan = Subject.from_mapping({**TEXTS, "source": {"name": "text", "config": config}})
    write_subject(plan, home, comment="a test")
    audit.run_subject(plan, home, job="audit")


STORE = ("warehouse/palimpsest.duckdb", "warehouse/palimpsest.read.duckdb")
PEOPLE = {
    OWNER: set(),  # a token stands for them, also in the data store
    LABEL: {f"{db}!{table}" for db in STORE for table in ("data.examples", "scores.dataset_issues")}
    | {"artifacts/people/reports/audit", "artifacts/people/request_reports/r1/audit"},  # reports show examples
    COLUMN: {f"{db}!data.columns" for db in STORE},
}
TEXTS_TOO = {OWNER: set(), TEXT: {"artifacts/texts/reports/audit"}}


def refuse_elsewhere(world: dict[str, Any], marker: str, allowed: set[str]) -> None:
    found = {
        place.partition(".")[0] if "reports/" in place else place
        for place in marker_search.places(world["home"], marker)
    }
    assert found <= allowed, sorted(found - allowed)
    for what in ("events", "alerts", "said"):
        assert marker not in str(world[what]), what
    assert marker_search.places(world["root"], marker), "it is in the data"


@pytest.mark.journey
@pytest.mark.promise("B10")
@pytest.mark.parametrize("marker", PEOPLE)
def test_what_an_example_says_is_in_the_data_store_and_nowhere_else(people: dict[str, Any], marker: str) -> None:
    refuse_elsewhere(people, marker, PEOPLE[marker])


@pytest.mark.journey
@pytest.mark.parametrize("marker", TEXTS_TOO)
def test_what_a_text_says_is_nowhere_else_either(texts: dict[str, Any], marker: str) -> None:
    refuse_elsewhere(texts, marker, TEXTS_TOO[marker])


@pytest.mark.journey
@pytest.mark.promise("B10")
def test_everything_that_could_have_told_has_said_something(people: dict[str, Any]) -> None:
    home = people["home"]
    assert f"{STORE[0]}!data.columns" in marker_search.places(home, COLUMN)
    assert f"{STORE[0]}!data.examples" in marker_search.places(home, LABEL)
    assert "r1" in people["events"] and "people.scores.el2n" in people["events"]
    kinds = {json.loads(body)["kind"] for body in people["alerts"]}
    assert "anchor" in kinds, "an alert was sent after each run"
    assert list(home.rglob("job.json")) and any(home.rglob("runs.db"))
    w = Warehouse.existing(home)
    assert w.requests.get("r1").num_examples and w.requests.get("r1").state.value in ("audited", "closed")


@pytest.mark.journey
def test_a_marker_elsewhere_is_found(people: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Dagster's records, in the ledger, in a log, in a lineage event: each alone is refused, and named."""
    home = Path(shutil.copytree(people["home"], tmp_path / "state"))
    monkeypatch.setenv("PALIMPSEST_HOME", str(home))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    world = {**people, "home": home}
    (home / "jobs" / "stderr.txt").write_text(f"row 3 says {COLUMN}")
    with pytest.raises(AssertionError, match=r"jobs/stderr\.txt"):
        refuse_elsewhere(world, COLUMN, PEOPLE[COLUMN])
    (home / "jobs" / "stderr.txt").unlink()
    refuse_elsewhere(world, COLUMN, PEOPLE[COLUMN])
    with pytest.raises(AssertionError, match="events"):
        refuse_elsewhere({**world, "events": people["events"] + COLUMN}, COLUMN, PEOPLE[COLUMN])
    Warehouse.open(home).ledger.append("note", {"of": f"{OWNER}@example.org"})
    with pytest.raises(AssertionError, match=r"palimpsest\.duckdb!ledger\.entries"):
        refuse_elsewhere(world, OWNER, PEOPLE[OWNER])
    dagster_home()
    with dg.DagsterInstance.get() as instance:
        shown = dg.AssetObservation(asset_key=["people", "scores", "el2n"], metadata={"hardest": LABEL})
        instance.report_runless_asset_event(shown)
    with pytest.raises(AssertionError, match=r"history/.*event_logs"):
        refuse_elsewhere(world, LABEL, PEOPLE[LABEL])


@pytest.mark.promise("B10")
def test_a_failed_check_and_a_failed_run_quote_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Great Expectations and an alert say of rows that break their contract: columns, numbers and ids."""
    from contracts.schema import EXAMPLES
    from pipelines.operations.alerts import Alert
    from warehouse import empty, expectations

    row = {c.name: TEXT for c in EXAMPLES.columns} | {"example_id": 1, "label": None, "target": None}
    report = expectations.check(EXAMPLES, pl.DataFrame([row, row], schema=empty(EXAMPLES).schema))
    assert not report.passed and report.problems() and TEXT not in str(report.problems())
    assert TEXT not in str(report)
    assert set(Alert.__dataclass_fields__) == {"kind", "subject", "sentence"}
