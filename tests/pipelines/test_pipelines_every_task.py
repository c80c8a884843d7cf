"""Whole plans on tasks without class logits: attacks, exposure, unlearning and its distance to retraining, to a verdict
and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from in_process import InProcess
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import nn
from typer.testing import CliRunner

from assets import Workspace, subject_stages
from assets.stage import APPLIES, materialize
from contracts import schema
from contracts.errors import NotApplicable
from contracts.jobs import UnlearnJob
from contracts.methods import UnlearnerSpec, unlearner
from contracts.subject import Subject
from contracts.verdicts import Verdict, overall
from pipelines.cli.app import app
from pipelines.subjects import write_subject
from warehouse import Warehouse

ATTACKS = ["loss", "lira_online", "rmia_online"]
SHARED: dict[str, Any] = {
    "ensemble": {"num_models": 16, "block": 8},
    "early": {"seeds": 1, "epoch": 1},
    "splits": [{"name": "random", "method": "random_fraction", "config": {"fraction": 0.3}}],
    "analyses": [{"name": "exposure", "config": {"fpr_caps": [0.05]}}],
    "unlearning": {"split": "random", "methods": ["retrain"], "seeds": 1},
    "attacks": [*ATTACKS, "entropy"],
}
PLANS: dict[str, dict[str, Any]] = {
    "regression": {
        "source": {"name": "sklearn", "config": {"dataset": "diabetes", "test_fraction": 0.5}},
        "model": {"name": "mlp", "config": {"hidden": [64]}},
        "recipe": {"name": "supervised", "config": {"lr": 0.02, "momentum": 0.9, "batch": 16, "epochs": 40}},
    },
    "ranking": {
        "source": {
            "name": "synthetic_interactions",
            "config": {"num_users": 40, "num_items": 40, "per_user": 10, "test_fraction": 0.4},
        },
        "model": {"name": "mf", "config": {"dim": 8}},
        "recipe": {"name": "bpr", "config": {"lr": 0.05, "batch": 64, "epochs": 15}},
    },
    "segmentation": {
        "source": {"name": "image_masks", "config": {"root": "", "test_fraction": 0.5}},
        "model": {"name": "unet", "config": {"channels": [8, 16], "convs": 1}},
        "recipe": {"name": "segmentation", "config": {"lr": 0.1, "momentum": 0.9, "batch": 16, "epochs": 12}},
    },
}


def write_noise(folder: Path) -> Path:
    """Pictures of noise with smooth masks that have nothing to do with them: what a model knows of them it knows by
    heart."""
    rng = np.random.default_rng(0)
    for number in range(220):
        masks = (gaussian_filter(rng.normal(size=(8, 8)), 1.0) > 0).astype(np.uint8) * 255
        for kind, pixels in (("images", rng.integers(0, 256, (8, 8), dtype=np.uint8)), ("masks", masks)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"{number:03d}.png")
    return folder


def plan(task: str, **more: object) -> Subject:
    return Subject.from_mapping({"subject": task, **PLANS[task], **SHARED, **more})


def carry_out(subject: Subject, home: Path) -> Workspace:
    workspace = Workspace(home, launcher=InProcess(), publish_every_s=1e9)
    for stage in subject_stages(subject):
        if not stage.per_request:
            materialize(stage, workspace, run_id="r", request=None, context=None)
    return workspace


@pytest.fixture(scope="module", params=sorted(PLANS))
def audited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Workspace]:
    more: dict[str, Any] = {}
    if request.param == "segmentation":
        source = PLANS["segmentation"]["source"]
        root = str(write_noise(tmp_path_factory.mktemp("noise")))
        more = {"source": {**source, "config": {**source["config"], "root": root}}}
    subject = plan(request.param, **more)
    return subject, carry_out(subject, tmp_path_factory.mktemp("state"))


@pytest.mark.journey
def test_every_attack_that_applies_judges_every_model_and_the_others_say_why(
    audited: tuple[Subject, Workspace],
) -> None:
    subject, workspace = audited
    w = workspace.warehouse
    reports = w.query("SELECT DISTINCT audited, attack FROM audits.attack_reports")
    models = {"target", "random/none", "random/retrain"}
    assert set(reports.rows()) == {(m, a) for m in models for a in ATTACKS} | {
        (m, "u_mia") for m in models - {"target"}
    }
    findings = w.query("SELECT * FROM audits.findings")
    refused = findings.filter(what="attack/entropy")
    assert (refused["verdict"] == "inconclusive").all() and refused["sentence"].str.contains("class logits").all()
    assert set(findings["verdict"]) <= {"pass", "fail", "inconclusive"}
    why = w.last_complete(f"{subject.subject}/audits/entropy")["warnings"][APPLIES]
    assert f"a {workspace.examples(subject).task} task" in why


@pytest.mark.journey
def test_the_untouched_model_gives_its_members_away_and_retraining_gives_the_removed_no_more(
    audited: tuple[Subject, Workspace],
) -> None:
    reports = audited[1].warehouse.query(
        "SELECT audited, auc, auc_lo, auc_hi FROM audits.attack_reports WHERE attack = 'lira_online' AND fpr_cap = 0.05"
    )
    area = {name: (value, low, high) for name, value, low, high in reports.rows()}
    assert area["target"][1] > 0.52 and area["random/none"][0] > area["random/retrain"][0]
    assert area["random/retrain"][1] <= 0.5 <= area["random/retrain"][2]


@pytest.mark.journey
def test_what_unlearning_costs_is_measured_by_the_tasks_quality(audited: tuple[Subject, Workspace]) -> None:
    subject, workspace = audited
    w, data = workspace.warehouse, workspace.examples(subject)
    arrays, _ = w.artifacts.load(f"{subject.subject}/unlearning/none/result")
    assert set(arrays) >= {"reading", "non_member", "forget", "example_id"} and "logits" not in arrays
    quality = arrays["reading"][0, :, 3]
    runs = w.query("SELECT * FROM unlearning.wide")
    none = runs.row(by_predicate=pl.col("method") == "none", named=True)
    forget = data.positions(arrays["forget"])
    assert none["ua"] == pytest.approx(100 - 100 * quality[forget].mean())
    assert none["ta"] == pytest.approx(100 * quality[data.split == "test"].mean())
    assert none["avg_gap_lo"] <= none["avg_gap"] <= none["avg_gap_hi"] and none["mia_entropy"] is None
    assert none["ta_lost_lo"] <= none["ta_lost"] <= none["ta_lost_hi"]
    sentence = w.query("SELECT sentence FROM audits.findings WHERE what = 'quality'")["sentence"][0]
    assert f"{data.task.spec.quality} lost retained" in sentence


@pytest.mark.journey
def test_exposure_covers_the_training_examples_and_the_page_is_written(audited: tuple[Subject, Workspace]) -> None:
    subject, workspace = audited
    rows = workspace.warehouse.query("SELECT DISTINCT example_id FROM audits.exposure")
    data = workspace.examples(subject)
    assert set(rows["example_id"]) <= set(data.example_id[data.split == "train"]) and rows.height > 100
    pages = list((workspace.home).rglob("*.html"))
    assert pages and any(str(data.task.spec.quality) in page.read_text() for page in pages)


@pytest.mark.journey
def test_references_keep_readings_alone(audited: tuple[Subject, Workspace]) -> None:
    subject, workspace = audited
    arrays, _ = workspace.warehouse.artifacts.load(f"{subject.subject}/models/ensemble/result")
    assert arrays["reading"].shape == (16, len(arrays["example_id"]), 4) and "logits" not in arrays


def stages(**changed: object) -> dict[str, Any]:
    digits = {"source": "sklearn", "model": "mlp", "recipe": "supervised"}
    subject = Subject.from_mapping({"subject": "s", **digits, "ensemble": {"num_models": 8}, **changed})
    return {"/".join(stage.path): stage for stage in subject_stages(subject)}


@pytest.mark.parametrize(
    ("listed", "kept"),
    [
        ({}, None),
        ({"attacks": ["loss", "population", "entropy"]}, None),
        ({"attacks": ["lira_online"]}, "readings"),
        ({"attacks": ["loss", "reference"]}, "readings"),
        ({"attacks": ["shadow_model"]}, "outputs"),
        ({"attacks": ["modified_entropy_per_class"]}, "outputs"),
        ({"scores": ["memorization"]}, "readings"),
        ({"scores": ["el2n"]}, None),
        ({"scores": ["label_quality"]}, "outputs"),
        ({"analyses": ["epsilon"]}, "readings"),
        ({"analyses": ["exposure"]}, "readings"),
        ({"analyses": [{"name": "exposure", "config": {"attacks": ["lira_online", "entropy"]}}]}, "outputs"),
        ({"analyses": ["shadow_unlearning"]}, None),
    ],
    ids=str,
)
def test_reference_models_are_trained_and_keep_outputs_only_for_those_who_read_them(listed: Any, kept: Any) -> None:
    found = stages(**listed).get("models/ensemble")
    assert (found is None) == (kept is None)
    if found is not None:
        assert found.config.get("outputs", False) == (kept == "outputs")
    deps = {dep.path for name, stage in stages(**listed).items() if name.startswith("audits/") for dep in stage.deps}
    if "attacks" in listed:
        assert (("models", "ensemble") in deps) == (kept is not None)


@pytest.mark.journey
def test_an_attack_without_references_looks_at_the_same_people(tmp_path: Path) -> None:
    """Alone it trains no reference models; its candidates are those that would have been in their pool."""
    found = {}
    for name, attacks in (("alone", ["loss"]), ("beside", ["loss", "lira_online"])):
        short = {"name": "supervised", "config": {"lr": 0.02, "batch": 32, "epochs": 5}}
        more = {"analyses": [], "unlearning": None, "attacks": attacks, "subject": name, "recipe": short}
        workspace = carry_out(plan("regression", **more), tmp_path / name)
        assert (workspace.warehouse.last_complete(f"{name}/models/ensemble") is None) == (name == "alone")
        found[name] = workspace.warehouse.query(
            "SELECT example_id, score, n_out FROM audits.attack_scores WHERE attack = 'loss' ORDER BY example_id"
        )
    assert found["alone"]["example_id"].equals(found["beside"]["example_id"])
    assert (found["alone"]["n_out"] == 0).all() and (found["beside"]["n_out"] == 8).all()
    ranks = [frame["score"].rank().to_numpy() for frame in found.values()]
    np.testing.assert_allclose(*ranks)  # of numbers the scale of a model is a map of its losses alone


@pytest.mark.parametrize("task", ["regression", "classification"])
@pytest.mark.journey
def test_a_set_that_is_not_random_is_judged_by_retrainings_without_it(task: str, tmp_path: Path) -> None:
    """Of the plan's own split: what is stored of the retrainings is their signals, and a sample of class logits."""
    wanted = {"name": "ids", "method": "by_ids", "config": {"ids": list(range(12))}}
    more: dict[str, Any] = {"analyses": [], "attacks": [], "splits": [wanted]}
    more |= {"unlearning": {"split": "ids", "methods": ["retrain"], "seeds": 1}}
    more |= {"recipe": {"name": "supervised", "config": {"lr": 0.02, "batch": 32, "epochs": 5}}}
    if task == "classification":
        more["source"] = {"name": "sklearn", "config": {"dataset": "wine", "test_fraction": 0.5}}
    ids = carry_out(plan("regression", **{**more, "unlearning": None, "splits": []}), tmp_path / "ids")
    data = ids.examples(plan("regression", **{**more, "unlearning": None, "splits": []}))
    wanted["config"] = {"ids": data.example_id[data.split == "train"][:12].tolist()}
    w = carry_out(plan("regression", **more), tmp_path / "state").warehouse
    rows = w.query("SELECT * FROM audits.against_retraining ORDER BY audited")
    assert rows["audited"].to_list() == ["ids/none", "ids/retrain"] and (rows["num_examples"] == 12).all()
    arrays, _ = w.artifacts.load("regression/unlearning/retrainings/result")
    test = int((data.split == "test").sum())
    assert arrays["signal"].shape == (20, 12 + test) and "logits" not in arrays
    assert ("spoken" in arrays) == (task == "classification")
    kept, _ = w.artifacts.load("regression/unlearning/none/result")
    assert ("logits" in kept) == (task == "classification")


