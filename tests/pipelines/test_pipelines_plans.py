"""The digits plan keeps its promises on planted label noise, and data made by other tools is audited to its report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from assets.provider import early_seeds
from contracts.digests import derive_seed
from contracts.methods import Asked, score
from pipelines.cli.audit import quick_plan, run_subject
from pipelines.cli.init import plan_for
from pipelines.subjects import load_subject
from recipes.plan import load_examples, model_builder, recipe_config
from sources.planted import plant_label_noise
from warehouse import Warehouse


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_digits_plan_finds_planted_label_noise(seed: int, tmp_path: Path) -> None:
    from recipes.early import early_models
    from recipes.ensemble import train_ensemble

    plan = load_subject("digits", tmp_path)
    noisy, flipped = plant_label_noise(load_examples(plan), fraction=0.1, seed=seed)
    train, build = noisy.part("train"), model_builder(plan, noisy)
    changed = np.isin(train.example_id, flipped)

    def found(name: str, **needs: object) -> float:
        method = score.get(name)
        frame = method(train, config=method.spec.config(), seed=seed, **needs)
        values = train.positions(frame["example_id"].to_numpy())
        return float(roc_auc_score(changed[values], frame[method.spec.value].to_numpy()))

    models = early_models(
        build, train, recipe="supervised", config=recipe_config(plan), seeds=early_seeds(plan), epoch=plan.early.epoch
    )
    assert found("el2n", early_models=models) >= 0.97
    assert found("grand", early_models=models) >= 0.97
    ensemble = train_ensemble(
        build,
        noisy,
        outputs=True,
        recipe="supervised",
        config=recipe_config(plan),
        ensemble=plan.ensemble,
        seed=derive_seed(seed, "ensemble") % 2**31,
    )
    method = score.get("memorization")
    frame = method(train, config=method.spec.config(), seed=seed, ensemble=ensemble)
    assert frame["acc_in"].mean() >= 0.98, "the plan must interpolate noise too, else its memorization is refused"
    assert found("memorization", ensemble=ensemble) >= 0.95


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_data_made_by_someone_else_is_audited(
    made_by_someone_else: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "state"
    home.mkdir()
    monkeypatch.setenv("PALIMPSEST_HOME", str(home))
    path, more = made_by_someone_else
    plan = plan_for("mine", path, Asked(label=more[1] if more else None), model="mlp").plan
    run_subject(quick_plan(plan), home, job="audit")
    w = Warehouse.open(home)
    assert w.artifacts.exists("mine/reports/audit.html")
    assert set(w.query("SELECT DISTINCT score FROM scores.latest")["score"]) >= {"el2n", "grand"}
    assert {"random/none", "random/retrain"} <= set(w.query("SELECT DISTINCT about FROM audits.findings")["about"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "applies", "refused"),
    [
        (
            "diabetes",
            {"grand", "near_duplicates"},
            dict.fromkeys(("el2n", "forgetting", "knn_disagreement"), "does not apply to diabetes, a regression task")
            | {"memorization": "train longer"},
        ),
        ("interactions", {"personal_loss"}, {}),
    ],
)
def test_other_tasks_show_what_applies_and_say_why_the_rest_does_not(
    name: str, applies: set[str], refused: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path))
    run_subject(quick_plan(load_subject(name, tmp_path)), tmp_path, job="audit")
    w = Warehouse.open(tmp_path)
    assert set(w.query("SELECT DISTINCT score FROM scores.latest")["score"]) == applies
    runs = {r["score"]: r for r in w.query("SELECT * FROM scores.runs").iter_rows(named=True)}
    assert {s for s, r in runs.items() if not r["passed"]} == set(refused)
    assert all(why in runs[s]["reason"] for s, why in refused.items()), "each says what it wants"
    page = w.artifacts.load_bytes(f"{name}/reports/audit.html").decode()
    assert all(s in page for s in applies | set(refused)) and "does not" not in runs[next(iter(applies))]["reason"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_score_of_the_denoised_set_finds_the_planted_interactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path))
    plan = quick_plan(load_subject("interactions", tmp_path))
    run_subject(dataclasses.replace(plan, analyses=()), tmp_path, job="audit")
    found = Warehouse.open(tmp_path).query(
        "SELECT m.role, p.is_noise FROM curation.members m JOIN scores.personal_loss p USING (subject, example_id)"
    )
    dropped = found.filter(pl.col("role") == "drop")
    assert dropped["is_noise"].mean() > 1.5 * found["is_noise"].mean()
