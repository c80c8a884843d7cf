"""Forget requests use no method that has not passed on the worst case; exact retraining is what is left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from cheats import registered
from gallery import audit, plan, run_request
from typer.testing import CliRunner

from assets import Workspace, subject_stages
from assets.in_use import used
from assets.stage import materialize
from contracts import schema
from contracts.errors import ConfigError
from contracts.subject import Subject
from pipelines.cli import certify
from pipelines.cli.app import app
from pipelines.evidence import evidence
from pipelines.subjects import write_subject
from warehouse import Warehouse, signing

CHEAT, SOUND, ACCEPTANCE = "cheat-logits-shrunk", "sound", "unlearning/acceptance"
SPLITS = [
    {"name": "random", "method": "random_fraction", "config": {"fraction": 0.3}},
    {"name": "worst", "method": "by_class", "config": {"class_name": "7"}},
]


@pytest.fixture
def methods() -> Iterator[None]:
    """The cheats, and a method that removes everything and does not claim to be exact."""

    def sound(model: Any, *, retain: Any, forget: Any, config: Any, seed: int, train: Any, **_: Any) -> Any:
        return train(retain.by_id(), seed + 1)

    with registered(also={SOUND: (sound, ("train",))}):
        yield


def asking(
    *,
    decides: str,
    then: Sequence[str] = (),
    on: str = "worst",
    split: str = "random",
    methods: Sequence[str] = (CHEAT, SOUND),
    **acceptance: Any,
) -> Subject:
    unlearning = {
        "split": split,
        "methods": list(methods),
        "seeds": 1,
        "decides": decides,
        "acceptance": {"split": on, "then": list(then), **acceptance},
    }
    recipe = {
        "name": "supervised",
        "config": {"lr": 0.2, "momentum": 0.9, "batch": 64, "epochs": 25, "schedule": "cosine"},
    }
    return plan(5, [CHEAT], recipe=recipe, splits=SPLITS, analyses=[], attacks=[], unlearning=unlearning)


def used_by(workspace: Workspace, name: str) -> tuple[str, str]:
    """The method that counts in the findings of a request, and what is said of it."""
    asset = f"gallery/request_audits/{name}/findings"
    found = workspace.warehouse.read(schema.FINDINGS, subject="gallery", partition={"stage": asset})
    (method,) = found.filter("judged")["method"].unique()
    (row,) = found.filter(pl.col("what") == "acceptance").rows(named=True)
    assert not row["judged"] and row["method"] == method
    return method, row["sentence"]


@pytest.mark.journey
def test_a_request_uses_the_first_method_that_is_accepted(home: Path, methods: None) -> None:
    subject = asking(decides=CHEAT, then=[SOUND])
    workspace = audit(home, subject, only=ACCEPTANCE)
    rows = {r["method"]: r for r in workspace.warehouse.read(schema.ACCEPTANCE, subject="gallery").rows(named=True)}
    assert [r["method"] for r in sorted(rows.values(), key=lambda r: r["place"])] == [CHEAT, SOUND]
    assert not rows[CHEAT]["accepted"] and rows[CHEAT]["verdict"] == "fail" and rows[CHEAT]["what"]
    assert rows[SOUND]["accepted"] and rows[SOUND]["verdict"] == "pass"
    run_request(workspace, subject, "class", selector="class", class_name="3")
    method, sentence = used_by(workspace, "class")
    assert method == SOUND and f"{CHEAT} is not accepted (worst" in sentence and f"{SOUND} is accepted" in sentence
    report = workspace.warehouse.artifacts.load_json("gallery/request_reports/class/audit.json")
    assert report["decides"] == SOUND and "is accepted" in report["request"]["removed by"]
    certificates_of_it(workspace, subject, report)


def certificates_of_it(workspace: Workspace, subject: Subject, report: dict[str, Any]) -> None:
    """The run of a request has signed what its report says; who has the file and the key alone can check it."""
    w, home = workspace.warehouse, workspace.home
    write_subject(subject, home, comment="a test")
    w.publish()
    (row,) = w.read(schema.CERTIFICATES, subject="gallery").rows(named=True)
    assert row["serial"] == 1 and row["method"] == SOUND and row["verdict"] == report["verdict"]
    to = home.parent / "given"
    to.mkdir()
    said = command("certify", "gallery", "class", "--to", str(to), "--days", "30")
    file, key = to / "gallery-class-2.dsse.json", to / "signing.pub.pem"
    assert f"{file} --key {key}" in " ".join(said.split())
    told = command("verify", str(file), "--key", str(key))
    assert "GENUINE" in told and f"removed from weights by {SOUND}" in told
    for finding in report["findings"]:
        assert (finding["sentence"] in told) is finding["judged"] or not finding["judged"]
    whole = command("verify", str(file))
    assert "the state folder holds what it names" in whole
    first = home / "artifacts" / f"{row['artifact']}"
    assert "certificate 2 of the request has taken its place" in command("verify", str(first), code=1)
    assert "GENUINE" in command("verify", str(first), "--key", str(key)), "only the state folder knows of the second"
    assert "WHOLE" in command("verify", "--ledger")
    changed = to / "changed.dsse.json"
    changed.write_bytes(file.read_bytes().replace(b'"payload": "e', b'"payload": "f'))
    assert "NOT TO BE RELIED ON" in command("verify", str(changed), "--key", str(key), code=1)
    late = certify.check(file.read_bytes(), [key], "it", None, now=datetime(2100, 1, 1, tzinfo=UTC))
    early = certify.check(file.read_bytes(), [key], "it", None, now=datetime(2020, 1, 1, tzinfo=UTC))
    assert not late and not early
    evidence_of_it(home, home.parent / "evidence", key)
    run_request_again = [s for s in subject_stages(subject) if s.path == ("request_certificates", "certificate")]
    assert materialize(run_request_again[0], workspace, run_id="r", request="class", context=None)["unchanged"]


def evidence_of_it(home: Path, folder: Path, key: Path) -> None:
    """The folder is checked by its own page, which knows nothing of this program; whatever is changed is seen."""
    assert str(folder) in command("evidence", "gallery", "class", "--to", str(folder))
    with pytest.raises(ConfigError, match="a new or an empty folder"):
        evidence(Warehouse.existing(home), "gallery", "class", folder)

    def checked(code: int, *, key: Path = key) -> str:
        script = [sys.executable, "-I", str(folder / "check_evidence.py"), "--key", str(key)]
        done = subprocess.run(script, capture_output=True, text=True, cwd=folder)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    assert "THE EVIDENCE HOLDS" in checked(0)
    (home / "other").mkdir()
    signing.signing_key(home / "other")
    assert "not signed by this key" in checked(1, key=signing.public_file(home / "other"))
    changes = {
        "report.json": (b'"verdict"', b'"Verdict"', "changed or missing: report.json"),
        "certificate.dsse.json": (b'"payload": "e', b'"payload": "f', "not signed"),
        "ledger.jsonl": (b'"hash": "', b'"hash": "0', "ledger is broken"),
        "report.html": (b"<html", b"<HTML", "changed or missing: report.html"),
    }
    for name, (old, new, said) in changes.items():
        whole = (folder / name).read_bytes()
        assert old in whole, name
        (folder / name).write_bytes(whole.replace(old, new, 1))
        done = subprocess.run(
            [sys.executable, "-I", "check_evidence.py", "--key", str(key)], capture_output=True, text=True, cwd=folder
        )
        assert done.returncode != 0 and (said in done.stdout or "could not be checked" in done.stdout), done.stdout
        (folder / name).write_bytes(whole)
    (folder / "more.txt").write_text("x")
    assert "not listed: more.txt" in checked(1)
    text = (folder / "ledger.jsonl").read_text()
    assert "random" not in text and "/class/" in text, "what other entries say is not told"


def command(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done.output


def test_exact_retraining_is_what_is_left(methods: None) -> None:
    subject = asking(decides=CHEAT, then=[SOUND])

    def using(**accepted: bool) -> tuple[str, str]:
        rows = [
            {
                "method": m,
                "place": i,
                "split": "worst",
                "accepted": yes,
                "verdict": "pass" if yes else "fail",
                "what": "gap",
            }
            for i, (m, yes) in enumerate(accepted.items())
        ]
        found = used(subject, pl.DataFrame(rows))
        return found.method, found.why

    assert using(**{CHEAT: True, SOUND: True})[0] == CHEAT
    assert using(**{CHEAT: False, SOUND: True})[0] == SOUND
    method, why = using(**{CHEAT: False, SOUND: False})
    assert method == "retrain" and why.endswith("retrain is exact and needs no acceptance.")
    assert f"{CHEAT} is not accepted (worst, gap: fail)." in why and f"{SOUND} is not accepted" in why


@pytest.mark.journey
def test_acceptance_on_the_plans_own_split_trains_nothing_twice(home: Path, methods: None) -> None:
    subject = asking(decides=SOUND, split="worst", thresholds={"max_gap": 0.001})
    paths = ["/".join(stage.path) for stage in subject_stages(subject)]
    assert ACCEPTANCE in paths and not [p for p in paths if p.startswith("acceptance_")]
    (row,) = audit(home, subject, only=ACCEPTANCE).warehouse.read(schema.ACCEPTANCE, subject="gallery").rows(named=True)
    assert row["verdict"] != "pass" and row["what"] == "gap", "the acceptance has limits of its own"


def test_what_a_plan_may_ask() -> None:
    def refused(match: str, **fields: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            subject_stages(asking(methods=["finetune", "gradient_ascent"], **fields))

    refused(r"acceptance.split 'random' is random \(random_fraction\)", decides="finetune", on="random")
    refused("acceptance.split 'nowhere' is not among its splits", decides="finetune", on="nowhere")
    refused("acceptance.then = 'random_label' is not among its methods", decides="finetune", then=["random_label"])
    refused("lists 'finetune', which is tried first", decides="finetune", then=["finetune"])
    refused("lists a method twice", decides="finetune", then=["gradient_ascent", "gradient_ascent"])
    refused("max_auc = 2", decides="finetune", thresholds={"max_auc": 2})
    exact = subject_stages(asking(decides="retrain", methods=["finetune"]))
    assert "acceptance" not in {stage.path[1] for stage in exact}, "exact retraining needs none"