@pytest.mark.journey
@pytest.mark.parametrize("task", sorted(PLANS))
def test_the_command_ends_with_a_verdict_and_a_page(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    source = PLANS[task]["source"]
    if task == "segmentation":
        source = {**source, "config": {**source["config"], "root": str(write_noise(tmp_path / "pictures"))}}
    write_subject(plan(task, source=source), tmp_path / "state", comment="a test")
    result = CliRunner().invoke(app, ["audit", task], env={"COLUMNS": "200"})
    found = Warehouse.open(tmp_path / "state").read(schema.FINDINGS, subject=task)
    judged = overall(Verdict(v) for v in found.filter("judged")["verdict"])
    assert result.exit_code == (0 if judged is Verdict.PASS else 1), (result.output, result.exception)
    assert judged.value.upper() in result.output and f"{task}/reports/audit.html" in result.output.replace("\n", "")
    assert len(list((tmp_path / "state").rglob("audit.html"))) == 1


class Never:
    """A launcher that must not be asked."""

    def prepare(self) -> None: ...

    def run(self, job: UnlearnJob, **_: Any) -> None:
        raise AssertionError(f"a process was started for {job.method.name}")


def test_a_method_for_classes_is_refused_by_name_before_its_process_starts(tmp_path: Path) -> None:
    subject = plan("regression", unlearning={"split": "random", "methods": ["random_label"], "seeds": 1}, attacks=[])
    workspace = Workspace(tmp_path, launcher=Never())
    stages = {stage.path: stage for stage in subject_stages(subject) if not stage.per_request}
    for path in (("data", "examples"), ("models", "target"), ("curation", "random")):
        materialize(stages[path], workspace, run_id="r", request=None, context=None)
    with pytest.raises(NotApplicable, match="unlearner random_label does not apply to diabetes, a regression task"):
        materialize(stages["unlearning", "random_label"], workspace, run_id="r", request=None, context=None)


@pytest.mark.journey
def test_what_is_measured_of_numbers_is_in_the_metrics_and_on_the_page(tmp_path: Path) -> None:
    """A range of targets is forgotten; every figure again from the stored models, and AIN from the stored steps."""
    from recipes.checkpoints import load_arrays
    from recipes.plan import trained_builder
    from unlearning.regression.metrics import ERROR_RANGE, predictions, relearning

    short = {"name": "supervised", "config": {"lr": 0.02, "momentum": 0.9, "batch": 16, "epochs": 15}}
    chosen = {"name": "high", "method": "by_ids", "config": {"ids": []}}
    more: dict[str, Any] = {"recipe": short, "analyses": [], "attacks": [], "ensemble": None, "splits": [chosen]}
    methods = ["retrain", {"name": "regression_finetune", "config": {"epochs": 2}}]
    more["unlearning"] = {"split": "high", "methods": methods, "seeds": 1}
    bare = plan("regression", **{**more, "unlearning": None, "splits": []})
    data = Workspace(tmp_path / "look", launcher=InProcess()).examples(bare)
    train = data.part("train")
    chosen["config"] = {"ids": train.example_id[np.argsort(train.y)[-40:]].tolist()}
    subject = plan("regression", **more)
    w = carry_out(subject, tmp_path / "state").warehouse
    rows = w.query("SELECT * FROM unlearning.wide")
    figures = {row["method"]: row for row in rows.to_dicts()}
    build, forget = trained_builder(subject, data), train.subset(chosen["config"]["ids"])

    def model_of(method: str) -> Any:
        arrays, _ = w.artifacts.load(f"regression/unlearning/{method}/result")
        model = build(0)
        load_arrays(model, {k.removeprefix("0."): v for k, v in arrays.items() if k.startswith("0.")})
        return model.eval()

    models = {method: model_of(method) for method in figures}
    said = {method: np.sort(predictions(model, forget)) for method, model in models.items()}
    error = (1 + ERROR_RANGE) * np.abs(predictions(models["none"], forget) - forget.y).mean()
    (seed,) = rows["seed"].unique()
    took = {
        m: relearning(model, train, forget, error=error, seed=seed, lr=0.01, batch=32) for m, model in models.items()
    }
    assert took["none"].reached and took["none"].batches < took["retrain"].batches
    for method, row in figures.items():
        assert row["mae_forget"] == pytest.approx(np.abs(predictions(models[method], forget) - forget.y).mean())
        assert row["w1"] == pytest.approx(np.abs(said[method] - said["retrain"]).mean())
        known = took[method].reached or took["retrain"].reached
        assert row["ain"] == (pytest.approx(took[method].batches / took["retrain"].batches) if known else None)
        assert row["relearn_batches"] == (took[method].batches if took[method].reached else None)
        assert 0 <= row["mia_member"] <= 100 and row["mae_retain"] > 0 and row["loss_forget"] is None
    assert figures["none"]["mae_forget"] < figures["retrain"]["mae_forget"]
    assert figures["none"]["ain"] < 0.2
    assert figures["none"]["w1"] > figures["retrain"]["w1"] == 0
    page = next((tmp_path / "state").rglob("*.html")).read_text()
    assert all(heading in page for heading in ("Error, forgotten", "W1 to retraining", "Anamnesis index"))


class Failing:
    """Of three runs one gives smaller weights, one weights that are not finite, one no model of the plan."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, model: nn.Module, **_: Any) -> nn.Module:
        self.runs += 1
        if self.runs % 3 == 0:
            return nn.Identity()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(torch.nan if self.runs % 3 == 2 else 0.9)
        return model


@pytest.mark.journey
@pytest.mark.parametrize("task", ["classification", "ranking", "regression"])
def test_a_run_without_a_result_fails_its_method_and_stops_nothing(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlearner.names()  # everything else is loaded first
    monkeypatch.setattr(unlearner, "_methods", dict(unlearner._methods))
    failing = Failing()
    unlearner(UnlearnerSpec(name="failing", doc="a test"))(lambda *args, **kwargs: failing(*args, **kwargs))
    classes = {"source": {"name": "sklearn", "config": {"dataset": "wine", "test_fraction": 0.5}}}
    chosen = {**PLANS["regression"], **PLANS.get(task, classes)}
    chosen["recipe"] = {**chosen["recipe"], "config": {"lr": 0.02, "batch": 32, "epochs": 3}}
    more = {"analyses": [], "attacks": ["loss"], "splits": SHARED["splits"]}
    unlearning = {"split": "random", "methods": ["retrain", "failing"], "seeds": 3, "decides": "failing"}
    subject = Subject.from_mapping({"subject": task, **chosen, **more, "unlearning": unlearning})
    w = carry_out(subject, tmp_path).warehouse
    runs = w.query("SELECT seed, status, ta FROM unlearning.wide WHERE method = 'failing' ORDER BY seed")
    assert sorted(runs["status"]) == ["diverged", "ok", "refused"]
    assert runs.filter(pl.col("ta").is_not_null())["status"].to_list() == ["ok"]
    found = w.query("SELECT verdict, sentence FROM audits.findings WHERE about = 'random/failing' AND what = 'result'")
    assert found["verdict"].to_list() == ["fail"] and "Of 3 runs 1 refused and 1 diverged" in found["sentence"][0]
    assert json.loads(w.artifacts.load_bytes(f"{task}/reports/audit.json"))["verdict"] == "fail"
