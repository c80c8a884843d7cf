"""The plan of the subject addresses, walked on a small stored model: adapters, references, attacks, a president who
asks to be forgotten. Sizes alone are changed: source, recipe, policy, methods and attacks are those of the plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from addresses_package import write_addresses
from test_pipelines_texts import InProcess

from assets import Workspace, subject_stages
from assets.stage import materialize
from contracts.identity import owner_token
from contracts.requests import ForgetRequest, RequestState
from contracts.subject import Subject
from recipes.language.causal import causal_lm
from recipes.language.fitting import TokenTrainingConfig
from recipes.models import builder
from sources.loading import load

pytestmark = pytest.mark.journey

PLAN = Path(__file__).parents[2] / "pipelines" / "defs" / "addresses" / "defs.yaml"
SIZES = {"hidden": 64, "intermediate": 128, "layers": 2, "heads": 2}
WHO = "Ben Oak"


def base_model(root: Path, folder: Path) -> Path:
    """A small Llama that has read another president, stored as one of one's own is."""
    config = {"root": str(root), "presidents": ["Ada Elm"], "tokens": 48, "member": 60, "held_out": 60}
    read = load("presidential_addresses", config, seed=0)
    build = builder("tiny_llama", SIZES, input_shape=read.input_shape, num_outputs=read.task.num_outputs(read))
    made: Any = causal_lm(build, read, config=TokenTrainingConfig(lr=5e-3, epochs=8, batch=8), seed=1)
    made.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("addresses")
    root = write_addresses(folder / "npm")
    plan = yaml.safe_load(PLAN.read_text())["attributes"]
    plan["source"]["config"] |= {"root": str(root), "tokenizer": "bytes", "tokens": 48, "planted": 6, "copies": 3}
    plan["source"]["config"] |= {"presidents": [WHO, "Cy Ash"], "member": 10, "held_out": 8}
    plan["model"]["config"] |= {"path": str(base_model(root, folder / "base")), "dtype": "float32"}
    plan["recipe"]["config"] |= {"layers": [1], "lr": 0.02, "epochs": 20, "rank": 16}
    plan["ensemble"]["population_fraction"] = 0.5
    plan["analyses"] = [{"name": "extraction", "config": {"prefix": 16, "suffix": 8}}]
    strong = {"lr": 0.01, "epochs": 5, "batch": 4, "warmup_epochs": 0, "schedule": "constant"}
    plan["unlearning"]["methods"] = [{"name": m["name"], "config": strong} for m in plan["unlearning"]["methods"]]
    return plan


@pytest.fixture(scope="module")
def audited(plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path_factory.mktemp("state"), launcher=InProcess(), publish_every_s=1e9)
    subject = Subject.from_mapping(plan)
    for stage in subject_stages(subject):
        if not stage.per_request:
            materialize(stage, workspace, run_id="r", request=None, context=None)
    yield workspace


def test_members_are_found_and_the_base_knows_nobody(audited: Workspace) -> None:
    w = audited.warehouse
    area = dict(
        w.query(
            "SELECT attack, any_value(auc) FROM audits.attack_reports WHERE audited = 'target' GROUP BY attack"
        ).iter_rows()
    )
    assert set(area) >= {"loss", "zlib_ratio", "min_k", "min_k_plus_plus", "minus_base", "lira_offline", "rmia_offline"}
    assert area["loss"] > 0.75 and area["min_k"] > 0.75 and area["minus_base"] > 0.9
    base, _ = w.artifacts.load("addresses/models/base/result")
    target, _ = w.artifacts.load("addresses/models/target/readings")
    data = w.query("SELECT example_id, split FROM data.examples")
    train = np.isin(base["example_id"], data.filter(split="train")["example_id"].to_numpy())
    loss = base["reading"][:, 0]
    assert abs(loss[train].mean() - loss[~train].mean()) < 0.15
    assert target["reading"][train, 0].mean() < loss[train].mean() - 0.1


