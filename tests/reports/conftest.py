"""A realistic report: an audit of handwritten digits with everything on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from contracts.schema import METRICS, UNLEARNING_RUNS
from contracts.verdicts import Finding, Verdict
from reports import AuditReport, Curve, Examples, Histogram, Removed, ScoreSection, findings_frame

P, F, I = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
CONFIG = """\
type: pipelines.components.AuditedModel
attributes:
  subject: digits
  source: {name: sklearn, config: {dataset: digits}}
  model: {name: mlp, config: {hidden: [128]}}
  recipe: {name: supervised, config: {optimizer: sgd, lr: 0.05, epochs: 60}}
  scores: [el2n, grand, memorization]
  attacks: [loss, lira_online, rmia]
"""


CAPS = (0.001, 0.01, 0.05)


@dataclasses.dataclass(frozen=True)
class Attacked:
    """Scores of two normals ``shift`` apart, with the report rows and the curve that follow from them."""

    rows: list[dict[str, Any]]
    curve: Curve


def attacked(audited: str, attack: str, shift: float, *, n_pos: int, n_neg: int, rng: np.random.Generator) -> Attacked:
    scores = np.concatenate([rng.normal(shift, 1, n_pos), rng.normal(0, 1, n_neg)])
    member = np.arange(n_pos + n_neg) < n_pos
    order = np.argsort(-scores)
    tp, fp = np.cumsum(member[order]), np.cumsum(~member[order])
    tpr, fpr = np.concatenate([[0], tp / n_pos]), np.concatenate([[0], fp / n_neg])
    auc = stats.mannwhitneyu(scores[member], scores[~member]).statistic / (n_pos * n_neg)
    half = 1.96 * np.sqrt(auc * (1 - auc) / min(n_pos, n_neg))
    rows = []
    for cap in CAPS:
        best = int(np.searchsorted(fpr, cap, side="right")) - 1
        hits, alarms = round(tpr[best] * n_pos), round(fpr[best] * n_neg)
        known = cap * n_neg >= 1
        tpr_lo, tpr_hi = stats.binomtest(hits, n_pos).proportion_ci()
        fpr_lo, fpr_hi = stats.binomtest(alarms, n_neg).proportion_ci()
        rates = {
            "tpr": tpr[best],
            "tpr_lo": tpr_lo,
            "tpr_hi": tpr_hi,
            "fpr": fpr[best],
            "fpr_lo": fpr_lo,
            "fpr_hi": fpr_hi,
        }
        rows.append(
            {
                "audited": audited,
                "attack": attack,
                "seed": 0,
                "n_pos": n_pos,
                "n_neg": n_neg,
                "auc": auc,
                "auc_lo": max(0.0, auc - half),
                "auc_hi": min(1.0, auc + half),
                "balanced_acc": 0.5 + 0.5 * float(np.max(tpr - fpr)),
                "balanced_acc_heldout": None,
                "balanced_acc_heldout_lo": None,
                "balanced_acc_heldout_hi": None,
                "fpr_cap": cap,
                "reliable": cap * n_neg >= 10,
                **{k: float(v) if known else None for k, v in rates.items()},
            }
        )
    return Attacked(rows, Curve.of(fpr, tpr, n_pos=n_pos, n_neg=n_neg))


def unlearning_row(split: str, method: str, seed: int, rng: np.random.Generator, **at: float) -> dict[str, Any]:
    base = {"ua": 4.0, "ra": 99.9, "ta": 96.7, "mia_efficacy": 12.0, "gap": 0.0, "wall_s": 4.0} | at
    shake = rng.normal(scale=0.3, size=6)
    return {
        "split": split,
        "method": method,
        "seed": seed,
        "num_forget": 144,
        "num_retain": 1293,
        "ua": max(0.0, base["ua"] + shake[0]),
        "ra": min(100.0, base["ra"] + shake[1] / 10),
        "ta": base["ta"] + shake[2],
        "mia_efficacy": base["mia_efficacy"] + shake[3],
        "mia_correctness": 4.0,
        "mia_entropy": 9.0,
        "mia_m_entropy": 9.5,
        "mia_prob": 10.0,
        "gap_ua": base["gap"],
        "gap_ra": base["gap"] / 2,
        "gap_ta": base["gap"] / 2,
        "gap_mia": base["gap"] * 2,
        "avg_gap": abs(base["gap"] + shake[4]) if base["gap"] else 0.0,
        "wall_s": base["wall_s"] * (1 + 0.05 * shake[5]),
        "rte": base["wall_s"] / 60,
        "status": "ok",
        "reason": "",
        "kind": "random",
        "retrain_spread": 0.7,
        **{
            f"{f}{side}": 0.0
            for f in ("ra_lost", "ta_lost", "avg_gap")
            for side in ("", "_lo", "_hi")
            if f"{f}{side}" != "avg_gap"
        },
    }


@pytest.fixture
def long() -> Callable[[pl.DataFrame], dict[str, pl.DataFrame]]:
    return long_of


def long_of(runs: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Runs with a column a metric as the two fields of a report: runs, and metrics a row each."""
    rows = [
        {"split": row["split"], "method": row["method"], "seed": row["seed"], "metric": metric, "value": row[metric]}
        | {"low": row.get(f"{metric}_lo"), "high": row.get(f"{metric}_hi")}
        for row in runs.to_dicts()
        for metric in METRICS
        if row.get(metric) is not None
    ]
    kinds = {"split": pl.String, "method": pl.String, "seed": pl.Int64, "metric": pl.String}
    metrics = pl.DataFrame(rows, schema={**kinds, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64})
    return {"unlearning": runs.select(c.name for c in UNLEARNING_RUNS.columns), "unlearning_metrics": metrics}


