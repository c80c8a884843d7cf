"""A test split that differs from the training split by itself, from the file to the findings: the digits that a plain
model finds hardest, those that it finds easiest, any of them, and any beside training digits that are there twice, some
labels of which are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from in_process import InProcess
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from assets import Workspace, subject_stages
from assets.stage import materialize
from contracts.subject import Subject

pytestmark = pytest.mark.journey

PLAN: dict[str, Any] = {
    "model": {"name": "mlp", "config": {"hidden": [64]}},
    "recipe": {
        "name": "supervised",
        "config": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "batch": 64, "epochs": 40, "schedule": "cosine"},
    },
    "ensemble": {"num_models": 40, "population_fraction": 0.4},
    "early": {"seeds": 1, "epoch": 1},
    "attacks": ["loss", "lira_online"],
    "splits": [{"name": "random", "method": "random_fraction", "config": {"fraction": 0.25}}],
    "unlearning": {"split": "random", "methods": ["retrain"], "decides": "retrain", "seeds": 2},
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, pl.DataFrame]]:
    """Split -> findings, what was read on reference models, and the attacks' reports."""
    folder = tmp_path_factory.mktemp("peers")
    digits = load_digits()
    x, y, rng = digits.data / 16, digits.target, np.random.default_rng(0)
    plain = cross_val_predict(LogisticRegression(max_iter=3000, C=0.1), x, y, cv=5, method="predict_proba")
    known = plain[np.arange(len(y)), y] + rng.normal(0, 0.15, len(y))
    any_order = rng.random(len(y))
    cut = {name: np.argsort(np.argsort(o)) < 500 for name, o in (("hard", known), ("easy", -known), ("any", any_order))}
    train = np.flatnonzero(~cut["any"])[:650]
    twice = np.concatenate([train, train, np.flatnonzero(cut["any"])])
    copies = x[twice] + rng.normal(0, 0.02, (len(twice), x.shape[1]))
    files = {name: (x, y, test) for name, test in cut.items()}
    noisy = np.where(rng.random(len(y)) < 0.4, rng.integers(0, 10, len(y)), y)  # to be learnt by heart, or from a copy
    files["copies"] = (copies, noisy[twice], np.arange(len(twice)) >= 2 * len(train))
    found = {}
    for name, (values, labels, test) in files.items():
        split = np.where(test, "test", "train")
        np.savez(folder / f"{name}.npz", x=values.reshape(-1, 8, 8).astype(np.float32), y=labels, split=split)
        source = {"name": "npz", "config": {"root": str(folder), "file": f"{name}.npz"}}
        subject = Subject.from_mapping({**PLAN, "subject": name, "source": source})
        found[name] = carry_out(subject, folder / f"state-{name}")
    return found


def carry_out(subject: Subject, home: Path) -> dict[str, pl.DataFrame]:
    workspace = Workspace(home, launcher=InProcess(), publish_every_s=1e9)
    for stage in subject_stages(subject):
        if not stage.per_request:
            materialize(stage, workspace, run_id="r", request=None, context=None)
    workspace.warehouse.publish()
    return {
        table: workspace.warehouse.query(f"SELECT * FROM audits.{table}")
        for table in ("findings", "unseen", "attack_reports")
    }


def finding(of: dict[str, pl.DataFrame], about: str, what: str) -> dict[str, Any]:
    return of["findings"].filter(about=about, what=what).row(0, named=True)


def test_exact_retraining_does_not_fail_beside_hard_examples(audited: dict[str, dict[str, pl.DataFrame]]) -> None:
    hard = audited["hard"]
    reports = hard["attack_reports"].filter(audited="random/retrain", attack="loss")
    assert reports["auc_lo"].min() > 0.75, "beyond any tolerance: the attack alone would fail it"
    for what in ("attack/loss", "attack/u_mia"):
        found = finding(hard, "random/retrain", what)
        assert found["verdict"] == "inconclusive" and "differ by themselves" in found["sentence"]
    for about in ("target", "random/none"):
        assert finding(hard, about, "attack/loss")["verdict"] == "inconclusive"
    assert "fail" not in hard["findings"].filter(about="random/retrain")["verdict"].to_list()


def test_the_untouched_model_does_not_pass_beside_easy_examples(audited: dict[str, dict[str, pl.DataFrame]]) -> None:
    found = [finding(audited["easy"], "random/none", what) for what in ("attack/loss", "attack/lira_online")]
    assert "pass" not in {row["verdict"] for row in found}
    low = audited["easy"]["unseen"].filter(attack="loss").row(0, named=True)
    assert low["auc_hi"] < 0.4 and low["num_models"] == 16 and min(low["n_train"], low["n_test"]) > 100


def test_beside_peers_retraining_passes_and_nothing_is_said_of_a_difference(
    audited: dict[str, dict[str, pl.DataFrame]],
) -> None:
    for what in ("attack/loss", "attack/u_mia"):
        assert finding(audited["any"], "random/retrain", what)["verdict"] == "pass"
    assert not audited["any"]["findings"]["sentence"].str.contains("differ by themselves").any()
    unseen = audited["any"]["unseen"]
    assert set(unseen["attack"]) == {"loss", "lira_online"}
    assert (unseen["auc_lo"] < 0.5).all() and (unseen["auc_hi"] > 0.5).all()


def test_copies_that_stay_are_no_failure_of_retraining(audited: dict[str, dict[str, pl.DataFrame]]) -> None:
    """Three in four of the forgotten digits have a copy that is kept."""
    copies = audited["copies"]
    reports = copies["attack_reports"].filter(audited="random/retrain", attack="loss")
    assert reports["auc_lo"].min() > 0.6, "beyond the tolerance: the attack alone would fail it"
    found = finding(copies, "random/retrain", "attack/loss")
    assert found["verdict"] == "inconclusive" and "copies" in found["sentence"]
    assert "fail" not in copies["findings"].filter(about="random/retrain")["verdict"].to_list()