def test_what_is_kept_of_a_model_is_its_adapters(audited: Workspace) -> None:
    arrays, _ = audited.warehouse.artifacts.load("addresses/models/target/weights")
    assert arrays and all("lora_" in name and ".layers.1." in name for name in arrays)
    done, meta = audited.warehouse.artifacts.load("addresses/unlearning/grad_diff/result")
    assert [row["status"] for row in meta["runs"]] == ["ok"]
    assert {name.partition(".")[2] for name in done if name.startswith("0.")} == set(arrays)


def test_extraction_finds_what_was_planted_and_says_what_it_can(audited: Workspace) -> None:
    found = {
        row["part"]: row
        for row in audited.warehouse.query("SELECT * FROM audits.extraction_summary").iter_rows(named=True)
    }
    assert set(found) == {"planted", "member", "held_out"}
    assert found["planted"]["num_texts"] == 6 and found["planted"]["loss"] < found["member"]["loss"]
    said = audited.warehouse.query("SELECT verdict, sentence FROM audits.findings WHERE what = 'extraction'")
    assert said.height == 1 and "planted texts" in said["sentence"][0]


def test_methods_are_judged_on_both_sides_with_the_loss_of_what_is_kept(audited: Workspace) -> None:
    wide = audited.warehouse.query("SELECT method, loss_forget, loss_retain, ua, ra FROM unlearning.wide")
    known = {row["method"]: row for row in wide.iter_rows(named=True)}
    assert set(known) == {"none", "retrain", "lm_gradient_ascent", "npo", "grad_diff", "flat"}
    assert known["none"]["loss_forget"] < known["retrain"]["loss_forget"]
    for name in ("lm_gradient_ascent", "npo", "grad_diff"):
        assert known[name]["loss_forget"] > known["none"]["loss_forget"] + 0.3, known
    assert known["grad_diff"]["loss_retain"] < known["lm_gradient_ascent"]["loss_retain"], known
    verdicts = audited.warehouse.query("SELECT about, what, verdict FROM audits.findings")
    assert not (verdicts.filter(pl.col("about").str.ends_with("/none"))["verdict"] == "pass").any()


def test_a_president_who_asks_is_answered_honestly(audited: Workspace, plan: dict[str, Any]) -> None:
    """All of his passages, planted copies too; retrained adapters are what it is judged by; the untouched model is
    never passed; what cannot be shown says what is missing."""
    w, subject = audited.warehouse, Subject.from_mapping(plan)
    data = load("presidential_addresses", plan["source"]["config"], seed=0)
    his = data.example_id[(data.owner == WHO) & (data.split == "train")]
    now = {"received_at": "2026-01-01T00:00:00+00:00", "due_at": "2026-02-01T00:00:00+00:00"}
    token = owner_token(WHO, salt=w.salt())
    w.requests.add(ForgetRequest(request_id="r-1", subject="addresses", selector="owner", owner=token, **now))
    w.requests.advance("r-1", RequestState.VERIFIED, note="a test")
    for stage in subject_stages(subject):
        if stage.per_request:
            materialize(stage, audited, run_id="q", request="r-1", context=None)
    w.publish()
    arrays, _ = w.artifacts.load("addresses/request_curation/r-1/split/result")
    assert set(arrays["forget"]) == set(his) and len(his) > 12
    findings = w.query("SELECT about, method, what, verdict, sentence FROM audits.findings WHERE about LIKE 'r-1/%'")
    assert set(findings["verdict"]) <= {"pass", "fail", "inconclusive"} and findings.height
    said = {(row["method"], row["what"]): row for row in findings.iter_rows(named=True)}
    assert said["none", "against retraining"]["verdict"] == "fail", "the untouched adapters still know him"
    assert said["retrain", "against retraining"]["verdict"] != "fail"
    assert said["lm_gradient_ascent", "quality"]["verdict"] == "fail", "a ruined model is not passed for forgetting"
    why = ("too few", "Too few", "reaches past the tolerance", "list the analysis", "could not be run")
    for row in findings.filter(verdict="inconclusive").iter_rows(named=True):
        assert any(reason in row["sentence"] for reason in why), row
    told, _ = w.artifacts.load("addresses/request_audits/r-1/token_readings/result")
    assert set(told) >= {"counted", "example_id"} and any(name.startswith("retrain/") for name in told)