@pytest.fixture(scope="session")
def digits_report() -> AuditReport:
    return build_report()


@pytest.fixture
def changed(digits_report: AuditReport) -> Callable[..., AuditReport]:
    """The report with some fields replaced."""
    return lambda **fields: dataclasses.replace(digits_report, **fields)


@pytest.fixture
def lean(digits_report: AuditReport) -> Callable[..., AuditReport]:
    """The report without its pictures (but the unlearning plot), with some fields replaced."""
    bare: dict[str, Any] = {"scores": (), "groups": (), "curves": {}}
    return lambda **fields: dataclasses.replace(digits_report, **(bare | fields))


def build_report() -> AuditReport:
    rng = np.random.default_rng(7)
    digits = load_digits()
    images = digits.images.astype(np.float32)
    n = 1437

    def shown(heading: str, note: str, high: float) -> Examples:
        ids = rng.choice(n, 24, replace=False)
        return Examples(
            heading=heading,
            example_id=ids,
            value=np.sort(rng.uniform(0.6 * high, high, 24))[::-1],
            label=[f"digit {digits.target[i]}" for i in ids],
            note=[f"{note} {rng.integers(10)}" for _ in ids],
            images=images[ids],
        )

    memory = np.clip(rng.beta(0.3, 4, n) + rng.normal(0, 0.02, n), -0.2, 1)
    sections = (
        ScoreSection(
            name="el2n",
            doc="Mean distance between the predicted distribution and the label early in training.",
            higher_means="harder",
            histogram=Histogram.of(rng.gamma(1.2, 0.12, n)),
            examples=(shown("Hardest", "model says", 1.2),),
        ),
        ScoreSection(
            name="memorization",
            doc="How much more often the label is predicted when the example was in training.",
            higher_means="memorised",
            histogram=Histogram.of(memory),
            examples=(shown("Most memorised", "without it:", 1.0),),
        ),
    )
    shifts = {
        "target": {"loss": 0.2, "lira_online": 0.55, "rmia": 0.6},
        "random/none": {"rmia": 0.6},
        "random/retrain": {"rmia": 0.0},
        "random/finetune": {"rmia": 0.4},
        "random/gradient_ascent": {"rmia": 0.25},
        "random/random_label": {"rmia": 0.2},
    }
    done = {
        audited: {
            a: attacked(audited, a, s, n_pos=n if audited == "target" else 144, n_neg=180, rng=rng)
            for a, s in group.items()
        }
        for audited, group in shifts.items()
    }
    attacks = [row for group in done.values() for a in group.values() for row in a.rows]
    runs = [
        unlearning_row("random", method, seed, rng, **at)
        for method, at in (
            ("none", {"ua": 0.2, "mia_efficacy": 0.7, "gap": 4.1, "wall_s": 0.0}),
            ("retrain", {}),
            ("finetune", {"ua": 1.1, "mia_efficacy": 3.5, "gap": 3.2, "wall_s": 0.8}),
            ("gradient_ascent", {"ua": 9.7, "ra": 93.0, "ta": 89.9, "mia_efficacy": 17.0, "gap": 6.4, "wall_s": 0.2}),
            ("random_label", {"ua": 5.0, "ta": 95.4, "mia_efficacy": 16.0, "gap": 1.9, "wall_s": 0.9}),
        )
        for seed in range(3)
    ]
    findings = {
        "target": [
            Finding(
                what="attack/rmia",
                verdict=F,
                value=0.663,
                low=0.628,
                high=0.698,
                threshold=0.6,
                sentence="RMIA tells members from others with AUC 0.663 (0.628 to 0.698), above the allowed 0.600.",
            ),
            Finding(
                what="attack/loss",
                verdict=P,
                value=0.561,
                low=0.526,
                high=0.596,
                threshold=0.6,
                sentence="The loss attack reaches AUC 0.561 (0.526 to 0.596), within the allowed 0.600.",
            ),
        ],
        "recourse": [
            Finding(
                what="recourse/valid",
                verdict=P,
                value=0.9996,
                threshold=0.98,
                sentence="Explanations given to people stay valid: 0.9996.",
            )
        ],
        "random/none": [
            Finding(
                what="umia",
                verdict=F,
                value=0.74,
                low=0.68,
                high=0.80,
                threshold=0.6,
                sentence="The untouched model gives its forget set away: accuracy 0.740 (0.680 to 0.800).",
            )
        ],
        "random/retrain": [
            Finding(
                what="umia",
                verdict=P,
                value=0.51,
                low=0.44,
                high=0.58,
                threshold=0.6,
                sentence="Retraining cannot be told from the test split: accuracy 0.510 (0.440 to 0.580).",
            )
        ],
        "random/finetune": [
            Finding(
                what="umia",
                verdict=I,
                value=0.61,
                low=0.55,
                high=0.67,
                threshold=0.6,
                sentence="Accuracy 0.610 (0.550 to 0.670) straddles the allowed 0.600: 144 examples cannot decide.",
            ),
            Finding(
                what="gap",
                verdict=P,
                value=3.2,
                low=2.4,
                high=4.1,
                threshold=5.0,
                sentence="3.2 points from retraining (2.4 to 4.1), within the allowed 5.",
            ),
        ],
        "random/gradient_ascent": [
            Finding(
                what="gap",
                verdict=F,
                value=6.4,
                low=5.7,
                high=7.2,
                threshold=5.0,
                sentence="6.4 points from retraining (5.7 to 7.2), more than the allowed 5.",
            )
        ],
    }
    return AuditReport(
        subject="digits",
        title="Handwritten digits, a two-layer perceptron",
        created_at="2026-11-24T06:30:00+00:00",
        findings=findings_frame(
            (about, dataclasses.replace(f, method=about.partition("/")[2], kind="attack"))
            for about, group in findings.items()
            for f in group
        ),
        audited={
            "Data": {
                "Source": "scikit-learn digits",
                "Training examples": 1437,
                "Test examples": 360,
                "Classes": [str(d) for d in range(10)],
                "Digest": "9f2c1ab0d7e34f5a8b6c9d0e1f2a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c",
            },
            "Model": {
                "Architecture": "mlp",
                "Hidden units": [128],
                "Parameters": 9610,
                "Training accuracy": 1.0,
                "Test accuracy": 0.9667,
            },
            "Recipe": {
                "Name": "supervised",
                "Optimizer": "sgd",
                "Learning rate": 0.05,
                "Epochs": 60,
                "Reference models": 64,
            },
            "Seeds": {"Root": 0, "Early models": 10, "Unlearning": [0, 1, 2]},
        },
        scores=sections,
        groups=(shown("Noisiest: the scores disagree most", "rank spread", 0.9),),
        removed=Removed(
            num=144,
            num_train=1437,
            how="a random share",
            classes={"digit 8": 44, "digit 3": 100},
            examples=dataclasses.replace(shown("Removed", "", 1.0), note=()),
        ),
        **long_of(pl.DataFrame(runs)),
        attacks=pl.DataFrame(attacks, infer_schema_length=None),
        curves={
            a: {name: x.curve for name, x in done[a].items()} for a in ("target", "random/finetune", "random/retrain")
        },
        notes=("Near duplicates of forgotten examples were not looked for.",),
        commands=("palimpsest audit digits", "palimpsest sql --named attacks-low-fpr"),
        config_yaml=CONFIG,
        environment={"Python": "3.11.9", "torch": "2.13.0", "Device": "cpu", "Threads": 2},
        ledger_head="4be1a0c9d87f6e5d4c3b2a190817263544f3e2d1c0b9a8978685746352413021",
        max_gap=5.0,
    )
