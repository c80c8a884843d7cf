"""A finished state for the tests of erasure: a small subject of pictures with owners, audited, a forget request run
and audited, another subject beside it, Dagster's own records. All in this process, no Dagster run but a tiny one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from in_process import InProcess
from PIL import Image
from recorded_state import PLAN as OTHER
from recorded_state import run as audit_other
from sklearn.datasets import load_digits

from assets import Workspace, subject_stages
from assets import stage as stage_module
from assets.request_rows import pins, resolve
from assets.stage import materialize
from contracts.jobs import UnlearnJob
from contracts.requests import ForgetRequest
from contracts.subject import Subject
from pipelines.subjects import write_subject
from reports import plots
from warehouse import Warehouse

MARKER = "zqxmarkerxqz"
NOTED: dict[Path, tuple[dict[str, pl.DataFrame], dict[str, str]]] = {}  # by root: before the request was run
WHEN = {"received_at": "2026-01-01T00:00:00+00:00", "due_at": "2026-02-01T00:00:00+00:00"}


class Here(InProcess):
    """Runs jobs in this process; those of the subject mine name a picture of the marker's on their way."""

    def run(self, job: UnlearnJob, *, home: Path, context: Any, progress: Any) -> None:
        super().run(job, home=home, context=context, progress=progress)
        if job.subject["subject"] == "mine":
            (home / "jobs" / job.job_id / "stderr.txt").write_text(f"read {MARKER}_3.png\n")


def pictures(root: Path) -> None:
    """240 pictures of two classes in two splits; every twelfth is a person's whose name is in the file's name."""
    digits = load_digits()
    owners = ["file,owner"]
    for k in range(240):
        kind = f"{('train', 'test')[k % 3 == 2]}/{('even', 'odd')[digits.target[k] % 2]}"
        name = f"{MARKER}_{k}" if k % 12 == 3 else f"{k}"
        (root / "pets" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[k].astype(np.uint8) * 15).save(root / "pets" / kind / f"{name}.png")
        owners.append(f"{kind}/{name}.png,{MARKER if k % 12 == 3 else f'person{k % 12}'}@example.org")
    (root / "owners.csv").write_text("\n".join(owners))


def plan_of(root: Path) -> Subject:
    return Subject.from_mapping(
        {
            "subject": "mine",
            "source": {
                "name": "image_folder",
                "config": {"root": str(root), "folder": "pets", "owner_table": "owners.csv"},
            },
            "model": {"name": "mlp", "config": {"hidden": [4]}},
            "recipe": {"name": "supervised", "config": {"lr": 0.1, "batch": 64, "epochs": 2}},
            "early": {"seeds": 1, "epoch": 1},
            "scores": ["el2n"],
            "splits": [
                {"name": "random", "method": "random_fraction", "config": {"fraction": 0.2}},
                {"name": "pruned", "method": "keep_hardest", "config": {"score": "el2n", "fraction": 0.8}},
            ],
            "unlearning": {"split": "random", "methods": [{"name": "finetune", "config": {"epochs": 1}}], "seeds": 1},
            "attacks": ["loss"],
        }
    )


def run_request(workspace: Workspace, plan: Subject, request: ForgetRequest) -> None:
    w, data = workspace.warehouse, workspace.examples(plan)
    ids = resolve(request, data, w)
    w.requests.add(request, pins=pins(data, ids, w.salt()))
    w.requests.advance(request.request_id, "verified", note="a test")
    for stage in subject_stages(plan):
        if stage.per_request:
            materialize(stage, workspace, run_id=request.request_id, request=request.request_id, context=None)


def build(root: Path) -> Path:
    """The state folder."""
    home = root / "state"
    os.environ["PALIMPSEST_HOME"] = str(home)
    pictures(root)
    plan = plan_of(root)
    with pytest.MonkeyPatch.context() as patch:
        without_checks_and_pictures(patch)
        _audit(root, home, plan)
    dagster_records(home)
    return home


def without_checks_and_pictures(patch: pytest.MonkeyPatch) -> None:
    """Neither is looked at here, and they take two thirds of the time."""
    found = {"passed": True, "broken": False, "expectations": 0, "problems": []}
    patch.setattr(stage_module, "_check", lambda run, tables: found)
    patch.setattr(plots, "_save", lambda *args, **kwargs: b"\x89PNG")


def _audit(root: Path, home: Path, plan: Subject) -> None:
    audit_other(home, Subject.from_mapping({**OTHER, "scores": ["el2n"], "attacks": []}))
    write_subject(plan, home, comment="a test")
    workspace = Workspace(home, launcher=Here(), publish_every_s=1e9)
    for stage in subject_stages(plan):
        if not stage.per_request:
            materialize(stage, workspace, run_id="first", request=None, context=None)
    NOTED[root] = (tables_of(workspace.warehouse), artifacts_of(workspace.warehouse))
    run_request(
        workspace,
        plan,
        ForgetRequest(request_id="r1", subject="mine", selector="where", where=f"origin LIKE '%{MARKER}%'", **WHEN),
    )
    workspace.warehouse.publish()


def dagster_records(home: Path) -> None:
    """A run of Dagster's that shows the marker in metadata, a message and its log, and one of another subject."""
    from pipelines.build import audit_job_name
    from pipelines.home import dagster_home

    dagster_home()
    with dg.DagsterInstance.get() as instance:
        for subject, text in (("mine", MARKER), ("wine", "nothing of theirs")):
            scored = shown(subject, text)
            job = dg.define_asset_job(audit_job_name(subject))
            definitions = dg.Definitions(assets=[scored], jobs=[job])
            definitions.resolve_job_def(job.name).execute_in_process(instance=instance)
            instance.report_runless_asset_event(
                dg.AssetObservation(asset_key=[subject, "scores", "el2n"], metadata={"again": text})
            )


def shown(subject: str, text: str) -> Any:
    """A Dagster asset that shows and prints a text."""

    @dg.asset(key=[subject, "scores", "el2n"])
    def scored(context):  # Dagster reads annotations, and these are text here
        context.log.info(text)
        print(text)
        return dg.MaterializeResult(metadata={"hardest": text, "rows": dg.MetadataValue.md(f"| {text} |")})

    return scored


def plant(home: Path) -> None:
    """The marker in what only a crash, a resumed training or a person leaves."""
    w = Warehouse.open(home)
    marked = {"x": np.frombuffer(MARKER.encode(), np.uint8)}
    w.artifacts.save("mine/models/target/resume-0123456789abcdef/supervised", marked, {"note": MARKER})
    w.artifacts.save("mine/models/target/retained", marked, {})
    (home / "artifacts" / "mine" / "models" / "target" / ".weights.1.tmp").write_text(MARKER)
    (home / "warehouse" / ".left.tmp").write_text(MARKER)
    from pipelines.export import remember

    inside = home / "for-people.csv"
    inside.write_text(MARKER)
    remember(home, "mine", inside)
    remember(home, "mine", home.parent / "outside.csv")
    (home.parent / "outside.csv").write_text(MARKER)


def tables_of(w: Warehouse) -> dict[str, pl.DataFrame]:
    """Every table but bookkeeping, register and ledger, sorted, with no volatile column."""
    from contracts import schema

    volatile = {(t.full_name, c.name) for t in schema.TABLES for c in t.columns if c.volatile}
    with w.reading() as con:
        names = con.execute(
            "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE schema_name NOT IN ('meta', 'ledger', "
            "'requests') AND database_name = current_database() ORDER BY ALL"
        ).fetchall()
        out = {}
        for (name,) in names:
            frame = con.sql(f"SELECT * FROM {name}").pl()
            kept = [c for c in frame.columns if (name, c) not in volatile and c != "wall_s"]
            out[name] = frame.select(kept).sort(
                [c for c in kept if frame.schema[c] != pl.List], nulls_last=True, maintain_order=True
            )
    return out


def artifacts_of(w: Warehouse) -> dict[str, str]:
    return {name: w.artifacts.sha256(name) for name in w.artifacts.names() if "times" not in name}


def of_subject(frame: pl.DataFrame, subject: str) -> pl.DataFrame:
    return frame.filter(pl.col("subject") == subject)
